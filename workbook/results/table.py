"""The results table of a protocol: a row for every variant there is, run or not, beside the study's printed numbers.

How a difference to the baseline is judged is in `workbook.results.compare`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np

from ka.errors import KAError, unknown
from ka.evaluation import Evaluation, in_text
from ka.metrics import METRICS
from ka.models.counts import flops, parameter_count
from ka.models.study_names import dead_parameters
from ka.models.variants import PSRT_ROWS, VARIANTS, variant
from workbook.results.compare import Difference, Fit, Values, judge, pooled
from workbook.results.speed import Measurement, Spread
from workbook.results.stored import SHOWN, UNTRAINED, WEIGHTS, YOURS, Result, check, in_order
from workbook.results.study import BASELINE, Reported, printed_for


@dataclass(frozen=True)
class Stat:
    """Mean over seeds of the mean over scenes, and its sample standard deviation over seeds (None for one seed)."""

    mean: float
    std: float | None = None

    def __str__(self) -> str:
        return in_text(self.mean, self.std)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str  # a variant, or a method without training
    seeds: tuple[int, ...] = ()
    stats: Mapping[str, Stat] = field(default_factory=dict)  # by metric; empty if it was not run
    differences: Mapping[str, Difference] = field(default_factory=dict)  # to the baseline, by metric
    bold: frozenset[str] = frozenset()  # metrics in which it is best of all and surely better than the baseline
    reported: int | None = None  # parameters for CAVE at dim 48 as the study counts (live + dead)
    deployed: int | None = None  # the same, folded for inference
    here: int | None = None  # live parameters of the protocol's own model
    gflops: float | None = None  # 10⁹ FLOPs for 512×512×31 at dim 48, deployed
    ms: float | None = None
    seconds: float | None = None  # of training in this protocol, mean over seeds
    ratio: Spread | None = None  # of the time to that of `BASELINE`
    printed: Reported | None = None  # the printed row that ran this variant


@dataclass(frozen=True)
class Table:
    """A protocol's rows: methods without training, every variant in the order of `ka.VARIANTS`, own networks; notes."""

    rows: Sequence[Row]
    baseline: str
    notes: Sequence[str]
    scenes: Sequence[str] = ()  # those of the PSNR, in the order of `Difference.by_scene`


def table(
    results: Sequence[Result], baseline: str = BASELINE, which: str = "best", measurement: Measurement | None = None
) -> Table:
    """The results of one protocol as a table; what was not run has a row without numbers.

    Args:
        results: from `read`, `from_runs` or `with_yours`; if they do not belong together, a `KAError`.
        baseline: the variant (or own network) that differences are taken to; an unknown one is a `KAError`.
        which: `best` (chosen on validation scenes), `last` or `average` weights; any other is a `KAError`.
        measurement: what `make bench` measured for CAVE at dim 48 (`speed.read`); without it rows have no costs.
    """
    if baseline not in {result.config.variant for result in results}:
        variant(baseline)
    results = check(results)
    runs = by_variant(results)
    scenes = _scenes(results)
    values = measured(results, which)
    seeds = {name: tuple(result.config.seed for result in of_variant) for name, of_variant in runs.items()}
    compared = [name for name in runs if name != baseline and runs[name] and runs[baseline]]
    kept, own = ([name for name in compared if name.endswith(YOURS) == yours] for yours in (False, True))
    without = [result for result in results if not result.yours]
    to_baseline = _to_baseline(kept, baseline, without, which) | _to_baseline(own, baseline, results, which)
    rows = []
    for name in UNTRAINED:
        evaluations = [result.methods[name] for result in results if name in result.methods]
        rows.append(Row(name, stats=_stats(_values(evaluations[:1], scenes))))
    for name, of_variant in runs.items():
        here = of_variant[0].record.parameters.live if of_variant else None
        seconds = float(np.mean([result.record.seconds for result in of_variant])) if of_variant else None
        row = Row(name, seeds[name], _stats(values[name]), to_baseline.get(name, {}), here=here, seconds=seconds)
        row = replace(row, printed=printed_for(name))
        rows.append(_with_costs(row, measurement))
    rows = _bold(rows)
    notes = _notes(rows, results, which, baseline, len(kept or own), measurement)
    return Table(rows, baseline, notes, scenes.get("psnr", ()))


