"""Figures of attention, from the numbers of `workbook.views.attention`.

Layers, heads, filters, rows and columns are arguments that count from 0; in the figures heads and filters count from 1,
as windows and blocks do. One that is not there is a `KAError`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ka.errors import KAError
from ka.models.psrt import LAYERS
from workbook.style import styled
from workbook.views.attention import KernelWeights, Query, query
from workbook.views.draw import SIGNED, WIDTH, bare, colour_bar, side_by_side, write_numbers
from workbook.views.trace import Trace, check_index

Picture = Float[np.ndarray, "h w 3"]

GAP = 0.2  # between maps of side 1; a line of text fits
MARK = "#D55E00"
CHOSEN = "#CC79A7"
EMPTY = "#D0D0D0"  # pixels between the cells of a scattered window, which are not in it


@styled
def query_maps(trace: Trace, picture: Picture, layer: int, row: int, col: int, head: int | None = None) -> Figure:
    """What a pixel looks at in one layer: where its window is, its weights there, and its weights by head.

    Left: the image with the pixel (+) and its window. Middle: the image around the window, a dot per pixel of it, of
    the mean over heads or of one; its colour is the weight, its area the weight against the largest one there. Right:
    the window by head. One colour scale from 0; a line in its bar marks uniform weights. The pixel is in an orange
    square. In shuffled layers the window lies in cells at their true places; where these are far apart
    (`psrt_misaligned`), the middle joins pieces of the image at white lines, and the right shortens distances to one
    cell. `picture` is the traced image for the eye, in [0, 1] (`workbook.views.plots.as_rgb`).
    """
    asked = query(trace, layer, row, col)
    _check_picture(trace, picture)
    weights, which = _one_or_mean("head", head, asked.weights)
    norm = Normalize(0, float(asked.weights.max()))
    near_rows, near_cols = _nearby(asked.rows, picture.shape[0]), _nearby(asked.cols, picture.shape[1])
    per_line, title = len(asked.weights) // 2, f"{trace.model.row.name}, {LAYERS[layer]}"
    if asked.lands != (row, col):
        title += f"; the answer is added to row {asked.lands[0]}, column {asked.lands[1]} (×)"
    aspects = [min(max(a, 0.45), 2) for a in (picture.shape[1] / picture.shape[0], len(near_cols) / len(near_rows))]
    figure, (whole, near, heads, bar) = _panels([*aspects, per_line / 2], 0.24, title)
    _draw_image(whole, picture, [asked])
    if asked.lands != (row, col):
        whole.plot(*asked.lands[::-1], "x", color=CHOSEN, markersize=6, markeredgewidth=1.8)
    near.imshow(np.clip(picture[np.ix_(near_rows, near_cols)], 0, 1), aspect="auto")
    in_pieces = _cut(near.axhline, near_rows) + _cut(near.axvline, near_cols)
    y, x = np.searchsorted(near_rows, asked.rows), np.searchsorted(near_cols, asked.cols)
    _draw_dots(near, y, x, asked.token, weights, norm)
    near.set_title(which + (" (in pieces)" if in_pieces else ""))
    tiles, marks = zip(*(_tile(asked, values) for values in asked.weights), strict=True)
    labels = [f"head {i + 1}" for i in range(len(tiles))]
    _draw_tiles(heads, tiles, labels, per_line, norm, "viridis", head, marks)
    heads.set_title("by head" + (" (distances shortened)" if _compact(asked)[1] else ""))
    _weight_bar(bar, norm, asked.weights.shape[1])
    return figure


@styled
def query_layers(trace: Trace, picture: Picture, row: int, col: int) -> Figure:
    """What a pixel looks at in all 18 layers: mean over heads of its weights in its window.

    Colour: how many times the uniform weight 1/w², in powers of two, so that windows of all sizes share a scale; it
    reaches as far as the largest weight, at least to 2×, and what is further below ends in the same blue. Windows
    of any size are drawn equally large. In shuffled layers grey is what lies between the window's cells (further
    distances are shortened to one cell). The picture is that of the traced image, in [0, 1].
    """
    queries = [query(trace, layer, row, col) for layer in range(len(LAYERS))]
    _check_picture(trace, picture)
    ordered = [asked for which in range(3) for asked in queries[which::3]]
    with np.errstate(divide="ignore"):  # a weight of 0 is -∞ below uniform, and drawn as the lowest colour
        times = [np.log2(asked.weights.mean(0) * asked.weights.shape[1]) for asked in ordered]
    reach = max(1.0, *(float(values.max()) for values in times))
    norm = Normalize(-reach, reach)
    aspect = min(max(picture.shape[1] / picture.shape[0], 0.45), 1.6)
    figure, (whole, maps, bar) = _panels([aspect, 2], 0.46, f"{trace.model.row.name}, mean over heads")
    _draw_image(whole, picture, queries[:9:3])
    drawn = [_tile(asked, np.maximum(values, -reach)) for asked, values in zip(ordered, times, strict=True)]
    tiles, marks = zip(*drawn, strict=True)
    labels = [LAYERS[asked.layer].split(", ", 1)[1] for asked in ordered]
    _draw_tiles(maps, tiles, labels, 6, norm, SIGNED, marks=marks)
    for block, middle in enumerate((1.5 + GAP, 4.5 + 4 * GAP), 1):
        maps.text(middle, -0.3, f"block {block}", ha="center", va="bottom", fontsize=9, weight="bold")
    maps.axvline(3 * (1 + GAP) - GAP / 2, color="#808080", linewidth=0.8)
    step = 1 + int(reach) // 4
    ticks = [step * k for k in range(-(int(reach) // step), int(reach) // step + 1)]
    labels = [f"{2**tick}" if tick >= 0 else f"1/{2**-tick}" for tick in ticks]
    colour_bar(bar, ScalarMappable(norm, SIGNED), "weight / uniform weight", extend="min").set_ticks(
        ticks, labels=labels
    )
    return figure


@styled
def entropy_map(entropies: Float[np.ndarray, "layers heads"], title: str = "window attention") -> Figure:
    """Normalised entropy by layer and head, of window attention or of kernel SA: 1 is uniform, 0 a single pixel."""
    n_layers, n_heads = entropies.shape
    margins, title = (1.35, 0.91, 0.19, 0.5), f"{title}: entropy / that of uniform weights"
    figure, (axis, bar) = side_by_side([0.5 * n_heads, 0.14], 0.235 * n_layers, margins, 0.15, title)
    image = axis.imshow(entropies, norm=Normalize(0, 1), cmap="viridis", aspect="auto")
    write_numbers(axis, image)
    axis.set_yticks(range(n_layers), LAYERS)
    axis.set_xticks(range(n_heads), [str(head + 1) for head in range(n_heads)])
    bare(axis, xlabel="head")
    colour_bar(bar, image).set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5", "0.75", "1: uniform"])
    return figure


@styled
def kernel_sa_map(
    kernel_weights: KernelWeights, head: int | None = None, filter: int | None = None, title: str = "kernel SA"
) -> Figure:
    """Which kernel taps a tap looks at (a row each), mean (None) over filters and heads or of one.

    Left: taps × taps, cut by lines into kernels (k² taps each, row-major in k×k). Right: every head. One colour scale
    from 0; a line in its bar marks uniform weights.
    """
    by_head, of_filter = _one_or_mean("filter", filter, kernel_weights.weights)
    shown, which = _one_or_mean("head", head, by_head)
    n, kernels = len(shown), kernel_weights.kernel_names(filter)
    norm = Normalize(0, float(by_head.max()))
    margins = (0.95, 0.81, 0.22, 0.62)
    figure, (main, heads, bar) = side_by_side([3.5, 3.5, 0.14], 3.5, margins, 0.3, f"{title}, {of_filter}")
    main.imshow(shown, norm=norm, cmap="viridis")
    names = [kernel.replace(" → ", "\n→ ").replace(" of ", "\nof ") for kernel in kernels]
    middles = (np.arange(len(names)) + 0.5) * (n // len(names)) - 0.5
    main.set_xticks(middles, names, fontsize=8)
    main.set_yticks(middles, names, fontsize=8)
    main.set(xlabel="tap that is looked at", ylabel="tap that looks", title=which)
    main.add_collection(_cuts(len(names), n, [(-0.5, -0.5)], 0.8))
    main.tick_params(length=0)
    main.grid(visible=False)
    bare(heads, xticks=[], yticks=[], title="by head")
    labels = [f"head {i + 1}" for i in range(len(by_head))]
    corners = _draw_tiles(heads, list(by_head), labels, 2, norm, "viridis", head)
    heads.add_collection(_cuts(len(names), 1, corners, 0.5))
    _weight_bar(bar, norm, n)
    return figure


def _cuts(pieces: int, side: float, corners: Sequence[tuple[float, float]], width: float) -> LineCollection:
    """White lines that cut maps of this side, with their corners at (top, left), into equal pieces down and across."""
    places = [(top, left, side * k / pieces) for top, left in corners for k in range(1, pieces)]
    lines = [[(left, top + at), (left + side, top + at)] for top, left, at in places]
    lines += [[(left + at, top), (left + at, top + side)] for top, left, at in places]
    return LineCollection(lines, colors="white", linewidths=width)


# What the figures are made of


def _check_picture(trace: Trace, picture: Picture) -> None:
    size = tuple(trace.up.shape[-2:])
    if picture.shape != (*size, 3):
        raise KAError(f"the picture is {picture.shape}, the traced image {size}; give that image's picture (h w 3)")


def _one_or_mean(what: str, chosen: int | None, values: np.ndarray) -> tuple[np.ndarray, str]:
    """One entry of the first axis, or the mean over all; and what that is."""
    if chosen is not None:
        return values[check_index(what, chosen, len(values))], f"{what} {chosen + 1}"
    return values.mean(0), f"its one {what}" if len(values) == 1 else f"mean of {len(values)} {what}s"


def _panels(aspects: Sequence[float], above: float, title: str) -> tuple[Figure, list[Axes]]:
    """Bare axes of one height beside each other (width / height: `aspects`), and one for a colour bar."""
    between, for_bar = 0.2, 0.85
    high = min((WIDTH - between * (len(aspects) + 1) - for_bar) / sum(aspects), 3.8)
    widths, margins = [*(high * aspect for aspect in aspects), 0.14], (between, for_bar - 0.14, above, 0.12)
    figure, axes = side_by_side(widths, high, margins, between, title)
    for axis in axes[:-1]:
        bare(axis, xticks=[], yticks=[])
    return figure, axes


def _weight_bar(bar: Axes, norm: Normalize, n: int) -> None:
    colour_bar(bar, ScalarMappable(norm, "viridis"), f"weight (line: uniform, 1/{n})")
    bar.axhline(1 / n, color=MARK, linewidth=2)


def _runs(places: Int[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Whole numbers as runs without gaps: (first, length)."""
    values = np.unique(places)
    return [(int(run[0]), len(run)) for run in np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)]


