"""Attention over windows (`ka.methods.attention`) with learned nearness and likeness."""

import math

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from ka.methods.attention import ALIKE, ATTENDED, NEAR, attended

LIKENESS = 5  # dimensions of likeness beside the channels'


class WindowAttention(nn.Module):
    """Means over windows, with the standard deviation of nearness and g = L f, of features f, learned.

    L begins with the channels' roots, as local injection attends, and little of the rest. Without likeness (`alike`)
    the window is a Gaussian.
    """

    radius = ATTENDED

    def __init__(self, n_msi: int, n_features: int, alike: bool) -> None:
        super().__init__()
        self.log_width = nn.Parameter(torch.tensor(math.log(NEAR)))
        likeness = torch.zeros(n_msi + LIKENESS, n_features)  # of features as `Front.features` orders them
        likeness[:n_msi, n_msi : 2 * n_msi].diagonal().fill_(1 / ALIKE)
        likeness[n_msi:].copy_(0.1 * torch.randn(LIKENESS, n_features, device="cpu"))  # on `meta` it wakes a compiler
        self.likeness = nn.Parameter(likeness) if alike else None

    @property
    def width(self) -> Float[Tensor, ""]:
        """Standard deviation of nearness, in low-resolution pixels."""
        return torch.exp(self.log_width)

    def forward(
        self, low: Float[Tensor, "b k rows columns"], values: Float[Tensor, "b c rows columns"]
    ) -> Float[Tensor, "b c rows columns"]:
        """The mean of `values` over the window of every pixel, by features as the sensor sees them."""
        return attended(self.places(low), values, self.radius, self.width)

    def places(self, low: Float[Tensor, "b k rows columns"]) -> Float[Tensor, "b g rows columns"]:
        """L f: like pixels are near each other here."""
        likeness = low.new_zeros(1, low.shape[1]) if self.likeness is None else self.likeness
        return einsum(likeness, low, "g k, b k y x -> b g y x")
