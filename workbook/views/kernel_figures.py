"""Figures of kernels, from the numbers of `workbook.views.kernels`.

Every `title` says what is shown. Channels are chosen by their numbers from 0, None for all; one that is not there is a
`KAError`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from ka.models.psrt import LAYERS
from workbook.style import styled
from workbook.views import kernels
from workbook.views.draw import SIGNED, WIDTH, bare, beside, colour_bar, frame, side_by_side, write_numbers
from workbook.views.trace import check_index

Stages = Sequence[kernels.Stage]
Channels = Sequence[int] | None
ABOVE, BELOW = 0.42, 0.3  # inches around a mosaic


def _colour(label: str) -> str:
    """A kernel's colour, the same in every figure."""
    if label in kernels.WINDOW_LABELS:
        return f"C{kernels.WINDOW_LABELS.index(label)}"
    return {kernels.KERNEL: "C0", kernels.GLOBAL: "C4", kernels.BIAS: "0.6"}.get(label, "C5")


def _short(labels: Sequence[str]) -> list[str]:
    return [label.split(" (")[0] for label in labels]


@styled
def filter_grid(
    stages: Stages, outputs: Channels = None, inputs: Channels = None, shared: bool = True, title: str = ""
) -> Figure:
    """The filters of every kernel (columns) at every stage (rows), each a mosaic: a row of k×k filters per output
    channel (pooled kernels that have none yet: their one row), a column per input channel.

    One colour scale for all rows (`shared`), or one each: SA as it starts shrinks kernels to a thousandth.
    """
    mosaic = _Mosaic(stages, outputs, inputs)
    scale = min((WIDTH - 0.85 - 0.95) / mosaic.width, (7.5 - ABOVE - BELOW) / mosaic.height)
    figure, (axis,) = mosaic.frame(scale, 0.85, BELOW, title)
    mosaic.draw(axis, shared, [stage.name.replace(" ", "\n") for stage in stages])
    return figure


@styled
def single(stages: Stages, output: int, input: int, shared: bool = False, title: str = "") -> Figure:
    """One output and input channel: the k×k taps of every kernel (columns) at every stage (rows), as numbers.

    Each row has a power of ten that its numbers are to be multiplied by. Colours are scaled per row, or over all rows
    (`shared`). Pooled kernels that have no output axis yet show their one filter of the input channel.
    """
    mosaic = _Mosaic(stages, [output], [input])
    scale = min((WIDTH - 1.15 - 0.1) / mosaic.width, 1.45 / mosaic.size)
    figure, (axis,) = mosaic.frame(scale, 1.15, 0.1, title, 0.72)  # cells as wide as their numbers ask for
    names = []
    for stage, image, row in zip(stages, mosaic.draw_rows(axis, shared), mosaic.rows, strict=True):
        power = _power(float(np.nanmax(np.abs(row))))
        names.append(f"{stage.name}\n(× 10$^{{{power}}}$)" if power else stage.name)
        write_numbers(axis, image, 10.0**-power)
    axis.set(aspect="auto")
    mosaic.name_rows(axis, names)
    return figure


@styled
def movement_panel(
    pictures: Mapping[str, Float[np.ndarray, "h w 3"]],  # two, in [0, 1], by name
    stages: tuple[kernels.Stage, kernels.Stage],  # of each the last of `stages_of`
    moved: Float[np.ndarray, " k"],  # `movement`
    outputs: Channels = None,
    inputs: Channels = None,
    title: str = "",
) -> Figure:
    """Two images, the kernels that one layer makes of each, on one colour scale, and how far each kernel moves."""
    mosaic = _Mosaic(stages, outputs, inputs)
    width, scale = 5.2, 5.2 / mosaic.width
    top = BELOW + mosaic.height * scale
    boxes = [(0.05, top - (y + slot) * scale, 1.2, slot * scale - 0.22) for y, slot in mosaic.slots]
    boxes += [(1.4, BELOW, width, top - BELOW), (WIDTH - 1.55, 0.78, 1.45, top - 0.78)]
    figure, (*images, filters, bars) = frame(WIDTH, ABOVE + top, boxes, title)
    for axis, (name, picture) in zip(images, pictures.items(), strict=True):
        axis.imshow(picture)
        bare(axis, xticks=[], yticks=[], title=name)
    mosaic.draw(filters, True, [])
    labels = stages[0].labels
    bars.bar(range(len(moved)), moved, 0.7, color=[_colour(label) for label in labels])
    bars.set_xticks(range(len(moved)), _short(labels), rotation=90)
    bars.set_axisbelow(True)
    bars.set(ylabel="movement", ylim=(0, None if moved.any() else 1))
    if not moved.any():
        bars.text(0.5, 0.5, "0: these kernels\nare fixed", ha="center", va="center", transform=bars.transAxes)
    bars.grid(visible=False, axis="x")
    return figure


