"""Runs that start from a closed form: what they see, what they keep, and that training can only go on from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ka
from ka.errors import KAError
from ka.methods.injection import LinearInjection, LocalInjection
from ka.methods.local import with_roots
from workbook.training import finish
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.scenes import load_data
from workbook.training.step import Step, initial_state
from workbook.training.train import train


def local(path: Path, **changes: Any) -> Config:
    """The embedded scene for seconds, from local injection and consistent with both observations."""
    fields = {"start": "local", "roots": True, "radius": 3, "ridge": 1e-4, "consistency": "both"}
    return Config.preset("smoke", **{**fields, "run_dir": str(path), **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(local(tmp_path_factory.mktemp("started") / "run"), bar=False)


def test_a_network_starts_from_the_image_that_was_asked_for(tmp_path: Path) -> None:
    scenes = load_data(local(tmp_path))
    assert isinstance(scenes.start, LocalInjection)
    assert scenes.start is scenes.untrained["local injection"]
    assert (scenes.start.radius, scenes.start.ridge, scenes.start.roots) == (3, 1e-4, True)
    assert np.shape(scenes.start.matrix) == (200, 8)
    assert isinstance(load_data(local(tmp_path, start="linear")).start, LinearInjection)
    bicubic = load_data(local(tmp_path, start="bicubic"))
    np.testing.assert_array_equal(bicubic.patches[0].up, bicubic.train[0].crop(0, 0, 16, 16).up)
    whole = scenes.start(scenes.train[0]).numpy()
    np.testing.assert_array_equal(scenes.patches[0].up, whole[:, :16, :16])
    assert scenes.val[0].start == scenes.start.key
    assert scenes.test[0].start == "bicubic"
    assert with_roots(scenes.train[0].msi).shape[0] == 8


def test_an_untrained_network_gives_the_start_made_consistent(tmp_path: Path) -> None:
    scenes = load_data(local(tmp_path))
    state = initial_state(scenes.config, 200, 4, torch.device("cpu"), scenes.start, scenes.consistency)
    assert state.average.start.key == scenes.start.key
    scene = scenes.test[0].load()
    assert scenes.consistency is not None
    expected = scenes.consistency(scenes.start(scene).numpy(), scene.lr, scene.msi)
    np.testing.assert_allclose(ka.Network(state.model.eval())(scene), expected, atol=1e-6)


def test_training_goes_through_the_spectral_projection(tmp_path: Path) -> None:
    """An error that the HR-MSI gives away costs nothing: an image that is off by such a one is as good as the truth."""
    scenes = load_data(local(tmp_path))
    assert scenes.consistency is not None
    batch = scenes.patches.batch([0, 1])
    seen = torch.from_numpy(np.linalg.pinv(scenes.consistency.srf) @ np.ones((4, 4))).float()
    off = batch["gt"] + torch.einsum("bm,nmhw->nbhw", seen, batch["msi"])
    step = Step(scenes.config, 6, scenes.patches, scenes.consistency)
    torch.testing.assert_close(step.project(off, batch["msi"]), batch["gt"], atol=1e-5, rtol=0)
    for kind in (None, ka.Consistency(scenes.consistency.degradation, scenes.consistency.srf, "spatial")):
        assert Step(scenes.config, 6, scenes.patches, kind).project(off, batch["msi"]) is off


def test_a_run_keeps_what_repeats_its_start(run: Run) -> None:
    scenes = load_data(local(run.path))
    config, model = run.config(), run.model()
    assert config is not None
    assert (config.start, config.roots, config.consistency) == ("local", True, "both")
    assert model.start.key == scenes.start.key
    scene, methods = scenes.test[0].load(), run.metrics()["methods"]
    psnr = ka.evaluate(ka.Network(model), scenes.test, ["psnr"]).mean("psnr")
    assert psnr == pytest.approx(methods["best"]["mean"]["psnr"], abs=1e-4)
    seen = ka.residuals(ka.Network(model)(scene).numpy(), scene.lr, scene.msi, scenes.test.degradation, scenes.test.srf)
    assert all(value < 1e-6 for value in seen.rms().values())
    assert methods["local injection"]["mean"]["psnr"] > methods["linear injection"]["mean"]["psnr"]


def test_another_start_is_another_run(run: Run) -> None:
    for change in ({"start": "linear"}, {"radius": 4}, {"ridge": 1e-5}, {"roots": False}, {"consistency": "none"}):
        with pytest.raises(KAError, match="holds another run"):
            train(local(run.path, **change), bar=False)


def test_runs_of_before_start_bicubically(run: Run, tmp_path: Path) -> None:
    """A config.json of former versions has none of these fields."""
    former = {"start", "radius", "ridge", "roots", "consistency"}
    old = {key: value for key, value in local(tmp_path).to_dict().items() if key not in former}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = Run(tmp_path).config()
    assert config is not None
    assert (config.start, config.consistency) == ("bicubic", "none")


def test_consistency_needs_a_known_response(smoke: Any, tmp_path: Path) -> None:
    with pytest.raises(KAError, match=r"consistency='both' needs the response that made the HR-MSI, which h5"):
        load_data(smoke(tmp_path, consistency="both"))
    assert train(smoke(tmp_path, start="local"), bar=False).finished


def test_methods_without_training_are_measured_once_for_a_folder(
    tiny_h5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "dataset": "h5",
            "data_root": str(tiny_h5),
            "run_dir": str(tmp_path / "runs" / name),
            "iterations": 3,
        } | changes
        return train(Config.preset("smoke", **given), bar=False).metrics()["methods"]

    measured: list[str] = []
    whole = finish.evaluate
    monkeypatch.setattr(finish, "evaluate", lambda method, scenes: measured.append(method) or whole(method, scenes))
    first = run("a")
    assert len(measured) == 5
    assert run("b", seed=1) | {"best": 0, "last": 0} == first | {"best": 0, "last": 0}
    assert len(measured) == 6  # the network alone
    run("c", radius=2)
    assert len(measured) == 8  # and local injection, which is another one
    (kept,) = {path.parent for path in tmp_path.rglob(".untrained/*.json")}
    for path in kept.iterdir():
        path.write_text("{half")
    run("d", seed=2)
    assert len(measured) == 13
