"""The scenes of a run: training patches, validation scenes, test scenes."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ka import data
from ka.data import Degradation, Patches, Scene, SceneSet
from ka.errors import KAError
from ka.evaluation import LinearInjection
from workbook.training.config import Config


@dataclass(frozen=True)
class Data:
    """What a run sees."""

    patches: Patches  # of `train`
    train: SceneSet
    val: SceneSet  # the centres of the validation scenes, in memory; empty where the protocol holds none out
    test: SceneSet

    @cached_property
    def injection(self) -> LinearInjection:
        """Linear detail injection, fitted on the training scenes when it is first asked for."""
        return LinearInjection.fit(self.train)

    @cached_property
    def test_digest(self) -> str:
        """SHA-256 over names and values (gt, up, msi) of the test scenes: do two runs tell of the same?"""
        digest = hashlib.sha256()
        for scene in self.test:
            loaded = scene.load()
            for values in (loaded.gt, loaded.up, loaded.msi):
                digest.update(f"{scene.name} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def load_data(config: Config) -> Data:
    """The scenes of a configuration; what cannot work is found here as far as it shows without reading every pixel.

    Raises:
        KAError: missing or broken data; patches that do not fit; a batch larger than the training set.
    """
    degradation = Degradation(config.ratio)
    root, hold_out = config.data_root, config.hold_out
    if config.dataset == "h5" and root is not None and Path(root).is_file():
        cure = "give the folder that holds train_cave(with_up)x4.h5, validation_… and test_…"
        raise KAError(f"data_root={root} is one file, and a run trains, validates and tests on different ones; {cure}")
    names = [name.strip() for name in (config.train_scenes or "").split(",") if name.strip()]
    train = data.load(config.dataset, "train", root, degradation, scenes=names or None, hold_out_val=hold_out)
    patches = Patches(train, config.patch, config.stride)
    if config.batch > len(patches):
        raise KAError(f"batch={config.batch} is more than the {len(patches)} training patches; choose a smaller one")
    val = replace(train, split="val", scenes=[])
    if hold_out:
        whole = data.load(config.dataset, "val", root, degradation)
        val = replace(whole, scenes=[_centre(scene, config.eval_size) for scene in whole])
    return Data(patches, train, val, data.load(config.dataset, "test", root, degradation))


def _centre(scene: Scene, size: int | None) -> Scene:
    """The central part of a validation scene, on the low-resolution grid."""
    (h, w), r = scene.gt.shape[-2:], scene.ratio
    if size is None or size >= max(h, w):
        return scene.load()
    height, width = (min(size, side) // r * r for side in (h, w))
    return scene.crop((h - height) // 2 // r * r, (w - width) // 2 // r * r, height, width)
