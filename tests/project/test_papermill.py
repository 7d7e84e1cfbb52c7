"""The notebooks through the doors that users take: papermill, and nbval on what is committed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.display import Image
from notebooks_here import NOTEBOOKS, code, run_here
from PIL import Image as Picture

import ka

pytestmark = pytest.mark.slow

COMPARED = [name for name in NOTEBOOKS if name != "train"]  # it takes minutes, and is run below with less


def papermill(name: str, out: Path, *parameters: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", "--log-level", "ERROR", str(NOTEBOOKS[name]), str(out)]
    return subprocess.run([*command, *parameters], capture_output=True, text=True, check=False, cwd=cwd)


def nbval(path: Path, *options: str) -> str:
    """What nbval prints of a notebook: pytest's words."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]
    given = ["-p", "no:cacheprovider", "--color=no", "--override-ini", "addopts=", *options, path.name]
    return subprocess.run([*command, *given], capture_output=True, text=True, check=False, cwd=path.parent).stdout


@pytest.mark.parametrize("name", COMPARED)
def test_committed_outputs_are_what_the_notebook_gives(name: str) -> None:
    """Text and tables are equal, pictures are drawn."""
    printed = nbval(NOTEBOOKS[name], "-q")
    assert f"{len(code(NOTEBOOKS[name]))} passed" in printed, printed
    assert "failed" not in printed, printed


def test_train_through_papermill_then_nbval(tmp_path: Path) -> None:
    """From another folder, with a variant; nbval runs the executed copy again and sees the one number changed in it."""
    out = tmp_path / "out.ipynb"
    given = ["-p", "preset", "smoke", "-p", "variant", "kav1", "-p", "run_dir", "run"]
    run = papermill("train", out, *given, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "TCP" not in run.stderr  # of what nobody can change who starts it
    assert (tmp_path / "run" / "metrics.json").exists()
    shown = "".join(json.dumps(cell.outputs) for cell in code(out))
    for method in ("bicubic", "linear injection", "local injection", "best"):
        assert f"| {method} |" in shown
    assert shown.count('"image/png"') == 6  # live curves, final curves, views, error maps, spectra, residuals

    shutil.rmtree(tmp_path / "run")  # trained again, not read again
    executed = nbformat.read(out, as_version=4)
    (table,) = [cell.outputs[0].data for cell in executed.cells if "notebook.results(" in cell.source]
    (row,) = [line for line in table["text/markdown"].splitlines() if line.startswith("| best |")]
    digit = row.index(".") + 3  # the third decimal of the PSNR
    changed = row[:digit] + str((int(row[digit]) + 1) % 10) + row[digit + 1 :]
    table["text/markdown"] = table["text/markdown"].replace(row, changed)
    nbformat.write(executed, out)
    again = nbval(out, "-vv")
    assert f"1 failed, {len(code(out)) - 1} passed" in again, again
    differing = [line.strip() for line in again.splitlines() if line.strip().startswith(("- |", "+ |"))]
    assert set(differing) == {f"- {row}", f"+ {changed}"}, again


def test_a_mistake_ends_papermill_with_one_line(tmp_path: Path) -> None:
    given = ["-p", "preset", "smoke", "-p", "run_dir", str(tmp_path / "run"), "-p", "variant", "KAv1"]
    run = papermill("train", tmp_path / "out.ipynb", *given, cwd=tmp_path)
    assert run.returncode != 0
    _, cell = run.stderr.split("Exception encountered at")
    (line,) = [line for line in cell.splitlines()[1:] if line.strip()]
    assert line.startswith("KAError: variant 'KAv1' is unknown; did you mean 'kav1'?")
    assert not (tmp_path / "run").exists()


def test_a_cave_model_in_the_notebooks(cave_root: Path, tmp_path: Path) -> None:
    """Another number of bands than the models it is compared with."""
    model = tmp_path / "cave.safetensors"
    ka.save_weights(model, ka.build("kav6", dim=8))
    for notebook, pictures in (("kernels", 11), ("attention", 6)):
        printed, values = run_here(notebook, data_root=str(cave_root), model=str(model), layer=9)
        assert "balloons" in printed
        assert "block 1, 2×2, L3" in printed
        assert sum(isinstance(value, Image) for value in values) == pictures


def test_a_run_of_other_data_in_the_notebooks(finished: Path) -> None:
    """Four bands, of HDF5 files: it is shown on the test scenes of its own configuration."""
    for notebook, pictures in (("kernels", 11), ("attention", 4)):
        printed, values = run_here(notebook, runs=str(finished.parent), model=str(finished), layer=9)
        assert "test_0" in printed
        assert sum(isinstance(value, Image) for value in values) == pictures


@pytest.fixture
def corners(cave_root: Path, tmp_path: Path) -> Path:
    """The upper left 192×192 pixels of three scenes."""
    for path in cave_root.glob("*/*/*.png"):
        if path.name.split("_ms_")[0] in ("beads", "pompoms", "balloons"):
            there = tmp_path / "CAVE" / path.relative_to(cave_root)
            there.parent.mkdir(parents=True, exist_ok=True)
            with Picture.open(path) as band:
                band.crop((0, 0, 192, 192)).save(there)
    return tmp_path / "CAVE"


def test_prepare_cave_then_train_on_its_files(corners: Path, tmp_path: Path) -> None:
    """Real scenes → HDF5 files, through papermill → training from them."""
    place = ["-p", "data_root", str(corners), "-p", "out", str(tmp_path)]
    scenes = ["-p", "scenes", "beads,pompoms,balloons", "-p", "patch", "64", "-p", "stride", "64"]
    run = papermill("prepare_cave", tmp_path / "p.ipynb", *place, *scenes)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "test_cave(with_up)x4.h5").exists()
    data = {"dataset": "h5", "data_root": str(tmp_path), "patch": 64, "hold_out": False}
    run_here("train", preset="smoke", iterations=3, run_dir=str(tmp_path / "run"), **data)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["methods"]["best"]["scenes"]) == 1
    assert metrics["methods"]["linear injection"]["mean"]["psnr"] > metrics["methods"]["bicubic"]["mean"]["psnr"]
