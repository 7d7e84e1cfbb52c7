"""Image files in the field's formats: MATLAB, NumPy, HDF5, ENVI, GeoTIFF, and pictures; read, scaled, written."""

from ka.images.image import Image, Place, Stored, divisor, scaled, unclipped
from ka.images.read import ENDINGS, images_in, in_nm, read_arrays, read_image, read_stored
from ka.images.write import FORMATS, check_format, write_image, written_order

__all__ = [
    "ENDINGS",
    "FORMATS", "Image", "Place", "Stored",
    "check_format", "divisor", "images_in", "in_nm",
    "read_arrays", "read_image", "read_stored", "scaled",
    "unclipped", "write_image", "written_order",
]  # fmt: skip
