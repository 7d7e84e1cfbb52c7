"""What runs survive: kills, full disks, read-only folders, moved clocks, other processes, Ctrl-C: `pytest -m faults`.

The short ones of `test_train.py` and `test_sweep.py` run each time; these take minutes. Each ends with the bits of a
run that nothing happened to. File systems that fill are small ones in memory, mounted for the test: that needs root.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT
from jupyter_client.manager import KernelManager
from safetensors.torch import load_file

import ka
from workbook import figures
from workbook.sweeps import sweep
from workbook.training import train as training
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.train import train

pytestmark = pytest.mark.slow

ITERATIONS = 24
TRIES = 20
IN_A_WRITE = 6  # of the tries: in the middle of writing a checkpoint
WEIGHTS = ("best", "last", "average")
SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from workbook.training.config import Config
from workbook.training.train import train

path, iterations, left = sys.argv[1], *map(int, sys.argv[2:])
write = Path.write_bytes
def half(path, data):
    global left
    if path.name.startswith(".checkpoint.pt."):
        left -= 1
        if left == 0:
            write(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
    return write(path, data)
Path.write_bytes = half

print("ready", flush=True)
train(Config.preset("smoke", run_dir=path, iterations=iterations, device="cpu", checkpoint_every=0.0), bar=False)
"""


def config(path: Path, **changes: Any) -> Config:
    return Config.preset("smoke", run_dir=str(path), device="cpu", **changes)


def begun(path: Path, kill_in_write: int = 0) -> subprocess.Popen[bytes]:
    """A process that trains, past its imports; what it prints is in a file beside the run."""
    log = path.with_suffix(".log")
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path), str(ITERATIONS), str(kill_in_write)], stdout=out, stderr=out
        )
    until(lambda: log.read_bytes().startswith(b"ready\n") or process.poll() is not None)
    return process


def until(what: Callable[[], bool], seconds: float = 180) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def same(one: Path, other: Path) -> bool:
    found = [{name: load_file(path / f"{name}.safetensors") for name in WEIGHTS} for path in (one, other)]
    notes = [
        [{k: v for k, v in note.items() if k != "seconds"} for note in Run(path).history()] for path in (one, other)
    ]
    equal = all(torch.equal(found[0][name][key], found[1][name][key]) for name in WEIGHTS for key in found[0][name])
    return equal and notes[0] == notes[1]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing happens to, and its seconds."""
    path = tmp_path_factory.mktemp("faults") / "straight"
    process = begun(path)
    clock = time.monotonic()
    assert process.wait() == 0
    return path, time.monotonic() - clock


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the smoke preset as it is, in this process."""
    path = tmp_path_factory.mktemp("faults") / "finished"
    train(config(path), bar=False)
    return path


@contextmanager
def mounted(path: Path, size: str = "8m") -> Iterator[Path]:
    """A small file system in memory."""
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill a file system but for so many bytes."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        if leave:
            file.truncate(max(0, file.tell() - leave))
    return path


