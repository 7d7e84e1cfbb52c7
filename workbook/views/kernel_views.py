"""Kernels of a KA model to look at: their stages, likeness, frequency responses, contributions, movement.

First numbers, from a `workbook.views.trace.Trace`; then figures, from these numbers. A layer is an index 0 … 17 into
`ka.models.psrt.LAYERS`. Kernels are ordered as their labels say: the windows, row-major, then the global kernel.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import matplotlib.style
import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Complex, Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.textpath import TextPath, text_to_path
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Affine2D
from torch import Tensor

from ka.errors import KAError
from ka.models.kernel_attention import KernelAttention, apply_folded, convolve, fold, quadrants, unquadrants
from ka.models.psrt import LAYERS
from ka.models.variants import N_WINDOWS, Variant
from workbook.paths import STYLE
from workbook.views.trace import Trace

WINDOWS = ("window 1 (top left)", "window 2 (top right)", "window 3 (bottom left)", "window 4 (bottom right)")
KERNEL = "kernel"  # where there is a single one
GLOBAL = "global"
BIAS = "bias"

Bank = Float[np.ndarray, "o i u v"]
Maps = Float[Tensor, "1 c h w"]


@dataclass(frozen=True, eq=False)
class Stage:
    """The kernels of one layer after one of its parts.

    Attributes:
        name: the part, as `KernelAttention.stages` names it.
        kernels: one bank of filters per kernel, `k o i u v`; o = 1 where pooled kernels have no output axis yet.
        labels: the name of each kernel.
    """

    name: str
    kernels: Float[np.ndarray, "k o i u v"]
    labels: tuple[str, ...]


# Numbers: the kernels


def kernel_labels(row: Variant) -> tuple[str, ...]:
    """Names of a variant's kernels, once all are made."""
    windows = (KERNEL,) if row.n_windows == 1 else WINDOWS
    return (*windows, GLOBAL) if row.global_from else windows


def stages_of(trace: Trace, layer: int) -> list[Stage]:
    """The kernels of one layer after each of its parts, in order; the last are those that are convolved with.

    Raises:
        KAError: no such layer, or the model has no kernels (no KA, kav5_as_run, a folded copy); says what to choose.
    """
    ka, x = _branch(trace, layer)
    with torch.no_grad():
        return [_stage(ka.row, *stage) for stage in ka.stages(x)]


def final_stages(trace: Trace, fused: bool = False) -> list[Stage]:
    """The last kernels of each of the 18 layers, or what the fusion makes of them (`fused_stage`).

    Raises:
        KAError: as `stages_of`.
    """
    return [fused_stage(trace, layer) if fused else stages_of(trace, layer)[-1] for layer in range(len(LAYERS))]


def fused_stage(trace: Trace, layer: int) -> Stage:
    """F_m·K_m: every kernel that is convolved with, times its own columns of the fusion ("times fusion").

    Output channels of K_m alone are read by different columns for every m, so that only F_m·K_m have outputs that
    mean the same for all kernels, and (channels of the residual stream) for all layers. Variants without a fusion:
    K_m itself.

    Raises:
        KAError: as `stages_of`.
    """
    ka, x = _branch(trace, layer)
    with torch.no_grad():
        labels, fused = _fused(ka, x)
    return Stage("times fusion", _array(fused), labels)


def _branch(trace: Trace, layer: int) -> tuple[KernelAttention, Maps]:
    """The KA branch of a layer, and its input."""
    row = trace.model.row
    if not row.has_ka:
        raise KAError(f"{row.name} has no KA layers, so there are no kernels; choose a KA variant, such as kav11")
    if row.kernels == "identity":
        raise KAError(f"{row.name}: its KA branch returns its input and has no kernels; choose kav5, as described")
    if isinstance(layer, bool) or layer not in range(len(LAYERS)):
        raise KAError(f"layer={layer!r} is not one of the {len(LAYERS)}; choose 0 … {len(LAYERS) - 1}")
    seen = trace.seen[layer]
    if not isinstance(seen.layer.ka, KernelAttention):
        raise KAError(f"{row.name} was folded, its kernels are merged; trace the model before `fold()`")
    return seen.layer.ka, cast(Maps, seen.ka)


def _stage(row: Variant, name: str, windows: Tensor, glob: Tensor | None) -> Stage:
    joined = windows if glob is None else torch.cat([windows, glob], dim=1)
    return Stage(name, _array(joined[0]), kernel_labels(row)[: joined.shape[1]])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


# Numbers: size, likeness, frequency response


