"""What `make bench` measured, as `results/bench.json` holds it: fast against plain, with targets and who reached them.

*Plain* is the model the way the study ran it (`benchmarks/reference.py`), *fast* the one of this workbook. Both run in
one process, in alternation, so that a machine that slows down for a while slows both: ratios are of the same round.
"""

import json
import math
import statistics
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from ka.errors import KAError
from ka.models.variants import VARIANTS

FORMAT = 1
BASELINE = "psrt_noshuffle"
CONVOLUTION = "conv3x3"
"""The row whose KA layer is one ordinary convolution."""


@dataclass(frozen=True)
class Setting:
    """Sizes and rounds of a measurement; defaults are those of a full run on a CPU.

    Attributes:
        dim, n_bands, n_msi: of the models; a KA layer alone has dim / 2 channels.
        layer_batch, layer_size: input of the KA layer alone.
        step_batch, step_size: input of a training step.
        inference_size: side of the image of inference, in pixels.
        counted: side of the image that the FLOPs of inference are counted for.
        layer_rounds, step_rounds, inference_rounds: rounds, each with every variant in both forms.
        startups: pairs of fresh processes that start up.
        gemm, copied: side of the matrices, and MiB of the copy, that the ceilings are measured with.
        scenes: whole scenes: (side in pixels, side of a tile; 0 for one pass).
    """

    dim: int = 48
    n_bands: int = 31
    n_msi: int = 3
    layer_batch: int = 4
    layer_size: int = 64
    step_batch: int = 2
    step_size: int = 64
    inference_size: int = 128
    counted: int = 512
    layer_rounds: int = 7
    step_rounds: int = 3
    inference_rounds: int = 3
    startups: int = 5
    gemm: int = 2048
    copied: int = 256
    scenes: tuple[tuple[int, int], ...] = ((256, 0), (512, 0), (1024, 0), (512, 256), (1024, 256), (2048, 256))


@dataclass(frozen=True)
class Spread:
    """A ratio over the rounds of a measurement.

    Attributes:
        median, low, high: median, lower and upper quartile over rounds.
        shortest: ratio of the two shortest times, whichever rounds they are of.
    """

    median: float
    low: float
    high: float
    shortest: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> "Spread":
        """The ratio above / below of times of the same rounds."""
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        values = (statistics.median(ratios), low, high, min(above) / min(below))
        return cls(*(significant(value) for value in values))


@dataclass(frozen=True)
class Pair:
    """One computation, fast against plain.

    Attributes:
        ms, plain_ms: median milliseconds.
        faster: plain by fast time.
        mib, plain_mib: peak memory above weights and inputs, in MiB. On the CPU that of PyTorch's allocator (without
            what oneDNN takes for itself), the same in every run.
    """

    ms: float
    plain_ms: float
    faster: Spread
    mib: float
    plain_mib: float

    @property
    def smaller(self) -> float:
        """Plain by fast memory."""
        return self.plain_mib / self.mib if self.mib else math.inf


@dataclass(frozen=True)
class Speed:
    """What was measured of one variant.

    Attributes:
        live, deployed: parameters in training, and folded for inference.
        gflops, plain_gflops: 10⁹ FLOPs of inference for an image of `Setting.counted` pixels a side: the deployed
            form, the plain one.
        step_gflops: 10⁹ FLOPs of a training step (forward and backward) at its size.
        step_gb: 10⁹ bytes that the operations of that step read and write, as PyTorch runs them one by one.
        agreement: largest difference of the outputs, by the largest change of the image (fast against plain).
        layer: KA layer alone, forward and backward; None where there is nothing to time.
        step: training step: forward, L1, backward, AdamW.
        inference: inference of the deployed form.
        to_baseline: time of that inference by the baseline's, fast both.
    """

    live: int
    deployed: int
    gflops: float
    plain_gflops: float
    step_gflops: float
    step_gb: float
    agreement: float
    layer: Pair | None
    step: Pair
    inference: Pair
    to_baseline: Spread


@dataclass(frozen=True)
class Startup:
    """Start of a fresh process, in seconds, medians.

    Attributes:
        torch, ka: until `import torch`, `import ka` is done.
        more: by how much longer the second took than the first of the same pair.
        low, high: quartiles of that.
    """

    torch: float
    ka: float
    more: float
    low: float
    high: float


@dataclass(frozen=True)
class SceneCost:
    """A whole scene, sharpened by the deployed baseline of scenes (`SCENES_OF`) in a process of its own.

    Attributes:
        size, tile: side of the scene and of its tiles in pixels; 0 for one pass.
        seconds: the shortest of its runs.
        mib: peak memory above model and inputs: growth of the process on a CPU, allocated on a GPU.
        images_mib: of it, the result.
        process_mib: peak of the whole process; on a GPU None.
    """

    size: int
    tile: int
    seconds: float
    mib: float
    images_mib: float
    process_mib: float | None

    @property
    def pixels(self) -> int:
        return self.size**2


SCENES_OF = "kav11"