def _power(largest: float) -> int:
    """The power of ten that numbers up to this one are multiples of."""
    return int(np.floor(np.log10(largest))) if largest else 0


class _Mosaic:
    """Stages laid out on one plane measured in taps."""

    def __init__(self, stages: Stages, outs: Channels, ins: Channels) -> None:
        self.stages, self.size = stages, stages[0].kernels.shape[-1]  # taps a side of each filter
        blocks = [[_tiles(kernel, outs, ins) for kernel in stage.kernels] for stage in stages]
        self.across: int = blocks[0][0].shape[1]  # the width of one kernel
        gap = max(1, round(self.across * 0.06))
        self.step = self.across + gap  # from one kernel's left edge to the next one's
        spaced = [[np.pad(block, ((0, 0), (0, gap)), constant_values=np.nan) for block in row] for row in blocks]
        self.rows = [np.hstack(row)[:, :-gap] for row in spaced]  # per stage, all its kernels, NaN between them
        self.width: int = max(row.shape[1] for row in self.rows)
        least = self.width / 14  # room for the row's name and bar beside a row of one filter's height
        self.slots: list[tuple[float, float]] = []  # top and height of each stage's row
        self.height = 0.0
        for i, (stage, row) in enumerate(zip(stages, self.rows, strict=True)):
            if i:  # other kernels than above are named anew
                others = set(stage.labels) - set(stages[i - 1].labels) - {kernels.GLOBAL}
                self.height += self.width * (0.06 if others else 0.015)
            self.slots.append((self.height, max(len(row), least)))
            self.height += self.slots[-1][1]

    def frame(self, scale: float, left: float, below: float, title: str, flat: float = 1) -> tuple[Figure, list[Axes]]:
        """Axes for it, `scale` inches a tap across and `flat` times that down."""
        width, height = self.width * scale, self.height * scale * flat
        return side_by_side([width], height, (left, WIDTH - left - width, ABOVE, below), title=title)

    def place(self, i: int) -> tuple[float, float]:
        """Top and bottom of row i, in the middle of its slot."""
        (y, slot), high = self.slots[i], len(self.rows[i])
        return y + (slot - high) / 2, y + (slot + high) / 2

    def draw(self, axis: Axes, shared: bool, names: Sequence[str]) -> None:
        """All rows, with lines between filters, names, and colour bars at the right."""
        images = self.draw_rows(axis, shared)
        lines: list[list[tuple[float, float]]] = []
        for i, stage in enumerate(self.stages):
            head, foot = self.place(i)
            across, down = (range(0, side + 1, self.size) for side in (self.across, len(self.rows[i])))
            for x in range(0, len(stage.labels) * self.step, self.step):
                lines += [[(x + at, head), (x + at, foot)] for at in across]
                lines += [[(x, head + at), (x + self.across, head + at)] for at in down]
        thin = min(0.35, 12 / self.across)
        axis.add_collection(LineCollection(lines, colors="0.55", linewidths=thin, clip_on=False), autolim=False)
        self.name_rows(axis, names)
        self._draw_bars(axis, images, shared)
        axis.set_xlabel("in each mosaic: input channels across, output channels down")

    def draw_rows(self, axis: Axes, shared: bool) -> list[AxesImage]:
        images, tops = [], [float(np.nanmax(np.abs(row))) for row in self.rows]
        for i, row in enumerate(self.rows):
            limit, (head, foot) = (max(tops) if shared else tops[i]) or 1.0, self.place(i)
            images.append(axis.imshow(row, extent=(0, row.shape[1], foot, head), cmap=SIGNED, vmin=-limit, vmax=limit))
        axis.set(xlim=(0, self.width), ylim=(self.height, 0), xticks=[])
        return images

    def name_rows(self, axis: Axes, names: Sequence[str]) -> None:
        """Names of the rows (none: no names) at the left, each kernel's above the first row in which it appears."""
        axis.set_yticks([y + slot / 2 for y, slot in self.slots] if names else [], names)
        bare(axis)
        named: set[str] = set()
        for i, stage in enumerate(self.stages):
            for k, label in enumerate(stage.labels):
                if label not in named:
                    where, text = (k * self.step + self.across / 2, self.place(i)[0]), label.replace(" (", "\n(")
                    axis.annotate(text, where, (0, 3), textcoords="offset points", ha="center", fontsize=8)
            named |= set(stage.labels)

    def _draw_bars(self, axis: Axes, images: Sequence[AxesImage], shared: bool) -> None:
        spans = [(0.0, self.height)] if shared else self.slots
        for image, (y, high) in zip(images, spans, strict=False):
            place = axis.inset_axes((1.02, 1 - (y + high) / self.height, 0.016, high / self.height))
            limit = image.get_clim()[1]
            bar = colour_bar(place, image, ticks=[-limit, 0, limit], format="{x:.2g}")
            low, _, top = bar.ax.get_yticklabels()  # kept inside: bars of neighbouring rows nearly touch
            low.set_verticalalignment("bottom")
            top.set_verticalalignment("top")
            bar.ax.tick_params(labelsize=8)
            if y == 0:
                bar.ax.set_title("weight", fontsize=8, pad=4, loc="left")


