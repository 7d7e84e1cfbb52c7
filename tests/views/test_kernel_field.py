"""The field of kernels that adapt: what it holds is what the model applies; and what other kernels would do."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ka
from ka import data
from ka.data import Scene
from ka.data.simulate import Degradation
from ka.methods.attention import attended
from ka.methods.injection import LocalInjection
from ka.models.adaptive.bank import KernelBank
from ka.models.adaptive.fields import apply_kernels, upsample
from workbook.audit import swaps
from workbook.views.kernel_field import KernelField, field_figure, kernel_field


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A scene whose materials differ from place to place."""
    return data.load("indian_pines", "test")[0].load()


def model_of(name: str, scene: Scene) -> ka.PSRT:
    torch.manual_seed(0)
    model = ka.build(name, len(scene.gt), len(scene.msi), dim=8).eval()
    model.start = LocalInjection(Degradation(), roots=True)
    if model.front is not None:
        torch.nn.init.normal_(model.front.fallback, std=0.3)
    if isinstance(model.front, KernelBank):
        torch.nn.init.normal_(model.front.bank, std=0.3)
    return model


def applied(field: KernelField, scene: Scene) -> np.ndarray:
    kernels = torch.from_numpy(field.kernels).permute(2, 3, 0, 1)[None].double()
    detail, lr = (torch.from_numpy(x)[None].double() for x in (field.detail, scene.lr))
    return apply_kernels(kernels, detail, upsample(lr, 4))[0].numpy()


def test_a_field_is_what_is_applied(scene: Scene) -> None:
    """Of a regression its own kernels, of another model those of its start; each makes the image that these make."""
    regressed, started = model_of("kav21", scene), model_of("kav11", scene)
    for model, image in ((regressed, ka.Network(regressed)(scene).numpy()), (started, started.start(scene).numpy())):
        field = kernel_field(model, scene, ("B", "G", "R", "N"))
        assert np.abs(applied(field, scene) - image).max() < 1e-5
        assert field.labels[:5] == ("B", "G", "R", "N", "√B")
        assert field.kernels.shape[2] == len(field.labels) == len(field.detail)
        row, col = 33, 18
        assert np.allclose(field.pull(row, col), field.kernels[8, 4].T @ field.detail[:, row, col])


def test_its_colours_tell_places_apart(scene: Scene) -> None:
    """The components order by variance; equal kernels have equal colours, and a constant field has one."""
    field = kernel_field(model_of("kav21", scene), scene)
    colours, shares = field.components
    assert colours.shape == (*field.kernels.shape[:2], 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert colours.std((0, 1)).min() > 0.05
    assert 1 >= shares[0] > shares[1] > shares[2] > 0
    fixed = kernel_field(model_of("kav20_fixed", scene), scene)
    colours, _ = fixed.components
    assert colours.std((0, 1)).max() < 1e-6
    assert np.array_equal(fixed.kernels[3, 5], fixed.common)


def test_a_picture_says_what_is_where(scene: Scene) -> None:
    field = kernel_field(model_of("kav21", scene), scene)
    figure = field_figure(field, 20, 30, title="mine")
    titles = [axis.get_title() for axis in figure.axes]
    assert "what it adds at (20, 30)" in titles
    assert titles.count("this kernel") == titles.count("the common one") == 1
    lines = {line.get_label(): line.get_ydata() for axis in figure.axes for line in axis.lines}
    assert np.allclose(lines["this kernel"], field.pull(20, 30))
    assert np.allclose(lines["the common one"], field.pull(20, 30, common=True))


def test_what_has_no_field_is_refused(scene: Scene) -> None:
    model = model_of("kav11", scene)
    model.start = ka.build("kav11", 4, 2, 8).start
    with pytest.raises(ka.KAError, match="kav11 has no kernels that change from place to place"):
        kernel_field(model, scene)
    field = kernel_field(model_of("kav21", scene), scene)
    with pytest.raises(ka.KAError, match="row=9999 is not one of"):
        field.at(9999, 0)


@pytest.mark.parametrize(("row", "col"), [(72, 8), (1, 2)])
def test_what_counts_in_a_window_is_shown(scene: Scene, row: int, col: int) -> None:
    """The weights with which the model itself averages, also at a border; nothing for a row that does not attend."""
    model = model_of("kav26", scene)
    field = kernel_field(model, scene)
    window = field.counts(row, col)
    assert window is not None
    assert window.shape == (17, 17)
    assert np.nansum(window) == pytest.approx(1, abs=1e-5)
    assert np.isnan(window).any()  # 12 columns are fewer than 17
    assert np.isnan(window).all(1).any() == (row < 8 * 4)
    assert field.attention is not None
    places, radius, width = field.attention
    padded = torch.nn.functional.pad(places, (8, 8, 8, 8))[0, 0, row // 4 : row // 4 + 17, col // 4 : col // 4 + 17]
    mean = attended(places, places[:, :1], radius, width)[0, 0, row // 4, col // 4]
    assert np.nansum(window * padded.numpy()) == pytest.approx(mean.item(), abs=1e-5)
    titles = [axis.get_title() for axis in field_figure(field, row, col).axes]
    assert "what counts for it" in titles
    assert kernel_field(model_of("kav21", scene), scene).counts(row, col) is None
    model = model_of("kav11", scene)
    model.start = LocalInjection(Degradation(), roots=True, attend=True)
    started = kernel_field(model, scene)
    assert np.abs(applied(started, scene) - model.start(scene).numpy()).max() < 1e-5
    of_start = started.counts(row, col)
    assert of_start is not None
    assert np.nansum(of_start) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["kav20", "kav23_window", "kav26"])
def test_kernels_swapped(name: str, scene: Scene) -> None:
    """A model with its own kernels set is itself; with their mean, or another scene's, it is not."""
    model, scenes = model_of(name, scene), data.load("indian_pines", "test")
    own = swaps.kernels_of(model, scene)
    itself = ka.Network(swaps.with_kernels(model, own))(scene)
    assert torch.allclose(itself, ka.Network(model)(scene), atol=1e-6)
    frozen = ka.Network(swaps.with_kernels(model, own.mean((-2, -1), keepdim=True)))(scene)
    assert (frozen - itself).abs().max() > 1e-4
    with pytest.raises(ka.KAError, match="want two scenes or more"):
        swaps.swapped(model, scenes)
    for without in ("kav20_fixed", "kav23"):  # the same everywhere; of pixels, which no low-resolution field replaces
        with pytest.raises(ka.KAError, match=f"{without} makes no kernels per window"):
            swaps.kernels_of(model_of(without, scene), scene)


def test_the_command_says_what_it_wants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert swaps.main([]) == swaps.main(["unused", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "python -m workbook.audit.swaps DATA RUN…" in told
    assert f"{tmp_path}: finished run folders are expected; train them first" in told
