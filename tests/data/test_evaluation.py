"""Evaluation of whole scene sets, methods without training, and the proofs of the pipeline."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ka
from ka import data
from ka.evaluation import Evaluation, evaluate
from ka.inference import Network
from ka.methods.injection import Bicubic, LinearInjection
from ka.methods.local import detail
from workbook import verify


def test_a_band_without_signal_is_left_out() -> None:
    """Whether it is predicted without error (its PSNR would be infinite) or not; of ERGAS if it is zero."""
    scenes = data.load("indian_pines", "val")
    scene, rest = scenes[0], np.delete(np.arange(200), [3, 7])
    scene.gt[3], scene.up[3], scene.gt[7], scene.up[7] = 0, 0, 0.25, 0.5
    found = evaluate(Bicubic(), scenes)
    up, gt = (torch.from_numpy(x)[None] for x in (scene.up, scene.gt))
    assert found.mean("psnr") == float(ka.metrics.psnr(up[:, rest], gt[:, rest]))
    lit = np.delete(np.arange(200), 3)
    assert found.mean("ergas") == float(ka.metrics.ergas(up[:, lit], gt[:, lit], 4))
    scene.up[3] = 0.1
    assert evaluate(Bicubic(), scenes).mean("psnr") == found.mean("psnr")
    assert evaluate(Bicubic(), scenes).mean("rmse") > found.mean("rmse")


def test_what_a_scene_leaves_undefined_is_left_out_of_means() -> None:
    scenes = data.load("indian_pines", "val")
    one, black = scenes[0].crop(0, 0, 16, 16), scenes[0].crop(0, 0, 16, 16)
    black.gt[:], black.up[:] = 0, 0
    found = evaluate(Bicubic(), replace(scenes, scenes=[one, replace(black, name="black")]))
    alone = evaluate(Bicubic(), replace(scenes, scenes=[one]))
    stored = found.to_dict()
    assert [name for name, value in stored["scenes"]["black"].items() if value is None] == [  # type: ignore[index]
        "psnr", "sam", "ergas", "cc", "psnr_published",
    ]  # fmt: skip
    for name in ("psnr", "sam", "ergas", "cc"):
        assert (found.mean(name), found.std(name)) == (alone.mean(name), 0.0)
    nothing = evaluate(Bicubic(), replace(scenes, scenes=[black])).to_dict()
    assert nothing["mean"]["psnr"] is None  # type: ignore[index]
    assert nothing["mean"]["rmse"] == 0  # type: ignore[index]


def test_an_infinite_psnr_is_none_in_json() -> None:
    scenes = data.load("indian_pines", "val")
    scenes[0].up[3] = scenes[0].gt[3]
    stored = evaluate(Bicubic(), replace(scenes, scenes=[scenes[0], replace(scenes[0], name="again")]), ["psnr"])
    assert stored.to_dict()["mean"] == stored.to_dict()["std"] | {"psnr": None}


def test_only_what_is_undefined_becomes_nan() -> None:
    """A scene too small for a window, and a misspelt metric, are errors that name both."""
    scenes = data.load("indian_pines", "val")
    small = replace(scenes, scenes=[scenes[0].crop(0, 0, 8, 8)])
    with pytest.raises(ka.KAError, match=r"scene indian_pines_val\[0:8,0:8\], metric ssim: the image is 8×8"):
        evaluate(Bicubic(), small)
    assert evaluate(Bicubic(), small, ["psnr", "uiqi"]).mean("psnr") > 20
    with pytest.raises(ka.KAError, match=r"metric 'psrn' is unknown; did you mean 'psnr'\?"):
        evaluate(Bicubic(), small, ["psrn"])


def test_the_ratio_is_that_of_the_scenes() -> None:
    """ERGAS divides by it; a set that says another ratio than its scenes have is refused."""
    scenes = data.load("indian_pines", "val", degradation=ka.Degradation(8))
    evaluation = evaluate(Bicubic(), scenes, ["ergas"])
    up, gt = (torch.from_numpy(x)[None] for x in (scenes[0].up, scenes[0].gt))
    assert evaluation.mean("ergas") == pytest.approx(float(ka.metrics.ergas(up, gt, 8)), rel=1e-12)
    with pytest.raises(ka.KAError, match="indian_pines_val is of ratio 8, its set of 4"):
        evaluate(Bicubic(), replace(scenes, degradation=ka.Degradation(4)), ["ergas"])


def test_evaluation_gives_mean_and_sample_std() -> None:
    evaluation = Evaluation({"a": {"psnr": 30.0}, "b": {"psnr": 34.0}, "c": {"psnr": 38.0}})
    assert (evaluation.mean("psnr"), evaluation.std("psnr")) == (34.0, 4.0)
    assert Evaluation({"a": {"psnr": 30.0}}).std("psnr") == 0.0


def test_a_prediction_with_nan_names_the_scene() -> None:
    scenes = data.load("indian_pines", "val")
    with pytest.raises(ka.KAError, match=r"scene .*(NaN|finite)"):
        evaluate(lambda scene: torch.full(scene.gt.shape, torch.nan), scenes, ["psnr"])


def test_linear_injection_is_the_least_squares_fit() -> None:
    scenes = data.load("indian_pines", "val")
    scene = scenes[0].load()
    fit = LinearInjection.fit(scenes)
    x = detail(scene.msi, scenes.degradation).reshape(scenes.n_msi, -1).astype(np.float64)
    residual = (scene.gt - scene.up).reshape(scenes.n_bands, -1)
    np.testing.assert_allclose(fit.matrix, np.linalg.lstsq(x.T, residual.T, rcond=None)[0].T, atol=1e-5)
    names = ["psnr", "sam"]
    better, worse = evaluate(fit, scenes, names), evaluate(Bicubic(), scenes, names)
    assert better.mean("psnr") > worse.mean("psnr") + 3
    assert better.mean("sam") < worse.mean("sam")


@pytest.mark.slow
def test_the_proofs_hold(cave_root: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bicubic and the published weights on the 11 real test scenes, within 0.02 dB / 0.01° / 0.01 (shared facts)."""
    scenes = data.load("cave", "test", cave_root)
    published = ka.load_checkpoint(shared / "weights" / "psrt_cave_x4.pth.tar")
    assert verify.check(scenes, Bicubic(), "bicubic")
    bicubic = ka.evaluate(Bicubic(), scenes, ["psnr", "sam", "ergas"])
    rows = np.stack([bicubic.values(name) for name in ("psnr", "sam", "ergas")])  # the first proof, without verify
    assert rows.shape == (3, 11)
    assert (np.abs(rows.mean(1) - [34.326, 4.450, 7.197]) <= [0.02, 0.01, 0.01]).all(), rows
    assert (np.abs(rows.std(1, ddof=1) - [3.882, 1.618, 4.869]) <= [0.02, 0.01, 0.01]).all(), rows
    assert verify.check(scenes, Network(published), "PSRT")
    printed = capsys.readouterr().out
    assert printed.count("agrees") == 6
    assert printed.count("11 of 512×512 pixels") == 2


def test_a_difference_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    agrees = verify.check(data.load("indian_pines", "val"), Bicubic(), "bicubic")
    assert not agrees
    assert capsys.readouterr().out.count("DIFFERS") == 3


def test_verify_explains_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert verify.main([""]) == 2
    assert "usage: make verify" in capsys.readouterr().err
