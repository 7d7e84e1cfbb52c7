"""The network of a variant, a SaR block in it, and a layer in that: two columns (182 mm) wide."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

from ka.models.counts import count_parameters
from ka.models.psrt import N_BLOCKS, PSRT, WINDOWS
from ka.models.variants import Variant
from workbook.diagrams.parts import fresh_model, shape
from workbook.diagrams.sheet import BLACK, INDENT, MARGIN, SLOT, TITLE, TWO_COLUMNS, WHITE, WIRE, Sheet
from workbook.style import styled

TOP, BOTTOM = 0.6, 5.44  # of the three panels
LOW, PLUS, BLOCK = 0.2, 0.14, 0.62  # heights: a box with one line, a sum, a PSRT block
SKIP = 0.22  # left margin of a panel, where the shortcut runs
GREEN, BLUE, ORANGE, PURPLE, SKY, VERMILLION = "#009E73", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00"


@styled
def backbone(row: Variant, dim: int = 48, language: str = "en", n_bands: int = 31, n_msi: int = 3) -> Figure:
    """The network of a variant, a SaR block in it, and a layer in that: two columns (182 mm) wide.

    Shuffle, KA branch and the split around it stand as dashed outlines where the row lacks them. The row need not be of
    the table; `dim` is the embedding width C, a multiple of 8; `language` is `en` or `zh`. An unknown language, no font
    for it, or a size that cannot be built is a `KAError`.
    """
    model = fresh_model(row, dim, n_bands, n_msi)
    sheet = Sheet(TWO_COLUMNS, 5.5, language)
    say = sheet.say
    head = "PSRT with KA ({name}), shuffle: {shuffle}" if row.has_ka else "PSRT, no KA, shuffle: {shuffle}"
    counted = say("{model:,} live parameters; of each part at its right", model=count_parameters(model))
    sheet.write("head", 0.06, 0.1, say(head, name=row.name, shuffle=say(row.shuffle)), TITLE + 1, "bold")
    sheet.write("counted", 0.06, 0.24, counted)
    _draw_network(sheet, model, 0.06, 2.36)
    _draw_sar(sheet, model, 2.58, 4.36)
    _draw_inside(sheet, model, 4.58, 7.10)
    return sheet.figure


class Step(NamedTuple):
    """A box on a panel's main wire; one whose name starts with "sum" is a sum."""

    name: str
    title: str
    leaves: str  # shape of what leaves it
    colour: str = WHITE
    detail: str = ""
    number: str = ""
    present: bool = True
    height: float = LOW
    wide: bool = False  # whether it starts at the panel's left edge, over the shortcut's wire
    right: float | None = None  # where it ends, if not at the panel's right edge
    line: int = 0  # the line of its text at whose right `number` stands


