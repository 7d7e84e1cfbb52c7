"""The notebooks with parameters: through papermill, as users start them, and cell by cell in this process."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from IPython.display import Image
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image as Picture

import ka

NOTEBOOKS = ROOT / "notebooks"


def papermill(notebook: str, out: Path, *parameters: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", "--log-level", "ERROR", str(NOTEBOOKS / notebook), str(out)]
    return subprocess.run([*command, *parameters], capture_output=True, text=True, check=False, cwd=cwd)


def cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs(path: Path) -> str:
    return "".join(json.dumps(cell.outputs) for cell in cells(path))


def run_here(notebook: str, **parameters: object) -> tuple[str, list[object]]:
    """Run a notebook without a kernel, parameters injected by papermill: what it printed, and the cells' values."""
    given = parameterize_notebook(load_notebook_node(str(NOTEBOOKS / notebook)), parameters)
    namespace: dict[str, object] = {"In": (executed := [])}
    printed, values = StringIO(), []
    with redirect_stdout(printed):
        for cell in given.cells:
            if cell.cell_type == "code":
                executed.append(cell.source)
                body = ast.parse(cell.source).body
                value = body.pop() if isinstance(body[-1], ast.Expr) else None
                exec(compile(ast.Module(body, []), notebook, "exec"), namespace)
                if value is not None:
                    values.append(eval(compile(ast.Expression(value.value), notebook, "eval"), namespace))
    return printed.getvalue(), values


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another working directory than the notebook's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_through_papermill_then_nbval(tmp_path: Path) -> None:
    """From another folder, with a variant; nbval runs the executed copy again and sees the one number changed in it."""
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
    executed = nbformat.read(out, as_version=4)
    (table,) = [cell.outputs[0].data for cell in executed.cells if "notebook.results(" in cell.source]
    (row,) = [line for line in table["text/markdown"].splitlines() if line.startswith("| best |")]
    digit = row.index(".") + 3  # the third decimal of the PSNR
    changed = row[:digit] + str((int(row[digit]) + 1) % 10) + row[digit + 1 :]
    table["text/markdown"] = table["text/markdown"].replace(row, changed)
    nbformat.write(executed, out)
    options = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "no:cacheprovider", "-vv"]
    command = [sys.executable, "-m", "pytest", *options, "--color=no", "--override-ini", "addopts=", str(out)]
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path).stdout
    assert f"1 failed, {len(cells(out)) - 1} passed" in again, again
    differing = [line.strip() for line in again.splitlines() if line.strip().startswith(("- |", "+ |"))]
    assert set(differing) == {f"- {row}", f"+ {changed}"}, again


def test_bad_parameters_end_papermill_with_an_error(tmp_path: Path) -> None:
    given = ["-p", "preset", "smoke", "-p", "run_dir", str(tmp_path / "run"), "-p", "variant", "kav99"]
    run = papermill("train.ipynb", tmp_path / "out.ipynb", *given, cwd=tmp_path)
    assert run.returncode != 0
    assert "unknown variant 'kav99'; choose one of psrt" in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"varient": "kav1"}, "unknown parameter varient; allowed are preset, restart"),
        ({"dataset": "cave", "data_root": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_bad_parameters_train_nothing(parameters: dict[str, object], message: str, elsewhere: Path) -> None:
    with pytest.raises(ka.KAError, match=message):
        run_here("train.ipynb", preset="smoke", run_dir=str(elsewhere / "run"), **parameters)
    assert not os.listdir(elsewhere)


@pytest.mark.parametrize("name", ["attention", "audit", "diagrams", "explore", "kernels", "questions", "results"])
def test_unknown_parameters_are_errors(name: str) -> None:
    with pytest.raises(ka.KAError, match="unknown parameter modell; allowed are"):
        run_here(f"{name}.ipynb", modell="kav1")


@pytest.mark.parametrize(
    ("notebook", "parameters", "shown", "pictures"),
    [
        ("attention", {"model": "kav11", "layer": 12, "row": 0, "col": 47}, "kav11 has no kernel SA", 4),
        ("diagrams", {"variant": "kav17", "dim": 32, "language": "zh"}, "overview_all_zh", 8),
        ("results", {"protocol": "demo"}, "demo: 8 runs of 8 variants", 2),
        ("questions", {"protocol": "demo", "constant": "none"}, "demo: 8 runs of 8 variants", 2),
    ],
)
def test_other_parameters(
    notebook: str, parameters: dict[str, object], shown: str, pictures: int, elsewhere: Path
) -> None:
    printed, values = run_here(f"{notebook}.ipynb", **parameters)
    assert shown in printed
    assert sum(isinstance(value, Image) for value in values) == pictures
    assert not os.listdir(elsewhere)


def test_a_cave_model_in_the_notebooks(cave_root: Path, elsewhere: Path) -> None:
    """Another number of bands than the models it is compared with."""
    model = elsewhere / "cave.safetensors"
    ka.save_weights(model, ka.build("kav6", dim=8))
    for notebook, pictures in (("kernels.ipynb", 11), ("attention.ipynb", 6)):
        printed, values = run_here(notebook, data_root=str(cave_root), model=str(model), layer=9)
        assert "balloons" in printed
        assert "block 1, 2×2, L3" in printed
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
    run = papermill("prepare_cave.ipynb", tmp_path / "p.ipynb", *place, *scenes)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "test_cave(with_up)x4.h5").exists()
    data = {"dataset": "h5", "data_root": str(tmp_path), "patch": 64, "hold_out": False}
    run_here("train.ipynb", preset="smoke", iterations=2, run_dir=str(tmp_path / "run"), **data)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["methods"]["best"]["scenes"]) == 1
    assert metrics["methods"]["linear injection"]["mean"]["psnr"] > metrics["methods"]["bicubic"]["mean"]["psnr"]
