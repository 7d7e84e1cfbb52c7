"""The plain form that the clock compares with: golden vectors, and nothing fast in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measured import model_of
from torch import Tensor

import ka
from benchmarks.measure import Counter
from benchmarks.reference import ReferenceLayer, reference, reference_layer, serial
from ka.models import kernel_attention, kernel_parts, psrt
from ka.models.kernel_attention import KernelAttention
from ka.models.study_names import study_layer_keys
from ka.models.variants import VARIANTS, variant

KA = [name for name, row in VARIANTS.items() if row.has_ka]


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, by the largest value (gradients behind a ReLU that is off are zero)."""
    return ((one - other).abs().max() / other.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("size", [(13, 22), (1, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    fast = model_of("kav4", torch.float64)
    up, msi = (torch.rand(1, bands, *size).double() for bands in (4, 2))
    assert gap(reference(fast)(up, msi), fast(up, msi)) < 1e-12


@pytest.mark.parametrize("name", ["kav1", "kav3", "kav6", "kav8_as_run", "kav16"])
def test_the_reference_meets_golden_layers(shared: Path, name: str) -> None:
    with np.load(shared / "golden" / f"{name}.npz") as golden:
        arrays = {key: torch.from_numpy(golden[key]) for key in golden.files}
    weights = {key.removeprefix("w."): value for key, value in arrays.items() if key.startswith("w.")}
    layer = KernelAttention(24, variant(name)).double()
    layer.load_state_dict(study_layer_keys(weights, variant(name)))
    y = reference_layer(layer, 24)(arrays["x"].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(y, arrays["y"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["net_kav3", "psrt_misaligned", "psrt_noshuffle"])
def test_the_reference_meets_golden_networks(shared: Path, name: str) -> None:
    with np.load(shared / "golden" / f"{name}.npz") as golden:
        arrays = {key: torch.from_numpy(golden[key]) for key in golden.files}
    state = {key.removeprefix("w."): value for key, value in arrays.items() if key.startswith("w.")}
    plain = reference(ka.load_checkpoint(state, variant=name.removeprefix("net_")))
    with torch.no_grad():
        torch.testing.assert_close(plain(arrays["up"], arrays["rgb"]), arrays["out"], rtol=0, atol=1e-10)


def test_the_reference_calls_nothing_of_the_fast_models(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [reference(model_of(name, torch.float32)) for name in ("psrt", "kav1", "kav4", "kav6", "kav17")]

    def fast(*args: object, **more: object) -> Tensor:
        raise AssertionError("fast code was called")

    for module in (kernel_attention, kernel_parts, psrt):
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, torch.nn.Module) and thing.__module__ == module.__name__:
                monkeypatch.setattr(thing, "forward", fast)
    monkeypatch.setattr(F, "scaled_dot_product_attention", fast)
    with pytest.raises(AssertionError, match="fast code"):
        model_of("kav6", torch.float32)(torch.rand(1, 4, 8, 8), torch.rand(1, 2, 8, 8))
    for model in plain:
        assert model(torch.rand(1, 4, 8, 8), torch.rand(1, 2, 8, 8)).isfinite().all()


def test_serial_variants_are_those_that_the_study_names() -> None:
    """Its list marks kav3, kav4, kav5 and kav6 as serial, and kav1, kav2, kav10 and kav11 as parallel."""
    assert {name for name in KA if serial(VARIANTS[name])} == {"kav3", "kav4", "kav5", "kav6", "kav5_as_run"}


def test_kav5_as_run_computes_before_it_returns_its_input() -> None:
    plain = reference_layer(KernelAttention(8, variant("kav5_as_run")), 8)
    x = torch.randn(1, 8, 8, 8)
    with Counter() as counter:
        assert torch.equal(plain(x), x)
    assert counter.flops > 2 * 2 * 64 * 8 * 8 * 9  # the convolutions of the windows, and of the image
    before = torch.random.get_rng_state()
    assert isinstance(reference_layer(plain.layer, 8).dead, ReferenceLayer)
    assert torch.equal(torch.random.get_rng_state(), before)
