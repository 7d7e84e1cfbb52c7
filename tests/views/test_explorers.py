"""The explorers without a browser: controls change the picture, and a plain call draws the same."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ka
from ka.errors import KAError
from ka.models.psrt import LAYERS
from workbook.explorer import sources as explore
from workbook.explorer.sources import Looker, View, gather, shipped, views
from workbook.explorer.widgets import ALL, AttentionExplorer, Explorer, KernelExplorer
from workbook.style import png
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.train import train

KINDS: list[Callable[[Looker], Explorer]] = [KernelExplorer, AttentionExplorer]


@pytest.fixture(scope="module")
def look() -> Looker:
    return gather()


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_of_every_shipped_model(kind: Callable[[Looker], Explorer], look: Looker) -> None:
    """Each is drawn, or the message says why not; never both, and never an old picture without a word."""
    explorer = kind(look)
    seen = set()
    for model in ("kav1", "kav6", "kav17", "psrt"):
        explorer.controls["model"].value = model
        for show in explorer.pictures():
            explorer.controls["show"].value = show
            if explorer.message.value:
                assert "choose" in explorer.message.value
                with pytest.raises(KAError):
                    explorer.figure()
            else:
                seen.add(show)
                assert model != "kav6" or explorer.picture.value == png(explorer.figure())
    assert seen == set(explorer.pictures())


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_changes_the_picture_and_a_plain_call_does_not(
    kind: Callable[[Looker], Explorer], look: Looker
) -> None:
    explorer = kind(look)
    before = explorer.picture.value
    asked = png(explorer.figure(layer=4))
    assert explorer.picture.value == before != asked
    assert explorer.controls["layer"].value == 1
    explorer.controls["layer"].value = 4
    assert explorer.picture.value == asked


@pytest.mark.parametrize(
    ("control", "value"),
    [("kernel", "window 2 (top right)"), ("image", "indian_pines_train"), ("model", "kav17"), ("colours", True)],
)
def test_kernel_controls(control: str, value: str, look: Looker) -> None:
    explorer = KernelExplorer(look)
    explorer.controls["model"].value = "kav1"  # its kernels follow the image
    before = explorer.picture.value
    explorer.controls[control].value = value
    assert explorer.picture.value != before
    assert not explorer.message.value


@pytest.mark.parametrize("control", ["output", "input"])
@pytest.mark.parametrize("show", ["one filter, part by part", "frequency response, one filter"])
def test_channels(control: str, show: str, look: Looker) -> None:
    explorer = KernelExplorer(look)
    explorer.controls["show"].value = show
    before = explorer.picture.value
    explorer.controls[control].value = explorer.controls[control].max
    assert explorer.picture.value != before


def test_clicks_choose_the_pixel(look: Looker) -> None:
    explorer = AttentionExplorer(look)
    explorer._clicked({"dataX": 20 * explorer.zoom + 2, "dataY": 31 * explorer.zoom})
    assert (explorer.controls["row"].value, explorer.controls["col"].value) == (31, 20)
    assert explorer.picture.value == png(explorer.figure(row=31, col=20)) != png(explorer.figure(row=30, col=20))
    explorer._clicked({"dataX": 10**6, "dataY": -5})  # the border of the page's picture
    assert (explorer.controls["row"].value, explorer.controls["col"].value) == (0, explorer.controls["col"].max)


@pytest.mark.parametrize(("control", "value"), [("head", 2), ("filter", 3)])
def test_heads_and_filters(control: str, value: int, look: Looker) -> None:
    explorer = AttentionExplorer(look)
    explorer.controls["model"].value = "kav6"
    explorer.controls["show"].value = "kernel SA"
    before = explorer.picture.value
    explorer.controls[control].value = value
    assert explorer.picture.value != before


def test_choices_follow_the_model(look: Looker) -> None:
    explorer = KernelExplorer(look)
    explorer.controls["model"].value = "kav11"
    explorer.controls["kernel"].value = "global"
    explorer.controls["model"].value = "kav3"
    assert ("global", "global") not in explorer.controls["kernel"].options
    assert explorer.controls["kernel"].value == ALL
    assert explorer.controls["layer"].max == len(LAYERS)


def test_static_kernels_are_the_same_for_all_images(look: Looker) -> None:
    explorer = KernelExplorer(look)
    explorer.controls["model"].value = "kav11"
    before = explorer.picture.value
    explorer.controls["image"].value = "indian_pines_train"
    assert explorer.picture.value == before


def test_controls_answer_at_once(look: Looker) -> None:
    """Every control, a model's first picture too. Half a second is meant; other tests run beside this one."""
    slow = {}
    for kind in KINDS:
        explorer = kind(Looker(look.models, look.views))
        for name, control in explorer.controls.items():
            values = range(2, 5) if name in ("layer", "row", "col") else [value for _, value in _options(control)][-3:]
            spent = []
            for value in values:
                start = time.perf_counter()
                control.value = value
                spent.append(time.perf_counter() - start)
            if sorted(spent)[len(spent) // 2] > 1.0:
                slow[name] = spent
    assert not slow


def _options(control: object) -> list[tuple[str, object]]:
    return list(getattr(control, "options", [("", 1), ("", 2)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"show": "nope"}, "show='nope' is no choice; choose one of "),
        ({"layer": 0}, "layer=0 is no choice; choose one of 1 … 18"),
        ({"layer": 19}, "layer=19 is no choice; choose one of 1 … 18"),
        ({"model": "kav99"}, "model='kav99' is no choice; choose one of kav1, kav11"),
    ],
)
def test_wrong_values_are_told_in_a_line(
    kind: Callable[[Looker], Explorer], changes: dict[str, object], message: str, look: Looker
) -> None:
    with pytest.raises(KAError, match=message):
        kind(look).figure(**changes)


