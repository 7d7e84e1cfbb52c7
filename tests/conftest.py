"""Fixtures. What lies in `../shared` is for the project's own CI; elsewhere the tests that need it are skipped."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from ka.data import Degradation, SceneSet, observe
from workbook.training.config import Config
from workbook.training.train import train

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["finished_runs"]
SHARED = ROOT.parent / "shared"


def pytest_configure() -> None:
    """Tests press Ctrl-C; a shell that starts this in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's reference material; in CI it must be there."""
    if not (SHARED / "golden").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is missing: in CI nothing may be skipped")
        pytest.skip(f"{SHARED} is not here")
    return SHARED


@pytest.fixture(scope="session")
def cave_root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 11 test and two training scenes of CAVE, laid out as their download: once for all of xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cave"
    with FileLock(f"{root}.lock"):
        if not root.exists():
            tool, unfinished = shared / "tools" / "cave.py", root.with_suffix(".unfinished")
            names = [path.stem for path in sorted((shared / "cave" / "test").glob("*.xz"))] + ["beads", "pompoms"]
            halves = [subprocess.Popen([sys.executable, str(tool), str(unfinished), *names[i::2]]) for i in range(2)]
            assert [half.wait() for half in halves] == [0, 0]
            unfinished.rename(root)
    return root


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_h5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of HDF5 files, laid out as the published ones: smooth scenes of 4 bands and 32×32 pixels."""
    from workbook.prepare_cave import write_h5  # noqa: PLC0415  (a second for matplotlib that other tests need not pay)

    folder, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    srf = np.array([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]])
    y, x = np.mgrid[:32, :32] / 32
    for split, file, count in (("train", "train", 2), ("val", "validation", 1), ("test", "test", 2)):
        scenes = []
        for number in range(count):
            waves = rng.uniform(2, 20, (4, 2, 1, 1)), rng.uniform(0, 6, (4, 1, 1))
            gt = 0.5 + 0.4 * np.sin(waves[0][:, 0] * x + waves[0][:, 1] * y + waves[1])
            scenes.append(observe(f"{split}_{number}", gt.astype(np.float32), srf, Degradation()))
        scene_set = SceneSet("h5", split, Degradation(), None, (3, 2, 1), ("R", "G", "B"), scenes)
        write_h5(folder / f"{file}_cave(with_up)x4.h5", scene_set, {})
    return folder


@pytest.fixture(scope="session")
def smoke(tiny_h5: Path) -> Callable[..., Config]:
    """`smoke(path, **changes)`: a run of a second on `tiny_h5`, 32 patches, in the folder `path`."""

    def smoke(path: Path, **changes: Any) -> Config:
        fields = {"dataset": "h5", "data_root": str(tiny_h5), "stride": 4, "device": "cpu", "run_dir": str(path)}
        return Config.preset("smoke", **fields | changes)

    return smoke


@pytest.fixture(scope="session")
def finished(smoke: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `smoke`, to be read."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(smoke(path), bar=False)
    return path
