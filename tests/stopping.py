"""What tests ask of run folders, and do to those that write them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workbook.training.config import Config
from workbook.training.run import Run

WEIGHTS = ("best", "last", "average")

TRAINING = """
import json, os, signal, sys, torch
from pathlib import Path
fields, threads, left = map(json.loads, sys.argv[1:])
torch.set_num_threads(threads)
from workbook.training.config import Config
from workbook.training.train import train

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
train(Config(**fields), bar=False)
"""


def training(config: Config, kill_in_write: int = 0, out: Any = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
    """A process that trains; it kills itself in the middle of writing that checkpoint (never for 0)."""
    arguments = map(json.dumps, (config.to_dict(), torch.get_num_threads(), kill_in_write))
    return subprocess.Popen([sys.executable, "-c", TRAINING, *arguments], stdout=out, stderr=out)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """All weights of a run folder."""
    files = {name: load_file(path / f"{name}.safetensors") for name in WEIGHTS}
    return {f"{name}: {key}": value for name, state in files.items() for key, value in state.items()}


def history(path: Path) -> list[dict[str, Any]]:
    """What was noted during training, but for the time it took."""
    return [{key: value for key, value in note.items() if key != "seconds"} for note in Run(path).history()]


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights to the bit, and the same history."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) and history(one) == history(other)


def saved_step(path: Path) -> int:
    """The iteration of a run's checkpoint; -1 if there is none."""
    state = Run(path).resume() if path.exists() else None
    return -1 if state is None else state["step"]


def before_call(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
    action: Callable[[], object],
    when: Callable[..., bool] = lambda *_, **__: True,
) -> None:
    """Let something happen before the `number`-th call of a function, of those calls that `when` counts."""
    inner, calls = getattr(owner, name), 0

    def call(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += when(*arguments, **more)
        if calls == number and when(*arguments, **more):
            action()
        return inner(*arguments, **more)

    monkeypatch.setattr(owner, name, call)


def stop() -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt
