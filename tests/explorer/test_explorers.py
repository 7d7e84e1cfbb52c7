"""The explorers without a browser: controls change the picture, and a plain call draws the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import ka
from ka.errors import KAError
from ka.models.psrt import LAYERS
from workbook import style
from workbook.explorer import controls as base
from workbook.explorer.catalog import Catalog, SceneCrop, open_catalog
from workbook.explorer.controls import Explorer
from workbook.explorer.widgets import ALL, AttentionExplorer, FieldExplorer, KernelExplorer
from workbook.views import attention, kernels

KINDS: list[Callable[[Catalog], Explorer]] = [KernelExplorer, AttentionExplorer, FieldExplorer]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return open_catalog()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[Explorer], Figure]:
    """The figure that an explorer's picture was made from."""
    figures: list[Figure] = []

    def number(figure: Figure) -> bytes:
        figures.append(figure)
        return str(len(figures) - 1).encode()

    monkeypatch.setattr(base, "png", number)
    return lambda explorer: figures[int(explorer.picture.value)]


def values(figure: Figure, image: int = 0) -> np.ndarray:
    """The numbers behind an image of a figure's first axes; of a mosaic, without the gaps between kernels."""
    array = np.asarray(figure.axes[0].images[image].get_array())
    return array[:, ~np.isnan(array[0])]


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_of_every_shipped_model(
    kind: Callable[[Catalog], Explorer], catalog: Catalog, shown: Callable[[Explorer], Figure]
) -> None:
    """Each is drawn, or the message says why not; never both, and never an old picture beside a message."""
    explorer = kind(catalog)
    drawn = set()
    for model in ("kav1", "kav6", "kav17", "psrt"):
        explorer.controls["model"].value = model
        for show in explorer.pictures:
            explorer.controls["show"].value = show
            if not explorer.picture.value:
                assert "choose" in explorer.message.value
                assert explorer.picture.value == b""
                assert explorer.picture.layout.display == "none"
                with pytest.raises(KAError):
                    explorer.figure()
            else:
                assert explorer.picture.layout.display is None
                title = shown(explorer).get_suptitle()
                assert model in title or "entropy" in title
                drawn.add(show)
    assert drawn == set(explorer.pictures)


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_changes_the_picture_and_a_plain_call_does_not(
    kind: Callable[[Catalog], Explorer], catalog: Catalog
) -> None:
    explorer = kind(catalog)
    name = "row" if kind is FieldExplorer else "layer"
    before, value = explorer.picture.value, explorer.controls[name].value
    asked = style.png(explorer.figure(**{name: value + 3}))
    assert explorer.picture.value == before != asked
    assert explorer.controls[name].value == value
    explorer.controls[name].value = value + 3
    assert explorer.picture.value == asked


def test_kernel_controls(catalog: Catalog, shown: Callable[[Explorer], Figure]) -> None:
    """After every control the picture is of what it says: model and layer, image, kernel, colours."""
    explorer = KernelExplorer(catalog)
    controls = explorer.controls
    controls["model"].value = "kav1"  # its kernels follow the image
    assert shown(explorer).get_suptitle() == f"kav1, {LAYERS[0]}"
    controls["layer"].value = 4
    assert shown(explorer).get_suptitle() == f"kav1, {LAYERS[3]}"
    for image in ("indian_pines_train", "indian_pines_test"):
        controls["image"].value = image
        pooled = kernels.stages_of(catalog.trace("kav1", image), 3)[0].kernels
        assert np.array_equal(values(shown(explorer))[:, :3], pooled[0, 0, 0])
    assert len({picture.get_clim() for picture in shown(explorer).axes[0].images}) == 4
    controls["colours"].value = True
    assert len({picture.get_clim() for picture in shown(explorer).axes[0].images}) == 1
    controls["kernel"].value = "window 2 (top right)"
    assert [text.get_text() for text in shown(explorer).axes[0].texts] == ["window 2\n(top right)"]
    controls["show"].value = "norms"
    assert shown(explorer).axes[0].get_ylabel() == "Frobenius norm"


def test_channels(catalog: Catalog, shown: Callable[[Explorer], Figure]) -> None:
    explorer = KernelExplorer(catalog)
    explorer.controls["model"].value = "kav11"
    explorer.controls["show"].value = "one filter, part by part"
    last = kernels.stages_of(catalog.trace("kav11", explorer.controls["image"].value), 0)[0].kernels
    for output, channel in ((1, 1), (3, 1), (3, last.shape[2])):
        explorer.controls["output"].value, explorer.controls["input"].value = output, channel
        taps = values(shown(explorer)).reshape(3, -1, 3).transpose(1, 0, 2)
        assert np.array_equal(taps, last[:, output - 1, channel - 1])
    explorer.controls["show"].value = "frequency response, one filter"
    for output, channel in ((2, 5), (4, 5)):
        explorer.controls["output"].value, explorer.controls["input"].value = output, channel
        assert np.array_equal(values(shown(explorer)), kernels.response(last[0, output - 1, channel - 1]))


