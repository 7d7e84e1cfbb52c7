"""CAVE as downloaded: folders of 16-bit PNGs, one per band.

Yasuma, Mitsunaga, Iso, Nayar (2008), "Generalized Assorted Pixel Camera", Columbia CUCS-061-08.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from ka.data.own.files import Reading
from ka.data.own.responses import Response, response
from ka.data.scenes import KeptScenes, Scene, SceneSet, choose, display_bands, observe
from ka.data.simulate import CAVE_WAVELENGTHS, NIKON_D700, Degradation
from ka.errors import KAError

log = logging.getLogger("ka")

CAVE_TEST = (
    "balloons", "cd", "chart_and_stuffed_toy", "clay", "fake_and_real_beers", "fake_and_real_lemon_slices",
    "fake_and_real_tomatoes", "feathers", "flowers", "hairs", "jelly_beans",
)  # fmt: skip
CAVE_TRAIN = (
    "beads", "cloth", "egyptian_statue", "face", "fake_and_real_food", "fake_and_real_lemons", "fake_and_real_peppers",
    "fake_and_real_strawberries", "fake_and_real_sushi", "glass_tiles", "oil_painting", "paints", "photo_and_face",
    "pompoms", "real_and_fake_apples", "real_and_fake_peppers", "sponges", "stuffed_toys", "superballs",
    "thread_spools",
)  # fmt: skip
CAVE_VAL = ("egyptian_statue", "thread_spools")  # of these, one dark and smooth, one bright with fine coloured texture

_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on damaged PNGs


def load_cave(
    split: str, root: Path, degradation: Degradation, scenes: Sequence[str] | None, hold_out_val: bool, reading: Reading
) -> SceneSet:
    """One split of CAVE in the folder `root`; see `ka.data.load`."""
    if not root.is_dir():
        raise KAError(f"{root}: no such folder; give the folder that holds CAVE's <scene>_ms folders")
    chosen = choose(_names(split, hold_out_val, reading), scenes, f"CAVE's {split} split")
    bands = find_bands(root)
    if not bands:
        raise KAError(f"{root}: no CAVE scene found; give the folder that holds balloons_ms, beads_ms, …")
    if "watercolors" in bands:
        log.warning("watercolors left out: it is 8-bit RGBA in the download and in nobody's split")
    if missing := [name for name in chosen if name not in bands]:
        cure = "name scenes that you have: -p train_scenes a,b -p val_scenes c -p test_scenes d (scenes=[…] in Python)"
        here = ", ".join(name for name in (*CAVE_TRAIN, *CAVE_TEST) if name in bands) or "none of CAVE's"
        raise KAError(f"{root}: missing {', '.join(missing)} (here are {here}); download them, or {cure}")
    files = {name: bands[name] for name in chosen}
    size = _check_headers(files, degradation.ratio)
    seen = Response(NIKON_D700, ("R", "G", "B")) if reading.srf is None else response(reading.srf, CAVE_WAVELENGTHS, 31)
    cave = KeptScenes(tuple(files), partial(_read, files, seen.srf, degradation), [size] * len(files))
    display = display_bands(CAVE_WAVELENGTHS, 31)
    return SceneSet("cave", split, degradation, CAVE_WAVELENGTHS, display, seen.names, cave, seen.srf)


def _read(
    files: Mapping[str, Sequence[Path]], srf: Float[np.ndarray, "channels 31"], degradation: Degradation, name: str
) -> Scene:
    with ThreadPoolExecutor(2) as pool:  # decoding releases the interpreter
        gt = np.stack(list(pool.map(read_png, files[name])))
    return observe(name, gt, srf, degradation)


def _names(split: str, hold_out_val: bool, reading: Reading) -> list[str]:
    """Scenes of a split: the field's, or those that are named; others train then, where they do not train already."""
    every = CAVE_TRAIN + CAVE_TEST
    val, test = (
        choose(every, text, "CAVE") if text else list(usual)
        for text, usual in ((reading.val_scenes, CAVE_VAL), (reading.test_scenes, CAVE_TEST))
    )
    if both := set(val) & set(test):
        raise KAError(f"{min(both)} is to validate and to test; choose one of them")
    taken = {*test, *(val if hold_out_val else ())}
    train = [name for name in (every if reading.test_scenes else CAVE_TRAIN) if name not in taken]
    return {"train": train, "val": val, "test": test}[split]


def find_bands(root: Path) -> dict[str, list[Path]]:
    """Band files of every scene at the usual nestings, the shallowest first."""
    files: dict[str, list[Path]] = {}
    for depth in range(4):
        for folder in sorted(root.glob("*/" * depth + "*_ms")):
            if bands := sorted(folder.glob("[!.]*_[0-9][0-9].png")):  # not the ._* files of a Mac
                files.setdefault(folder.name.removesuffix("_ms"), bands)
    return files


def _check_headers(files: Mapping[str, Sequence[Path]], ratio: int) -> tuple[int, int]:
    """Read the headers only: 31 16-bit bands a scene, one height and width (returned), multiples of the ratio."""
    sizes: dict[tuple[int, int], str] = {}  # and the first scene of each
    for name, bands in files.items():
        first = None
        lost = sorted(set(range(1, 32)) - {int(path.stem[-2:]) for path in bands})
        if lost or len(bands) != 31:
            missing = f" (without {', '.join(map(str, lost))})" if lost else ""
            raise KAError(f"{bands[0].parent}: {len(bands)} PNGs, not bands 1 to 31{missing}; unpack the scene again")
        for path in bands:
            try:
                with Image.open(path) as image:
                    mode, size = image.mode, image.size
            except _DAMAGED as error:
                raise _bad_png(path, error) from error
            first, (w, h) = first or size, size
            if not mode.startswith("I"):
                raise KAError(f"{path}: not a 16-bit grey PNG (Pillow's mode {mode}); unpack the original download")
            if size != first:
                what = f"{w}×{h} pixels, other bands of the scene have {first[0]}×{first[1]}"
                raise KAError(f"{path}: {what}; unpack the scene again")
            if w % ratio or h % ratio:
                raise KAError(f"{path}: {w}×{h} pixels do not divide by the ratio {ratio}; change the ratio")
        sizes.setdefault((w, h), name)
    if len(sizes) > 1:
        one, other = (f"{name} has {w}×{h} pixels" for (w, h), name in list(sizes.items())[:2])
        raise KAError(f"scenes differ in size: {one}, {other}; choose those of one size with scenes=[…] (train_scenes)")
    return h, w


def read_png(path: Path) -> Float[np.ndarray, "h w"]:
    """One band in [0, 1]; KAError if the file is damaged."""
    try:
        with Image.open(path) as image:
            return np.asarray(image, dtype=np.float32) / np.float32(65535)
    except _DAMAGED as error:
        raise _bad_png(path, error) from error


def _bad_png(path: Path, error: Exception) -> KAError:
    return KAError(f"{path}: cannot be read, truncated or not a PNG ({error}); unpack the scene again")
