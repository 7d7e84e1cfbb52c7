"""A lean body: plain 3×3 convolutions with shortcuts."""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ka.models.adaptive.fields import upsample
from ka.models.variants import Variant


class ResidualBody(nn.Module):
    """A lean body: 3×3 convolutions with shortcuts, 2 · dim channels wide; it gives what is added to the image.

    Head, `row.blocks` times x + conv(GELU(conv(x))), tail. The last convolution of a block, and the tail, start at 0.
    It sees the image, the HR-MSI, and the detail that the image has beyond `lr`, each about as large as GELU bends.
    """

    def __init__(self, n_bands: int, n_msi: int, dim: int, row: Variant) -> None:
        super().__init__()
        self.head = nn.Conv2d(2 * n_bands + n_msi, 2 * dim, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(2 * dim) for _ in range(row.blocks)))
        self.tail = nn.Conv2d(2 * dim, n_bands, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "b n h w"], msi: Float[Tensor, "b m h w"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b n h w"]:
        detail = x - upsample(lr, x.shape[-1] // lr.shape[-1])
        return 0.02 * self.tail(self.blocks(self.head(torch.cat([4 * x, 4 * msi, 40 * detail], dim=1))))

    def begin(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.tail.weight)
        for block in self.blocks.children():
            nn.init.zeros_(cast(ResidualBlock, block).second.weight)


class ResidualBlock(nn.Module):
    """x + conv3×3(GELU(conv3×3(x)))."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(c, c, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.second(F.gelu(self.first(x)))
