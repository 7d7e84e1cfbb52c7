"""The diagrams against the real layers: which parts, in which order, with which shapes; and that they can be read."""

import importlib.metadata
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox
from torch import Tensor, nn

import ka.models.psrt
from ka.errors import KAError
from ka.models.counts import count_parameters, parameter_count
from ka.models.kernel_attention import KernelAttention
from ka.models.psrt import PSRT
from ka.models.variants import N_WINDOWS, VARIANTS, Variant, variant
from workbook.diagrams import diagrams
from workbook.diagrams import parts as diagram_parts
from workbook.paths import STYLE
from workbook.style import encoded

LANGUAGES = ("en", "zh")
DIAGRAMS = [(language, name) for language in LANGUAGES for name in diagrams.all_diagrams(language)]
OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
SLOT_OF_STAGE = {
    "window kernels": {"window-kernels"},
    "reweighting": {"reweighting"},
    "global kernel": {"global-kernel-raw", "global-kernel-attended"},
    "SA": {"SA"},
    "SE": {"SE"},
    "widening": {"widening"},
}


def a_layer(row: Variant, c: int = 8) -> KernelAttention:
    layer = KernelAttention(c, row)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def image(c: int = 8) -> Tensor:
    return torch.randn(2, c, 16, 24)


@cache
def drawn_layer(name: str) -> Figure:
    """The diagram of a variant with c = 8, to be read, not changed."""
    return diagrams.layer(variant(name), dim=16)


def real_parts(row: Variant) -> list[set[str]]:
    """What a real layer does, in order; each as the slots it may stand in."""
    if not row.has_ka:
        return []
    layer, x = a_layer(row), image()
    y = layer(x)
    if torch.equal(y, x):
        return []
    parts = [SLOT_OF_STAGE[name] for name, _, _ in layer.stages(x)]
    parts.append({"second-convolution"})
    parts += [{"fusion"}] * (layer.fusion is not None)
    return parts + [{"GELU"}] * bool(y.min() > -0.2)  # which no linear layer keeps to


def boxes(figure: Figure, state: str) -> list[tuple[str, float, Patch]]:
    """(part, top, patch) of what a figure draws as present or absent, from the top."""
    found = [(str(patch.get_gid()), patch) for patch in figure.axes[0].patches]
    kept = [(gid.split(".", 1)[1], patch) for gid, patch in found if gid.startswith(f"{state}.")]
    placed = [(gid, float(patch.get_extents().ymax), patch) for gid, patch in kept]
    return sorted(placed, key=lambda part: -part[1])


def slots(figure: Figure, state: str, name: str) -> list[str]:
    """Slots of the KA layer of one variant in a figure, from the top."""
    gids = [gid.split(".") for gid, _, _ in boxes(figure, state)]
    return list(dict.fromkeys(gid[1] for gid in gids if gid[0] == name and len(gid) > 2))


def matches(drawn: list[str], real: list[set[str]]) -> bool:
    return len(drawn) == len(real) and all(slot in allowed for slot, allowed in zip(drawn, real, strict=True))


def numbers(label: str) -> list[int]:
    """Sizes of a shape's label, for the test's image: b = 2, h = 16, w = 24."""
    axes, sizes = label.split(" = ")
    assert len(axes.split()) == len(sizes.split("·"))
    return [{"b": 2, "h": 16, "w": 24}.get(size) or int(size) for size in sizes.split("·")]


def texts(figure: Figure) -> dict[str, str]:
    found = [(str(text.get_gid()), text.get_text()) for text in figure.axes[0].texts]
    assert len({gid for gid, _ in found}) == len(found), "ids are unique"
    return dict(found)


@pytest.mark.parametrize("name", VARIANTS)
def test_drawn_parts_are_those_of_the_real_layer_in_its_order(name: str) -> None:
    figure = drawn_layer(name)
    drawn, absent = slots(figure, "present", name), slots(figure, "absent", name)
    assert matches(drawn, real_parts(variant(name))), drawn
    wanted = [slot.replace(", ", "-").replace(" ", "-") for slot in diagram_parts.SLOTS]
    assert set(drawn) | set(absent) == set(wanted)
    assert drawn == [slot for slot in wanted if slot in drawn]


