"""Attention of a model as numbers and figures: which pixels a pixel looks at, which kernel taps a tap looks at.

Two attentions are in a model. *Window attention* mixes the w² pixels of a window, in all 18 layers. *Kernel SA* mixes
the taps of a layer's kernels, in the variants whose row has `sa` (attention among channels, `sa_among`, is not looked
at here). Both are looked at on a `workbook.views.trace.Trace`. Layers, heads, filters, rows and columns count from 0
here; in the
figures heads and filters count from 1, as windows and blocks do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.style
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PatchCollection, PathCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from torch import Tensor

from ka.errors import KAError
from ka.models.cpu_attention import Q_SCALE, Heads
from ka.models.kernel_attention import KernelAttention, KernelSA
from ka.models.psrt import LAYERS
from ka.models.variants import N_WINDOWS, VARIANTS, Variant
from workbook.paths import STYLE
from workbook.views.trace import Seen, Trace

Picture = Float[np.ndarray, "h w 3"]

# Numbers: window attention.


@torch.no_grad()
def window_weights(seen: Seen, window: int | None = None) -> Float[Tensor, "windows heads tokens tokens"]:
    """Softmax weights softmax(4 q kᵀ) of a layer's window attention: every query (third axis) over its window's keys.

    Args:
        seen: what the layer saw.
        window: which window, row-major among the layer's (possibly shuffled) positions; None for all of them. All
            windows of 8×8 of an h × w image are heads · h · w · 64 numbers.

    Returns:
        Weights that sum to 1 over the last axis; tokens are row-major in a window. One window: a first axis of 1.

    Raises:
        KAError: there is no such window.
    """
    x, size = seen.attention, seen.layer.window
    if window is not None:
        across = x.shape[2] // size
        n_windows = across * (x.shape[1] // size)
        if not 0 <= window < n_windows:
            raise KAError(f"window {window}: this layer has {n_windows}; choose 0 … {n_windows - 1}")
        top, left = window // across * size, window % across * size
        x = x[:, top : top + size, left : left + size]
    q, k, _ = seen.layer.attn.split(x)
    return _softmax(q, k, Q_SCALE)


@dataclass(frozen=True, eq=False)
class Query:
    """What one pixel of the image looks at in one layer.

    Attributes:
        layer: number of the layer.
        row, col: the pixel that asks.
        window: its window, row-major among the layer's (possibly shuffled) positions.
        weights: its attention weights over the pixels of its window, by head; they sum to 1.
        rows, cols: where in the image these pixels are. In a shuffled layer they lie apart, in up to 2×2 cells.
        lands: the pixel (row, column) that the answer is added to. It is the asking pixel, except in L2 and L3 of
            `psrt_misaligned`.
    """

    layer: int
    row: int
    col: int
    window: int
    weights: Float[np.ndarray, "heads tokens"]
    rows: Int[np.ndarray, " tokens"]
    cols: Int[np.ndarray, " tokens"]
    lands: tuple[int, int]

    @property
    def scattered(self) -> bool:
        """Whether the window's pixels lie apart in the image."""
        return any(np.ptp(places) >= len(np.unique(places)) for places in (self.rows, self.cols))

    @property
    def token(self) -> int:
        """The asking pixel's own number in its window."""
        return int(np.flatnonzero((self.rows == self.row) & (self.cols == self.col))[0])


