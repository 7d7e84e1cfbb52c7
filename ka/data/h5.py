"""The HDF5 files that the field publishes, and those of `workbook.prepare_cave` in the same layout, read and checked.

In [0, 1]: `GT` (rows, bands, h, w), `HSI_up` (same), `LRHSI` (rows, bands, h/ratio, w/ratio), `RGB` (rows, c, h, w).
Also read: the fields as PanCollection calls them (gt, lms, ms, pan), other orders of axes (`ORDERS`), files without the
upsampled image, and other units if their maximum is given.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from einops import rearrange
from jaxtyping import Float

from ka.data.own.files import Reading, given_wavelengths
from ka.data.scenes import Scene, SceneSet, check_values, choose, display_bands
from ka.data.simulate import CAVE_WAVELENGTHS, Degradation, bicubic
from ka.errors import KAError

FIELDS = {"gt": "GT", "up": "HSI_up", "lr": "LRHSI", "msi": "RGB"}  # a scene's arrays, and their names in the files
ALSO = {"gt": ("gt",), "up": ("lms",), "lr": ("ms", "lrms", "LR"), "msi": ("MSI", "HRMSI", "pan", "rgb")}  # elsewhere
ORDERS = ("n c h w", "n h w c", "w h c n", "c w h n")
"""Orders of axes in such files: published, as TensorFlow has them, and as MATLAB writes the first two."""

HARVARD_WAVELENGTHS = np.arange(420.0, 721.0, 10.0)
_FLOAT32 = np.dtype(np.float32)
_LIMITS = {"HSI_up": (-0.5, 1.5), "lms": (-0.5, 1.5)}  # bicubic overshoots; every other field stays in [0, 1]
_DAMAGED = (OSError, KeyError, RuntimeError, ValueError, TypeError)  # what h5py raises on damaged files


@dataclass(frozen=True)
class LazyRow:
    """One row of a field of an HDF5 file, `bands h w`, read and checked when sliced.

    It holds no open file: each process opens its own, so that it can be pickled and used after a fork.
    """

    path: str
    field: str
    row: int
    shape: tuple[int, ...]
    order: str = ORDERS[0]  # of the axes in the file
    divisor: float = 1.0  # what its values are divided by
    dtype: Any = _FLOAT32

    def __getitem__(self, index: Any) -> Float[np.ndarray, "..."]:
        """Read a slice as float32; KAError if the file is gone or truncated, or values are NaN or out of range."""
        key = index if isinstance(index, tuple) else (index,)
        try:
            status = os.stat(self.path)
            file = _open_h5(self.path, os.getpid(), status.st_ino, status.st_mtime_ns)
            values = np.asarray(self._read(file[self.field], key), dtype=np.float32)
        except _DAMAGED as error:
            raise _bad_h5(self.path, error) from error
        values = values if self.divisor == 1 else values / np.float32(self.divisor)
        where = f"{self.path}: {self.field}, row {self.row}"
        check_values(values, where, *_LIMITS.get(self.field, (0.0, 1.0)), cure="say so with max={}")
        return values

    def _read(self, stored: h5py.Dataset, key: tuple[Any, ...]) -> np.ndarray:
        if self.order == ORDERS[0]:
            return stored[(self.row, *key)]
        axes = self.order.split()
        row = stored[tuple(self.row if axis == "n" else slice(None) for axis in axes)]
        return rearrange(row, f"{' '.join(axis for axis in axes if axis != 'n')} -> c h w")[key]


@dataclass(frozen=True)
class LazyUp:
    """`lr` of a row, upsampled when sliced: for files that do not hold it."""

    lr: LazyRow
    ratio: int
    dtype: Any = _FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        bands, h, w = self.lr.shape
        return bands, h * self.ratio, w * self.ratio

    def __getitem__(self, index: Any) -> Float[np.ndarray, "..."]:
        return bicubic(self.lr[:], self.ratio)[index]


@lru_cache(maxsize=8)
def _open_h5(path: str, pid: int, inode: int, modified: int) -> h5py.File:
    """The file, open once per process; the other arguments are there to open a replaced file anew."""
    return h5py.File(path, "r")


def _bad_h5(path: str | Path, error: Exception) -> KAError:
    """What went wrong, and its cure: only what is cut short, damaged or of another kind has to be had again."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, PermissionError):
        return KAError(f"{path}: cannot be read, as its permissions forbid it; allow it (chmod +r) or ask its owner")
    if isinstance(error, BlockingIOError) or "unable to lock" in text:
        cure = "close it there, or, where a disk knows no locks, set HDF5_USE_FILE_LOCKING=FALSE before Python starts"
        return KAError(f"{path}: cannot be read, as it is locked or being written by a program; {cure}")
    if isinstance(error, FileNotFoundError):
        return KAError(f"{path}: cannot be read, as it is not there (any more); put it back")
    what = "it is cut short" if "truncated" in text else f"it is damaged or not HDF5 ({text})"
    return KAError(f"{path}: cannot be read, as {what}; download or write it again")


