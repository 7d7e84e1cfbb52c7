"""Notebook runs, many at a time: here, a process per group of cores or per GPU; on a cluster, an array of Slurm jobs.

    make sweep VARIANTS="kav1 kav11" SEEDS="0 1 2" CLUSTER=local

A sweep is a campaign (`workbook.sweeps.campaign`: the same plan, folder and results) whose runs are executed copies of
`train.ipynb`, kept in `notebooks/`, and whose processes are started by submitit; their logs are in `jobs/`. It has no
state of its own: what is done, running or missing is read from the folder, so that any call goes on.
"""

import importlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import papermill
import submitit
import torch
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from submitit.core.utils import FailedJobError
from submitit.helpers import DelayedSubmission

from ka.errors import KAError
from ka.files import write_json
from ka.metrics import METRICS
from workbook.paths import ROOT, runs_folder
from workbook.results import stored as results
from workbook.results.table import measured
from workbook.sweeps import campaign as campaigns
from workbook.sweeps.campaign import Campaign, Parser
from workbook.sweeps.plan import Planned
from workbook.training.config import Config, parse_fields

CLUSTERS = ("local", "slurm")
NOTEBOOK = ROOT / "notebooks" / "train.ipynb"
DAY = 24 * 60  # minutes
A_LOOK = 5.0  # seconds that a worker waits for a run that is held: whoever only looks at it is gone by then


Jobs = Sequence[submitit.Job[list[str]]]


@dataclass(frozen=True)
class Sweep:
    """A campaign, and where its runs are started.

    Attributes:
        campaign: plan and folder; its `jobs` are the runs at a time.
        cluster: one of `CLUSTERS`.
        minutes: after which Slurm stops a job; it is then queued again, and goes on.
        slurm: options of sbatch, such as partition or gres.
        total: iterations of a run; None where that depends on scenes that are not here.
    """

    campaign: Campaign
    cluster: str
    minutes: int
    slurm: Mapping[str, Any]
    total: int | None


@dataclass(frozen=True)
class State:
    """How a run stands.

    Attributes:
        name: the run.
        state: `done`, `running`, `waiting` for its turn, `failed`, `stopped` (begun, and nobody trains it), `missing`.
        step: iterations at the last validation.
        total: all of them; None where it is not known.
        psnr: of the last validation, in dB; None before the first.
        left: seconds still to train, at the pace so far; None where it is not known.
        error: why it failed, else "".
    """

    name: str
    state: str
    step: int
    total: int | None
    psnr: float | None
    left: float | None
    error: str = ""

    def row(self) -> dict[str, str]:
        """Cells for a table."""
        return {
            "run": self.name,
            "state": self.state,
            "iteration": f"{self.step}" + ("" if self.total is None else f" of {self.total}"),
            "time left": "" if self.left is None else f"{self.left / 60:.1f} min",
            "validation PSNR (dB)": "" if self.psnr is None else f"{self.psnr:.2f}",
            "error": self.error,
        }


def states(sweep: Sweep, waiting: Collection[str] = ()) -> list[State]:
    """How every run stands, from its folder; `waiting` names those that a job has still to begin."""
    return [
        _state(sweep.campaign, planned, sweep.total, planned.name in waiting) for planned in sweep.campaign.plan.runs
    ]


def _state(campaign: Campaign, planned: Planned, total: int | None, waiting: bool) -> State:
    try:
        history, error = campaign.run(planned).history(), ""
        last = history[-1] if history else {}
        step, seconds = last.get("step", 0), last.get("seconds", 0.0)
        psnrs = [last[key] for key in ("psnr", "psnr_average") if last.get(key) is not None]
        if campaign.done(planned):
            state = "done"
        elif claimed(campaign, planned):
            state = "running"
        elif campaign.failure(planned).exists():
            state, error = "failed", campaign.failure(planned).read_text(encoding="utf-8").strip()
        elif waiting:
            state = "waiting"
        else:
            state = "stopped" if campaign.run(planned).config() is not None else "missing"
    except (KAError, OSError) as unreadable:  # a damaged folder is not the other runs' trouble
        return State(planned.name, "failed", 0, total, None, None, " ".join(str(unreadable).split()))
    left = None
    if state == "running" and step and total is not None:
        left = (total - step) * seconds / step
    return State(planned.name, state, step, total, max(psnrs, default=None), left, error)


# One process at a run: whoever works at it holds its claim, which ends with the process


def _claim(campaign: Campaign, planned: Planned) -> FileLock:
    return FileLock(campaign.folder / "claims" / f"{planned.name}.lock")


