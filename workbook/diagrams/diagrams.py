"""Diagrams of the architecture, drawn from the variant table: the backbone, every variant's KA layer, all side by side.

Nothing here knows a variant by name: `workbook.diagrams.parts.chain` turns a row of `ka.models.variants` into parts on
one fixed grid
of slots, and the figures draw what it says. A part that a row lacks keeps its place as a dashed outline, so that
diagrams of two variants differ exactly where the variants do. Shapes follow from `dim`; parameters are counted on the
real modules.

Sizes are for print: a KA layer is one column wide (88 mm), backbone and overview are two; no text is below 6 pt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib.style
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Polygon

from ka.errors import KAError
from ka.models.counts import count_parameters
from ka.models.psrt import N_BLOCKS, PSRT, WINDOWS
from ka.models.variants import VARIANTS, Variant, variant
from workbook.diagrams.parts import SLOTS, Part, State, Words, chain, fresh_model, shape
from workbook.paths import STYLE

#: The study's eleven.
STUDY = tuple(f"kav{i}" for i in range(1, 12))

ONE_COLUMN, TWO_COLUMNS, PAGE = 3.46, 7.16, 9.45  # inches: two widths, the height of a page

_TITLE, _TEXT = 6.8, 6.2  # pt
_LINE = 0.132  # inches from one line of a box to the next
_GREY = "#6E6E6E"  # 5:1 on white
_WHITE = "#FFFFFF"
_MAP, _KERNEL = "#0072B2", "#000000"


class _Sheet:
    """A figure in inches from its top left corner, and the few shapes that diagrams are made of.

    What is drawn carries a gid, `state.diagram.part…`, so that a test can read the figure.
    """

    def __init__(self, width: float, height: float, language: str) -> None:
        self.say = Words(language)
        self._font = self.say.font()
        self.figure = Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def write(
        self, gid: str, x: float, y: float, text: str, size: float = _TEXT, weight: str = "normal", **style: Any
    ) -> None:
        self._text(gid, x, y, text, FontProperties(**({"weight": weight} | self._font), size=size), style)

    def number(self, gid: str, x: float, y: float, text: str, **style: Any) -> None:
        """A shape or a count: in the style's own font in every language (Chinese fonts have a wide "·")."""
        self._text(gid, x, y, text, FontProperties(size=_TEXT), style)

    def _text(self, gid: str, x: float, y: float, text: str, font: FontProperties, style: dict[str, Any]) -> None:
        plain: dict[str, Any] = {"va": "center", "ha": "left", "zorder": 5, "linespacing": 1.1}
        self.axes.text(x, y, text, fontproperties=font, gid=_gid(gid), **(plain | style))

    def box(
        self,
        gid: str,
        state: State,
        left: float,
        right: float,
        top: float,
        height: float,
        colour: str,
        title: str = "",
        detail: str = "",
        number: str = "",
        indent: float = 0.06,
        centred: bool = False,
        number_line: int = 0,
    ) -> None:
        """A part: filled where present, a dashed outline where absent. Title and lines of detail, and a count or
        shape at the right of one of these lines."""
        present = state == "present"
        gid = f"{state}.{gid}"
        self._outline(state, left, right, top, height, colour, gid)
        colour = "black" if present else _GREY
        x, align = ((left + right) / 2, "center") if centred else (left + indent, "left")
        lines = [title, *detail.splitlines()]
        heights = [top + height / 2 + _LINE * (i - (len(lines) - 1) / 2) for i in range(len(lines))]
        for i, (line, y) in enumerate(zip(lines, heights, strict=True)):
            bold = present and i == 0
            size = _TEXT if i else _TITLE
            if line:
                self.write(f"{gid}.{i}", x, y, line, size, "bold" if bold else "normal", color=colour, ha=align)
        if number:
            self.number(f"{gid}.number", right - 0.04, heights[number_line], number, color=colour, ha="right")

    def _outline(
        self, state: State, left: float, right: float, top: float, height: float, colour: str, gid: str
    ) -> None:
        present = state == "present"
        self.axes.add_patch(
            FancyBboxPatch(
                (left, top),
                right - left,
                height,
                boxstyle="round,pad=0,rounding_size=0.03",
                facecolor=_tint(colour) if present else "none",
                edgecolor=_dark(colour) if present else _GREY,
                linewidth=1.0 if present else 0.7,
                linestyle="-" if present else (0, (2.5, 2)),
                zorder=3 if present else 1,
                gid=_gid(gid),
            )
        )

    def cell(
        self, gid: str, state: State, left: float, right: float, top: float, height: float, colour: str, text: str
    ) -> None:
        """A part in a table: its setting in one or two lines, centred."""
        gid = f"{state}.{gid}"
        self._outline(state, left, right, top, height, colour, gid)
        if text:
            ink = "black" if state == "present" else _GREY
            middle = (left + right) / 2, top + height / 2
            self.write(f"{gid}.0", *middle, text, ha="center", linespacing=1.0, color=ink)

    def sample(self, state: State, x: float, y: float) -> None:
        """An empty box, for a legend."""
        self._outline(state, x, x + 0.2, y - 0.04, 0.08, "#000000", "legend")

    def wire(
        self, points: Sequence[tuple[float, float]], *, image: bool, arrow: bool = True, bridge: bool = False
    ) -> None:
        """A line through points: thick blue for feature maps, thin black for kernels.

        A bridge leaves a gap in the wires under it.
        """
        colour, width = (_MAP, 1.8) if image else (_KERNEL, 0.9)
        path = list(points)
        if arrow:
            (x0, y0), (x1, y1) = path[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            dx, dy = (x1 - x0) / length * 0.06, (y1 - y0) / length * 0.06
            head = [(x1, y1), (x1 - dx - dy / 2, y1 - dy + dx / 2), (x1 - dx + dy / 2, y1 - dy - dx / 2)]
            self.axes.add_patch(Polygon(head, facecolor=colour, edgecolor="none", zorder=4))
            path[-1] = (x1 - dx, y1 - dy)
        xs, ys = zip(*path, strict=True)
        if bridge:
            gap = Line2D(xs, ys, color="white", linewidth=width + 2.2, solid_capstyle="butt", zorder=2)
            self.axes.add_line(gap)
        self.axes.add_line(
            Line2D(
                xs,
                ys,
                color=colour,
                linewidth=width,
                solid_capstyle="butt",
                solid_joinstyle="miter",
                zorder=2,
                gid="wire",
            )
        )

    def dot(self, x: float, y: float, *, image: bool) -> None:
        """Where a wire branches."""
        self.axes.add_patch(Circle((x, y), 0.025, facecolor=_MAP if image else _KERNEL, edgecolor="none", zorder=4))

    def plus(self, gid: str, x: float, y: float, radius: float = 0.07) -> None:
        """A sum of the wires that meet in it."""
        ring = Circle((x, y), radius, facecolor="white", edgecolor="black", linewidth=0.9, zorder=3, gid=_gid(gid))
        self.axes.add_patch(ring)
        arm = radius * 0.6
        for xs, ys in (((x - arm, x + arm), (y, y)), ((x, x), (y - arm, y + arm))):
            self.axes.add_line(Line2D(xs, ys, color="black", linewidth=0.9, zorder=4))


def _gid(name: str) -> str:
    """A name as an SVG id."""
    return name.replace(", ", "-").replace(" ", "-")


def _tint(colour: str) -> tuple[float, ...]:
    """Light enough for black text."""
    strength = 0.5 if colour == "#F0E442" else 0.12 if colour == "#000000" else 0.28
    return tuple(1 - strength * (1 - value) for value in to_rgb(colour))


def _dark(colour: str) -> tuple[float, ...]:
    return (0.0, 0.0, 0.0) if colour == _WHITE else tuple(0.8 * value for value in to_rgb(colour))


# One KA layer, one column wide. Inches.
_IMAGE_X = 0.12
_LEFT, _RIGHT = (0.32, 2.04), (2.16, 3.42)
_WIRE = 0.09  # of a lane, from its left edge
_INDENT = 0.17
_SLOT, _GAP = 0.30, 0.165
_END = 0.2  # height of input and output
_LAYER_HEIGHT = 6.26


def layer(row: Variant, dim: int = 48, language: str = "en") -> Figure:
    """The KA layer of a variant, top to bottom, one column (88 mm) wide.

    Left lane: the window kernels; right lane: the global kernel; thick line: the feature map. Boxes in place of
    which a dashed outline stands are parts that the variant lacks.

    Args:
        row: the variant, of the table or not.
        dim: embedding width C; the layer has c = C/2 channels.
        language: `en` or `zh`.

    Raises:
        KAError: unknown language, no font for it, or a `dim` that cannot be built.
    """
    return layers([row], dim, language, columns=1)


def layers(rows: Sequence[Variant], dim: int = 48, language: str = "en", columns: int = 4) -> Figure:
    """The KA layers of several variants on one sheet, `columns` side by side, each as `layer` draws it.

    Raises:
        KAError: no rows; else as `layer`.
    """
    if not rows:
        raise KAError("no variant to draw; give at least one row of ka.VARIANTS")
    across = min(columns, len(rows))
    down = -(-len(rows) // across)
    with matplotlib.style.context(STYLE):
        sheet = _Sheet(across * ONE_COLUMN, down * _LAYER_HEIGHT, language)
        for i, row in enumerate(rows):
            _draw_layer(sheet, row, dim, (i % across) * ONE_COLUMN, (i // across) * _LAYER_HEIGHT)
    return sheet.figure


@dataclass(frozen=True)
class _Placed:
    """A part where it is drawn: a box from `top` to `bottom`."""

    part: Part
    left: float
    right: float
    top: float
    bottom: float

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def _place(parts: Sequence[Part], x: float, y: float) -> tuple[list[_Placed], float]:
    """Parts on the grid, the first slot's top at `y`; and where the last slot ends."""
    spans = {"windows": _LEFT, "global": _RIGHT, "both": (_LEFT[0], _RIGHT[1])}
    rows: list[list[Part]] = []
    for part in parts:
        # Second convolutions by window kernels stand one below the other; the global kernel's spans both rows.
        same = rows and rows[-1][-1].slot == part.slot and rows[-1][-1].lane != part.lane
        if same:
            rows[-1].append(part)
        else:
            rows.append([part])
    placed = []
    for i, row in enumerate(rows):
        top = y + i * (_SLOT + _GAP)
        for part in row:
            left, right = spans[part.lane]
            tall = part.slot == "second convolution" and part.lane == "global"
            start = top - _SLOT - _GAP if tall else top
            placed.append(_Placed(part, x + left, x + right, start, top + _SLOT))
    return placed, y + len(rows) * (_SLOT + _GAP) - _GAP


def _draw_layer(sheet: _Sheet, row: Variant, dim: int, x: float, y: float) -> None:
    say, c = sheet.say, dim // 2
    model = count_parameters(fresh_model(row, dim))
    parts = chain(row, dim, say.language)
    own = sum(part.parameters for part in parts)
    if not row.has_ka:
        note = say("no KA branch: window attention on all {dim} channels", dim=dim)
    elif row.kernels == "identity":
        note = say("as run, it returns its input")
    elif row.adaptive:
        note = say("its kernels differ from image to image (axis b)")
    elif row.n_windows == 1:
        note = say("its kernel is the same for every image")
    else:
        note = say("its kernels are the same for every image")
    head = say("{name}: Kernel Attention layer, c = {c}", name=row.name, c=c)
    counted = say("live parameters: {layer:,} in this layer, {model:,} in the model", layer=own, model=model)
    sheet.write(f"{row.name}.head", x + 0.04, y + 0.1, head, _TITLE + 1, weight="bold")
    sheet.write(f"{row.name}.counted", x + 0.04, y + 0.24, counted)
    sheet.write(f"{row.name}.note", x + 0.04, y + 0.36, note)

    top = y + 0.46
    state: State = "present" if row.has_ka else "absent"
    first = top + _END + _GAP
    placed, end = _place(parts, x, first)
    out = end + _GAP
    image = shape("b c h w", dim)
    for name, at in (("input, after LN1" if row.layernorm else "input, without LN1", top), ("output", out)):
        sheet.box(f"{row.name}.{name}", state, x + 0.04, x + _RIGHT[1], at, _END, _WHITE, say(name), number=image)
    _legend(sheet, row.name, x + _RIGHT[0] + 0.02, top + _END + 0.1)
    for spot in placed:
        part = spot.part
        sheet.box(
            f"{row.name}.{part.slot}.{part.lane}.{spot.top - y:.2f}",
            "present" if part.present else "absent",
            spot.left,
            spot.right,
            spot.top,
            spot.bottom - spot.top,
            SLOTS[part.slot],
            part.title,
            part.detail,
            f"{part.parameters:,}" if part.parameters else "",
            _INDENT,
        )
    if row.has_ka:
        wiring = _Wiring(sheet, row, dim, placed, x, top + _END, out)
        wiring.image()
        wiring.kernels()
        wiring.maps()


@dataclass(frozen=True)
class _Wiring:
    """A KA layer whose boxes are placed, and the arrows between them.

    Attributes:
        placed: its parts, present and absent.
        x: left edge of the layer.
        start, out: bottom of the input's box, top of the output's.
    """

    sheet: _Sheet
    row: Variant
    dim: int
    placed: Sequence[_Placed]
    x: float
    start: float
    out: float

    def present(self, *slots: str) -> list[_Placed]:
        return [at for at in self.placed if at.part.present and at.part.slot in slots]

    def lane_x(self, lane: str) -> float:
        return self.x + (_RIGHT if lane == "global" else _LEFT)[0] + _WIRE

    def label(self, at: _Placed, lane: str, bottom: float) -> None:
        """The shape of what leaves a part."""
        tag = f"{self.row.name}.shape.{at.part.slot}.{lane}"
        self.sheet.number(tag, self.lane_x(lane) + 0.07, bottom + _GAP / 2, at.part.shape[lane])

    def image(self) -> None:
        """The image, past every part that looks at it."""
        looks = self.present("reweighting", "second convolution")
        if self.row.kernels == "pooled":
            looks += self.present("window kernels")
        x = self.x + _IMAGE_X
        last = max((at.middle for at in looks), default=self.out)
        if not looks:
            self.sheet.wire([(x, self.start), (x, last)], image=True)
        for at in looks:
            if at.middle < last:
                self.sheet.wire([(x, at.middle), (at.left, at.middle)], image=True)
                self.sheet.dot(x, at.middle, image=True)
            else:
                self.sheet.wire([(x, self.start), (x, last), (at.left, last)], image=True)

    def kernels(self) -> None:
        """Kernels down their lanes; those of the windows feed the global kernel from the side."""
        x = self.lane_x("windows")
        feeds = self.present("global kernel, raw", "global kernel, attended")
        axes = "b c n·c k k" if self.row.adaptive else "c n·c k k"
        joined = shape(axes, self.dim, n_windows=self.row.n_windows, size=self.row.size)
        for at in feeds:
            self.sheet.wire([(x, at.middle), (at.left, at.middle)], image=False)
            self.sheet.number(f"{self.row.name}.shape.{at.part.slot}.joined", x + 0.07, at.middle - 0.075, joined)
        self._lane("windows", feeds)
        self._lane("global", [])
        for at in feeds:
            self.sheet.dot(x, at.middle, image=False)

    def _lane(self, lane: str, feeds: Sequence[_Placed]) -> None:
        """Arrows from part to part; without a second convolution to go to, the last ends where it feeds."""
        before = [slot for slot in SLOTS if slot not in ("second convolution", "fusion", "GELU")]
        stops = [at for at in self.present(*before) if at.part.lane in (lane, "both")]
        ends = [(at.top, True) for at in self.present("second convolution") if at.part.lane == lane]
        targets = [(at.top, True) for at in stops[1:]] + (ends or [(at.middle, False) for at in feeds])[:1]
        x = self.lane_x(lane)
        for at, (y, arrow) in zip(stops, targets, strict=False):
            self.sheet.wire([(x, at.bottom), (x, y)], image=False, arrow=arrow, bridge=True)
        for at in stops:
            self.label(at, lane, at.bottom)

    def maps(self) -> None:
        """Feature maps from the second convolution to the output."""
        second = [at for at in self.placed if at.part.slot == "second convolution"]
        after = self.present("fusion", "GELU")
        tops = [*(at.top for at in after), self.out]
        for at in second:
            if at.part.present:
                x = self.lane_x(at.part.lane)
                self.sheet.wire([(x, at.bottom), (x, tops[0])], image=True, bridge=True)
                self.label(at, at.part.lane, max(other.bottom for other in second))
        x = self.lane_x("windows")
        for at, y in zip(after, tops[1:], strict=True):
            self.sheet.wire([(x, at.bottom), (x, y)], image=True)
            self.label(at, "windows", at.bottom)


def _legend(sheet: _Sheet, name: str, x: float, y: float) -> None:
    """In the right lane's free corner, above the first global kernel."""
    states: tuple[tuple[str, State], ...] = (("part of this variant", "present"), ("part it lacks", "absent"))
    for i, (text, state) in enumerate(states):
        at = y + i * 0.135
        sheet.sample(state, x, at)
        sheet.write(f"{name}.legend.{state}", x + 0.27, at, sheet.say(text))
    for i, (text, image) in enumerate((("feature map", True), ("kernels", False))):
        at = y + (i + 2) * 0.135
        sheet.wire([(x, at), (x + 0.2, at)], image=image)
        sheet.write(f"{name}.legend.{text}", x + 0.27, at, sheet.say(text))
    sheet.write(f"{name}.legend.count", x, y + 4 * 0.135, sheet.say("right: live parameters"))


# The backbone, two columns wide.


def backbone(row: Variant, dim: int = 48, language: str = "en", n_bands: int = 31, n_msi: int = 3) -> Figure:
    """The network of a variant, a SaR block in it, and a layer in that: two columns (182 mm) wide.

    Shuffle, KA branch and the split around it stand as dashed outlines where the row lacks them.

    Args:
        row: the variant, of the table or not.
        dim: embedding width C, a multiple of 8.
        language: `en` or `zh`.
        n_bands: bands of the LR-HSI.
        n_msi: bands of the HR-MSI.

    Raises:
        KAError: unknown language, no font for it, or a size that cannot be built.
    """
    model = fresh_model(row, dim, n_bands, n_msi)
    with matplotlib.style.context(STYLE):
        sheet = _Sheet(TWO_COLUMNS, 5.5, language)
        say = sheet.say
        head = "PSRT with KA ({name}), shuffle: {shuffle}" if row.has_ka else "PSRT, no KA, shuffle: {shuffle}"
        title = say(head, name=row.name, shuffle=say(row.shuffle))
        sheet.write("head", 0.06, 0.1, title, _TITLE + 1, "bold")
        counted = say("{model:,} live parameters; of each part at its right", model=count_parameters(model))
        sheet.write("counted", 0.06, 0.24, counted)
        _draw_network(sheet, model, 0.06, 2.36)
        _draw_sar(sheet, model, 2.58, 4.36)
        _draw_inside(sheet, model, 4.58, 7.10)
    return sheet.figure


_TOP, _BOTTOM = 0.6, 5.44  # of the three panels
_LOW, _PLUS, _BLOCK = 0.2, 0.14, 0.62  # heights: a box with one line, a sum, a PSRT block
_SKIP = 0.22  # left margin of a panel, where the shortcut runs
_GREEN, _BLUE, _ORANGE, _PURPLE, _SKY, _VERMILLION = "#009E73", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00"
_BLACK = "#000000"


@dataclass(frozen=True)
class _Step:
    """A box on a panel's main wire.

    Attributes:
        leaves: shape of what leaves it.
        wide: whether it starts at the panel's left edge, over the shortcut's wire.
        right: where it ends, if not at the panel's right edge.
        line: the line of its text at whose right `number` stands.
    """

    name: str
    title: str
    leaves: str
    colour: str = _WHITE
    detail: str = ""
    number: str = ""
    present: bool = True
    height: float = _LOW
    wide: bool = False
    right: float | None = None
    line: int = 0


class _Panel:
    """Steps from top to bottom, joined by one wire that passes the absent ones."""

    def __init__(self, sheet: _Sheet, tag: str, title: str, left: float, right: float, steps: Sequence[_Step]) -> None:
        self.sheet, self.tag, self.left, self.right = sheet, tag, left, right
        self.edge, self.wire_x, self.skip_x = left + _SKIP, left + _SKIP + _WIRE, left + 0.1
        self.gap = (_BOTTOM - _TOP - sum(step.height for step in steps)) / (len(steps) - 1)
        self.top: dict[str, float] = {}
        self.bottom: dict[str, float] = {}
        sheet.write(f"{tag}.head", left, 0.46, title, _TITLE, "bold")
        y, before = _TOP, None
        for step in steps:
            self.top[step.name], self.bottom[step.name] = y, y + step.height
            self._box(step)
            if step.present:
                if before is not None:
                    self.arrow(before.name, step.name, before.leaves)
                before = step
            y += step.height + self.gap

    def _box(self, step: _Step) -> None:
        top = self.top[step.name]
        state: State = "present" if step.present else "absent"
        if step.name.startswith("sum"):
            self.sheet.plus(f"present.{self.tag}.{step.name}", self.wire_x, top + _PLUS / 2)
            return
        left = self.left if step.wide else self.edge
        right = step.right or self.right
        self.sheet.box(
            f"{self.tag}.{step.name}",
            state,
            left,
            right,
            top,
            step.height,
            step.colour,
            step.title,
            step.detail,
            step.number,
            0.06 if step.wide or step.right else _INDENT,
            number_line=step.line,
        )

    def arrow(self, source: str, target: str, label: str, x: float | None = None) -> None:
        """From the bottom of a step to the top of another, a shape beside its end."""
        x = self.wire_x if x is None else x
        self.sheet.wire([(x, self.bottom[source]), (x, self.top[target])], image=True)
        y = self.top[target] - self.gap / 2
        self.sheet.number(f"{self.tag}.shape.{source}.{target}.{x:.2f}", x + 0.07, y, label)

    def shortcut(self, start: float, end: str, fork: bool = False) -> None:
        """A residual connection, down the left margin to a sum; from the main wire if `fork`."""
        y = self.top[end] + _PLUS / 2
        path = [(self.skip_x, start), (self.skip_x, y), (self.wire_x - _PLUS / 2, y)]
        self.sheet.wire([(self.wire_x, start), *path] if fork else path, image=True)
        if fork:
            self.sheet.dot(self.wire_x, start, image=True)


def _draw_network(sheet: _Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (a): from `up` and `msi` to the sharp image."""
    say = sheet.say
    sizes = partial(shape, dim=model.dim, n_bands=model.n_bands, n_msi=model.n_msi)
    bands, body = sizes("b s h w"), sizes("b h w C")
    side = right - 0.98  # left edge of msi
    steps = [
        _Step("up", say("up: LR-HSI"), bands, wide=True, right=side - 0.08),
        _Step("concatenate", say("concatenate"), sizes("b s+m h w"), _BLACK),
        _Step("head", say("head: conv 3×3"), sizes("b C h w"), _VERMILLION, number=_count(model.head)),
        *(_Step(f"block{i}", "", body, height=_BLOCK) for i in range(N_BLOCKS)),
        _Step("tail", say("tail: conv 3×3"), bands, _VERMILLION, number=_count(model.tail)),
        _Step("LeakyReLU", "LeakyReLU(0.2)", bands, _BLACK),
        _Step("sum", "", bands, height=_PLUS),
        _Step("out", say("sharp image"), bands),
    ]
    panel = _Panel(sheet, "a", say("(a) PSRT"), left, right, steps)
    panel.shortcut(panel.bottom["up"], "sum")
    sheet.box("a.msi", "present", side, right, panel.top["up"], _LOW, _WHITE, say("msi: HR-MSI"))
    panel.arrow("up", "concatenate", sizes("b m h w"), side + _WIRE)
    pitch = (right - panel.edge) / len(WINDOWS)
    for i, block in enumerate(model.blocks):
        tag, top = f"a.block{i}", panel.top[f"block{i}"]
        title = say("PSRT block {i}", i=i + 1)
        sheet.write(f"present.{tag}.0", panel.edge + 0.06, top + 0.1, title, _TITLE, "bold")
        sheet.number(f"present.{tag}.number", right - 0.04, top + 0.1, _count(block), ha="right")
        for j, window in enumerate(WINDOWS):
            start, end = panel.edge + j * pitch + 0.06, panel.edge + (j + 1) * pitch - 0.06
            name = f"a.sar{i}-{j}"
            width = f"w = {window}"
            sheet.box(name, "present", start, end, top + 0.22, 0.32, _GREEN, say("SaR"), width, centred=True)
            if j:
                sheet.wire([(start - 0.12, top + 0.38), (start, top + 0.38)], image=True)


def _draw_sar(sheet: _Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (b): three layers and the shuffle around the second."""
    say, row = sheet.say, model.row
    image = shape("b h w C", model.dim)
    aligned = row.shuffle == "aligned"
    kind = say("window attention, KA, MLP" if row.has_ka else "window attention, MLP")
    moved = say("shuffle is inside, see (c)") if row.shuffle == "misaligned" else kind

    def a_layer(i: int, detail: str) -> _Step:
        name, count = say("layer L{i}", i=i), _count(model.layers()[i - 1])
        return _Step(f"L{i}", name, image, _GREEN, detail, count, height=_SLOT)

    def mover(name: str, absent: str) -> _Step:
        detail = say("cells of w/2") if aligned else ""
        return _Step(name, say(name if aligned else absent), image, _ORANGE, detail, present=aligned, height=_SLOT)

    steps = [
        _Step("in", say("input"), image, wide=True),
        a_layer(1, kind),
        mover("shuffle", "no shuffle"),
        a_layer(2, moved),
        mover("unshuffle", "no unshuffle"),
        a_layer(3, moved),
        _Step("sum", "", image, height=_PLUS),
        _Step("out", say("output"), image, wide=True),
    ]
    title = say("(b) SaR block, w = {windows}", windows=", ".join(map(str, WINDOWS)))
    panel = _Panel(sheet, "b", title, left, right, steps)
    panel.shortcut(panel.bottom["in"], "sum")


def _draw_inside(sheet: _Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (c): a layer, window attention beside KA, then the MLP."""
    say, row, dim, real = sheet.say, model.row, model.dim, model.layers()[0]
    moves, splits = row.shuffle == "misaligned", row.has_ka
    image, branch = shape("b h w C", dim), shape("b c h w", dim)
    half = shape("b h w c", dim) if splits else image
    middle = (left + _SKIP + right) / 2
    heads, width = real.attn.heads, real.attn.proj.in_features
    tokens = f"{say('{heads} heads × {d}', heads=heads, d=width // heads)}\n{say('w × w tokens')}"
    steps = [
        _Step("in", say("input"), image, wide=True),
        _Step("LN1", "LN1", image, _ORANGE, number=_count(real.norm1)),
        _Step(
            "move",
            say("pixels move" if moves else "pixels do not move here"),
            image,
            _VERMILLION,
            say("shuffle in L2, unshuffle in L3") if moves else "",
            present=moves,
            height=_SLOT,
        ),
        _Step("split", say("split channels" if splits else "no split"), half, _BLACK, present=splits),
        _Step(
            "attention",
            say("window attention"),
            half,
            _BLUE,
            tokens,
            _count(real.attn),
            height=0.46,
            right=middle - 0.04,
            line=2,
        ),
        _Step("concatenate", say("concatenate" if splits else "no concatenation"), image, _BLACK, present=splits),
        _Step("sum1", "", image, height=_PLUS),
        _Step("LN2", "LN2", image, _ORANGE, number=_count(real.norm2)),
        _Step(
            "MLP", "MLP", image, _SKY, f"{dim} → {real.mlp.fc1.out_features} → {dim}, GELU", _count(real.mlp),
            height=_SLOT,
        ),
        _Step("sum2", "", image, height=_PLUS),
        _Step("out", say("output"), image, wide=True),
    ]  # fmt: skip
    panel = _Panel(sheet, "c", say("(c) layer: L1, L2 and L3"), left, right, steps)
    panel.shortcut(panel.bottom["in"], "sum1")
    panel.shortcut(panel.bottom["sum1"] + panel.gap * 0.25, "sum2", fork=True)
    if moves:
        y = panel.top["sum1"] + _PLUS / 2
        sheet.write("c.misaligned", panel.wire_x + 0.14, y, say("added to pixels that did not move"))
    top, start = panel.top["attention"], middle + 0.04
    if real.ka is None:
        sheet.box("c.KA", "absent", start, right, top, 0.46, _PURPLE, say("no KA"), indent=_INDENT)
        return
    sheet.box("c.KA", "present", start, right, top, 0.46, _PURPLE, "KA", row.name, _count(real.ka))
    panel.arrow("split", "attention", branch, start + _WIRE)
    panel.arrow("attention", "concatenate", branch, start + _WIRE)


def _count(module: torch.nn.Module) -> str:
    return f"{count_parameters(module):,}"


_HEADS = {
    "window kernels": "window\nkernels",
    "reweighting": "re-\nweight",
    "global kernel, raw": "global,\nraw",
    "SA": "kernel\nSA",
    "global kernel, attended": "global,\nafter SA",
    "SE": "SE",
    "widening": "widen",
    "second convolution": "2nd conv\non",
    "fusion": "fusion",
    "GELU": "GELU",
}


def overview(names: Sequence[str], dim: int = 48, language: str = "en") -> Figure:
    """Variants side by side: a row each, a column per slot of the KA layer, and live parameters.

    A filled cell holds the part's setting; a dashed outline stands for a part that the variant lacks.

    Args:
        names: keys of `ka.VARIANTS`, top to bottom.
        dim: embedding width C.
        language: `en` or `zh`.

    Raises:
        KAError: no names, an unknown one, unknown language, no font for it, or a `dim` that cannot be built.
    """
    rows = [variant(name) for name in names]
    if not rows:
        raise KAError("no variant to draw; give at least one name of ka.VARIANTS")
    label, count, head = 0.06 + 0.055 * max(map(len, names)), 0.62, 0.36
    pitch = min(0.3, (PAGE - head - 0.06) / len(rows))
    cell = min(0.25, pitch - 0.025)
    columns = ["shuffle", *SLOTS]
    step = (TWO_COLUMNS - 0.08 - label - count) / len(columns)
    with matplotlib.style.context(STYLE):
        sheet = _Sheet(TWO_COLUMNS, head + pitch * len(rows) + 0.06, language)
        say = sheet.say
        for j, column in enumerate(columns):
            centre = 0.04 + label + (j + 0.5) * step
            text = say("shuffle") if column == "shuffle" else say(_HEADS[column])
            sheet.write(f"head.{column}", centre, head / 2, text, _TEXT, "bold", ha="center")
        end = TWO_COLUMNS - 0.04
        sheet.write("head.live", end, head / 2, say("live\nparameters"), _TEXT, "bold", ha="right")
        for i, row in enumerate(rows):
            top = head + i * pitch
            middle = top + cell / 2
            sheet.write(f"{row.name}.name", 0.04, middle, row.name, _TITLE, "bold")
            shuffled = {"none": "", "aligned": say("aligned"), "misaligned": say("mis-\naligned")}[row.shuffle]
            texts = {"shuffle": shuffled} | _settings(row, dim, language)
            whys = {"": say("no KA"), "identity": say("identity")}
            for j, column in enumerate(columns):
                start = 0.04 + label + j * step
                state: State = "present" if texts[column] else "absent"
                colour = SLOTS.get(column, "#000000")
                gid = f"{row.name}.{column}"
                sheet.cell(
                    gid,
                    state,
                    start + 0.02,
                    start + step - 0.02,
                    top,
                    cell,
                    colour,
                    texts[column] or (whys.get(row.kernels, "") if column == "window kernels" else ""),
                )
            live = count_parameters(fresh_model(row, dim))
            sheet.number(f"{row.name}.live", end, middle, f"{live:,}", ha="right")
    return sheet.figure


def _settings(row: Variant, dim: int, language: str) -> dict[str, str]:
    """The setting of every slot in a word or two, "" where the row lacks it."""
    settings = dict.fromkeys(SLOTS, "")
    for part in chain(row, dim, language):
        settings[part.slot] = settings[part.slot] or part.short
    return settings


def all_diagrams(language: str = "en") -> dict[str, Callable[[], Figure]]:
    """Every diagram by name: what `make figures` draws and saves.

    Both overviews, a backbone for every way to shuffle, with KA and without (named after the first row that has it),
    and the KA layer of every row that has one. Names end in `_zh` for Chinese.

    Raises:
        KAError: unknown language.
    """
    end = "" if Words(language).language == "en" else f"_{language}"
    drawn: dict[str, Callable[[], Figure]] = {
        f"overview_study{end}": partial(overview, STUDY, language=language),
        f"overview_all{end}": partial(overview, list(VARIANTS), language=language),
    }
    bodies: dict[tuple[str, bool], Variant] = {}
    for row in VARIANTS.values():
        bodies.setdefault((row.shuffle, row.has_ka), row)
    for row in bodies.values():
        drawn[f"backbone_{row.name}{end}"] = partial(backbone, row, language=language)
    for row in VARIANTS.values():
        if row.has_ka:
            drawn[f"layer_{row.name}{end}"] = partial(layer, row, language=language)
    return drawn
