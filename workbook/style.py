"""The one look of all figures (`style.mplstyle`), and their files: the same bytes for the same figure."""

import io
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from workbook.paths import STYLE

styled = matplotlib.style.context(STYLE)  # decorates a function that draws

# What a file would tell of when and with what it was made is left out.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@styled
def encoded(figure: Figure, kind: str) -> bytes:
    """A figure as a `png`, `svg` or `pdf` file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes."""
    return encoded(figure, "png")
