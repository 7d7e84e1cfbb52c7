"""docs/own-model.md, as it is printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


def test_the_example_runs_as_the_page_prints_it(tmp_path: Path) -> None:
    """In a copy of the packages and the notebooks, where `results/` is the copy's."""
    for folder in ("ka", "workbook", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "docs" / "own-model.md").read_text()
    network, commands, use = re.findall(r"^```(?:python)?\n(.+?)^```$", page, re.S | re.M)
    (tmp_path / "mynet.py").write_text(network)
    (tmp_path / "use.py").write_text(use + "print(tuple(sharp.shape), ka.__file__)\n")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    for command in [*commands.strip().splitlines(), "python use.py"]:
        asked = {"shell": True, "cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **asked)
        assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    assert done.stdout.startswith(f"(200, 144, 48) {tmp_path}")
    assert {path.stem for path in tmp_path.glob("results/mine/*")} == {"mynet.SmallNet-seed0", "kav11-seed0"}
    shown = str(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert "mine: 2 runs of 2 rows" in shown
    assert "mynet:SmallNet" in shown
