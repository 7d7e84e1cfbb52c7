"""Targets of the benchmark, and which of them a measurement reaches."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workbook.results.speed import Measurement, SceneCost, Spread


@dataclass(frozen=True)
class Goal:
    """A target: `part` of these variants (all, if none is named) at least so many times `faster`, or `smaller`."""

    device: str
    part: str
    measure: str
    least: float
    variants: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        what = {"layer": "KA layer, forward and backward", "step": "training step", "inference": "inference"}[self.part]
        which = ", ".join(self.variants) or "every variant"
        return f"{what}, at least {self.least:g}× {self.measure} ({which})"


_AT_ONCE, _AT_THREE = ("kav6", "kav8", "kav11"), ("kav1", "kav7", "kav10", "kav17")
GOALS = (
    Goal("cpu", "layer", "faster", 5.0, _AT_ONCE),
    Goal("cpu", "layer", "faster", 3.0, _AT_THREE),
    Goal("cpu", "layer", "smaller", 3.0, _AT_ONCE + _AT_THREE),
    Goal("cpu", "step", "faster", 1.5),
    Goal("cpu", "inference", "faster", 2.0),
    Goal("cuda", "step", "faster", 5.0),
    Goal("cuda", "inference", "faster", 5.0),
)
"""Ratios to reach. On a GPU the best way of running in float32 counts (`Throughput`)."""

SCENE_LIMIT = 3e9  # bytes for 512×512 in one pass, whole process
STARTUP_LIMIT = 1.5  # seconds
LINEAR = 0.15  # how far the exponent of time against pixels may be from 1 (by count it is 1.08 in tiles: border tiles
# have fewer margins, and large scenes fewer border tiles)
BOUNDED = 1.25  # working memory in tiles at the largest size, of that at the smallest


@dataclass(frozen=True)
class GoalVerdict:
    """Whether a target was reached.

    Attributes:
        text: the target.
        reached: None if it was not measured.
        measured: what was measured, in words.
    """

    text: str
    reached: bool | None = None
    measured: str = "not measured"

    def __str__(self) -> str:
        state = {None: "not measured", True: "reached", False: "NOT reached"}[self.reached]
        return f"{self.text}: {state}" + (f" ({self.measured})" if self.reached is not None else "")


def verdicts(measured: Mapping[str, Measurement]) -> list[GoalVerdict]:
    """Every target beside what was measured; a run that is not full judges nothing.

    A ratio is judged by its median over rounds.
    """
    full = {device: measurement for device, measurement in measured.items() if measurement.full}
    cpu = full.get("cpu")
    ratios = [_judge_ratios(f"{goal.device.upper()}: {goal.text}", goal, full.get(goal.device)) for goal in GOALS]
    return [*ratios, *_judge_scenes(None if cpu is None else cpu.scenes), _judge_startup(cpu)]


def _judge_ratios(text: str, goal: Goal, measurement: Measurement | None) -> GoalVerdict:
    ratios = (
        {} if measurement is None else _best(goal, measurement) if goal.device == "cuda" else _ratios(goal, measurement)
    )
    if measurement is None or not ratios:
        return GoalVerdict(text)
    lacking = len(measurement.unmeasured) if goal.device != "cuda" and not goal.variants else 0
    rest = f"; {lacking} not measured" if lacking else ""
    missed = {name: ratio for name, ratio in ratios.items() if ratio[0] < goal.least}
    shown = missed or ratios
    order = sorted(shown, key=lambda name: shown[name][0])
    values = ", ".join(f"{name} {_shown(*shown[name])}" for name in order)
    reached = f"{len(ratios) - len(missed)} of {len(ratios)}"
    return GoalVerdict(text, not missed, (f"{reached}; {values}" if missed else values) + rest)


def _shown(median: float, low: float | None = None, high: float | None = None) -> str:
    return f"{median:.2f}" + ("" if low is None else f" [{low:.2f} to {high:.2f}]")


def _ratios(goal: Goal, measurement: Measurement) -> dict[str, tuple[float, ...]]:
    """Variant → ratio, with its quartiles where it has any."""
    pairs = {name: getattr(speed, goal.part) for name, speed in measurement.variants.items()}
    chosen = {name: pair for name, pair in pairs.items() if pair is not None and name in (goal.variants or pairs)}
    if goal.measure == "smaller":
        return {name: (pair.smaller,) for name, pair in chosen.items()}
    return {name: (pair.faster.median, pair.faster.low, pair.faster.high) for name, pair in chosen.items()}


def _best(goal: Goal, measurement: Measurement) -> dict[str, tuple[float, ...]]:
    """Variant, with its fastest float32 mode → ratio and quartiles."""
    what = {"step": "training", "inference": "inference"}[goal.part]
    best: dict[str, tuple[str, Spread]] = {}
    for row in measurement.throughput or ():
        if row.what == what and row.faster is not None and row.mode.startswith("float32"):
            before = best.get(row.variant)
            if before is None or row.faster.median > before[1].median:
                best[row.variant] = (row.mode, row.faster)
    return {f"{name} ({mode})": (each.median, each.low, each.high) for name, (mode, each) in best.items()}


def _judge_scenes(scenes: Sequence[SceneCost] | None) -> Iterable[GoalVerdict]:
    """Memory of one pass, bounded memory in tiles, cost linear in pixels."""
    texts = [
        f"CPU: 512×512 in one pass under {SCENE_LIMIT / 1e9:g} GB",
        f"CPU: in tiles, working memory bounded (at most {BOUNDED:g} times that of the smallest scene)",
        f"CPU: cost linear in pixels (exponent within {LINEAR:g} of 1)",
    ]
    passes = [scene for scene in scenes or () if not scene.tile]
    tiled = [scene for scene in scenes or () if scene.tile]
    one = [scene.process_mib * 2**20 for scene in passes if scene.size == 512 and scene.process_mib is not None]
    yield GoalVerdict(texts[0], one[0] < SCENE_LIMIT, f"{one[0] / 1e9:.2f} GB") if one else GoalVerdict(texts[0])
    working = {scene.size: scene.mib - scene.images_mib for scene in tiled}
    if len(working) > 1:
        first, last = working[min(working)], working[max(working)]
        text = ", ".join(f"{size}²: {mib:.0f} MiB" for size, mib in sorted(working.items()))
        yield GoalVerdict(texts[1], last <= BOUNDED * first, f"{text}, beside the result")
    else:
        yield GoalVerdict(texts[1])
    exponents = [exponent(kind) for kind in (passes, tiled) if len(kind) > 1]
    if exponents:
        text = " and ".join(f"{value:.2f}" for value in exponents)
        yield GoalVerdict(texts[2], all(abs(value - 1) <= LINEAR for value in exponents), text)
    else:
        yield GoalVerdict(texts[2])


def exponent(scenes: Sequence[SceneCost]) -> float:
    """p of time ∝ pixels^p, by least squares over the logarithms."""
    points = [(math.log(scene.pixels), math.log(scene.seconds)) for scene in scenes]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def _judge_startup(measurement: Measurement | None) -> GoalVerdict:
    text = f"CPU: `import ka` takes under {STARTUP_LIMIT:g} s more than `import torch`"
    if measurement is None or measurement.startup is None:
        return GoalVerdict(text)
    more = measurement.startup
    return GoalVerdict(text, more.more < STARTUP_LIMIT, f"{more.more:.2f} s [{more.low:.2f} to {more.high:.2f}]")
