"""Checkpoints under the study's names: read as ours, by the parts that a variant has."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ka
from ka.models.checkpoints import load_checkpoint
from ka.models.study_names import DEAD_PARTS, study_layer_keys
from ka.models.variants import VARIANTS


def small(name: str) -> ka.PSRT:
    return ka.build(name, n_bands=4, n_msi=3, dim=8)


def same(a: ka.PSRT, b: ka.PSRT) -> bool:
    x = torch.rand(1, 4, 16, 16), torch.rand(1, 3, 16, 16)
    return a.row == b.row and torch.equal(a.eval()(*x), b(*x))


def as_study(model: ka.PSRT) -> dict[str, Tensor]:
    """The state dict of a model under the study's names, with its dead weights: what its checkpoints hold."""
    row, c = model.row, model.dim // 2
    names = {
        r"head\.": "w.conv.",
        r"tail\.": "conv.0.",
        r"blocks\.(\d)\.(\d)\.layers\.0\.": r"w.layers.\1.layers.\2.WA1.",
        r"blocks\.(\d)\.(\d)\.layers\.1\.": r"w.layers.\1.layers.\2.WA2.",
        r"blocks\.(\d)\.(\d)\.layers\.2\.": r"w.layers.\1.layers.\2.WA3.",
        r"\.ka\.": ".KernelAttention.",
        r"sa\.qkv": "proj_qkv",
        r"sa\.proj": "proj_out",
        r"global_se\.squeeze\.0": "global_kernel_selayer.se.1",
        r"global_se\.excite\.0": "global_kernel_selayer.se.3",
        r"(?<!_)se\.squeeze\.(\d)": r"selayers.\1.se.1" if row.se == "per window" else "se.se.1",
        r"(?<!_)se\.excite\.(\d)": r"selayers.\1.se.3" if row.se == "per window" else "se.se.3",
        r"widen\.linear|global_kernel\.mix": "kernel_linear",
        r"widen": "kernels_linear",
        r"window_kernels\.weight": "convlayer1.params" if row.normal_init else "convlayer.conv.weight",
        r"reweight\.squeeze": "wink_reweight.convs",
        r"reweight\.expand": "wink_reweight.mlp.0",
        r"reweight\.contract": "wink_reweight.mlp.2",
    }
    study = {}
    for ours, value in model.state_dict().items():
        key = ours
        for pattern, name in names.items():
            key = re.sub(pattern, name, key)
        study[key] = value.flatten(0, 1) if "convlayer" in key else value
    for i in range(2):
        for j in range(3):
            block = f"w.layers.{i}.layers.{j}"
            study |= {f"{block}.norm{n}.{kind}": torch.ones(8) for n in (2, 3) for kind in ("weight", "bias")}
            for k in (1, 2, 3) if row.has_ka else ():
                part = f"{block}.WA{k}.KernelAttention"
                study |= {f"{part}.{key}": value for key, value in dead_weights(row.dead, c).items()}
    return study


def dead_weights(parts: tuple[str, ...], c: int) -> dict[str, Tensor]:
    se = {"se.1.weight": (c, c, 1, 1), "se.1.bias": (c,), "se.3.weight": (c, c, 1, 1), "se.3.bias": (c,)}
    shapes = {
        "conv_bias": {"convlayer.conv.bias": (4 * c,)},
        "norm": {"norm.weight": (c,), "norm.bias": (c,)},
        "layernorm": {"layernorm.weight": (c,), "layernorm.bias": (c,)},
        "kernels": {"convlayer.conv.weight": (4 * c, c, 3, 3)},
        "sa": {"proj_qkv.weight": (3 * c, c), "proj_qkv.bias": (3 * c,)}
        | {"proj_out.weight": (c, c), "proj_out.bias": (c,)},
        "shared_se": {f"se.{key}": shape for key, shape in se.items()},
        "window_se": {f"selayers.{m}.{key}": shape for m in range(4) for key, shape in se.items()},
        "global_se": {f"global_kernel_selayer.{key}": shape for key, shape in se.items()},
        "global": {"kernel_linear.weight": (c, 4 * c, 1, 1), "kernel_linear.bias": (c,)},
        "fusion2": {"fusion.weight": (c, 2 * c), "fusion.bias": (c,)},
        "reweight": {"wink_reweight.mlp.0.weight": (16, 4), "wink_reweight.mlp.0.bias": (16,)},
    }  # fmt: skip
    assert set(shapes) == set(DEAD_PARTS)
    return {key: torch.randn(shape) for part in parts for key, shape in shapes[part].items()}


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if not row.ours])
def test_the_studys_names(name: str, tmp_path: Path) -> None:
    model = small(name)
    for prefix in ("", "model."):
        state = {prefix + key: value for key, value in as_study(model).items()}
        torch.save({"state_dict": state, "epoch": 2000}, tmp_path / "2000.pth.tar")
        assert same(model, load_checkpoint(tmp_path / "2000.pth.tar", name))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("kav1", "kav1"), ("kav2", "kav2"), ("kav3", "kav3"), ("kav6", "kav6"), ("kav9", "kav9"),
        ("kav11", "kav11"), ("kav17", "kav17"), ("kav18", "kav18, kav19"), ("kav5_as_run", "kav4, kav5, kav5_as_run"),
        ("kav8", "kav8, kav8_as_run"), ("kav10", "kav7, kav10"), ("psrt_noshuffle", "psrt_misaligned, psrt_noshuffle"),
    ],
)  # fmt: skip
def test_the_variant_is_read_off_the_names_where_they_tell(name: str, answer: str) -> None:
    state = as_study(small(name))
    if "," not in answer:
        assert load_checkpoint(state).row.name == answer
    else:
        with pytest.raises(ka.KAError, match=f"{answer}.* alike; say which"):
            load_checkpoint(state)