def norms(stages: Sequence[Stage]) -> Float[np.ndarray, "stages k"]:
    """Frobenius norm of every kernel at every stage; NaN where the global kernel is not made yet.

    Works as well on `final_stages`, and gives `layers k`.
    """
    found = np.full((len(stages), max(len(stage.labels) for stage in stages)), np.nan)
    for row, stage in zip(found, stages, strict=True):
        row[: len(stage.labels)] = np.sqrt(np.square(stage.kernels).sum((1, 2, 3, 4)))
    return found


def cosine(kernels: Float[np.ndarray, "k ..."]) -> Float[np.ndarray, "k k"]:
    """Cosine of the angle between every two kernels taken as vectors, in [-1, 1]; 0 with a kernel that is all zero.

    Filters are compared output channel by output channel; see `fused_stage` for when these correspond.
    """
    vectors = kernels.reshape(len(kernels), -1)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return np.clip(unit @ unit.T, -1, 1)


def layer_cosine(stages: Sequence[Stage], label: str) -> Float[np.ndarray, "layers layers"]:
    """`cosine` between layers, of the kernel called `label` in each of `final_stages`.

    Raises:
        KAError: there is no such kernel.
    """
    return cosine(np.stack([stage.kernels[_index(stage, label)] for stage in stages]))


def _index(stage: Stage, label: str) -> int:
    if label not in stage.labels:
        raise KAError(f"kernel {label!r} is not there; choose one of {', '.join(stage.labels)}")
    return stage.labels.index(label)


def frequencies(n: int = 33) -> Float[np.ndarray, " n"]:
    """n frequencies from -0.5 to 0.5 cycles per pixel."""
    return np.linspace(-0.5, 0.5, n)


def response(kernel: Float[np.ndarray, "*any u v"], n: int = 33) -> Float[np.ndarray, "*any n n"]:
    """Magnitude of the frequency response of a k×k kernel, at `frequencies(n)` down and across.

    |H(f_y, f_x)| = |Σ_uv K[u, v] exp(-2πi (f_y u + f_x v))| (Dudgeon & Mersereau, "Multidimensional Digital Signal
    Processing", 1984). Where the kernel is centred, and whether it is flipped, does not change the magnitude.
    """
    taps = np.arange(kernel.shape[-1])
    wave: Complex[np.ndarray, "n u"] = np.exp(-2j * np.pi * np.outer(frequencies(n), taps))
    return np.abs(wave @ kernel @ wave.T)


def bank_response(bank: Bank, n: int = 33) -> Float[np.ndarray, "n n"]:
    """Root mean square of `response` over all output and input channels of one kernel."""
    return np.sqrt(np.square(response(bank, n)).mean((0, 1)))


# Numbers: what the second convolution and the fusion make of the kernels


def folding(trace: Trace, layer: int) -> list[Stage]:
    """From the kernels of the second convolution to the folded k×k kernel, in three steps.

    "second convolution": the kernels K_m as they are used. "times fusion": F_m·K_m, each with its own columns of the
    fusion. "folded": their sum, the one convolution that a pixel meets. kav2 and kav3 (kernel of the window), kav5
    (global kernel) and ordinary convolutions have no fusion: "folded" alone. kav4 has one folded kernel per window,
    window plus global: what a pixel meets unless it lies at its window's border.

    Raises:
        KAError: as `stages_of`.
    """
    ka, _ = _branch(trace, layer)
    parts = fused_stage(trace, layer)
    if ka.fusion is None:
        return [replace(parts, name="folded")]
    if ka.row.second == "image":
        folded = Stage("folded", parts.kernels.sum(0, keepdims=True), ("sum of all",))
    else:
        both = tuple(label.replace(" (", " + global (") for label in WINDOWS)
        folded = Stage("folded", parts.kernels[:-1] + parts.kernels[-1:], both)
    return [replace(stages_of(trace, layer)[-1], name="second convolution"), parts, folded]


def _fused(ka: KernelAttention, x: Maps) -> tuple[tuple[str, ...], Float[Tensor, "k o i u v"]]:
    """The kernels that the second convolution uses, by name, each times its columns of the fusion."""
    windows, glob = ka.kernels(x)
    if ka.row.second == "global":
        return (GLOBAL,), cast(Tensor, glob)[0]
    used, labels = windows if glob is None else torch.cat([windows, glob], dim=1), kernel_labels(ka.row)
    if ka.fusion is None:
        return labels, used[0]
    weight = ka.fusion.weight
    if ka.row.second == "windows+image":  # one set of columns for all windows, one for the image
        on_windows, on_image = weight.chunk(2, dim=1)
        columns = [*[on_windows] * N_WINDOWS, on_image]
    else:
        columns = list(weight.chunk(used.shape[1], dim=1))
        if ka.row.global_first:
            columns = [*columns[1:], columns[0]]
    fused = [fold(kernel, column)[0, 0] for kernel, column in zip(used.split(1, dim=1), columns, strict=True)]
    return labels, torch.stack(fused)


