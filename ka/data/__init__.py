"""Scenes: the embedded one, CAVE, the published HDF5 files; their simulation, and patches cut out of them."""

from ka.data.datasets import DATASETS, SPLITS, load
from ka.data.patches import Patches
from ka.data.scenes import Scene, SceneSet, observe
from ka.data.simulate import Degradation, bicubic, degrade, respond

__all__ = [
    "DATASETS", "SPLITS", "Degradation", "Patches", "Scene", "SceneSet",
    "bicubic", "degrade", "load", "observe", "respond",
]  # fmt: skip
