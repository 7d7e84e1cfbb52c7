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
from ka.data.own.files import Reading, load_files
from ka.data.own.known import KNOWN, find_known
from ka.data.own.responses import BROAD, Response, response
from ka.data.scenes import SceneSet, check_values, choose, display_bands, observe
from ka.data.simulate import Degradation, broad_bands
from ka.errors import KAError, unknown
from ka.files import user_path

DATASETS = ("indian_pines", "cave", "h5", "files", *KNOWN)
SPLITS = ("train", "val", "test")
PROTOCOL = Degradation()  # the verified ×4 simulation
AS_FOUND = Reading()
# First and end row, first and end column of each of its parts
INDIAN_PINES_CUTS = {"train": (0, 112, 0, 96), "val": (112, 144, 0, 96), "test": (0, 144, 96, 144)}


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
        root, usual = find_known(dataset, root)
        given = {name: value for name, value in asdict(reading).items() if value != getattr(AS_FOUND, name)}
        reading = replace(usual, **given)
    return load_files(split, root, degradation, scenes, hold_out_val, reading, dataset)


def _indian_pines(split: str, degradation: Degradation, scenes: Sequence[str] | None, reading: Reading) -> SceneSet:
    """Cut first, then simulate each part on its own: no blur or bicubic support crosses a cut.

    The D700 response ends at 0.7 µm and does not apply to this sensor: the multispectral image is four broad band
    averages (`BROAD`). The wavelengths are nominal, AVIRIS's table as shipped with the data: it steps back
    where two of its spectrometers overlap, and has two misprints, mended here.
    """
    from tensorly.datasets import load_indian_pines  # noqa: PLC0415  (half a second that other datasets need not pay)

    name = f"indian_pines_{split}"
    choose([name], scenes, f"indian_pines' {split} split")
    bunch = load_indian_pines()
    wavelengths = np.array(bunch.ticks[1], dtype=np.float64)
    wavelengths[170:172] = 2212.23, 2222.15  # printed as 2260.22, 2270.15 between 2202.30 and 2232.07
    top, bottom, left, right = INDIAN_PINES_CUTS[split]
    cube = np.asarray(bunch.tensor)[top:bottom, left:right].transpose(2, 0, 1)
    gt = np.ascontiguousarray(cube / 10000, dtype=np.float32)
    check_values(gt, name)
    if reading.srf is None:
        seen = Response(broad_bands(wavelengths, list(BROAD.values())), tuple(BROAD))
    else:
        seen = response(reading.srf, wavelengths, len(gt))
    scene, display = observe(name, gt, seen.srf, degradation), display_bands(wavelengths, len(gt))
    return SceneSet("indian_pines", split, degradation, wavelengths, display, seen.names, [scene], seen.srf)