def _tiles(bank: kernels.Bank, outs: Channels, ins: Channels) -> Float[np.ndarray, "y x"]:
    if outs is not None and len(bank) > 1:
        bank = bank[_chosen("output channel", outs, len(bank))]
    if ins is not None:
        bank = bank[:, _chosen("input channel", ins, bank.shape[1])]
    return rearrange(bank, "o i u v -> (o u) (i v)")


def _chosen(what: str, channels: Sequence[int], n: int) -> list[int]:
    return [check_index(what, channel, n) for channel in channels] or [check_index(what, -1, n)]


# Size, likeness, frequency


@styled
def norm_steps(stages: Stages, title: str = "") -> Figure:
    """Frobenius norm of every kernel after each part of the layer, on a logarithmic axis."""
    values, labels = kernels.norms(stages), max((stage.labels for stage in stages), key=len)
    figure, (axis,) = side_by_side([4.95], 2.15, (0.75, 2.3, 0.1, 0.33), title=title)
    for k, (label, heights) in enumerate(zip(labels, values.T, strict=True)):
        x = np.arange(len(heights)) + (k - (len(labels) - 1) / 2) * 0.06  # beside each other where equal
        axis.plot(x, heights, marker="o", markersize=5, linewidth=0.8, color=_colour(label), label=label)
    axis.set(yscale="log", ylabel="Frobenius norm", xlim=(-0.4, len(stages) - 0.6))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xticks(range(len(stages)), [stage.name for stage in stages])
    axis.grid(visible=False, axis="x")
    axis.legend(bbox_to_anchor=(1, 1), loc="upper left")
    return figure


@styled
def layer_heatmap(values: Float[np.ndarray, "layers k"], labels: Sequence[str], quantity: str) -> Figure:
    """A number per layer and kernel (`norms` of `final_stages`, `layer_movement`), as colour and as text."""
    figure, (axis,) = side_by_side([6.95], 0.3 * len(labels), (1.75, 0.8, 0.1, 1.15))
    top = float(np.nanmax(values)) or 1.0
    power = 0 if 0.1 <= top < 100 else _power(top)
    image = axis.imshow(values.T / 10.0**power, aspect="auto", cmap="viridis", vmin=0, vmax=top / 10.0**power)
    write_numbers(axis, image, size=6.5)
    axis.set_yticks(range(len(labels)), labels)
    bare(axis)
    _layer_ticks(axis)
    colour_bar(beside(axis, 0.015), image, f"{quantity} (× 10$^{{{power}}}$)" if power else quantity)
    return figure


def _layer_ticks(axis: Axes) -> None:
    axis.set_xticks(range(len(LAYERS)), LAYERS, rotation=90, fontsize=8)


@styled
def cosine_heatmaps(stages: Stages, title: str = "") -> Figure:
    """Cosine similarity between the kernels of one layer, a panel per stage."""
    figure, axes = side_by_side([1.75] * len(stages), 1.75, (0.75, 0.9, 0.3, 0.75), 0.15, title)
    for i, (axis, stage) in enumerate(zip(axes, stages, strict=True)):
        image = axis.imshow(kernels.cosine(stage.kernels), cmap=SIGNED, vmin=-1, vmax=1)
        write_numbers(axis, image)
        names = _short(stage.labels)
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), [] if i else names)
        bare(axis, title=stage.name)
    colour_bar(beside(axes[-1], 0.06), image, "cosine similarity")
    return figure


@styled
def layer_cosine_heatmap(values: Float[np.ndarray, "layers layers"], title: str = "") -> Figure:
    """Cosine similarity of one kernel between all layers (`layer_cosine`)."""
    figure, (axis,) = side_by_side([4.2], 4.2, (1.2, 1.0, 0.05, 1.15), title=title)
    image = axis.imshow(values, cmap=SIGNED, vmin=-1, vmax=1)
    _layer_ticks(axis)
    axis.set_yticks(range(len(LAYERS)), LAYERS, fontsize=8)
    bare(axis)
    colour_bar(beside(axis, 0.035), image, "cosine similarity")
    return figure