def test_a_wrong_drawing_would_be_noticed() -> None:
    drawn = slots(drawn_layer("kav6"), "present", "kav6")
    assert not any(matches(drawn, real_parts(variant(other))) for other in ("kav4", "kav7", "kav11", "kav17", "psrt"))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_second_convolution_is_the_real_one(name: str) -> None:
    row = variant(name)
    cells = [part for part in diagram_parts.chain(row, 16) if part.slot == "second convolution"]
    on_windows, on_image, on_image_by_global = (part.present for part in cells)
    if not real_parts(row):
        assert not any(part.present for part in cells)
        return
    layer = a_layer(row)
    windows, folded, _ = layer.folded(image())
    assert on_windows == (windows is not None)
    assert (on_image or on_image_by_global) == (folded is not None)
    fused = on_windows + row.n_windows * on_image + on_image_by_global
    assert fused == (layer.fusion.in_features // 8 if layer.fusion is not None else 1)


def test_every_layer_stands_on_the_same_grid() -> None:
    """Slots of every variant lie at the same height; cells differ only where SA or SE joins two lanes."""
    grids = set()
    for name in VARIANTS:
        drawn = [part for state in ("present", "absent") for part in boxes(drawn_layer(name), state)]
        mine = [(gid.split(".")[1], top) for gid, top, _ in drawn if gid.startswith(f"{name}.")]
        grids.add(frozenset((slot.replace("without", "after"), round(top, 3)) for slot, top in mine))  # LN1
    assert len(grids) == 1


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row.has_ka])
def test_shapes_on_the_arrows_are_those_of_the_real_tensors(name: str) -> None:
    row = variant(name)
    written = {
        gid.removeprefix(f"{name}.shape."): numbers(label)
        for gid, label in texts(drawn_layer(name)).items()
        if ".shape." in gid
    }
    layer, x = a_layer(row), image()
    real: dict[str, list[int]] = {}
    joined: list[tuple[int, ...]] = []
    seen: tuple[Tensor | None, Tensor | None] = (None, None)
    if layer.global_kernel is not None:
        layer.global_kernel.mix.register_forward_pre_hook(lambda _, inputs: joined.append(inputs[0].shape))
    for stage, windows, glob in layer.stages(x) if layer.window_kernels is not None else ():
        slot = stage.replace(" ", "-")
        if stage == "global kernel":
            slot = f"global-kernel-{row.global_from}"
            s, o, u, v, wide = joined[0]
            real[f"{slot}.joined"] = [s, o, wide, u, v]
        for lane, tensor, old in (("windows", windows, seen[0]), ("global", glob, seen[1])):
            if tensor is not None and tensor is not old:
                real[f"{slot}.{lane}"] = list(tensor.shape)
        seen = windows, glob
    # A sample axis of 1, a set of one kernel and the missing output axis of pooled kernels are not written.
    real = {slot: [size for size in sizes if size > 1] for slot, sizes in real.items()}
    if real:
        after = {slot for slot in written if slot.split(".")[0] in ("second-convolution", "fusion", "GELU")}
        assert all(written[slot] == [2, 8, 16, 24] for slot in after if "second" not in slot)
        maps = [written[slot] for slot in after if "second" in slot]
        assert all(sizes[:1] + sizes[2:] == [2, 16, 24] for sizes in maps)
        assert sum(sizes[1] for sizes in maps) == (8 if layer.fusion is None else layer.fusion.in_features)
        assert list(layer(x).shape) == [2, 8, 16, 24]
        written = {slot: sizes for slot, sizes in written.items() if slot not in after}
    assert written == real


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row.sa and row.has_ka])
def test_taps_and_heads_of_kernel_sa(name: str) -> None:
    layer, x = a_layer(variant(name)), image()
    stages = {stage: layer._join(windows, glob if "+" in layer.row.sa or layer.row.sa == "scrambled" else None)
              for stage, windows, glob in layer.stages(x)}  # fmt: skip
    into = list(stages)[list(stages).index("SA") - 1]
    assert layer.sa is not None
    _, _, heads, taps, width = layer.sa.heads(stages[into]).shape
    (part,) = [part for part in diagram_parts.chain(variant(name), 16) if part.slot == "SA" and part.present]
    among_taps, among_channels = f"{taps} taps × {heads * width}", f"{width} channels × {taps}"
    said = {"taps": among_taps, "channels": among_channels, "both": f"{among_taps} + {among_channels}"}
    assert part.detail.startswith(said[layer.row.sa_among])
    assert ("channels" in part.detail) == (layer.row.sa_among != "taps")
    assert f"{heads} heads" in part.title


