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


def test_undefined_and_infinite_metrics_are_none_in_json() -> None:
    scenes = data.load("indian_pines", "val")
    scene = scenes[0]
    scene.gt[3], scene.up[3] = 0, 0  # a black band: no ERGAS; without error there: infinite PSNR
    stored = evaluate(Bicubic(), scenes).to_dict()
    (values,) = stored["scenes"].values()  # type: ignore[attr-defined]
    assert (values["ergas"], values["psnr"], stored["mean"]["psnr"]) == (None, None, None)  # type: ignore[index]
    assert values["rmse"] > 0


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
