"""Projections onto the observations: exact, commuting, never farther from the truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ka
from ka.data import Degradation, Scene, degrade, observe, respond
from ka.data.simulate import degrade_matrix
from ka.methods.consistency import Consistency, Consistent, Kind, residuals
from ka.methods.injection import Bicubic

PROTOCOL = Degradation()
SRF = np.random.default_rng(1).random((3, 8)) / 8
SRF.setflags(write=False)  # as that of the Nikon D700 is


def scene(degradation: Degradation = PROTOCOL, noise: float = 0.0) -> Scene:
    rng = np.random.default_rng(0)
    made = observe("noise", rng.random((8, 32, 48), dtype=np.float32), SRF, degradation)
    lr, msi = (x + noise * rng.standard_normal(x.shape).astype(np.float32) for x in (made.lr, made.msi))
    return replace(made, lr=lr, msi=msi)


def error(image: np.ndarray, of: Scene) -> float:
    return float(((image - of.gt) ** 2).mean())


def test_reference_images_are_met(shared: Path) -> None:
    with np.load(shared / "golden" / "start.npz") as file:
        start = dict(file)
    pairs: list[tuple[Kind, str, str]] = [
        ("spectral", "up", "up_rgb_consistent"), ("both", "up", "up_both_consistent"), ("both", "local", "local_both")
    ]  # fmt: skip
    for kind, before, after in pairs:
        project = Consistency(Degradation(), start["srf"], kind)
        np.testing.assert_allclose(project(start[before], start["lr"], start["msi"]), start[after], atol=1e-5)


@pytest.mark.parametrize("degradation", [Degradation(), Degradation(8, 7, 2.0), Degradation(2, 3, 0.5, 0)])
def test_degrading_is_a_product_of_matrices(degradation: Degradation) -> None:
    x = scene(degradation).gt.astype(np.float64)
    down, across = degrade_matrix(32, degradation), degrade_matrix(48, degradation)
    np.testing.assert_allclose(down @ x @ across.T, degrade(x, degradation), atol=1e-6)


@pytest.mark.parametrize("kind", ["spectral", "spatial", "both"])
@pytest.mark.parametrize("degradation", [Degradation(), Degradation(8, 5, 1.0)])
def test_projections_agree_and_never_harm(kind: Kind, degradation: Degradation) -> None:
    seen = scene(degradation)
    project = Consistency(degradation, SRF, kind)
    image = project(seen.up, seen.lr, seen.msi)
    before, after = (residuals(x, seen.lr, seen.msi, degradation, SRF).rms() for x in (seen.up, image))
    for name in before:
        assert after[name] < 1e-6 if kind in (name, "both") else after[name] > 1e-3
        assert before[name] > 1e-3
    assert error(image, seen) < error(seen.up, seen)
    np.testing.assert_allclose(project(image, seen.lr, seen.msi), image, atol=1e-6)
    np.testing.assert_allclose(project(seen.gt, seen.lr, seen.msi), seen.gt, atol=1e-6)


def test_with_noise_a_part_of_the_way_is_better() -> None:
    seen = scene(noise=0.5)
    whole, part = (Consistency(Degradation(), SRF, "spatial", weight) for weight in (1.0, 0.2))
    assert error(part(seen.gt, seen.lr, seen.msi), seen) < error(whole(seen.gt, seen.lr, seen.msi), seen)


def test_residual_maps_are_those_of_the_observations() -> None:
    seen = scene()
    image = seen.gt.copy()
    image[:, 10, 22] += 0.1  # a pixel that is kept by the decimation, seen through the middle of the blur
    maps = residuals(image, seen.lr, seen.msi, Degradation(), SRF)
    change = respond(image, SRF) - seen.msi
    assert maps.spectral is not None
    np.testing.assert_allclose(maps.spectral, np.sqrt((change.astype(np.float64) ** 2).mean(0)), atol=1e-9)
    assert np.argwhere(maps.spatial > 1e-4).tolist() == [[2, 5]]
    assert maps.rms()["spectral"] > 0
    unknown = residuals(image, seen.lr, seen.msi, Degradation(), None)
    assert unknown.spectral is None
    assert unknown.rms() == {"spatial": maps.rms()["spatial"]}


def test_as_a_last_step_of_a_method() -> None:
    seen, project = scene(), Consistency(Degradation(), SRF)
    expected = torch.from_numpy(project(seen.up, seen.lr, seen.msi))
    torch.testing.assert_close(Consistent(Bicubic(), project)(seen), expected)
    again = Consistency.from_dict(project.to_dict())
    np.testing.assert_array_equal(again(seen.up, seen.lr, seen.msi), expected)
    with pytest.raises(ka.KAError, match="describes no consistency"):
        Consistency.from_dict({"kind": "both"})


def test_what_does_not_fit_is_said() -> None:
    seen, project = scene(), Consistency(Degradation(), SRF)
    with pytest.raises(ka.KAError, match=r"consistency 'spektral' is unknown; did you mean 'spectral'\?"):
        Consistency(Degradation(), SRF, "spektral")  # type: ignore[arg-type]
    for weight in (0, 1.5, float("nan")):
        with pytest.raises(ka.KAError, match="weight: "):
            Consistency(Degradation(), SRF, weight=weight)
    with pytest.raises(ka.KAError, match=r"srf: .* is not \(channels, bands\) = \(3, 8\)"):
        replace(project, srf=SRF[:2])(seen.up, seen.lr, seen.msi)
    with pytest.raises(ka.KAError, match=r"image: \(8, 8, 12\) does not fit"):
        project(seen.lr, seen.lr, seen.msi)