def test_values_that_no_longer_fit_follow(look: Looker) -> None:
    """A call with another model, while the control says `global`, draws what the controls would show."""
    explorer = KernelExplorer(look)
    explorer.controls["model"].value = "kav11"
    explorer.controls["kernel"].value = "global"
    asked = png(explorer.figure(model="kav3"))
    explorer.controls["model"].value = "kav3"
    assert explorer.picture.value == asked
    with pytest.raises(KAError, match="kernel='global' is no choice; choose one of all kernels, window 1"):
        explorer.figure(kernel="global")
    attention = AttentionExplorer(look)
    with pytest.raises(KAError, match="head=5 is no choice; choose one of all, 1, 2, 3, 4"):
        attention.figure(head=5)
    assert png(attention.figure(model="psrt", head=8)) != png(attention.figure(model="psrt", head=7))


def test_the_image_beside_is_another_one(look: Looker) -> None:
    explorer = KernelExplorer(look)
    first = explorer.controls["image"].value
    explorer.controls["image"].value = explorer.controls["beside"].value
    assert explorer.controls["beside"].value == first


def test_runs_do_not_hide_what_comes_with_the_workbook(tmp_path: Path) -> None:
    (tmp_path / "kav1").mkdir()
    (tmp_path / "kav1" / "metrics.json").write_text("{}")
    assert gather(runs=tmp_path).models["kav1"] == shipped()["kav1"]
    assert gather(runs=tmp_path).models[str(tmp_path / "kav1")] == tmp_path / "kav1"
    with pytest.raises(KAError, match="is no folder; give one that holds run folders"):
        gather(runs=tmp_path / "nothing")
    with pytest.raises(KAError, match="data_root=3 is of type int; give a folder"):
        gather(data_root=3)  # type: ignore[arg-type]


def test_layers_are_counted_from_one() -> None:
    assert [explore.layer_index(layer) for layer in (1, 18)] == [0, 17]
    for wrong in (0, 19, "1", True):
        with pytest.raises(KAError, match="choose 1 … 18"):
            explore.layer_index(wrong)  # type: ignore[arg-type]


def test_models_and_images_that_do_not_fit() -> None:
    with pytest.raises(KAError, match=r"'kav99' is neither a path nor one of kav1, "):
        gather("kav99")
    with pytest.raises(KAError, match="no model to look at"):
        Looker({}, views())
    look = gather()
    with pytest.raises(KAError, match=r"unknown control level; choose from show, model"):
        KernelExplorer(look).figure(level=2)
    with pytest.raises(KAError, match="image='mars' is no choice; choose one of indian_pines_test"):
        KernelExplorer(look).figure(image="mars")