@torch.no_grad()
def terms(trace: Trace, layer: int) -> Iterator[tuple[str, Float[Tensor, "1 c h w"]]]:
    """The layer's output, before a GELU, as a sum: F_m·(K_m ∗ x) for each kernel, and the bias (of the fusion, or of an
    ordinary convolution).

    Where the second convolution is on windows, the term of a window is zero outside it.

    Raises:
        KAError: as `stages_of`.
    """
    ka, x = _branch(trace, layer)
    labels, fused = _fused(ka, x)
    windows = quadrants(x)
    for m, label in enumerate(labels):
        if ka.row.second.startswith("windows") and label != GLOBAL:
            pasted = torch.zeros_like(windows)
            pasted[:, m] = convolve(windows[:, m], fused[m : m + 1])
            yield label, unquadrants(pasted)
        else:
            yield label, convolve(x, fused[m : m + 1])
    bias = ka.bias if ka.fusion is None else ka.fusion.bias
    if bias is not None:
        yield BIAS, repeat(bias.detach(), "c -> 1 c h w", h=x.shape[-2], w=x.shape[-1])


@dataclass(frozen=True, eq=False)
class Contributions:
    """How much of a layer's output y (before a GELU) each of its `terms` t is.

    Attributes:
        labels: the name of each term.
        norms: ‖t‖ / ‖y‖; above 1 where terms cancel each other.
        shares: ⟨t, y⟩ / ⟨y, y⟩; they sum to 1. Negative: the term works against the output.
        window_shares: the same inside each of the four windows; every column sums to 1.
    """

    labels: tuple[str, ...]
    norms: Float[np.ndarray, " t"]
    shares: Float[np.ndarray, " t"]
    window_shares: Float[np.ndarray, "t 4"]


def contributions(trace: Trace, layer: int) -> Contributions:
    """How much each kernel, and the bias, contributes to the output of one layer.

    Raises:
        KAError: as `stages_of`.
    """
    ka, x = _branch(trace, layer)
    with torch.no_grad():
        y = quadrants(apply_folded(x, *ka.folded(x)))[0]
        energy = y.square().sum((1, 2, 3), dtype=torch.float64)
        labels, size, along = [], [], []
        for label, term in terms(trace, layer):
            t = quadrants(term)[0]
            labels.append(label)
            size.append(t.square().sum(dtype=torch.float64))
            along.append((t * y).sum((1, 2, 3), dtype=torch.float64))
        inner = torch.stack(along)
    return Contributions(
        tuple(labels),
        _array((torch.stack(size) / energy.sum()).sqrt()),
        _array(inner.sum(1) / energy.sum()),
        _array(inner / energy),
    )


# Numbers: kernels that follow the image


def movement(a: Trace, b: Trace, layer: int) -> Float[np.ndarray, " k"]:
    """How far each kernel of a layer moves from one image to another: ‖K(a) - K(b)‖ over the mean of the two norms.

    In [0, 2]; exactly 0 where the kernels do not depend on the image.

    Raises:
        KAError: the traces are of two models; otherwise as `stages_of`.
    """
    if a.model is not b.model:
        raise KAError("the two traces are of two models; trace both images with the same one")
    one, other = (stages_of(trace, layer)[-1] for trace in (a, b))
    mean = norms([one, other]).mean(0)
    moved = norms([replace(one, kernels=one.kernels - other.kernels)])[0]
    return np.divide(moved, mean, out=np.zeros_like(moved), where=mean > 0)


def layer_movement(a: Trace, b: Trace) -> Float[np.ndarray, "layers k"]:
    """`movement` of all 18 layers."""
    return np.stack([movement(a, b, layer) for layer in range(len(LAYERS))])


# Figures: mosaics of filters

WIDTH = 9.5  # inches
SIGNED = "RdBu_r"


def filter_grid(
    stages: Sequence[Stage],
    out_channels: Sequence[int] | None = None,
    in_channels: Sequence[int] | None = None,
    shared: bool = True,
    title: str = "",
) -> Figure:
    """The filters of every kernel (columns) at every stage (rows), each a mosaic: a row of k×k filters per output
    channel, a column per input channel.

    Args:
        stages: of `stages_of`, one of them, or `folding`.
        out_channels: which output channels; None for all. Pooled kernels that have none yet show their one row.
        in_channels: which input channels; None for all.
        shared: one colour scale for all rows; otherwise one each (SA as it starts shrinks kernels to a thousandth).
        title: what is shown.

    Raises:
        KAError: there is no such channel.
    """
    with matplotlib.style.context(STYLE):
        mosaic = _Mosaic.of(stages, out_channels, in_channels)
        left, right, above, below = 0.85, 0.95, 0.68 if title else 0.42, 0.3
        scale = min((WIDTH - left - right) / mosaic.width, (8.0 - above - below) / mosaic.height)
        height = mosaic.height * scale + above + below
        figure = Figure(figsize=(WIDTH, height))
        wide, high = mosaic.width * scale / WIDTH, mosaic.height * scale / height
        axis = figure.add_axes((left / WIDTH, below / height, wide, high))
        _draw_mosaic(figure, axis, mosaic, shared)
        axis.set_xlabel("in each mosaic: input channels across, output channels down")
        if title:
            figure.suptitle(title, y=1 - 0.08 / height, va="top")
    return figure


