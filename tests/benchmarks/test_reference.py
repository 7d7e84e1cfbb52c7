"""The plain form that the clock compares with: nothing fast in it (tests/models holds it to the golden vectors)."""

import pytest
import torch
import torch.nn.functional as F
from measured import model_of
from torch import Tensor

from benchmarks.measure import Counter
from benchmarks.reference import ReferenceLayer, reference, reference_layer, serial
from ka.models import kernel_attention, kernel_parts, psrt
from ka.models.kernel_attention import KernelAttention
from ka.models.variants import PSRT_ROWS, variant

KA = [name for name, row in PSRT_ROWS.items() if row.has_ka]


def test_an_image_of_one_pixel() -> None:
    fast = model_of("kav4", torch.float64)
    up, msi = (torch.rand(1, bands, 1, 1).double() for bands in (4, 2))
    torch.testing.assert_close(reference(fast)(up, msi), fast(up, msi), rtol=0, atol=1e-12)


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
    assert {name for name in KA if serial(PSRT_ROWS[name])} == {"kav3", "kav4", "kav5", "kav6", "kav5_as_run"}


def test_kav5_as_run_computes_before_it_returns_its_input() -> None:
    plain = reference_layer(KernelAttention(8, variant("kav5_as_run")), 8)
    x = torch.randn(1, 8, 8, 8)
    with Counter() as counter:
        assert torch.equal(plain(x), x)
    assert counter.flops > 2 * 2 * 64 * 8 * 8 * 9  # the convolutions of the windows, and of the image
    before = torch.random.get_rng_state()
    assert isinstance(reference_layer(plain.layer, 8).dead, ReferenceLayer)
    assert torch.equal(torch.random.get_rng_state(), before)
