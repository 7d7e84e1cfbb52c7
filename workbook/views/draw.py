"""What figures are drawn with: axes placed in inches, bare axes, colour bars, numbers in the cells of an image."""

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.path import Path
from matplotlib.textpath import TextPath, text_to_path
from matplotlib.transforms import Affine2D

WIDTH = 9.5  # inches, of figures as wide as a notebook
TITLE = 0.26
SIGNED = "RdBu_r"  # colours of numbers around zero
Box = tuple[float, float, float, float]


def frame(width: float, height: float, boxes: Sequence[Box], title: str = "") -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, with axes at boxes in inches (left, bottom, width, height). A title adds to its
    height.
    """
    height += TITLE if title else 0
    figure = Figure(figsize=(width, height))
    axes = [figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes]
    if title:
        figure.suptitle(title, y=1 - 0.06 / height, va="top", fontsize=10)
    return figure, axes


def side_by_side(
    widths: Sequence[float], height: float, margins: Box, between: float = 0.0, title: str = ""
) -> tuple[Figure, list[Axes]]:
    """A figure of axes of one height beside each other, in inches; margins are left, right, above and below."""
    left, right, above, below = margins
    starts = left + np.cumsum([0.0, *(width + between for width in widths)])
    boxes = [(float(start), below, width, height) for start, width in zip(starts, widths, strict=False)]
    return frame(float(starts[-1]) - between + right, above + height + below, boxes, title)


def bare(axis: Axes, **settings: Any) -> None:
    """Axes without grid, border and tick marks; `settings` are those of `Axes.set`."""
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set(**settings)


def row_of_axes(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with n axes beside each other, laid out by matplotlib."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def show_image(axis: Axes, values: np.ndarray, title: str = "", **colours: Any) -> AxesImage:
    """An image on bare axes; `colours` are further arguments of `imshow`."""
    bare(axis, xticks=[], yticks=[], title=title)
    return axis.imshow(values, **colours)


def colour_bar(place: Axes, image: ScalarMappable, label: str = "", **settings: Any) -> Colorbar:
    """The colour bar of an image, drawn in axes of its own; `settings` are those of `Figure.colorbar`."""
    place.grid(visible=False)
    return cast(Figure, place.figure).colorbar(image, cax=place, label=label, **settings)


def beside(axis: Axes, width: float) -> Axes:
    """Axes for a colour bar at the right of others, `width` of their width, and as far away."""
    return axis.inset_axes((1 + width, 0, width, 1))


def write_numbers(axis: Axes, image: AxesImage, factor: float = 1.0, size: float = 7) -> PathCollection:
    """The values of an image times `factor`, two decimals, each in its cell: black or white, whichever is seen better.

    Nothing where they are not finite. As outlines in one collection: hundreds of text objects would take most of a
    second.
    """
    values: Float[np.ndarray, "y x"] = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
    left, right, bottom, top = image.get_extent()
    high, wide = (bottom - top) / values.shape[0], (right - left) / values.shape[1]
    rgb = image.to_rgba(values)[..., :3]  # to relative luminance (WCAG 2.1): at 0.179 both are seen equally well
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    cells = [(y, x) for (y, x), value in np.ndenumerate(values) if np.isfinite(value)]
    numbers = PathCollection(
        [_outline(f"{values[cell] * factor:z.2f}".replace("-", "−"), size / 72) for cell in cells],
        offsets=[(left + (x + 0.5) * wide, top + (y + 0.5) * high) for y, x in cells],
        offset_transform=axis.transData,
        facecolors=["white" if light[cell] < 0.179 else "black" for cell in cells],
        edgecolors="none",
    )
    numbers.set_transform(cast(Figure, axis.figure).dpi_scale_trans)
    axis.add_collection(numbers, autolim=False)
    return numbers


@cache
def _outline(text: str, size: float) -> Path:
    """A word as an outline centred on the origin; `size` is the font's, in inches, and so are its coordinates."""
    x, parts = 0.0, []
    for character in text:
        glyph, width = _glyph(character)
        parts.append(glyph.transformed(Affine2D().translate(x, 0)))
        x += width
    centred = Affine2D().translate(-x / 2, -0.365).scale(size)  # digits are 0.73 of the font's size high
    return Path.make_compound_path(*parts).transformed(centred)


@cache
def _glyph(character: str) -> tuple[Path, float]:
    font = FontProperties(family="DejaVu Sans", size=1)
    width, _, _ = text_to_path.get_text_width_height_descent(character, font, ismath=False)
    return TextPath((0, 0), character, prop=font), width