class Panel:
    """Steps from top to bottom, joined by one wire that passes the absent ones."""

    def __init__(self, sheet: Sheet, tag: str, title: str, left: float, right: float, steps: Sequence[Step]) -> None:
        self.sheet, self.tag, self.left, self.right = sheet, tag, left, right
        self.edge, self.wire_x, self.skip_x = left + SKIP, left + SKIP + WIRE, left + 0.1
        self.gap = (BOTTOM - TOP - sum(step.height for step in steps)) / (len(steps) - 1)
        self.top: dict[str, float] = {}
        self.bottom: dict[str, float] = {}
        sheet.write(f"{tag}.head", left, 0.46, title, TITLE, "bold")
        y, before = TOP, None
        for step in steps:
            self.top[step.name], self.bottom[step.name] = y, y + step.height
            self._draw(step, y)
            if step.present:
                if before is not None:
                    self.arrow(before.name, step.name, before.leaves)
                before = step
            y += step.height + self.gap

    def _draw(self, step: Step, top: float) -> None:
        name = f"{self.tag}.{step.name}"
        if step.name.startswith("sum"):
            self.sheet.plus(f"present.{name}", self.wire_x, top + PLUS / 2)
        else:
            span = (self.left if step.wide else self.edge, step.right or self.right, top, step.height)
            text, indent = (step.title, step.detail, step.number), MARGIN if step.wide or step.right else INDENT
            self.sheet.box(name, step.present, span, step.colour, *text, indent, step.line)

    def arrow(self, source: str, target: str, label: str, x: float | None = None) -> None:
        """From the bottom of a step to the top of another, a shape beside its end."""
        x, end = self.wire_x if x is None else x, self.top[target]
        self.sheet.wire([(x, self.bottom[source]), (x, end)], image=True)
        self.sheet.number(f"{self.tag}.shape.{source}.{target}.{x:.2f}", x + 0.07, end - self.gap / 2, label)

    def shortcut(self, start: float, end: str, fork: bool = False) -> None:
        """A residual connection, down the left margin to a sum; from the main wire if `fork`."""
        y = self.top[end] + PLUS / 2
        path = [(self.skip_x, start), (self.skip_x, y), (self.wire_x - PLUS / 2, y)]
        self.sheet.wire([(self.wire_x, start), *path] if fork else path, image=True)
        if fork:
            self.sheet.dot(self.wire_x, start, image=True)