@dataclass(frozen=True)
class Throughput:
    """Training or inference with data held on the device, in one way of running it.

    Attributes:
        what: `training` or `inference`.
        variant: the model.
        mode: how it ran (`benchmarks.throughput.MODES`).
        models: models trained side by side.
        batch, size, dim: patches per step of each, their side, embedding width.
        per_second: samples (patches, images) per second, all models together; None if it did not run.
        faster: time of the plain form by its time; None for models side by side.
        of_gemm: FLOPs per second, of what the matrix product of this precision reached.
        of_copy: bytes per second that the operations move when run one by one, of what a copy reached; above 1 where
            they are fused.
        mib: peak memory above weights and data; None where it is not known (in a graph).
        failed: why it did not run, else "".
    """

    what: str
    variant: str
    mode: str
    models: int
    batch: int
    size: int
    dim: int
    per_second: float | None = None
    faster: Spread | None = None
    of_gemm: float | None = None
    of_copy: float | None = None
    mib: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Measurement:
    """One run of the benchmark on one device.

    Attributes:
        hardware: processor, GPU, versions, commit, time.
        device: `cpu` or `cuda`.
        threads: of PyTorch.
        full: all variants at full size; else the numbers only show that everything runs.
        seconds: how long it took.
        setting: what was run.
        gemm: precision → 10⁹ FLOPs per second of a large matrix product.
        copy: 10⁹ bytes per second, read and written, of a large copy.
        variants: variant → its measurement.
        startup, scenes, throughput: None where not measured.
    """

    hardware: Mapping[str, Any]
    device: str
    threads: int
    full: bool
    seconds: float
    setting: Setting
    gemm: Mapping[str, float]
    copy: float
    variants: Mapping[str, Speed]
    startup: Startup | None = None
    scenes: tuple[SceneCost, ...] | None = None
    throughput: tuple[Throughput, ...] | None = None

    @property
    def label(self) -> str:
        """Where it was measured, in a few words."""
        threads = "" if self.device == "cuda" else f", {self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.hardware.get('gpu' if self.device == 'cuda' else 'cpu')}{threads}"

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Variants that a full run should have and this one, being older than they are, has not."""
        return tuple(name for name in VARIANTS if name not in self.variants) if self.full else ()

    def to_convolution(self, name: str) -> float | None:
        """Time of a variant's KA layer by that of one ordinary convolution; None where either is not measured."""
        one, convolution = (self.variants[key].layer if key in self.variants else None for key in (name, CONVOLUTION))
        return None if one is None or convolution is None else one.ms / convolution.ms

    def of_gemm(self, name: str) -> float:
        """FLOPs per second of a variant's training step, of what the matrix product reached."""
        speed = self.variants[name]
        return 1e3 * speed.step_gflops / speed.step.ms / self.gemm["float32"]

    def of_copy(self, name: str) -> float:
        """Bytes per second that the operations of a training step read and write, of what the copy reached."""
        speed = self.variants[name]
        return 1e3 * speed.step_gb / speed.step.ms / self.copy


# Files