def test_gates_of_the_reweighting() -> None:
    layer, gates = a_layer(variant("kav17")), []
    assert layer.reweight is not None
    layer.reweight.contract.register_forward_hook(lambda *call: gates.append(tuple(call[2].shape)))
    layer(image())
    (part,) = [part for part in diagram_parts.chain(variant("kav17"), 16) if part.slot == "reweighting"]
    assert gates == [(2, N_WINDOWS)]
    assert part.detail.endswith(f"b × {N_WINDOWS}")


def test_shapes_by_hand() -> None:
    assert diagram_parts.shape("n c c k k", 48) == "n c c k k = 4·24·24·3·3"
    assert diagram_parts.shape("b n·c h w", 64) == "b n·c h w = b·128·h·w"
    assert diagram_parts.shape("n c c k k", 48, n_windows=1, size=5) == "n c c k k = 1·24·24·5·5"
    assert diagram_parts.shape("b s+m h w", 48, n_bands=200, n_msi=4) == "b s+m h w = b·204·h·w"


@pytest.mark.parametrize(
    ("name", "live"),
    [
        ("kav1", 20_328), ("kav4", 32_640), ("kav5", 24_264), ("kav9", 5_976), ("kav17", 26_216), ("conv3x3", 5_208),
        ("conv5x5", 14_424), ("kav1_outer", 7_128), ("kav1_depthwise", 5_928), ("kav10_both_sa", 25_464),
        ("kav10_5x5", 62_328), ("kav7_se_each", 30_264), ("kav6_no_global_se", 29_568),
    ],
)  # fmt: skip
def test_parameters_of_the_parts_add_up(name: str, live: int) -> None:
    parts = diagram_parts.chain(variant(name))
    assert sum(part.parameters for part in parts) == live
    counted = texts(diagrams.layer(variant(name)))
    assert f"{live:,} in this layer" in counted[f"{name}.counted"]
    assert f"{parameter_count(name).live:,} in the model" in counted[f"{name}.counted"]


def said(name: str, language: str = "en") -> dict[str, tuple[str, str]]:
    """Title and detail of the present parts of a variant's layer, by slot and lane."""
    parts = diagram_parts.chain(variant(name), 48, language)
    return {f"{part.slot}, {part.lane}": (part.title, part.detail) for part in parts if part.present}


def test_an_ordinary_convolution_is_called_one() -> None:
    for name, k in (("conv3x3", 3), ("conv5x5", 5)):
        assert said(name) == {
            "window kernels, windows": ("kernel", f"{k}×{k}, learned, default start"),
            "second convolution, windows": ("conv on image", "bias"),
        }
        (conv,) = [part for part in diagram_parts.chain(variant(name)) if part.present and "conv" in part.title]
        assert conv.parameters == 24
        assert texts(drawn_layer(name))[f"{name}.note"] == "its kernel is the same for every image"
    assert said("conv5x5", "zh")["window kernels, windows"] == ("卷积核", "5×5，可学习，默认初始化")


def test_what_rows_of_our_own_change_is_said() -> None:
    assert said("kav10_5x5")["window kernels, windows"] == ("window kernels", "5×5, learned, default start")
    assert said("kav10_5x5")["SA, windows"][1] == "100 taps × 24, per filter"
    assert said("kav10_channel_sa")["SA, windows"] == ("kernel SA, 4 heads", "6 channels × 36, per filter")
    assert said("kav10_both_sa")["SA, windows"][1] == "36 taps × 24 + 6 channels × 36"
    assert said("kav1_outer")["widening, windows"] == ("widening", "outer product, 2 × (24 → 24)")
    assert said("kav1_depthwise")["widening, windows"] == ("widening", "output i sees input i alone")
    assert said("kav7_se_each")["SE, windows"][0] == "SE, one per window"
    assert said("kav6_no_global_se")["SE, windows"][0] == "SE, shared"
    assert said("kav6_global_after")["SE, both"][0] == "SE, shared by windows and global"
    assert "global kernel, attended, global" in said("kav6_global_after")
    assert said("kav10_both_sa", "zh")["SA, windows"][1] == "36 个点 × 24 + 6 个通道 × 36"
    for name, row in VARIANTS.items():
        input_ = "input, after LN1" if row.layernorm else "input, without LN1"
        state = "present" if row.has_ka else "absent"
        assert texts(drawn_layer(name))[diagrams._gid(f"{state}.{name}.{input_}.0")] == input_