@styled
def frequency_responses(
    stage: kernels.Stage, pair: tuple[int, int] | None = None, n: int = 33, title: str = ""
) -> Figure:
    """|H| of every kernel: of one (output, input) channel pair, or root mean square over all of them (None). The centre
    is the mean of the image, the rim its finest detail (0.5 cycles per pixel: every other pixel).
    """
    if pair is None:
        responses = [kernels.bank_response(bank, n) for bank in stage.kernels]
    else:
        responses = [kernels.response(_tiles(bank, pair[:1], pair[1:]), n) for bank in stage.kernels]
    figure, axes = side_by_side([1.5] * len(responses), 1.5, (0.65, 0.97, 0.45, 0.5), 0.12, title)
    top = max(float(values.max()) for values in responses) or 1.0
    edge = 0.5 + 0.5 / (n - 1)  # the outer pixels are centred on ±0.5
    for i, (axis, values, label) in enumerate(zip(axes, responses, stage.labels, strict=True)):
        image = axis.imshow(values, extent=(-edge, edge, edge, -edge), cmap="viridis", vmin=0, vmax=top)
        axis.set(title=label.replace(" (", "\n("), ylabel="" if i else "down (cycles/pixel)")
        axis.set_xticks((-0.5, 0, 0.5), ("" if i else "−0.5", "0", "0.5"))
        axis.set_yticks((-0.5, 0, 0.5), ("", "", "") if i else ("−0.5", "0", "0.5"))
        axis.set_xlabel("across (cycles/pixel)", fontsize=8)
        axis.grid(visible=False)
    colour_bar(beside(axes[-1], 0.06), image, "|H|, RMS over channels" if pair is None else "|H|")
    return figure


SHARE, SIZE = "share ⟨t, y⟩ / ⟨y, y⟩", "size ‖t‖ / ‖y‖"


@styled
def contribution_panel(layer: kernels.Contributions, title: str = "") -> Figure:
    """One layer: the share and the relative size of each term, and its share inside each window."""
    n, colours = len(layer.labels), [_colour(label) for label in layer.labels]
    figure, (bars, table) = side_by_side([3.5, 3.1], 0.34 * n, (1.75, 0.9, 0.32, 0.5), 0.25, title)
    y = np.arange(n)
    bars.barh(y - 0.19, layer.shares, 0.34, color=colours)
    bars.barh(y + 0.19, layer.norms, 0.34, facecolor="none", edgecolor=colours, linewidth=1.2)
    bars.axvline(0, color="black", linewidth=0.6)
    bars.set_yticks(y, layer.labels)
    bars.set(ylim=(n - 0.5, -0.5), xlabel="of the layer's output y")
    bars.set_axisbelow(True)
    bars.grid(visible=False, axis="y")
    kinds = [Patch(color="0.4", label=SHARE), Patch(facecolor="none", edgecolor="0.4", label=SIZE)]
    bars.legend(handles=kinds, ncols=2, fontsize=8, bbox_to_anchor=(0.5, 1), loc="lower center", borderpad=0.1)
    top = max(float(np.abs(layer.window_shares).max()), 1.0)
    image = table.imshow(layer.window_shares, aspect="auto", cmap=SIGNED, vmin=-top, vmax=top)
    write_numbers(table, image)
    places = [label.split(" (")[1].rstrip(")") for label in kernels.WINDOW_LABELS]
    table.set_xticks(range(len(places)), places, fontsize=8)
    bare(table, yticks=[], xlabel="share inside this window")
    colour_bar(beside(table, 0.03), image, "share")
    return figure


@styled
def contribution_layers(layers: Sequence[kernels.Contributions], title: str = "") -> Figure:
    """All layers: shares stacked to 1 (negative ones below 0), and the relative size of each term."""
    figure, (above, below) = frame(WIDTH, 4.62, [(0.62, 2.83, 6.65, 1.68), (0.62, 1.15, 6.65, 1.49)], title)
    x, (up, down) = np.arange(len(layers)), np.zeros((2, len(layers)))
    for t, label in enumerate(layers[0].labels):
        shares, sizes = np.array([(layer.shares[t], layer.norms[t]) for layer in layers]).T
        above.bar(x, shares, 0.75, bottom=np.where(shares >= 0, up, down), color=_colour(label), label=label)
        up, down = up + shares.clip(min=0), down + shares.clip(max=0)
        below.plot(x, sizes, marker="o", markersize=3.5, linewidth=1, color=_colour(label))
    above.axhline(1, color="black", linewidth=0.6, linestyle=":")
    above.axhline(0, color="black", linewidth=0.6)
    above.set(ylabel=SHARE, xticks=[])
    above.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    below.set(ylabel=SIZE, ylim=(0, None))
    _layer_ticks(below)
    for axis in (above, below):
        axis.set_xlim(-0.6, len(layers) - 0.4)
        axis.set_axisbelow(True)
        axis.grid(visible=False, axis="x")
    return figure