@dataclass(frozen=True)
class Header:
    """What a file says without its values being read."""

    names: Mapping[str, str]  # a scene's arrays, and what this file calls them; `up` may be missing
    shapes: Mapping[str, tuple[int, ...]]  # of these fields, n c h w
    order: str  # of the axes, one of `ORDERS`
    attributes: Mapping[str, Any]  # of a file that says its source


def load_h5(
    split: str, root: Path, degradation: Degradation, scenes: Sequence[str] | None, reading: Reading
) -> SceneSet:
    """The published file of a split in the folder `root`, or the file `root`; see `ka.data.load`."""
    path = file_of(split, root, degradation.ratio)
    header = read_header(path)
    n, bands, channels = _check_shapes(path, header.shapes, degradation.ratio)
    attributes = header.attributes
    _check_degradation(path, attributes, degradation)
    names = _names(path, attributes, "scenes", n, [f"row {i}" for i in range(n)])
    wavelengths = _numbers(path, attributes, "wavelengths", (bands,))
    if wavelengths is None:
        wavelengths = _usual_wavelengths(path, bands, reading)
    usual = ["R", "G", "B"] if channels == 3 else [f"channel {i}" for i in range(channels)]
    msi_names = tuple(_names(path, attributes, "msi_names", channels, usual))
    srf = _numbers(path, attributes, "srf", (channels, bands))
    chosen = set(choose(names, scenes, path.name))

    by = reading.max or 1.0

    def row(name: str, i: int) -> Scene:
        rows: dict[str, Any] = {key: LazyRow(str(path), header.names[key], i, header.shapes[key][1:], header.order, by)
                                for key in header.names}  # fmt: skip
        return Scene(name, **{"up": LazyUp(rows["lr"], degradation.ratio)} | rows)

    rows = [row(name, i) for i, name in enumerate(names) if name in chosen]
    display = display_bands(wavelengths, bands)
    return SceneSet("h5", split, degradation, wavelengths, display, msi_names, rows, srf, by)


def _usual_wavelengths(path: Path, bands: int, reading: Reading) -> np.ndarray | None:
    """As given, or as the file's name says; 31 bands alone say nothing (Harvard's are not CAVE's)."""
    if reading.wavelengths is not None:
        return given_wavelengths(reading.wavelengths, bands)
    named = {"cave": CAVE_WAVELENGTHS, "harvard": HARVARD_WAVELENGTHS}
    return next((nm for name, nm in named.items() if name in path.name.lower() and len(nm) == bands), None)


def file_of(split: str, root: Path, ratio: int) -> Path:
    """The published file of a split in a folder; a file is itself.

    Its name begins with the split, and tells the ratio if any there does: `train_cave(with_up)x4.h5`,
    `validation_harvard(with_up)x4_rgb.h5`, `test_Chikusei.h5`.

    Raises:
        KAError: none, or several that it could be.
    """
    if root.is_file():
        return root
    if not root.is_dir():
        raise KAError(f"{root}: no such file or folder; give an HDF5 file or the folder that holds them")
    there = sorted(path for path in root.iterdir() if path.suffix.lower() in (".h5", ".hdf5", ".mat"))
    paths = [path for path in there if path.name.lower().startswith(split) and "patches" not in path.name.lower()]
    told = [path for path in paths if re.search(r"x\d+", path.stem)]
    paths = [path for path in told if re.search(rf"x{ratio}(?!\d)", path.stem)] or [p for p in paths if p not in told]
    exact = [path for path in paths if path.name == f"{split}_cave(with_up)x{ratio}.h5"]
    if len(paths) == 1 or exact:
        return (exact or paths)[0]
    if paths:
        listed = ", ".join(path.name for path in paths)
        raise KAError(f"{root}: {listed} could each be the {split} file; give each data set a folder of its own")
    listed = ", ".join(path.name for path in there) or "none"
    word = "validation" if split == "val" else split
    cure = ", or train with hold_out=False" if split == "val" else ""
    raise KAError(f"{root}: no {word}_… file of ratio {ratio} (HDF5 files there: {listed}); add one such as "
                  f"{word}_cave(with_up)x{ratio}.h5{cure}")  # fmt: skip


