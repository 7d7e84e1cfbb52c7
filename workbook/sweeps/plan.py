"""What a campaign is to train, in a file: `plan.json` holds a protocol's fields, once, and the list of its runs.

What belongs to a machine (where the data lie, the device, how many run side by side) is not in it, so that the folder
can go on elsewhere. `measure` says how long an iteration takes here, `Pace.iterations` how many fit so many hours.
"""

import json
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from ka.data import SceneSet
from ka.data.patches import DevicePatches, Patches
from ka.errors import KAError
from ka.evaluation import evaluate
from ka.files import write_json
from ka.inference import Network
from ka.models.variants import VARIANTS
from workbook.environment import environment
from workbook.training.config import PRESETS, Config
from workbook.training.devices import pick_device, placed
from workbook.training.scenes import Data, load_data
from workbook.training.step import State, Step, read_every, start

STUDY = (
    *("psrt", "psrt_misaligned", "psrt_noshuffle", "conv3x3", *(f"kav{k}" for k in range(1, 12))),
    *("kav5_as_run", "kav8_as_run", "kav12", "kav13", "kav16", "kav17", "kav18", "kav19"),
)
NOT_SHARED = ("variant", "seed", "run_dir", "data_root", "device")
LEAST = 100  # iterations below which a run is not worth its time
SPARE = 0.1  # of the hours, as speed is measured in seconds and then trusted for hours

clock = time.perf_counter


def default_variants() -> tuple[str, ...]:
    """The rows of the study and its later report, those that answer a question of their own after them."""
    return (*STUDY, *(name for name, row in VARIANTS.items() if row.ours and name not in STUDY))


