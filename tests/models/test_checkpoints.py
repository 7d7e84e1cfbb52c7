"""Checkpoints: round trips, the study's names, and what a wrong file gets."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ka
from ka.models.checkpoints import load_checkpoint, save_weights
from ka.models.study_names import DEAD_PARTS
from ka.models.variants import VARIANTS

REPORTED = [name for name, row in VARIANTS.items() if not row.ours]


def small(name: str) -> ka.PSRT:
    return ka.build(name, n_bands=4, n_msi=3, dim=8)


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


def same(a: ka.PSRT, b: ka.PSRT) -> bool:
    x = torch.rand(1, 4, 16, 16), torch.rand(1, 3, 16, 16)
    return a.row == b.row and torch.equal(a.eval()(*x), b(*x))


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = small(name)
    save_weights(tmp_path / "best.safetensors", model)
    assert same(model, load_checkpoint(tmp_path / "best.safetensors"))
    assert same(model, load_checkpoint(tmp_path))
    assert same(model, load_checkpoint(model.state_dict(), name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors"]


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", REPORTED)
def test_the_studys_names(name: str, prefix: str, tmp_path: Path) -> None:
    model = small(name)
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


def test_names_alone_do_not_tell_what_a_layer_is_given() -> None:
    """Without the header of a file, ours too are ambiguous where two rows hold the same weights."""
    with pytest.raises(ka.KAError, match="fits kav11, kav11_no_ln alike; say which"):
        load_checkpoint(small("kav11_no_ln").state_dict())
    assert load_checkpoint(small("conv3x3").state_dict()).row.name == "conv3x3"


def test_published_psrt(shared: Path) -> None:
    model = load_checkpoint(shared / "weights" / "psrt_cave_x4.pth.tar")
    assert (model.row.name, model.dim, model.n_bands, model.n_msi) == ("psrt", 32, 31, 3)
    assert not model.training


@pytest.mark.parametrize("name", ["kav3", "psrt_misaligned", "psrt_noshuffle"])
def test_golden_networks_load_without_prefix_or_with(shared: Path, name: str) -> None:
    file = shared / "golden" / f"{'net_' if name == 'kav3' else ''}{name}.npz"
    with np.load(file) as golden:
        state = {k.removeprefix("w."): torch.from_numpy(golden[k]) for k in golden.files if k.startswith("w.")}
    plain = load_checkpoint(state, name)
    prefixed = load_checkpoint({f"model.{key}": value for key, value in state.items()}, name)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), prefixed.parameters(), strict=True))


def test_dtypes() -> None:
    model = small("kav11")
    assert load_checkpoint(model.double().state_dict(), "kav11").head.weight.dtype == torch.float64
    assert load_checkpoint(model.half().state_dict(), "kav11").head.weight.dtype == torch.float32


def test_weights_are_copied_not_shared() -> None:
    model = small("kav11")
    loaded = load_checkpoint(model.state_dict(), "kav11")
    with torch.no_grad():
        loaded.head.weight.zero_()
    assert model.head.weight.abs().max() > 0
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_another_variant_is_an_error(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", small("kav11"))
    with pytest.raises(ka.KAError, match=r"a\.safetensors holds weights of kav11, not kav1; ask for variant='kav11'"):
        load_checkpoint(tmp_path / "a.safetensors", "kav1")
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


def test_a_weight_given_twice_is_an_error() -> None:
    state = small("kav11").state_dict()
    with pytest.raises(ka.KAError, match=r"unexpected model\.head\.bias"):
        load_checkpoint(state | {"model.head.bias": torch.ones(8)}, "kav11")


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (4, 1, 1, 1), (1, 4, 1, 1)])
def test_kav9s_linear_in_any_shape(shape: tuple[int, ...]) -> None:
    model = small("kav9")
    state = {key: value.reshape(shape) if "kernels_linear" in key else value for key, value in as_study(model).items()}
    assert same(model, load_checkpoint(state, "kav9"))


def test_a_folded_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ka.KAError, match="a folded model cannot be loaded again"):
        save_weights(tmp_path / "folded.safetensors", small("kav11").fold())
    assert not list(tmp_path.iterdir())


def test_a_misshapen_weight_is_named() -> None:
    state = small("kav11").state_dict() | {"blocks.0.0.layers.0.ka.fusion.bias": torch.ones(7)}
    with pytest.raises(ka.KAError, match=r"ka\.fusion\.bias has shape \(7,\), but kav11 at dim 8 has \(4,\)"):
        load_checkpoint(state, "kav11")


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    model = small("kav11")
    save_weights(tmp_path / "good.safetensors", model)
    before = (tmp_path / "good.safetensors").read_bytes()
    with torch.no_grad():
        model.tail.bias[0] = float("nan")
    with pytest.raises(ka.KAError, match=r"tail\.bias is not finite"):
        save_weights(tmp_path / "good.safetensors", model)
    assert (tmp_path / "good.safetensors").read_bytes() == before
    with pytest.raises(ka.KAError, match=r"tail\.bias holds NaN"):
        load_checkpoint(model.state_dict(), "kav11")


@pytest.mark.parametrize("suffix", ["safetensors", "pth.tar"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated(suffix: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    model = small("kav11")
    if suffix == "safetensors":
        save_weights(path, model)
    else:
        torch.save(model.state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(ka.KAError, match=rf"cut\.{suffix} is (truncated|damaged)") as error:
        load_checkpoint(path, "kav11")
    assert "\n" not in str(error.value)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "created"
    torch.save({"state_dict": Bomb(target)}, tmp_path / "evil.pth.tar")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Bomb(target)))
    for name in ("evil.pth.tar", "evil.pt"):
        with pytest.raises(ka.KAError, match="holds more than weights"):
            load_checkpoint(tmp_path / name, "kav11")
        assert not target.exists()


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ka.KAError, match=r"nowhere\.safetensors does not exist"):
        load_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(ka.KAError, match=r"holds no best\.safetensors"):
        load_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth.tar")
    with pytest.raises(ka.KAError, match="holds a list, not a state dict"):
        load_checkpoint(tmp_path / "list.pth.tar")
    with pytest.raises(ka.KAError, match="'epoch' is no tensor"):
        load_checkpoint({"epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(ka.KAError, match="holds no weights"):
        load_checkpoint({})
    with pytest.raises(ka.KAError, match="unexpected layer"):
        load_checkpoint({"layer.weight": torch.ones(3)}, "kav11")
    with pytest.raises(ka.KAError, match="variant 'kav99' is unknown"):
        load_checkpoint({"layer.weight": torch.ones(3)}, "kav99")
