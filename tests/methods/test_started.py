"""A network on scenes, from what it starts from to the consistency of what it gives; both are kept with its weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ka
from ka.data import Degradation, Patches, Scene, SceneSet, observe
from ka.inference import run_network
from ka.methods.injection import Bicubic, LinearInjection, LocalInjection
from ka.methods.started import StartedScenes, started

SRF = np.random.default_rng(1).random((3, 6)) / 6


def scene(seed: int = 0) -> Scene:
    gt = np.random.default_rng(seed).random((6, 32, 48), dtype=np.float32)
    return observe(f"noise{seed}", gt, SRF, Degradation())


@pytest.fixture
def scenes() -> SceneSet:
    return SceneSet("noise", "train", Degradation(), None, (0, 1, 2), ("R", "G", "B"), [scene(0), scene(1)], SRF)


@pytest.fixture
def model() -> ka.PSRT:
    torch.manual_seed(0)
    model = ka.build("kav11", 6, 3, 8)
    model.start = LocalInjection(Degradation(), np.ones((6, 3)))
    model.consistency = ka.Consistency(Degradation(), SRF)
    return model.eval()


def test_patches_are_cut_from_whole_scenes_that_were_begun(scenes: SceneSet) -> None:
    local = LocalInjection(Degradation(), np.ones((6, 3)))
    batch = Patches(started(scenes, local), 16, 16).batch([0, 3])
    whole = [local(scene).numpy() for scene in scenes]
    np.testing.assert_array_equal(batch["up"], [whole[0][:, :16, :16], whole[1][:, :16, 16:32]])
    assert started(scenes, Bicubic()) is scenes


def test_what_does_not_fit_is_made_again(scenes: SceneSet) -> None:
    local = LocalInjection(Degradation())
    few = StartedScenes(scenes.scenes, local, most=scenes[0].up.size)
    for index in (0, 1, 1):
        np.testing.assert_array_equal(few[index].up, local(scenes[index]))
    assert list(few.kept) == [0]


def test_a_network_begins_and_ends_as_its_model_says(model: ka.PSRT) -> None:
    seen = scene()
    up = model.start(seen)
    image = run_network(model, up[None], torch.from_numpy(seen.msi)[None])[0].numpy()
    assert model.consistency is not None
    expected = model.consistency(image, seen.lr, seen.msi)
    np.testing.assert_array_equal(ka.Network(model)(seen), expected)
    begun = replace(seen, up=up.numpy(), start=model.start.key)
    np.testing.assert_array_equal(ka.Network(model)(begun), expected)
    other = replace(seen, up=np.zeros_like(seen.up), start="of another network")
    np.testing.assert_array_equal(ka.Network(model)(other), expected)


def test_a_checkpoint_alone_sharpens(model: ka.PSRT, tmp_path: Path) -> None:
    seen, path = scene(), tmp_path / "model.safetensors"
    ka.save_weights(path, model)
    again = ka.load_checkpoint(path)
    np.testing.assert_array_equal(ka.Network(again)(seen), ka.Network(model)(seen))
    np.testing.assert_allclose(ka.Network(again.fold())(seen), ka.Network(model)(seen), atol=1e-5)
    model.start, model.consistency = LinearInjection(Degradation(), np.ones((6, 3))), None
    ka.save_weights(path, model)
    assert ka.load_checkpoint(path).start.key == model.start.key
    assert ka.load_checkpoint(path).consistency is None


def test_weights_of_before_start_bicubically(model: ka.PSRT, tmp_path: Path) -> None:
    ka.save_weights(tmp_path / "new.safetensors", model)
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        header = {k: v for k, v in file.metadata().items() if k not in ("start", "consistency")}
    save_file(dict(model.state_dict()), tmp_path / "old.safetensors", header)
    old = ka.load_checkpoint(tmp_path / "old.safetensors")
    assert (old.start, old.consistency) == (Bicubic(), None)
    for broken in ("{", "{}", "[]", '{"name": "cubic"}'):
        save_file(dict(model.state_dict()), tmp_path / "broken.safetensors", header | {"start": broken})
        with pytest.raises(ka.KAError, match="its header is damaged"):
            ka.load_checkpoint(tmp_path / "broken.safetensors")
