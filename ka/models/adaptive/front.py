"""What fronts share."""

from itertools import pairwise

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from ka.data.datasets import PROTOCOL
from ka.data.simulate import Degradation
from ka.methods.local import DARK
from ka.models.adaptive.attention import WindowAttention
from ka.models.adaptive.fields import degraded
from ka.models.variants import Variant

FLOOR = 1e-6  # least ridge, in squared units of the images: below it flat windows fit their noise


class Front(nn.Module):
    """Features, a kernel to fall back on, and a bank of kernels where `row.bank` says so.

    Features are the HR-MSI's channels, their square roots, and `row.features` that three 3×3 convolutions make of the
    starting image and the HR-MSI. `row.front` says what a kernel looks at.

    How much of each kernel of the bank a place takes is made of its features by a 3×3 convolution (`look`), GELU and
    two 1×1 convolutions (`weigh`). Mixing kernels by weights of the input: Yang, Bender, Le, Ngiam, "CondConv", NeurIPS
    2019; here weights have any sign, and are divided by their root mean square: small ones would hardly learn.
    """

    def __init__(self, n_bands: int, n_msi: int, row: Variant) -> None:
        super().__init__()
        self.sees, self.degradation = row.front, PROTOCOL
        k, hidden = 2 * n_msi + row.features, row.hidden
        sizes = (n_bands + n_msi, hidden, hidden, row.features)
        convolutions = [nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sizes)]
        self.learned = nn.Sequential(convolutions[0], nn.GELU(), convolutions[1], nn.GELU(), convolutions[2])
        self.fallback = nn.Parameter(torch.zeros(k, n_bands))
        self.attention: WindowAttention | None = None  # what weighs the pixels of a window, where something does
        self.bank = nn.Parameter(torch.zeros(row.bank, k, n_bands)) if row.bank else None
        if row.bank:
            self.look = nn.Sequential(nn.Conv2d(k, hidden, 3, padding=1), nn.GELU())
            self.weigh = nn.Sequential(nn.Conv2d(hidden, hidden, 1), nn.GELU(), nn.Conv2d(hidden, row.bank, 1))

    def begin(self, degradation: Degradation, matrix: "Float[np.ndarray, 'bands m'] | None" = None) -> None:
        """What made `lr`, and a fitted matrix of the HR-MSI's channels (and roots) where kernels start from it."""
        self.degradation = degradation

    def features(self, up: Float[Tensor, "b n h w"], msi: Float[Tensor, "b m h w"]) -> Float[Tensor, "b k h w"]:
        """What kernels weigh: channels, their square roots, learned features."""
        learned = self.learned(torch.cat([up, msi], dim=1)).to(msi.dtype)
        return torch.cat([msi, torch.sqrt(msi.clamp(min=0) + DARK), learned], dim=1)

    def field(
        self, features: Float[Tensor, "b k h w"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b k n rows columns"]:
        """The kernel of every low-resolution pixel, of features at full resolution."""
        return self.kernels(degraded(features, self.degradation), lr)

    def kernels(
        self, low: Float[Tensor, "b k rows columns"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b k n rows columns"]:
        """The kernel of every low-resolution pixel, of features as the sensor sees them."""
        raise NotImplementedError

    def weights(self, seen: Float[Tensor, "b hidden y x"]) -> Float[Tensor, "b r y x"]:
        """How much of each kernel of the bank, of what was looked at."""
        weights = self.weigh(seen)
        return weights * torch.rsqrt(weights.square().mean(1, keepdim=True) + FLOOR)

    def mixed(self, weights: Float[Tensor, "b r y x"]) -> Float[Tensor, "b k n y x"]:
        """fallback + Σ_r weights_r · bank_r; a front without a bank has none to mix."""
        assert self.bank is not None
        return self.fallback[:, :, None, None] + einsum(weights, self.bank, "b r y x, r k n -> b k n y x")