def claimed(campaign: Campaign, planned: Planned) -> bool:
    """Whether a process works at a run, on whichever machine."""
    if not (campaign.folder / "claims" / f"{planned.name}.lock").exists():
        return False
    try:
        with _claim(campaign, planned).acquire(timeout=0):
            return False
    except Timeout:
        return True


# What a job does


@dataclass(frozen=True)
class Worker:
    """Works at runs, one after the other; those that another process works at are left to it.

    Attributes:
        campaign: whose runs.
        call: the workers of one call share it, and try every run once; "" where each has runs of its own.
        cores: the processor cores to keep to; none for all.
        gpu: the GPU to keep to, as CUDA_VISIBLE_DEVICES names it; None for what the environment says.
    """

    campaign: Campaign
    call: str = ""
    cores: tuple[int, ...] = ()
    gpu: str | None = None

    def __call__(self, runs: Sequence[Planned]) -> list[str]:
        """Work at these runs; how it went, a line each."""
        keep_to(self.cores, self.gpu)
        told = []
        for planned in runs:
            if not self.campaign.done(planned) and self._mine(planned):
                with self._held(planned) as free:
                    how = campaigns.attempt(self.campaign, planned, self._fit(planned)) if free else "skipped, in use"
                told.append(f"{planned.name:24} {how}")
                print(told[-1], flush=True)
        return told

    def checkpoint(self, runs: Sequence[Planned]) -> DelayedSubmission:
        """What submitit sends to the queue again when Slurm's time is up: the same, as runs go on by themselves."""
        return DelayedSubmission(self, runs)

    def _mine(self, planned: Planned) -> bool:
        """Whether no other worker of this call took it before."""
        if not self.call:
            return True
        path = self.campaign.folder / "claims" / self.call / planned.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    @contextmanager
    def _held(self, planned: Planned) -> Iterator[bool]:
        (self.campaign.folder / "claims").mkdir(parents=True, exist_ok=True)
        claim = _claim(self.campaign, planned)
        try:
            claim.acquire(timeout=A_LOOK)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            claim.release()

    def _fit(self, planned: Planned) -> Callable[[Config], None]:
        out = self.campaign.folder / "notebooks" / f"{planned.name}.ipynb"
        return lambda config: execute(config, self.campaign.plan.protocol, out)


def keep_to(cores: Sequence[int], gpu: str | None) -> None:
    """Let this process and those that it starts use these cores only, with a thread each, and this GPU."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if cores:
        os.environ["OMP_NUM_THREADS"] = str(len(cores))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)


def execute(config: Config, preset: str, out: Path) -> None:
    """Train a configuration by running `train.ipynb` with papermill; the executed copy is kept, also of a failure.

    Args:
        config: the run.
        preset: the protocol that it came from.
        out: the executed notebook.

    Raises:
        KAError: what the notebook stopped with, if a user can mend it; or a configuration that parameters of a
            notebook cannot tell.
        RuntimeError: any other error of the notebook.
    """
    given = {key: value for key, value in config.to_dict().items() if value is not None}
    said = Config.preset(preset, **given).to_dict()
    if unsaid := [key for key, value in config.to_dict().items() if said[key] != value]:
        which = ", ".join(unsaid)
        raise KAError(f"{which} of {preset} is set to None, which -p of a notebook cannot say; leave it out of --set")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part.ipynb")
    try:
        papermill.execute_notebook(NOTEBOOK, part, {"preset": preset, **given}, progress_bar=False, start_timeout=600)
    except papermill.PapermillExecutionError as error:
        kind = KAError if error.ename == "KAError" else RuntimeError
        raise kind(error.evalue if kind is KAError else f"{error.ename}: {error.evalue}") from None
    except DeadKernelError:
        raise RuntimeError("the notebook's process was killed: out of memory, or stopped from outside") from None
    finally:
        if part.exists():
            part.replace(out)


# Starting jobs


def core_groups(jobs: int) -> list[tuple[int, ...]]:
    """The cores of this process in so many groups of equal size; fewer groups where there are fewer cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    jobs = min(jobs, len(cores))
    each = len(cores) // jobs
    return [tuple(cores[k * each : (k + 1) * each]) for k in range(jobs)]


