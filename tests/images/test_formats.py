"""Image files: what is written is read again, with wavelengths and place; what is not clear is asked for."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image as Picture
from scipy.io import savemat

from ka.errors import KAError
from ka.images import FORMATS, Image, Place, divisor, read_image, write_image

CUBE = np.random.default_rng(0).random((5, 40, 48)).astype(np.float32)  # bands h w
NM = np.linspace(400, 800, 5)
PLACE = Place(rasterio.crs.CRS.from_epsg(32654).to_wkt(), (2.5, 0, 4e5, 0, -2.5, 4e6))


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_written_is_read_again(tmp_path: Path, ending: str) -> None:
    path = write_image(tmp_path / f"x{ending}", Image(CUBE, NM, PLACE))
    image = read_image(path)
    np.testing.assert_array_equal(image.values, CUBE)
    if ending != ".npy":
        np.testing.assert_allclose(image.wavelengths, NM)
    if ending in (".hdr", ".img", ".tif", ".tiff"):
        assert image.place == PLACE
    assert len(list(tmp_path.iterdir())) == (2 if ending in (".hdr", ".img") else 1)  # nothing half-made is left


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
def test_envi_is_read_by_header_or_data_in_any_interleave(tmp_path: Path, interleave: str) -> None:
    axes = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[interleave]
    CUBE.transpose(axes).tofile(tmp_path / "x.raw")
    lines = f"ENVI\nsamples = 48\nlines = 40\nbands = 5\ndata type = 4\ninterleave = {interleave}\nbyte order = 0\n"
    listed = ", ".join(f"{nm / 1000}" for nm in NM)
    (tmp_path / "x.hdr").write_text(f"{lines}wavelength units = Micrometers\nwavelength = {{{listed}}}\n")
    for name in ("x.hdr", "x.raw"):
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(image.values, CUBE)
        np.testing.assert_allclose(image.wavelengths, NM)


def test_matlab_files_of_both_versions(tmp_path: Path) -> None:
    savemat(tmp_path / "v5.mat", {"cube": CUBE.transpose(1, 2, 0), "wavelength": NM, "label": np.zeros((40, 48))})
    with h5py.File(tmp_path / "v73.mat", "w", userblock_size=512) as file:
        file["cube"] = CUBE.transpose(1, 2, 0).T  # as MATLAB writes h w c
        file["cube"].attrs["MATLAB_class"] = np.bytes_("single")
    for name in ("v5.mat", "v73.mat"):
        image = read_image(tmp_path / name)
        assert image.order == "h w c"
        np.testing.assert_array_equal(image.values, CUBE)


def test_a_tiff_with_a_page_a_band_and_a_picture_with_alpha(tmp_path: Path) -> None:
    pages = [Picture.fromarray(band) for band in CUBE]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "pages.tif").values, CUBE)
    rgba = np.random.default_rng(1).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    Picture.fromarray(rgba).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").values, rgba[..., :3].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("shape", "order"),
    [((40, 48, 5), "h w c"), ((5, 40, 48), "c h w"), ((64, 64, 200), "h w c"), ((200, 64, 64), "c h w")],
)
def test_axes_are_found_where_they_show(tmp_path: Path, shape: tuple[int, ...], order: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    assert read_image(tmp_path / "x.npy").order == order


def _several(folder: Path) -> Path:
    np.savez(folder / "x.npz", a=CUBE, b=CUBE)
    return folder / "x.npz"


def _unclear(folder: Path) -> Path:
    np.save(folder / "x.npy", np.zeros((10, 16, 20), np.float32)[:, :12, :12].transpose(1, 0, 2))
    return folder / "x.npy"


def _cut_short(folder: Path) -> Path:
    savemat(folder / "x.mat", {"cube": CUBE})
    (folder / "x.mat").write_bytes((folder / "x.mat").read_bytes()[:900])
    return folder / "x.mat"


def _pickled(folder: Path) -> Path:
    np.save(folder / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    return folder / "x.npy"


def _filled(folder: Path) -> Path:
    with h5py.File(folder / "x.nc", "w") as file:
        file["cube"] = np.where(CUBE > 0.9, 65535, CUBE * 1000).astype(np.uint16)
        file["cube"].attrs["_FillValue"] = np.uint16(65535)
    return folder / "x.nc"


def _packed(folder: Path) -> Path:
    with h5py.File(folder / "x.nc", "w") as file:
        file["cube"] = (CUBE * 1000).astype(np.uint16)
        file["cube"].attrs["add_offset"] = -0.1
    return folder / "x.nc"


def _palette(folder: Path) -> Path:
    Picture.fromarray((CUBE[0] * 255).astype(np.uint8)).quantize(8).save(folder / "x.png")
    return folder / "x.png"


def _of_many_bands(folder: Path) -> Path:
    savemat(folder / "x.mat", {"cube": np.zeros((80, 100, 103), np.float32)})
    return folder / "x.mat"


def _headless(folder: Path) -> Path:
    (folder / "x.hdr").write_text("ENVI\n")
    return folder / "x.hdr"


def _missing_pixels(folder: Path) -> Path:
    values = CUBE.copy()
    values[:, :3] = -9999
    kind = {"driver": "GTiff", "width": 48, "height": 40, "count": 5, "dtype": "float32", "nodata": -9999}
    with rasterio.open(
        folder / "x.tif", "w", crs=PLACE.crs, transform=rasterio.Affine(2, 0, 0, 0, -2, 0), **kind
    ) as file:
        file.write(values)
    return folder / "x.tif"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_several, "holds several images (a 5×40×48, b 5×40×48); name the one to take with key="),
        (_unclear, "which axis of (12, 10, 12) holds the bands does not show"),
        (_cut_short, "cut short or not what its name says"),
        (_pickled, "cut short or not what its name says"),
        (_headless, "no data file beside this ENVI header"),
        (_filled, "values are marked as missing (_FillValue)"),
        (_packed, "packed, with an offset"),
        (_palette, "places in a palette, not colours"),
        (
            _of_many_bands,
            "which axis of (80, 100, 103) holds the bands does not show",
        ),
        (_missing_pixels, "144 pixels are marked as missing (-9999)"),
        (lambda folder: folder / "none.mat", "no such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(KAError) as error:
        read_image(make(tmp_path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fourth_band_of_8_bits_is_no_alpha(tmp_path: Path) -> None:
    """GDAL calls it so in every TIFF that does not say otherwise, as those that others wrote."""
    values = np.random.default_rng(1).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(write_image(tmp_path / "x.tif", Image(values))).values, values)
    kind = {"driver": "GTiff", "width": 8, "height": 8, "count": 4, "dtype": "uint8"}
    for band, expected in ((values[3], 4), (np.full((8, 8), 255, np.uint8), 3)):
        values[3] = band
        with rasterio.open(tmp_path / "y.tif", "w", transform=rasterio.Affine(2, 0, 0, 0, -2, 0), **kind) as file:
            file.write(values)
        np.testing.assert_array_equal(read_image(tmp_path / "y.tif").values, values[:expected])


def test_an_order_that_a_format_fixes_is_not_taken_for_another(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.tif", Image(CUBE))
    assert read_image(path, axes="c h w").values.shape == CUBE.shape
    with pytest.raises(KAError, match="files of this format are 'c h w'; leave axes out"):
        read_image(path, axes="h w c")


def test_envi_is_not_written_over_a_header_of_other_data(tmp_path: Path) -> None:
    CUBE.tofile(tmp_path / "x")
    (tmp_path / "x.hdr").write_text("ENVI\nsamples = 48\nlines = 40\nbands = 5\ndata type = 4\ninterleave = bsq\n")
    with pytest.raises(KAError, match="would be taken for that of x; give another name"):
        write_image(tmp_path / "x.hdr", Image(CUBE[:2]))
    np.testing.assert_array_equal(read_image(tmp_path / "x.hdr").values, CUBE)


def test_the_key_and_axes_asked_for_are_taken(tmp_path: Path) -> None:
    path = _several(tmp_path)
    assert read_image(path, "b").values.shape == CUBE.shape
    assert read_image(path, "b", "h w c").values.shape == (48, 5, 40)
    with pytest.raises(KAError, match="did you mean 'a'"):
        read_image(path, "A")


@pytest.mark.parametrize(
    ("values", "by"),
    [
        *(([0.2, 1.0], 1), ([3, 250], 255), ([3.0, 900.0], 1023), ([5, 8000], 10000), ([5, 70000], 70000)),
        *(([0.2, 1.3], 1.3), ([5, 10050], 10050), ([5, 12500], 65535), ([0.2, 1 + 5e-7], 1)),  # highlights
    ],
)
def test_units_are_supposed_from_values(values: list[float], by: float) -> None:
    assert divisor([Image(np.array(values).reshape(1, 1, 2))], None) == pytest.approx(by, rel=1e-9)
    assert divisor([Image(np.array(values).reshape(1, 1, 2))], 1e5) == 1e5


def test_a_dark_8_bit_picture_is_divided_by_255() -> None:
    assert divisor([Image(np.ones((1, 2, 2), np.uint8))], None) == 255


def test_a_format_that_cannot_hold_an_image_leaves_nothing(tmp_path: Path) -> None:
    huge = np.broadcast_to(np.float32(0), (600, 1000, 1000))
    with pytest.raises(KAError, match=r"write \.h5"):
        write_image(tmp_path / "x.mat", Image(huge))
    with pytest.raises(KAError, match=r"no format ends in '\.jpg'"):
        write_image(tmp_path / "x.jpg", Image(CUBE))
    assert list(tmp_path.iterdir()) == []
