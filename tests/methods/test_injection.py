"""Linear and local injection: against the reference, a plain computation, and on images that have nothing to tell."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ka
from ka.data import Degradation, Scene, bicubic, degrade, load, observe
from ka.methods.attention import NEAR
from ka.methods.injection import Bicubic, LinearInjection, LocalInjection, Start, fit_matrix, start_from_dict
from ka.methods.local import likeness, local_injection, local_kernels, with_roots


@pytest.fixture
def start(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "start.npz") as file:
        return dict(file)


def noise(bands: int = 5, channels: int = 2, h: int = 24, w: int = 16, ratio: int = 4) -> Scene:
    rng = np.random.default_rng(0)
    srf = rng.random((channels, bands)) / bands
    return observe("noise", rng.random((bands, h, w), dtype=np.float32), srf, Degradation(ratio))


def test_reference_images_are_met(start: dict[str, np.ndarray]) -> None:
    lr, msi, matrix = start["lr"], start["msi"], start["matrix"]
    scene = Scene("reference", start["gt"], lr, start["up"], msi)
    np.testing.assert_allclose(LinearInjection(Degradation(), matrix)(scene).numpy(), start["linear"], atol=1e-5)
    np.testing.assert_allclose(local_injection(lr, msi, matrix=matrix), start["local"], atol=1e-5)
    other = local_injection(lr, msi, matrix=matrix, radius=2, ridge=1e-3)
    np.testing.assert_allclose(other, start["local_r2_lam1e3"], atol=1e-5)
    np.testing.assert_array_equal(LocalInjection(Degradation(), matrix)(scene), local_injection(lr, msi, matrix=matrix))


def test_the_reference_image_is_injected_where_ridge_and_radius_say(start: dict[str, np.ndarray]) -> None:
    near, far = (local_injection(start["lr"], start["msi"], matrix=start["matrix"], radius=r) for r in (4, 2))
    assert np.abs(near - far).max() > 1e-3


def test_kernels_are_a_windows_ridge_regression() -> None:
    """By loops, in the middle, where no border takes part."""
    scene = noise(h=96, w=80)
    low, radius, ridge, matrix = degrade(scene.msi, Degradation()), 3, 1e-3, np.full((5, 2), 0.5)
    row, column = 12, 10

    def high(x: np.ndarray) -> np.ndarray:
        places = [(row + i, column + j) for i in range(-radius, radius + 1) for j in range(-radius, radius + 1)]
        return np.array([x[:, i, j] - x[:, i - 1 : i + 2, j - 1 : j + 2].mean((1, 2)) for i, j in places], np.float64)

    m, h = high(low.astype(np.float64)), high(scene.lr.astype(np.float64))
    square, cross = m.T @ m / len(m) + ridge * np.eye(2), m.T @ h / len(m) + ridge * matrix.T
    kernels = local_kernels(scene.lr, low, matrix, radius, ridge)
    np.testing.assert_allclose(kernels[row, column], np.linalg.solve(square, cross), rtol=1e-10)


def test_attention_weighs_a_windows_regression() -> None:
    """By loops, in the middle and in a corner, where the window is what lies inside."""
    scene = noise(h=96, w=80)
    low, radius, ridge, matrix = degrade(scene.msi, Degradation()), 3, 1e-3, np.full((5, 2), 0.5)
    places = likeness(scene.msi, Degradation())
    kernels = local_kernels(scene.lr, low, matrix, radius, ridge, places)
    padded = np.pad(np.concatenate([low, scene.lr], dtype=np.float64), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    for row, column in ((12, 10), (0, 19)):
        square, cross, total = np.zeros((2, 2)), np.zeros((2, 5)), 0.0
        for i in range(max(0, row - radius), min(24, row + radius + 1)):
            for j in range(max(0, column - radius), min(20, column + radius + 1)):
                apart = (places[0, :, i, j] - places[0, :, row, column]).square().sum().item()
                weight = np.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * NEAR**2) - apart / 2)
                high = padded[:, i + 1, j + 1] - padded[:, i : i + 3, j : j + 3].mean((1, 2))
                square += weight * np.outer(high[:2], high[:2])
                cross += weight * np.outer(high[:2], high[2:])
                total += weight
        square, cross = square / total, cross / total
        expected = np.linalg.solve(square + ridge * np.eye(2), cross + ridge * matrix.T)
        np.testing.assert_allclose(kernels[row, column], expected, rtol=1e-6)


@pytest.mark.parametrize(("bands", "channels", "h", "w", "ratio"), [(1, 1, 4, 4, 4), (7, 4, 8, 24, 8), (3, 6, 6, 9, 3)])
def test_any_bands_channels_and_sizes(bands: int, channels: int, h: int, w: int, ratio: int) -> None:
    scene = noise(bands, channels, h, w, ratio)
    for attend in (False, True):
        sharp = local_injection(scene.lr, scene.msi, Degradation(ratio), attend=attend)
        assert sharp.shape == scene.gt.shape
        assert sharp.dtype == np.float32
        assert np.isfinite(sharp).all()


def test_what_has_no_detail_is_upsampled() -> None:
    scene = noise()
    flat = np.full_like(scene.msi, 0.5)
    np.testing.assert_allclose(local_injection(scene.lr, flat), bicubic(scene.lr, 4), atol=1e-5)
    zeros = local_injection(np.zeros_like(scene.lr), np.zeros_like(scene.msi))
    assert (zeros == 0).all()
    dead = scene.msi.copy()
    dead[0] = 0
    assert np.isfinite(local_injection(scene.lr, dead)).all()
    assert np.isfinite(local_injection(scene.lr, dead, attend=True)).all()
    np.testing.assert_allclose(local_injection(scene.lr, flat, attend=True), bicubic(scene.lr, 4), atol=1e-5)


def test_roots_are_further_channels() -> None:
    scene = noise()
    both = with_roots(scene.msi)
    np.testing.assert_array_equal(both[:2], scene.msi)
    np.testing.assert_allclose(both[2:] ** 2, scene.msi + 1e-4, rtol=1e-5)
    expected = local_injection(scene.lr, both, matrix=np.ones((5, 4)))
    np.testing.assert_array_equal(local_injection(scene.lr, scene.msi, matrix=np.ones((5, 4)), roots=True), expected)
    assert np.isfinite(with_roots(-scene.msi)).all()


def test_a_flat_window_takes_the_matrix() -> None:
    low, lr, matrix = np.full((2, 12, 12), 0.3, np.float32), np.full((5, 12, 12), 0.2, np.float32), np.ones((5, 2))
    np.testing.assert_allclose(local_kernels(lr, low, matrix), np.ones((12, 12, 2, 5)), rtol=1e-8)


def test_it_is_better_than_one_matrix_and_better_with_it() -> None:
    """On the embedded scene's parts: bicubic < linear < local; the scene's own matrix costs little."""
    train, test = load("indian_pines", "train"), load("indian_pines", "val")
    linear = LinearInjection.fit(train)
    local, alone = LocalInjection(test.degradation, linear.matrix), LocalInjection(test.degradation)
    curved = LocalInjection(test.degradation, fit_matrix(train, roots=True), roots=True)
    attentive = replace(curved, attend=True)
    methods = (Bicubic(), linear, local, curved, attentive, alone)
    psnr = [ka.evaluate(method, test, ["psnr"]).mean("psnr") for method in methods]
    assert psnr[0] + 5 < psnr[1] < psnr[2] < psnr[3] < psnr[4]
    assert psnr[5] > psnr[1]


@pytest.mark.parametrize("kind", ["bicubic", "linear", "local", "alone", "attentive"])
def test_a_start_is_described_by_plain_values(kind: str) -> None:
    degradation, matrix = Degradation(4, 5, 1.5), np.random.default_rng(0).random((5, 2))
    starts: dict[str, Start] = {
        "bicubic": Bicubic(),
        "linear": LinearInjection(degradation, matrix),
        "local": LocalInjection(degradation, matrix, 3, 1e-4),
        "alone": LocalInjection(degradation, roots=True),
        "attentive": LocalInjection(degradation, attend=True),
    }
    start, scene = starts[kind], noise()
    again = start_from_dict(start.to_dict())
    assert again.key == start.key
    assert len({other.key for other in starts.values()}) == len(starts)
    np.testing.assert_array_equal(again(scene), start(scene))


def test_a_description_of_something_else_is_refused() -> None:
    whole = LocalInjection(Degradation()).to_dict()
    broken = ({}, {"name": "cubic"}, {**whole, "radius_": 3}, {k: v for k, v in whole.items() if k != "degradation"})
    for values in broken:
        with pytest.raises(ka.KAError, match="describes nothing that a network starts from"):
            start_from_dict(values)


def test_what_does_not_fit_is_said() -> None:
    scene = noise()
    lr, msi = scene.lr, scene.msi
    with pytest.raises(ka.KAError, match=r"msi: 24×16 pixels do not fit lr at ratio 2, which wants 12×8"):
        local_injection(lr, msi, Degradation(2))
    with pytest.raises(ka.KAError, match=r"matrix: \(2, 5\) is not \(bands, channels\) = \(5, 2\)"):
        local_injection(lr, msi, matrix=np.ones((2, 5)))
    with pytest.raises(ka.KAError, match=r"lr: an array of shape \(6, 4\) is no image"):
        local_injection(lr[0], msi)
    with pytest.raises(ka.KAError, match="msi: 384 values are not finite"):
        local_injection(lr, np.stack([msi[0], np.full_like(msi[0], np.nan)]))
    for radius in (0, 1.5, True):
        with pytest.raises(ka.KAError, match=f"radius: {radius}"):
            local_injection(lr, msi, radius=radius)  # type: ignore[arg-type]
    for ridge in (0, -1, float("nan"), "1e-5"):
        with pytest.raises(ka.KAError, match="ridge: "):
            local_injection(lr, msi, ridge=ridge)  # type: ignore[arg-type]


def test_a_scene_that_was_begun_still_knows_its_bicubic_image() -> None:
    scene = noise()
    local = LocalInjection(Degradation())
    begun = replace(scene, up=local(scene).numpy(), start=local.key)
    np.testing.assert_array_equal(Bicubic()(begun), scene.up)
    np.testing.assert_array_equal(local(begun), begun.up)
    assert begun.crop(0, 0, 8, 8).start == begun.load().start == local.key