def gpus(device: str) -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        KAError: the device is one of them by number: each worker sees one alone.
    """
    if device.startswith("cuda:"):
        raise KAError(f"device={device!r} is one GPU, and every run of a sweep has its own; give auto, cpu or cuda")
    if device == "cpu" or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]


def submit(sweep: Sweep) -> Jobs:
    """Start jobs for all runs that are not done, and come back at once; the jobs do not need this process.

    Locally `campaign.jobs` processes share the runs, each with its group of cores and, where there are any, its GPU.
    On Slurm every run is a job of an array, of which as many run at a time; jobs of former calls that are still queued
    or running are taken over.

    Raises:
        KAError: there is no Slurm here, or it refused.
    """
    if not sweep.campaign.missing:
        return []
    try:
        return _on_slurm(sweep) if sweep.cluster == "slurm" else _here(sweep)
    except KAError:
        raise
    except (RuntimeError, OSError, ValueError, TypeError, NameError, AssertionError, FailedJobError) as error:
        line = " ".join(str(error).split())[:400]
        raise KAError(f"no jobs could be started on {sweep.cluster} ({line}); check it, or choose local") from error


def _here(sweep: Sweep) -> Jobs:
    campaign, missing = sweep.campaign, sweep.campaign.missing
    executor = submitit.AutoExecutor(campaign.folder / "jobs", cluster="local")
    executor.update_parameters(name="ka", timeout_min=365 * DAY)
    cards, call = gpus(campaign.device), uuid.uuid4().hex[:12]
    jobs: list[submitit.Job[list[str]]] = []
    try:
        for place, cores in enumerate(core_groups(min(campaign.jobs, len(missing)))):
            worker = Worker(campaign, call, cores, cards[place % len(cards)] if cards else None)
            jobs.append(executor.submit(worker, missing))
    except BaseException:
        stop(jobs)
        raise
    return jobs


def _on_slurm(sweep: Sweep) -> Jobs:
    campaign, note = sweep.campaign, sweep.campaign.folder / "jobs" / "queued.json"
    if named := sorted({"time", "array_parallelism"} & set(sweep.slurm)):
        raise KAError(f"--slurm {named[0]}=… is set by --minutes or --jobs; give that instead")
    alive: dict[str, submitit.Job[list[str]]] = {}
    for name, number in _queued(note).items():
        job: submitit.SlurmJob[list[str]] = submitit.SlurmJob(note.parent, number)
        if not ended([job]):
            alive[name] = job
    rest = [planned for planned in campaign.missing if planned.name not in alive]
    if rest:
        executor = submitit.AutoExecutor(note.parent, cluster="slurm", slurm_max_num_timeout=10**6)
        known = submitit.SlurmExecutor._valid_parameters()
        own = {f"slurm_{key}": value for key, value in sweep.slurm.items() if key in known}
        more = {key: value for key, value in sweep.slurm.items() if key not in known}
        times = {"timeout_min": sweep.minutes, "slurm_array_parallelism": campaign.jobs}
        executor.update_parameters(name="ka", **times, **own, slurm_additional_parameters=more)
        where = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
        with submitit.helpers.clean_env():  # this may be a job of Slurm itself
            os.environ.update(where)
            jobs = executor.map_array(Worker(campaign), [[planned] for planned in rest])
        alive |= {planned.name: job for planned, job in zip(rest, jobs, strict=True)}
        write_json(note, {name: job.job_id for name, job in alive.items()})
    return list(alive.values())


def _queued(path: Path) -> dict[str, str]:
    """Names of runs and numbers of the jobs that former calls gave them."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(number) for name, number in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def ended(jobs: Jobs) -> bool:
    """Whether no job is queued or running.

    Slurm's queue is asked, as the accounting, which submitit asks, may be off.
    """
    queued = [job.job_id for job in jobs if isinstance(job, submitit.SlurmJob) and not job.paths.result_pickle.exists()]
    if not all(job.done() for job in jobs if not isinstance(job, submitit.SlurmJob)):
        return False
    if not queued:
        return True
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(queued)}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode and "Invalid job id" not in found.stderr:
        return False  # Slurm does not answer now
    return not set(queued) & set(found.stdout.split())


def watch(sweep: Sweep, jobs: Jobs, show: Callable[[list[State]], object], every: float = 2.0) -> list[State]:
    """Show how the runs stand until all jobs have ended, and give the last of it.

    Stopped by Ctrl-C, local jobs are stopped too (their runs go on with the next call); those of Slurm go on.
    """
    waiting = {planned.name for planned in sweep.campaign.missing} if jobs else set()
    try:
        while not ended(jobs):
            show(states(sweep, waiting))
            time.sleep(every)
    except BaseException:
        stop(jobs)
        raise
    found = states(sweep)
    show(found)
    return found


def stop(jobs: Jobs, patience: float = 10.0) -> None:
    """Stop local jobs and wait for their end; those of Slurm are left alone."""
    local = [job for job in jobs if isinstance(job, submitit.LocalJob)]
    for job in local:
        job.cancel()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not all(job.done() for job in local):
        time.sleep(0.05)