def rows_that_could_be() -> Iterator[Variant]:
    """Every row that the table accepts, not only those that are in it."""
    fields = ("kernels", "sa", "se", "widen", "global_from", "global_se", "second", "activation")
    settings = itertools.product(
        ("learned", "reweighted", "pooled"), ("", "windows", "windows+global", "global+windows"),
        ("", "shared", "per window"), ("", "linear", "repeat"), ("", "raw", "attended"), ("", "shared", "own"),
        ("image", "windows", "windows+image", "global"), (False, True),
    )  # fmt: skip
    for setting in settings:
        try:
            row = replace(variant("kav19"), name="mine", **dict(zip(fields, setting, strict=True)))
        except KAError:
            continue
        # One SE per window has none for a global kernel, and a shared one of no SE is none.
        if row.global_se != "shared" or row.se == "shared":
            yield row


def test_a_new_row_is_drawn_as_its_layer_runs() -> None:
    x, tried = image(4), 0
    for row in itertools.islice(rows_that_could_be(), 0, None, 7):
        parts = [part.slot.split(",")[0] for part in diagram_parts.chain(row, 8) if part.present]
        stages = [stage for stage, _, _ in KernelAttention(4, row).stages(x)]
        assert list(dict.fromkeys(parts))[: len(stages)] == stages, row
        tried += 1
    assert tried > 50


def rows_of_new_parts() -> list[Variant]:
    """Sizes, inputs and attentions that no row of the table puts together."""
    changes: list[tuple[str, dict[str, object]]] = [
        ("kav6", {"sa_among": "both", "size": 5}), ("kav8", {"sa_among": "channels"}),
        ("kav8_as_run", {"sa_among": "both"}), ("kav1", {"size": 5, "sa_among": "both", "layernorm": False}),
        ("conv3x3", {"normal_init": True, "bias": False, "activation": True, "layernorm": False}),
        ("kav3", {"layernorm": False, "size": 5}), ("kav4", {"layernorm": False}), ("kav5", {"layernorm": False}),
    ]  # fmt: skip
    return [replace(variant(name), name=f"mine{i}", **change) for i, (name, change) in enumerate(changes)]  # type: ignore[arg-type]


