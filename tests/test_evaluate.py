"""Whole-scene evaluation: tiles, tables, baselines, and the proofs of the pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ka
from ka import data, verify
from ka.evaluate import Evaluation, LinearInjection, Network, detail, evaluate, reach, sharpen, upsampled
from ka.simulate import Degradation
from ka.variants import VARIANTS

EXACT = [name for name, row in VARIANTS.items() if not row.position_bound]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("h", "w"), [(144, 112), (64, 208)])
def test_tiles_equal_one_pass(name: str, h: int, w: int) -> None:
    model = ka.build(name, n_bands=4, n_msi=2, dim=8).eval()
    up, msi = torch.rand(1, 4, h, w), torch.rand(1, 2, h, w)
    whole, tiled = sharpen(model, up, msi, tile=512), sharpen(model, up, msi, tile=32)
    assert (whole - tiled).abs().max() <= 1e-5 * max(1.0, whole.abs().max().item())


@pytest.mark.parametrize("name", ["kav11", "kav16"])
def test_tiles_of_odd_images(name: str) -> None:
    model = ka.build(name, n_bands=4, n_msi=2, dim=8).double().eval()
    up, msi = torch.rand(1, 4, 101, 131).double(), torch.rand(1, 2, 101, 131).double()
    torch.testing.assert_close(sharpen(model, up, msi, 512), sharpen(model, up, msi, 16), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["psrt_misaligned", "kav1", "kav3", "kav17"])
def test_tiles_cannot_equal_one_pass_where_kernels_are_bound(name: str) -> None:
    model = ka.build(name, n_bands=4, n_msi=2, dim=8).eval()
    up, msi = torch.rand(1, 4, 128, 128), torch.rand(1, 2, 128, 128)
    gap = (sharpen(model, up, msi, 512) - sharpen(model, up, msi, 32)).abs().max()
    assert gap > 1e-4
    assert VARIANTS[name].position_bound


def test_reach_grows_with_what_looks_sideways() -> None:
    reaches = [reach(VARIANTS[name]) for name in ("kav5_as_run", "psrt_noshuffle", "psrt", "kav11")]
    assert reaches[0] == reaches[1] < reaches[2] < reaches[3] <= 48


@pytest.mark.parametrize("tile", [0, -16, 20, 1.5, True])
def test_a_tile_off_the_grid_is_refused(tile: object) -> None:
    model = ka.build("kav11", n_bands=4, n_msi=2, dim=8)
    with pytest.raises(ka.KAError, match="positive multiple of 16"):
        sharpen(model, torch.rand(1, 4, 32, 32), torch.rand(1, 2, 32, 32), tile)  # type: ignore[arg-type]


def test_evaluation_gives_mean_and_sample_std() -> None:
    found = Evaluation({"a": {"psnr": 30.0}, "b": {"psnr": 34.0}, "c": {"psnr": 38.0}})
    assert (found.mean("psnr"), found.std("psnr")) == (34.0, 4.0)
    assert Evaluation({"a": {"psnr": 30.0}}).std("psnr") == 0.0


def test_a_prediction_with_nan_names_the_scene() -> None:
    scenes = data.load("indian_pines", "val")
    with pytest.raises(ka.KAError, match=r"scene .*(NaN|finite)"):
        evaluate(lambda scene: torch.full(scene.gt.shape, torch.nan), scenes, 4, ["psnr"])


def test_linear_injection_is_the_least_squares_fit() -> None:
    degradation = Degradation()
    scenes = data.load("indian_pines", "val")
    scene = scenes[0].load()
    fit = LinearInjection.fit(scenes, degradation)
    x = detail(scene.msi, degradation).reshape(scenes.n_msi, -1).astype(np.float64)
    residual = (scene.gt - scene.up).reshape(scenes.n_bands, -1)
    np.testing.assert_allclose(fit.weight, np.linalg.lstsq(x.T, residual.T, rcond=None)[0].T, atol=1e-5)
    names = ["psnr", "sam"]
    better, worse = evaluate(fit, scenes, 4, names), evaluate(upsampled, scenes, 4, names)
    assert better.mean("psnr") > worse.mean("psnr") + 3
    assert better.mean("sam") < worse.mean("sam")


def test_a_network_is_a_method() -> None:
    scenes = data.load("indian_pines", "val")
    model = ka.build("kav11", scenes.n_bands, scenes.n_msi, dim=8).eval()
    found = Network(model)(scenes[0].load())
    assert found.shape == scenes[0].gt.shape
    assert not found.requires_grad


def test_the_proofs_hold(cave_root: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bicubic and the published weights on the 11 real test scenes, within 0.02 dB / 0.01° / 0.01 (shared facts)."""
    assert verify.verify(cave_root, shared / "weights" / "psrt_cave_x4.pth.tar")
    printed = capsys.readouterr().out
    assert printed.count("agrees") == 9
    assert "11 test scenes" in printed
    assert "44 patches" in printed


def test_verify_explains_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert verify.main([""]) == 2
    assert "usage: make verify" in capsys.readouterr().err
