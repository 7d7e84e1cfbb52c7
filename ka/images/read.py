"""Reading of image files: which variable, which axes, which wavelengths."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Shaped

from ka.errors import KAError, unknown
from ka.files import user_path
from ka.images.image import Image, Place, Stored

WAVELENGTHS = ("wavelengths", "wavelength", "wl", "lambda", "bands_nm", "wavelength_nm")
"""Names under which files hold the wavelengths of their bands."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
RASTERS = (".tif", ".tiff", ".hdr", ".img", ".dat", ".bsq", ".bil", ".bip", ".raw")
ENDINGS = (".mat", ".npy", ".npz", ".h5", ".hdf5", ".he5", ".nc", *RASTERS)
"""Endings of files that may hold a cube."""

_DATA = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ".bin")  # of an ENVI file, beside its header


@dataclass(frozen=True, eq=False)
class _File:
    """The arrays of a file by name, as they lie in it; the rest as in `Stored`."""

    arrays: Mapping[str, Shaped[np.ndarray, "*axes"]]
    order: str | None = None
    likely: str | None = None
    wavelengths: Float[np.ndarray, " bands"] | None = None
    place: Place | None = None
    flaws: Mapping[str, str] = field(default_factory=dict)  # of arrays that cannot be taken as they are


def read_image(path: str | Path, key: str | None = None, axes: str | None = None) -> Image:
    """Read an image: MATLAB (.mat, v5 and v7.3), .npy, .npz, HDF5, ENVI (header or data), TIFF, PNG, JPEG.

    Args:
        path: the file.
        key: the variable to take, where the file has several that are images.
        axes: the order of its axes, "h w c" or "c h w" (c: bands), where it does not show.

    Raises:
        KAError: no such file, damaged or of another kind; a variable or an order of axes that has to be named.
    """
    return read_stored(path, key).image(axes)


def read_stored(path: str | Path, key: str | None = None) -> Stored:
    """As `read_image`, with the axes as they are."""
    path = user_path(path)
    file = _open(path)
    name, array = _choose(file.arrays, key, path)
    where = f"{path}: {name}" if name else str(path)
    if flaw := file.flaws.get(name or next(iter(file.arrays))):
        raise KAError(f"{where}: {flaw}")
    return Stored(array, where, file.order, file.likely, file.wavelengths, file.place)


def images_in(folder: Path, pictures: bool = False) -> list[Path]:
    """Files of a folder that may hold a cube (or a picture), by name; ENVI by its header, nothing hidden."""
    endings = (*ENDINGS, *PICTURES) if pictures else ENDINGS
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return [path for path in files if path.suffix.lower() in endings and not _has_header(path)]


def _has_header(path: Path) -> bool:
    """Whether these are an ENVI file's data, whose header stands for them."""
    return path.suffix.lower() != ".hdr" and (path.with_suffix(".hdr").exists() or Path(f"{path}.hdr").exists())


def read_arrays(path: Path) -> tuple[Mapping[str, Shaped[np.ndarray, "*axes"]], Float[np.ndarray, " bands"] | None]:
    """All arrays of a file by name, and the wavelengths (nm) that it holds; errors as `read_image`."""
    file = _open(path)
    return file.arrays, file.wavelengths


def _open(path: Path) -> _File:
    if not path.exists() or path.is_dir():
        raise KAError(f"{path}: no such file; give one of .mat, .npy, .npz, .h5, .hdr (ENVI), .tif or .png")
    reader = _reader(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader(path)
    except KAError:
        raise
    except PermissionError as error:
        raise KAError(f"{path}: no permission to read it; change its rights (chmod +r)") from error
    except Exception as error:  # each library raises its own on damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise KAError(
            f"{path}: cannot be read, cut short or not what its name says ({reason}); copy it again"
        ) from error


def _reader(path: Path) -> Callable[[Path], _File]:
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _numpy
    if suffix == ".mat":
        return _hdf5 if h5py.is_hdf5(path) else _matlab
    if suffix in (".h5", ".hdf5", ".he5", ".nc"):
        return _hdf5
    if suffix in (*RASTERS, *PICTURES) or _has_header(path):
        return _raster
    raise KAError(f"{path}: {suffix or 'a name without an ending'} is no kind of image that is read here; give .mat, "
                  ".npy, .npz, .h5, .hdr (ENVI), .tif or .png")  # fmt: skip


def _choose(arrays: Mapping[str, Any], key: str | None, path: Path) -> tuple[str, Shaped[np.ndarray, "*axes"]]:
    """The array `key`, or the only image among them."""
    if key is not None:
        if key not in arrays:
            raise unknown(f"{path}: key", key, arrays)
        return key, np.asarray(arrays[key])
    images = {name: array for name, array in arrays.items() if len(array.shape) == 3 and min(array.shape) > 0}
    images = images or {name: array for name, array in arrays.items() if len(array.shape) == 2 and min(array.shape) > 1}
    if len(images) == 1:
        name, array = next(iter(images.items()))
        return (name if len(arrays) > 1 else ""), np.asarray(array)
    listed = ", ".join(f"{name} {'×'.join(map(str, array.shape))}" for name, array in (images or arrays).items())
    several = "holds several images" if images else "holds no image of two or three axes"
    raise KAError(f"{path} {several} ({listed or 'nothing'}); name the one to take with key=…")


def _numpy(path: Path) -> _File:
    loaded = np.load(path, allow_pickle=False)
    return _File({"": loaded}) if isinstance(loaded, np.ndarray) else _named({name: loaded[name] for name in loaded})