@dataclass(frozen=True, eq=False)
class _Mosaic:
    """Stages laid out on one plane measured in taps.

    Attributes:
        stages: what is shown.
        rows: per stage, the filters of all its kernels; NaN between kernels.
        slots: top and height of each stage's row.
        across: the width of one kernel.
        step: from one kernel's left edge to the next one's.
        width: of all.
        height: of all.
        size: taps a side of each filter.
    """

    stages: Sequence[Stage]
    rows: list[Float[np.ndarray, "y x"]]
    slots: list[tuple[float, float]]
    across: int
    step: int
    width: int
    height: float
    size: int

    def tops(self) -> list[float]:
        """The largest magnitude in each row."""
        return [float(np.nanmax(np.abs(row))) for row in self.rows]

    def place(self, i: int) -> tuple[float, float]:
        """Top and bottom of row i, in the middle of its slot."""
        (y, slot), high = self.slots[i], len(self.rows[i])
        return y + (slot - high) / 2, y + (slot + high) / 2

    @classmethod
    def of(cls, stages: Sequence[Stage], outs: Sequence[int] | None, ins: Sequence[int] | None) -> "_Mosaic":
        blocks = [[_tiles(kernel, outs, ins) for kernel in stage.kernels] for stage in stages]
        across = blocks[0][0].shape[1]
        step = across + max(1, round(across * 0.06))
        rows = [np.full((len(row[0]), step * (len(row) - 1) + across), np.nan) for row in blocks]
        for whole, row in zip(rows, blocks, strict=True):
            for k, block in enumerate(row):
                whole[:, k * step : k * step + across] = block
        width = max(whole.shape[1] for whole in rows)
        least = width / 14  # room for the row's name and bar beside a row of one filter's height
        slots, y = [], 0.0
        for i, (stage, whole) in enumerate(zip(stages, rows, strict=True)):
            if i:  # other kernels than above are named anew
                y += width * (0.06 if set(stage.labels) - set(stages[i - 1].labels) - {GLOBAL} else 0.015)
            slots.append((y, max(len(whole), least)))
            y += slots[-1][1]
        return cls(stages, rows, slots, across, step, width, y, stages[0].kernels.shape[-1])


def _tiles(bank: Bank, outs: Sequence[int] | None, ins: Sequence[int] | None) -> Float[np.ndarray, "y x"]:
    """The chosen filters of one kernel side by side."""
    if outs is not None and len(bank) > 1:
        bank = bank[_channels(outs, len(bank), "out_channels")]
    if ins is not None:
        bank = bank[:, _channels(ins, bank.shape[1], "in_channels")]
    return rearrange(bank, "o i u v -> (o u) (i v)")


def _channels(chosen: Sequence[int], n: int, what: str) -> list[int]:
    if not chosen or not all(0 <= channel < n for channel in chosen):
        raise KAError(f"{what}={list(chosen)} does not fit; choose some of the channels 0 … {n - 1}")
    return list(chosen)


def _draw_mosaic(figure: Figure, axis: Axes, mosaic: _Mosaic, shared: bool) -> None:
    """All rows, with lines between filters, names, and colour bars at the right."""
    images = _draw_rows(axis, mosaic, shared)
    lines: list[list[tuple[float, float]]] = []
    for i, stage in enumerate(mosaic.stages):
        head, foot = mosaic.place(i)
        for x in range(0, len(stage.labels) * mosaic.step, mosaic.step):
            lines += [[(x + at, head), (x + at, foot)] for at in range(0, mosaic.across + 1, mosaic.size)]
            lines += [
                [(x, head + at), (x + mosaic.across, head + at)]
                for at in range(0, len(mosaic.rows[i]) + 1, mosaic.size)
            ]
    axis.add_collection(
        LineCollection(lines, colors="0.55", linewidths=min(0.35, 12 / mosaic.across), clip_on=False), autolim=False
    )
    _name_rows(axis, mosaic, [stage.name.replace(" ", "\n") for stage in mosaic.stages])
    _mosaic_bars(figure, axis, mosaic, images, shared)