def read(path: str | Path) -> dict[str, Measurement]:
    """Measurements by device; empty if there is no file.

    Raises:
        KAError: the file is damaged or of another kind.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}; {FORMAT} is expected")
        found = {str(device): _load(Measurement, entry, device) for device, entry in value["devices"].items()}
        if wrong := [device for device, entry in found.items() if entry.device != device]:
            raise ValueError(f"{wrong[0]} holds another device")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise KAError(
            f"{path} is damaged or of another kind ({what}); restore it, or remove it and measure again with make bench"
        ) from error


def _load(kind: Any, value: Any, where: str) -> Any:
    """A value of plain JSON as `kind`, strictly.

    Raises:
        TypeError, ValueError, KeyError: it is none.
    """
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        (real,) = (option for option in options if option is not type(None))
        return None if value is None else _load(real, value, where)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if unknown := sorted(set(value) - set(hints)):
            raise ValueError(f"{where}: unknown {unknown[0]}")
        given = {key: _load(hints[key], each, f"{where}.{key}") for key, each in value.items()}
        missing = [key.name for key in fields(kind) if key.default is MISSING and key.name not in given]
        if missing:
            raise KeyError(f"{where}.{missing[0]}")
        return typing.cast(Callable[..., Any], kind)(**given)
    if typing.get_origin(kind) is tuple:
        inner = options[:1] * len(value) if options[-1] is Ellipsis else options
        return tuple(_load(one, each, where) for one, each in zip(inner, value, strict=True))
    if typing.get_origin(kind) is Mapping:
        return {str(key): _load(options[1], each, f"{where}.{key}") for key, each in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{where} is no {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} is not finite")
    return value


def significant(value: float, digits: int = 4) -> float:
    """`value` rounded to so many significant digits, as it is stored."""
    return float(f"{value:.{digits}g}")


# Targets


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
class Verdict:
    """Whether a target was reached.

    Attributes:
        text: the target.
        reached: None if it was not measured.
        found: what was measured, in words.
    """

    text: str
    reached: bool | None = None
    found: str = "not measured"

    def __str__(self) -> str:
        state = {None: "not measured", True: "reached", False: "NOT reached"}[self.reached]
        return f"{self.text}: {state}" + (f" ({self.found})" if self.reached is not None else "")


def verdicts(measured: Mapping[str, Measurement]) -> list[Verdict]:
    """Every target beside what was measured; a run that is not full judges nothing.

    A ratio is judged by its median over rounds.
    """
    full = {device: found for device, found in measured.items() if found.full}
    cpu = full.get("cpu")
    ratios = [_judge_ratios(f"{goal.device.upper()}: {goal.text}", goal, full.get(goal.device)) for goal in GOALS]
    return [*ratios, *_judge_scenes(None if cpu is None else cpu.scenes), _judge_startup(cpu)]


def _judge_ratios(text: str, goal: Goal, found: Measurement | None) -> Verdict:
    ratios = {} if found is None else _best(goal, found) if goal.device == "cuda" else _ratios(goal, found)
    if found is None or not ratios:
        return Verdict(text)
    lacking = len(found.unmeasured) if goal.device != "cuda" and not goal.variants else 0
    rest = f"; {lacking} not measured" if lacking else ""
    missed = {name: ratio for name, ratio in ratios.items() if ratio[0] < goal.least}
    shown = missed or ratios
    order = sorted(shown, key=lambda name: shown[name][0])
    values = ", ".join(f"{name} {_shown(*shown[name])}" for name in order)
    reached = f"{len(ratios) - len(missed)} of {len(ratios)}"
    return Verdict(text, not missed, (f"{reached}; {values}" if missed else values) + rest)


def _shown(median: float, low: float | None = None, high: float | None = None) -> str:
    return f"{median:.2f}" + ("" if low is None else f" [{low:.2f} to {high:.2f}]")


def _ratios(goal: Goal, found: Measurement) -> dict[str, tuple[float, ...]]:
    """Variant → ratio, with its quartiles where it has any."""
    pairs = {name: getattr(speed, goal.part) for name, speed in found.variants.items()}
    chosen = {name: pair for name, pair in pairs.items() if pair is not None and name in (goal.variants or pairs)}
    if goal.measure == "smaller":
        return {name: (pair.smaller,) for name, pair in chosen.items()}
    return {name: (pair.faster.median, pair.faster.low, pair.faster.high) for name, pair in chosen.items()}


def _best(goal: Goal, found: Measurement) -> dict[str, tuple[float, ...]]:
    """Variant, with its fastest float32 mode → ratio and quartiles."""
    what = {"step": "training", "inference": "inference"}[goal.part]
    best: dict[str, tuple[str, Spread]] = {}
    for row in found.throughput or ():
        if row.what == what and row.faster is not None and row.mode.startswith("float32"):
            before = best.get(row.variant)
            if before is None or row.faster.median > before[1].median:
                best[row.variant] = (row.mode, row.faster)
    return {f"{name} ({mode})": (each.median, each.low, each.high) for name, (mode, each) in best.items()}


def _judge_scenes(scenes: Sequence[SceneCost] | None) -> Iterable[Verdict]:
    """Memory of one pass, bounded memory in tiles, cost linear in pixels."""
    texts = [
        f"CPU: 512×512 in one pass under {SCENE_LIMIT / 1e9:g} GB",
        f"CPU: in tiles, working memory bounded (at most {BOUNDED:g} times that of the smallest scene)",
        f"CPU: cost linear in pixels (exponent within {LINEAR:g} of 1)",
    ]
    passes = [scene for scene in scenes or () if not scene.tile]
    tiled = [scene for scene in scenes or () if scene.tile]
    one = [scene.process_mib * 2**20 for scene in passes if scene.size == 512 and scene.process_mib is not None]
    yield Verdict(texts[0], one[0] < SCENE_LIMIT, f"{one[0] / 1e9:.2f} GB") if one else Verdict(texts[0])
    working = {scene.size: scene.mib - scene.images_mib for scene in tiled}
    if len(working) > 1:
        first, last = working[min(working)], working[max(working)]
        found = ", ".join(f"{size}²: {mib:.0f} MiB" for size, mib in sorted(working.items()))
        yield Verdict(texts[1], last <= BOUNDED * first, f"{found}, beside the result")
    else:
        yield Verdict(texts[1])
    exponents = [exponent(kind) for kind in (passes, tiled) if len(kind) > 1]
    if exponents:
        found = " and ".join(f"{value:.2f}" for value in exponents)
        yield Verdict(texts[2], all(abs(value - 1) <= LINEAR for value in exponents), found)
    else:
        yield Verdict(texts[2])


def exponent(scenes: Sequence[SceneCost]) -> float:
    """p of time ∝ pixels^p, by least squares over the logarithms."""
    points = [(math.log(scene.pixels), math.log(scene.seconds)) for scene in scenes]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def _judge_startup(found: Measurement | None) -> Verdict:
    text = f"CPU: `import ka` takes under {STARTUP_LIMIT:g} s more than `import torch`"
    if found is None or found.startup is None:
        return Verdict(text)
    more = found.startup
    return Verdict(text, more.more < STARTUP_LIMIT, f"{more.more:.2f} s [{more.low:.2f} to {more.high:.2f}]")
