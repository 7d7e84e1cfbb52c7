"""Data as users have them: bands without signal, black scenes, NaN in some patch, moved, on another machine."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from notebooks_here import run_here
from stopping import before_call, same, stop

import ka
from ka.data import Degradation
from ka.data.h5 import FIELDS
from ka.data.own.files import Reading
from ka.errors import KAError
from workbook import notebook
from workbook.explorer.catalog import finished_runs
from workbook.results import report, stored
from workbook.results.table import table as table_of
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.step import Step
from workbook.training.train import train
from workbook.views.plots import curves

Smoke = Callable[..., Config]
Slice = tuple[int | slice, ...]


@pytest.fixture
def changed(tiny_h5: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny files with one value in some places: `changed({split: index into rows, bands, …})`."""

    def change(places: dict[str, Slice], value: float = 0, fields: Sequence[str] = ("GT", "HSI_up", "LRHSI")) -> Path:
        folder = tmp_path / "data"
        shutil.copytree(tiny_h5, folder)
        for split, place in places.items():
            with h5py.File(folder / f"{split}_cave(with_up)x4.h5", "r+") as file:
                for field in fields:
                    file[field][place] = value
        return folder

    return change


def test_a_gap_in_the_detector(
    changed: Callable[..., Path], smoke: Smoke, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One band is zero in all scenes: said once, and left out; the rest is as ever."""
    band = (slice(None), 2)
    data = changed({"train": band, "validation": band, "test": band})
    with caplog.at_level(logging.WARNING, "ka"):
        run = train(smoke(tmp_path / "run", data_root=str(data)), bar=False)
    assert [text.partition(" in ")[2] for text in caplog.messages] == ["train, val, test: band 2 of all scenes"]
    notes = [(note[key], note["step"], key) for note in run.history() for key in ("psnr", "psnr_average")]
    _, step, key = max(notes)
    assert run.metrics()["best"] == {"step": step, "weights": "average" if key == "psnr_average" else "last"}
    scene = ka.data.load("h5", "test", data)[0].load()
    up, gt = (torch.from_numpy(np.delete(x, 2, 0))[None] for x in (scene.up, scene.gt))
    measured = run.metrics()["methods"]["bicubic"]["scenes"][scene.name]
    assert measured["psnr"] == float(ka.metrics.psnr(up, gt))
    assert measured["ergas"] == float(ka.metrics.ergas(up, gt, 4))
    assert "undefined" not in str(notebook.results(run.metrics()))
    stored.export(run, tmp_path / "results", "mine")
    assert ka.load_checkpoint(stored.ship(run, tmp_path / "kept")).n_bands == 4


def test_a_black_scene_and_nothing_to_validate_on(changed: Callable[..., Path], smoke: Smoke, tmp_path: Path) -> None:
    """One of two test scenes is left out of means, which say so; weights are chosen by what is left, the RMSE."""
    data = changed({"validation": (slice(None),), "test": (0,)}, fields=list(FIELDS.values()))
    run = train(smoke(tmp_path / "run", data_root=str(data)), bar=False)
    notes = [(note[key], note["step"], key) for note in run.history() for key in ("rmse", "rmse_average")]
    best, step, key = min(notes)
    if best:  # else both are perfect, and the first counts
        assert run.metrics()["best"] == {"step": step, "weights": "average" if key == "rmse_average" else "last"}
    assert {note["psnr"] for note in run.history()} == {None}
    curves(run.history())
    (bicubic, *_) = notebook.results(run.metrics())
    assert bicubic["PSNR (dB)"].endswith(" (1 of 2 scenes)")
    assert "scenes" not in bicubic["RMSE"]
    table = table_of([stored.Result.of(stored.Record.of(run), run.path)])
    (row,) = [row for row in table.rows if row.name == "kav11"]
    assert math.isfinite(row.stats["psnr"].mean)
    assert "left out of a mean" in report.to_markdown(table)
    metrics = run.metrics()
    metrics["methods"]["bicubic"]["mean"]["psnr"] = None  # as in every scene, and in files of former versions
    assert notebook.results(metrics)[0]["PSNR (dB)"] == "undefined"


def test_nan_in_a_late_patch_is_found_at_the_start(changed: Callable[..., Path], smoke: Smoke, tmp_path: Path) -> None:
    data = changed({"train": (1, 2, 30, 31)}, math.nan, ["RGB"])
    with pytest.raises(KAError, match=r"train_cave\(with_up\)x4.h5: RGB, row 1: NaN in data"):
        train(smoke(tmp_path / "run", data_root=str(data)), bar=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_goes_on_where_its_data_were_moved(
    tiny_h5: Path, finished: Path, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or are named otherwise; not with other data, whatever they are called."""
    shutil.copytree(tiny_h5, tmp_path / "data")
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_call(patch, Step, "__call__", 4, stop)
        with pytest.raises(KeyboardInterrupt):
            train(smoke(path, data_root=str(tmp_path / "data")), bar=False)
    shutil.move(tmp_path / "data", tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "other")
    with h5py.File(tmp_path / "other" / "train_cave(with_up)x4.h5", "r+") as file:
        file["LRHSI"][1, 2, 3, 4] = 0.123
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KAError, match=r"run was begun on other data than these .*; give those, choose another run_dir"):
        train(smoke(path, data_root="other"), bar=False)
    train(smoke(path, data_root="moved"), bar=False)
    assert same(finished, path)
    (tmp_path / "link").symlink_to("moved")
    for name in ("link", str(tmp_path / "moved"), "nowhere"):
        assert train(smoke(path, data_root=name), bar=False).finished
    with pytest.raises(KAError, match="begun on other data"):
        train(smoke(path, data_root="other"), bar=False)