def test_clicks_choose_the_pixel(catalog: Catalog, shown: Callable[[Explorer], Figure]) -> None:
    explorer = AttentionExplorer(catalog)
    before = explorer.scene.value
    explorer.click({"dataX": 20 * explorer.zoom + 2, "dataY": 31 * explorer.zoom})
    assert (explorer.controls["row"].value, explorer.controls["col"].value) == (31, 20)
    assert shown(explorer).axes[0].get_title() == "row 31, column 20"
    assert explorer.scene.value != before
    explorer.click({"dataX": 10**6, "dataY": -5})  # the border of the page's picture
    assert (explorer.controls["row"].value, explorer.controls["col"].value) == (0, explorer.controls["col"].max)
    explorer.controls["row"].value = 7
    assert shown(explorer).axes[0].get_title() == f"row 7, column {explorer.controls['col'].max}"


def test_heads_and_filters(catalog: Catalog, shown: Callable[[Explorer], Figure]) -> None:
    explorer = AttentionExplorer(catalog)
    explorer.controls["model"].value = "kav6"
    explorer.controls["head"].value = 3
    assert shown(explorer).axes[1].get_title() == "head 3"
    explorer.controls["show"].value = "kernel SA"
    weights = attention.kernel_sa(catalog.trace("kav6", explorer.controls["image"].value), 0).weights
    np.testing.assert_allclose(values(shown(explorer)), weights.mean(0)[2])
    explorer.controls["filter"].value = 5
    np.testing.assert_allclose(values(shown(explorer)), weights[4, 2])
    assert shown(explorer).get_suptitle() == f"kernel SA, kav6, {LAYERS[0]}, filter 5"


def test_choices_follow_the_model(catalog: Catalog, shown: Callable[[Explorer], Figure]) -> None:
    """In the controls, and in a plain call with another model while the control says `global`."""
    explorer = KernelExplorer(catalog)
    explorer.controls["model"].value = "kav11"
    explorer.controls["kernel"].value = "global"
    labels = [text.get_text() for text in explorer.figure(model="kav3").axes[0].texts]
    assert labels == [label.replace(" (", "\n(") for label in kernels.WINDOW_LABELS]
    explorer.controls["model"].value = "kav3"
    assert ("global", "global") not in explorer.controls["kernel"].options
    assert explorer.controls["kernel"].value == ALL
    assert [text.get_text() for text in shown(explorer).axes[0].texts] == labels
    assert explorer.controls["layer"].max == len(LAYERS)
    with pytest.raises(KAError, match=r"kernel 'global' is unknown; choose one of all kernels, window 1"):
        explorer.figure(kernel="global")
    heads = AttentionExplorer(catalog)
    with pytest.raises(KAError, match=r"head 5 is unknown; choose one of all, 1, 2, 3, 4$"):
        heads.figure(model="kav1", head=5)
    assert heads.figure(model="psrt", head=8).axes[1].get_title() == "head 8"


def test_static_kernels_are_the_same_for_all_images(catalog: Catalog, shown: Callable[[Explorer], Figure]) -> None:
    explorer = KernelExplorer(catalog)
    explorer.controls["model"].value = "kav11"
    before = shown(explorer)
    explorer.controls["image"].value = "indian_pines_train"
    assert shown(explorer) is not before
    assert np.array_equal(values(shown(explorer)), values(before))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_values_are_told_in_a_line(kind: Callable[[Catalog], Explorer], catalog: Catalog) -> None:
    explorer = kind(catalog)
    wrong: list[tuple[dict[str, object], str]] = [
        ({"show": "nope"}, "show 'nope' is unknown; .*choose one of "),
        ({"layer": 0}, "layer=0 is not one of the 18; choose 1 … 18"),
        ({"layer": 19}, "layer=19 is not one of the 18; choose 1 … 18"),
        ({"model": "kav99"}, "model 'kav99' is unknown; did you mean 'kav9'|choose one of kav1, kav11"),
        ({"image": "mars"}, "image 'mars' is unknown; choose one of indian_pines_test"),
        ({"level": 2}, "control 'level' is unknown; .*choose one of show, model"),
    ]
    if kind is FieldExplorer:
        wrong = [(changes, message) for changes, message in wrong if "layer" not in changes]
    for changes, message in wrong:
        with pytest.raises(KAError, match=message):
            explorer.figure(**changes)