def _draw_rows(axis: Axes, mosaic: _Mosaic, shared: bool) -> list[AxesImage]:
    """The rows as images, on one colour scale or each on its own."""
    images, tops = [], mosaic.tops()
    for i, (row, top) in enumerate(zip(mosaic.rows, tops, strict=True)):
        limit = (max(tops) if shared else top) or 1.0
        head, foot = mosaic.place(i)
        extent = (0, row.shape[1], foot, head)
        images.append(axis.imshow(row, extent=extent, cmap=SIGNED, vmin=-limit, vmax=limit))
    axis.set(xlim=(0, mosaic.width), ylim=(mosaic.height, 0), xticks=[])
    return images


def _name_rows(axis: Axes, mosaic: _Mosaic, names: Sequence[str]) -> None:
    """Names of the rows at the left, and each kernel's above the first row in which it appears."""
    axis.set_yticks([y + slot / 2 for y, slot in mosaic.slots], names)
    _bare(axis)
    named: set[str] = set()
    for i, stage in enumerate(mosaic.stages):
        for k, label in enumerate(stage.labels):
            if label not in named:
                where = (k * mosaic.step + mosaic.across / 2, mosaic.place(i)[0])
                axis.annotate(_two_lines(label), where, (0, 3), textcoords="offset points", ha="center", fontsize=8)
        named |= set(stage.labels)


def _mosaic_bars(figure: Figure, axis: Axes, mosaic: _Mosaic, images: Sequence[AxesImage], shared: bool) -> None:
    """One bar for all rows, or one beside each."""
    spans = [(0.0, mosaic.height)] if shared else mosaic.slots
    for image, (y, high) in zip(images, spans, strict=False):
        part = (1.02, 1 - (y + high) / mosaic.height, 0.016, high / mosaic.height)
        bar = figure.colorbar(image, cax=axis.inset_axes(part))
        limit = image.get_clim()[1]
        bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:.2g}", "0", f"{limit:.2g}"])
        low, _, high_end = bar.ax.get_yticklabels()  # kept inside: bars of neighbouring rows nearly touch
        low.set_verticalalignment("bottom")
        high_end.set_verticalalignment("top")
        bar.ax.tick_params(labelsize=8)
        if y == 0:
            bar.ax.set_title("weight", fontsize=8, pad=4, loc="left")


def single(stages: Sequence[Stage], out_channel: int, in_channel: int, shared: bool = False, title: str = "") -> Figure:
    """One output and input channel: the k×k taps of every kernel (columns) at every stage (rows), as numbers.

    Each row has a power of ten that its numbers are to be multiplied by. Colours are scaled per row, or over all rows
    (`shared`). Pooled kernels that have no output axis yet show their one filter of the input channel.

    Raises:
        KAError: there is no such channel.
    """
    with matplotlib.style.context(STYLE):
        mosaic = _Mosaic.of(stages, [out_channel], [in_channel])
        left, right, above, below = 1.15, 0.1, 0.68 if title else 0.42, 0.1
        scale = min((WIDTH - left - right) / mosaic.width, 1.45 / mosaic.size)
        height = mosaic.height * scale * 0.72 + above + below  # cells as wide as their numbers ask for
        figure = Figure(figsize=(WIDTH, height))
        box = (left / WIDTH, below / height, mosaic.width * scale / WIDTH, 1 - (above + below) / height)
        axis = figure.add_axes(box)
        _draw_rows(axis, mosaic, shared)
        names, tops = [], mosaic.tops()
        for i, (stage, row, top) in enumerate(zip(stages, mosaic.rows, tops, strict=True)):
            power = int(np.floor(np.log10(top))) if top else 0
            names.append(f"{stage.name}\n(× 10$^{{{power}}}$)" if power else stage.name)
            darkness = np.abs(row) / ((max(tops) if shared else top) or 1.0)
            _write(axis, row / 10.0**power, darkness, corner=(0.5, mosaic.place(i)[0] + 0.5))
        axis.set(aspect="auto")
        _name_rows(axis, mosaic, names)
        if title:
            figure.suptitle(title, y=1 - 0.08 / height, va="top")
    return figure


