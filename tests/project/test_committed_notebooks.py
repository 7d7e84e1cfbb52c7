"""The notebooks as they are committed, through nbval: what they show is what they give."""

import re
import subprocess
import sys
from collections import Counter
from xml.etree import ElementTree

import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = {path.name: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
COMPARED = [
    name for name in NOTEBOOKS if name != "train.ipynb"
]  # it takes minutes: test_notebooks.py runs it with less


def code(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counter[str], Counter[str], str]:
    """nbval on all of them, each in a kernel of its own: cells that ran, cells that failed, what was printed."""
    report = tmp_path_factory.mktemp("nbval") / "report.xml"
    options = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "no:cacheprovider", "-q"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "--override-ini",
        "addopts=",
        f"--junitxml={report}",
        *COMPARED,
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT / "notebooks").stdout
    ran, failed = Counter[str](), Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        (name,) = re.findall(r"\w+\.ipynb$", case.attrib["classname"])
        ran[name] += 1
        failed[name] += len(case)  # a failure, an error or a skip
    return ran, failed, printed


@pytest.mark.parametrize("name", COMPARED)
def test_committed_outputs_are_what_the_notebook_gives(
    name: str, checked: tuple[Counter[str], Counter[str], str]
) -> None:
    """Text and tables are equal, pictures are drawn."""
    ran, failed, printed = checked
    assert (ran[name], failed[name]) == (len(code(name)), 0), printed


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_is_committed_with_outputs(name: str) -> None:
    """A cell that was not run would not be compared."""
    assert all(cell.execution_count for cell in code(name))
    assert any(cell.outputs for cell in code(name))