@pytest.mark.timeout(1800)
def test_killed_at_twenty_moments_it_ends_with_the_same_bits(straight: tuple[Path, float], tmp_path: Path) -> None:
    """One kill a run, at a random moment from its first iteration to its end, six of them inside a checkpoint."""
    whole, seconds = straight
    drawn, moments, survived = random.Random(0), [], []
    for number in range(TRIES):
        path = tmp_path / str(number)
        if number < IN_A_WRITE:
            process = begun(path, kill_in_write=drawn.randint(1, ITERATIONS))
        else:
            process = begun(path)
            try:
                process.wait(drawn.uniform(0.0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        code = process.wait()
        saved = Run(path).resume() if path.exists() else None
        moments.append(-1 if saved is None else saved["step"])
        assert code in (0, -signal.SIGKILL), path.with_suffix(".log").read_text()
        assert begun(path).wait() == 0
        survived.append(same(whole, path) and not list(path.glob(".*.part")))
    print(f"\nkilled after the checkpoint of iteration {moments} of {ITERATIONS}: {sum(survived)} of {TRIES} survived")
    assert all(survived)
    assert len(set(moments)) > TRIES // 3  # the moments were spread


@pytest.mark.parametrize(
    "what", ["checkpoint.pt", "history.jsonl", "best.safetensors", "last.safetensors", "metrics.json"]
)
def test_a_disk_that_is_full_when_a_file_is_written(
    what: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file system of 8 MB nothing is left when the file is to be written the second time (or the only one)."""
    with mounted(tmp_path / "disk") as disk:
        path, seen = disk / "run", 0
        target = 1 if what in ("history.jsonl", "last.safetensors", "metrics.json") else 2

        def fill_before(owner: Any, name: str, of: Callable[..., str]) -> None:
            inner = getattr(owner, name)

            def call(*arguments: Any, **more: Any) -> Any:
                nonlocal seen
                if of(*arguments) == what:
                    seen += 1
                    if seen == target:
                        fill(disk)
                return inner(*arguments, **more)

            monkeypatch.setattr(owner, name, call)

        fill_before(training, "save_weights", lambda path, *_: Path(path).name)
        fill_before(training, "write_json", lambda path, *_: Path(path).name)
        fill_before(Run, "save", lambda *_: "checkpoint.pt")
        fill_before(Run, "note", lambda *_: "history.jsonl")
        with pytest.raises(ka.KAError, match=r"No space left on device.*free some space") as error:
            train(config(path), bar=False)
        assert what in str(error.value)
        assert not list(path.glob(".*.part"))
        assert not Run(path).finished
        saved = Run(path).resume()
        if what == "history.jsonl":  # its first line comes before the first checkpoint; later ones may fit its page
            assert saved is None
        else:
            assert saved is not None
            assert saved["step"] >= 3
        (disk / "filler").unlink()
        train(config(path), bar=False)
        assert same(finished, path)


def test_a_disk_that_is_full_when_figures_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make figures` ends with one line; figures are the old or the new ones, never half of one."""
    with mounted(tmp_path / "disk") as disk:
        names = ("a.svg", "b.png", "c.svg")
        monkeypatch.setattr(figures, "FOLDER", disk)
        monkeypatch.setattr(figures, "README", {})
        drawn = {name: lambda: b"new" * 100_000 for name in names}
        monkeypatch.setattr(figures, "files", lambda: drawn)
        for name in names:
            (disk / name).write_bytes(b"old" * 100_000)
        filler = fill(disk, leave=400_000)  # as much as one new figure takes, beside the old one
        with open(disk / "more", "wb") as more:
            more.write(bytes(200_000))
        assert figures.main() == 2
        assert "could not be written (No space left on device); free some space" in capsys.readouterr().err
        assert {(disk / name).read_bytes()[:3] for name in names} <= {b"old", b"new"}
        assert all((disk / name).stat().st_size == 300_000 for name in names)
        assert not list(disk.glob(".*"))
        filler.unlink()
        assert figures.main() == 0
        assert all((disk / name).read_bytes()[:3] == b"new" for name in names)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """A folder that this process may read and not write: root steps down to nobody, who owns nothing."""
    root = os.geteuid() == 0
    path.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o755)


def test_a_folder_that_becomes_read_only(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, calls = training.one_step, 0
    with tempfile.TemporaryDirectory() as name, ExitStack() as held:
        Path(name).chmod(0o755)
        path = Path(name) / "run"

        def one_step(*arguments: Any) -> float:
            nonlocal calls
            calls += 1
            if calls == 5:
                held.enter_context(read_only(path))
            return inner(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(training, "one_step", one_step)
            with pytest.raises(ka.KAError, match=r"could not be written|Permission denied"):
                train(config(path), bar=False)
            with pytest.raises(ka.KAError, match=r"cannot be written \(Permission denied\); choose another run_dir"):
                train(config(path), bar=False)
            held.close()
        saved = Run(path).resume()
        assert saved is not None
        assert saved["step"] == 3
        train(config(path), bar=False)
        assert same(finished, path)


@pytest.mark.parametrize("shift", [-(10**8), 10**8])
def test_a_clock_that_is_moved(shift: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By three years, in the middle of a run and between two starts of it; files seem to come from the future."""
    now, inner, calls, moved = time.time, training.one_step, 0, 0

    def one_step(*arguments: Any) -> float:
        nonlocal calls, moved
        calls += 1
        moved += shift
        if calls == 5:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(time, "time", lambda: now() + moved)
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "one_step", one_step)
        with pytest.raises(KeyboardInterrupt):
            train(config(path), bar=False)
    for file in path.iterdir():
        os.utime(file, (now() + shift, now() + shift))
    train(config(path), bar=False)
    assert same(finished, path)
    assert 0 < Run(path).metrics()["seconds"] < 3600


def test_processes_that_start_on_one_run_together(straight: tuple[Path, float], tmp_path: Path) -> None:
    """One trains; the others say so, and go on when it has ended."""
    path = tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(path), str(ITERATIONS), "0"]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    outs = [process.communicate()[1].decode() for process in several]
    codes = [process.returncode for process in several]
    assert codes.count(0) >= 1
    for code, text in zip(codes, outs, strict=True):
        assert code == 0 or "is in use: another process trains here" in text
    assert same(straight[0], path)


# Sweeps


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


def step_of(folder: Path, name: str) -> int:
    saved = Run(folder / "runs" / name).resume() if (folder / "runs" / name / "checkpoint.pt").exists() else None
    return -1 if saved is None else saved["step"]


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
        clock = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert time.monotonic() - clock < 6
        until(lambda: not family(folder), 10)
    assert sweep.main(sweep_arguments(folder)) == 0


# Notebooks


def test_ctrl_c_in_a_notebook_stops_it_within_two_seconds(tmp_path: Path) -> None:
    """Three times, at moments of a run; it then goes on, and ends with the same bits."""
    one, other = tmp_path / "straight", tmp_path / "stopped"
    code = """
    import torch
    torch.set_num_threads(1)
    from ka import notebook, train
    from workbook.training.config import Config
    config = Config.preset("smoke", run_dir={path!r}, iterations=60, device="cpu", checkpoint_every=0.0)
    run = train.train(config, watch=notebook.LiveCurves())
    """
    manager = KernelManager()
    manager.start_kernel(cwd=str(ROOT))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)

    def execute(path: Path, stop_at: int | None = None) -> tuple[str, float]:
        """How the cell ended, and after how many seconds from the interrupt."""
        message, stopped = client.execute(textwrap.dedent(code).format(path=str(path))), time.monotonic()
        if stop_at is not None:
            until(lambda: (path / "checkpoint.pt").exists() and step_at(path) >= stop_at)
            stopped = time.monotonic()
            manager.interrupt_kernel()
        while True:
            reply = client.get_shell_msg(timeout=300)
            if reply["parent_header"].get("msg_id") == message:
                ended = reply["content"]
                return ended.get("ename", ended["status"]), time.monotonic() - stopped

    def step_at(path: Path) -> int:
        saved = Run(path).resume()
        return -1 if saved is None else saved["step"]

    try:
        assert execute(one)[0] == "ok"
        for stop_at in (2, 20, 41):
            how, seconds = execute(other, stop_at)
            assert how == "KeyboardInterrupt"
            assert seconds < 2
        assert execute(other)[0] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert same(one, other)
    assert len(json.loads((other / "environment.json").read_text())["starts"]) == 4