def test_new_parts_can_be_read_in_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of_new_parts()
    for row in rows:
        monkeypatch.setitem(VARIANTS, row.name, row)
        layer = KernelAttention(24, row)
        assert sum(part.parameters for part in diagram_parts.chain(row)) == count_parameters(layer)
    for language in LANGUAGES:
        assert faults(diagrams.layers(rows, language=language)) == []
        assert faults(diagrams.overview([row.name for row in rows], language=language)) == []


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "psrt_noshuffle", "kav6"])
def test_the_sar_block_moves_pixels_where_the_drawing_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    within: list[str] = []
    events: list[str] = []

    def recorded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: object) -> Tensor:
            events.append(function.__name__ + (f" in {within[-1]}" if within else ""))
            return function(*args)

        return call

    def entered(name: str, *_: object) -> None:
        events.append(name)
        within.append(name)

    def left(*_: object) -> None:
        within.pop()

    for function in (ka.models.psrt.shuffle, ka.models.psrt.unshuffle):
        monkeypatch.setattr(ka.models.psrt, function.__name__, recorded(function))
    block = ka.models.psrt.SaRBlock(16, 4, variant(name))
    for i, layer in enumerate(block.layers, 1):
        layer.register_forward_pre_hook(partial(entered, f"L{i}"))
        layer.register_forward_hook(left)
    block(torch.randn(1, 8, 8, 16))

    figure = diagrams.backbone(variant(name), dim=16)
    ends = ("in", "sum", "out")
    drawn = [gid.removeprefix("b.") for gid, _, _ in boxes(figure, "present") if gid.startswith("b.")]
    assert [step for step in drawn if step not in ends] == [event for event in events if " in " not in event]
    written = texts(figure)
    moved = [event for event in events if " in " in event]
    assert written.get("present.c.move.1", "") == ", ".join(moved)
    assert ("absent.c.move.0" in written) == (not moved)
    assert ("c.misaligned" in written) == bool(moved)


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "kav4"])
def test_shapes_of_the_backbone(name: str) -> None:
    model = PSRT(variant(name), n_bands=5, n_msi=2, dim=16)
    block, layer = model.blocks, model.layers()[0]
    watched = {
        "a.head": model.head, "a.block0": block[0], "a.block1": block[1], "a.tail": model.tail, "c.LN1": layer.norm1,
        "c.attention": layer.attn, "c.LN2": layer.norm2, "c.MLP": layer.mlp, "b.L1": layer, "c.sum2": layer,
    }  # fmt: skip
    if layer.ka is not None:
        watched["c.KA"] = layer.ka
    real: dict[str, list[int]] = {}
    taken: dict[str, list[int]] = {}

    def watch(tag: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            taken[tag], real[tag] = list(inputs[0].shape), list(output.shape)

        return hook

    for tag, module in watched.items():
        module.register_forward_hook(watch(tag))
    up = torch.rand(2, 5, 16, 24)
    out = model(up, torch.rand(2, 2, 16, 24))
    real |= {"a.up": list(up.shape), "a.concatenate": taken["a.head"], "a.LeakyReLU": real["a.tail"],
             "a.sum": list(out.shape), "b.in": taken["b.L1"], "c.in": taken["c.LN1"], "c.split": taken["c.attention"],
             "c.sum1": taken["c.LN2"]}  # fmt: skip
    body = real["c.LN1"]
    branches = []
    checked = 0
    for gid, label in texts(diagrams.backbone(variant(name), 16, n_bands=5, n_msi=2)).items():
        if ".shape." not in gid:
            continue
        panel, _, source, *_ = gid.split(".")
        if label.startswith("b m"):
            assert numbers(label) == [2, 2, 16, 24]
        elif " c h w" in label:
            branches.append(numbers(label))
        else:
            assert numbers(label) == real.get(f"{panel}.{source}", body), gid
            checked += 1
    assert checked > 20
    assert branches == ([taken["c.KA"], real["c.KA"]] if layer.ka is not None else [])


def test_the_backbone_counts_the_real_parts() -> None:
    written = texts(diagrams.backbone(variant("kav4")))
    model = PSRT(variant("kav4"))
    layer = model.layers()[0]
    parts = {"a.head": model.head, "a.tail": model.tail, "a.block0": model.blocks[0], "b.L2": layer, "c.KA": layer.ka,
             "c.attention": layer.attn, "c.LN1": layer.norm1, "c.MLP": layer.mlp}  # fmt: skip
    for tag, module in parts.items():
        assert module is not None
        assert written[f"present.{tag}.number"] == f"{count_parameters(module):,}", tag
    assert "998,431" in written["counted"]
    assert "4 heads × 6" in written.values()
    assert "8 heads × 6" in texts(diagrams.backbone(variant("psrt"))).values()


def test_the_overview_is_the_table() -> None:
    figure = diagrams.overview(list(VARIANTS))
    written = texts(figure)
    present, absent = ([gid.split(".")[:2] for gid, _, _ in boxes(figure, state)] for state in ("present", "absent"))
    order = [slot.replace(", ", "-").replace(" ", "-") for slot in diagram_parts.SLOTS]
    for name, row in VARIANTS.items():
        drawn = [slot for owner, slot in present if owner == name]
        assert matches(sorted(set(drawn) - {"shuffle"}, key=order.index), real_parts(row)), name
        assert ("shuffle" in drawn) == (row.shuffle != "none")
        assert len(drawn) + sum(owner == name for owner, _ in absent) == len(order) + 1
        assert written[f"{name}.live"] == f"{count_parameters(ka.build(name)):,}"
    cells = {gid: text.replace("\n", " ") for gid, text in written.items()}
    assert cells["present.kav3.SE.0"] == "per window"
    assert cells["present.kav6.second-convolution.0"] == "image, 5 kernels"
    assert cells["present.psrt_misaligned.shuffle.0"] == "mis- aligned"
    assert cells["present.conv5x5.window-kernels.0"] == "learned, one 5×5"
    assert cells["present.conv5x5.second-convolution.0"] == "image, bias"
    assert cells["present.kav10_5x5.window-kernels.0"] == "learned, 5×5"
    assert cells["present.kav11_no_ln.second-convolution.0"] == "no LN1, 5 kernels"
    assert cells["present.kav10_channel_sa.SA.0"] == "windows, channels"
    assert cells["present.kav6_no_global_se.SE.0"] == "shared, windows"
    looks = [
        tuple((gid.replace(name, ""), text) for gid, text in cells.items() if f".{name}." in gid) for name in VARIANTS
    ]
    assert len(set(looks)) == len(VARIANTS)  # no two rows look the same


def inside(inner: Bbox, outer: Bbox) -> bool:
    (a, b, c, d), (left, low, right, high) = inner.extents.tolist(), outer.extents.tolist()
    return a >= left and b >= low and c <= right and d <= high


def touching(boxes: list[Bbox], others: list[Bbox]) -> list[tuple[int, int]]:
    """Pairs (i, j) where box i and other j share area."""
    one, two = (np.array([box.extents for box in some])[:, :, None] for some in (boxes, others))
    x0, y0, x1, y1 = one.swapaxes(0, 1)
    u0, v0, u1, v1 = two.swapaxes(0, 1)
    meet = (x0 < u1.T) & (x1 > u0.T) & (y0 < v1.T) & (y1 > v0.T)
    return [(int(i), int(j)) for i, j in np.argwhere(meet)]


def faults(figure: Figure) -> list[str]:
    """What a reader would stumble over."""
    figure.set_dpi(200)
    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    with matplotlib.style.context(STYLE):
        written = [(str(text.get_gid()), text, text.get_window_extent(renderer)) for text in axes.texts]
    outlines = [(str(patch.get_gid()), patch.get_extents()) for patch in axes.patches]
    parts = [(gid, box) for gid, box in outlines if gid.startswith(("present", "absent", "legend"))]
    wires = [w.get_transform().transform_path(w.get_path()) for w in axes.lines if w.get_gid() == "wire"]
    found = [f"{gid} is too small" for gid, text, _ in written if text.get_fontsize() < 6]
    found += [f"{gid} leaves the figure" for gid, _, box in written if not inside(box, figure.bbox)]
    texts_at = [box for _, _, box in written]
    found += [f"{written[i][0]} overlaps {written[j][0]}" for i, j in touching(texts_at, texts_at) if i < j]
    for i, j in touching(texts_at, [outline for _, outline in parts]):
        (gid, _, box), (part, outline) = written[i], parts[j]
        if not inside(box, outline):
            found.append(f"{gid} runs into {part}")
    outline_of = dict(parts)
    for gid, text, box in written:
        home = gid.rpartition(".")[0]
        if home in outline_of and not inside(box, outline_of[home]):
            found.append(f"{gid} leaves its box")
        if any(wire.intersects_bbox(box, filled=False) for wire in wires):
            found.append(f"a wire crosses {gid}: {text.get_text()}")
    return found


@pytest.mark.parametrize(("language", "name"), DIAGRAMS)
def test_every_diagram_can_be_read(language: str, name: str) -> None:
    """Also: every glyph is there (matplotlib warns of missing ones, and a warning is an error here)."""
    figure = diagrams.all_diagrams(language)[name]()
    assert faults(figure) == []
    width = diagrams.ONE_COLUMN if name.startswith("layer") else diagrams.TWO_COLUMNS
    assert figure.get_size_inches()[0] == pytest.approx(width)
    assert figure.get_size_inches()[1] < 9.5  # a page


def test_a_missing_glyph_would_be_noticed() -> None:
    figure = diagrams.layer(variant("kav4"))
    figure.axes[0].texts[0].set_text("卷")
    with pytest.warns(UserWarning, match="missing from font"):
        faults(figure)


def test_illegible_would_be_noticed() -> None:
    figure = diagrams.layer(variant("kav4"))
    by_id = {str(text.get_gid()): text for text in figure.axes[0].texts}
    by_id["kav4.note"].set_fontsize(5)
    by_id["kav4.counted"].set_text("far too long " * 9)
    by_id["kav4.shape.SA.windows"].set_x(0.35)
    moved = [gid for gid in by_id if gid.startswith("present.kav4.fusion") and gid.endswith(".0")]
    by_id[moved[0]].set_x(3.3)
    found = " ".join(faults(figure))
    assert faults(diagrams.layer(variant("kav4"))) == []
    for fault in ("note is too small", "counted leaves the figure", "leaves its box", "a wire crosses"):
        assert fault in found


@pytest.mark.parametrize(("dim", "language"), [(64, "en"), (128, "en"), (128, "zh")])
def test_other_widths_fit_too(dim: int, language: str) -> None:
    for draw in (
        partial(diagrams.layer, variant("kav17")), partial(diagrams.layer, variant("kav6")),
        partial(diagrams.backbone, variant("kav4"), n_bands=200, n_msi=4),
        partial(diagrams.overview, ["kav4", "kav6"]),
    ):  # fmt: skip
        assert faults(draw(dim=dim, language=language)) == []


def test_rows_that_are_not_in_the_table_can_be_drawn() -> None:
    for row in itertools.islice(rows_that_could_be(), 0, None, 197):
        assert faults(diagrams.layer(row, dim=16)) == [], row


def test_a_sheet_of_several() -> None:
    rows = [variant(name) for name in ("kav3", "kav4", "kav5_as_run", "psrt", "kav11")]
    figure = diagrams.layers(rows, columns=3)
    assert faults(figure) == []
    assert figure.get_size_inches()[0] == pytest.approx(3 * diagrams.ONE_COLUMN)
    for row in rows:
        assert matches(slots(figure, "present", row.name), real_parts(row))


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_drawn_twice_it_is_the_same_file(kind: str, language: str) -> None:
    for draw in (partial(diagrams.layer, variant("kav4")), partial(diagrams.overview, ["kav17"])):
        first, second = (encoded(draw(language=language), kind) for _ in range(2))
        assert first == second
        assert len(first) > 5_000


def test_drawing_changes_nothing_else() -> None:
    state, settings = torch.get_rng_state(), dict(mpl.rcParams)
    diagrams.layer(variant("kav6"), language="zh")
    diagrams.backbone(variant("kav6"), language="zh")
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(mpl.rcParams) == settings
    assert "zhplot" not in sys.modules


def test_without_a_chinese_font_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(diagram_parts.fontManager, "ttflist", [])
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(KAError, match="pip install zhplot"):
        diagrams.layer(variant("kav1"), language="zh")
    assert diagram_parts.Words("en").font() == {}


def test_an_installed_font_serves_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "WenQuanYi Micro Hei"

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(diagram_parts.fontManager, "ttflist", [Entry])
    assert "fname" in diagram_parts.Words("zh").font()
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert diagram_parts.Words("zh").font()["family"][0] == "WenQuanYi Micro Hei"


def test_mistakes() -> None:
    with pytest.raises(KAError, match="choose 'en' or 'zh'"):
        diagrams.overview(["kav1"], language="fr")
    with pytest.raises(KAError, match="choose 'en' or 'zh'"):
        diagrams.all_diagrams("fr")
    with pytest.raises(KAError, match="at least one"):
        diagrams.overview([])
    with pytest.raises(KAError, match="at least one"):
        diagrams.layers([])
    with pytest.raises(KAError, match="variant 'kav99' is unknown"):
        diagrams.overview(["kav99"])
    with pytest.raises(KAError, match="dim=20"):
        diagrams.layer(variant("kav3"), dim=20)


def test_colours_are_okabe_and_itos() -> None:
    assert set(diagram_parts.SLOTS.values()) <= OKABE_ITO
    for colour in diagram_parts.SLOTS.values():  # black text on the fill: contrast of at least 7:1
        fill = np.array(diagrams._tint(colour))
        linear = np.where(fill <= 0.04045, fill / 12.92, ((fill + 0.055) / 1.055) ** 2.4)
        assert (linear @ (0.2126, 0.7152, 0.0722) + 0.05) / 0.05 > 7
        assert diagrams._tint(colour) != to_rgb(colour)