def test_a_checkpoint_of_other_bands_says_what_it_wants(tmp_path: Path) -> None:
    path = tmp_path / "cave.safetensors"
    ka.save_weights(path, ka.build("kav11", dim=8))
    explorer = KernelExplorer(gather(str(path)))
    explorer.controls["model"].value = str(path)
    assert "give data_root, the folder of CAVE" in explorer.message.value


def test_rows_of_our_own_are_shown_as_far_as_there_is_something(look: Looker, tmp_path: Path) -> None:
    """An ordinary convolution has one kernel; attention among channels alone has no taps that look at taps."""
    shipped_model = look.model("kav1")
    paths = {}
    for name in ("conv5x5", "kav10_channel_sa", "kav10_both_sa"):
        paths[name] = str(tmp_path / f"{name}.safetensors")
        ka.save_weights(paths[name], ka.build(name, shipped_model.n_bands, shipped_model.n_msi, dim=8))
    mine = Looker(paths, look.views)
    kernels, attention = KernelExplorer(mine), AttentionExplorer(mine)
    kernels.controls["model"].value = "conv5x5"
    assert [value for _, value in kernels.controls["kernel"].options] == [ALL, "kernel"]
    for show in kernels.pictures():
        kernels.controls["show"].value = show
        assert not kernels.message.value
    kernels.controls["show"].value = "filters, part by part"
    kernels.controls["kernel"].value = "kernel"
    assert not kernels.message.value
    for model, why in (("conv5x5", "no kernel SA"), ("kav10_channel_sa", "among channels, not among taps")):
        attention.controls["model"].value = model
        for show in ("kernel SA", "entropy of kernel SA"):
            attention.controls["show"].value = show
            assert why in attention.message.value
        assert [value for _, value in attention.controls["filter"].options] == ["all", 1]
    attention.controls["model"].value = "kav10_both_sa"
    assert not attention.message.value
    assert "among taps" in attention.figure(show="kernel SA", filter=4).texts[-1].get_text()


def test_cave_scenes(cave_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "cave.safetensors"
    torch.manual_seed(0)
    ka.save_weights(path, ka.build("kav1", dim=8))
    look = gather(str(path), data_root=cave_root)
    for kind in KINDS:
        explorer = kind(look)
        explorer.controls["model"].value = str(path)
        assert [name for name, _ in explorer.controls["image"].options] == ["balloons", "feathers", "jelly_beans"]
        assert not explorer.message.value
    assert look.views["balloons"].picture.shape == (64, 64, 3)


def test_messages_are_text(look: Looker) -> None:
    """A name with markup in it is shown, not run."""
    view: View = next(iter(look.views.values()))
    explorer = KernelExplorer(Looker({"mine": "/<img src=x onerror=alert(1)>"}, {"a": view}))
    assert "&lt;img" in explorer.message.value
    assert "<img" not in explorer.message.value


def test_a_run_is_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half the bytes, almost the same image; the run itself is offered by name too."""
    config = Config.preset("smoke", variant="kav9", run_dir=str(tmp_path / "runs" / "mine"))
    train(config, bar=False)
    run = Run(tmp_path / "runs" / "mine")
    path = explore.ship(run, tmp_path)
    assert path.name == "kav9.safetensors"
    assert path.stat().st_size < 0.7 * (run.path / "best.safetensors").stat().st_size
    look = gather(str(path), runs=tmp_path / "runs")
    one, two = (look.trace(name, "indian_pines_test").output for name in ("mine", str(path)))
    assert (one - two).abs().max() < 1e-2
    assert explore.main([str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_shipped_checkpoints_are_small_and_load() -> None:
    found = shipped()
    assert {"kav1", "kav3", "kav6", "kav11", "kav17", "psrt"} <= set(found)
    assert sum(path.stat().st_size for path in found.values()) <= 12e6
    for name, path in found.items():
        assert ka.load_checkpoint(path).row.name == name
