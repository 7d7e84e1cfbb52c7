"""Models and images by name."""

from pathlib import Path

import pytest
import torch

import ka
from ka.data import Degradation
from ka.errors import KAError
from ka.methods.injection import Bicubic, LocalInjection
from workbook.explorer.catalog import Catalog, finished_runs, layer_index, open_catalog, scene_crops, shipped


def test_runs_do_not_hide_what_comes_with_the_workbook(tmp_path: Path) -> None:
    for name in ("kav1", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text("{}")
    (tmp_path / "unfinished").mkdir()
    models = open_catalog(runs=tmp_path).models
    assert models["kav1"] == shipped()["kav1"]
    assert models[str(tmp_path / "kav1")] == tmp_path / "kav1"
    assert models["mine"] == tmp_path / "mine"
    assert list(finished_runs(tmp_path)) == ["kav1", "mine"]
    assert next(iter(open_catalog("mine", runs=tmp_path).models)) == "mine"


def test_wrong_folders_and_names_are_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(KAError, match="is no folder; give one that holds run folders"):
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
    with pytest.raises(KAError, match=r"31 \+ 3 bands; give data_root, the folder of CAVE"):
        catalog.images_for(catalog.model(str(path)))


def test_shipped_checkpoints_are_small_and_load() -> None:
    assert {"kav1", "kav3", "kav6", "kav11", "kav17", "psrt"} <= set(shipped())
    assert sum(path.stat().st_size for path in shipped().values()) <= 12e6
    for name, path in shipped().items():
        assert ka.load_checkpoint(path).row.name == name
