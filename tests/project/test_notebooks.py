"""Every notebook, in this process, with small parameters and from another folder; wrong parameters."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.display import Image
from notebooks_here import NOTEBOOKS, run_here

from ka.errors import KAError
from workbook import notebook
from workbook.training.run import Run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another working directory than the notebook's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "parameters", "shown", "pictures"),
    [
        ("attention", {"model": "kav11", "layer": 12, "row": 0, "col": 47}, "kav11 has no kernel SA", 4),
        ("audit", {"iterations": 8, "warmup": 2}, "every printed count is live + dead: True", 10),
        ("diagrams", {"variant": "kav17", "dim": 32}, "overview_all", 8),
        ("explore", {}, "", 0),
        ("kernels", {"layer": 9}, "block 1, 2×2, L3", 11),
        ("prepare_cave", {"patch": 32}, "synthetic scenes, no CAVE", 1),
        ("questions", {"protocol": "demo", "constant": "none", "adapting": "none"}, "demo: 7 runs of 7 variants", 3),
        ("results", {"protocol": "demo"}, "demo: 7 runs of 7 rows", 3),
        ("train", {"preset": "smoke", "variant": "kav1", "run_dir": "run"}, "run is finished: 6 iterations in", 5),
    ],
)
def test_it_runs(name: str, parameters: dict[str, object], shown: str, pictures: int, elsewhere: Path) -> None:
    printed, values = run_here(name, **parameters)
    assert shown in printed
    assert sum(isinstance(value, Image) for value in values) == pictures
    assert os.listdir(elsewhere) == (["run"] if name == "train" else [])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_misspelt_parameter_is_an_error(name: str, elsewhere: Path) -> None:
    with pytest.raises(KAError, match="parameter 'modell' is unknown"):
        run_here(name, modell="kav1")
    assert not os.listdir(elsewhere)


def test_data_that_are_not_there_train_nothing(elsewhere: Path) -> None:
    with pytest.raises(KAError, match="/nowhere/at/all"):
        run_here("train", preset="smoke", run_dir="run", dataset="cave", data_root="/nowhere/at/all")
    assert not os.listdir(elsewhere)


def test_own_runs_and_two_side_by_side(real: Run, tmp_path: Path) -> None:
    """A run of another protocol is named and left out of the table; beside another it is shown."""
    shutil.copytree(real.path, other := tmp_path / "my runs" / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 5}))
    printed, _ = run_here("results", protocol="demo", runs=str(tmp_path / "my runs"), compare=f"{real.path}, {other}")
    assert f"{other} is left out: " in printed
    assert "no runs are compared" not in printed
    pair = notebook.runs_beside(f"{real.path},{other}")
    assert list(pair) == [real.path.name, "other"]
    rows = {row[""]: (row[real.path.name], row["other"]) for row in notebook.beside(pair)}
    assert list(rows) == ["PSNR (dB)", "SAM (°)", "ERGAS", "training (min)", "parameters", "seed"]
    assert rows["seed"] == ("0", "5")
    scene, images = notebook.images_beside(pair)
    assert images["other"].shape == scene.gt.shape
    for wrong, why in ((str(other), "names no two runs"), (f"{other},{tmp_path}", "finished run folders are expected")):
        with pytest.raises(KAError, match=why):
            notebook.runs_beside(wrong)