def _to_baseline(
    names: Sequence[str], baseline: str, results: Sequence[Result], which: str
) -> dict[str, dict[str, Difference]]:
    """Differences of rows to the baseline, judged beside each other: the user's own runs do not move the kept rows'."""
    return dict(zip(names, differences([{name: 1, baseline: -1} for name in names], [results], which), strict=True))


def ranked(table: Table) -> Table:
    """The rows that were run, those of the highest PSNR first."""
    measured = [row for row in table.rows if row.stats]
    return replace(table, rows=sorted(measured, key=lambda row: -row.stats["psnr"].mean))


def _with_costs(row: Row, measurement: Measurement | None) -> Row:
    """Parameters, FLOPs and time as measured for CAVE at dim 48; nothing of another width or another image.

    Rows whose kernels adapt are not among those that are timed: parameters and FLOPs are counted here.
    """
    if measurement is None or (measurement.setting.dim, measurement.setting.n_bands) != (48, 31):
        return row
    if (speed := measurement.variants.get(row.name)) is None:
        if row.name not in VARIANTS or row.name in PSRT_ROWS or not row.stats:
            return row
        count = parameter_count(row.name)
        return replace(row, reported=count.reported, deployed=count.deployed, gflops=flops(row.name) / 1e9)
    reported, ms, ratio = speed.live + dead_parameters(row.name), speed.inference.ms, speed.to_baseline
    return replace(row, reported=reported, deployed=speed.deployed, gflops=speed.gflops, ms=ms, ratio=ratio)