def _write(
    axis: Axes,
    values: Float[np.ndarray, "y x"],
    darkness: Float[np.ndarray, "y x"],
    corner: tuple[float, float] = (0.0, 0.0),
    size: float = 7,
) -> None:
    """Numbers in the cells of an image, white where `darkness` (0 to 1) is high; none where undefined.

    `corner` is the centre (x, y) of the first cell; cells are 1 apart. As outlines in one collection: hundreds of
    text objects would take most of a second.
    """
    cells = [(row, col) for (row, col), value in np.ndenumerate(values) if np.isfinite(value)]
    outlines = PathCollection(
        [_outline(f"{values[cell]:z.2f}".replace("-", "−"), size / 72) for cell in cells],
        offsets=[(corner[0] + col, corner[1] + row) for row, col in cells],
        offset_transform=axis.transData,
        facecolors=["white" if darkness[cell] > 0.65 else "black" for cell in cells],
        edgecolors="none",
    )
    outlines.set_transform(cast(Figure, axis.figure).dpi_scale_trans)
    axis.add_collection(outlines, autolim=False)


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
    """Outline and width of a character in a font of size 1."""
    font = FontProperties(family="DejaVu Sans", size=1)
    width, _, _ = text_to_path.get_text_width_height_descent(character, font, ismath=False)
    return TextPath((0, 0), character, prop=font), width


def _bare(axis: Axes) -> None:
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _two_lines(label: str) -> str:
    return label.replace(" (", "\n(")


# Figures: numbers about kernels


def _colour(label: str) -> str:
    """A kernel's colour, the same in every figure."""
    if label in WINDOWS:
        return f"C{WINDOWS.index(label)}"
    return {KERNEL: "C0", GLOBAL: "C4", BIAS: "0.6"}.get(label, "C5")


def norm_steps(stages: Sequence[Stage], title: str = "") -> Figure:
    """Frobenius norm of every kernel after each part of the layer, on a logarithmic axis."""
    values, labels = norms(stages), max((stage.labels for stage in stages), key=len)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(8, 2.8))
        axis = figure.add_axes((0.09, 0.12, 0.62, 0.76))
        for k, (label, heights) in enumerate(zip(labels, values.T, strict=True)):
            x = np.arange(len(heights)) + (k - (len(labels) - 1) / 2) * 0.06  # beside each other where equal
            axis.plot(x, heights, marker="o", markersize=5, linewidth=0.8, color=_colour(label), label=label)
        axis.set(yscale="log", ylabel="Frobenius norm", title=title, xlim=(-0.4, len(stages) - 0.6))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xticks(range(len(stages)), [stage.name for stage in stages])
        axis.grid(visible=False, axis="x")
        axis.legend(bbox_to_anchor=(1, 1), loc="upper left")
    return figure


def layer_heatmap(values: Float[np.ndarray, "layers k"], labels: Sequence[str], quantity: str) -> Figure:
    """A number per layer and kernel (`norms` of `final_stages`, `layer_movement`), as colour and as text."""
    with matplotlib.style.context(STYLE):
        height = 1.25 + 0.3 * len(labels)
        figure = Figure(figsize=(WIDTH, height))
        axis = figure.add_axes((1.75 / WIDTH, 1.15 / height, 6.95 / WIDTH, 0.3 * len(labels) / height))
        top = float(np.nanmax(values)) or 1.0
        power = 0 if 0.1 <= top < 100 else int(np.floor(np.log10(top)))
        values, top = values / 10.0**power, top / 10.0**power
        image = axis.imshow(values.T, aspect="auto", cmap="viridis", vmin=0, vmax=top)
        _write(axis, values.T, 1 - 0.7 * values.T / top, size=6.5)
        axis.set_yticks(range(len(labels)), labels)
        _bare(axis)
        _layer_ticks(axis)
        _bar(figure, axis, image, 0.015, f"{quantity} (× 10$^{{{power}}}$)" if power else quantity)
    return figure


def _bar(figure: Figure, axis: Axes, image: AxesImage, width: float, label: str) -> None:
    """The colour bar of a heatmap, at its right, `width` of the axes' width."""
    bar = figure.colorbar(image, cax=axis.inset_axes((1 + width, 0, width, 1)), label=label)
    bar.ax.grid(visible=False)


def _layer_ticks(axis: Axes) -> None:
    axis.set_xticks(range(len(LAYERS)), LAYERS, rotation=90, fontsize=8)


def cosine_heatmaps(stages: Sequence[Stage], title: str = "") -> Figure:
    """Cosine similarity between the kernels of one layer, a panel per stage."""
    with matplotlib.style.context(STYLE):
        panel, left, right, above, below = 1.75, 0.75, 0.75, 0.55 if title else 0.3, 0.75
        width, height = left + right + len(stages) * (panel + 0.15), above + below + panel
        figure = Figure(figsize=(width, height))
        for i, stage in enumerate(stages):
            box = ((left + i * (panel + 0.15)) / width, below / height, panel / width, panel / height)
            axis = figure.add_axes(box)
            values = cosine(stage.kernels)
            image = axis.imshow(values, cmap=SIGNED, vmin=-1, vmax=1)
            _write(axis, values, np.abs(values))
            short = [label.split(" (")[0] for label in stage.labels]
            axis.set_xticks(range(len(short)), short, rotation=90)
            axis.set_yticks(range(len(short)), [] if i else short)
            axis.set_title(stage.name)
            _bare(axis)
        _bar(figure, axis, image, 0.06, "cosine similarity")
        if title:
            figure.suptitle(title, y=1 - 0.08 / height, va="top")
    return figure


