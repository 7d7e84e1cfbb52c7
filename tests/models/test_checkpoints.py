"""Checkpoints: round trips, and what a wrong file gets. (The study's: test_study_names.)"""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ka
from ka.models.checkpoints import HOLDERS, load_checkpoint, save_weights
from workbook.paths import CHECKPOINTS

FAMILIES = [
    "psrt", "psrt_misaligned", "kav1", "kav1_outer", "kav4", "kav5", "kav5_as_run", "kav8_as_run", "kav9", "kav17",
    "conv5x5", "kav7_se_each",
]  # fmt: skip
"""Of each kind of weights one, as they are stored."""


def small(name: str) -> ka.PSRT:
    return ka.build(name, n_bands=4, n_msi=3, dim=8)


def same(a: ka.PSRT, b: ka.PSRT) -> bool:
    x = torch.rand(1, 4, 16, 16), torch.rand(1, 3, 16, 16)
    return a.row == b.row and torch.equal(a.eval()(*x), b(*x))


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = small(name)
    save_weights(tmp_path / "best.safetensors", model)
    assert same(model, load_checkpoint(tmp_path / "best.safetensors"))
    assert same(model, load_checkpoint(tmp_path))
    assert same(model, load_checkpoint(model.state_dict(), name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors"]


def test_names_alone_do_not_tell_what_a_layer_is_given() -> None:
    """Without the header of a file, ours too are ambiguous where two rows hold the same weights."""
    with pytest.raises(ka.KAError, match="fits kav11, kav11_no_ln alike; say which"):
        load_checkpoint(small("kav11_no_ln").state_dict())
    assert load_checkpoint(small("conv3x3").state_dict()).row.name == "conv3x3"


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


def test_a_weight_given_twice_is_an_error() -> None:
    state = small("kav11").state_dict()
    with pytest.raises(ka.KAError, match=r"unexpected model\.head\.bias"):
        load_checkpoint(state | {"model.head.bias": torch.ones(8)}, "kav11")


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
def test_truncated(suffix: str, tmp_path: Path) -> None:
    path, model = tmp_path / f"cut.{suffix}", small("kav11")
    save_weights(path, model) if suffix == "safetensors" else torch.save(model.state_dict(), path)
    data = path.read_bytes()
    for keep in (0, 10, len(data) // 2, int(0.99 * len(data))):
        path.write_bytes(data[:keep])
        with pytest.raises(ka.KAError, match=rf"cut\.{suffix} is (truncated|damaged)") as error:
            load_checkpoint(path, "kav11")
        assert "\n" not in str(error.value)


PREFIXES = ("model.", "module.", "_orig_mod.", "module.model.", "_orig_mod.module.", "module._orig_mod.model.")


@pytest.mark.parametrize(("holder", "prefix"), list(zip(HOLDERS, PREFIXES, strict=True)))
def test_files_of_the_field(holder: str, prefix: str, tmp_path: Path) -> None:
    """A state dict beside an epoch and an optimiser, in whatever nesting, with whatever was put before its names."""
    model, path = small("kav21"), tmp_path / "file.pth"
    state, adam = model.state_dict(), {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]}
    named = {f"{prefix}{key}": value for key, value in state.items()}
    beside = {"epoch": 3, "optimizer": adam, "params": {"lr": 0.1}, "best": None, "step": torch.ones(())}
    for held in (named, {holder: state}, beside | {holder: named}, {"net": {"model": {holder: named}}}):
        torch.save(held, path)
        for source in (path, held):
            loaded = load_checkpoint(source, "kav21").state_dict()
            assert all(torch.equal(loaded[key], value) for key, value in state.items())
    torch.save(named | {"front.learned._orig_mod.0.bias": state["front.learned.0.bias"]}, path)
    with pytest.raises(ka.KAError, match=r"unexpected front\.learned\._orig_mod\.0\.bias, as another weight is"):
        load_checkpoint(path, "kav21")


def test_two_state_dicts_in_a_file(tmp_path: Path) -> None:
    state, path = small("kav11").state_dict(), tmp_path / "two.pth"
    for held in ({"params": state, "params_ema": state}, {"model": {"net": state, "state_dict": state}}):
        torch.save(held, path)
        with pytest.raises(
            ka.KAError, match=r"two\.pth holds 2 state dicts \((params, params_ema|state_dict, net)\); load it"
        ):
            load_checkpoint(path, "kav11")
    torch.save({"model": {"net": [state]}}, path)
    with pytest.raises(ka.KAError, match="entry 'model' is no tensor"):
        load_checkpoint(path, "kav11")
    torch.save({"generator": state}, path)
    with pytest.raises(ka.KAError, match="entry 'generator' is no tensor"):
        load_checkpoint(path, "kav11")


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


def test_reading_a_model_imports_no_compiler() -> None:
    """PyTorch's takes five seconds, at every start of the explorer."""
    shipped = [str(path) for path in CHECKPOINTS.glob("*.safetensors")]
    code = f"import sys, ka\nfor path in {shipped}: ka.load_checkpoint(path)\nassert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
