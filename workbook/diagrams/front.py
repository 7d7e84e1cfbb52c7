"""A network whose kernels adapt: what makes them in front, and a lean body behind it; two columns (182 mm) wide."""

from functools import partial

from matplotlib.figure import Figure

from ka.methods.attention import ATTENDED
from ka.methods.local import RADIUS
from ka.models.adaptive.front import Front
from ka.models.counts import count_parameters
from ka.models.psrt import PSRT
from ka.models.variants import Variant
from workbook.diagrams.network import BLUE, GREEN, LOW, ORANGE, PURPLE, SKY, VERMILLION, Panel, Step, count
from workbook.diagrams.parts import fresh_model, shape
from workbook.diagrams.sheet import BLACK, SLOT, TITLE, TWO_COLUMNS, WHITE, Sheet
from workbook.style import styled

SEES = {
    "window": "mean over {side} × {side} pixels of lr",
    "near": "near ones of {side} × {side} pixels of lr",
    "alike": "attention over {side} × {side} pixels of lr",
    "image": "mean over the image",
    "nothing": "not used",
    "pixel": "every pixel its own",
    "quadrant": "mean over each quadrant",
}
BODIES = {"PSRT": "PSRT's body, see its backbone", "residual": "lean body, see (b)", "": "no body"}


@styled
def front(row: Variant, dim: int = 48, language: str = "en", n_bands: int = 31, n_msi: int = 3) -> Figure:
    """The network of a row with kernels in front, or of its control: from images to the sharp one, and its body.

    What a row lacks stands as a dashed outline. An unknown language, no font for it, or a size that cannot be built is
    a `KAError`.
    """
    model = fresh_model(row, dim, n_bands, n_msi)
    sheet = Sheet(TWO_COLUMNS, 5.5, language)
    say = sheet.say
    kind = "kernels that adapt" if row.mixes or row.front == "window" else "a control of kernels that adapt"
    head = f"{{name}}: {kind}"
    sheet.write("head", 0.06, 0.1, say(head, name=row.name), TITLE + 1, "bold")
    counted = say("{model} live parameters; of each part at its right", model=count(model))
    sheet.write("counted", 0.06, 0.24, counted)
    _draw_regression(sheet, model, 0.06, 3.9)
    _draw_body(sheet, model, 4.3, 7.10)
    return sheet.figure


def _draw_regression(sheet: Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (a): features, their low-resolution form, a regression or a bank's weights, kernels applied."""
    say, row, real = sheet.say, model.row, model.front
    k = 2 * model.n_msi + row.features if real is not None else 0
    bands = shape("b s h w", model.dim, model.n_bands)
    at = "h w" if row.front == "pixel" else "h/r w/r"
    kernels = f"b k s {at} = b·{k}·{model.n_bands}·{at.replace(' ', '·')}"
    step, adapts = partial(Step, present=real is not None), row.front not in ("", "nothing")
    learned, weights = ("", "") if real is None else (count(real.learned), _numbers(real, row))
    side = 2 * (ATTENDED if row.attends else RADIUS) + 1
    looks = say(SEES[row.attends or row.front], side=side) if row.front else ""
    attention = None if real is None else real.attention
    middle = Step("products", say("products with lr, without 3×3 means"), "b k k+s h/r w/r", SKY, looks,
                  "" if attention is None else count(attention), height=SLOT, present=adapts)  # fmt: skip
    kernel, towards = ("ridge regression: kernels", "towards learned ones")
    if row.front == "nothing":
        kernel, towards = "kernels, the same everywhere", "learned"
    elif row.bank and not row.mixes:
        towards = "towards one and {n} by weights"
    elif real is not None and row.mixes:
        kernel, towards = "kernels: one, and {n} by weights", "learned"
        middle = Step("weights", say("conv 3×3, GELU, 2 × conv 1×1: weights"), f"b R {at}, R = {row.bank}", SKY, looks,
                      f"{_of_weights(real):,}", height=SLOT)  # fmt: skip
    steps = [
        Step("up", say("start, HR-MSI, and lr: LR-HSI"), bands, wide=True),
        step("learned", say("learned features"), f"b {row.features} h w", VERMILLION, "3 × conv 3×3, GELU", learned,
             height=SLOT),
        step("features", say("with the channels and their roots"), f"b k h w, k = {k}", BLACK),
        Step("low", say("blur, keep every r-th pixel"), "b k h/r w/r", SKY, present=adapts and row.front != "pixel"),
        middle,
        step("solve", say(kernel, n=row.bank), kernels if adapts else f"k s = {k}·{model.n_bands}", PURPLE,
             say(towards, n=row.bank), weights, height=SLOT),
        step("apply", say("times detail of features" if row.front == "pixel" else "upsample, times detail of features"),
             bands, ORANGE, say("+ the start" if row.mixes else "+ upsampled lr"), height=SLOT),
        Step("body", say(BODIES[row.body]), bands, GREEN, number=_psrt(model), present=bool(row.body)),
        Step("out", say("sharp image"), bands, wide=True),
    ]  # fmt: skip
    title = "(a) kernels mixed from a bank" if row.mixes else "(a) kernels regressed on features"
    Panel(sheet, "a", say(title), left, right, steps)


def _numbers(front: Front, row: Variant) -> str:
    """What makes kernels: some to fall back on or to mix, a ridge, and the mixture's weights where it regresses."""
    own = sum(parameter.numel() for parameter in front.parameters(recurse=False))
    return f"{own + (_of_weights(front) if row.bank and not row.mixes else 0):,}"


def _of_weights(front: Front) -> int:
    return count_parameters(front.look) + count_parameters(front.weigh)


def _psrt(model: PSRT) -> str:
    """Parameters of PSRT's body, "" without it."""
    return f"{sum(map(count_parameters, (model.head, model.blocks, model.tail))):,}" if model.row.body == "PSRT" else ""


def _draw_body(sheet: Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (b): the lean body."""
    say, body = sheet.say, model.body
    wide = f"b 2C h w, 2C = {2 * model.dim}"
    bands = shape("b s h w", model.dim, model.n_bands)
    step = partial(Step, present=body is not None)
    n = model.row.blocks
    steps = [
        step("image", say("image, HR-MSI, detail"), f"b 2s+m h w = b·{2 * model.n_bands + model.n_msi}·h·w", WHITE),
        step("head", say("head: conv 3×3"), wide, VERMILLION, number="" if body is None else count(body.head)),
        step("blocks", say("{n} blocks", n=n), wide, BLUE, "x + conv 3×3(GELU(conv 3×3(x)))",
             "" if body is None else count(body.blocks), height=SLOT),
        step("tail", say("tail: conv 3×3"), bands, VERMILLION, number="" if body is None else count(body.tail)),
        step("added", say("added to the image"), bands, WHITE, height=LOW),
    ]  # fmt: skip
    Panel(sheet, "b", say("(b) lean body"), left, right, steps)
