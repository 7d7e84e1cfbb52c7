"""Every row of the table, as a whole network, is the plain reference; and every row that the table would accept, as a
layer."""

import re

import pytest
import torch
from rows import rows_that_could_be
from torch import Tensor, nn

import ka
from benchmarks.reference import plain_layer, reference
from ka.models.kernel_attention import FoldedKernelAttention, KernelAttention
from ka.models.variants import PSRT_ROWS, Variant

PARTS = 8


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, by the largest value (gradients behind a ReLU that is off are zero)."""
    return ((one - other).abs().max() / other.abs().max().clamp(min=1e-30)).item()


def far_from_zero(module: nn.Module, std: float = 0.2) -> None:
    """Weights that are all felt."""
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, std=std)
        if re.search(r"se\.squeeze\.\d\.bias", name):  # of each ReLU some are on, some off
            parameter.data = torch.linspace(-3, 3, 4, dtype=parameter.dtype)


@pytest.mark.parametrize("name", PSRT_ROWS)
def test_a_network_is_the_plain_one(name: str) -> None:
    """Values, all gradients, each sample of a batch, folded, at an odd size; and every parameter is used."""
    model = ka.build(name, n_bands=4, n_msi=2, dim=8).double()
    far_from_zero(model)
    plain = reference(model)
    up, msi = (torch.rand(2, bands, 13, 22, dtype=torch.float64) for bands in (4, 2))
    weight = torch.randn_like(up)
    y, expected = model(up, msi), plain(up, msi)
    assert y.shape == up.shape
    assert gap(y, expected) <= 1e-11
    assert gap(model(up[1:], msi[1:]), y[1:]) <= 1e-11
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    wanted = dict(plain.model.named_parameters())
    assert set(wanted) == {key for key, _ in model.named_parameters()}
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert gap(parameter.grad, wanted[key].grad) <= 1e-9, key
        assert parameter.grad.abs().max() > 0, key
    if model.row.adaptive:
        with pytest.raises(ka.KAError, match=f"{name} cannot be folded: its kernels depend on the image"):
            model.fold()
        return
    with torch.no_grad():
        assert gap(model.fold()(up, msi), y) <= 1e-11
        single = model.float()
        assert gap(single.fold()(up.float(), msi.float()), single(up.float(), msi.float())) <= 1e-4
    assert ka.count_parameters(model.fold()) <= ka.count_parameters(model)


@pytest.mark.parametrize("shuffle", ["aligned", "misaligned"])
def test_a_shuffle_with_kernels_is_the_plain_one(shuffle: str) -> None:
    """No row of the table has both; the parts go together."""
    for changes in ({}, {"layernorm": False}, {"kernels": "reweighted"}):
        row = Variant("mine", shuffle=shuffle, **({"kernels": "learned", "global_from": "raw"} | changes))  # type: ignore[arg-type]
        model = ka.PSRT(row, n_bands=4, n_msi=2, dim=8).double()
        far_from_zero(model)
        x = [torch.rand(2, bands, 16, 8, dtype=torch.float64) for bands in (4, 2)]
        assert gap(model(*x), reference(model)(*x)) <= 1e-11, row


@pytest.mark.parametrize("part", range(PARTS))
def test_every_row_computes_what_it_says(part: int) -> None:
    """A sample of a batch as alone, the plain form, the folded form; and every part is used."""
    for row in rows_that_could_be()[part::PARTS]:
        layer = KernelAttention(4, row).double()
        far_from_zero(layer, std=0.3)
        x = torch.randn(2, 4, 6, 8, dtype=torch.float64, requires_grad=True)
        y = layer(x)
        assert gap(layer(x[1:]), y[1:]) <= 1e-11, f"a batch of {row}"
        assert gap(plain_layer(layer, x), y) <= 1e-11, f"the plain form of {row}"
        if not row.adaptive:
            assert gap(FoldedKernelAttention(layer)(x), y) <= 1e-11, f"the folded form of {row}"
        y.square().sum().backward()
        for key, parameter in layer.named_parameters():
            assert parameter.grad is not None, f"{key} of {row}"
            assert parameter.grad.abs().max() > 0, f"{key} of {row}"


def test_there_are_many_such_rows() -> None:
    """As many as the parts allow; where this falls, rows are refused that were not."""
    rows = rows_that_could_be()
    assert len(rows) == len(set(rows)) > 1300
