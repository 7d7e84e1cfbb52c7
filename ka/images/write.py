"""Writing of image files, whole or not at all."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from einops import rearrange
from jaxtyping import Float, Shaped

from ka.errors import KAError
from ka.files import replacing, user_path, write_bytes
from ka.images.image import Image
from ka.images.read import data_beside, gdal

NAME = "sharp"
"""The variable of a written image, in formats that name them."""


def check_format(path: str | Path, size: int = 0) -> Path:
    """The path of a file that can be written, `~` expanded, for an image of `size` bytes.

    Raises:
        KAError: an ending of none of `FORMATS`; an image too large for it; ENVI data that the file would not replace.
    """
    path = user_path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise KAError(f"{path}: no format ends in {path.suffix or 'nothing'!r}; choose one of {', '.join(FORMATS)}")
    if suffix == ".mat" and size >= 2**31:
        raise KAError(
            f"{path}: {size / 2**30:.1f} GiB do not fit MATLAB's format v5, which ends at 2; write .h5, which MATLAB "
            "reads too"
        )
    if suffix in (".hdr", ".img"):
        for data in data_beside(path.with_suffix(".hdr")):
            if data.suffix.lower() != ".img":
                raise KAError(f"{path}: its header would be taken for that of {data.name}; give another name")
    return path


def write_image(path: str | Path, image: Image) -> Path:
    """Write an image in the format that the ending asks for, with wavelengths and place where the format has room.

    MATLAB (v5) is `h w bands`, NumPy and HDF5 are in the image's `order`; the variable is called `sharp`, the
    wavelengths (nm) `wavelengths`. ENVI (.hdr or .img) is two files. A file that is there is replaced.

    Raises:
        KAError: an unknown ending; an image too large for the format; a disk that is full or may not be written.
    """
    path = check_format(path, image.values.nbytes)
    FORMATS[path.suffix.lower()](path, image)
    return path


def _arrays(path: Path, image: Image) -> dict[str, Shaped[np.ndarray, "*axes"]]:
    values = np.ascontiguousarray(rearrange(image.values, f"c h w -> {written_order(path, image)}"))
    return {NAME: values} if image.wavelengths is None else {NAME: values, "wavelengths": image.wavelengths}


def written_order(path: str | Path, image: Image) -> str:
    """The order of axes of an image in the file `path`: the format's own, or the image's."""
    suffix = Path(path).suffix.lower()
    if suffix == ".mat":
        return "h w c"
    return image.order if suffix in (".npy", ".npz", ".h5", ".hdf5") and "c" in image.order else "c h w"


def _matlab(path: Path, image: Image) -> None:
    from scipy.io import savemat  # noqa: PLC0415  (half a second that other formats need not pay)

    with replacing(path) as temporary, open(temporary, "wb") as file:
        savemat(file, _arrays(path, image), do_compression=True)


def _npy(path: Path, image: Image) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, _arrays(path, image)[NAME])


def _npz(path: Path, image: Image) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **_arrays(path, image))  # type: ignore[arg-type]


def _hdf5(path: Path, image: Image) -> None:
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, values in _arrays(path, image).items():
            file[name] = values


def _tiff(path: Path, image: Image) -> None:
    with replacing(path) as temporary:
        _gdal_write(temporary, image, "GTiff", BIGTIFF="IF_SAFER", ALPHA="NO")


def _envi(path: Path, image: Image) -> None:
    """Data and header are made in a folder beside, then moved: the header, by which it is found, last.

    An old header goes before the data, so that it never stands beside new ones.
    """
    data = path.with_suffix(".img")
    header = data.with_suffix(".hdr")
    with replacing(data) as temporary:
        folder = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=data.parent))
        try:
            _gdal_write(folder / data.name, image, "ENVI", INTERLEAVE="BSQ")
            text = (folder / header.name).read_bytes()
            os.replace(folder / data.name, temporary)
            header.unlink(missing_ok=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    write_bytes(header, text)


def _gdal_write(path: Path, image: Image, driver: str, **options: str) -> None:
    rasterio, (bands, h, w) = gdal(), image.values.shape
    kind = {"driver": driver, "count": bands, "height": h, "width": w, "dtype": image.values.dtype.name} | options
    if image.place is not None:
        kind |= {"crs": image.place.crs, "transform": rasterio.Affine(*image.place.transform)}
    with warnings.catch_warnings(), rasterio.Env(GDAL_PAM_ENABLED="NO"):
        warnings.simplefilter("ignore")  # that there is no place
        try:
            with rasterio.open(os.fspath(path), "w", **kind) as file:
                file.write(image.values)
                if image.wavelengths is not None:
                    _describe(file, image.wavelengths, driver)
        except rasterio.errors.RasterioError as error:
            raise OSError(str(error)) from error


def _describe(file: object, wavelengths: Float[np.ndarray, " bands"], driver: str) -> None:
    texts = [f"{nm:.6g}" for nm in wavelengths]
    if driver == "ENVI":
        listed = "{" + ", ".join(texts) + "}"
        file.update_tags(ns="ENVI", wavelength=listed, wavelength_units="Nanometers")  # type: ignore[attr-defined]
        return
    for band, text in enumerate(texts, 1):
        file.update_tags(band, wavelength=text, wavelength_units="Nanometers")  # type: ignore[attr-defined]
        file.set_band_description(band, f"{text} nm")  # type: ignore[attr-defined]


FORMATS: dict[str, Callable[[Path, Image], None]] = {
    ".mat": _matlab,
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".hdr": _envi,
    ".img": _envi,
    ".tif": _tiff,
    ".tiff": _tiff,
}
"""What can be written, by ending."""
