"""A sheet in inches, and the few shapes that diagrams are made of: boxes, cells, wires, sums."""

from collections.abc import Sequence
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Polygon

from workbook.diagrams.words import Words

ONE_COLUMN, TWO_COLUMNS, PAGE = 3.46, 7.16, 9.45  # inches: two widths, the height of a page

TITLE, TEXT = 6.8, 6.2  # pt
LINE = 0.132  # inches from one line of a box to the next
WHITE, BLACK, GREY = "#FFFFFF", "#000000", "#6E6E6E"  # grey: 5:1 on white
MAP, KERNEL = "#0072B2", "#000000"  # of wires
WIRE = 0.09  # of a lane, from its left edge
MARGIN, INDENT = 0.06, 0.17  # of text in a box, and where a wire runs through it
SLOT, GAP = 0.30, 0.165  # height of a box of two lines, and the room to the next

Point = tuple[float, float]
Span = tuple[float, float, float, float]  # where a box lies: left, right, top, height


class Sheet:
    """A figure in inches from its top left corner, and the few shapes that diagrams are made of. What is drawn carries
    a gid, `present.diagram.part…` or `absent.diagram.part…`, so that a test can read the figure.
    """

    def __init__(self, width: float, height: float, language: str) -> None:
        self.say = Words(language)
        self._font = self.say.font()
        self.figure = Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def write(
        self, gid: str, x: float, y: float, text: str, size: float = TEXT, weight: str = "normal", **style: Any
    ) -> None:
        self._text(gid, x, y, text, FontProperties(**({"weight": weight} | self._font), size=size), style)

    def number(self, gid: str, x: float, y: float, text: str, **style: Any) -> None:
        """A shape or a count: in the style's own font in every language (Chinese fonts have a wide "·")."""
        self._text(gid, x, y, text, FontProperties(size=TEXT), style)

    def _text(self, gid: str, x: float, y: float, text: str, font: FontProperties, style: dict[str, Any]) -> None:
        plain: dict[str, Any] = {"va": "center", "ha": "left", "zorder": 5, "linespacing": 1.1}
        self.axes.text(x, y, text, fontproperties=font, gid=_gid(gid), **(plain | style))

    def box(
        self, name: str, present: bool, span: Span, colour: str, title: str, detail: str = "", number: str = "",
        indent: float = MARGIN, number_line: int = 0, centred: bool = False,
    ) -> None:  # fmt: skip
        """A part: filled where present, a dashed outline where absent. Title and lines of detail, and a count or
        shape at the right of one of these lines."""
        left, right, top, height = span
        gid, ink = self._outline(name, present, span, colour)
        x, align = ((left + right) / 2, "center") if centred else (left + indent, "left")
        lines = [title, *detail.splitlines()]
        heights = [top + height / 2 + LINE * (i - (len(lines) - 1) / 2) for i in range(len(lines))]
        for i, (line, y) in enumerate(zip(lines, heights, strict=True)):
            size, weight = TEXT if i else TITLE, "bold" if present and i == 0 else "normal"
            if line:
                self.write(f"{gid}.{i}", x, y, line, size, weight, color=ink, ha=align)
        if number:
            self.number(f"{gid}.number", right - 0.04, heights[number_line], number, color=ink, ha="right")

    def cell(self, name: str, present: bool, span: Span, colour: str, text: str) -> None:
        """A part in a table: its setting in one or two lines, centred."""
        left, right, top, height = span
        gid, ink = self._outline(name, present, span, colour)
        if text:
            middle = (left + right) / 2, top + height / 2
            self.write(f"{gid}.0", *middle, text, ha="center", linespacing=1.0, color=ink)

    def sample(self, present: bool, x: float, y: float) -> None:
        """An empty box, for a legend."""
        self._outline("", present, (x, x + 0.2, y - 0.04, 0.08), BLACK)

    def _outline(self, name: str, present: bool, span: Span, colour: str) -> tuple[str, str]:
        """The border of a part (of a legend's sample, without a name); its gid, and the colour of text in it."""
        (left, right, top, height), gid = span, f"{'present' if present else 'absent'}.{name}" if name else "legend"
        drawn: dict[str, Any] = {"facecolor": "none", "edgecolor": GREY, "linewidth": 0.7, "linestyle": (0, (2.5, 2))}
        if present:
            drawn = {"facecolor": _tint(colour), "edgecolor": _dark(colour), "linewidth": 1.0, "linestyle": "-"}
        drawn |= {"zorder": 3 if present else 1, "gid": _gid(gid), "boxstyle": "round,pad=0,rounding_size=0.03"}
        self.axes.add_patch(FancyBboxPatch((left, top), right - left, height, **drawn))
        return gid, "black" if present else GREY

    def wire(self, points: Sequence[Point], *, image: bool, arrow: bool = True, bridge: bool = False) -> None:
        """Thick blue for feature maps, thin black for kernels; a bridge leaves a gap in the wires under it."""
        path, (colour, width) = list(points), (MAP, 1.8) if image else (KERNEL, 0.9)
        if arrow:
            (x0, y0), (x1, y1) = path[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            dx, dy = (x1 - x0) / length * 0.06, (y1 - y0) / length * 0.06
            head = [(x1, y1), (x1 - dx - dy / 2, y1 - dy + dx / 2), (x1 - dx + dy / 2, y1 - dy - dx / 2)]
            self.axes.add_patch(Polygon(head, facecolor=colour, edgecolor="none", zorder=4))
            path[-1] = (x1 - dx, y1 - dy)
        xs, ys = zip(*path, strict=True)
        line: dict[str, Any] = {"solid_capstyle": "butt", "zorder": 2}
        if bridge:
            self.axes.add_line(Line2D(xs, ys, color="white", linewidth=width + 2.2, **line))
        line |= {"solid_joinstyle": "miter", "gid": "wire"}
        self.axes.add_line(Line2D(xs, ys, color=colour, linewidth=width, **line))

    def dot(self, x: float, y: float, *, image: bool) -> None:
        """Where a wire branches."""
        self.axes.add_patch(Circle((x, y), 0.025, facecolor=MAP if image else KERNEL, edgecolor="none", zorder=4))

    def plus(self, gid: str, x: float, y: float) -> None:
        """A sum of the wires that meet in it."""
        ring, arm = Circle((x, y), 0.07, facecolor="white", edgecolor="black", linewidth=0.9, zorder=3), 0.07 * 0.6
        ring.set_gid(_gid(gid))
        self.axes.add_patch(ring)
        for xs, ys in (((x - arm, x + arm), (y, y)), ((x, x), (y - arm, y + arm))):
            self.axes.add_line(Line2D(xs, ys, color="black", linewidth=0.9, zorder=4))


def _gid(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def _tint(colour: str) -> tuple[float, ...]:
    """Light enough for black text."""
    strength = {"#F0E442": 0.5, BLACK: 0.12}.get(colour, 0.28)
    return tuple(1 - strength * (1 - value) for value in to_rgb(colour))


def _dark(colour: str) -> tuple[float, ...]:
    return (0.0, 0.0, 0.0) if colour == WHITE else tuple(0.8 * value for value in to_rgb(colour))