def by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of every variant there is, and of own networks, by seed; an empty list where there is none. The own
    runs of the user are rows of their own, at the end.
    """
    kept = in_order(result.config.variant for result in results if not result.yours)
    rows = dict.fromkeys([*kept, *(result.row for result in results if result.yours)])
    return {name: [result for result in results if result.row == name] for name in rows}


def _scenes(results: Sequence[Result]) -> dict[str, list[str]]:
    """Metric → the scenes that its means are over: where it is defined, as bicubic tells (not in a black one)."""
    if not results:
        return {}
    bicubic = results[0].methods["bicubic"]
    defined = {metric: ~np.isnan(bicubic.values(metric)) for metric in SHOWN}
    return {metric: [*compress(bicubic.scenes, there)] or [*bicubic.scenes] for metric, there in defined.items()}


def measured(results: Sequence[Result], which: str = "best") -> dict[str, dict[str, Values]]:
    """Variant → metric → its values, seeds × scenes (in one order of scenes, without those where it is undefined for
    all); empty where there is no run. `results` and `which` are as in `table`.
    """
    if which not in WEIGHTS:
        raise unknown("which =", which, WEIGHTS)
    if lacking := [result.name for result in results if which not in result.methods]:
        raise KAError(f"{', '.join(lacking[:3])}: {which} weights were not measured; ask for which='best'")
    scenes, runs = _scenes(results), by_variant(results)
    return {name: _values([run.methods[which] for run in runs[name]], scenes) for name in runs}


def differences(
    contrasts: Sequence[Mapping[str, float]],
    parts: Sequence[Sequence[Result]],
    which: str,
    own: bool = False,
    **margins: float,
) -> list[dict[str, Difference]]:
    """Every metric's Σ weight · (mean of a variant), judged for all contrasts at once (`workbook.results.compare`).

    Args:
        contrasts: variant → weight, adding up to zero, of each contrast.
        parts: results of one protocol; or of several that were tested on other scenes each, which are pooled.
        which: as in `table`.
        own: as in `Fit.contrast`.
        margins: metric → the difference that still counts as equal, where one is asked for.
    """
    values = [{name: metrics for name, metrics in measured(part, which).items() if metrics} for part in parts]
    seeds = [{name: [run.config.seed for run in runs] for name, runs in by_variant(part).items()} for part in parts]
    changes: list[dict[str, Difference]] = [{} for _ in contrasts]
    for metric in SHOWN:
        fits = [
            Fit.of({name: metrics[metric] for name, metrics in of_part.items()}, seeds_of_part)
            for of_part, seeds_of_part in zip(values, seeds, strict=True)
        ]
        estimates = [pooled([fit.contrast(weights, own) for fit in fits]) for weights in contrasts]
        for change, difference in zip(changes, judge(estimates, margin=margins.get(metric)), strict=True):
            change[metric] = difference
    return changes


def _values(evaluations: Sequence[Evaluation], scenes: Mapping[str, Sequence[str]]) -> dict[str, Values]:
    if not evaluations:
        return {}
    return {
        metric: np.array([[evaluation.scenes[scene][metric] for scene in names] for evaluation in evaluations])
        for metric, names in scenes.items()
    }


def _stats(values: Mapping[str, Values]) -> dict[str, Stat]:
    means = {metric: numbers.mean(1) for metric, numbers in values.items()}
    stds = {metric: float(mean.std(ddof=1)) if len(mean) > 1 else None for metric, mean in means.items()}
    return {metric: Stat(float(mean.mean()), stds[metric]) for metric, mean in means.items()}


def _bold(rows: Sequence[Row]) -> list[Row]:
    """Mark the best value of each metric, if its difference is decided."""
    bold: dict[str, set[str]] = {row.name: set() for row in rows}
    for metric in SHOWN:
        sign = 1 if METRICS[metric].better == "higher" else -1
        measured = [row for row in rows if row.stats and math.isfinite(row.stats[metric].mean)]
        for best in sorted(measured, key=lambda row: -sign * row.stats[metric].mean)[:1]:
            difference = best.differences.get(metric)
            if difference is not None and difference.decided and sign * difference.value > 0:
                bold[best.name].add(metric)
    return [replace(row, bold=frozenset(bold[row.name])) for row in rows]


def _notes(
    rows: Sequence[Row], results: Sequence[Result], which: str, baseline: str, m: int, measurement: Measurement | None
) -> list[str]:
    """What a reader must know of the numbers, as far as it applies (`notes.json`); `m` variants are compared."""
    text: dict[str, str] = json.loads(Path(__file__).with_name("notes.json").read_text(encoding="utf-8"))
    notes = [text["none"]]
    if results:
        whose = {"best": "those that validation chose", "last": "the last", "average": "the averaged"}[which]
        if which == "best" and not results[0].config.hold_out:
            whose = "the last (nothing was held out to choose by)"
        count = len(results[0].methods["bicubic"].scenes)
        whole = f"{count} test scene" + ("s, whole, mean over scenes" if count > 1 else ", whole")
        notes = [text["quality"].format(scenes=whole, whose=whose)]
        left_out = [f"{METRICS[m].label} {count - len(s)}" for m, s in _scenes(results).items() if len(s) < count]
        notes += [text["left out"].format(counts=", ".join(left_out))] * bool(left_out)
    if m:
        covers = {difference.covers for row in rows for difference in row.differences.values()}
        notes.append(text["difference"].format(baseline=baseline, m=m))
        notes += [text["yours"]] * any(row.name.endswith(YOURS) for row in rows)
        notes += [text["covers scenes"]] * ("scenes" in covers)
        notes += [text["pooled"]] * bool({"scenes and seeds", "seeds"} & covers)
        notes += [text["covers seeds"]] * ("seeds" in covers)
        notes += [text["covers nothing"]] * ("" in covers)
    here = f" (dim {results[0].config.dim})" if results else ""
    notes += [text["bold"].format(baseline=baseline), text["parameters"].format(here=here)]
    time = "not measured."
    if measurement is not None:
        setting, where = measurement.setting, {"device": measurement.device, "label": measurement.label}
        sizes = {"size": setting.inference_size, "bands": setting.n_bands, "dim": setting.dim}
        time = text["time"].format(**sizes, **where, rounds=setting.inference_rounds)
    return [*notes, text["flops"].format(time=time), text["study"]]