def _matlab(path: Path) -> _File:
    from scipy.io import loadmat  # noqa: PLC0415  (half a second that other formats need not pay)

    values = {name: value for name, value in loadmat(path).items() if isinstance(value, np.ndarray)}
    return replace(_named(values), likely="h w c")


def _hdf5(path: Path) -> _File:
    """Datasets at any depth. MATLAB (v7.3) writes its axes in the reverse order, and says so by an attribute."""
    arrays: dict[str, Shaped[np.ndarray, "*axes"]] = {}
    flaws: dict[str, str] = {}
    with h5py.File(path, "r") as file:
        matlab: list[bool] = []

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu" and item.shape:
                matlab.append("MATLAB_class" in item.attrs)
                values = np.asarray(item)
                if flaw := _flaw(item, values):
                    flaws[name] = flaw
                arrays[name] = values.T if matlab[-1] else values

        file.visititems(visit)
    return replace(_named(arrays), likely="h w c" if any(matlab) else "c h w", flaws=flaws)


def _flaw(item: Any, values: Shaped[np.ndarray, "*axes"]) -> str:
    """What NetCDF's attributes say of a dataset and its numbers do not: missing values, and packed ones."""
    for attribute in ("_FillValue", "missing_value"):
        if attribute in item.attrs and (n := np.count_nonzero(values == item.attrs[attribute])):
            return f"{n} values are marked as missing ({attribute}); fill or cut them off before"
    if np.any(item.attrs.get("add_offset", 0)):
        return "it is packed, with an offset (add_offset); write it unpacked, as xarray reads it"
    return ""


def _named(values: Mapping[str, Shaped[np.ndarray, "*axes"]]) -> _File:
    """Arrays by name, with the one of them taken out that tells the wavelengths."""
    images = {name: value for name, value in values.items() if value.dtype.kind in "fiu"}
    for name in list(images):
        if name.rsplit("/", 1)[-1].lower() in WAVELENGTHS and images[name].size == max(images[name].shape, default=0):
            return _File(images, wavelengths=in_nm(images.pop(name).ravel()))
    return _File(images)


def in_nm(wavelengths: Float[np.ndarray, " bands"]) -> Float[np.ndarray, " bands"] | None:
    """Wavelengths in nm, be they in nm or micrometres; None for what is neither."""
    values = np.asarray(wavelengths, dtype=np.float64)
    if not values.size or not np.isfinite(values).all() or values.min() <= 0:
        return None
    values = values * 1000 if values.max() < 100 else values
    return values if values.min() >= 100 and values.max() < 20000 else None


def _raster(path: Path) -> _File:
    """ENVI, TIFF and pictures, by GDAL; alpha is left out: of a picture, and of a TIFF if it says nothing.

    GDAL calls the fourth band of every 8-bit TIFF alpha, which may be near infrared.
    """
    rasterio = gdal()
    with rasterio.open(_data_of(path)) as file:
        if file.subdatasets:  # a TIFF with a page for every band
            pages = [rasterio.open(name).read() for name in file.subdatasets]
            if len({page.shape for page in pages}) != 1:
                raise KAError(f"{path}: its pages differ in size; write one image a file")
            return _File({"": np.concatenate(pages)}, order="c h w")
        kinds, picture = [kind.name for kind in file.colorinterp], path.suffix.lower() in PICTURES
        if "palette" in kinds:
            raise KAError(f"{path}: its values are places in a palette, not colours; save it as an RGB image")
        if any(file.offsets):
            raise KAError(f"{path}: it is packed, with an offset; unpack it before (gdal_translate -unscale)")
        values = file.read()
        kept = [i for i, kind in enumerate(kinds) if kind != "alpha" or not (picture or np.ptp(values[i]) == 0)]
        values, units, nodata = values[kept], [file.tags(i + 1) for i in kept], file.nodata
        if nodata is not None and np.count_nonzero(values == nodata):
            n = int(np.count_nonzero((values == nodata).any(0)))
            raise KAError(f"{path}: {n} pixels are marked as missing ({nodata:g}); fill or cut them off before")
        wavelengths = None
        if all("wavelength" in tags for tags in units):
            wavelengths = in_nm(np.array([float(tags["wavelength"]) for tags in units]))
        place = None if file.crs is None else Place(file.crs.to_wkt(), tuple(file.transform)[:6])
    return _File({"": values}, order="c h w", wavelengths=wavelengths, place=place)


def data_beside(header: Path) -> Iterator[Path]:
    """Data files that an ENVI header may stand for, beside it."""
    stem = header.with_suffix("")
    for ending in _DATA:
        for name in dict.fromkeys((stem.name + ending, stem.name + ending.upper())):
            if (data := header.with_name(name)) != header and data.is_file():
                yield data


def _data_of(path: Path) -> Path:
    """The data beside an ENVI header; another file is itself."""
    if path.suffix.lower() != ".hdr":
        return path
    if (data := next(data_beside(path), None)) is None:
        stem = path.stem
        raise KAError(f"{path}: no data file beside this ENVI header; put {stem} or {stem}.img there")
    return data


def gdal() -> Any:
    """Rasterio, or a word where it is missing."""
    try:
        import rasterio  # noqa: PLC0415  (a third of a second that other formats need not pay)
    except ImportError as error:
        raise KAError(f"ENVI, TIFF and pictures need rasterio ({error}); pip install rasterio") from error
    return rasterio