def test_a_run_goes_on_with_the_response_that_it_began_with(
    smoke: Smoke, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any file that holds it; runs of former versions noted nothing of it."""
    nm, files = np.linspace(450, 950, 7), [tmp_path / f"{name}.csv" for name in ("first", "moved", "other")]
    curves = np.random.default_rng(0).random((3, 7))
    np.save(tmp_path / "x.npy", np.random.default_rng(1).random((7, 32, 160), np.float32))
    for path, values in zip(files, (curves, curves, curves[::-1]), strict=True):
        np.savetxt(path, np.column_stack([nm, values.T]), delimiter=",")

    def run(srf: Path | str) -> Config:
        own = {"dataset": "files", "data_root": str(tmp_path / "x.npy"), "wavelengths": "450,950", "stride": 16}
        return smoke(tmp_path / "run", srf=str(srf), **own)

    def begins(srf: Path) -> None:
        with monkeypatch.context() as patch:
            before_call(patch, Step, "__call__", 1, stop)
            with pytest.raises(KeyboardInterrupt):
                train(run(srf), bar=False)

    begins(files[0])
    environment = tmp_path / "run" / "environment.json"
    noted = json.loads(environment.read_text())
    environment.write_text(json.dumps({key: value for key, value in noted.items() if key != "srf"}))
    with pytest.raises(KAError, match=r"holds another run \(srf: .*moved\.csv"):
        train(run(files[1]), bar=False)
    with pytest.raises(KAError, match=r"holds another run \(srf: "):
        train(run("ikonos"), bar=False)
    environment.write_text(json.dumps(noted))
    kept = files[0].read_bytes()
    files[0].write_bytes(files[2].read_bytes())
    for path in (files[0], files[2]):
        with pytest.raises(KAError, match=r"run was begun with another response than this .*; give that"):
            train(run(path), bar=False)
    begins(files[1])
    files[0].write_bytes(kept)
    (tmp_path / "run" / "metrics.json").write_text("{}")  # finished: the same, as far as it shows
    for path in (files[1], files[0], tmp_path / "nowhere.csv"):
        assert train(run(path), bar=False).finished
    with pytest.raises(KAError, match="begun with another response"):
        train(run(files[2]), bar=False)
    shutil.copytree(finished, tmp_path / "kept")
    config = json.loads((finished / "config.json").read_text())
    (tmp_path / "kept" / "config.json").write_text(json.dumps(config | {"dataset": "files", "srf": str(files[0])}))
    assert stored.Record.of(Run(tmp_path / "kept")).config["srf"] == "first.csv"


def test_weights_say_the_unit_of_what_they_were_trained_on(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.linspace(0, 3900, 7 * 32 * 160, dtype=np.float32).reshape(7, 32, 160))
    reading = Reading(wavelengths="450,950")
    scenes = ka.data.load("files", "test", tmp_path / "x.npy", Degradation(), reading=reading)
    Run(tmp_path).save_model("best", ka.build("conv3x3", 7, scenes.n_msi, dim=8), 1, "last", scenes)
    assert ka.load_checkpoint(tmp_path / "best.safetensors").unit == 4095


def test_a_finished_run_is_shown_without_its_data(
    tiny_h5: Path, finished: Path, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its folder alone; with pictures where the data are given."""
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "theirs")
    shutil.copytree(finished, run.path)
    (run.path / "config.json").unlink()
    run.start(smoke(run.path, data_root="/their/data"))
    printed, values = run_here("train", run_dir="theirs")
    assert "without pictures: /their/data: no such file or folder" in printed
    assert "theirs was finished before (restart=True trains it again): 6 iterations in" in printed
    shown = "".join(str(getattr(value, "data", "")) for value in values)
    assert "/their/data" in shown
    assert "| bicubic |" in shown
    pictures = sum(type(value).__name__ == "Image" for value in values)
    printed, values = run_here("train", run_dir="theirs", data_root=str(tiny_h5))
    assert sum(type(value).__name__ == "Image" for value in values) == pictures + 4
    with pytest.raises(KAError, match="/their/data: no such file or folder"):
        run_here("train", run_dir="theirs", preset="smoke", dataset="h5", data_root="/their/data", restart=True)


def test_home(tiny_h5: Path, finished: Path, smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~`, which no shell expands in a notebook."""
    monkeypatch.setenv("HOME", str(finished.parent))
    config = smoke(finished, data_root="~/data", run_dir="~/finished")
    assert (config.data_root, config.run_dir) == (str(finished.parent / "data"), str(finished))
    assert smoke(finished, data_root="~nobody-of-this-name/x").data_root == "~nobody-of-this-name/x"
    assert ka.load_checkpoint("~/finished").row.name == "kav11"
    assert len(stored.from_runs("~/")) == len(finished_runs("~/")) > 0
    ka.save_weights("~/home.safetensors", ka.build("kav1", 4, 3, 8))
    assert (finished.parent / "home.safetensors").exists()
    monkeypatch.setenv("HOME", str(tiny_h5.parent))
    assert len(ka.data.load("h5", "train", f"~/{tiny_h5.name}")) == 2