@dataclass(frozen=True)
class Planned:
    """One run of a plan."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """What its folder and its files are called."""
        return f"{self.variant}-seed{self.seed}"


@dataclass(frozen=True)
class Pace:
    """How long things took on one machine, in seconds.

    Attributes:
        device: what was measured.
        jobs: runs side by side while it was measured.
        iteration: variant → one iteration.
        validation: one validation, of both kinds of weights; 0 where nothing is held out.
        test: the test scenes at the end of a run.
        once: what each process does once: read the scenes, measure the methods without training.
    """

    device: str
    jobs: int
    iteration: Mapping[str, float]
    validation: float
    test: float
    once: float

    def seconds(self, runs: int, iterations: int, every: int) -> float:
        """Time of so many runs, as if all were of the slowest variant; validated after `every` iterations."""
        return self.once + math.ceil(runs / self.jobs) * (iterations * self._each(every) + self.test)

    def iterations(self, hours: float, runs: int, every: int) -> int:
        """How long runs may be, so that all of them fit the hours with a tenth to spare.

        Raises:
            KAError: there would be fewer than 100 iterations.
        """
        turns = math.ceil(runs / self.jobs)
        count = int(((hours * 3600 * (1 - SPARE) - self.once) / turns - self.test) / self._each(every))
        if count < LEAST:
            needed = math.ceil(self.seconds(runs, LEAST, every) / (1 - SPARE) / 360) / 10
            raise KAError(
                f"hours={hours:g} is too short for {runs} runs on this {self.device}: {max(count, 0)} iterations each, "
                f"and {LEAST} are the least; give at least {needed:g}, or fewer variants"
            )
        return count // 10 * 10

    def _each(self, every: int) -> float:
        return max(self.iteration.values()) + self.validation / every


@dataclass(frozen=True)
class Plan:
    """The runs of a campaign.

    Attributes:
        protocol: the preset it began with.
        shared: fields of `Config` that all runs share.
        runs: what is to be trained, in order.
        hours: what all runs were to fit, if that was asked.
        pace: the measurement that `iterations` followed from, then.
        made: when, by which version and commit.
    """

    protocol: str
    shared: Mapping[str, Any]
    runs: Sequence[Planned]
    hours: float | None = None
    pace: Pace | None = None
    made: Mapping[str, Any] | None = None

    @classmethod
    def new(
        cls,
        protocol: str,
        variants: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        **changes: Any,
    ) -> Self:
        """A plan of a preset, seed by seed.

        Args:
            protocol: name of the preset.
            variants: which rows; None for `default_variants`.
            seeds: of every row; None for the preset's.
            changes: fields of `Config` to change.

        Raises:
            KAError: unknown preset, variant or field, impossible value.
        """
        if protocol not in PRESETS:
            raise KAError(f"protocol={protocol!r} is unknown; choose one of {', '.join(PRESETS)}")
        _check_changes(changes)
        embedded = changes.get("dataset", PRESETS[protocol].get("dataset", Config.dataset)) == "indian_pines"
        base = Config.preset(protocol, data_root=None if embedded else "here", **changes)
        shared = {key: value for key, value in base.to_dict().items() if key not in NOT_SHARED}
        now = environment()
        made = {key: now[key] for key in ("time", "commit")}
        made["version"] = now["packages"]["kernel-attention-workbook"]
        return cls(protocol, shared, (), made=made).extended(variants or default_variants(), seeds or (base.seed,))

    def extended(self, variants: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Self:
        """The plan with further variants (None: those it has) of further seeds (None: those it has)."""
        variants = list(variants or dict.fromkeys(run.variant for run in self.runs))
        seeds = list(seeds or dict.fromkeys(run.seed for run in self.runs))
        wanted = [Planned(variant, seed) for seed in seeds for variant in variants]
        for run in wanted:
            self.config(run)
        return replace(self, runs=tuple(dict.fromkeys((*self.runs, *wanted))))

    def config(self, run: Planned, data: str | None = None, device: str = "auto", folder: Path | None = None) -> Config:
        """The configuration of one of the runs, with what belongs to the machine.

        Raises:
            KAError: unknown variant, impossible value.
        """
        place = data if data is not None or self.shared["dataset"] == "indian_pines" else "not kept"
        return Config(
            **self.shared,
            variant=run.variant,
            seed=run.seed,
            data_root=place,
            device=device,
            run_dir=None if folder is None else str(folder / "runs" / run.name),
        )

    def check(self, protocol: str | None, hours: float | None, **changes: Any) -> None:
        """Hold what is asked against what was planned; None was not asked.

        Raises:
            KAError: they contradict each other; the differences are listed.
        """
        _check_changes(changes)
        there = {"protocol": self.protocol, "hours": self.hours} | dict(self.shared)
        asked = {"protocol": protocol, "hours": hours} | changes
        given = {key: value for key, value in asked.items() if value is not None or key in changes}
        if changed := [f"{key}: {there[key]!r} there, {value!r} asked" for key, value in given.items()
                       if there[key] != value]:  # fmt: skip
            raise KAError(
                f"the plan is another ({'; '.join(changed)}); leave these out to go on with it (only --variants and "
                "--seeds may add to it), or choose another --out"
            )

    def for_hours(self, hours: float, pace: Pace) -> Self:
        """The plan with runs of equal length that fit the hours."""
        iterations = pace.iterations(hours, len(self.runs), self.shared["eval_every"])
        shared = dict(self.shared) | {"iterations": iterations, "epochs": None}
        return replace(self, shared=shared, hours=hours, pace=pace)

    def write(self, path: Path) -> None:
        """Write the plan, whole or not at all."""
        write_json(path, {"format": 1, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The plan in a file, None where there is none.

        Raises:
            KAError: it is damaged, or of another version.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value.pop("format") != 1:
                raise ValueError("another format")
            value["runs"] = tuple(Planned(**run) for run in value["runs"])
            value["pace"] = None if value["pace"] is None else Pace(**value["pace"])
            plan = cls(**value)
            if not isinstance(plan.protocol, str):
                raise TypeError("its protocol is no name")
            for run in plan.runs:
                plan.config(run)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise KAError(
                f"{path} is damaged or of another version of this workbook ({error}); restore it, or choose another "
                "--out"
            ) from error
        if plan.protocol not in PRESETS:
            raise KAError(f"{path} is of an unknown protocol {plan.protocol!r}; restore it, or choose another --out")
        return plan


def _check_changes(changes: Mapping[str, Any]) -> None:
    allowed = [field.name for field in fields(Config) if field.name not in NOT_SHARED]
    if unknown := sorted(set(changes) - set(allowed)):
        raise KAError(f"{', '.join(unknown)} cannot be set for all runs of a plan; allowed are {', '.join(allowed)}")


# Speed


def measure(config: Config, variants: Sequence[str], jobs: int, say: Callable[[str], None] = print) -> Pace:
    """Train a few iterations of every variant on some real patches, and sharpen a test scene with the slowest one.

    With several jobs as many processes do so at once: side by side, each is slower.

    Args:
        config: any run of the plan, with data and device of this machine.
        variants: which rows.
        jobs: runs side by side.
        say: told what is measured.

    Raises:
        KAError: data that cannot be read, a device that is not here, a process that died.
    """
    say(f"measuring the speed of {len(variants)} variants …")
    try:
        if jobs == 1:
            return _measure(config, variants, jobs)
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(partial(_measure, config, variants), [jobs] * jobs))
    except (BrokenProcessPool, torch.OutOfMemoryError):
        raise KAError(
            f"no memory left for {jobs} runs side by side of batch={config.batch}; give fewer --jobs, or --set batch=…"
        ) from None
    return replace(
        found[0],
        iteration={name: max(pace.iteration[name] for pace in found) for name in variants},
        **{key: max(getattr(pace, key) for pace in found) for key in ("validation", "test", "once")},
    )


def share_cores(jobs: int, device: torch.device) -> None:
    """One thread each, where several runs share the cores of a CPU."""
    if jobs > 1 and device.type == "cpu":
        torch.set_num_threads(1)


def _measure(config: Config, variants: Sequence[str], jobs: int) -> Pace:
    device = pick_device(config.device)
    share_cores(jobs, device)
    scenes = load_data(config)
    reading = _seconds(lambda: next(iter(scenes.test)).load())
    patches = placed(_some(scenes.patches, config.batch), device)
    iteration = {name: _iteration(replace(config, variant=name), scenes, patches, device) for name in variants}
    slowest = replace(config, variant=max(iteration, key=lambda name: iteration[name]))
    model = _state(slowest, scenes, device).model.eval()

    def part(whole: SceneSet) -> SceneSet:
        return replace(whole, scenes=[whole[0]])

    test = len(scenes.test) * _seconds(lambda: evaluate(Network(model), part(scenes.test)))
    shown = ["psnr", "sam", "ergas"]
    validation = (
        2 * len(scenes.val) * _seconds(lambda: evaluate(Network(model), part(scenes.val), shown)) if scenes.val else 0.0
    )
    return Pace(
        torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        jobs,
        iteration,
        validation,
        test * (3 if scenes.val else 2),  # last, average, and best where that is neither
        reading * (len(scenes.train) + len(scenes.val) + len(scenes.test)) + 2 * test,
    )


def _some(patches: Patches, batch: int) -> Patches:
    """Patches of as many scenes as a batch needs: reading all would take longer than measuring."""
    each = len(patches) // len(patches.scene_set)
    scenes = [patches.scene_set[i] for i in range(math.ceil(batch / each))]
    return replace(patches, scene_set=replace(patches.scene_set, scenes=scenes))


def _state(config: Config, scenes: Data, device: torch.device) -> State:
    return start(config, scenes.train.n_bands, scenes.train.n_msi, device)


def _iteration(config: Config, scenes: Data, patches: Patches | DevicePatches, device: torch.device) -> float:
    """Seconds of an iteration after a warm-up: about a second of them, ten looks at most."""
    state, count = _state(config, scenes, device), read_every(device)
    steps = Step(config, 10**6, patches)
    steps(state, count)
    began, done = clock(), 0
    while done == 0 or (clock() - began < 1 and done < 10 * count):
        steps(state, count)
        done += count
    return (clock() - began) / done


def _seconds(action: Callable[[], object]) -> float:
    began = clock()
    action()
    return clock() - began
