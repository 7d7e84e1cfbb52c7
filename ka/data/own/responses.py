"""Spectral responses of multispectral sensors, resampled to the bands of a cube.

Built in: the Nikon D700 (`ka.data.simulate`), Landsat 8 and 9 and Sentinel-2 as measured, WorldView-2 and 3 and IKONOS
by the nominal edges of their bands; `responses.json` holds their sources. Others come from a file.
"""

import csv
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypeGuard

import numpy as np
from jaxtyping import Float

from ka.data.simulate import CAVE_WAVELENGTHS, NIKON_D700
from ka.errors import KAError, unknown
from ka.files import user_path
from ka.images import in_nm, read_arrays

log = logging.getLogger("ka")

COVERED = 0.5  # a channel is left out if less of it lies within the cube's wavelengths
BROAD = {"green": (520, 600), "red": (630, 690), "NIR": (760, 900), "SWIR": (1550, 1750)}
"""Landsat TM's bands 2 to 5 (nm), flat: Indian Pines' HR-MSI, and of any cube beyond red where no response is named."""

Curve = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
"""Wavelengths in nm, and the response at them."""


@dataclass(frozen=True, eq=False)
class Response:
    """How the channels of a sensor see the bands of a cube."""

    srf: Float[np.ndarray, "channels bands"]  # rows sum to 1
    names: tuple[str, ...]


def response(name: str | Path | None, wavelengths: Float[np.ndarray, " bands"] | None, n_bands: int) -> Response:
    """The response `name`, a built-in sensor or a file, for a cube's wavelengths (nm).

    Each band takes the part of a channel's curve that lies between the middles to its neighbours. None chooses: the
    Nikon D700 for 400 to 700 nm, else four broad averages (`BROAD`). A file holds wavelengths (nm or µm) and curves:
    CSV with the wavelength first in each row, and a line of names above if you like; .mat, .npz or .h5 with a variable
    of wavelengths, and one of the curves, `n channels` or `channels n`. A matrix `channels bands` alone is taken as it
    is, with rows made to sum to 1.

    Raises:
        KAError: an unknown name, a file that holds no response, wavelengths that are not known, no channel within them.
    """
    known = (*sorted(_built_in()), "broad")
    if names_file(name):
        if not user_path(name).is_file():
            raise unknown("srf", str(name), (*known, "a file.csv or .mat"))
        read = _read(user_path(name))
        if isinstance(read, Mapping):
            curves = read
        else:
            if read.shape[1] != n_bands:
                raise KAError(
                    f"{name}: a matrix of {read.shape} without wavelengths, and the cube has {n_bands} bands; add "
                    "wavelengths, or give one column for each band"
                )
            return Response(_rows(read, name), tuple(f"channel {i}" for i in range(len(read))))
    if wavelengths is None:
        raise KAError(
            "the wavelengths of the cube's bands are not known, so no response can be applied; give them "
            "(wavelengths='430,860': first and last, in nm), or srf=FILE with a column for each band"
        )
    if name is None:
        name = "nikon_d700" if wavelengths.min() < 430 and wavelengths.max() < 760 else "broad"
    if str(name) == "broad":
        curves = {key: _box(*edges) for key, edges in BROAD.items()}
    elif str(name) in known:
        curves = _built_in()[str(name)]
    return _resampled(curves, np.asarray(wavelengths, dtype=np.float64), str(name))


def names_file(name: str | Path | None) -> TypeGuard[str | Path]:
    """Whether a response is named by a path, there or not, and not by a sensor or None."""
    return name is not None and str(name) not in (*_built_in(), "broad")


@cache
def _built_in() -> dict[str, dict[str, Curve]]:
    sensors = {"nikon_d700": {key: (CAVE_WAVELENGTHS, row) for key, row in zip("RGB", NIKON_D700, strict=True)}}
    for sensor, held in json.loads(files("ka.data.own").joinpath("responses.json").read_text()).items():
        sensors[sensor] = {key: _box(*edges) for key, edges in held.get("ranges", {}).items()}
        for key, curve in held.get("channels", {}).items():
            values = np.array(curve["values"])
            sensors[sensor][key] = (curve["first"] + curve["step"] * np.arange(len(values)), values)
    return sensors


def _box(low: float, high: float) -> Curve:
    return np.array([low, low, high, high], dtype=np.float64), np.array([0.0, 1, 1, 0])


