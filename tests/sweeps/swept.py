"""Sweeps of small runs, in this process or in another."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import submitit
import torch
from conftest import ROOT
from safetensors.torch import load_file

from workbook.sweeps import command, runner
from workbook.sweeps.folder import Sweep
from workbook.sweeps.plan import Planned
from workbook.sweeps.work import Work

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TWO = ("psrt_noshuffle", "kav11")


def smoke(folder: Path, *more: str, variants: Sequence[str] = TWO, iterations: int = 3) -> list[str]:
    """The command line of a sweep of a few iterations on the embedded scene."""
    fixed = ["--out", str(folder), "--device", "cpu", "--variants", *variants, "--iterations", str(iterations)]
    return ["smoke", *fixed, *more]


def tiny(folder: Path, data: Path, *more: str, variants: Sequence[str] = TWO) -> list[str]:
    """The same on scenes of 4 bands and 32×32 pixels: a second a run."""
    return smoke(folder, "--data", str(data), "--set", "dataset=h5", "stride=4", *more, variants=variants)


def prepared(arguments: Sequence[str]) -> Sweep:
    """What a command line asks for, in this process."""
    return replace(command.prepare(command.parse(arguments)), cluster="debug")


class Here:
    """Stands for submitit's executor: a job is done in this process when it is first asked for."""

    def __init__(self, folder: Path, cluster: str) -> None:
        assert cluster == "debug"
        self.folder = folder

    def update_parameters(self, **_: object) -> None:
        """Nothing to choose here."""

    def submit(self, work: Work, planned: Planned) -> "JobHere":
        """A job of one run."""
        return JobHere(self.folder, work, planned)


class JobHere(submitit.Job[str]):
    """A job of `Here`."""

    def __init__(self, folder: Path, work: Work, planned: Planned) -> None:
        super().__init__(folder, planned.name)
        self.action = lambda: work(planned)

    def done(self, force_check: bool = False) -> bool:
        """Do it."""
        self.action()
        return True

    def exception(self) -> None:
        """There was none, or it passed through `done`."""

    def cancel(self, check: bool = True) -> None:
        """It never runs beside the others."""


def main_here(arguments: Sequence[str]) -> int:
    """The command, whose jobs run in this process, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submitit, "AutoExecutor", Here)
        patch.setattr(runner, "EVERY", 0)
        patch.setattr(command, "run", lambda sweep, show: runner.run(replace(sweep, cluster="debug"), show))
        return command.main(arguments)


def started(arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    """The command in a process and a session of its own, as a terminal starts it."""
    line = [sys.executable, "-m", "workbook.sweeps", *arguments]
    out = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **out)


def until(what: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def same_weights(first: Path, second: Path) -> bool:
    """Whether two sweeps kept the same weights, to the bit."""
    names = [path.name for path in sorted((first / "weights").iterdir())]
    assert names == [path.name for path in sorted((second / "weights").iterdir())]
    states = [[load_file(folder / "weights" / name) for name in names] for folder in (first, second)]
    return all(torch.equal(a[key], b[key]) for a, b in zip(*states, strict=True) for key in a)