def layer_cosine_heatmap(values: Float[np.ndarray, "layers layers"], title: str = "") -> Figure:
    """Cosine similarity of one kernel between all layers (`layer_cosine`)."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(6.4, 5.6))
        axis = figure.add_axes((1.2 / 6.4, 1.15 / 5.6, 4.2 / 6.4, 4.2 / 5.6))
        image = axis.imshow(values, cmap=SIGNED, vmin=-1, vmax=1)
        _layer_ticks(axis)
        axis.set_yticks(range(len(LAYERS)), LAYERS, fontsize=8)
        axis.set_title(title)
        _bare(axis)
        _bar(figure, axis, image, 0.035, "cosine similarity")
    return figure


def frequency_responses(stage: Stage, pair: tuple[int, int] | None = None, n: int = 33, title: str = "") -> Figure:
    """|H| of every kernel: of one (output, input) channel pair, or root mean square over all of them (None).

    The centre is the mean of the image, the rim its finest detail (0.5 cycles per pixel: every other pixel).

    Raises:
        KAError: there is no such channel.
    """
    if pair is None:
        shown = [bank_response(bank, n) for bank in stage.kernels]
    else:
        shown = [response(_tiles(bank, pair[:1], pair[1:]), n) for bank in stage.kernels]
    with matplotlib.style.context(STYLE):
        panel, left, right, above, below = 1.5, 0.65, 0.85, 0.7 if title else 0.45, 0.5
        width, height = left + right + len(shown) * (panel + 0.12), above + below + panel
        figure = Figure(figsize=(width, height))
        top = max(float(values.max()) for values in shown) or 1.0
        edge = 0.5 + 0.5 / (n - 1)  # the outer pixels are centred on ±0.5
        for i, (values, label) in enumerate(zip(shown, stage.labels, strict=True)):
            box = ((left + i * (panel + 0.12)) / width, below / height, panel / width, panel / height)
            axis = figure.add_axes(box)
            image = axis.imshow(values, extent=(-edge, edge, edge, -edge), cmap="viridis", vmin=0, vmax=top)
            axis.set(title=_two_lines(label))
            axis.set_xticks((-0.5, 0, 0.5), ("" if i else "−0.5", "0", "0.5"))
            axis.set_yticks((-0.5, 0, 0.5), ("", "", "") if i else ("−0.5", "0", "0.5"))
            axis.set_ylabel("" if i else "down (cycles/pixel)")
            axis.set_xlabel("across (cycles/pixel)", fontsize=8)
            axis.grid(visible=False)
        _bar(figure, axis, image, 0.06, "|H|, RMS over channels" if pair is None else "|H|")
        if title:
            figure.suptitle(title, y=1 - 0.08 / height, va="top")
    return figure


# Figures: contributions and movement


def contribution_panel(found: Contributions, title: str = "") -> Figure:
    """One layer: the share and the relative size of each term, and its share inside each window."""
    n = len(found.labels)
    with matplotlib.style.context(STYLE):
        above, below = 0.55 if title else 0.32, 0.5
        height = above + below + 0.34 * n
        figure = Figure(figsize=(WIDTH, height))
        bars = figure.add_axes((1.75 / WIDTH, below / height, 3.5 / WIDTH, 0.34 * n / height))
        table = figure.add_axes((5.5 / WIDTH, below / height, 3.1 / WIDTH, 0.34 * n / height))
        y, colours = np.arange(n), [_colour(label) for label in found.labels]
        bars.barh(y - 0.19, found.shares, 0.34, color=colours)
        bars.barh(y + 0.19, found.norms, 0.34, facecolor="none", edgecolor=colours, linewidth=1.2)
        bars.axvline(0, color="black", linewidth=0.6)
        bars.set_yticks(y, found.labels)
        bars.set(ylim=(n - 0.5, -0.5), xlabel="of the layer's output y")
        bars.set_axisbelow(True)
        bars.grid(visible=False, axis="y")
        kinds = [
            Patch(color="0.4", label="share ⟨t, y⟩ / ⟨y, y⟩"),
            Patch(facecolor="none", edgecolor="0.4", label="size ‖t‖ / ‖y‖"),
        ]
        bars.legend(handles=kinds, ncols=2, fontsize=8, bbox_to_anchor=(0.5, 1), loc="lower center", borderpad=0.1)
        top = max(float(np.abs(found.window_shares).max()), 1.0)
        image = table.imshow(found.window_shares, aspect="auto", cmap=SIGNED, vmin=-top, vmax=top)
        _write(table, found.window_shares, np.abs(found.window_shares) / top)
        table.set_xticks(range(N_WINDOWS), [label.split(" (")[1].rstrip(")") for label in WINDOWS], fontsize=8)
        table.set(yticks=[], xlabel="share inside this window")
        _bare(table)
        _bar(figure, table, image, 0.03, "share")
        if title:
            figure.suptitle(title, y=1 - 0.08 / height, va="top")
    return figure


def contribution_layers(found: Sequence[Contributions], title: str = "") -> Figure:
    """All layers: shares stacked to 1 (negative ones below 0), and the relative size of each term."""
    labels = found[0].labels
    shares, sizes = (np.stack([getattr(each, what) for each in found]) for what in ("shares", "norms"))
    x = np.arange(len(found))
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.8))
        above = figure.add_axes((0.065, 0.59, 0.70, 0.35))
        below = figure.add_axes((0.065, 0.24, 0.70, 0.31))
        up, down = np.zeros(len(found)), np.zeros(len(found))
        for label, values, size in zip(labels, shares.T, sizes.T, strict=True):
            above.bar(x, values, 0.75, bottom=np.where(values >= 0, up, down), color=_colour(label), label=label)
            up, down = up + values.clip(min=0), down + values.clip(max=0)
            below.plot(x, size, marker="o", markersize=3.5, linewidth=1, color=_colour(label))
        above.axhline(1, color="black", linewidth=0.6, linestyle=":")
        above.axhline(0, color="black", linewidth=0.6)
        above.set(ylabel="share ⟨t, y⟩ / ⟨y, y⟩", xticks=[], title=title)
        above.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
        below.set(ylabel="size ‖t‖ / ‖y‖", ylim=(0, None))
        _layer_ticks(below)
        for axis in (above, below):
            axis.set_xlim(-0.6, len(found) - 0.4)
            axis.set_axisbelow(True)
            axis.grid(visible=False, axis="x")
    return figure


def movement_panel(
    pictures: Mapping[str, Float[np.ndarray, "h w 3"]],
    stages: tuple[Stage, Stage],
    moved: Float[np.ndarray, " k"],
    out_channels: Sequence[int] | None = None,
    in_channels: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Two images, the kernels that one layer makes of each (one colour scale), and how far each kernel moves.

    Args:
        pictures: the two images in colour, [0, 1], by name.
        stages: the last of `stages_of` of each.
        moved: their `movement`.
        out_channels: which output channels to show; None for all.
        in_channels: which input channels to show; None for all.
        title: what is shown.

    Raises:
        KAError: there is no such channel.
    """
    named = [replace(stage, name=name) for stage, name in zip(stages, pictures, strict=True)]
    mosaic = _Mosaic.of(named, out_channels, in_channels)
    with matplotlib.style.context(STYLE):
        left, middle, above, below = 1.4, 5.2, 0.68 if title else 0.42, 0.3
        scale = middle / mosaic.width
        height = above + below + mosaic.height * scale
        figure = Figure(figsize=(WIDTH, height))
        for (name, picture), (y, slot) in zip(pictures.items(), mosaic.slots, strict=True):
            bottom = (below + (mosaic.height - y - slot) * scale) / height
            axis = figure.add_axes((0.05 / WIDTH, bottom, 1.2 / WIDTH, (slot * scale - 0.22) / height))
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            axis.set_title(name)
            _bare(axis)
        axis = figure.add_axes((left / WIDTH, below / height, middle / WIDTH, mosaic.height * scale / height))
        _draw_mosaic(figure, axis, mosaic, shared=True)
        axis.set_yticks([])
        axis.set_xlabel("in each mosaic: input channels across, output channels down")
        bars = figure.add_axes((1 - 1.55 / WIDTH, 0.78 / height, 1.45 / WIDTH, 1 - (above + 0.78) / height))
        bars.bar(range(len(moved)), moved, 0.7, color=[_colour(label) for label in stages[0].labels])
        bars.set_xticks(range(len(moved)), [label.split(" (")[0] for label in stages[0].labels], rotation=90)
        bars.set_axisbelow(True)
        bars.set(ylabel="movement", ylim=(0, None if moved.any() else 1))
        if not moved.any():
            bars.text(0.5, 0.5, "0: these kernels\nare fixed", ha="center", va="center", transform=bars.transAxes)
        bars.grid(visible=False, axis="x")
        if title:
            figure.suptitle(title, y=1 - 0.08 / height, va="top")
    return figure
