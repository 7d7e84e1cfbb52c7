"""What a job does: one run, trained to its end from wherever its folder stands; its metrics and weights are kept."""

import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import papermill
import psutil
import torch
from filelock import Timeout
from nbclient.exceptions import DeadKernelError
from submitit.helpers import DelayedSubmission

from ka.errors import KAError
from ka.files import write_bytes, write_json
from workbook.paths import ROOT
from workbook.results import stored
from workbook.sweeps.folder import Sweep
from workbook.sweeps.plan import Planned
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.train import train

NOTEBOOK = ROOT / "notebooks" / "train.ipynb"
PATIENCE = 5.0  # seconds to wait for a claimed run: whoever only looks at it is gone by then

KILLED = "the notebook's process was killed: out of memory, or stopped from outside"


@dataclass(frozen=True)
class Work:
    """A function of one run, for submitit."""

    sweep: Sweep
    threads: int = 0  # of the processor; 0 for what the environment says
    gpu: str | None = None  # those it may see, as CUDA_VISIBLE_DEVICES names them; None for what the environment says
    caller: int = 0  # the process that started this one's controller, with which it ends; 0 where it goes on alone

    def __call__(self, planned: Planned) -> str:
        """How it went, in a line; a run that another process works at is left to it."""
        if self.caller:
            threading.Thread(target=_end_with, args=(self.caller,), daemon=True).start()
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)  # of a notebook's kernel
            torch.set_num_threads(self.threads)
        claim = self.sweep.claim(planned)
        Path(claim.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            with claim.acquire(timeout=PATIENCE):
                outcome = "done before" if self.sweep.done(planned) else attempt(self.sweep, planned)
        except Timeout:
            outcome = "left to another process"
        print(f"{planned.name:24} {outcome}", flush=True)
        return outcome

    def checkpoint(self, planned: Planned) -> DelayedSubmission:
        """What submitit sends to the queue again when Slurm's time is up: the same, as runs go on by themselves."""
        return DelayedSubmission(self, planned)


def _end_with(caller: int) -> None:
    """End this process when the one that called for it, or submitit's controller between them, is no more."""
    controller = os.getppid()
    try:
        while os.getppid() == controller and psutil.Process(controller).ppid() == caller:
            time.sleep(1)
    finally:
        os._exit(1)


def attempt(sweep: Sweep, planned: Planned) -> str:
    """Train a run to its end and keep its metrics and weights; whatever fails is noted in `failed/`."""
    run = sweep.run(planned)
    try:
        config = _begun_elsewhere(run, sweep.config(planned))
        if sweep.notebooks:
            execute(config, sweep.plan.protocol, sweep.notebook(planned))
        else:
            train(config, bar=False)
        stored.keep_weights(run, sweep.weights(planned))
        stored.export(run, sweep.folder / "results", sweep.plan.protocol)
    except Exception as error:  # one run's mishap is not the others'
        line = " ".join(str(error).split()) or "no message"
        if not isinstance(error, KAError):
            line = f"{type(error).__name__}: {line}"
        elif line.startswith(f"{run.path} is in use"):
            return "left to another process"
        note_failure(sweep, planned, line)
        return f"failed: {line}"
    sweep.failure(planned).unlink(missing_ok=True)
    return "done"


def note_failure(sweep: Sweep, planned: Planned, line: str) -> None:
    """In the sweep's folder."""
    write_bytes(sweep.failure(planned), f"{line}\n".encode())


def _begun_elsewhere(run: Run, config: Config) -> Config:
    """Let an unfinished run go on with this machine's data and device, whatever it was begun with: `Run.check` takes
    others for another run, but a sweep may be carried to another machine.
    """
    before = run.config()
    if before is None:
        return config
    place = {"device": config.device, "data_root": config.data_root}
    if run.finished:
        return replace(config, device=before.device, data_root=before.data_root)
    if any(getattr(before, key) != value for key, value in place.items()):
        with run.lock():
            write_json(run.path / "config.json", before.to_dict() | place)
    return config


def execute(config: Config, preset: str, out: Path) -> None:
    """Train a configuration by running `train.ipynb` with papermill; the executed copy is kept, also of a failure.

    What the notebook stopped with is a `KAError` if a user can mend it, and so is a configuration that parameters of a
    notebook cannot say; any other error of the notebook is a `RuntimeError`.
    """
    given = {key: value for key, value in config.to_dict().items() if value is not None}
    said = Config.preset(preset, **given).to_dict()
    if unsaid := ", ".join(key for key, value in config.to_dict().items() if said[key] != value):
        raise KAError(f"{unsaid} of {preset} is set to None, which -p of a notebook cannot say; leave it out of --set")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part.ipynb")
    try:
        papermill.execute_notebook(NOTEBOOK, part, {"preset": preset, **given}, progress_bar=False, start_timeout=600)
    except papermill.PapermillExecutionError as error:
        if error.ename == "KAError":
            raise KAError(error.evalue) from None
        raise RuntimeError(f"{error.ename}: {error.evalue}") from None
    except DeadKernelError:
        raise RuntimeError(KILLED) from None
    finally:
        if part.exists():
            part.replace(out)
