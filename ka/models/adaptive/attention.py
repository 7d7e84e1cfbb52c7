"""Attention over the window of a low-resolution pixel: what counts, when kernels are regressed there."""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

SIDE = 16  # low-resolution pixels that are asked for at a time, a side: scores of a whole scene would fill gigabytes
NEAR = 3.5  # standard deviation of nearness at first, in low-resolution pixels
ALIKE = 0.1  # of likeness at first, in square roots of the HR-MSI's channels
LIKENESS = 5  # dimensions of likeness beside the channels'
Slices = tuple[slice, slice]


class WindowAttention(nn.Module):
    """Means over windows in which a pixel counts by how near, and how like, the window's centre it is.

    softmax over q of −|p − q|² / 2σ² − |L f(p) − L f(q)|² / 2, for |p − q| ≤ `radius` down and across, with features f
    of low-resolution pixels, and σ and L learned. Without likeness a Gaussian window. At the image's border a window is
    what lies inside. Weights by likeness: Tomasi, Manduchi, "Bilateral Filtering for Gray and Color Images", ICCV 1998.
    """

    def __init__(self, n_msi: int, n_features: int, radius: int, alike: bool) -> None:
        super().__init__()
        self.radius = radius
        self.log_width = nn.Parameter(torch.tensor(math.log(NEAR)))
        likeness = torch.zeros(n_msi + LIKENESS, n_features)  # of features as `Front.features` orders them
        likeness[:n_msi, n_msi : 2 * n_msi] = torch.eye(n_msi) / ALIKE
        likeness[n_msi:] = 0.1 * torch.randn(LIKENESS, n_features)
        self.likeness = nn.Parameter(likeness) if alike else None

    def forward(
        self, low: Float[Tensor, "b k rows columns"], values: Float[Tensor, "b c rows columns"]
    ) -> Float[Tensor, "b c rows columns"]:
        """The mean of `values` over the window of every pixel of `low`."""
        places = self.places(low)
        rows, columns = (range(0, n, SIDE) for n in low.shape[-2:])
        strips = (torch.cat([self.block(places, values, y, x) for x in columns], dim=3) for y in rows)
        return torch.cat(list(strips), dim=2)

    def places(self, low: Float[Tensor, "b k rows columns"]) -> Float[Tensor, "b g rows columns"]:
        """L f: like pixels are near each other here."""
        likeness = low.new_zeros(1, low.shape[1]) if self.likeness is None else self.likeness
        return einsum(likeness, low, "g k, b k y x -> b g y x")

    def block(
        self, places: Float[Tensor, "b g rows columns"], values: Float[Tensor, "b c rows columns"], y: int, x: int
    ) -> Float[Tensor, "b c height width"]:
        """The means of a block of pixels, that begins at row y and column x."""
        around = [self.around(first, SIDE, n) for first, n in zip((y, x), values.shape[-2:], strict=True)]
        asked, near = zip(*around, strict=True)
        means = values[..., near[0], near[1]].flatten(2) @ self.weights(places, asked, near).mT
        return rearrange(means, "b c (y x) -> b c y x", x=asked[1].stop - x)

    def around(self, first: int, side: int, n: int) -> tuple[slice, slice]:
        """Of n rows or columns `side` from `first` on, and those in the windows of their pixels."""
        end = first + side
        return slice(first, min(n, end)), slice(max(0, first - self.radius), min(n, end + self.radius))

    def weights(
        self, places: Float[Tensor, "b g rows columns"], asked: Slices, near: Slices
    ) -> Float[Tensor, "b pixels others"]:
        """How much every pixel of `near` counts for every pixel of `asked` (rows and columns); in all 1."""
        down, across = (numbers(i, places)[:, None] - numbers(j, places) for i, j in zip(asked, near, strict=True))
        grids = torch.broadcast_tensors(down[:, None, :, None], across[:, None, :])  # both asked, then both near
        apart = rearrange(torch.stack(grids), "t i j k l -> t (i j) (k l)")
        queries, keys = (places[..., rows, columns].flatten(2) for rows, columns in (asked, near))
        nearness = apart.square().sum(0) / (2 * torch.exp(2 * self.log_width))
        scores = queries.mT @ keys - keys.square().sum(1, keepdim=True) / 2 - nearness
        return scores.masked_fill(apart.abs().amax(0) > self.radius, -math.inf).softmax(-1)


def numbers(pixels: slice, like: Tensor) -> Int[Tensor, " n"]:
    """Rows or columns, on the device of `like`."""
    return torch.arange(pixels.start, pixels.stop, device=like.device)
