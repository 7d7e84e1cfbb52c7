"""The one look of all figures (`style.mplstyle`), and their files: the same bytes for the same figure."""

import io
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

from workbook.paths import STYLE

styled = matplotlib.style.context(STYLE)  # decorates a function that draws

COLUMN = 3.5
"""Inches of a journal's column, in which the figures that `narrow` decorates can be printed as they are."""

_SMALL = {
    "font.size": 6, "axes.titlesize": 6, "axes.labelsize": 6, "xtick.labelsize": 6, "ytick.labelsize": 6,
    "legend.fontsize": 6, "lines.linewidth": 0.9, "lines.markersize": 2.6, "axes.linewidth": 0.5, "grid.linewidth": 0.4,
    "xtick.major.width": 0.5, "ytick.major.width": 0.5, "xtick.major.size": 2, "ytick.major.size": 2, "figure.dpi": 300,
}  # fmt: skip
narrow = matplotlib.style.context([str(STYLE), _SMALL])  # the same, for a figure of one column

# What a file would tell of when and with what it was made is left out.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@styled
def encoded(figure: Figure, kind: str) -> bytes:
    """A figure as a `png`, `svg` or `pdf` file, laid out once: another pass would move its parts by a little."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    buffer = io.BytesIO()
    dpi = max(figure.dpi, matplotlib.rcParams["savefig.dpi"])
    figure.savefig(buffer, format=kind, metadata=_METADATA[kind], dpi=dpi)
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes."""
    return encoded(figure, "png")
