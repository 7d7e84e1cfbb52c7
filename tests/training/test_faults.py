"""What runs survive: kills, full disks, read-only folders, moved clocks, other processes, Ctrl-C: `make slow`.

Each ends with the bits of a run that nothing happened to. File systems that fill are small ones in memory, mounted for
the test: that needs root.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import stopping
from conftest import ROOT
from jupyter_client.manager import KernelManager
from stopping import before_call, same, saved_step, stop

from ka.errors import KAError
from workbook import figures
from workbook.training import finish
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.step import Step
from workbook.training.train import train

pytestmark = pytest.mark.slow

Smoke = Callable[..., Config]
ITERATIONS = 24
TRIES = 20
IN_A_WRITE = 6  # of the tries: in the middle of writing a checkpoint


def begun(config: Config, kill_in_write: int = 0) -> "subprocess.Popen[bytes]":
    """A process that trains, past its imports; what it prints is in a file beside the run."""
    log = Path(config.run_dir or "").with_suffix(".log")
    with open(log, "wb") as out:
        process = stopping.training(config, kill_in_write, out)
    until(lambda: log.read_bytes().startswith(b"ready\n") or process.poll() is not None)
    return process


def until(what: Callable[[], bool], seconds: float = 180) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing happens to, and its seconds."""
    path = tmp_path_factory.mktemp("faults") / "straight"
    process = begun(smoke(path, iterations=ITERATIONS, checkpoint_every=0.0))
    clock = time.monotonic()
    assert process.wait() == 0
    return path, time.monotonic() - clock


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
def test_killed_at_twenty_moments_it_ends_with_the_same_bits(
    straight: tuple[Path, float], smoke: Smoke, tmp_path: Path
) -> None:
    """One kill a run, at a random moment from its first iteration to its end, six of them inside a checkpoint."""
    whole, seconds = straight
    drawn, moments, survived = random.Random(0), [], []
    for number in range(TRIES):
        path = tmp_path / str(number)
        config = smoke(path, iterations=ITERATIONS, checkpoint_every=0.0)
        if number < IN_A_WRITE:
            process = begun(config, kill_in_write=drawn.randint(1, ITERATIONS))
        else:
            process = begun(config)
            try:
                process.wait(drawn.uniform(0.0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        code = process.wait()
        moments.append(saved_step(path))
        assert code in (0, -signal.SIGKILL), path.with_suffix(".log").read_text()
        train(config, bar=False)
        survived.append(same(whole, path) and not list(path.glob(".*.part")))
    print(f"\nkilled after the checkpoint of iteration {moments} of {ITERATIONS}: {sum(survived)} of {TRIES} survived")
    assert all(survived)
    assert len(set(moments)) > TRIES // 3  # the moments were spread


def test_a_stopped_process_holds_its_folder(smoke: Smoke, tmp_path: Path) -> None:
    config = smoke(tmp_path / "busy", iterations=200, checkpoint_every=0.0)
    process = begun(config)
    try:
        until(lambda: saved_step(tmp_path / "busy") >= 1)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(KAError, match="busy is in use"):
            train(config, bar=False)
    finally:
        process.kill()
        process.wait()
    assert train(config, bar=False).finished


@pytest.mark.parametrize(
    "what", ["checkpoint.pt", "history.jsonl", "best.safetensors", "last.safetensors", "metrics.json"]
)
def test_a_disk_that_is_full_when_a_file_is_written(
    what: str, finished: Path, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file system of 8 MB nothing is left when the file is to be written the second time (or the only one)."""
    with mounted(tmp_path / "disk") as disk:
        path = disk / "run"
        owner, name, number = {
            "checkpoint.pt": (Run, "save", 2),
            "history.jsonl": (Run, "note", 1),
            "metrics.json": (finish, "write_json", 1),
            "best.safetensors": (Run, "save_model", 3),  # the first two come with the first validation
            "last.safetensors": (Run, "save_model", 1),
        }[what]

        def of_this_file(*arguments: Any, **_: Any) -> bool:
            return name != "save_model" or f"{arguments[1]}.safetensors" == what

        before_call(monkeypatch, owner, name, number, lambda: fill(disk), of_this_file)
        with pytest.raises(KAError, match=r"No space left on device.*free some space") as error:
            train(smoke(path), bar=False)
        assert what in str(error.value)
        assert not list(path.glob(".*.part"))
        assert not Run(path).finished
        # The first line of the history comes before the first checkpoint; later ones may fit its page.
        assert (saved_step(path) == -1) == (what == "history.jsonl")
        (disk / "filler").unlink()
        train(smoke(path), bar=False)
        assert same(finished, path)


def test_a_disk_that_is_full_when_figures_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make figures` ends with one line; figures are the old or the new ones, never half of one."""
    with mounted(tmp_path / "disk") as disk:
        names = ("a.svg", "b.png", "c.svg")
        monkeypatch.setattr(figures, "FOLDER", disk)
        monkeypatch.setattr(figures, "DOCUMENTS", {})
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


def test_a_folder_that_becomes_read_only(
    finished: Path, tiny_h5: Path, smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        Path(name).chmod(0o755)
        path, data = Path(name) / "run", Path(name) / "data"
        shutil.copytree(tiny_h5, data)  # where the user who may not write can read it
        data.chmod(0o755)
        with monkeypatch.context() as patch:
            before_call(patch, Step, "__call__", 5, lambda: stack.enter_context(read_only(path)))
            with pytest.raises(KAError, match="could not be written"):
                train(smoke(path, data_root=str(data)), bar=False)
            with pytest.raises(KAError, match=r"cannot be written \(Permission denied\); choose another run_dir"):
                train(smoke(path, data_root=str(data)), bar=False)
            stack.close()
        assert saved_step(path) == 3
        train(smoke(path, data_root=str(data)), bar=False)
        assert same(finished, path)


@pytest.mark.parametrize("shift", [-(10**8), 10**8])
def test_a_clock_that_is_moved(
    shift: int, finished: Path, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By three years an iteration, and between two starts of a run; files seem to come from the future."""
    now, moments = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now() + shift * next(moments))
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_call(patch, Step, "__call__", 5, stop)
        with pytest.raises(KeyboardInterrupt):
            train(smoke(path), bar=False)
    for file in path.iterdir():
        os.utime(file, (now() + shift, now() + shift))
    train(smoke(path), bar=False)
    assert same(finished, path)
    assert 0 < Run(path).metrics()["seconds"] < 3600


def test_processes_that_start_on_one_run_together(straight: tuple[Path, float], smoke: Smoke, tmp_path: Path) -> None:
    """One trains; the others say so, and go on when it has ended."""
    path = tmp_path / "run"
    config = smoke(path, iterations=ITERATIONS, checkpoint_every=0.0)
    several = [stopping.training(config, out=subprocess.PIPE) for _ in range(4)]
    printed = [process.communicate()[1].decode() for process in several]
    codes = [process.returncode for process in several]
    assert codes.count(0) >= 1
    for code, text in zip(codes, printed, strict=True):
        assert code == 0 or "is in use: another process trains here" in text
    assert same(straight[0], path)


# Notebooks


def test_ctrl_c_in_a_notebook_stops_it(smoke: Smoke, tmp_path: Path) -> None:
    """Three times, at moments of a run; it then goes on, and ends with the same bits."""
    one, other = tmp_path / "straight", tmp_path / "stopped"
    code = """
    import json, torch
    torch.set_num_threads(1)
    from workbook import notebook
    from workbook.training.config import Config
    from workbook.training.train import train
    run = train(Config(**json.loads({config!r})), watch=notebook.LiveCurves())
    """
    manager = KernelManager()
    manager.start_kernel(cwd=str(ROOT))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)

    def execute(path: Path, stop_at: int | None = None) -> str:
        """How the cell ended."""
        config = smoke(path, iterations=360, eval_every=120, checkpoint_every=0.0).to_dict()
        message = client.execute(textwrap.dedent(code).format(config=json.dumps(config)))
        if stop_at is not None:
            until(lambda: saved_step(path) >= stop_at)
            manager.interrupt_kernel()
        while True:
            try:
                reply = client.get_shell_msg(timeout=300 if stop_at is None else 3)
            except Empty:  # Python drops an interrupt that falls into a weak reference's callback: one presses again
                manager.interrupt_kernel()
                continue
            if reply["parent_header"].get("msg_id") == message:
                return reply["content"].get("ename", reply["content"]["status"])

    try:
        assert execute(one) == "ok"
        for stop_at in (2, 30, 60):
            assert execute(other, stop_at) == "KeyboardInterrupt"
            assert saved_step(other) < 360
        assert execute(other) == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert same(one, other)
    assert len(json.loads((other / "environment.json").read_text())["starts"]) == 4
