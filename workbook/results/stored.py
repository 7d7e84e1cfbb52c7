"""From finished runs to the results table, its figures, and the files a paper needs.

Runs that share everything but variant and seed form a *protocol*. A run is exported as one small JSON file,
`results/<protocol>/<variant>-seed<k>.json`; `table` puts them beside the study's printed numbers, with a row for every
variant there is, run or not. How a difference to the
baseline is judged is in `workbook.results.compare`.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ka.errors import KAError
from ka.evaluation import Evaluation
from ka.files import write_json
from ka.metrics import METRICS
from ka.models.counts import flops, parameter_count
from ka.models.variants import VARIANTS, variant
from workbook.paths import results_folder
from workbook.results.compare import Difference, Values, difference, seed_noise
from workbook.results.costs import Costs
from workbook.results.study import Reported, printed_for
from workbook.training.config import Config
from workbook.training.run import Run

SHOWN = ("psnr", "sam", "ergas")
UNTRAINED = ("bicubic", "linear injection")
WEIGHTS = ("best", "last", "average")
# Where a run lies, how often it is saved and what it runs on do not belong to a protocol; these are not even exported:
NOT_KEPT = ("run_dir", "data_root", "checkpoint_every")
FREE = (*NOT_KEPT, "variant", "seed", "device", "deterministic")
NOTED = ("step", "loss", "psnr", "psnr_average")
KEPT = ("time", "python", "packages", "commit", "system", "cpu", "cores", "threads", "memory_gib", "gpu")


# Runs as files


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        config: what was asked for, without paths.
        environment: versions, commit and hardware of its last start.
        parameters: live, reported and deployed, of the run's own model.
        best: step and kind of the weights that validation chose.
        iterations, seconds: length of the run.
        methods: method → its metrics, scene by scene; what is undefined or infinite is NaN.
        history: what was noted at every validation (step, loss, psnr, psnr_average); empty in older files.
    """

    config: Config
    environment: Mapping[str, Any]
    parameters: Mapping[str, int]
    best: Mapping[str, Any]
    iterations: int
    seconds: float
    methods: Mapping[str, Evaluation]
    history: Sequence[Mapping[str, float]] = ()

    @property
    def name(self) -> str:
        """Variant and seed, as in the file's name."""
        return f"{self.config.variant}-seed{self.config.seed}"

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be the same in all runs of one protocol."""
        return {key: value for key, value in self.config.to_dict().items() if key not in FREE}


def export(run: Run, folder: str | Path, protocol: str) -> Path:
    """Write a finished run as `folder/<protocol>/<variant>-seed<k>.json`, whole or not at all.

    Raises:
        KAError: the run is not finished or damaged; a protocol name that is no plain name; the run does not fit the
            protocol's other results. Nothing is written then.
    """
    record = _record(run)
    result = _parse(record, run.path)
    place = _folder(folder, protocol)
    path = place / f"{result.name}.json"
    check([*(_load(other) for other in _files(place) if other != path), result])
    write_json(path, record)
    return path


def read(folder: str | Path, protocol: str) -> list[Result]:
    """All results of a protocol, in the order of variants and seeds; empty if the folder holds no protocol at all.

    Raises:
        KAError: no such protocol among those there are; a damaged or foreign file (named); results that do not
            belong together (see `check`).
    """
    known = protocols(folder)
    if known and protocol not in known:
        raise KAError(f"{folder} has no results of a protocol {protocol!r}; choose one of {', '.join(known)}")
    return check([_load(path) for path in _files(_folder(folder, protocol))])


def from_runs(folder: str | Path) -> list[Result]:
    """All finished runs among the run folders in `folder`, in the order of variants and seeds.

    Raises:
        KAError: no such folder; a damaged run; runs that do not belong together (see `check`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise KAError(f"{folder} is not a folder; give the one that holds the run folders")
    runs = [Run(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    return check([_parse(_record(run), run.path) for run in runs if run.finished])


def protocols(folder: str | Path) -> list[str]:
    """The protocols that have results."""
    return sorted({path.parent.name for path in Path(folder).glob("*/*.json")})


def merge(results: Sequence[Result], more: Sequence[Result]) -> list[Result]:
    """Both together; a run that was exported before, and so is in both with equal numbers, counts once.

    Raises:
        KAError: they do not belong together (see `check`).
    """
    known = {result.name: result.methods for result in results}
    return check([*results, *(result for result in more if known.get(result.name) != result.methods)])


def check(results: Iterable[Result]) -> list[Result]:
    """Results of one protocol, sorted by variant and seed.

    Raises:
        KAError: configurations that differ in more than variant and seed (the fields are named); a variant with the
            same seed twice; other test scenes, or other values of the methods without training.
    """
    order = list(VARIANTS)
    found = sorted(results, key=lambda result: (order.index(result.config.variant), result.config.seed))
    for before, result in pairwise(found):
        if before.name == result.name:
            raise KAError(f"{result.name} is there twice, with one seed; keep one of the two")
    for result in found[1:]:
        first, other = found[0].protocol, result.protocol
        if changed := [f"{key}: {first[key]!r} and {other[key]!r}" for key in first if first[key] != other[key]]:
            raise KAError(
                f"{found[0].name} and {result.name} are of different protocols ({'; '.join(changed)}); "
                "only variant and seed may differ: keep each protocol in a folder of its own"
            )
        for method in UNTRAINED:
            if not _same(found[0].methods[method], result.methods[method]):
                raise KAError(
                    f"{found[0].name} and {result.name} were measured on different data ({method} has other scenes or "
                    "values); measure both on the same"
                )
    return found


def _same(one: Evaluation, other: Evaluation) -> bool:
    if set(one.scenes) != set(other.scenes):
        return False
    a, b = (
        np.array([[found.scenes[scene][metric] for metric in SHOWN] for scene in one.scenes]) for found in (one, other)
    )
    return bool(np.allclose(a, b, rtol=1e-3, atol=0, equal_nan=True))


def _folder(folder: str | Path, protocol: str) -> Path:
    if not isinstance(protocol, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", protocol):
        raise KAError(f"protocol={protocol!r} is no plain name; use letters, digits, - and _ (up to 64)")
    return Path(folder) / protocol


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def _record(run: Run) -> dict[str, Any]:
    """What is kept of a finished run, as plain values."""
    if not run.finished:
        raise KAError(f"{run.path} is not a finished run; train it to its end first (the same command goes on)")
    config, metrics = run.config(), run.metrics()
    if config is None:
        raise KAError(f"{run.path} lacks config.json; restore it, or train again with restart=True")
    try:
        starts = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))["starts"]
        return {
            "format": 1,
            "config": {key: value for key, value in config.to_dict().items() if key not in NOT_KEPT},
            "environment": {key: starts[-1].get(key) for key in KEPT} | {"starts": len(starts)},
            **{key: metrics[key] for key in ("split", "best", "iterations", "seconds", "parameters")},
            "methods": {name: found["scenes"] for name, found in metrics["methods"].items()},
            "history": [{key: note[key] for key in NOTED if key in note} for note in run.history()],
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise KAError(
            f"{run.path}: environment.json or metrics.json is damaged or missing ({error!r}); restore it, or train "
            "again with restart=True"
        ) from error


def _load(path: Path) -> Result:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KAError(f"{path} is damaged ({error}); export the run again") from error
    result = _parse(value, path)
    if path.stem != result.name:
        raise KAError(f"{path} holds {result.name}; name it {result.name}.json, or remove it")
    return result


def _parse(value: Any, where: Path) -> Result:
    """A result of plain values, every one of them checked."""
    try:
        if value["format"] != 1 or value["split"] != "test":
            raise ValueError(f"format {value['format']!r} of split {value['split']!r}; 1 of 'test' is expected")
        embedded = value["config"].get("dataset", "indian_pines") == "indian_pines"
        config = Config(**value["config"], data_root=None if embedded else "not kept")
        methods = {name: _evaluation(value["methods"][name]) for name in (*UNTRAINED, *WEIGHTS)}
        if len({frozenset(found.scenes) for found in methods.values()}) != 1:
            raise ValueError("methods were measured on different scenes")
        return Result(
            config=config,
            environment=dict(value["environment"]),
            parameters={key: int(value["parameters"][key]) for key in ("live", "reported", "deployed")},
            best=dict(value["best"]),
            iterations=int(value["iterations"]),
            seconds=float(value["seconds"]),
            methods=methods,
            history=[{key: _number(note[key]) for key in note} for note in value.get("history", [])],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise KAError(f"{where} is damaged or no result of this workbook ({what}); export the run again") from error


def _evaluation(scenes: Any) -> Evaluation:
    found = {str(scene): {name: _number(value) for name, value in values.items()} for scene, values in scenes.items()}
    if not found or any(not set(SHOWN) <= set(values) for values in found.values()):
        raise ValueError(f"scenes with {', '.join(SHOWN)} are expected")
    return Evaluation(found)


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


# The table


@dataclass(frozen=True)
class Stat:
    """Mean over seeds of the mean over scenes, and its sample standard deviation over seeds (None for one seed)."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: a variant, or a method without training.
        seeds: seeds of its runs.
        stats: metric → its value; empty if it was not run.
        differences: metric → difference to the baseline; empty for the baseline and the methods without training.
        bold: metrics in which the row is best of all and surely better than the baseline.
        reported, deployed: parameters for CAVE at dim 48: the study's count (live + dead), and folded for inference.
        here: live parameters of the protocol's own model.
        gflops: 10⁹ FLOPs for 512×512×31 at dim 48, deployed.
        ms: measured time.
        ratio: of it to that of `psrt_noshuffle`: median, lower and upper quartile of the rounds.
        printed: the printed row that ran this variant.
    """

    name: str
    seeds: tuple[int, ...] = ()
    stats: Mapping[str, Stat] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    bold: frozenset[str] = frozenset()
    reported: int | None = None
    deployed: int | None = None
    here: int | None = None
    gflops: float | None = None
    ms: float | None = None
    ratio: tuple[float, float, float] | None = None
    printed: Reported | None = None


@dataclass(frozen=True)
class Table:
    """The results table of a protocol.

    Attributes:
        rows: the methods without training, then every variant in the order of `ka.VARIANTS`.
        baseline: the variant that differences are taken to.
        notes: how to read it, one sentence or two each.
    """

    rows: Sequence[Row]
    baseline: str
    notes: Sequence[str]


def table(
    results: Sequence[Result], baseline: str = "psrt_noshuffle", which: str = "best", costs: Costs | None = None
) -> Table:
    """The results of one protocol as a table; what was not run has a row without numbers.

    Args:
        results: from `read`, `from_runs` or `merge`.
        baseline: the variant that differences are taken to.
        which: `best` (chosen on validation scenes), `last` or `average` weights.
        costs: a measurement (`Costs.read`); without it FLOPs are counted here (half a minute) and times are missing.

    Raises:
        KAError: unknown baseline or weights; results that do not belong together.
    """
    variant(baseline)
    if which not in WEIGHTS:
        raise KAError(f"which={which!r} is unknown; choose one of {', '.join(WEIGHTS)}")
    results = check(results)
    runs = by_variant(results)
    scenes = list(results[0].methods["bicubic"].scenes) if results else []
    values = measured(results, which)
    seeds = {name: tuple(result.config.seed for result in found) for name, found in runs.items()}
    compared = [name for name in VARIANTS if name != baseline and runs[name] and runs[baseline]]
    rows = [
        Row(name, stats={metric: _stat(found) for metric, found in _values([method], scenes).items()})
        for name in UNTRAINED
        for method in ([results[0].methods[name]] if results else [Evaluation({})])
    ]
    for name, found in runs.items():
        count = _count(name)
        cost = costs.variants.get(name) if costs is not None and (costs.dim, costs.n_bands) == (48, 31) else None
        rows.append(
            Row(
                name,
                seeds[name],
                {metric: _stat(numbers) for metric, numbers in values[name].items()},
                _differences(name, baseline, values, seeds, 0.05 / len(compared)) if name in compared else {},
                reported=count.reported,
                deployed=count.deployed,
                here=found[0].parameters["live"] if found else None,
                gflops=flops(name) / 1e9 if cost is None else cost.gflops,
                ms=None if cost is None else cost.ms,
                ratio=None if cost is None else (cost.ratio, cost.low, cost.high),
                printed=printed_for(name),
            )
        )
    rows = _bold(rows)
    return Table(rows, baseline, _notes(rows, results, scenes, baseline, which, costs, len(compared)))


def by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of every variant there is, in the order of seeds; an empty list where there is none."""
    return {name: [result for result in results if result.config.variant == name] for name in VARIANTS}


def measured(results: Sequence[Result], which: str = "best") -> dict[str, dict[str, Values]]:
    """Variant → metric → its values, seeds × scenes (in one order of scenes); empty where there is no run.

    Args:
        results: of one protocol, from `read`, `from_runs` or `merge`.
        which: `best` (chosen on validation scenes), `last` or `average` weights.
    """
    scenes = list(results[0].methods["bicubic"].scenes) if results else []
    return {
        name: _values([result.methods[which] for result in found], scenes)
        for name, found in by_variant(results).items()
    }


_count = cache(parameter_count)


def _differences(
    name: str,
    baseline: str,
    values: Mapping[str, Mapping[str, Values]],
    seeds: Mapping[str, tuple[int, ...]],
    alpha: float,
) -> dict[str, Difference]:
    """Every metric's difference of a variant to the baseline."""
    found = {}
    for metric in SHOWN:
        of_all = {model: each[metric] for model, each in values.items() if each}
        noise = seed_noise({name: 1, baseline: -1}, of_all, seeds)
        found[metric] = difference(of_all[name], of_all[baseline], noise, alpha)
    return found


def _values(found: Sequence[Evaluation], scenes: Sequence[str]) -> dict[str, Values]:
    if not found or not scenes:
        return {}
    return {
        metric: np.array([[evaluation.scenes[scene][metric] for scene in scenes] for evaluation in found])
        for metric in SHOWN
    }


def _stat(values: Values) -> Stat:
    means = values.mean(1)
    return Stat(float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else None)


def _bold(rows: Sequence[Row]) -> list[Row]:
    """Mark the best value of each metric, if the interval of its difference excludes zero."""
    bold: dict[str, set[str]] = {row.name: set() for row in rows}
    for metric in SHOWN:
        sign = 1 if METRICS[metric].better == "higher" else -1
        measured = [row for row in rows if row.stats and math.isfinite(row.stats[metric].mean)]
        for best in sorted(measured, key=lambda row: -sign * row.stats[metric].mean)[:1]:
            found = best.differences.get(metric)
            if found is not None and found.excludes_zero and sign * found.value > 0:
                bold[best.name].add(metric)
    return [replace(row, bold=frozenset(bold[row.name])) for row in rows]


def _notes(
    rows: Sequence[Row],
    results: Sequence[Result],
    scenes: Sequence[str],
    baseline: str,
    which: str,
    costs: Costs | None,
    m: int,
) -> list[str]:
    """What a reader must know of the numbers, as far as it applies."""
    if not results:
        quality = "No run of this protocol yet: nothing was measured."
    else:
        whose = {"best": "those that validation chose", "last": "the last", "average": "the averaged"}[which]
        if which == "best" and not results[0].config.hold_out:
            whose = "the last (nothing was held out to choose by)"
        plural = "s, whole, mean over scenes" if len(scenes) > 1 else ", whole"
        quality = (
            f"{len(scenes)} test scene{plural}; mean over seeds, ± sample standard deviation over seeds where there "
            f"are several. Weights: {whose}."
        )
    notes = [quality]
    if m:
        notes.append(
            f"Δ is a variant minus {baseline}; in brackets its interval, 95 % for all {m} variants at once "
            f"(Bonferroni: {1 - 0.05 / m:.2%} each), paired by scene, and by seed where both had the same. The three "
            "metrics are not corrected for one another."
        )
        covers = {found.covers for row in rows for found in row.differences.values()}
        if "scenes" in covers:
            notes.append(
                "Intervals that cover scenes only: no model has a second seed, so they say how other test scenes might "
                "move a difference, not how another seed might (the study's code moved by 0.2 to 0.3 dB)."
            )
        if "scenes and seeds" in covers or "seeds" in covers:
            notes.append(
                "The noise of seeds is pooled over all models with several, on the assumption that it is the same for "
                "all; so it is in the intervals of models with one seed too."
            )
        if "seeds" in covers:
            notes.append("Intervals that cover seeds only: there is one test scene, and others may rank differently.")
        if "" in covers:
            notes.append(
                "No interval (–): too few test scenes (five or so are the least), and too few runs with other seeds "
                "(three of one model, or two of two)."
            )
    notes.append(f"Bold: best of its column, and better than {baseline} by an interval without zero. Else nothing is.")
    notes.append(
        "Parameters are for 31 bands at dim 48: “reported” as the study counts (with parameters that no output "
        "depends on), “deployed” after folding; “here” are the live ones of this protocol's own model"
        + (f" (dim {results[0].config.dim})." if results else ".")
    )
    notes.append(
        "GFLOPs: 10⁹ operations (2 per multiply-add) for a 512×512×31 image at dim 48, deployed. Time: "
        + (
            "not measured."
            if costs is None
            else f"{costs.label}, deployed; median, and in brackets the quartiles of the ratio over {costs.repeats} "
            "rounds. Rows with the same GFLOPs and deployed parameters fold to the same computation: what their times "
            "differ by is the error of the clock."
        )
    )
    notes.append(
        "“Study” is what the authors printed for 2,000 epochs on CAVE at dim 48 with one seed, beside the variant "
        "that their code ran; shorter runs of ours cannot be compared with it in level."
    )
    return notes


def main(arguments: Sequence[str]) -> int:
    """`python -m workbook.results.stored PROTOCOL RUN…`: export run folders into results/PROTOCOL; exit code 2 for an
    error."""
    if len(arguments) < 2:
        print("usage: python -m workbook.results.stored PROTOCOL RUN_FOLDER…", file=sys.stderr)
        return 2
    try:
        for path in arguments[1:]:
            print(export(Run(Path(path)), results_folder(), arguments[0]))
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