def _draw_network(sheet: Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (a): from `up` and `msi` to the sharp image."""
    say = sheet.say
    sizes = partial(shape, dim=model.dim, n_bands=model.n_bands, n_msi=model.n_msi)
    bands, body = sizes("b s h w"), sizes("b h w C")
    side = right - 0.98  # left edge of msi
    steps = [
        Step("up", say("up: LR-HSI"), bands, wide=True, right=side - 0.08),
        Step("concatenate", say("concatenate"), sizes("b s+m h w"), BLACK),
        Step("head", say("head: conv 3×3"), sizes("b C h w"), VERMILLION, number=count(model.head)),
        *(Step(f"block{i}", "", body, height=BLOCK) for i in range(N_BLOCKS)),
        Step("tail", say("tail: conv 3×3"), bands, VERMILLION, number=count(model.tail)),
        Step("LeakyReLU", "LeakyReLU(0.2)", bands, BLACK),
        Step("sum", "", bands, height=PLUS),
        Step("out", say("sharp image"), bands),
    ]
    panel = Panel(sheet, "a", say("(a) PSRT"), left, right, steps)
    panel.shortcut(panel.bottom["up"], "sum")
    sheet.box("a.msi", True, (side, right, panel.top["up"], LOW), WHITE, say("msi: HR-MSI"))
    panel.arrow("up", "concatenate", sizes("b m h w"), side + WIRE)
    pitch = (right - panel.edge) / len(WINDOWS)
    for i, block in enumerate(model.blocks):
        tag, top = f"a.block{i}", panel.top[f"block{i}"]
        sheet.write(f"present.{tag}.0", panel.edge + 0.06, top + 0.1, say("PSRT block {i}", i=i + 1), TITLE, "bold")
        sheet.number(f"present.{tag}.number", right - 0.04, top + 0.1, count(block), ha="right")
        for j, window in enumerate(WINDOWS):
            start, end = panel.edge + j * pitch + 0.06, panel.edge + (j + 1) * pitch - 0.06
            span = (start, end, top + 0.22, 0.32)
            sheet.box(f"a.sar{i}-{j}", True, span, GREEN, say("SaR"), f"w = {window}", centred=True)
            if j:
                sheet.wire([(start - 0.12, top + 0.38), (start, top + 0.38)], image=True)


def _draw_sar(sheet: Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (b): three layers and the shuffle around the second."""
    say, row = sheet.say, model.row
    image = shape("b h w C", model.dim)
    aligned = row.shuffle == "aligned"
    kind = say("window attention, KA, MLP" if row.has_ka else "window attention, MLP")
    moved = say("shuffle is inside, see (c)") if row.shuffle == "misaligned" else kind

    def a_layer(i: int, detail: str) -> Step:
        title, number = say("layer L{i}", i=i), count(model.layers()[i - 1])
        return Step(f"L{i}", title, image, GREEN, detail, number, height=SLOT)

    def mover(name: str, absent: str) -> Step:
        detail = say("cells of w/2") if aligned else ""
        return Step(name, say(name if aligned else absent), image, ORANGE, detail, present=aligned, height=SLOT)

    steps = [
        Step("in", say("input"), image, wide=True),
        a_layer(1, kind),
        mover("shuffle", "no shuffle"),
        a_layer(2, moved),
        mover("unshuffle", "no unshuffle"),
        a_layer(3, moved),
        Step("sum", "", image, height=PLUS),
        Step("out", say("output"), image, wide=True),
    ]
    title = say("(b) SaR block, w = {windows}", windows=", ".join(map(str, WINDOWS)))
    panel = Panel(sheet, "b", title, left, right, steps)
    panel.shortcut(panel.bottom["in"], "sum")


def _draw_inside(sheet: Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (c): a layer, window attention beside KA, then the MLP."""
    say, row, dim, real = sheet.say, model.row, model.dim, model.layers()[0]
    moves, splits = row.shuffle == "misaligned", row.has_ka
    image, branch = shape("b h w C", dim), shape("b c h w", dim)
    half = shape("b h w c", dim) if splits else image
    middle = (left + SKIP + right) / 2
    heads, width = real.attn.heads, real.attn.proj.in_features
    tokens = f"{say('{heads} heads × {d}', heads=heads, d=width // heads)}\n{say('w × w tokens')}"
    attention = (say("window attention"), half, BLUE, tokens, count(real.attn))
    title, where = ("pixels move", say("shuffle in L2, unshuffle in L3")) if moves else ("pixels do not move here", "")
    mlp = f"{dim} → {real.mlp.fc1.out_features} → {dim}, GELU"
    steps = [
        Step("in", say("input"), image, wide=True),
        Step("LN1", "LN1", image, ORANGE, number=count(real.norm1)),
        Step("move", say(title), image, VERMILLION, where, present=moves, height=SLOT),
        Step("split", say("split channels" if splits else "no split"), half, BLACK, present=splits),
        Step("attention", *attention, height=0.46, right=middle - 0.04, line=2),
        Step("concatenate", say("concatenate" if splits else "no concatenation"), image, BLACK, present=splits),
        Step("sum1", "", image, height=PLUS),
        Step("LN2", "LN2", image, ORANGE, number=count(real.norm2)),
        Step("MLP", "MLP", image, SKY, mlp, count(real.mlp), height=SLOT),
        Step("sum2", "", image, height=PLUS),
        Step("out", say("output"), image, wide=True),
    ]
    panel = Panel(sheet, "c", say("(c) layer: L1, L2 and L3"), left, right, steps)
    panel.shortcut(panel.bottom["in"], "sum1")
    panel.shortcut(panel.bottom["sum1"] + panel.gap * 0.25, "sum2", fork=True)
    if moves:
        y = panel.top["sum1"] + PLUS / 2
        sheet.write("c.misaligned", panel.wire_x + 0.14, y, say("added to pixels that did not move"))
    span = (middle + 0.04, right, panel.top["attention"], 0.46)
    if real.ka is None:
        sheet.box("c.KA", False, span, PURPLE, say("no KA"), indent=INDENT)
    else:
        sheet.box("c.KA", True, span, PURPLE, "KA", row.name, count(real.ka))
        panel.arrow("split", "attention", branch, middle + 0.04 + WIRE)
        panel.arrow("attention", "concatenate", branch, middle + 0.04 + WIRE)


def count(module: torch.nn.Module) -> str:
    """Live parameters, as a diagram writes them."""
    return f"{count_parameters(module):,}"
