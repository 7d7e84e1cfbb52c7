"""Variants side by side, a row each, and every diagram by name: what `make figures` draws.

Nothing in this folder knows a variant by name: `parts.chain` turns a row of the table into parts on one fixed grid of
slots, and the figures draw what it says. A part that a row lacks keeps its place as a dashed outline, so that diagrams
of two variants differ exactly where the variants do. Shapes follow from `dim`; parameters are counted on real modules.
Sizes are for print: no text is below 6 pt.
"""

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from ka.errors import KAError
from ka.models.counts import count_parameters
from ka.models.variants import PSRT_ROWS, VARIANTS, Variant, variant
from workbook.diagrams.front import front
from workbook.diagrams.ka_layer import layer
from workbook.diagrams.network import backbone
from workbook.diagrams.parts import SLOTS, chain, fresh_model
from workbook.diagrams.sheet import BLACK, PAGE, TEXT, TITLE, TWO_COLUMNS, Sheet
from workbook.diagrams.words import Words
from workbook.style import styled

#: The study's eleven.
STUDY = tuple(f"kav{i}" for i in range(1, 12))

#: Columns: kernels in front of the body, the shuffle, and the slots of the KA layer.
HEADS = {column: column for column in ("front", "shuffle", *SLOTS)} | {
    "front": "front,\nsees",
    "window kernels": "window\nkernels",
    "reweighting": "re-\nweight",
    "global kernel, raw": "global,\nraw",
    "SA": "kernel\nSA",
    "global kernel, attended": "global,\nafter SA",
    "widening": "widen",
    "second convolution": "2nd conv\non",
}


@styled
def overview(names: Sequence[str], dim: int = 48, language: str = "en") -> Figure:
    """Variants side by side: a row each, a column per slot of the KA layer, and live parameters.

    A filled cell holds the part's setting; a dashed outline stands for a part that the variant lacks. `names` are keys
    of `ka.VARIANTS`, top to bottom; `language` is `en` or `zh`. No names, an unknown one, an unknown language, no font
    for it, or a `dim` that cannot be built is a `KAError`.
    """
    rows = [variant(name) for name in names]
    if not rows:
        raise KAError("no variant to draw; give at least one name of ka.VARIANTS")
    label, count, head = 0.06 + 0.058 * max(map(len, names)), 0.62, 0.36
    pitch = min(0.3, (PAGE - head - 0.06) / len(rows))
    cell = min(0.25, pitch - 0.025)
    step = (TWO_COLUMNS - 0.08 - label - count) / len(HEADS)
    sheet = Sheet(TWO_COLUMNS, head + pitch * len(rows) + 0.06, language)
    say = sheet.say
    for j, column in enumerate(HEADS):
        centre = 0.04 + label + (j + 0.5) * step
        sheet.write(f"head.{column}", centre, head / 2, say(HEADS[column]), TEXT, "bold", ha="center")
    end = TWO_COLUMNS - 0.04
    sheet.write("head.live", end, head / 2, say("live\nparameters"), TEXT, "bold", ha="right")
    for i, row in enumerate(rows):
        top = head + i * pitch
        middle = top + cell / 2
        sheet.write(f"{row.name}.name", 0.04, middle, row.name, TITLE, "bold")
        shuffled = {"none": "", "aligned": say("aligned"), "misaligned": say("mis-\naligned")}[row.shuffle]
        model = fresh_model(row, dim)
        k = 2 * model.n_msi + row.features
        size = f"R = {row.bank}" if row.mixes else f"k{k}, R{row.bank}" if row.bank else f"k = {k}"
        fronted = f"{say(row.attends or row.front)}\n{size}" if row.front else ""
        texts = {"front": fronted, "shuffle": shuffled} | settings(row, dim, language)
        why = {"": say("no KA"), "identity": say("identity")}.get(row.kernels, "")
        why = {"": say("no body"), "residual": say("{n} plain\nblocks", n=row.blocks)}.get(row.body, why)
        for j, column in enumerate(HEADS):
            start, text = 0.04 + label + j * step, texts[column]
            span, absent = (start + 0.02, start + step - 0.02, top, cell), why if column == "window kernels" else ""
            sheet.cell(f"{row.name}.{column}", bool(text), span, SLOTS.get(column, BLACK), text or absent)
        sheet.number(f"{row.name}.live", end, middle, f"{count_parameters(model):,}", ha="right")
    return sheet.figure


def settings(row: Variant, dim: int, language: str) -> dict[str, str]:
    """The setting of every slot in a word or two, "" where the row lacks it."""
    settings = dict.fromkeys(SLOTS, "")
    for part in chain(row, dim, language):
        settings[part.slot] = settings[part.slot] or part.short
    return settings


def all_diagrams(language: str = "en") -> dict[str, Callable[[], Figure]]:
    """Every diagram by name: what `make figures` draws and saves.

    Overviews, of the study's rows, of all with PSRT's network, of those with a front or a lean body (together they do
    not fit a page); a backbone for every way to shuffle, with KA and without (named after the first row that has it);
    the network of every row whose kernels adapt, and of its controls; the KA layer of every row that has one. Names end
    in `_zh` for Chinese; an unknown language is a `KAError`.
    """
    end = "" if Words(language).language == "en" else f"_{language}"
    fronts = [row for row in VARIANTS.values() if row.needs_lr]
    drawn: dict[str, Callable[[], Figure]] = {
        f"overview_study{end}": partial(overview, STUDY, language=language),
        f"overview_all{end}": partial(overview, list(PSRT_ROWS), language=language),
        f"overview_fronts{end}": partial(overview, [row.name for row in fronts], language=language),
    }
    bodies: dict[tuple[str, bool], Variant] = {}
    for row in PSRT_ROWS.values():
        bodies.setdefault((row.shuffle, row.has_ka), row)
    drawn |= {f"backbone_{row.name}{end}": partial(backbone, row, language=language) for row in bodies.values()}
    drawn |= {f"front_{row.name}{end}": partial(front, row, language=language) for row in fronts}
    rows = [row for row in PSRT_ROWS.values() if row.has_ka]
    return drawn | {f"layer_{row.name}{end}": partial(layer, row, language=language) for row in rows}
