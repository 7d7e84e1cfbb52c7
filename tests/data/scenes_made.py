"""Scenes made for tests of ka.data: CAVE's folders, published files, noise."""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from ka.data import Degradation, Scene, SceneSet, observe
from ka.data.cave import CAVE_TEST, CAVE_TRAIN
from ka.data.h5 import FIELDS
from ka.data.simulate import CAVE_WAVELENGTHS, NIKON_D700


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()


def write_scene(folder: Path, name: str, size: int = 16, seed: int = 0) -> np.ndarray:
    """Write 31 PNGs into `folder` and return what they hold."""
    cube = np.random.default_rng([seed, *name.encode()]).integers(0, 65536, (31, size, size), dtype=np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    for i, band in enumerate(cube, 1):
        (folder / f"{name}_ms_{i:02d}.png").write_bytes(png(band))
    return cube


def write_cave(root: Path, names: Any = (*CAVE_TRAIN, *CAVE_TEST)) -> dict[str, np.ndarray]:
    return {name: write_scene(root / f"{name}_ms" / f"{name}_ms", name) for name in names}


def first_png(root: Path, name: str = "beads") -> Path:
    return root / f"{name}_ms" / f"{name}_ms" / f"{name}_ms_01.png"


def same(a: Scene, b: Scene) -> None:
    for key in FIELDS:
        np.testing.assert_array_equal(getattr(a, key)[:], getattr(b, key)[:], err_msg=key)


def two_scenes() -> SceneSet:
    """Two scenes of 32×48."""
    rng = np.random.default_rng(0)
    scenes = [
        observe(name, rng.random((31, 32, 48), np.float32), NIKON_D700, Degradation()) for name in ("beads", "cloth")
    ]
    return SceneSet("cave", "train", Degradation(), CAVE_WAVELENGTHS, (22, 14, 6), ("R", "G", "B"), scenes, NIKON_D700)


def published(path: Path, scenes: SceneSet, **replaced: Any) -> Path:
    """Write the published layout by hand, as its authors did: no attributes."""
    arrays = {name: np.stack([getattr(scene, key) for scene in scenes]) for key, name in FIELDS.items()}
    path.unlink(missing_ok=True)  # readers keep the old one open
    with h5py.File(path, "w") as file:
        for name, values in {**arrays, **replaced}.items():
            if values is not None:
                file[name] = values
    return path