def _resampled(curves: Mapping[str, Curve], wavelengths: Float[np.ndarray, " bands"], what: str) -> Response:
    order = np.argsort(wavelengths, kind="stable")
    centres = wavelengths[order]
    if len(centres) < 2:
        raise KAError(f"{what}: a cube of one band has no spectrum to respond to; give one of more bands")
    middles = (centres[1:] + centres[:-1]) / 2
    edges = np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])
    rows, names, left_out = [], [], []
    for name, (nm, values) in curves.items():
        if np.array_equal(nm, wavelengths):
            row, covered = values, 1.0
        else:
            area = _area(nm, values, np.concatenate([[nm[0]], edges, [nm[-1]]]))
            row = np.empty(len(wavelengths))
            row[order] = area[1:-1]
            whole = _area(nm, values, nm[[0, -1]])[0]
            covered = row.sum() / whole if whole > 0 else 0.0
        if covered < COVERED:
            left_out.append(name)
        else:
            rows.append(row / row.sum())
            names.append(name)
    if not rows:
        ends = f"{wavelengths.min():g} to {wavelengths.max():g} nm"
        raise KAError(f"srf: no channel of {what} lies within the cube's {ends}; choose another response")
    if left_out:
        log.warning("%s: %s beyond the cube's wavelengths, left out", what, ", ".join(left_out))
    return Response(np.array(rows), tuple(names))


def _area(nm: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], edges: np.ndarray) -> Float[np.ndarray, " m"]:
    """Integral of a curve, 0 beyond its ends, between neighbouring edges."""
    grid = np.unique(np.concatenate([nm, edges, nm - 1e-6, nm + 1e-6]))
    curve = np.interp(grid, nm, values, left=0, right=0)
    total = np.concatenate([[0], np.cumsum((curve[1:] + curve[:-1]) / 2 * np.diff(grid))])
    return np.diff(np.interp(edges, grid, total))


def _read(path: Path) -> Mapping[str, Curve] | np.ndarray:
    """Curves by channel, or a matrix `channels bands`, of a file."""
    if path.suffix.lower() in (".csv", ".txt"):
        names, table = _read_csv(path)
        wavelengths, matrix = in_nm(table[:, 0]), table[:, 1:].T
        if wavelengths is None:
            raise KAError(f"{path}: its first column is no wavelengths in nm or µm; begin every row with one")
    else:
        arrays, wavelengths = read_arrays(path)
        matrices = [array for array in arrays.values() if array.ndim == 2 and min(array.shape) > 0]
        if len(matrices) != 1:
            raise KAError(f"{path}: {len(matrices)} matrices, where one of curves is expected; leave one")
        matrix = np.asarray(matrices[0], dtype=np.float64)
        if wavelengths is not None and matrix.shape[1] != len(wavelengths):
            matrix = matrix.T
        names = [f"channel {i}" for i in range(len(matrix))]
    if not np.isfinite(matrix).all() or (matrix < -0.02 * np.abs(matrix).max(initial=0)).any():
        raise KAError(f"{path}: a response has values that are missing or negative; mend it")
    matrix = np.maximum(matrix, 0)
    if wavelengths is None:
        return matrix
    if matrix.shape[1] != len(wavelengths) or not matrix.any(axis=1).all():
        raise KAError(
            f"{path}: {len(wavelengths)} wavelengths and curves of {matrix.shape} do not fit, or a curve is zero"
        )
    order = np.argsort(wavelengths)
    return {name: (wavelengths[order], row[order]) for name, row in zip(names, matrix, strict=True)}


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        dialect = csv.Sniffer().sniff(text[:2000], delimiters=",;\t ") if text.strip() else csv.excel
        lines = [[cell.strip() for cell in row if cell.strip()] for row in csv.reader(text.splitlines(), dialect)]
        lines = [line for line in lines if line and not line[0].startswith("#")]
        head = [] if _number(lines[0][0]) else lines.pop(0)
        table = np.array([[float(cell) for cell in line] for line in lines])
        if table.ndim != 2 or table.shape[1] < 2:
            raise ValueError
    except (IndexError, ValueError, csv.Error) as error:
        raise KAError(
            f"{path}: no table of numbers in UTF-8, a wavelength and a value for each channel in a row; mend it"
        ) from error
    names = head[1:] if len(head) == table.shape[1] else [f"channel {i}" for i in range(table.shape[1] - 1)]
    return names, table


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows(matrix: np.ndarray, name: str | Path) -> Float[np.ndarray, "channels bands"]:
    if not (matrix.sum(1) > 0).all():
        raise KAError(f"{name}: a channel responds to no band; leave it out")
    return matrix / matrix.sum(1, keepdims=True)