def query(trace: Trace, layer_index: int, row: int, col: int) -> Query:
    """What the image's pixel (row, col) looks at in a layer.

    In a shuffled layer the pixel is found where the shuffle put it, and the pixels of its window where they are in the
    image. (In `psrt_misaligned` features moved in earlier layers too: there (row, col) is where the layer takes the
    query from.)

    Args:
        trace: a model's pass over the image.
        layer_index: 0 … 17 (`ka.models.psrt.LAYERS` names them).
        row, col: pixel of the image.

    Raises:
        KAError: no such layer, or a pixel outside the image.
    """
    seen = _layer(trace, layer_index)
    h, w = seen.places.shape
    if not (0 <= row < h and 0 <= col < w):
        raise KAError(
            f"pixel (row {row}, column {col}) is outside the image; choose row 0 … {h - 1}, column 0 … {w - 1}"
        )
    size = seen.layer.window
    y, x = (int(i) for i in (seen.places == row * w + col).nonzero()[0])
    top, left = y // size * size, x // size * size
    window = top // size * (w // size) + left // size
    token = (y - top) * size + x - left
    weights = window_weights(seen, window)[0, :, token]
    pixels = seen.places[top : top + size, left : left + size].flatten().numpy()
    lands = (row, col) if seen.layer.move is None else (y, x)
    return Query(layer_index, row, col, window, weights.double().cpu().numpy(), pixels // w, pixels % w, lands)


def normalised_entropy(weights: Float[Tensor, "*any tokens"]) -> Float[Tensor, "*any"]:
    """Entropy of weights that sum to 1 over n tokens, divided by that of uniform weights: -Σ p log₂ p / log₂ n.

    1: all tokens alike; 0: a single one. Divided, windows of 4, 16 and 64 pixels can be compared (undivided, they
    reach 2, 4 and 6 bits). In float64.
    """
    p = weights.double()
    return torch.special.entr(p).sum(-1) / np.log(p.shape[-1])


@torch.no_grad()
def entropy(seen: Seen) -> Float[np.ndarray, " heads"]:
    """Normalised entropy (0 … 1, see `normalised_entropy`) of a layer's window attention by head.

    Mean over all windows and queries.
    """
    q, k, _ = seen.layer.attn.split(seen.attention)
    some = max(1, 2**22 // (q.shape[1] * q.shape[2] ** 2))  # windows at a time: 32 MB of float64
    total = sum(
        normalised_entropy(_softmax(a, b, Q_SCALE)).sum((0, 2))
        for a, b in zip(q.split(some), k.split(some), strict=True)
    )
    return (torch.as_tensor(total) / (q.shape[0] * q.shape[2])).cpu().numpy()


def entropies(trace: Trace) -> Float[np.ndarray, "layers heads"]:
    """Normalised entropy (0 … 1, see `entropy`) of the window attention of all 18 layers."""
    return np.stack([entropy(seen) for seen in trace.seen])


# Numbers: kernel SA.


class Tap(NamedTuple):
    """A token of kernel SA: a place in one kernel of the set.

    Attributes:
        kernel: "window 1" … "window 4" (quadrants, row-major) or "global". Of KAv8's traded axes, see
            `KernelWeights.taps`.
        u, v: row and column in the k×k kernel.
    """

    kernel: str
    u: int
    v: int


@dataclass(frozen=True, eq=False)
class KernelWeights:
    """Attention among the kernel taps of one layer.

    Attributes:
        row: the variant.
        weights: softmax weights: every tap (third axis) over all taps; they sum to 1 over the last axis. Filters are
            the kernels' output channels; pooled kernels (kav1, kav9) have one, as they get an output axis later.
    """

    row: Variant
    weights: Float[np.ndarray, "filters heads taps taps"]

    @property
    def entropy(self) -> Float[np.ndarray, " heads"]:
        """Normalised entropy (0 … 1, see `normalised_entropy`) by head, mean over filters and taps."""
        return normalised_entropy(torch.from_numpy(self.weights)).mean((0, 2)).numpy()

    def taps(self, filter: int | None = None) -> tuple[Tap, ...]:
        """What each tap is: kernel-major in the set's order, then row-major in k×k.

        Where KAv8's code traded axes (`kav8_as_run`) the set of a filter holds kernels of several windows *and
        filters*. Without `filter` its taps are named by what their results are used as ("slot 2 → window 1"); with
        one, by what they are ("window 3 of filter 7", from 1).

        Raises:
            KAError: there is no such filter.
        """
        n_filters = _index("filter", filter, len(self.weights))
        windows = [f"window {m + 1}" for m in range(N_WINDOWS)]
        names = {
            "windows": windows,
            "windows+global": [*windows, "global"],
            "global+windows": ["global", *windows],
            "scrambled": ["global", *windows],
        }[self.row.sa]
        if self.row.sa == "scrambled":
            if filter is None:
                names = [f"slot {m + 1} → {name}" for m, name in enumerate(names)]
            else:  # (filter, kernel) in memory, read as (kernel, filter)
                held = [divmod(m * n_filters + filter, len(names)) for m in range(len(names))]
                names = [f"{names[m]} of filter {f + 1}" for f, m in held]
        side = range(self.row.size)
        return tuple(Tap(name, u, v) for name in names for u in side for v in side)


def among_taps(row: Variant) -> bool:
    """Whether a variant has attention among kernel taps."""
    return bool(row.sa) and row.sa_among != "channels"


@torch.no_grad()
def kernel_sa(trace: Trace, layer_index: int) -> KernelWeights:
    """The weights of a layer's kernel SA among taps, softmax(q kᵀ / √d), d = channels of a head.

    Args:
        trace: the pass of a variant with kernel SA. Only where kernels are pooled do the weights depend on the image.
        layer_index: 0 … 17 (`ka.models.psrt.LAYERS` names them).

    Raises:
        KAError: no such layer, a variant without kernel SA among taps, or a folded model.
    """
    seen, row = _layer(trace, layer_index), trace.model.row
    if not among_taps(row):
        lacks = "kernel SA among channels, not among taps" if row.sa else "no kernel SA"
        able = [name for name, other in VARIANTS.items() if among_taps(other)]
        raise KAError(f"{row.name} has {lacks}; choose a model of one of {', '.join(able)}")
    if not isinstance(seen.layer.ka, KernelAttention):
        raise KAError(f"this {row.name} is folded and has no kernel SA any more; trace the model before `fold`")
    sa = seen.layer.ka.sa
    assert sa is not None
    assert seen.ka is not None
    q, k, _ = sa.heads(_sa_input(seen.layer.ka, sa, seen.ka))
    weights = _softmax(q, k, q.shape[-1] ** -0.5)
    return KernelWeights(row, weights.double().cpu().numpy())


def _sa_input(ka: KernelAttention, sa: KernelSA, x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 m o i u v"]:
    """The kernels that the layer's SA is given."""
    caught: list[Tensor] = []
    hook = sa.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        ka.kernels(x)
    finally:
        hook.remove()
    return caught[0]


def _softmax(q: Heads, k: Heads, scale: float) -> Float[Tensor, "windows heads tokens tokens"]:
    """softmax(scale · q kᵀ)."""
    return (scale * q @ k.transpose(-2, -1)).softmax(-1)


def _layer(trace: Trace, layer_index: int) -> Seen:
    if not 0 <= layer_index < len(trace.seen):
        raise KAError(f"layer {layer_index}: the model has {len(trace.seen)}; choose 0 … {len(trace.seen) - 1}")
    return trace.seen[layer_index]


def _index(what: str, value: int | None, n: int) -> int:
    """`n`, if `value` is None or one of 0 … n - 1."""
    if value is not None and not 0 <= value < n:
        raise KAError(f"{what} {value}: there are {n}; choose 0 … {n - 1}, or None")
    return n


# Figures: window attention.

TILE = 48  # side of a drawn window: whole multiples of the 8, 12, 4, 6, 2, 3 pixels that a window spans
GAP = 10  # between drawn windows; a line of text fits
MARK = "#D55E00"
CHOSEN = "#CC79A7"
EMPTY = "#D0D0D0"  # pixels between the cells of a scattered window, which are not in it


def query_maps(trace: Trace, picture: Picture, layer_index: int, row: int, col: int, head: int | None = None) -> Figure:
    """What a pixel looks at in one layer: where its window is, its weights there, and its weights by head.

    Left: the image with the pixel (+) and its window. Middle: the image around the window, a dot per pixel of it, of
    the mean over heads or of one; its colour is the weight, its area the weight against the largest one there. Right:
    the window by head. One colour scale from 0; a line in its bar marks uniform weights. The pixel is in an orange
    square. In shuffled layers the window lies in cells at their true places; where these are far apart
    (`psrt_misaligned`), the middle joins pieces of the image at white lines, and the right shortens distances to one
    cell.

    Args:
        trace: a model's pass over the image.
        picture: the image in [0, 1], for the eye (`workbook.views.plots.as_rgb`).
        layer_index: 0 … 17.
        row, col: pixel of the image.
        head: show this head (from 0) in the middle; None: the mean over heads.

    Raises:
        KAError: no such layer, pixel or head, or the picture of another image.
    """
    found = query(trace, layer_index, row, col)
    _check_picture(trace, picture)
    n_heads = _index("head", head, len(found.weights))
    shown = found.weights.mean(0) if head is None else found.weights[head]
    norm = Normalize(0, float(found.weights.max()))
    rows, cols = _nearby(found.rows, picture.shape[0]), _nearby(found.cols, picture.shape[1])
    per_line = n_heads // 2
    with matplotlib.style.context(STYLE):
        aspects = (picture.shape[1] / picture.shape[0], len(cols) / len(rows))
        figure, (whole, near, heads, bar) = _in_a_row([*(min(max(a, 0.45), 2) for a in aspects), per_line / 2], 0.5)
        whole.imshow(np.clip(picture, 0, 1))
        whole.add_collection(_outlines(found.rows, found.cols))
        whole.plot(col, row, "+", color=MARK, markersize=7, markeredgewidth=1.5)
        whole.set_title(f"row {row}, column {col}")
        _dots(near, picture[np.ix_(rows, cols)], found, shown, norm, rows, cols)
        in_pieces = len(_runs(rows)) > 1 or len(_runs(cols)) > 1
        of_heads = f"mean of {n_heads} heads" if head is None else f"head {head + 1}"
        near.set_title(of_heads + (" (in pieces)" if in_pieces else ""))
        tiles, marks = zip(*(_tile(found, weights) for weights in found.weights), strict=True)
        labels = [f"head {i + 1}" for i in range(n_heads)]
        cmap = matplotlib.colormaps["viridis"].with_extremes(bad=EMPTY)
        _mosaic(heads, tiles, labels, per_line, norm, cmap, head, marks)
        heads.set_title("by head" + (" (distances shortened)" if _shortened(found) else ""))
        _weight_bar(figure, bar, norm, found.weights.shape[1])
        title = f"{trace.model.row.name}, {LAYERS[layer_index]}"
        if found.lands != (row, col):
            whole.plot(*found.lands[::-1], "x", color=CHOSEN, markersize=6, markeredgewidth=1.8)
            title += f"; the answer is added to row {found.lands[0]}, column {found.lands[1]} (×)"
        _headline(figure, title)
    return figure


def query_layers(trace: Trace, picture: Picture, row: int, col: int) -> Figure:
    """What a pixel looks at in all 18 layers: mean over heads of its weights in its window.

    Colour: how many times the uniform weight 1/w², in powers of two, so that windows of all sizes share a scale; it
    reaches as far as the largest weight, at least to 2×, and what is further below ends in the same blue. Windows
    of any size are drawn equally large. In shuffled layers grey is what lies between the window's cells (further
    distances are shortened to one cell).

    Args:
        trace: a model's pass over the image.
        picture: the image in [0, 1], for the eye.
        row, col: pixel of the image.

    Raises:
        KAError: a pixel outside the image, or the picture of another image.
    """
    found = [query(trace, i, row, col) for i in range(len(trace.seen))]
    _check_picture(trace, picture)
    columns = [found[i : i + 3] for i in range(0, len(found), 3)]
    ordered = [column[which] for which in range(3) for column in columns]
    with np.errstate(divide="ignore"):  # a weight of 0 is -∞ below uniform, and drawn as the lowest colour
        times = [np.log2(one.weights.mean(0) * one.weights.shape[1]) for one in ordered]
    reach = max(1.0, *(float(t.max()) for t in times))
    norm = Normalize(-reach, reach)
    with matplotlib.style.context(STYLE):
        aspect = min(max(picture.shape[1] / picture.shape[0], 0.45), 1.6)
        figure, (whole, maps, bar) = _in_a_row([aspect, len(columns) / 3], 0.72)
        whole.imshow(np.clip(picture, 0, 1))
        for one in found[:9:3]:
            whole.add_collection(_outlines(one.rows, one.cols))
        whole.plot(col, row, "+", color=MARK, markersize=7, markeredgewidth=1.5)
        whole.set_title(f"row {row}, column {col}")
        tiles, marks = zip(
            *(_tile(one, np.maximum(t, -reach)) for one, t in zip(ordered, times, strict=True)), strict=True
        )
        names = [LAYERS[one.layer].split(", ") for one in ordered]
        labels = [f"{name[1]}, {name[2]}" for name in names]
        cmap = matplotlib.colormaps["RdBu_r"].with_extremes(bad=EMPTY)
        _mosaic(maps, tiles, labels, len(columns), norm, cmap, marks=marks)
        width = TILE + GAP
        for block in range(2):
            middle = (block * 3 + 1) * width + TILE / 2
            maps.text(middle, -GAP - 4, f"block {block + 1}", ha="center", va="bottom", fontsize=9, weight="bold")
        maps.axvline(3 * width - GAP / 2 - 0.5, color="#808080", linewidth=0.8)
        step = 1 + int(reach) // 4
        ticks = step * np.arange(-(int(reach) // step), int(reach) // step + 1)
        drawn = figure.colorbar(ScalarMappable(norm, cmap), cax=bar, extend="min", label="weight / uniform weight")
        bar.grid(visible=False)
        drawn.set_ticks(
            ticks.tolist(), labels=[f"{2**tick}" if tick >= 0 else f"1/{2**-tick}" for tick in ticks.tolist()]
        )
        _headline(figure, f"{trace.model.row.name}, mean over heads")
    return figure


def entropy_map(
    entropies: Float[np.ndarray, "layers heads"], names: Sequence[str] = LAYERS, title: str = "window attention"
) -> Figure:
    """Normalised attention entropy by layer and head: 1 (marked in the bar) is uniform attention, 0 a single pixel.

    Args:
        entropies: as the function `entropies` gives them; or of kernel SA, a row for each layer.
        names: of the layers.
        title: what attention it is.
    """
    with matplotlib.style.context(STYLE):
        n_layers, n_heads = entropies.shape
        wide, tall = 2.55 + 0.5 * n_heads, 0.95 + 0.235 * n_layers
        figure = Figure(figsize=(wide, tall))
        below, height = 0.5 / tall, 0.235 * n_layers / tall
        axis = figure.add_axes((1.35 / wide, below, 0.5 * n_heads / wide, height))
        bar = figure.add_axes((1 - 1.05 / wide, below, 0.14 / wide, height))
        norm = Normalize(0, 1)
        axis.imshow(entropies, norm=norm, cmap="viridis", aspect="auto")
        axis.add_collection(_numbers(entropies, figure, axis))
        axis.set_yticks(range(n_layers), names)
        axis.set_xticks(range(n_heads), [str(head + 1) for head in range(n_heads)])
        axis.set(xlabel="head")
        axis.tick_params(length=0)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        drawn = figure.colorbar(ScalarMappable(norm, "viridis"), cax=bar)
        drawn.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5", "0.75", "1: uniform"])
        bar.grid(visible=False)
        _headline(figure, f"{title}: entropy / that of uniform weights")
    return figure


# Figures: kernel SA.


def kernel_sa_map(
    weights: Float[np.ndarray, "filters heads taps taps"],
    labels: Sequence[Tap],
    head: int | None = None,
    filter: int | None = None,
    title: str = "kernel SA",
) -> Figure:
    """Which kernel taps a tap looks at (a row each), mean over filters and heads or of one.

    Left: taps × taps, cut by lines into kernels (k² taps each, row-major in k×k). Right: every head. One colour scale
    from 0; a line in its bar marks uniform weights.

    Args:
        weights: `KernelWeights.weights`.
        labels: `KernelWeights.taps(filter)`.
        head: show this head (from 0) on the left; None: the mean over heads.
        filter: show this filter (from 0); None: the mean over filters.
        title: what is shown, such as the variant and the layer.

    Raises:
        KAError: there is no such head or filter.
    """
    n_heads = _index("head", head, weights.shape[1])
    n_filters = _index("filter", filter, len(weights))
    by_head = weights.mean(0) if filter is None else weights[filter]
    shown = by_head.mean(0) if head is None else by_head[head]
    n = len(labels)
    of_filter = (
        ("its one filter" if n_filters == 1 else f"mean of {n_filters} filters")
        if filter is None
        else f"filter {filter + 1}"
    )
    norm = Normalize(0, float(by_head.max()))
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.5, 4.6))
        main, heads, bar = (
            figure.add_axes((x / 9.5, 0.62 / 4.6, width / 9.5, 3.5 / 4.6))
            for x, width in ((0.95, 3.5), (4.75, 3.5), (8.55, 0.14))
        )
        main.imshow(shown, norm=norm, cmap="viridis")
        main.set_title(f"mean of {n_heads} heads" if head is None else f"head {head + 1}")
        kernels = list(dict.fromkeys(label.kernel for label in labels))
        size = n // len(kernels)
        names = [kernel.replace(" → ", "\n→ ").replace(" of ", "\nof ") for kernel in kernels]
        middles = [m * size + (size - 1) / 2 for m in range(len(names))]
        main.set_xticks(middles, names, fontsize=8)
        main.set_yticks(middles, names, fontsize=8)
        main.set(xlabel="tap that is looked at", ylabel="tap that looks")
        edges = [m * size - 0.5 for m in range(1, len(names))]
        main.hlines(edges, -0.5, n - 0.5, color="white", linewidth=0.8)
        main.vlines(edges, -0.5, n - 0.5, color="white", linewidth=0.8)
        main.tick_params(length=0)
        main.grid(visible=False)
        _bare(heads)
        heads.set_title("by head")
        corners = _mosaic(heads, list(by_head), [f"head {i + 1}" for i in range(n_heads)], 2, norm, "viridis", head)
        cuts = [
            line
            for top, left in corners
            for edge in edges
            for line in (
                [(left - 0.5, top + edge), (left + n - 0.5, top + edge)],
                [(left + edge, top - 0.5), (left + edge, top + n - 0.5)],
            )
        ]
        heads.add_collection(LineCollection(cuts, colors="white", linewidths=0.5))
        _weight_bar(figure, bar, norm, n)
        _headline(figure, f"{title}, {of_filter}")
    return figure


# What the figures are made of.


def _check_picture(trace: Trace, picture: Picture) -> None:
    size = tuple(trace.up.shape[-2:])
    if picture.shape != (*size, 3):
        raise KAError(
            f"the picture is {picture.shape}, the traced image {size}; give the picture (h w 3) of that image"
        )


def _in_a_row(aspects: Sequence[float], above: float) -> tuple[Figure, list[Axes]]:
    """A figure with bare axes of one height beside each other (width / height: `aspects`), and one for a colour bar.

    `above`: inches for titles.
    """
    between, below, for_bar = 0.2, 0.12, 0.85
    fixed = between * (len(aspects) + 1) + for_bar
    high = min((9.5 - fixed) / sum(aspects), 3.8)
    wide, tall = high * sum(aspects) + fixed, high + above + below
    figure = Figure(figsize=(wide, tall))
    axes, left = [], between
    for aspect in aspects:
        axes.append(figure.add_axes((left / wide, below / tall, high * aspect / wide, high / tall)))
        _bare(axes[-1])
        left += high * aspect + between
    axes.append(figure.add_axes((left / wide, below / tall, 0.14 / wide, high / tall)))
    return figure, axes


def _headline(figure: Figure, text: str) -> None:
    figure.text(0.5, 1 - 0.06 / figure.get_figheight(), text, ha="center", va="top", fontsize=10)


def _weight_bar(figure: Figure, bar: Axes, norm: Normalize, n: int) -> None:
    """Colour bar of attention weights, a line at 1/n."""
    label = f"weight (line: uniform, 1/{n})"
    figure.colorbar(ScalarMappable(norm, "viridis"), cax=bar, label=label)
    bar.axhline(1 / n, color=MARK, linewidth=2)
    bar.grid(visible=False)


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _numbers(values: Float[np.ndarray, "y x"], figure: Figure, axis: Axes) -> PathCollection:
    """Each value of a map (0 … 1), two decimals, in the middle of its cell; as texts they took most of the time."""
    size = 7 / 72  # in inches
    wide = 0.636 * size  # DejaVu Sans: every digit; a dot half of it
    glyphs = {sign: TextPath((0, 0), sign, size=size) for sign in "0123456789."}
    starts = [Affine2D().translate((x - 1.75) * wide, -0.365 * size) for x in (0, 1, 1.5, 2.5)]
    texts = [f"{value:.2f}" for value in values.flat]
    drawn = {
        text: Path.make_compound_path(*(glyphs[sign].transformed(at) for sign, at in zip(text, starts, strict=True)))
        for text in set(texts)
    }
    numbers = PathCollection(
        [drawn[text] for text in texts],
        offsets=[(x, y) for y, x in np.ndindex(values.shape)],
        offset_transform=axis.transData,
        facecolors=["black" if value > 0.6 else "white" for value in values.flat],
        linewidths=0,
    )
    numbers.set_transform(figure.dpi_scale_trans)
    return numbers


def _runs(places: Int[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Whole numbers as runs without gaps: (first, length)."""
    some = np.unique(places)
    return [(int(run[0]), len(run)) for run in np.split(some, np.flatnonzero(np.diff(some) > 1) + 1)]


def _outlines(rows: Int[np.ndarray, " n"], cols: Int[np.ndarray, " n"]) -> PatchCollection:
    """The border of a window's pixels: a rectangle, or one around each of its cells."""
    cells = [
        Rectangle((left - 0.5, top - 0.5), width, height) for top, height in _runs(rows) for left, width in _runs(cols)
    ]
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


def _dots(
    axis: Axes,
    picture: Picture,
    found: Query,
    weights: Float[np.ndarray, " tokens"],
    norm: Normalize,
    rows: Int[np.ndarray, " h"],
    cols: Int[np.ndarray, " w"],
) -> None:
    """These rows and columns of the image; on each pixel of the window a dot, sized against the largest weight."""
    axis.imshow(np.clip(picture, 0, 1), aspect="auto")
    for places, line in ((rows, axis.axhline), (cols, axis.axvline)):
        for cut in np.flatnonzero(np.diff(places) > 1):
            line(cut + 0.5, color="white", linewidth=5)
    place = axis.get_window_extent()
    pixel = 72 / axis.figure.dpi * min(place.width / len(cols), place.height / len(rows))
    y, x = np.searchsorted(rows, found.rows), np.searchsorted(cols, found.cols)
    area = (0.9 * pixel) ** 2 * weights / weights.max()
    axis.scatter(x, y, s=area, c=weights, norm=norm, cmap="viridis", edgecolors="white", linewidths=0.5)
    axis.add_collection(_outlines(y, x))
    asks = Rectangle((x[found.token] - 0.5, y[found.token] - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=1.6)
    axis.add_patch(asks)


def _compact(places: Int[np.ndarray, " n"], longest: int) -> tuple[Int[np.ndarray, " n"], int]:
    """Rows (or columns) counted from the first, gaps shortened to `longest`; and how many that makes."""
    some, back = np.unique(places, return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(np.diff(some), longest + 1))])
    return offsets[back], int(offsets[-1]) + 1


def _shortened(found: Query) -> bool:
    cell = round(len(found.rows) ** 0.5) // 2
    return any(np.diff(np.unique(places)).max() > cell + 1 for places in (found.rows, found.cols))


def _tile(
    found: Query, values: Float[np.ndarray, " tokens"]
) -> tuple[Float[np.ndarray, "tile tile"], tuple[int, int, int]]:
    """Values at the places of the window's pixels, NaN between its cells; and the asking pixel (row, column, side)."""
    cell = round(len(values) ** 0.5) // 2
    (rows, height), (cols, width) = (_compact(places, cell) for places in (found.rows, found.cols))
    unit = TILE // max(height, width)
    small = np.full((height, width), np.nan)
    small[rows, cols] = values
    tile = np.full((TILE, TILE), np.nan)
    top, left = (TILE - height * unit) // 2, (TILE - width * unit) // 2
    tile[top : top + height * unit, left : left + width * unit] = small.repeat(unit, 0).repeat(unit, 1)
    return tile, (top + int(rows[found.token]) * unit, left + int(cols[found.token]) * unit, unit)


def _mosaic(
    axis: Axes,
    tiles: Sequence[Float[np.ndarray, "side side"]],
    labels: Sequence[str],
    per_line: int,
    norm: Normalize,
    cmap: str | Colormap,
    chosen: int | None = None,
    marks: Sequence[tuple[int, int, int]] = (),
) -> list[tuple[int, int]]:
    """Small square maps in one picture, a label above each.

    Args:
        axis: to draw in.
        tiles: the maps, line by line.
        labels: their labels.
        per_line: maps in a line.
        norm, cmap: the colours.
        chosen: a map to frame.
        marks: in each map, a square (row, column, side) to frame.

    Returns:
        The first row and column of each map in the picture.
    """
    side = len(tiles[0])
    gap = round(GAP * side / TILE)
    corners = [(i // per_line * (side + gap) + gap, i % per_line * (side + gap)) for i in range(len(tiles))]
    colours = matplotlib.colormaps[cmap] if isinstance(cmap, str) else cmap
    canvas = np.ones((corners[-1][0] + side, per_line * (side + gap) - gap, 4))
    for (top, left), tile, label in zip(corners, tiles, labels, strict=True):
        canvas[top : top + side, left : left + side] = colours(norm(np.ma.masked_invalid(tile)))
        axis.text(left + side / 2, top - 1.5, label, ha="center", va="bottom", fontsize=8)
    axis.imshow(canvas)
    axis.set_xlim(-1.5, canvas.shape[1] + 0.5)  # the last frames whole
    axis.set_ylim(canvas.shape[0] + 0.5, -0.5)
    frames = [
        Rectangle((left + x - 0.5, top + y - 0.5), one, one)
        for (top, left), (y, x, one) in zip(corners, marks, strict=False)
    ]
    axis.add_collection(PatchCollection(frames, facecolor="none", edgecolor=MARK, linewidth=1.2))
    if chosen is not None:
        top, left = corners[chosen]
        axis.add_patch(Rectangle((left - 1, top - 1), side + 1, side + 1, fill=False, edgecolor=CHOSEN, linewidth=2))
    return corners