def summary(sweep: Sweep) -> list[dict[str, str]]:
    """What came of it, for a table: a row per variant, mean over test scenes and seeds (± sample std of seeds)."""
    folder, protocol = sweep.campaign.folder / "results", sweep.campaign.plan.protocol
    found = measured(results.read(folder, protocol)) if protocol in results.protocols(folder) else {}
    rows = []
    for name, values in found.items():
        if values:
            means = {metric: each.mean(1) for metric, each in values.items()}  # of every seed
            cells = {
                METRICS[metric].heading: f"{each.mean():.3f}" + (f" ± {each.std(ddof=1):.3f}" if len(each) > 1 else "")
                for metric, each in means.items()
            }
            rows.append({"variant": name, "seeds": str(len(next(iter(means.values())))), **cells})
    return rows


# The command


def plan(arguments: Sequence[str]) -> Sweep:
    """What the command line asks for: a new folder's plan is written, an old one's is added to.

    Raises:
        KAError: an argument that does not exist, a value of the wrong kind, a contradiction to the plan in the folder,
            data that are not here.
    """
    parser = Parser(
        "workbook.sweeps.sweep", "Train variants and seeds as notebooks, side by side; the same command goes on."
    )
    parser.add("--cluster", "where: local (default) or slurm", choices=CLUSTERS, default="local")
    parser.add("--jobs", "runs at a time (default: one per GPU or two cores here, all on Slurm)", type=int, default=0)
    parser.add("--minutes", "of Slurm's time for a job, which then goes on in another", type=int, default=DAY)
    parser.add("--slurm", "options of sbatch, such as partition=gpu gres=gpu:1", nargs="+", default=[])
    asked = parser.parse_args(arguments)
    if asked.jobs < 0 or asked.minutes < 1:
        raise KAError(f"--jobs {asked.jobs} and --minutes {asked.minutes} have to be at least 1")
    device = asked.device
    if asked.cluster == "slurm":
        asked.device, asked.jobs = "auto", asked.jobs or 1000  # what is here is not what is on the nodes
    else:
        asked.jobs = asked.jobs or len(gpus(device)) or max(1, len(core_groups(10**6)) // 2)
    asked.out, slurm = str(Path(asked.out).resolve()), parse_fields(asked.slurm, "--slurm")
    campaign, scenes = campaigns.agree(asked)
    campaign, shared = replace(campaign, device=device), campaign.plan.shared
    total = shared["iterations"]
    if total is None and scenes is not None:
        total = shared["epochs"] * (len(scenes.patches) // shared["batch"])
    return Sweep(campaign, asked.cluster, asked.minutes, slurm, total)


def arguments_of(
    preset: str, variants: object, seeds: object, cluster: str, jobs: object, slurm: str, data: object, out: object
) -> list[str]:
    """Parameters of `sweep.ipynb` as the command line that `plan` takes; None leaves a default."""
    folder = runs_folder() / f"sweep-{preset}" if out is None else out
    given = {"--variants": variants, "--seeds": seeds, "--cluster": cluster, "--jobs": jobs, "--slurm": slurm or None}
    command = [preset, "--out", str(folder)]
    for option, value in given.items():
        command += [] if value is None else [option, *str(value).split()]
    return command if data is None else [*command, "--data", str(data)]


def main(arguments: Sequence[str]) -> int:
    """`python -m workbook.sweeps.sweep`: 0 if all is done, 1 if not, 2 for an error of the user's, 130 if stopped."""
    try:
        sweep = plan(arguments)
        print(campaigns.headline(sweep.campaign), flush=True)
        watch(sweep, submit(sweep), Lines())
        print(campaigns.closing(sweep.campaign)[0], flush=True)
        return 1 if sweep.campaign.missing else 0
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on (jobs of Slurm go on without it)", file=sys.stderr)
        return 130


class Lines:
    """Prints a line for every run whose standing is another than before."""

    def __init__(self) -> None:
        self.before: dict[str, State] = {}

    def __call__(self, found: Sequence[State]) -> None:
        for one in found:
            known = self.before.get(one.name)
            if known is None or replace(one, left=None) != replace(known, left=None):
                self.before[one.name] = one
                cells = [text for key, text in one.row().items() if key != "run" and text]
                print(f"{one.name:24} {' · '.join(cells)}", flush=True)


if __name__ == "__main__":
    # By its name: jobs are told where to find what they run, and would look for it in this process's __main__.
    sys.exit(importlib.import_module("workbook.sweeps.sweep").main(sys.argv[1:]))
