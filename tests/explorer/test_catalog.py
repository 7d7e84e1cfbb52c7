"""Models and images by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ka
from ka.data import Degradation, SceneSet, observe
from ka.errors import KAError
from ka.methods.injection import Bicubic, LocalInjection
from ka.models.own.adapter import own_model
from workbook.explorer.catalog import Catalog, _crop, layer_index, open_catalog, scene_crops, shipped
from workbook.explorer.widgets import AttentionExplorer, FieldExplorer, KernelExplorer
from workbook.training.config import Config
from workbook.training.run import finished_runs
from workbook.training.train import train


def test_runs_do_not_hide_what_comes_with_the_workbook(tmp_path: Path) -> None:
    for name in ("kav1", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text("{}")
        shutil.copy(shipped()["kav1"], tmp_path / name / "best.safetensors")
    (tmp_path / "unfinished").mkdir()
    models = open_catalog(runs=tmp_path).models
    assert models["kav1"] == shipped()["kav1"]
    assert models[str(tmp_path / "kav1")] == tmp_path / "kav1"
    assert models["mine"] == tmp_path / "mine"
    assert list(finished_runs(tmp_path)) == ["kav1", "mine"]
    assert next(iter(open_catalog("mine", runs=tmp_path).models)) == "mine"


def test_wrong_folders_and_names_are_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(KAError, match="is no folder; give one that holds runs"):
        open_catalog(runs=tmp_path / "nothing")
    with pytest.raises(KAError, match="data_root=3 is of type int; give a folder"):
        open_catalog(data_root=3)  # type: ignore[arg-type]
    with pytest.raises(KAError, match=r"'kav99' is neither a path nor one of kav1, "):
        open_catalog("kav99")
    with pytest.raises(KAError, match="no model to look at"):
        Catalog({}, scene_crops())
    with pytest.raises(KAError, match="no image to look at"):
        Catalog(shipped(), {})
    catalog = open_catalog()
    with pytest.raises(KAError, match="model 'KAv1' is unknown; did you mean 'kav1'"):
        catalog.model("KAv1")
    with pytest.raises(KAError, match="image 'mars' is unknown; choose one of indian_pines_test"):
        catalog.trace("kav1", "mars")


def test_layers_are_counted_from_one() -> None:
    assert [layer_index(layer) for layer in (1, 18)] == [0, 17]
    for wrong in (0, 19, "1", True):
        with pytest.raises(KAError, match="choose 1 … 18"):
            layer_index(wrong)  # type: ignore[arg-type]


def test_passes_are_kept_and_fit_the_image() -> None:
    catalog = open_catalog()
    image = catalog.images["indian_pines_test"]
    trace = catalog.trace("kav3", "indian_pines_test")
    assert trace is catalog.trace("kav3", "indian_pines_test")
    assert trace.model is catalog.model("kav3")
    up, msi, _ = image.given(trace.model.start)
    assert image.picture.shape == (*up.shape[-2:], 3) == (*trace.output.shape[-2:], 3)
    with torch.no_grad():
        torch.testing.assert_close(trace.output, trace.model(up, msi))


def test_a_model_is_given_what_it_starts_from() -> None:
    """Made on the whole scene, then cut."""
    image = open_catalog().images["indian_pines_test"]
    local = LocalInjection(Degradation())
    row, col, height, width = image.box
    expected = local(image.scene)[None, :, row : row + height, col : col + width]
    torch.testing.assert_close(image.given(local)[0], expected)
    torch.testing.assert_close(image.given(Bicubic())[0][0], torch.from_numpy(image.scene.crop(*image.box).up))


def test_a_checkpoint_of_other_bands_says_what_it_wants(tmp_path: Path) -> None:
    path = tmp_path / "cave.safetensors"
    ka.save_weights(path, ka.build("kav11", dim=8))
    catalog = open_catalog(str(path))
    with pytest.raises(KAError, match=r"31 \+ 3 bands; give CAVE's folder"):
        catalog.images_for(catalog.model(str(path)))


def test_shipped_checkpoints_are_small_and_load() -> None:
    assert {"kav1", "kav3", "kav6", "kav11", "kav17", "psrt"} <= set(shipped())
    assert sum(path.stat().st_size for path in shipped().values()) <= 12e6
    for name, path in shipped().items():
        assert ka.load_checkpoint(path).row.name == name.removesuffix("_cave")


def test_a_run_brings_the_images_of_its_own_data(finished: Path) -> None:
    """Its test scenes, read when they are looked at; two runs on the same data share them."""
    twin = finished.parent / "twin"
    shutil.copytree(finished, twin, ignore=shutil.ignore_patterns(".lock"))
    catalog = open_catalog(runs=finished.parent)
    read = list(catalog.images)
    names = catalog.images_for(catalog.model("finished"))
    assert names == catalog.images_for(catalog.model("twin"))
    assert len(names) == 2
    assert list(catalog.images) == read  # names alone so far
    trace = catalog.trace("finished", names[1])
    assert list(catalog.images) == [*read, names[1]]
    assert trace.up.shape == (1, 4, 32, 32)
    assert catalog.images[names[1]].picture.shape == (32, 32, 3)


def test_a_run_whose_data_are_gone_says_which(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns(".lock"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data_root": str(tmp_path / "nowhere")}))
    catalog = open_catalog(runs=tmp_path)
    assert "moved" in catalog.models
    with pytest.raises(KAError, match=r"data that moved was trained on are not here as they were: .*nowhere") as error:
        catalog.images_for(catalog.model("moved"))
    assert "\n" not in str(error.value)


def test_other_ratios(tmp_path: Path) -> None:
    """An image of another ratio is none of such a model's, though it has its bands."""
    config = Config.preset("smoke", run_dir=str(tmp_path / "run"), ratio=8, start="local", device="cpu")
    train(config, bar=False)
    catalog = open_catalog("run", runs=tmp_path)
    assert catalog.images_for(catalog.model("run")) == ["indian_pines_test ×8, run"]
    assert len(catalog.images_for(catalog.model("kav11"))) == 2
    for kind in (KernelExplorer, AttentionExplorer, FieldExplorer):
        explorer = kind(Catalog({"run": tmp_path / "run"}, catalog.images))
        assert explorer.picture.value


def test_an_image_holds_whole_low_resolution_pixels() -> None:
    rng = np.random.default_rng(0)
    for ratio, side, shown in ((3, 96, 48), (5, 80, 40), (9, 144, 72), (4, 96, 64)):
        truth = rng.random((4, side, side), dtype=np.float32)
        degradation = Degradation(ratio)
        scene = observe("one", truth, np.full((2, 4), 0.25), degradation)
        scenes = SceneSet("h5", "test", degradation, None, (2, 1, 0), ("a", "b"), [scene])
        crop = _crop(scenes, scene)
        assert crop.picture.shape == (shown, shown, 3)
        assert crop.given(LocalInjection(degradation))[2].shape[-1] == shown // ratio
    with pytest.raises(KAError, match="one of 96×96 pixels is too small to look at; choose one of at least 248×248"):
        _crop(replace(scenes, degradation=Degradation(31)), scene)


def test_an_own_network_is_no_model_of_the_explorers(tmp_path: Path) -> None:
    ka.save_weights(tmp_path / "own.safetensors", own_model(nn.Identity, 200, 4, name="mynet:Net"))
    catalog = Catalog({"own": tmp_path / "own.safetensors"}, scene_crops())
    with pytest.raises(KAError, match="holds weights of mynet:Net, a network from outside this workbook"):
        catalog.model("own")
