"""Scenes behind one function, `load`: an embedded scene, CAVE as downloaded, or the published HDF5 files.

- `indian_pines`: AVIRIS Indian Pines, 145×145 pixels × 200 bands (0.4-2.5 µm), from the tensorly wheel, no download.
  Baumgardner, Biehl, Landgrebe (2015), "220 Band AVIRIS Hyperspectral Image Data Set: June 12, 1992 Indian Pine
  Test Site 3", Purdue University Research Repository, doi:10.4231/R7RX991C. Licence CC-BY-3.0.
- `cave`: Yasuma, Mitsunaga, Iso, Nayar (2008), "Generalized Assorted Pixel Camera", Columbia CUCS-061-08; the
  folder of 16-bit PNGs as downloaded.
- `h5`: the files the field publishes (`GT`, `HSI_up`, `LRHSI`, `RGB`), or those that `write_h5` makes.

Every array is `bands h w` in [0, 1]; the low-resolution one is `bands h/ratio w/ratio`.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
from jaxtyping import Float
from PIL import Image

from ka.data.scenes import Patches, Scene, SceneSet, check_values
from ka.data.simulate import CAVE_WAVELENGTHS, NIKON_D700, Degradation, broad_bands, observe
from ka.errors import KAError
from ka.files import replacing

log = logging.getLogger("ka")

DATASETS = ("indian_pines", "cave", "h5")
SPLITS = ("train", "val", "test")
PROTOCOL = Degradation()
"""The verified ×4 simulation."""

CAVE_TEST = (
    *("balloons", "cd", "chart_and_stuffed_toy", "clay", "fake_and_real_beers", "fake_and_real_lemon_slices"),
    *("fake_and_real_tomatoes", "feathers", "flowers", "hairs", "jelly_beans"),
)
CAVE_TRAIN = (
    *("beads", "cloth", "egyptian_statue", "face", "fake_and_real_food", "fake_and_real_lemons"),
    *("fake_and_real_peppers", "fake_and_real_strawberries", "fake_and_real_sushi", "glass_tiles"),
    *("oil_painting", "paints", "photo_and_face", "pompoms", "real_and_fake_apples", "real_and_fake_peppers"),
    *("sponges", "stuffed_toys", "superballs", "thread_spools"),
)
CAVE_VAL = ("egyptian_statue", "thread_spools")
"""Two of the 20 training scenes, unlike each other: dark and smooth, and bright with fine coloured texture."""

BROAD_BANDS = (("green", 520, 600), ("red", 630, 690), ("NIR", 760, 900), ("SWIR", 1550, 1750))
"""The multispectral image of Indian Pines: plain averages over the ranges (nm) of Landsat TM bands 2 to 5."""

INDIAN_PINES_CUTS = {"train": (0, 112, 0, 96), "val": (112, 144, 0, 96), "test": (0, 144, 96, 144)}
"""First and end row, first and end column of each part."""

FIELDS = {"gt": "GT", "up": "HSI_up", "lr": "LRHSI", "msi": "RGB"}
"""A scene's arrays and their names in the published HDF5 files."""

_FLOAT32 = np.dtype(np.float32)
_LIMITS = {"HSI_up": (-0.5, 1.5)}  # bicubic overshoots; every other field stays in [0, 1]


