"""Jobs on submitit, a run each: processes here, an array on Slurm."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
import torch

from ka.errors import KAError
from ka.files import write_json
from workbook.sweeps.folder import Sweep
from workbook.sweeps.plan import Planned
from workbook.sweeps.status import Standing, standings
from workbook.sweeps.work import Work, note_failure
from workbook.training.devices import pick_device

Job = submitit.Job[str]
EVERY = 1.0  # seconds between two looks at the jobs
YEAR = 365 * 24 * 60  # minutes
OURS = {"time": "--minutes", "array_parallelism": "--jobs", "additional_parameters": "--slurm name=value"}


def run(sweep: Sweep, show: Callable[[Sequence[Standing]], object]) -> list[Standing]:
    """Start jobs for all runs that are not done, show how the runs stand until all jobs have ended, and give the last.

    Local jobs end with this process and with Ctrl-C; their runs go on with the next call. Those of Slurm go on without
    it, and are taken over by the next call if they are still queued or running. No Slurm, or one that refuses, is a
    `KAError`.
    """
    (_on_slurm if sweep.cluster == "slurm" else _here)(sweep, lambda queued: show(standings(sweep, queued)))
    show(last := standings(sweep))
    return last


def gpus(device: str) -> list[str]:
    """What each of the runs side by side may see of this machine's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    return [",".join(cards)] if device.startswith("cuda:") else cards  # one by its number: it is counted among all


def places(device: str, jobs: int) -> list[dict[str, Any]]:
    """What each of so many runs side by side may use (0 jobs: one per GPU, or per two cores): a GPU, or a thread. A run
    alone has all threads. With fewer cores than jobs there are fewer places.
    """
    cards = gpus(device)
    if cards:
        return [{"gpu": cards[place % len(cards)]} for place in range(jobs or len(cards))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs, cores) or max(1, cores // 2)
    return [{"threads": 1 if jobs > 1 else 0}] * jobs


@contextmanager
def _explained(cluster: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        line = " ".join(str(error).split())[:400]
        cure = "check it, or choose local" if cluster == "slurm" else "check the folder"
        raise KAError(f"no jobs could be started on {cluster} ({line}); {cure}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Processes started in the block have no stderr: submitit's controllers would print a traceback at Ctrl-C."""
    with open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _here(sweep: Sweep, look: Callable[[Sequence[str]], object]) -> None:
    pick_device(sweep.device)
    waiting, free = sweep.missing, places(sweep.device, sweep.jobs)
    if not waiting:
        return
    with _explained(sweep.cluster):
        executor = submitit.AutoExecutor(sweep.folder / "jobs", cluster=sweep.cluster)
        executor.update_parameters(name="ka", timeout_min=YEAR)
    caller = os.getpid() if sweep.cluster == "local" else 0
    working: list[tuple[Planned, dict[str, Any], Job]] = []
    try:
        while waiting or working:
            while waiting and free:
                planned, place = waiting.pop(0), free.pop(0)
                with _explained(sweep.cluster), _silent():
                    working.append((planned, place, executor.submit(Work(sweep, caller=caller, **place), planned)))
            look([planned.name for planned in (*waiting, *(turn[0] for turn in working))])
            for planned, place, job in [turn for turn in working if turn[2].done()]:
                working.remove((planned, place, job))
                free.append(place)
                _clear_up(sweep, planned, job)
            if working:
                time.sleep(EVERY)
    finally:
        for *_, job in working:
            job.cancel()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not all(job.done() for *_, job in working):
            time.sleep(0.05)


def _clear_up(sweep: Sweep, planned: Planned, job: Job) -> None:
    """Remove a job's pickles, and note what it could not note itself."""
    if job.exception() is not None and not sweep.done(planned):
        why = "its process ended without a word (killed, or out of memory?)"
        note_failure(sweep, planned, f"{why}; look into {job.paths.stderr}")
    for pickle in (job.paths.submitted_pickle, job.paths.result_pickle):
        pickle.unlink(missing_ok=True)


def _on_slurm(sweep: Sweep, look: Callable[[Sequence[str]], object]) -> None:
    """Every run is a job of an array; jobs of former calls that are still queued or running are taken over."""
    if named := sorted(OURS.keys() & sweep.slurm.keys()):
        raise KAError(f"--slurm {named[0]}=… is set by {OURS[named[0]]}; give that instead")
    if not sweep.missing:
        return
    with _explained("slurm"):
        jobs = _submitted(sweep)
    while not ended(jobs):
        look([planned.name for planned in sweep.missing])
        time.sleep(2 * EVERY)


def _submitted(sweep: Sweep) -> list[Job]:
    note = sweep.folder / "jobs" / "queued.json"
    known: dict[str, Job] = {name: submitit.SlurmJob(note.parent, number) for name, number in _queued(note).items()}
    alive = {name: job for name, job in known.items() if not ended([job])}
    rest = [planned for planned in sweep.missing if planned.name not in alive]
    if rest:
        executor = submitit.AutoExecutor(note.parent, cluster="slurm", slurm_max_num_timeout=10**6)
        its_own = submitit.SlurmExecutor._valid_parameters()
        own = {f"slurm_{key}": value for key, value in sweep.slurm.items() if key in its_own}
        more = {key: value for key, value in sweep.slurm.items() if key not in its_own}
        times = {"timeout_min": sweep.minutes, "slurm_array_parallelism": sweep.jobs or 1000}
        executor.update_parameters(name="ka", **times, **own, slurm_additional_parameters=more)
        where = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
        with submitit.helpers.clean_env():  # this may be a job of Slurm itself
            os.environ.update(where)
            jobs = executor.map_array(Work(sweep), rest)
        alive |= {planned.name: job for planned, job in zip(rest, jobs, strict=True)}
        write_json(note, {name: job.job_id for name, job in alive.items()})
    return list(alive.values())


def _queued(path: Path) -> Mapping[str, str]:
    """Names of runs and numbers of the jobs that former calls gave them."""
    try:
        return {str(name): str(job) for name, job in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def ended(jobs: Sequence[Job]) -> bool:
    """Whether no job of Slurm is queued or running. Its queue is asked, as the accounting, which submitit asks, may be
    off; and a killed job leaves no result.
    """
    queued = {job.job_id for job in jobs if not job.paths.result_pickle.exists()}
    if not queued:
        return True
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(sorted(queued))}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    silent = answer.returncode and "Invalid job id" not in answer.stderr  # Slurm does not answer now
    return not silent and not queued & set(answer.stdout.split())
