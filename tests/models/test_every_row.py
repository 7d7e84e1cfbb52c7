"""Every row that the table accepts, not only those that are in it: what is computed is what the row says."""

import re

import pytest
import torch
from rows import rows_that_could_be
from torch import Tensor, nn

from benchmarks.reference import plain_layer
from ka.models.kernel_attention import FoldedKernelAttention, KernelAttention

PARTS = 8


def gap(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("part", range(PARTS))
def test_every_row_computes_what_it_says(part: int) -> None:
    """A sample of a batch as alone, the plain form, the folded form; and every part is used."""
    for row in rows_that_could_be()[part::PARTS]:
        layer = KernelAttention(4, row).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        for name, parameter in layer.named_parameters():
            if re.search(r"se\.squeeze\.\d\.bias", name):  # of each ReLU some are on, some off
                parameter.data = torch.linspace(-3, 3, 4, dtype=torch.float64)
        x = torch.randn(2, 4, 6, 8, dtype=torch.float64, requires_grad=True)
        y = layer(x)
        assert y.abs().max() < 1e6, row
        bound = 1e-11 * max(1.0, y.abs().max().item())
        assert gap(y[1:], layer(x[1:])) <= bound, f"a batch of {row}"
        assert gap(y, plain_layer(layer, x)) <= bound, f"the plain form of {row}"
        if not row.adaptive:
            assert gap(y, FoldedKernelAttention(layer)(x)) <= bound, f"the folded form of {row}"
        y.square().sum().backward()
        for key, parameter in layer.named_parameters():
            assert parameter.grad is not None, f"{key} of {row}"
            assert parameter.grad.abs().max() > 0, f"{key} of {row}"


def test_there_are_many_such_rows() -> None:
    """As many as the parts allow; where this falls, rows are refused that were not."""
    rows = rows_that_could_be()
    assert len(rows) == len(set(rows)) > 1000
