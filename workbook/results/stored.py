"""Finished runs as small JSON files: `results/<protocol>/<variant>-seed<k>.json`.

Runs that share everything but variant and seed form a *protocol*.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from ka.errors import KAError, unknown
from ka.evaluation import Evaluation
from ka.files import user_path, write_json
from ka.models.checkpoints import save_weights
from ka.models.variants import VARIANTS
from workbook.paths import CHECKPOINTS, results_folder
from workbook.training.config import Config
from workbook.training.run import Run, finished_runs

SHOWN = ("psnr", "sam", "ergas")
# 400 iterations are too few for PSRT's body: it has 2,000
BORROWED = {"adaptive": ("laptop-2000", "conv3x3")}
# Protocols that differ in the scenes they train and test on, so that every scene of a data set is tested once:
CROSSWISE = {"laptop-crosswise": ("laptop", "laptop-second", "laptop-third")}
UNTRAINED = ("bicubic", "linear injection", "local injection", "attentive injection")
Means = dict[str, dict[str, dict[str, float]]]  # of metrics over scenes, by what was measured and how
WEIGHTS = ("best", "last", "average")
MEASURED = ("bicubic", "linear injection", "best")  # in every run; older ones lack local injection, newer ones `last`
# Where a run lies, how often it is saved and what it runs on do not belong to a protocol; these are not even exported:
NOT_KEPT = ("run_dir", "data_root", "checkpoint_every")
FREE = (*NOT_KEPT, "variant", "model", "seed", "device", "deterministic")
SCENES = ("train_scenes", "val_scenes", "test_scenes")
YOURS = " (yours)"
NOTED = ("step", "loss", "psnr", "psnr_average")
KEPT = ("time", "python", "packages", "commit", "system", "cpu", "cores", "threads", "memory_gib", "gpu")


@dataclass(frozen=True)
class Parameters:
    """Of the run's own model."""

    live: int
    reported: int  # with the study's dead ones
    deployed: int  # folded