def test_the_image_beside_is_another_one(catalog: Catalog, shown: Callable[[Explorer], Figure]) -> None:
    explorer = KernelExplorer(catalog)
    explorer.controls["show"].value = "two images"
    first = explorer.controls["image"].value
    explorer.controls["image"].value = explorer.controls["beside"].value
    assert explorer.controls["beside"].value == first
    assert [axis.get_title() for axis in shown(explorer).axes[:2]] == ["indian_pines_train", "indian_pines_test"]
    alone = Catalog({"kav1": catalog.models["kav1"]}, {first: catalog.images[first]})
    with pytest.raises(KAError, match="two images are compared, and there is one"):
        KernelExplorer(alone).figure(show="two images")


def test_an_image_that_is_missing_is_said_and_nothing_else_stays(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "cave.safetensors"
    ka.save_weights(path, ka.build("kav11", dim=8))
    explorer = KernelExplorer(Catalog({**catalog.models, "mine": path}, catalog.images))
    assert explorer.picture.value
    explorer.controls["model"].value = "mine"
    assert "give CAVE&#x27;s folder (DATA= of make explore, data_root in a notebook)" in explorer.message.value
    assert explorer.picture.value == b""
    explorer.controls["model"].value = "kav1"
    assert explorer.picture.value
    assert explorer.message.value.startswith("<i>Each mosaic")


def test_rows_of_our_own_are_shown_as_far_as_there_is_something(
    catalog: Catalog, tmp_path: Path, shown: Callable[[Explorer], Figure]
) -> None:
    """An ordinary convolution has one kernel; attention among channels alone has no taps that look at taps."""
    paths = {}
    for name in ("conv5x5", "kav10_channel_sa", "kav10_both_sa"):
        paths[name] = str(tmp_path / f"{name}.safetensors")
        like = catalog.model("kav1")
        ka.save_weights(paths[name], ka.build(name, like.n_bands, like.n_msi, dim=8))
    mine = Catalog(paths, catalog.images)
    kernel_explorer, attention_explorer = KernelExplorer(mine), AttentionExplorer(mine)
    kernel_explorer.controls["model"].value = "conv5x5"
    assert [value for _, value in kernel_explorer.controls["kernel"].options] == [ALL, "kernel"]
    for show in kernel_explorer.pictures:
        kernel_explorer.controls["show"].value = show
        assert kernel_explorer.picture.value
    kernel_explorer.controls["show"].value = "filters, part by part"
    kernel_explorer.controls["kernel"].value = "kernel"
    assert [text.get_text() for text in shown(kernel_explorer).axes[0].texts] == ["kernel"]
    for model in ("conv5x5", "kav10_channel_sa"):
        attention_explorer.controls["model"].value = model
        for show in ("kernel SA", "entropy of kernel SA"):
            attention_explorer.controls["show"].value = show
            assert f"{model} has no kernel SA among taps; choose kav10_both_sa<" in attention_explorer.message.value
        assert [value for _, value in attention_explorer.controls["filter"].options] == ["all", 1]
    attention_explorer.controls["model"].value = "kav10_both_sa"
    assert attention_explorer.picture.value
    assert "among taps" in attention_explorer.figure(show="kernel SA", filter=4).get_suptitle()


def test_messages_are_text(catalog: Catalog) -> None:
    """A name with markup in it is shown, not run."""
    image: SceneCrop = next(iter(catalog.images.values()))
    explorer = KernelExplorer(Catalog({"mine": "/<img src=x onerror=alert(1)>"}, {"a": image}))
    assert "&lt;img" in explorer.message.value
    assert "<img" not in explorer.message.value


@pytest.mark.slow
def test_cave_scenes(cave_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "cave.safetensors"
    torch.manual_seed(0)
    ka.save_weights(path, ka.build("kav1", dim=8))
    catalog = open_catalog(str(path), data_root=cave_root)
    for kind in KINDS:
        explorer = kind(catalog)
        explorer.controls["model"].value = str(path)
        assert [name for name, _ in explorer.controls["image"].options] == ["balloons", "feathers", "jelly_beans"]
        assert bool(explorer.picture.value) != (kind is FieldExplorer)  # from a bicubic start: it says so instead
    assert catalog.images["balloons"].picture.shape == (64, 64, 3)
