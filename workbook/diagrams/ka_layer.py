"""The KA layer of a variant, drawn from its parts: one column (88 mm) wide."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from ka.errors import KAError
from ka.models.counts import count_parameters
from ka.models.variants import Variant
from workbook.diagrams.parts import SLOTS, Part, chain, fresh_model, shape
from workbook.diagrams.sheet import GAP, INDENT, ONE_COLUMN, SLOT, TITLE, WHITE, WIRE, Sheet
from workbook.style import styled

# Inches.
IMAGE_X = 0.12
LEFT, RIGHT = (0.32, 2.04), (2.16, 3.42)
END = 0.2  # height of input and output
LEGEND = (
    ("present", "part of this variant"), ("absent", "part it lacks"),
    ("feature map", "feature map"), ("kernels", "kernels"),
)  # fmt: skip
LAYER_HEIGHT = 6.26


def layer(row: Variant, dim: int = 48, language: str = "en") -> Figure:
    """The KA layer of a variant, top to bottom, one column (88 mm) wide.

    Left lane: the window kernels; right lane: the global kernel; thick line: the feature map. Boxes in place of
    which a dashed outline stands are parts that the variant lacks. The row need not be of the table; `dim` is the
    embedding width C, the layer has c = C/2 channels; `language` is `en` or `zh`. An unknown language, no font for it,
    or a `dim` that cannot be built is a `KAError`.
    """
    return layers([row], dim, language, columns=1)


@styled
def layers(rows: Sequence[Variant], dim: int = 48, language: str = "en", columns: int = 4) -> Figure:
    """The KA layers of variants (at least one) on one sheet, `columns` side by side, each as `layer` draws it."""
    if not rows:
        raise KAError("no variant to draw; give at least one row of ka.VARIANTS")
    across = min(columns, len(rows))
    down = -(-len(rows) // across)
    sheet = Sheet(across * ONE_COLUMN, down * LAYER_HEIGHT, language)
    for i, row in enumerate(rows):
        _Drawn(sheet, row, dim, (i % across) * ONE_COLUMN, (i // across) * LAYER_HEIGHT)
    return sheet.figure


class _Placed(NamedTuple):
    """A part where it is drawn: a box from `top` to `bottom`."""

    part: Part
    left: float
    right: float
    top: float
    bottom: float

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


class _Drawn:
    """A KA layer on a sheet, its top left corner at (x, y): a head, its parts in boxes, the arrows between them."""

    def __init__(self, sheet: Sheet, row: Variant, dim: int, x: float, y: float) -> None:
        self.sheet, self.row, self.dim, self.x, self.y = sheet, row, dim, x, y
        say, top = sheet.say, y + 0.46
        model = fresh_model(row, dim)
        parts = chain(row, dim, say.language)
        self.head(sum(part.parameters for part in parts), count_parameters(model))
        self.start = top + END  # bottom of the input's box
        self.placed, end = self.place(parts, self.start + GAP)
        self.out = end + GAP  # top of the output's
        for name, at in (("input, after LN1" if row.layernorm else "input, without LN1", top), ("output", self.out)):
            span = (x + 0.04, x + RIGHT[1], at, END)
            sheet.box(f"{row.name}.{name}", row.has_ka, span, WHITE, say(name), number=shape("b c h w", dim))
        self.legend(x + RIGHT[0] + 0.02, self.start + 0.1)
        for spot in self.placed:
            part, count = spot.part, f"{spot.part.parameters:,}" if spot.part.parameters else ""
            name = f"{row.name}.{part.slot}.{part.lane}.{spot.top - y:.2f}"
            span = (spot.left, spot.right, spot.top, spot.bottom - spot.top)
            sheet.box(name, part.present, span, SLOTS[part.slot], part.title, part.detail, count, INDENT)
        if row.has_ka:
            self.image()
            self.kernels()
            self.maps()

    def head(self, own: int, model: int) -> None:
        """What the layer is, its own live parameters and the model's, and whether its kernels follow the image."""
        say, row, c = self.sheet.say, self.row, self.dim // 2
        if not row.has_ka:
            note = "no KA branch: window attention on all {dim} channels"
        elif row.kernels == "identity":
            note = "as run, it returns its input"
        elif row.adaptive:
            note = "its kernels differ from image to image (axis b)"
        else:
            note = f"its kernel{' is' if row.n_windows == 1 else 's are'} the same for every image"
        counted = say("live parameters: {layer:,} in this layer, {model:,} in the model", layer=own, model=model)
        title, x, y = say("{name}: Kernel Attention layer, c = {c}", name=row.name, c=c), self.x + 0.04, self.y
        self.sheet.write(f"{row.name}.head", x, y + 0.1, title, TITLE + 1, weight="bold")
        self.sheet.write(f"{row.name}.counted", x, y + 0.24, counted)
        self.sheet.write(f"{row.name}.note", x, y + 0.36, say(note, dim=self.dim))

    def place(self, parts: Sequence[Part], y: float) -> tuple[list[_Placed], float]:
        """Parts on the grid, the first slot's top at `y`; and where the last slot ends."""
        spans = {"windows": LEFT, "global": RIGHT, "both": (LEFT[0], RIGHT[1])}
        placed: list[_Placed] = []
        lines, before = 0, None
        for part in parts:
            # Second convolutions by window kernels stand one below the other; the global kernel's spans both rows.
            if before is None or part.slot != before.slot or part.lane == before.lane:
                lines += 1
            top, (left, right) = y + (lines - 1) * (SLOT + GAP), spans[part.lane]
            tall = part.slot == "second convolution" and part.lane == "global"
            placed.append(_Placed(part, self.x + left, self.x + right, top - SLOT - GAP if tall else top, top + SLOT))
            before = part
        return placed, y + lines * (SLOT + GAP) - GAP

    def legend(self, x: float, y: float) -> None:
        """In the right lane's free corner, above the first global kernel."""
        for i, (what, text) in enumerate(LEGEND):
            at = y + i * 0.135
            if what in ("present", "absent"):
                self.sheet.sample(what == "present", x, at)
            else:
                self.sheet.wire([(x, at), (x + 0.2, at)], image=what == "feature map")
            self.sheet.write(f"{self.row.name}.legend.{what}", x + 0.27, at, self.sheet.say(text))
        self.sheet.write(f"{self.row.name}.legend.count", x, y + 4 * 0.135, self.sheet.say("right: live parameters"))

    def present(self, *slots: str) -> list[_Placed]:
        return [at for at in self.placed if at.part.present and at.part.slot in slots]

    def lane_x(self, lane: str) -> float:
        return self.x + (RIGHT if lane == "global" else LEFT)[0] + WIRE

    def label(self, at: _Placed, lane: str, bottom: float) -> None:
        place = self.lane_x(lane) + 0.07, bottom + GAP / 2
        self.sheet.number(f"{self.row.name}.shape.{at.part.slot}.{lane}", *place, at.part.shape[lane])

    def image(self) -> None:
        """The image, past every part that looks at it."""
        looks = self.present("reweighting", "second convolution")
        if self.row.kernels in ("pooled", "regressed"):
            looks += self.present("window kernels")
        x = self.x + IMAGE_X
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
        for at in self.present("second convolution"):
            x = self.lane_x(at.part.lane)
            self.sheet.wire([(x, at.bottom), (x, tops[0])], image=True, bridge=True)
            self.label(at, at.part.lane, max(other.bottom for other in second))
        x = self.lane_x("windows")
        for at, y in zip(after, tops[1:], strict=True):
            self.sheet.wire([(x, at.bottom), (x, y)], image=True)
            self.label(at, "windows", at.bottom)