@dataclass(frozen=True)
class Record:
    """One file: a finished run as plain values, None for what is undefined or infinite."""

    format: Literal[1]
    config: dict[str, Any]  # without paths
    environment: dict[str, Any]  # versions, commit and hardware of the last start
    split: Literal["test"]
    best: dict[str, Any]  # step and kind of the weights that validation chose
    iterations: int
    seconds: float
    parameters: Parameters
    methods: dict[str, dict[str, dict[str, float | None]]]  # every metric by method and scene
    history: tuple[dict[str, float | None], ...] = ()  # noted at every validation; empty in older files

    @classmethod
    def of(cls, run: Run) -> "Record":
        """What is kept of a finished run; one that is not finished, or has a damaged file, is a `KAError`."""
        if not run.finished:
            raise KAError(f"{run.path} is not a finished run; train it to its end first (the same command goes on)")
        config, metrics = run.config(), run.metrics()
        if config is None:
            raise KAError(f"{run.path} lacks config.json; restore it, or train again with restart=True")
        try:
            starts = msgspec.json.decode((run.path / "environment.json").read_bytes())["starts"]
            values = {
                "format": 1,
                "config": {key: value for key, value in config.to_dict().items() if key not in NOT_KEPT}
                | {"init": config.init and Path(config.init).name, "srf": config.srf and Path(config.srf).name},
                "environment": {key: starts[-1].get(key) for key in KEPT} | {"starts": len(starts)},
                **{key: metrics[key] for key in ("split", "best", "iterations", "seconds", "parameters")},
                "methods": {name: evaluation["scenes"] for name, evaluation in metrics["methods"].items()},
                "history": [{key: note[key] for key in NOTED if key in note} for note in run.history()],
            }
            return msgspec.convert(values, cls)
        except (msgspec.MsgspecError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            what = f"{run.path}: environment.json or metrics.json is damaged or missing ({error!r})"
            raise KAError(f"{what}; restore it, or train again with restart=True") from error


@dataclass(frozen=True)
class Result:
    """One finished run, to be compared: its record with the configuration checked, and evaluations by method."""

    record: Record
    config: Config
    methods: Mapping[str, Evaluation]
    borrowed: bool = False  # of another protocol, to be compared with (see `beside`)
    where: Path | None = field(default=None, compare=False)  # the file or run folder that it is read from
    yours: bool = False  # a run of the user's, shown beside the kept ones (see `with_yours`)

    @classmethod
    def of(cls, record: Record, where: Path) -> "Result":
        """Check what the record's types do not say: an impossible configuration, a missing method or metric, and scenes
        that differ are a `KAError`.
        """
        try:
            embedded = record.config.get("dataset", "indian_pines") == "indian_pines"
            config = Config(**record.config, data_root=None if embedded else "not kept")
            measured = [name for name in (*UNTRAINED, *WEIGHTS) if name in record.methods]
            methods = {name: _evaluation(record.methods[name]) for name in dict.fromkeys((*MEASURED, *measured))}
            if len({frozenset(evaluation.scenes) for evaluation in methods.values()}) != 1:
                raise ValueError("methods were measured on different scenes")
        except (LookupError, TypeError, ValueError) as error:
            what = f"lacks {error}" if isinstance(error, LookupError) else str(error)
            raise KAError(f"{where} is damaged or no result of this workbook ({what}); export the run again") from error
        return cls(record, config, methods, where=where)

    @property
    def row(self) -> str:
        """Its row in tables and figures."""
        return self.config.variant + YOURS * self.yours

    @property
    def name(self) -> str:
        return f"{self.config.name}{YOURS * self.yours}-seed{self.config.seed}"

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be the same in all runs of one protocol."""
        kept = {key: value for key, value in self.config.to_dict().items() if key not in FREE}
        return kept | {"init": self.config.init and "weights"}  # each model has its own

    @property
    def history(self) -> list[dict[str, float]]:
        """What was noted at every validation: step, loss, psnr, psnr_average; NaN where undefined."""
        return [_numbers(note) for note in self.record.history]


def _evaluation(scenes: Mapping[str, Mapping[str, float | None]]) -> Evaluation:
    if not scenes or any(not set(SHOWN) <= set(values) for values in scenes.values()):
        raise ValueError(f"scenes with {', '.join(SHOWN)} are expected")
    return Evaluation({scene: _numbers(values) for scene, values in scenes.items()})


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def export(run: Run, folder: str | Path, protocol: str) -> Path:
    """Write a finished run as `folder/<protocol>/<variant>-seed<k>.json`, whole or not at all.

    A run that is damaged, not finished, or does not fit the protocol's other results, and a protocol name that is no
    plain name, are a `KAError`; nothing is written then.
    """
    result = Result.of(Record.of(run), run.path)
    place = _folder(folder, protocol)
    path = place / f"{result.name}.json"
    check([*(_load(other) for other in _files(place) if other != path), result])
    write_json(path, asdict(result.record))
    return path


def read(folder: str | Path, protocol: str) -> list[Result]:
    """All results of a protocol, in the order of variants and seeds; empty if the folder holds no protocol at all.

    No such folder, no such protocol among those there are, a damaged or foreign file (it is named), and results that do
    not belong together (see `check`) are a `KAError`.
    """
    place = _folder(folder, protocol)
    if not Path(folder).is_dir():
        raise KAError(f"{folder} is not a folder; give the one that holds the folders of protocols")
    known = protocols(folder)
    if known and protocol not in known:
        raise KAError(f"{folder} has no results of a protocol {protocol!r}; choose one of {', '.join(known)}")
    return check([_load(path) for path in _files(place)])


def crosswise(folder: str | Path, name: str) -> list[Result]:
    """The results of all protocols of `CROSSWISE` under a name; empty where one of them has none.

    Another name, and what `by_test` refuses, are a `KAError`.
    """
    if name not in CROSSWISE:
        raise unknown("crosswise protocol", name, CROSSWISE)
    there = protocols(folder)
    parts = [read(folder, part) if part in there else [] for part in CROSSWISE[name]]
    results = [result for part in parts for result in part] if all(parts) else []
    by_test(results)
    return results


def by_test(results: Sequence[Result]) -> list[list[Result]]:
    """Results by the scenes that they were tested on: one list, or of `crosswise` results one for each part.

    A `KAError`: what `check` refuses within a part; parts that differ in more than their scenes; a scene that two of
    them test, or a seed that two of them have (its runs start alike, and would count as if they were independent).
    """
    parts: dict[frozenset[str], list[Result]] = {}
    for result in results:
        parts.setdefault(frozenset(result.methods["bicubic"].scenes), []).append(result)
    for (scenes, first), (others, second) in combinations(parts.items(), 2):
        a, b, both = first[0].protocol, second[0].protocol, f"{first[0].name} and {second[0].name}"
        if changed := [key for key in a if key not in SCENES and a[key] != b[key]]:
            raise KAError(f"{both} differ in {', '.join(changed)}; of two parts, only {', '.join(SCENES)} may differ")
        if twice := scenes & others:
            raise KAError(f"{both} are of two parts and both test {min(twice)}; give each scene to one part")
        if seeds := {run.config.seed for run in first} & {run.config.seed for run in second}:
            raise KAError(f"two parts both have runs of seed {min(seeds)} ({both}); train each part with other seeds")
    return [check(part) for part in parts.values()]


def beside(folder: str | Path, protocol: str) -> list[Result]:
    """`read`, and what a protocol's rows are compared with that was run under another, with a recipe of its own."""
    runs = read(folder, protocol)
    other, variant = BORROWED.get(protocol, ("", ""))
    there = read(folder, other) if other in protocols(folder) else []
    return check([*runs, *(replace(run, borrowed=True) for run in there if run.config.variant == variant)])


def from_runs(folder: str | Path) -> list[Result]:
    """All finished runs among the run folders in `folder`, in the order of variants and seeds; no such folder, a
    damaged run, and runs that do not belong together (see `check`) are a `KAError`.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise KAError(f"{folder} is not a folder; give the one that holds the run folders")
    runs = [Run(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    return check([Result.of(Record.of(run), run.path) for run in runs if run.finished])


def with_yours(results: Sequence[Result], folder: str | Path) -> tuple[list[Result], list[str]]:
    """Results of a protocol, and beside them, as rows of their own, the finished runs in a folder that belong to them
    (see `check`); a line on each run that does not, or is damaged. One that is among the results counts once.
    """
    known, kept, lines = {result.name: result.methods for result in results}, list(results), list[str]()
    for path in finished_runs(folder).values():
        try:
            own = Result.of(Record.of(Run(path)), path)
            kept_as = known.get(own.name, {})
            if kept_as and all(
                _alike(kept_as[method], found) for method, found in own.methods.items() if method in kept_as
            ):
                lines.append(f"{path} is {own.name} of these results itself")
            else:
                kept = check([*kept, replace(own, yours=True)])
        except KAError as error:
            lines.append(f"{path} is left out: {error}")
    return kept, lines


def protocols(folder: str | Path) -> list[str]:
    """The protocols that have results."""
    return sorted({path.parent.name for path in Path(folder).glob("*/*.json")})


def check(results: Iterable[Result]) -> list[Result]:
    """Results of one protocol, sorted by variant and seed.

    A `KAError`: configurations that differ in more than variant and seed (the fields are named); a variant with the
    same seed twice; other test scenes, or other values of the methods without training.
    """
    results = list(results)
    order = in_order(result.config.variant for result in results)
    ordered = sorted(results, key=lambda run: (run.yours, order.index(run.config.variant), run.config.seed))
    for before, result in pairwise(ordered):
        if before.name == result.name:
            raise KAError(f"{result.name} is there twice, {before.where} and {result.where}; keep one of the two")
    own = [result for result in ordered if not result.borrowed]
    for result in own[1:]:
        first, other, both = own[0].protocol, result.protocol, f"{own[0].name} and {result.name}"
        if changed := [f"{key}: {first[key]!r} and {other[key]!r}" for key in first if first[key] != other[key]]:
            cure = "only variant and seed may differ: keep each protocol in a folder of its own"
            raise KAError(f"{both} are of different protocols ({'; '.join(changed)}); {cure}")
    for method in UNTRAINED:
        measured = [result for result in ordered if method in result.methods]
        for result in measured[1:]:
            if not _alike(measured[0].methods[method], result.methods[method]):
                what = f"on different data ({method} has other scenes or values)"
                raise KAError(f"{measured[0].name} and {result.name} were measured {what}; measure both on the same")
    return ordered


def in_order(names: Iterable[str]) -> list[str]:
    """Every row of the table, then the own networks among `names`."""
    return [*VARIANTS, *sorted(set(names) - set(VARIANTS))]


def _alike(first: Evaluation, second: Evaluation) -> bool:
    """The same scenes and, up to the rounding of another machine (0.005 dB of 50 dB), the same values."""
    if set(first.scenes) != set(second.scenes):
        return False
    pairs = [(first.scenes[scene][metric], second.scenes[scene][metric]) for scene in first.scenes for metric in SHOWN]
    a, b = np.array(pairs).T
    return bool(np.allclose(a, b, rtol=1e-4, atol=0, equal_nan=True))


def _folder(folder: str | Path, protocol: str) -> Path:
    if not isinstance(protocol, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", protocol):
        raise KAError(f"protocol={protocol!r} is no plain name; use letters, digits, - and _ (up to 64)")
    return Path(folder) / protocol


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def _load(path: Path) -> Result:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except (msgspec.MsgspecError, OSError, ValueError) as error:
        raise KAError(f"{path} is damaged or no result of this workbook ({error}); export the run again") from error
    result = Result.of(record, path)
    if path.stem != result.name:
        raise KAError(f"{path} holds {result.name}; name it {result.name}.json, or remove it")
    return result


def ship(run: Run, folder: str | Path = CHECKPOINTS) -> Path:
    """Keep a finished run's best weights as `<variant>.safetensors` in a folder (see `keep_weights`).

    Beside such a file of another dataset it is `<variant>_<dataset>.safetensors`.
    """
    config = Record.of(run).config
    name, dataset = config["variant"].replace(":", "."), config["dataset"]
    path = Path(folder) / f"{name}.safetensors"
    if path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                other = (file.metadata() or {}).get("dataset") != dataset
        except (SafetensorError, OSError) as error:
            raise KAError(f"{path} is damaged ({error}); restore it, or remove it") from error
        path = path.with_name(f"{name}_{dataset}.safetensors") if other else path
    keep_weights(run, path)
    return path


def keep_weights(run: Run, path: Path) -> None:
    """Write a finished run's best weights in float16, half the size; the header says what they were trained on. A run
    that is not finished, and a file that cannot be written, are a `KAError`.
    """
    record = Record.of(run)
    psnr = _evaluation(record.methods["best"]).mean("psnr")
    known = {"psnr": round(psnr, 3)} if math.isfinite(psnr) else {}
    noted = {"dataset": record.config["dataset"], "ratio": record.config["ratio"], "step": record.best["step"]}
    model = run.model("best")
    unit = {} if model.unit is None else {"unit": model.unit}
    save_weights(path, model, half=True, **noted, **known, **unit)


def means(name: str) -> Means:
    """What `measure_runs` kept last as results/NAME.json."""
    return msgspec.json.decode((results_folder() / f"{name}.json").read_bytes(), type=Means)


def measure_runs(module: str, measure: Callable[[str, Sequence[str]], Means], arguments: Sequence[str]) -> int:
    """The command `python -m MODULE DATA RUN…`: measure finished runs, keep the means in results/, named after it.

    Exit code 2 for an error of the user's.
    """
    try:
        if len(arguments) < 2:
            raise KAError(f"give CAVE's folder and folders of finished runs: python -m {module} DATA RUN…")
        path = results_folder() / f"{module.rpartition('.')[2]}.json"
        write_json(path, measure(arguments[0], arguments[1:]))
        print(path)
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