def load(
    dataset: str,
    split: str,
    root: str | Path | None = None,
    degradation: Degradation = PROTOCOL,
    *,
    scenes: Sequence[str] | None = None,
    hold_out_val: bool = False,
) -> SceneSet:
    """Load one split of a dataset.

    Args:
        dataset: one of `DATASETS`.
        split: one of `SPLITS`. On CAVE "train" is all 20 training scenes (the study's protocol) and "val" is
            `CAVE_VAL`, two of them.
        root: folder of CAVE as downloaded (at any usual nesting); the folder of the published HDF5 files, or one such
            file, whatever the split; not used for indian_pines.
        degradation: how `lr` is simulated; of an HDF5 file it must state what the file holds.
        scenes: names of the scenes wanted, out of those of the split; None for all.
        hold_out_val: leave `CAVE_VAL` out of CAVE's "train". Indian Pines' parts share no pixel anyway; those of HDF5
            files are as their makers cut them.

    Raises:
        KAError: an unknown dataset, split or scene; missing or broken files, naming the file and what to do.
    """
    if dataset not in DATASETS:
        raise KAError(f"dataset: {dataset!r} is unknown; use one of {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise KAError(f"split: {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if dataset == "indian_pines":
        return _indian_pines(split, degradation, scenes)
    if root is None:
        raise KAError(f"root: {dataset} needs the path of your copy; give its folder, or use dataset indian_pines")
    if dataset == "cave":
        return _cave(split, Path(root), degradation, scenes, hold_out_val)
    return _h5(split, Path(root), degradation, scenes)


def _choose(names: Sequence[str], wanted: Sequence[str] | None, what: str) -> list[str]:
    """The wanted ones of `names`, in their order; all for None."""
    wanted = [wanted] if isinstance(wanted, str) else wanted
    unknown = sorted(set(wanted or ()) - set(names))
    if unknown or (wanted is not None and not wanted):
        listed = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
        raise KAError(f"scenes: {', '.join(unknown) or 'none'} not in {what}; choose from {listed}")
    return [name for name in names if wanted is None or name in wanted]


def _display(wavelengths: Float[np.ndarray, " bands"] | None, n_bands: int) -> tuple[int, int, int]:
    """The bands nearest to 620, 540 and 460 nm; evenly spread ones where wavelengths are unknown."""
    if wavelengths is None:
        return 3 * n_bands // 4, n_bands // 2, n_bands // 4
    red, green, blue = (int(np.argmin(np.abs(wavelengths - nm))) for nm in (620, 540, 460))
    return red, green, blue


# Indian Pines


def _indian_pines(split: str, degradation: Degradation, scenes: Sequence[str] | None) -> SceneSet:
    """Cut first, then simulate each part on its own: no blur or bicubic support crosses a cut.

    The D700 response ends at 0.7 µm and does not apply to this sensor: the multispectral image is four broad band
    averages (`BROAD_BANDS`). The wavelengths are nominal, AVIRIS's table as shipped with the data: it steps back
    where two of its spectrometers overlap, and has two misprints, mended here.
    """
    from tensorly.datasets import load_indian_pines  # noqa: PLC0415  (half a second that other datasets need not pay)

    name = f"indian_pines_{split}"
    _choose([name], scenes, f"indian_pines {split}")
    bunch = load_indian_pines()
    wavelengths = np.array(bunch.ticks[1], dtype=np.float64)
    wavelengths[170:172] = 2212.23, 2222.15  # printed as 2260.22, 2270.15 between 2202.30 and 2232.07
    top, bottom, left, right = INDIAN_PINES_CUTS[split]
    cube = np.asarray(bunch.tensor)[top:bottom, left:right].transpose(2, 0, 1)
    gt = np.ascontiguousarray(cube / 10000, dtype=np.float32)
    check_values(gt, name)
    srf = broad_bands(wavelengths, [(low, high) for _, low, high in BROAD_BANDS])
    scene = observe(name, gt, srf, degradation)
    display = _display(wavelengths, len(gt))
    names = tuple(band for band, _, _ in BROAD_BANDS)
    return SceneSet("indian_pines", split, degradation.ratio, wavelengths, display, names, [scene], srf)


# CAVE

_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on damaged PNGs


@dataclass(frozen=True)
class _CaveScenes(Sequence[Scene]):
    """Scenes read from their PNGs when first asked for, then kept (70 MB a scene at ×4)."""

    files: Mapping[str, Sequence[Path]]
    degradation: Degradation
    kept: dict[str, Scene] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        name = list(self.files)[index]
        if name not in self.kept:
            with ThreadPoolExecutor(2) as pool:  # decoding releases the interpreter
                gt = np.stack(list(pool.map(_read_png, self.files[name])))
            self.kept[name] = observe(name, gt, NIKON_D700, self.degradation)
        return self.kept[name]


def _cave(
    split: str, root: Path, degradation: Degradation, scenes: Sequence[str] | None, hold_out_val: bool
) -> SceneSet:
    if not root.is_dir():
        raise KAError(f"{root}: no such folder; give the folder that holds CAVE's <scene>_ms folders")
    names = {"train": CAVE_TRAIN, "val": CAVE_VAL, "test": CAVE_TEST}[split]
    if split == "train" and hold_out_val:
        names = tuple(name for name in names if name not in CAVE_VAL)
    chosen = _choose(names, scenes, f"CAVE's {split} split")
    found = _find_cave(root)
    if not found:
        raise KAError(f"{root}: no CAVE scene found; give the folder that holds balloons_ms, beads_ms, …")
    if "watercolors" in found:
        log.warning("watercolors left out: it is 8-bit RGBA in the download and in nobody's split")
    missing = [name for name in chosen if name not in found]
    if missing:
        cure = "train with hold_out=False" if split == "val" else "choose others with scenes=[…]"
        raise KAError(f"{root}: missing {', '.join(missing)}; download them, or {cure}")
    files = {name: found[name] for name in chosen}
    _check_pngs(files, degradation.ratio)
    lazy = _CaveScenes(files, degradation)
    display = _display(CAVE_WAVELENGTHS, 31)
    return SceneSet("cave", split, degradation.ratio, CAVE_WAVELENGTHS, display, ("R", "G", "B"), lazy, NIKON_D700)


def _find_cave(root: Path) -> dict[str, list[Path]]:
    """Band files of every scene at the usual nestings, the shallowest first."""
    found: dict[str, list[Path]] = {}
    for depth in range(4):
        for folder in sorted(root.glob("*/" * depth + "*_ms")):
            bands = sorted(folder.glob("[!.]*_[0-9][0-9].png"))  # not the ._* files of a Mac
            if bands:
                found.setdefault(folder.name.removesuffix("_ms"), bands)
    return found


def _check_pngs(files: Mapping[str, Sequence[Path]], ratio: int) -> None:
    """Read the headers only: 31 16-bit bands a scene, one size, a multiple of the ratio."""
    first = None
    for bands in files.values():
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
                raise KAError(f"{path}: {w}×{h} pixels, others have {first[0]}×{first[1]}; unpack the scene again")
            if w % ratio or h % ratio:
                raise KAError(f"{path}: {w}×{h} pixels do not divide by the ratio {ratio}; change the ratio")


def _read_png(path: Path) -> Float[np.ndarray, "h w"]:
    try:
        with Image.open(path) as image:
            return np.asarray(image, dtype=np.float32) / np.float32(65535)
    except _DAMAGED as error:
        raise _bad_png(path, error) from error


def _bad_png(path: Path, error: Exception) -> KAError:
    return KAError(f"{path}: cannot be read, truncated or not a PNG ({error}); unpack the scene again")


# HDF5

_DAMAGED_H5 = (OSError, KeyError, RuntimeError, ValueError, TypeError)  # what h5py raises on damaged files


@dataclass(frozen=True)
class LazyRow:
    """One row of a field of an HDF5 file, `bands h w`, read and checked when sliced.

    It holds no open file: each process opens its own, so that it can be pickled and used after a fork.
    """

    path: str
    field: str
    row: int
    shape: tuple[int, ...]
    dtype: Any = _FLOAT32

    def __getitem__(self, index: Any) -> Float[np.ndarray, "..."]:
        """Read a slice as float32.

        Raises:
            KAError: the file is gone or truncated, or the values are NaN or out of range.
        """
        key = index if isinstance(index, tuple) else (index,)
        try:
            status = os.stat(self.path)
            file = _open_h5(self.path, os.getpid(), status.st_ino, status.st_mtime_ns)
            values = np.asarray(file[self.field][(self.row, *key)], dtype=np.float32)
        except _DAMAGED_H5 as error:
            raise _bad_h5(self.path, error) from error
        check_values(values, f"{self.path}: {self.field}, row {self.row}", *_LIMITS.get(self.field, (0.0, 1.0)))
        return values


@lru_cache(maxsize=8)
def _open_h5(path: str, pid: int, inode: int, modified: int) -> h5py.File:
    """The file, open once per process; the other arguments are there to open a replaced file anew."""
    return h5py.File(path, "r")


def _bad_h5(path: str | Path, error: Exception) -> KAError:
    return KAError(f"{path}: cannot be read, truncated or not HDF5 ({error}); download or write it again")


def _h5_path(split: str, root: Path, ratio: int) -> Path:
    """The published file of a split in a folder; a file is itself."""
    if root.is_file():
        return root
    if not root.is_dir():
        raise KAError(f"{root}: no such file or folder; give an HDF5 file or the folder that holds them")
    pattern = "validation_*.h5" if split == "val" else f"{split}_cave(with_up)x{ratio}.h5"
    found = sorted(root.glob(pattern), key=lambda path: not path.stem.endswith(f"x{ratio}"))
    if not found:
        there = ", ".join(sorted(path.name for path in root.glob("*.h5"))) or "none"
        cure = ", or train with hold_out=False" if split == "val" else ""
        raise KAError(f"{root}: no {pattern} (HDF5 files there: {there}); add it, give the path of a file{cure}")
    return found[0]


def _h5(split: str, root: Path, degradation: Degradation, scenes: Sequence[str] | None) -> SceneSet:
    path = _h5_path(split, root, degradation.ratio)
    try:
        with h5py.File(path, "r") as file:
            lost = [name for name in FIELDS.values() if not isinstance(file.get(name), h5py.Dataset)]
            if lost:
                raise KAError(f"{path}: no field {', '.join(lost)}; give a file with {', '.join(FIELDS.values())}")
            odd = [f"{name} {file[name].dtype}" for name in FIELDS.values() if file[name].dtype.kind not in "fiu"]
            if odd:
                raise KAError(f"{path}: {', '.join(odd)} are no numbers; write the file again")
            shapes = {key: tuple(int(n) for n in file[name].shape or ()) for key, name in FIELDS.items()}
            attributes = dict(file.attrs) if "source_sha256" in file.attrs else {}  # written by `write_h5`
    except KAError:
        raise
    except _DAMAGED_H5 as error:
        raise _bad_h5(path, error) from error
    n, bands, channels = _check_shapes(path, shapes, degradation.ratio)
    _check_made(path, attributes, degradation)
    names = _names(path, attributes, "scenes", n, [f"row {i}" for i in range(n)])
    wavelengths = _numbers(path, attributes, "wavelengths", (bands,))
    if wavelengths is None and bands == 31:
        wavelengths = CAVE_WAVELENGTHS
    usual = ["R", "G", "B"] if channels == 3 else [f"channel {i}" for i in range(channels)]
    msi = _names(path, attributes, "msi_names", channels, usual)
    chosen = set(_choose(names, scenes, path.name))

    def scene(row: int) -> Scene:
        fields: dict[str, Any] = {key: LazyRow(str(path), name, row, shapes[key][1:]) for key, name in FIELDS.items()}
        return Scene(names[row], **fields)

    rows = [scene(row) for row in range(n) if names[row] in chosen]
    display = _display(wavelengths, bands)
    srf = _numbers(path, attributes, "srf", (channels, bands))
    return SceneSet("h5", split, degradation.ratio, wavelengths, display, tuple(msi), rows, srf)


def _names(path: Path, attributes: Mapping[str, Any], key: str, count: int, otherwise: list[str]) -> list[str]:
    """Names that a file tells as JSON, each once; `otherwise` where it tells none, or of something else (patches)."""
    told = attributes.get(key, "[]")
    try:
        names = json.loads(told)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError
    except (ValueError, TypeError):
        raise KAError(f"{path}: attribute {key} is no list of names, but {str(told)[:60]!r}; write it again") from None
    if len(names) != count:
        return otherwise
    if len(set(names)) != count:
        raise KAError(f"{path}: attribute {key} holds a name twice: {', '.join(names)[:60]}; write it again")
    return names


def _numbers(path: Path, attributes: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Finite numbers that a file tells, None where it tells none."""
    if (told := attributes.get(key)) is None:
        return None
    found = np.asarray(told)
    if found.shape != shape or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        raise KAError(f"{path}: attribute {key} is no array of {shape} finite numbers; write it again")
    return found


def _check_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], ratio: int) -> tuple[int, int, int]:
    """Hold the four fields to each other and to `ratio`; count rows, bands and channels."""
    listed = ", ".join(f"{FIELDS[key]} {shape}" for key, shape in shapes.items())
    if any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        raise KAError(f"{path}: fields are rows × bands × h × w, none of them 0, but found {listed}; write it again")
    n, bands, h, w = shapes["gt"]
    row = sum(4 * math.prod(shape[1:]) for shape in shapes.values())
    if row > (memory := psutil.virtual_memory().total):
        raise KAError(
            f"{path}: one row takes {row / 2**30:,.0f} GiB and this machine has {memory / 2**30:.0f} ({listed}); cut "
            "it into patches"
        )
    held = h // shapes["lr"][2]
    fit = shapes["up"] == shapes["gt"] and shapes["lr"] == (n, bands, h / held, w / held) if held else False
    if not fit or (shapes["msi"][0], *shapes["msi"][2:]) != (n, h, w):
        raise KAError(f"{path}: the fields do not fit together ({listed}); write it again")
    if held != ratio:
        raise KAError(f"{path}: holds ratio {held}, asked for {ratio}; set ratio={held} or give another file")
    return n, bands, shapes["msi"][1]


def _check_made(path: Path, attributes: Mapping[str, Any], degradation: Degradation) -> None:
    """Where a file tells its blur and offset, they are the ones asked for."""
    asked = {"blur_size": degradation.blur_size, "blur_sigma": degradation.blur_sigma, "offset": degradation.start}
    told = {key: attributes.get(key, asked[key]) for key in asked}
    other = [f"{key} {value}" for key, value in told.items() if np.ndim(value) or value != asked[key]]
    if other:
        raise KAError(f"{path}: was made with {', '.join(other)}, not {asked}; ask for what it holds, or make another")


def source_hash(scene_set: SceneSet) -> str:
    """SHA-256 over the truths of a set in order, as float32 bytes."""
    digest = hashlib.sha256()
    for scene in scene_set:
        digest.update(np.ascontiguousarray(scene.gt[:], dtype="<f4").data)
    return digest.hexdigest()


def _attributes(source: Patches | SceneSet) -> dict[str, Any]:
    """What a file tells of its source."""
    scenes = source.scene_set if isinstance(source, Patches) else source
    told = {
        "dataset": scenes.name,
        "split": scenes.split,
        "ratio": scenes.ratio,
        "scenes": json.dumps([scene.name for scene in scenes]),
        "source_sha256": source_hash(scenes),
        "msi_names": json.dumps(scenes.msi_names),
        "wavelengths": scenes.wavelengths,
        "srf": scenes.srf,
    }
    if isinstance(source, Patches):
        told |= {"patch_size": source.size, "stride": source.stride}
    return {key: value for key, value in told.items() if value is not None}


def write_h5(
    path: str | Path, source: Patches | SceneSet, degradation: Degradation, provenance: Mapping[str, Any]
) -> None:
    """Write scenes or patches in the published layout, float32, one chunk a row, whole or not at all.

    One row is in memory at a time, beside the scenes themselves. Attributes: source hash, scene names, patch size and
    stride, blur, offset, ratio and response, under the names that `load` reads, and those of `provenance`.

    Args:
        path: the file, replaced where it exists.
        source: what to write.
        degradation: how its `lr` was simulated.
        provenance: more attributes, strings or numbers, such as the version of ka; they may not replace the others.

    Raises:
        KAError: another ratio than the source's, an attribute given twice, or the disk is full.
    """
    told = _attributes(source)
    if degradation.ratio != told["ratio"]:
        raise KAError(f"{path}: degradation of ratio {degradation.ratio} for a source of {told['ratio']}; pass its own")
    told |= {"blur_size": degradation.blur_size, "blur_sigma": degradation.blur_sigma, "offset": degradation.start}
    twice = sorted(set(told) & set(provenance))
    if twice:
        raise KAError(f"{path}: provenance names {', '.join(twice)}, which the file tells itself; leave it out")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for i in range(len(source)):
            row = source[i].load()
            for key, name in FIELDS.items():
                values = getattr(row, key)
                if i == 0:
                    file.create_dataset(name, (len(source), *values.shape), np.float32, chunks=(1, *values.shape))
                file[name][i] = values
        file.attrs.update({**told, **provenance})


def check_h5(path: str | Path, source: Patches | SceneSet, rows: int = 16, seed: int = 0) -> None:
    """Read random rows of a file back and compare them with their source, and its count and attributes.

    Raises:
        KAError: they differ, or the file cannot be read.
    """
    told = _attributes(source)
    try:
        with h5py.File(path, "r") as file:
            held, counts = dict(file.attrs), {name: len(file[name]) for name in FIELDS.values()}
    except (OSError, KeyError) as error:
        raise _bad_h5(path, error) from error
    for name, count in counts.items():
        if count != len(source):
            raise KAError(f"{path}: {name} has {count} rows, the source {len(source)}; write it again")
    for key, value in told.items():
        if key not in held or not np.array_equal(held[key], value):
            raise KAError(f"{path}: attribute {key} is {held.get(key)!r}, the source's {value!r}; write it again")
    for i in np.random.default_rng(seed).permutation(len(source))[:rows]:
        row = source[int(i)].load()
        for key, name in FIELDS.items():
            values = getattr(row, key)
            if not np.array_equal(LazyRow(str(path), name, int(i), values.shape)[:], values):
                raise KAError(f"{path}: {name}, row {i} differs from the source; write it again")
