"""The diagrams of networks against the real ones, and the overview against the table."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from drawn import boxes, matches, numbers, real_parts, texts
from torch import Tensor, nn

import ka.models.psrt
from ka.models.counts import count_parameters
from ka.models.psrt import PSRT
from ka.models.variants import VARIANTS, variant
from workbook.diagrams import network, overview
from workbook.diagrams.front import front
from workbook.diagrams.parts import SLOTS


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

    figure = network.backbone(variant(name), dim=16)
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
    for gid, label in texts(network.backbone(variant(name), 16, n_bands=5, n_msi=2)).items():
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
    written = texts(network.backbone(variant("kav4")))
    model = PSRT(variant("kav4"))
    layer = model.layers()[0]
    modules = {"a.head": model.head, "a.tail": model.tail, "a.block0": model.blocks[0], "b.L2": layer, "c.KA": layer.ka,
             "c.attention": layer.attn, "c.LN1": layer.norm1, "c.MLP": layer.mlp}  # fmt: skip
    for tag, module in modules.items():
        assert module is not None
        assert written[f"present.{tag}.number"] == f"{count_parameters(module):,}", tag
    assert "998,431" in written["counted"]
    assert "4 heads × 6" in written.values()
    assert "8 heads × 6" in texts(network.backbone(variant("psrt"))).values()


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row.needs_lr])
def test_a_front_is_drawn_with_all_that_it_has(name: str) -> None:
    """What is present is there in the model, and its numbers add up to all of it."""
    figure, model = front(variant(name), 16), ka.build(name, dim=16)
    drawn = {gid.split(".")[1] for gid, _, _ in boxes(figure, "present") if gid.startswith("a.")}
    assert ("learned" in drawn) == ("apply" in drawn) == ("solve" in drawn) == (model.front is not None)
    assert ("products" in drawn) == (model.row.front in ("window", "image") and not model.row.mixes)
    assert ("weights" in drawn) == model.row.mixes
    assert ("low" in drawn) == (model.row.front in ("window", "quadrant", "image"))
    assert ("body" in drawn) == bool(model.row.body)
    counts = [int(text.replace(",", "")) for gid, text in texts(figure).items() if gid.endswith(".number")]
    assert sum(counts) == count_parameters(model)


def test_the_overview_is_the_table() -> None:
    figure = overview.overview(list(VARIANTS))
    written = texts(figure)
    present, absent = ([gid.split(".")[:2] for gid, _, _ in boxes(figure, state)] for state in ("present", "absent"))
    order = [slot.replace(", ", "-").replace(" ", "-") for slot in SLOTS]
    for name, row in VARIANTS.items():
        drawn = [slot for owner, slot in present if owner == name]
        assert matches(sorted(set(drawn) - {"shuffle", "front"}, key=order.index), real_parts(row)), name
        assert ("shuffle" in drawn) == (row.shuffle != "none")
        assert ("front" in drawn) == bool(row.front)
        assert len(drawn) + sum(owner == name for owner, _ in absent) == len(order) + 2
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
