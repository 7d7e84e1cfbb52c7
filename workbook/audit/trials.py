"""Layers and maps filled at random, in float64, to try a statement that is about every possible weight.

At the published start, kernel SA's small weights would make the four window kernels nearly alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ka.models.kernel_attention import KernelAttention
from ka.models.variants import KERNEL_SIZE, variant

TAPS = KERNEL_SIZE**2
EXACT = 1e-12  # relative differences below it are rounding, in float64


def yes(value: object) -> str:
    """A truth as a table says it."""
    return "yes" if value else "no"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's random numbers from `seed` inside the block; its global state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def random_layer(name: str, c: int = 24, seed: int = 0, std: float = 0.3) -> KernelAttention:
    """A KA layer in float64 with every parameter drawn from N(0, std²)."""
    with seeded(seed):
        layer = KernelAttention(c, variant(name)).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=std)
    return layer.eval()


def random_maps(c: int, size: int, n: int = 1, seed: int = 0) -> Float[Tensor, "n c size size"]:
    """White noise in float64."""
    with seeded(seed):
        return torch.randn(n, c, size, size, dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest |a - b| over the largest |b|."""
    return ((a - b).abs().max() / b.abs().max()).item()