def _draw_image(axis: Axes, picture: Picture, queries: Sequence[Query]) -> None:
    axis.imshow(np.clip(picture, 0, 1))
    for asked in queries:
        axis.add_collection(_outlines(asked.rows, asked.cols))
    axis.plot(asked.col, asked.row, "+", color=MARK, markersize=7, markeredgewidth=1.5)
    axis.set_title(f"row {asked.row}, column {asked.col}")


def _outlines(rows: Int[np.ndarray, " n"], cols: Int[np.ndarray, " n"]) -> PatchCollection:
    """The border of a window's pixels: a rectangle, or one around each of its cells."""
    cells = [Rectangle((x - 0.5, y - 0.5), w, h) for y, h in _runs(rows) for x, w in _runs(cols)]
    halo = withStroke(linewidth=2.4, foreground="black")  # to be seen on bright and on dark ground
    return PatchCollection(cells, facecolor="none", edgecolor="white", linewidth=1.2, path_effects=[halo])


def _nearby(places: Int[np.ndarray, " n"], end: int) -> Int[np.ndarray, " m"]:
    """The rows (or columns) of an image of `end` that are shown around a window: of each run of it, some more."""
    margin = max(3, len(np.unique(places)) // 2)
    near: set[int] = set()
    for first, length in _runs(places):
        longer = min(length + 2 * margin, end)
        start = min(max(first - margin, 0), end - longer)
        near |= set(range(start, start + longer))
    return np.array(sorted(near))


def _cut(line: Callable[..., object], places: Int[np.ndarray, " n"]) -> int:
    """White lines where the rows (or columns) that are shown jump; how many."""
    jumps = np.flatnonzero(np.diff(places) > 1)
    for jump in jumps:
        line(jump + 0.5, color="white", linewidth=5)
    return len(jumps)


def _draw_dots(
    axis: Axes, y: Int[np.ndarray, " n"], x: Int[np.ndarray, " n"], token: int, weights: np.ndarray, norm: Normalize
) -> None:
    """On each pixel of the window a dot, sized against the largest weight; a square around the one that asks."""
    place = axis.get_window_extent()
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    pixel = 72 / axis.figure.dpi * min(place.width / (right - left), place.height / (bottom - top))
    area = (0.9 * pixel) ** 2 * weights / weights.max()
    axis.scatter(x, y, s=area, c=weights, norm=norm, cmap="viridis", edgecolors="white", linewidths=0.5)
    axis.add_collection(_outlines(y, x))
    axis.add_patch(Rectangle((x[token] - 0.5, y[token] - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=1.6))


def _compact(asked: Query) -> tuple[list[Int[np.ndarray, " n"]], bool]:
    """Rows and columns of a window's pixels counted from the first, gaps shortened to one cell; whether one was."""
    longest = round(len(asked.rows) ** 0.5) // 2 + 1
    short, shortened = [], False
    for places in (asked.rows, asked.cols):
        values, back = np.unique(places, return_inverse=True)
        steps = np.diff(values)
        shortened |= bool((steps > longest).any())
        short.append(np.concatenate([[0], np.cumsum(np.minimum(steps, longest))])[back])
    return short, shortened


def _tile(asked: Query, values: Float[np.ndarray, " tokens"]) -> tuple[Float[np.ndarray, "y x"], tuple[int, int]]:
    """Values at the places of the window's pixels, NaN between its cells; and where the asking pixel is."""
    (rows, cols), _ = _compact(asked)
    tile = np.full((rows.max() + 1, cols.max() + 1), np.nan)
    tile[rows, cols] = values
    return tile, (int(rows[asked.token]), int(cols[asked.token]))


def _draw_tiles(
    axis: Axes,
    tiles: Sequence[Float[np.ndarray, "y x"]],
    labels: Sequence[str],
    per_line: int,
    norm: Normalize,
    colours: str,
    chosen: int | None = None,
    marks: Sequence[tuple[int, int]] = (),
) -> list[tuple[float, float]]:
    """Maps in squares of side 1, `per_line` in a line, a label above each; frames one of them, and one cell in each.
    Gives the top and left of each square.
    """
    corners = [(i // per_line * (1 + GAP) + GAP, i % per_line * (1 + GAP)) for i in range(len(tiles))]
    for i, ((top, left), tile) in enumerate(zip(corners, tiles, strict=True)):
        axis.add_patch(Rectangle((left, top), 1, 1, facecolor=EMPTY, edgecolor="none", zorder=-1))
        (height, width), unit = tile.shape, 1 / max(tile.shape)
        y, x = top + (1 - height * unit) / 2, left + (1 - width * unit) / 2
        axis.imshow(tile, extent=(x, x + width * unit, y + height * unit, y), norm=norm, cmap=colours)
        axis.text(left + 0.5, top - 0.03, labels[i], ha="center", va="bottom", fontsize=8)
        if marks:
            corner = (x + marks[i][1] * unit, y + marks[i][0] * unit)
            axis.add_patch(Rectangle(corner, unit, unit, fill=False, edgecolor=MARK, linewidth=1.2))
        if i == chosen:
            axis.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=CHOSEN, linewidth=2))
    axis.set_xlim(-0.03, per_line * (1 + GAP) - GAP + 0.03)  # the last frames whole
    axis.set_ylim(corners[-1][0] + 1.03, 0)
    return corners
