"""What `prepare_cave.ipynb` shows and writes: synthetic scenes laid out as CAVE, a picture, the files."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ka.data import Degradation, Patches, SceneSet, load
from ka.data.cave import CAVE_TEST, CAVE_TRAIN
from ka.data.h5 import FIELDS, LazyRow, made_with, read_header
from ka.data.own.files import Reading
from ka.errors import KAError
from ka.files import replacing
from workbook.style import styled


def write_synthetic(root: Path, names: Sequence[str], size: int = 128) -> None:
    """Scenes of 60 coloured discs, each of one smooth spectrum, as 31 16-bit PNGs laid out like CAVE's download."""
    y, x = np.mgrid[:size, :size] / size
    band = np.linspace(0, 1, 31)[:, None]
    for name in names:
        rng = np.random.default_rng(list(name.encode()))
        cube = np.full((31, size, size), 0.05)
        for col, row, radius, peak, width in rng.random((60, 5)):
            inside = (x - col) ** 2 + (y - row) ** 2 < (0.03 + 0.1 * radius) ** 2
            cube[:, inside] = 0.1 + 0.8 * np.exp(-(((band - peak) / (0.1 + 0.4 * width)) ** 2))
        folder = root / f"{name}_ms" / f"{name}_ms"
        folder.mkdir(parents=True)
        for i, image in enumerate((cube * 65535).astype(np.uint16), 1):
            Image.fromarray(image).save(folder / f"{name}_ms_{i:02d}.png")


def scene_sets(
    root: Path, degradation: Degradation, scenes: Sequence[str] | None, srf: str | None = None
) -> dict[str, SceneSet]:
    """Training and test scenes of CAVE; of the `scenes` alone where some are named. Missing or broken files, and an
    unknown scene, are a `KAError`.
    """
    sets = {}
    for split, elsewhere in (("train", CAVE_TEST), ("test", CAVE_TRAIN)):
        # A name in neither split goes to both, and is refused there.
        names = None if scenes is None else [name for name in scenes if name not in elsewhere]
        if names is None or names:
            sets[split] = load("cave", split, root, degradation, scenes=names, reading=Reading(srf=srf))
    return sets


def source_hash(scene_set: SceneSet) -> str:
    """SHA-256 over the truths of a set in order, as float32 bytes."""
    digest = hashlib.sha256()
    for scene in scene_set:
        digest.update(np.ascontiguousarray(scene.gt[:], dtype="<f4").data)
    return digest.hexdigest()


def _attributes(source: Patches | SceneSet) -> dict[str, Any]:
    """What a file says of its source; the hash first, which files of other makers lack."""
    scenes = source.scene_set if isinstance(source, Patches) else source
    attributes = {
        "source_sha256": source_hash(scenes),
        "dataset": scenes.name,
        "split": scenes.split,
        "ratio": scenes.ratio,
        "scenes": json.dumps([scene.name for scene in scenes]),
        "msi_names": json.dumps(scenes.msi_names),
        "wavelengths": scenes.wavelengths,
        "srf": scenes.srf,
        **made_with(scenes.degradation),
    }
    if isinstance(source, Patches):
        attributes |= {"patch_size": source.size, "stride": source.stride}
    return {key: value for key, value in attributes.items() if value is not None}


def write_h5(path: str | Path, source: Patches | SceneSet, provenance: Mapping[str, Any]) -> None:
    """Write scenes or patches in the published layout, float32, one chunk a row, whole or not at all.

    One row is in memory at a time, beside the scenes themselves. Attributes: source hash, scene names, patch size and
    stride, blur, offset, ratio and response, under the names that `load` reads, and those of `provenance` (strings or
    numbers, such as the version of ka). KAError if one is given twice, or the disk is full.
    """
    attributes = _attributes(source)
    if twice := sorted(set(attributes) & set(provenance)):
        raise KAError(f"{path}: provenance names {', '.join(twice)}, which the file holds anyway; leave it out")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for i in range(len(source)):
            row = source[i].load()
            for key, name in FIELDS.items():
                values = getattr(row, key)
                if i == 0:
                    file.create_dataset(name, (len(source), *values.shape), np.float32, chunks=(1, *values.shape))
                file[name][i] = values
        file.attrs.update({**attributes, **provenance})


def check_h5(path: str | Path, source: Patches | SceneSet, rows: int = 16, seed: int = 0) -> None:
    """Read random rows of a file back: KAError if they, its count or its attributes differ from the source's."""
    header = read_header(Path(path))
    shapes, attributes = header.shapes, header.attributes
    for key, name in FIELDS.items():
        if shapes[key][0] != len(source):
            raise KAError(f"{path}: {name} has {shapes[key][0]} rows, the source {len(source)}; write it again")
    for key, value in _attributes(source).items():
        if key not in attributes or not np.array_equal(attributes[key], value):
            raise KAError(f"{path}: attribute {key} is {attributes.get(key)!r}, not {value!r}; write it again")
    for i in np.random.default_rng(seed).permutation(len(source))[:rows]:
        row = source[int(i)].load()
        for key, name in FIELDS.items():
            values = getattr(row, key)
            if not np.array_equal(LazyRow(str(path), name, int(i), values.shape)[:], values):
                raise KAError(f"{path}: {name}, row {i} differs from the source; write it again")


def write_files(
    sets: dict[str, SceneSet], folder: Path, patch: int, stride: int, provenance: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Write patches of the training scenes and whole test scenes as the published files, and check what was written.

    Each set is taken out of `sets`, so that its scenes leave memory with it; a row of numbers tells of its file.
    Patches that do not fit, a full disk, and a file that differs from its source are a `KAError`.
    """
    for split in list(sets):
        scenes = sets.pop(split)
        source = Patches(scenes, patch, stride) if split == "train" else scenes
        path = folder / f"{split}_cave(with_up)x{scenes.ratio}.h5"
        write_h5(path, source, provenance)
        check_h5(path, source)
        first = source[0]
        shapes = {"GT": first.gt.shape, "LRHSI": first.lr.shape, "RGB": first.msi.shape}
        yield {"split": split, "file": path.name, "rows": len(source), **shapes, "MB": path.stat().st_size / 1e6}


@styled
def picture(scenes: SceneSet) -> Figure:
    """Four images of the first scene, and the spectrum of the pixel where `up` is worst."""
    scene, display = scenes[0], list(scenes.display)
    bands = {"truth": scene.gt, "low resolution": scene.lr, "up": scene.up}
    images = {title: x[display] for title, x in bands.items()} | {"RGB": scene.msi}
    figure = Figure(figsize=(13, 2.8), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 1.4])
    for axis, (title, x) in zip(axes[:4], images.items(), strict=True):
        axis.imshow(np.clip(x / scene.gt.max(), 0, 1).transpose(1, 2, 0) ** (1 / 2.2), interpolation="nearest")
        axis.set(title=f"{title}\n{x.shape[1]}×{x.shape[2]}", xticks=[], yticks=[])
    error = np.abs(scene.up - scene.gt).mean(0)
    row, col = np.unravel_index(error.argmax(), error.shape)
    axes[4].plot(scenes.wavelengths, scene.gt[:, row, col], label="truth")
    axes[4].plot(scenes.wavelengths, scene.up[:, row, col], "--", label="up")
    axes[4].set(title=f"pixel in row {row}, column {col}", xlabel="wavelength in nm", ylabel="reflectance")
    axes[4].legend()
    return figure
