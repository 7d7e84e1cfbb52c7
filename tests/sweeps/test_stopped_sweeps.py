"""Sweeps whose workers are killed, or that are stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from runs import saved_step

from workbook.sweeps import sweep

pytestmark = pytest.mark.slow


def family(folder: Path) -> list[psutil.Process]:
    """Processes that work for a sweep: its workers, and the notebooks' kernels that they start."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) and process.pid != os.getpid():
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    return list({process.pid: process for process in found}.values())


def sweep_arguments(folder: Path) -> list[str]:
    fixed = ["--out", str(folder), "--device", "cpu", "--iterations", "20", "--set", "checkpoint_every=0.0"]
    return ["smoke", *fixed, "--variants", "psrt_noshuffle", "kav11", "kav1", "--jobs", "2"]


def until(what: Callable[[], bool], seconds: float = 180) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def step_of(folder: Path, name: str) -> int:
    return saved_step(folder / "runs" / name)


@contextmanager
def swept(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a process of its own; nothing of it is left behind."""
    process = subprocess.Popen([sys.executable, "-m", "workbook.sweeps.sweep", *sweep_arguments(folder)], cwd=ROOT)
    try:
        yield process
    finally:
        for one in family(folder):
            one.kill()
        process.kill()
        process.wait()


def works_at(folder: Path, name: str) -> psutil.Process | None:
    """The worker that holds the claim of a run."""
    for one in family(folder):
        with suppress(psutil.Error):
            if any(file.path.endswith(f"claims/{name}.lock") for file in one.open_files()):
                return one
    return None


def test_a_worker_of_a_sweep_is_killed(tmp_path: Path) -> None:
    """Its run is left where it stood, the other worker does the rest, and the next call ends it."""
    folder = tmp_path / "sweep"
    with swept(folder) as process:
        until(lambda: step_of(folder, "psrt_noshuffle-seed0") > 2)
        worker = works_at(folder, "psrt_noshuffle-seed0")
        assert worker is not None
        worker.kill()
        assert process.wait() == 1
        until(lambda: not family(folder), 20)  # the kernel of the killed worker ended too
    standing = {state.name: state.state for state in sweep.states(sweep.plan(sweep_arguments(folder)))}
    assert standing == {"psrt_noshuffle-seed0": "stopped", "kav11-seed0": "done", "kav1-seed0": "done"}
    assert sweep.main(sweep_arguments(folder)) == 0


def test_ctrl_c_stops_a_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    with swept(folder) as process:
        until(lambda: step_of(folder, "kav11-seed0") > 2)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        until(lambda: not family(folder), 10)
    assert sweep.main(sweep_arguments(folder)) == 0
