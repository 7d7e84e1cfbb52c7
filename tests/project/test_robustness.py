"""What methods were not made for: conditions are what they say, and only the observations change."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ka.data import SceneSet, load
from ka.errors import KAError
from workbook import robustness
from workbook.results import stored
from workbook.robustness import CONDITIONS, Condition, shifted, to_markdown, with_noise
from workbook.training.config import Config
from workbook.training.train import train


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return load("indian_pines", "val")


def test_as_assumed_is_the_benchmark(scenes: SceneSet) -> None:
    scene, seen = scenes[0], Condition().scene(scenes[0], scenes)
    for name in ("gt", "lr", "up", "msi"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(scene, name))


def test_noise_has_the_ratio_that_it_says(scenes: SceneSet) -> None:
    noisy = with_noise(scenes[0].gt, 30, np.random.default_rng(0))
    power, noise = ((x.astype(np.float64) ** 2).mean((1, 2)) for x in (scenes[0].gt, noisy - scenes[0].gt))
    np.testing.assert_allclose(10 * np.log10(power / noise), 30, atol=0.5)
    seen, again = (Condition(noise=30).scene(scenes[0], scenes) for _ in range(2))
    np.testing.assert_array_equal(seen.msi, again.msi)
    assert np.abs(seen.up - scenes[0].up).max() > 0
    np.testing.assert_array_equal(seen.gt, scenes[0].gt)


def test_a_wider_blur_and_a_shifted_response_change_one_image_each(scenes: SceneSet) -> None:
    blurred, moved = (condition.scene(scenes[0], scenes) for condition in (Condition(sigma=1), Condition(shift=10)))
    np.testing.assert_array_equal(blurred.msi, scenes[0].msi)
    assert blurred.lr.std() < scenes[0].lr.std()
    np.testing.assert_array_equal(moved.lr, scenes[0].lr)
    assert np.abs(moved.msi - scenes[0].msi).max() > 1e-3


def test_a_shift_moves_the_curve_and_keeps_its_sum() -> None:
    wavelengths, srf = np.arange(400.0, 701, 10), np.exp(-((np.arange(31) - 15.0) ** 2) / 20)[None]
    moved = shifted(srf, wavelengths, 10)
    np.testing.assert_allclose(moved[0, 1:], srf[0, :-1], rtol=1e-6)
    assert moved.sum() == pytest.approx(srf.sum())


def test_what_is_kept_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, on a run of seconds: every condition and method, as a table and a figure."""
    monkeypatch.setattr(stored, "results_folder", lambda: tmp_path)
    config = Config.preset("smoke", start="local", consistency="both", run_dir=str(tmp_path / "run"))
    run = train(config, bar=False)
    assert robustness.main(["unused", str(run.path)]) == 0
    measured = robustness.read()
    assert list(measured) == list(CONDITIONS)
    methods = [
        "bicubic",
        *(f"{kind} injection" for kind in ("linear", "local", "attentive")),
        "local injection, consistent",
    ]
    assert list(measured["as assumed"]) == [*methods, "kav11, both", "kav11, spectral"]
    assert measured["noise 30 dB"]["linear injection"]["psnr"] < measured["as assumed"]["linear injection"]["psnr"]
    text = to_markdown(measured)
    assert f"| {measured['as assumed']['bicubic']['psnr']:.2f}" in text
    assert len(robustness.chart(measured).axes) == 3
    assert robustness.main(["unused", str(tmp_path / "none")]) == 2
    assert robustness.main([str(tmp_path)]) == 2
    assert "finished run folders are expected" in capsys.readouterr().err
    assert json.loads((tmp_path / "robustness.json").read_text()) == measured


def test_without_a_known_response_there_is_nothing_to_shift(scenes: SceneSet) -> None:
    with pytest.raises(KAError, match="response and wavelengths must be known"):
        Condition().scene(scenes[0], replace(scenes, srf=None))
