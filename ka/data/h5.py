"""The HDF5 files that the field publishes, and those of `workbook.prepare_cave` in the same layout, read and checked.

In [0, 1]: `GT` (rows, bands, h, w), `HSI_up` (same), `LRHSI` (rows, bands, h/ratio, w/ratio), `RGB` (rows, c, h, w).
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from ka.data.scenes import Scene, SceneSet, check_values, choose, display_bands
from ka.data.simulate import CAVE_WAVELENGTHS, Degradation
from ka.errors import KAError

FIELDS = {"gt": "GT", "up": "HSI_up", "lr": "LRHSI", "msi": "RGB"}  # a scene's arrays, and their names in the files
_FLOAT32 = np.dtype(np.float32)
_LIMITS = {"HSI_up": (-0.5, 1.5)}  # bicubic overshoots; every other field stays in [0, 1]
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
    dtype: Any = _FLOAT32

    def __getitem__(self, index: Any) -> Float[np.ndarray, "..."]:
        """Read a slice as float32; KAError if the file is gone or truncated, or values are NaN or out of range."""
        key = index if isinstance(index, tuple) else (index,)
        try:
            status = os.stat(self.path)
            file = _open_h5(self.path, os.getpid(), status.st_ino, status.st_mtime_ns)
            values = np.asarray(file[self.field][(self.row, *key)], dtype=np.float32)
        except _DAMAGED as error:
            raise _bad_h5(self.path, error) from error
        check_values(values, f"{self.path}: {self.field}, row {self.row}", *_LIMITS.get(self.field, (0.0, 1.0)))
        return values


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


def load_h5(split: str, root: Path, degradation: Degradation, scenes: Sequence[str] | None) -> SceneSet:
    """The published file of a split in the folder `root`, or the file `root`; see `ka.data.load`."""
    path = _file_of(split, root, degradation.ratio)
    shapes, attributes = read_header(path)
    n, bands, channels = _check_shapes(path, shapes, degradation.ratio)
    _check_degradation(path, attributes, degradation)
    names = _names(path, attributes, "scenes", n, [f"row {i}" for i in range(n)])
    wavelengths = _numbers(path, attributes, "wavelengths", (bands,))
    if wavelengths is None and bands == 31:
        wavelengths = CAVE_WAVELENGTHS
    usual = ["R", "G", "B"] if channels == 3 else [f"channel {i}" for i in range(channels)]
    msi_names = tuple(_names(path, attributes, "msi_names", channels, usual))
    srf = _numbers(path, attributes, "srf", (channels, bands))
    chosen = set(choose(names, scenes, path.name))

    def field(key: str, row: int) -> Any:
        return LazyRow(str(path), FIELDS[key], row, shapes[key][1:])

    rows = [Scene(name, **{key: field(key, i) for key in FIELDS}) for i, name in enumerate(names) if name in chosen]
    return SceneSet("h5", split, degradation, wavelengths, display_bands(wavelengths, bands), msi_names, rows, srf)


def _file_of(split: str, root: Path, ratio: int) -> Path:
    """The published file of a split in a folder; a file is itself."""
    if root.is_file():
        return root
    if not root.is_dir():
        raise KAError(f"{root}: no such file or folder; give an HDF5 file or the folder that holds them")
    pattern = "validation_*.h5" if split == "val" else f"{split}_cave(with_up)x{ratio}.h5"
    if paths := sorted(root.glob(pattern), key=lambda path: not path.stem.endswith(f"x{ratio}")):
        return paths[0]
    there = ", ".join(sorted(path.name for path in root.glob("*.h5"))) or "none"
    cure = ", or train with hold_out=False" if split == "val" else ""
    raise KAError(f"{root}: no {pattern} (HDF5 files there: {there}); add it, give the path of a file{cure}")


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes of the fields, and the attributes of a file that says its source."""
    try:
        with h5py.File(path, "r") as file:
            found = {key: file[name] for key, name in FIELDS.items() if isinstance(file.get(name), h5py.Dataset)}
            kinds = {FIELDS[key]: field.dtype for key, field in found.items()}
            shapes = {key: tuple(int(n) for n in field.shape or ()) for key, field in found.items()}
            attributes = dict(file.attrs) if "source_sha256" in file.attrs else {}
    except _DAMAGED as error:
        raise _bad_h5(path, error) from error
    if lost := [name for name in FIELDS.values() if name not in kinds]:
        raise KAError(f"{path}: no field {', '.join(lost)}; give a file with {', '.join(FIELDS.values())}")
    if odd := [f"{name} {kind}" for name, kind in kinds.items() if kind.kind not in "fiu"]:
        raise KAError(f"{path}: {', '.join(odd)} are no numbers; write the file again")
    return shapes, attributes


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
    n, bands, h, w = shapes["gt"]
    row = sum(4 * math.prod(shape[1:]) for shape in shapes.values())
    if row > (memory := _memory()):
        sizes = f"{row / 2**30:,.0f} GiB and this machine has {memory / 2**30:.0f}"
        raise KAError(f"{path}: one row takes {sizes} ({listed}); cut it into patches")
    own_ratio = h // shapes["lr"][2]
    fit = own_ratio > 0 and shapes["up"] == shapes["gt"] and shapes["lr"] == (n, bands, h / own_ratio, w / own_ratio)
    if not fit or (shapes["msi"][0], *shapes["msi"][2:]) != (n, h, w):
        raise KAError(f"{path}: the fields do not fit together ({listed}); write it again")
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


def _check_degradation(path: Path, attributes: Mapping[str, Any], degradation: Degradation) -> None:
    """Where a file names its blur and offset, they are the ones asked for."""
    asked = made_with(degradation)
    held = {key: attributes.get(key, asked[key]) for key in asked}
    if other := [f"{key} {value}" for key, value in held.items() if np.ndim(value) or value != asked[key]]:
        raise KAError(f"{path}: was made with {', '.join(other)}, not {asked}; ask for what it holds, or make another")