def test_rows_of_our_own_were_never_the_studys() -> None:
    """Also where the study's names and shapes would fit them."""
    for name, was in (("kav11_no_ln", "kav11"), ("kav7_se_each", "kav7"), ("conv3x3", "kav19")):
        with pytest.raises(ka.KAError, match=f"not this workbook's, and others never had {name}; name their variant"):
            load_checkpoint(as_study(small(was)), name)


def test_another_variant_of_the_study_is_an_error() -> None:
    with pytest.raises(ka.KAError, match=r"no checkpoint of kav11: missing .*unexpected .*sa\.proj"):
        load_checkpoint(as_study(small("kav7")), "kav11")
    with pytest.raises(ka.KAError, match=r"no checkpoint of kav6: missing .*global_kernel\.mix"):
        load_checkpoint(as_study(small("kav7")), "kav6")


def test_one_key_more_or_less_is_named() -> None:
    state = as_study(small("kav11"))
    with pytest.raises(ka.KAError, match=r"unexpected w\.surprise"):
        load_checkpoint(state | {"w.surprise": torch.ones(1)}, "kav11")
    del state["w.layers.1.layers.2.WA3.mlp.fc1.bias"]
    with pytest.raises(ka.KAError, match=r"missing blocks\.1\.2\.layers\.2\.mlp\.fc1\.bias"):
        load_checkpoint(state, "kav11")


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("kav3", "se.se.1.weight"), ("kav7", "selayers.0.se.1.weight"), ("kav11", "concat_linear.weight"),
        ("kav17", "wink_reweight.mlp.9.weight"), ("kav17", "wink_reweight.lonely.bias"),
    ],
)  # fmt: skip
def test_a_weight_that_would_overwrite_another_is_named(name: str, extra: str) -> None:
    state = as_study(small(name))
    part = "w.layers.0.layers.0.WA1.KernelAttention"
    added = {f"{part}.{extra}": torch.ones(16, 4) if "mlp" in extra else torch.ones(4, 4)}
    if "mlp" in extra:
        added[f"{part}.wink_reweight.mlp.9.bias"] = torch.ones(16)
    with pytest.raises(ka.KAError, match="unexpected"):
        load_checkpoint(state | added, name)


def test_kav9s_linear_in_any_shape() -> None:
    model = small("kav9")
    study = as_study(model)
    for shape in ((4,), (4, 1), (1, 4), (4, 1, 1, 1), (1, 4, 1, 1)):
        state = {key: value.reshape(shape) if "kernels_linear" in key else value for key, value in study.items()}
        assert same(model, load_checkpoint(state, "kav9")), shape


def test_misshapen_weights_are_named() -> None:
    """A truncated or transposed tensor is the file's fault, and said of it by name."""
    kernels, gate = torch.ones(16, 4, 3, 3), {"wink_reweight.convs.0.weight": torch.ones(4, 4)}
    for row, key, weights in (
        ("kav7", "convlayer.conv.weight", {"convlayer.conv.weight": kernels[:-1]}),
        ("kav7", "convlayer.conv.weight", {"convlayer.conv.weight": kernels[0]}),
        ("kav7", "convlayers.1.conv.weight", {f"convlayers.{m}.conv.weight": kernels[m:] for m in range(4)}),
        ("kav18", "wink_reweight.convs.0.weight", gate | {"wink_reweight.convs.0.bias": torch.ones(3)}),
        (
            "kav18",
            "wink_reweight.convs.0.weight",
            {key: torch.ones(4) for key in (*gate, "wink_reweight.convs.0.bias")},
        ),
    ):
        with pytest.raises(ka.KAError, match=rf"^a\.pth: {re.escape(key)} has shape .*damaged$"):
            study_layer_keys(weights, VARIANTS[row], "a.pth")