def read_header(path: Path) -> Header:
    """Names and shapes of the fields, and the attributes of a file that says its source."""
    try:
        with h5py.File(path, "r") as file:
            known = [(key, name) for key in FIELDS for name in (*ALSO[key], FIELDS[key])]  # the published name counts
            names = {key: name for key, name in known if isinstance(file.get(name), h5py.Dataset)}
            kinds = {name: file[name].dtype for name in names.values()}
            stored = {key: tuple(int(n) for n in file[name].shape or ()) for key, name in names.items()}
            attributes = dict(file.attrs) if "source_sha256" in file.attrs else {}
    except _DAMAGED as error:
        raise _bad_h5(path, error) from error
    if lost := [FIELDS[key] for key in ("gt", "lr", "msi") if key not in names]:
        raise KAError(f"{path}: no field {', '.join(lost)}; give a file with {', '.join(FIELDS.values())}")
    if odd := [f"{name} {kind}" for name, kind in kinds.items() if kind.kind not in "fiu"]:
        raise KAError(f"{path}: {', '.join(odd)} are no numbers; write the file again")
    for order in ORDERS:
        shapes = {key: _published(shape, order) for key, shape in stored.items()}
        if _fit(shapes):
            return Header(names, shapes, order, attributes)
    return Header(names, stored, ORDERS[0], attributes)


def _published(shape: tuple[int, ...], order: str) -> tuple[int, ...]:
    """A shape in that order, as n c h w."""
    if len(shape) != 4:
        return shape
    sides = dict(zip(order.split(), shape, strict=True))
    return tuple(sides[axis] for axis in "nchw")


def _fit(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether shapes n c h w are those of the same rows at one ratio."""
    if any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        return False
    (n, bands, h, w), low = shapes["gt"], shapes["lr"]
    ratio = h // low[2]
    fit = ratio > 0 and shapes.get("up", shapes["gt"]) == shapes["gt"] and low == (n, bands, h / ratio, w / ratio)
    return fit and (shapes["msi"][0], *shapes["msi"][2:]) == (n, h, w)


def _names(path: Path, attributes: Mapping[str, Any], key: str, count: int, otherwise: list[str]) -> list[str]:
    """Names that a file holds as JSON, each once; `otherwise` where it has none, or those of its patches' scenes."""
    text = attributes.get(key, "[]")
    try:
        names = json.loads(text)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError
    except (ValueError, TypeError):
        raise KAError(f"{path}: attribute {key} is no list of names, but {str(text)[:60]!r}; write it again") from None
    if len(names) != count:
        return otherwise
    if len(set(names)) != count:
        raise KAError(f"{path}: attribute {key} holds a name twice: {', '.join(names)[:60]}; write it again")
    return names


def _numbers(path: Path, attributes: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Finite numbers that a file holds, None where it has none."""
    if key not in attributes:
        return None
    values = np.asarray(attributes[key])
    if values.shape != shape or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise KAError(f"{path}: attribute {key} is no array of {shape} finite numbers; write it again")
    return values


def _check_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], ratio: int) -> tuple[int, int, int]:
    """Hold the four fields to each other and to `ratio`; count rows, bands and channels."""
    listed = ", ".join(f"{FIELDS[key]} {shape}" for key, shape in shapes.items())
    if any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        raise KAError(f"{path}: fields are rows × bands × h × w, none of them 0, but found {listed}; write it again")
    n, bands, h, _ = shapes["gt"]
    row = sum(4 * math.prod(shape[1:]) for shape in shapes.values())
    if row > (memory := _memory()):
        sizes = f"{row / 2**30:,.0f} GiB and this machine has {memory / 2**30:.0f}"
        raise KAError(f"{path}: one row takes {sizes} ({listed}); cut it into patches")
    if not _fit(shapes):
        raise KAError(f"{path}: the fields do not fit together ({listed}); write it again")
    own_ratio = h // shapes["lr"][2]
    if own_ratio != ratio:
        raise KAError(f"{path}: holds ratio {own_ratio}, asked for {ratio}; set ratio={own_ratio} or give another file")
    return n, bands, shapes["msi"][1]


def _memory() -> float:
    """Bytes of memory that this machine has; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def made_with(degradation: Degradation) -> dict[str, Any]:
    """What a file says of its blur."""
    return {"blur_size": degradation.blur_size, "blur_sigma": degradation.blur_sigma, "offset": degradation.start}


def held_degradation(path: Path) -> dict[str, Any]:
    """Blur and offset that a file says it was made with; nothing where it does not."""
    attributes = read_header(path).attributes
    held = {key: attributes[key] for key in ("blur_size", "blur_sigma", "offset") if key in attributes}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in held.items()}


def _check_degradation(path: Path, attributes: Mapping[str, Any], degradation: Degradation) -> None:
    """Where a file names its blur and offset, they are the ones asked for."""
    asked = made_with(degradation)
    held = {key: attributes.get(key, asked[key]) for key in asked}
    if other := [f"{key} {value}" for key, value in held.items() if np.ndim(value) or value != asked[key]]:
        raise KAError(f"{path}: was made with {', '.join(other)}, not {asked}; leave these out, or make another file")
