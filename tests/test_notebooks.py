"""The notebooks, through the doors that users take: papermill and nbval."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import ka

NOTEBOOKS = ROOT / "notebooks"


def papermill(notebook: str, out: Path, *parameters: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", "--log-level", "ERROR", str(NOTEBOOKS / notebook), str(out)]
    return subprocess.run([*command, *parameters], capture_output=True, text=True, check=False, cwd=cwd)


def nbval(notebook: Path) -> subprocess.CompletedProcess[str]:
    options = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "no:cacheprovider", "-q"]
    command = [sys.executable, "-m", "pytest", *options, "--override-ini", "addopts=", str(notebook)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=notebook.parent)


def outputs(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "".join(json.dumps(cell["outputs"]) for cell in cells if cell["cell_type"] == "code")


def test_train_through_papermill_then_nbval(tmp_path: Path) -> None:
    """From another folder, with a variant; the executed copy, run again, gives equal numbers."""
    out = tmp_path / "out.ipynb"
    run = papermill(
        "train.ipynb", out, "-p", "preset", "smoke", "-p", "variant", "kav1", "-p", "run_dir", "run", cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "metrics.json").exists()
    shown = outputs(out)
    for method in ("bicubic", "linear injection", "last", "average", "best"):
        assert f"| {method} |" in shown
    assert shown.count('"image/png"') == 5  # live curves, final curves, views, error maps, spectra
    shutil.rmtree(tmp_path / "run")  # trained again, not read again
    again = nbval(out)
    assert again.returncode == 0, again.stdout

    metrics = tmp_path / "run" / "metrics.json"  # and nbval would notice another number
    changed = json.loads(metrics.read_text())
    changed["methods"]["best"]["mean"]["psnr"] += 1
    metrics.write_text(json.dumps(changed))
    assert nbval(out).returncode != 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["-p", "variant", "kav99"], "unknown variant 'kav99'; choose one of psrt"),
        (["-p", "varient", "kav1"], "unknown parameter varient; allowed are preset, restart"),
        (["-p", "dataset", "cave", "-p", "data_root", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_parameters_end_papermill_with_an_error(parameters: list[str], message: str, tmp_path: Path) -> None:
    place = ["-p", "run_dir", str(tmp_path / "run")]
    run = papermill("train.ipynb", tmp_path / "out.ipynb", "-p", "preset", "smoke", *place, *parameters, cwd=tmp_path)
    assert run.returncode != 0
    assert message in run.stderr
    assert not (tmp_path / "run").exists()


COMMITTED = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb") if path.name != "train.ipynb")


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_outputs_are_what_the_notebook_gives(name: str) -> None:
    """nbval: text and tables are equal, pictures are drawn. (train.ipynb takes minutes: it runs with less, above.)"""
    run = nbval(NOTEBOOKS / name)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_every_notebook_is_committed_with_outputs(path: Path) -> None:
    """A cell that was not run would not be compared."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert any(cell["outputs"] for cell in cells)


@pytest.mark.parametrize(
    ("notebook", "parameters", "shown"),
    [
        ("attention.ipynb", {"model": "kav11", "layer": 12, "row": 0, "col": 47}, "kav11 has no kernel SA"),
        ("diagrams.ipynb", {"variant": "kav17", "dim": 32, "language": "zh"}, "image/png"),
        ("results.ipynb", {"protocol": "demo"}, "demo: 8 runs of 8 variants"),
    ],
)
def test_other_parameters(notebook: str, parameters: dict[str, object], shown: str, tmp_path: Path) -> None:
    given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    run = papermill(notebook, tmp_path / "out.ipynb", *given, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert json.dumps(shown)[1:-1] in outputs(tmp_path / "out.ipynb")


def test_a_cave_model_in_the_notebooks(cave_root: Path, tmp_path: Path) -> None:
    """Another number of bands than the models it is compared with."""
    ka.save_weights(tmp_path / "cave.safetensors", ka.build("kav6", dim=8))
    place = ["-p", "data_root", str(cave_root), "-p", "model", str(tmp_path / "cave.safetensors"), "-p", "layer", "9"]
    for notebook in ("kernels.ipynb", "attention.ipynb"):
        run = papermill(notebook, tmp_path / notebook, *place)
        assert run.returncode == 0, run.stderr
        assert all(word in outputs(tmp_path / notebook) for word in ("balloons", json.dumps("block 1, 2×2, L3")[1:-1]))


def test_unknown_parameters_are_errors(tmp_path: Path) -> None:
    run = papermill("kernels.ipynb", tmp_path / "out.ipynb", "-p", "modell", "kav1")
    assert run.returncode != 0
    assert "unknown parameter modell; allowed are" in run.stderr


def test_prepare_cave_then_train_on_its_files(cave_root: Path, tmp_path: Path) -> None:
    """Real scenes → HDF5 files → training from them, all through papermill."""
    scenes = ["-p", "scenes", "beads,pompoms,balloons", "-p", "patch", "64", "-p", "stride", "64"]
    run = papermill(
        "prepare_cave.ipynb",
        tmp_path / "p.ipynb",
        "-p",
        "data_root",
        str(cave_root),
        "-p",
        "out",
        str(tmp_path),
        *scenes,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "test_cave(with_up)x4.h5").exists()
    data = ["-p", "dataset", "h5", "-p", "data_root", str(tmp_path)]
    sizes = ["-p", "preset", "smoke", "-p", "patch", "64", "-p", "hold_out", "False", "-p", "iterations", "2"]
    run = papermill("train.ipynb", tmp_path / "t.ipynb", *data, *sizes, "-p", "run_dir", str(tmp_path / "run"))
    assert run.returncode == 0, run.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["methods"]["best"]["scenes"]) == 1
    assert metrics["methods"]["linear injection"]["mean"]["psnr"] > metrics["methods"]["bicubic"]["mean"]["psnr"]
