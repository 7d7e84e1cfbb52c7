"""Scenes behind one function, `load`: an embedded scene, CAVE as downloaded, published HDF5 files, or own images.

`indian_pines` is AVIRIS Indian Pines, 145×145 pixels × 200 bands (0.4-2.5 µm), from the tensorly wheel, no download.
Baumgardner, Biehl, Landgrebe (2015), "220 Band AVIRIS Hyperspectral Image Data Set: June 12, 1992 Indian Pine Test
Site 3", Purdue University Research Repository, doi:10.4231/R7RX991C. Licence CC-BY-3.0.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ka.data.cave import load_cave
from ka.data.h5 import load_h5
from ka.data.own.files import Box, Reading, load_files
from ka.data.own.known import KNOWN, find_known
from ka.data.own.responses import BROAD, Response, response
from ka.data.scenes import Scene, SceneSet, check_values, choose, display_bands, observe
from ka.data.simulate import Degradation, broad_bands
from ka.errors import KAError, unknown
from ka.files import user_path

DATASETS = ("indian_pines", "cave", "h5", "files", *KNOWN)
SPLITS = ("train", "val", "test")
PROTOCOL = Degradation()  # the verified ×4 simulation
AS_FOUND = Reading()
# First and end row, first and end column of each of its parts
INDIAN_PINES_CUTS = {"train": (0, 112, 0, 96), "val": (112, 144, 0, 96), "test": (0, 144, 96, 144)}
# The test part in four that share no pixel: where differences are to be counted over several scenes
INDIAN_PINES_QUARTERS = {
    f"indian_pines_test_{number}": (36 * (number - 1), 36 * number, 96, 144) for number in range(1, 5)
}


def load(
    dataset: str,
    split: str,
    root: str | Path | None = None,
    degradation: Degradation = PROTOCOL,
    *,
    scenes: Sequence[str] | None = None,
    hold_out_val: bool = False,
    reading: Reading = AS_FOUND,
) -> SceneSet:
    """Load one split (train, val, test) of a dataset, or those of its scenes that are named in `scenes`.

    Args:
        dataset: `indian_pines`, the embedded scene; `cave`, a folder of 16-bit PNGs as downloaded; `h5`, the files the
            field publishes (`GT`, `HSI_up`, `LRHSI`, `RGB`) or those that `prepare_cave.ipynb` makes; `files`, cubes of
            any size in MATLAB's, NumPy's, ENVI's … formats; or one of `ka.data.own.known`, which the field knows.
        split: on CAVE "train" is all 20 training scenes (the study's protocol), "val" two of them, `cave.CAVE_VAL`.
            Indian Pines has one part each, or of the last some of its quarters (`reading.test_scenes`).
        root: folder of CAVE as downloaded (at any usual nesting); the folder of the published HDF5 files, or one such
            file, whatever the split; the folder of own cubes, or files by commas; not used for indian_pines.
        degradation: how `lr` is simulated; of an HDF5 file it must state what the file holds.
        hold_out_val: leave the validation scenes out of "train" (Indian Pines' parts share no pixel, HDF5 is as cut).
        reading: how own files are read and split; the response is used for CAVE and Indian Pines too, max for HDF5.

    Raises:
        KAError: an unknown dataset, split or scene; missing or broken files, naming the file and what to do.
    """
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if dataset == "indian_pines":
        return _indian_pines(split, degradation, scenes, reading)
    if root is None:
        raise KAError(f"root: {dataset} needs the path of your copy; give its folder, or use dataset indian_pines")
    if dataset == "cave":
        return load_cave(split, user_path(root), degradation, scenes, hold_out_val, reading)
    if dataset == "h5":
        return load_h5(split, user_path(root), degradation, scenes, reading)
    if dataset in KNOWN:
        paths, usual = find_known(dataset, root)
        given = {name: value for name, value in asdict(reading).items() if value != getattr(AS_FOUND, name)}
        return load_files(split, paths, degradation, scenes, hold_out_val, replace(usual, **given), dataset)
    return load_files(split, root, degradation, scenes, hold_out_val, reading, dataset)


def _indian_pines(split: str, degradation: Degradation, scenes: Sequence[str] | None, reading: Reading) -> SceneSet:
    """Cut first, then simulate each part on its own: no blur or bicubic support crosses a cut.

    The D700 response ends at 0.7 µm and does not apply to this sensor: the multispectral image is four broad band
    averages (`BROAD`). The wavelengths are nominal, AVIRIS's table as shipped with the data: it steps back
    where two of its spectrometers overlap, and has two misprints, mended here.
    """
    from tensorly.datasets import load_indian_pines  # noqa: PLC0415  (half a second that other datasets need not pay)

    cuts = _indian_pines_cuts(split, reading)
    chosen = choose(list(cuts), scenes, f"indian_pines' {split} split")
    bunch = load_indian_pines()
    wavelengths = np.array(bunch.ticks[1], dtype=np.float64)
    wavelengths[170:172] = 2212.23, 2222.15  # printed as 2260.22, 2270.15 between 2202.30 and 2232.07
    bands = len(wavelengths)
    if reading.srf is None:
        seen = Response(broad_bands(wavelengths, list(BROAD.values())), tuple(BROAD))
    else:
        seen = response(reading.srf, wavelengths, bands)

    def observed(name: str) -> Scene:
        top, bottom, left, right = cuts[name]
        cube = np.asarray(bunch.tensor)[top:bottom, left:right].transpose(2, 0, 1)
        gt = np.ascontiguousarray(cube / 10000, dtype=np.float32)
        check_values(gt, name)
        return observe(name, gt, seen.srf, degradation)

    parts, display = [observed(name) for name in chosen], display_bands(wavelengths, bands)
    return SceneSet("indian_pines", split, degradation, wavelengths, display, seen.names, parts, seen.srf)


def _indian_pines_cuts(split: str, reading: Reading) -> dict[str, Box]:
    """Where the parts of a split lie in the scene: one, or those of the test part that are named."""
    whole = {f"indian_pines_{split}": INDIAN_PINES_CUTS[split]}
    known = whole | INDIAN_PINES_QUARTERS if split == "test" else whole
    named = {"val": reading.val_scenes, "test": reading.test_scenes}.get(split)
    names = choose(list(known), named, f"indian_pines' {split} split") if named else list(whole)
    if len(names) > 1 and names[0] in whole:
        raise KAError(f"test_scenes: {names[0]} holds its quarters; name it alone, or some of these")
    return {name: known[name] for name in names}
