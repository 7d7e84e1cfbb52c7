"""The diagrams of KA layers against the real layers: which parts, in which order, with which shapes and counts."""

import itertools

import pytest
from drawn import a_layer, boxes, drawn_layer, image, matches, numbers, real_parts, slots, texts
from rows import rows_that_could_be
from torch import Tensor

from ka.models.counts import parameter_count
from ka.models.kernel_attention import KernelAttention
from ka.models.variants import N_WINDOWS, VARIANTS, variant
from workbook.diagrams import ka_layer, sheet
from workbook.diagrams.parts import SLOTS, chain, shape

WITH_KA = [name for name, row in VARIANTS.items() if row.has_ka]
WITH_SA = [name for name, row in VARIANTS.items() if row.sa]


def test_drawn_parts_are_those_of_the_real_layer_in_its_order() -> None:
    for name in VARIANTS:
        figure = drawn_layer(name)
        drawn, absent = slots(figure, "present", name), slots(figure, "absent", name)
        assert matches(drawn, real_parts(variant(name))), drawn
        wanted = [slot.replace(", ", "-").replace(" ", "-") for slot in SLOTS]
        assert set(drawn) | set(absent) == set(wanted)
        assert drawn == [slot for slot in wanted if slot in drawn]


def test_a_wrong_drawing_would_be_noticed() -> None:
    drawn = slots(drawn_layer("kav6"), "present", "kav6")
    assert not any(matches(drawn, real_parts(variant(other))) for other in ("kav4", "kav7", "kav11", "kav17", "psrt"))


def test_the_second_convolution_is_the_real_one() -> None:
    for name in VARIANTS:
        row = variant(name)
        cells = [part for part in chain(row, 16) if part.slot == "second convolution"]
        on_windows, on_image, on_image_by_global = (part.present for part in cells)
        if not real_parts(row):
            assert not any(part.present for part in cells)
            continue
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


def test_shapes_on_the_arrows_are_those_of_the_real_tensors() -> None:
    for name in WITH_KA:
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
            layer.global_kernel.mix.register_forward_pre_hook(
                lambda _, inputs, joined=joined: joined.append(inputs[0].shape)
            )
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


def test_taps_and_heads_of_kernel_sa() -> None:
    for name in WITH_SA:
        layer, x = a_layer(variant(name)), image()
        stages = {stage: layer._join(windows, glob if "+" in layer.row.sa or layer.row.sa == "scrambled" else None)
                  for stage, windows, glob in layer.stages(x)}  # fmt: skip
        into = list(stages)[list(stages).index("SA") - 1]
        assert layer.sa is not None
        _, _, heads, taps, width = layer.sa.heads(stages[into]).shape
        (part,) = [part for part in chain(variant(name), 16) if part.slot == "SA" and part.present]
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
    (part,) = [part for part in chain(variant("kav17"), 16) if part.slot == "reweighting"]
    assert gates == [(2, N_WINDOWS)]
    assert part.detail.endswith(f"b × {N_WINDOWS}")


def test_shapes_by_hand() -> None:
    assert shape("n c c k k", 48) == "n c c k k = 4·24·24·3·3"
    assert shape("b n·c h w", 64) == "b n·c h w = b·128·h·w"
    assert shape("n c c k k", 48, n_windows=1, size=5) == "n c c k k = 1·24·24·5·5"
    assert shape("b s+m h w", 48, n_bands=200, n_msi=4) == "b s+m h w = b·204·h·w"


@pytest.mark.parametrize(
    ("name", "live"),
    [
        ("kav1", 20_328), ("kav4", 32_640), ("kav5", 24_264), ("kav9", 5_976), ("kav17", 26_216), ("conv3x3", 5_208),
        ("conv5x5", 14_424), ("kav1_outer", 7_128), ("kav1_depthwise", 5_928), ("kav10_both_sa", 25_464),
        ("kav10_5x5", 62_328), ("kav7_se_each", 30_264), ("kav6_no_global_se", 29_568),
    ],
)  # fmt: skip
def test_parameters_of_the_parts_add_up(name: str, live: int) -> None:
    parts = chain(variant(name))
    assert sum(part.parameters for part in parts) == live
    counted = texts(ka_layer.layer(variant(name)))
    assert f"{live:,} in this layer" in counted[f"{name}.counted"]
    assert f"{parameter_count(name).live:,} in the model" in counted[f"{name}.counted"]


def said(name: str, language: str = "en") -> dict[str, tuple[str, str]]:
    """Title and detail of the present parts of a variant's layer, by slot and lane."""
    parts = chain(variant(name), 48, language)
    return {f"{part.slot}, {part.lane}": (part.title, part.detail) for part in parts if part.present}


def test_an_ordinary_convolution_is_called_one() -> None:
    for name, k in (("conv3x3", 3), ("conv5x5", 5)):
        assert said(name) == {
            "window kernels, windows": ("kernel", f"{k}×{k}, learned, default start"),
            "second convolution, windows": ("conv on image", "bias"),
        }
        (conv,) = [part for part in chain(variant(name)) if part.present and "conv" in part.title]
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
        assert texts(drawn_layer(name))[sheet._gid(f"{state}.{name}.{input_}.0")] == input_


def test_a_new_row_is_drawn_as_its_layer_runs() -> None:
    x, tried = image(4), 0
    for row in itertools.islice(rows_that_could_be(), 0, None, 7):
        parts = [part.slot.split(",")[0] for part in chain(row, 8) if part.present]
        stages = [stage for stage, _, _ in KernelAttention(4, row).stages(x)]
        assert list(dict.fromkeys(parts))[: len(stages)] == stages, row
        tried += 1
    assert tried > 50
