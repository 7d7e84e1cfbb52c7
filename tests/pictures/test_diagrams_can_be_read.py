"""Every diagram can be read: nothing overlaps, nothing is too small, no glyph is missing."""

import importlib.metadata
import itertools
import sys
from dataclasses import replace
from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
import torch
from drawn import faults, matches, real_parts, slots
from matplotlib.colors import to_rgb
from rows import rows_that_could_be

from ka.errors import KAError
from ka.models.counts import count_parameters
from ka.models.kernel_attention import KernelAttention
from ka.models.variants import VARIANTS, Variant, variant
from workbook.diagrams import ka_layer, network, overview, sheet, words
from workbook.diagrams.parts import SLOTS, chain

LANGUAGES = ("en", "zh")
FAST = (
    "layer_kav1",
    "layer_kav4",
    "layer_kav6",
    "layer_kav17",
    "backbone_kav1",
    "layer_kav6_zh",
    "backbone_psrt_misaligned_zh",
)
DIAGRAMS = [
    pytest.param(language, name, marks=() if name in FAST else pytest.mark.slow)
    for language in LANGUAGES
    for name in overview.all_diagrams(language)
]
OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


def rows_of_new_parts() -> list[Variant]:
    """Sizes, inputs and attentions that no row of the table puts together."""
    changes: list[tuple[str, dict[str, object]]] = [
        ("kav6", {"sa_among": "both", "size": 5}), ("kav8", {"sa_among": "channels"}),
        ("kav8_as_run", {"sa_among": "both"}), ("kav1", {"size": 5, "sa_among": "both", "layernorm": False}),
        ("conv3x3", {"normal_init": True, "bias": False, "activation": True, "layernorm": False}),
        ("kav3", {"layernorm": False, "size": 5}), ("kav4", {"layernorm": False}), ("kav5", {"layernorm": False}),
    ]  # fmt: skip
    return [replace(variant(name), name=f"mine{i}", **change) for i, (name, change) in enumerate(changes)]  # type: ignore[arg-type]


@pytest.mark.slow
def test_new_parts_can_be_read_in_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of_new_parts()
    for row in rows:
        monkeypatch.setitem(VARIANTS, row.name, row)
        layer = KernelAttention(24, row)
        assert sum(part.parameters for part in chain(row)) == count_parameters(layer)
    for language in LANGUAGES:
        assert faults(ka_layer.layers(rows, language=language)) == []
        assert faults(overview.overview([row.name for row in rows], language=language)) == []


@pytest.mark.parametrize(("language", "name"), DIAGRAMS)
def test_every_diagram_can_be_read(language: str, name: str) -> None:
    """Also: every glyph is there (matplotlib warns of missing ones, and a warning is an error here)."""
    figure = overview.all_diagrams(language)[name]()
    assert faults(figure) == []
    width = sheet.ONE_COLUMN if name.startswith("layer") else sheet.TWO_COLUMNS
    assert figure.get_size_inches()[0] == pytest.approx(width)
    assert figure.get_size_inches()[1] < 9.5  # a page


def test_a_missing_glyph_would_be_noticed() -> None:
    figure = ka_layer.layer(variant("kav4"))
    figure.axes[0].texts[0].set_text("卷")
    with pytest.warns(UserWarning, match="missing from font"):
        faults(figure)


def test_illegible_would_be_noticed() -> None:
    figure = ka_layer.layer(variant("kav4"))
    by_id = {str(text.get_gid()): text for text in figure.axes[0].texts}
    by_id["kav4.note"].set_fontsize(5)
    by_id["kav4.counted"].set_text("far too long " * 9)
    by_id["kav4.shape.SA.windows"].set_x(0.35)
    moved = [gid for gid in by_id if gid.startswith("present.kav4.fusion") and gid.endswith(".0")]
    by_id[moved[0]].set_x(3.3)
    found = " ".join(faults(figure))
    assert faults(ka_layer.layer(variant("kav4"))) == []
    for fault in ("note is too small", "counted leaves the figure", "leaves its box", "a wire crosses"):
        assert fault in found


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "language"), [(64, "en"), (128, "en"), (128, "zh")])
def test_other_widths_fit_too(dim: int, language: str) -> None:
    for draw in (
        partial(ka_layer.layer, variant("kav17")), partial(ka_layer.layer, variant("kav6")),
        partial(network.backbone, variant("kav4"), n_bands=200, n_msi=4),
        partial(overview.overview, ["kav4", "kav6"]),
    ):  # fmt: skip
        assert faults(draw(dim=dim, language=language)) == []


def test_rows_that_are_not_in_the_table_can_be_drawn() -> None:
    for row in itertools.islice(rows_that_could_be(), 0, None, 197):
        assert faults(ka_layer.layer(row, dim=16)) == [], row


def test_a_sheet_of_several() -> None:
    rows = [variant(name) for name in ("kav3", "kav4", "kav5_as_run", "psrt", "kav11")]
    figure = ka_layer.layers(rows, columns=3)
    assert faults(figure) == []
    assert figure.get_size_inches()[0] == pytest.approx(3 * sheet.ONE_COLUMN)
    for row in rows:
        assert matches(slots(figure, "present", row.name), real_parts(row))


def test_drawing_changes_nothing_else() -> None:
    state, settings = torch.get_rng_state(), dict(mpl.rcParams)
    ka_layer.layer(variant("kav6"), language="zh")
    network.backbone(variant("kav6"), language="zh")
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(mpl.rcParams) == settings
    assert "zhplot" not in sys.modules


def test_without_a_chinese_font_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(words.fontManager, "ttflist", [])
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(KAError, match="pip install zhplot"):
        ka_layer.layer(variant("kav1"), language="zh")
    assert words.Words("en").font() == {}


def test_an_installed_font_serves_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "WenQuanYi Micro Hei"

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(words.fontManager, "ttflist", [Entry])
    assert "fname" in words.Words("zh").font()
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert words.Words("zh").font()["family"][0] == "WenQuanYi Micro Hei"


def test_mistakes() -> None:
    with pytest.raises(KAError, match="choose 'en' or 'zh'"):
        overview.overview(["kav1"], language="fr")
    with pytest.raises(KAError, match="choose 'en' or 'zh'"):
        overview.all_diagrams("fr")
    with pytest.raises(KAError, match="at least one"):
        overview.overview([])
    with pytest.raises(KAError, match="at least one"):
        ka_layer.layers([])
    with pytest.raises(KAError, match="variant 'kav99' is unknown"):
        overview.overview(["kav99"])
    with pytest.raises(KAError, match="dim=20"):
        ka_layer.layer(variant("kav3"), dim=20)


def test_colours_are_okabe_and_itos() -> None:
    assert set(SLOTS.values()) <= OKABE_ITO
    for colour in SLOTS.values():  # black text on the fill: contrast of at least 7:1
        fill = np.array(sheet._tint(colour))
        linear = np.where(fill <= 0.04045, fill / 12.92, ((fill + 0.055) / 1.055) ** 2.4)
        assert (linear @ (0.2126, 0.7152, 0.0722) + 0.05) / 0.05 > 7
        assert sheet._tint(colour) != to_rgb(colour)
