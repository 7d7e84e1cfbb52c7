"""Real sweeps, in processes: killed, stopped, moved, two at once, as notebooks, on Slurm."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import slurm as throwaway
from conftest import ROOT
from stopping import saved_step
from swept import TWO, prepared, same_weights, smoke, started, until

from workbook.results import stored
from workbook.sweeps import command
from workbook.sweeps.status import standings

THREE = ("psrt_noshuffle", "kav11", "kav1")


def family(folder: Path) -> list[psutil.Process]:
    """Processes that work for a sweep: its jobs, and the notebooks' kernels that they start."""
    processes: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()) and process.pid != os.getpid():
                processes |= {member.pid: member for member in (process, *process.children(recursive=True))}
    return list(processes.values())


def long(folder: Path, *more: str) -> list[str]:
    """Three runs, two at a time, whose checkpoints are written after every iteration."""
    return smoke(folder, "--set", "checkpoint_every=0.0", *more, variants=THREE, iterations=20)


@contextmanager
def going_on(folder: Path, *more: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, in a process of its own; nothing of it is left behind."""
    process = started(long(folder, *more))
    try:
        yield process
    finally:
        for member in family(folder):
            with suppress(psutil.Error):
                member.kill()
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def works_at(folder: Path, name: str) -> psutil.Process:
    """The process that holds the claim of a run."""
    for process in family(folder):
        with suppress(psutil.Error):
            if any(file.path.endswith(f"claims/{name}.lock") for file in process.open_files()):
                return process
    raise AssertionError(f"nobody works at {name}")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_and_moved_it_ends_with_the_same_bits(tmp_path: Path, stop: signal.Signals) -> None:
    """However the command is stopped, its jobs end too; with one job or two, and elsewhere, runs are the same."""
    folder, moved, whole = tmp_path / "stopped", tmp_path / "elsewhere", tmp_path / "whole"
    with going_on(folder, "--jobs", "2") as process:
        until(lambda: saved_step(folder / "runs" / "kav11-seed0") > 2)
        os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
        _, said = process.communicate()
        assert process.returncode == (130 if stop == signal.SIGINT else -stop)
        until(lambda: not family(folder), 20)
    if stop == signal.SIGINT:  # a terminal's Ctrl-C reaches all processes, and one of them speaks
        assert said == b"stopped; the same command goes on (jobs of Slurm go on without it)\n"
    assert not (folder / "failed").exists()
    (start,) = json.loads((folder / "runs" / "kav11-seed0" / "environment.json").read_text())["starts"]
    assert start["threads"] == 1
    folder.rename(moved)
    assert command.main(["--out", str(moved), "--device", "cpu", "--jobs", "2"]) == 0
    assert len(json.loads((moved / "runs" / "kav11-seed0" / "environment.json").read_text())["starts"]) == 2
    assert not list(moved.rglob("*.part"))
    if stop == signal.SIGKILL:
        with going_on(whole, "--jobs", "1") as alone:
            assert alone.wait() == 0
        assert same_weights(moved, whole)


@pytest.mark.slow
def test_a_job_is_killed(tmp_path: Path) -> None:
    """Its run is told as failed, the others are done, its notebook's kernel ends, and the next call ends it."""
    folder = tmp_path / "sweep"
    with going_on(folder, "--jobs", "2", "--notebooks") as process:
        until(lambda: saved_step(folder / "runs" / "psrt_noshuffle-seed0") > 2)
        works_at(folder, "psrt_noshuffle-seed0").kill()
        assert process.wait() == 1
        until(lambda: not family(folder), 20)
    runs = {run.name: run for run in standings(prepared(long(folder)))}
    assert [run.state for run in runs.values()] == ["failed", "done", "done"]
    assert "killed, or out of memory?" in runs["psrt_noshuffle-seed0"].note
    assert command.main(long(folder)) == 0


@pytest.mark.slow
def test_two_calls_at_once_train_every_run_once(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    with going_on(folder) as first, going_on(folder) as second:
        first.wait()
        second.wait()
    assert command.main(long(folder)) == 0
    for name in THREE:
        starts = json.loads((folder / "runs" / f"{name}-seed0" / "environment.json").read_text())["starts"]
        assert len(starts) == 1


@pytest.mark.slow
def test_notebooks_side_by_side_one_of_which_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One has a damaged checkpoint in its way; what is done is not done again."""
    folder = tmp_path / "sweep"
    damaged = folder / "runs" / "kav11-seed0" / "checkpoint.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no checkpoint")
    arguments = smoke(folder, "--jobs", "2", "--notebooks")
    assert command.main(arguments) == 1
    shown = capfd.readouterr().out
    assert f"{damaged} is damaged; restore a copy, or start anew with restart=True" in shown
    good, bad = (folder / "notebooks" / f"{name}-seed0.ipynb" for name in TWO)
    assert "linear injection" in outputs(good)
    assert "is damaged; restore a copy" in outputs(bad)
    before = good.stat().st_mtime_ns
    damaged.unlink()
    assert command.main(arguments) == 0
    assert good.stat().st_mtime_ns == before
    assert "linear injection" in outputs(bad)
    assert not (folder / "failed" / "kav11-seed0.txt").exists()
    assert not list(folder.rglob("*.part*"))


def outputs(path: Path) -> str:
    """All that an executed notebook shows."""
    return json.dumps([cell.get("outputs") for cell in json.loads(path.read_text())["cells"]])


@pytest.mark.slurm
@pytest.mark.slow
def test_on_slurm(tmp_path: Path) -> None:
    """Four runs as an array, of which one fails; the table is left and looked at again. Then that one."""
    folder = tmp_path / "sweep"
    damaged = folder / "runs" / "kav11-seed1" / "checkpoint.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no checkpoint")
    line = [sys.executable, "-m", "workbook.sweeps", *smoke(folder, "--seeds", "0", "1", "--cluster", "slurm")]
    line += ["--notebooks", "--jobs", "2"]
    with throwaway.slurm() as environment:
        watching = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        until((folder / "jobs" / "queued.json").exists, 120)
        watching.send_signal(signal.SIGINT)  # ends the table only
        assert watching.wait() == 130
        for code, done, jobs in ((1, "3 done, 1 missing", 4), (0, "4 done, 0 missing", 5)):
            ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert ended.returncode == code, ended.stdout + ended.stderr
            assert done in ended.stdout
            assert len(list((folder / "jobs").glob("*_submitted.pkl"))) == jobs
            damaged.unlink(missing_ok=True)
    assert len(stored.read(folder / "results", "smoke")) == 4
