"""Fixtures. What lies in `../shared` is for the project's own CI; elsewhere the tests that need it are skipped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
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
