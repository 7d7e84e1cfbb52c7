"""`ka.sharpen`: real pairs, of any unit and order of axes, that fit each other or are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ka
from ka.data import Degradation, Scene
from ka.errors import KAError
from ka.methods.consistency import Consistency
from ka.methods.injection import LinearInjection


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A corner of the embedded scene: 200 bands, 4 channels."""
    return ka.data.load("indian_pines", "test")[0].crop(0, 0, 48, 32)


def last(array: np.ndarray) -> np.ndarray:
    return array.transpose(1, 2, 0)


@pytest.mark.parametrize("unit", [255, 10000, 65535])
def test_the_unit_of_a_cube_is_found_said_and_given_back(
    scene: Scene, unit: int, caplog: pytest.LogCaptureFixture
) -> None:
    plain = ka.sharpen(scene.lr, scene.msi)
    np.testing.assert_allclose(ka.sharpen(scene.lr * unit, scene.msi * unit) / unit, plain, atol=2e-6)
    assert f"lr was divided by {unit}; the result is multiplied by it; msi was divided by {unit}" in caplog.text


def test_highlights_of_one_image_do_not_part_the_units_of_both(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    bright = 1.3 / scene.lr.max()
    plain = ka.sharpen(scene.lr * bright, scene.msi * bright, max=1.3, msi_max=1.3)
    caplog.clear()
    np.testing.assert_allclose(ka.sharpen(scene.lr * bright, scene.msi * bright), plain, atol=1e-6)
    assert scene.msi.max() * bright < 1.2
    assert "lr was divided by 1.3" in caplog.text


def test_an_8_bit_picture_beside_a_cube_in_0_to_1(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    plain = ka.sharpen(scene.lr, scene.msi)
    eight = ka.sharpen(scene.lr, (scene.msi * 255).round().astype(np.uint8))
    assert np.abs(eight - plain).mean() < 0.002
    assert "msi was divided by 255" in caplog.text


def test_bands_last_are_found_and_given_back(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    plain = ka.sharpen(scene.lr, scene.msi)
    np.testing.assert_array_equal(ka.sharpen(last(scene.lr), last(scene.msi)), last(plain))
    np.testing.assert_array_equal(ka.sharpen(torch.from_numpy(scene.lr), last(scene.msi)), plain)
    assert "msi was read as h w c" in caplog.text


def test_float64_and_whole_numbers_are_converted_and_said(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    assert ka.sharpen(scene.lr.astype(np.float64), scene.msi).dtype == np.float32
    assert "lr was converted from float64 to float32" in caplog.text
    counts = (scene.lr * 9000).astype(np.uint16)
    assert ka.sharpen(counts, scene.msi).max() > 1000


def test_a_model_takes_what_it_was_trained_for() -> None:
    rng = np.random.default_rng(0)
    gt = rng.random((6, 32, 32)).astype(np.float32)
    srf = np.array([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0.5, 0.5]])
    pair = ka.data.observe("x", gt, srf, Degradation())
    model = ka.build("kav11", n_bands=6, n_msi=3, dim=8).eval()
    model.start = LinearInjection(Degradation(), np.zeros((6, 3)))
    model.consistency = Consistency(Degradation(), srf)
    by_hand = ka.Network(model)(pair).numpy()
    np.testing.assert_allclose(ka.sharpen(pair.lr, pair.msi, model), by_hand, atol=1e-6)
    with pytest.raises(KAError, match="trained for ratio 4, the images are of 2"):
        ka.sharpen(pair.lr, pair.msi[:, ::2, ::2], model)
    with pytest.raises(KAError, match="trained for 6 bands and 3 channels, the images have 5 and 3"):
        ka.sharpen(pair.lr[:5], pair.msi, model)


def test_a_unit_that_is_supposed_otherwise_than_in_training_is_said(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A dark image of a 12-bit sensor looks like one of 10 bits."""
    ka.save_weights(tmp_path / "x.safetensors", ka.build("conv3x3", 200, 4, dim=8), unit=4095)
    model = ka.load_checkpoint(tmp_path / "x.safetensors")
    dark = scene.lr / scene.lr.max() * 900, scene.msi / scene.msi.max() * 900
    ka.sharpen(*dark, model)
    assert "divided by 1023, as its values let suppose, the cubes that conv3x3 was trained on by 4095" in caplog.text
    caplog.clear()
    ka.sharpen(*dark, model, max=4095, msi_max=4095)
    ka.sharpen(scene.lr, scene.msi, model)
    assert "let suppose" not in caplog.text


def test_a_pair_of_other_sensors_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    gt = rng.random((4, 32, 32)).astype(np.float32)
    srf = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    pair = ka.data.observe("x", gt, srf, Degradation())
    model = ka.build("kav11", n_bands=4, n_msi=2, dim=8).eval()
    model.consistency = Consistency(Degradation(), srf)
    ka.sharpen(pair.lr, pair.msi, model)
    assert "sensors" not in caplog.text
    ka.sharpen(pair.lr, pair.msi[::-1].copy() * 0.5, model)
    assert "where the model's sensors would agree" in caplog.text


WRONG: dict[str, tuple[Callable[[Scene], tuple[np.ndarray, np.ndarray]], str]] = {
    "a size": (lambda s: (s.lr, s.msi[:, :46]), "46×32 pixels are no whole multiple"),
    "upsampled": (lambda s: (s.up, s.msi), "before it was upsampled"),
    "NaN": (lambda s: (s.lr * np.nan, s.msi), "19200 values are NaN"),
    "no data": (lambda s: (np.where(s.lr > 0.3, -9999, s.lr), s.msi), "values down to -9999"),
    "a batch": (lambda s: (s.lr[None], s.msi), "give the image alone, lr[0]"),
    "text": (lambda s: (s.lr.astype(str), s.msi), "not of real numbers"),
    "a vector": (lambda s: (s.lr.ravel(), s.msi), "no image of three axes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(scene: Scene, name: str) -> None:
    make, words = WRONG[name]
    with pytest.raises(KAError) as error:
        ka.sharpen(*make(scene))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_panchromatic_image_and_a_single_band_may_be_flat(scene: Scene) -> None:
    flat = ka.sharpen(scene.lr, scene.msi[0])
    np.testing.assert_array_equal(flat, ka.sharpen(scene.lr, scene.msi[:1]))
    band = ka.sharpen(scene.lr[0], scene.msi[0], msi_axes="c h w")
    np.testing.assert_array_equal(band, ka.sharpen(scene.lr[:1], scene.msi[:1])[0])


def test_what_a_method_returns_is_looked_at(scene: Scene) -> None:
    with pytest.raises(KAError, match=r"shape \(4, 48, 32\), not of \(200, 48, 32\)"):
        ka.sharpen(scene.lr, scene.msi, lambda s: torch.from_numpy(s.msi))
    with pytest.raises(KAError, match="values that are NaN"):
        ka.sharpen(scene.lr, scene.msi, lambda s: torch.from_numpy(s.up * np.nan))
    learning = torch.ones(1, requires_grad=True)
    made = ka.sharpen(scene.lr, scene.msi, lambda s: torch.from_numpy(s.up) * learning)
    np.testing.assert_array_equal(made, ka.sharpen(scene.lr, scene.msi, "bicubic"))


def test_a_closed_form_wants_images_in_its_unit(scene: Scene) -> None:
    with pytest.raises(KAError, match=r"msi: values from .* are not in \[0, 1\]"):
        ka.local_injection(scene.lr, scene.msi * 255)


def test_unclear_axes_are_asked_for() -> None:
    cube, sharp = np.ones((8, 8, 8)), np.ones((16, 16, 16))
    assert ka.sharpen(cube, sharp).shape == (8, 16, 16)  # bands first, as the docstring says
    with pytest.raises(KAError, match="axes='z' is unknown"):
        ka.sharpen(cube, sharp, axes="z")
    with pytest.raises(KAError, match=r"are above max=0\.5"):
        ka.sharpen(cube, sharp, max=0.5)
    assert ka.sharpen(np.ones((8, 8, 3)), np.ones((16, 16, 16)), axes="h w c", msi_axes="h w c").shape == (16, 16, 3)


def test_a_model_that_is_not_there(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(
        KAError, match="neither one of 'attentive injection', 'local injection', 'bicubic' nor a run folder"
    ):
        ka.sharpen(scene.lr, scene.msi, tmp_path / "none")


def test_a_scene_without_truth_loads_and_is_not_measured(scene: Scene) -> None:
    real = Scene("real", None, scene.lr, scene.up, scene.msi)
    assert real.load().gt is None
    assert real.ratio == 4
    one = ka.data.SceneSet("x", "test", Degradation(), None, (0, 1, 2), ("a",) * 4, [real])
    with pytest.raises(KAError, match="scene real has no truth"):
        ka.evaluate(ka.methods.injection.Bicubic(), one)
