"""How the runs of a sweep stand, as its folder says: a row each, what time is left, and what came of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import msgspec
from tabulate import tabulate

from ka.errors import KAError
from ka.evaluation import in_text
from ka.metrics import METRICS
from workbook.results import stored
from workbook.results.table import measured
from workbook.sweeps.folder import Sweep
from workbook.sweeps.plan import Planned


@dataclass(frozen=True)
class Standing:
    """How a run stands: done, running, queued, failed, stopped (begun, and nobody trains it) or missing."""

    name: str
    state: str
    total: int | None  # iterations; None where it is not known
    step: int = 0  # at the last validation
    seconds: float = 0.0  # trained until then
    loss: float | None = None  # mean since the validation before
    psnr: float | None = None  # of the last validation, in dB; None where nothing is held out
    note: str = ""  # why it failed; of a run that is done, what it reached

    @property
    def left(self) -> float | None:
        """Seconds still to train, at the pace so far; None where nobody trains it, or before the first validation."""
        if self.state != "running" or not self.step or self.total is None:
            return None
        return (self.total - self.step) * self.seconds / self.step

    def row(self) -> dict[str, str]:
        return {
            "run": self.name,
            "state": self.state,
            "iteration": f"{self.step}" + ("" if self.total is None else f" of {self.total}"),
            "loss": "" if self.loss is None else f"{self.loss:.5f}",
            "validation PSNR (dB)": "" if self.psnr is None else f"{self.psnr:.2f}",
            "time left": "" if self.left is None else f"{self.left / 60:.1f} min",
            "note": self.note,
        }


def standings(sweep: Sweep, queued: Collection[str] = ()) -> list[Standing]:
    """How every run stands; `queued` names those that a job has still to begin."""
    return [_standing(sweep, planned, planned.name in queued) for planned in sweep.plan.runs]


def _standing(sweep: Sweep, planned: Planned, queued: bool) -> Standing:
    run, failure, note = sweep.run(planned), sweep.failure(planned), ""
    try:
        if sweep.done(planned):
            return _kept(planned.name, sweep.result(planned))
        if sweep.claimed(planned):
            state = "running"
        elif queued:
            state = "queued"
        elif failure.exists():
            state, note = "failed", failure.read_text(encoding="utf-8").strip()
        else:
            state = "missing" if run.config() is None else "stopped"
        last = {"step": 0, "seconds": 0.0} | (run.history() or [{}])[-1]
        return Standing(planned.name, state, sweep.total, last["step"], last["seconds"], *_reached(last), note)
    except (KAError, OSError) as unreadable:  # a damaged folder is not the other runs' trouble
        return Standing(planned.name, "failed", sweep.total, note=" ".join(str(unreadable).split()))


def _reached(last: Mapping[str, float | None]) -> tuple[float | None, float | None]:
    """Loss and PSNR of a line of the history: of the better kind of weights."""
    psnrs = [psnr for key in ("psnr", "psnr_average") if (psnr := last.get(key)) is not None]
    return last.get("loss"), max(psnrs, default=None)


class _Kept(msgspec.Struct):
    """What is read of a result here."""

    iterations: int
    seconds: float
    methods: dict[str, dict[str, dict[str, float | None]]]
    history: list[dict[str, float | None]] = []


def _kept(name: str, path: Path) -> Standing:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
        psnrs = [values["psnr"] for values in kept.methods["best"].values()]
    except (msgspec.MsgspecError, LookupError) as error:
        raise KAError(f"{path} is damaged ({error}); remove it, and the same command writes it again") from error
    known = [psnr for psnr in psnrs if psnr is not None]
    quality = f"{fmean(known):.2f} dB" if known else "undefined"
    note = f"test PSNR {quality}, trained for {kept.seconds / 60:.1f} min"
    reached = _reached(kept.history[-1] if kept.history else {})
    return Standing(name, "done", kept.iterations, kept.iterations, kept.seconds, *reached, note)


def headline(sweep: Sweep) -> str:
    """The plan in a line."""
    shared, count, missing = sweep.plan.shared, len(sweep.plan.runs), len(sweep.missing)
    length = f"{shared['iterations']} iterations" if shared["epochs"] is None else f"{shared['epochs']} epochs"
    runs = f"{count} runs of {length} (dim {shared['dim']}, batch {shared['batch']})"
    return f"{sweep.plan.protocol}: {runs}, {count - missing} done, {missing} missing"


def describe(sweep: Sweep) -> str:
    """The plan, run by run, the time that is left, and what to bring home."""
    runs, folder = standings(sweep), sweep.folder
    kept = [path.stat().st_size for part in ("results", "weights") for path in (folder / part).rglob("*.*")]
    bring = f"bring home {folder}/results and {folder}/weights ({sum(kept) / 1e6:.1f} MB); runs/ is only for going on"
    table = tabulate([run.row() for run in runs], headers="keys", tablefmt="plain", disable_numparse=True)
    return "\n".join([headline(sweep), table, estimate(runs, sweep.jobs), *([bring] if kept else [])])


def estimate(runs: Sequence[Standing], jobs: int) -> str:
    """How long what is missing will take, at the pace of the runs that began; the others are taken for the mean."""
    missing = [run for run in runs if run.state != "done"]
    if not missing:
        return f"all {len(runs)} runs are done"
    again = "; the same command tries those that failed again" if any(run.state == "failed" for run in missing) else ""
    paces = {run.name: run.seconds / run.step for run in runs if run.step}
    totals = [run.total for run in runs if run.total is not None]
    if not paces or not totals:
        return f"how long it takes will be told after the first validation{again}"
    mean, jobs = fmean(paces.values()), min(jobs or 1, len(missing))
    seconds = sum(((run.total or totals[0]) - run.step) * paces.get(run.name, mean) for run in missing)
    return f"about {seconds / jobs / 3600:.1f} h for what is missing, {jobs} at a time{again}"


def summary(sweep: Sweep) -> list[Mapping[str, str]]:
    """What came of it, for a table: a row per variant, mean over test scenes and seeds (± sample std of seeds)."""
    folder, protocol = sweep.folder / "results", sweep.plan.protocol
    runs = stored.read(folder, protocol) if protocol in stored.protocols(folder) else []
    rows: list[Mapping[str, str]] = []
    for name, metrics in measured(runs).items() if runs else ():
        if metrics:
            row = {"variant": name, "seeds": str(len(metrics["psnr"]))}
            for metric, values in metrics.items():
                seeds = values.mean(1)
                row[METRICS[metric].heading] = in_text(seeds.mean(), seeds.std(ddof=1) if len(seeds) > 1 else None)
            rows.append(row)
    return rows


class Lines:
    """Prints a line for every run whose standing is another than before, and the time left when a run is done."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.before: dict[str, Standing] = {}

    def __call__(self, runs: Sequence[Standing]) -> None:
        for run in runs:
            known = self.before.get(run.name)
            if known is None or replace(run, note="") != replace(known, note=""):
                self.before[run.name] = run
                cells = [text for key, text in run.row().items() if key != "run" and text]
                print(f"{run.name:24} {' · '.join(cells)}", flush=True)
                if known is not None and run.state == "done":
                    print(estimate(runs, self.jobs), flush=True)
