"""Attention over the window of a low-resolution pixel: what counts, when a kernel is regressed there.

A pixel q counts for p by how near and how like it is: softmax over q of −|p − q|² / 2σ² − |g(p) − g(q)|² / 2, for
|p − q| of at most `radius` down and across; `places` are g, `width` is σ. At an image's border a window is what lies
inside. Weights by likeness: Tomasi, Manduchi, "Bilateral Filtering for Gray and Color Images", ICCV 1998.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

ATTENDED = 8  # half the side of a window
NEAR = 3.5  # standard deviation σ of nearness, in low-resolution pixels; chosen on training scenes of CAVE, as
ALIKE = 0.1  # that of likeness, in square roots of the HR-MSI's channels
SIDE = 8  # low-resolution pixels that are asked for at a time, a side: weights of a whole scene would fill gigabytes
Slices = tuple[slice, slice]
"""Rows and columns."""


def attended(
    places: Float[Tensor, "b g rows columns"],
    values: Float[Tensor, "b c rows columns"],
    radius: int,
    width: Float[Tensor, ""],
) -> Float[Tensor, "b c rows columns"]:
    """The mean of `values` over the window of every pixel, whose pixels count by nearness and likeness."""

    def block(y: int, x: int) -> Tensor:
        asked, near = around((y, x), SIDE, radius, places)
        weights = window_weights(places, asked, near, radius, width)
        means = values[..., near[0], near[1]].flatten(2) @ weights.mT
        return rearrange(means, "b c (y x) -> b c y x", x=asked[1].stop - x)

    rows, columns = (range(0, n, SIDE) for n in places.shape[-2:])
    return torch.cat([torch.cat([block(y, x) for x in columns], dim=3) for y in rows], dim=2)


def around(first: tuple[int, int], side: int, radius: int, places: Tensor) -> tuple[Slices, Slices]:
    """The block of pixels that begins at a row and column, and all that lie in their windows, within the image."""
    starts = list(zip(first, places.shape[-2:], strict=True))
    asked = [slice(i, min(n, i + side)) for i, n in starts]
    near = [slice(max(0, i - radius), min(n, i + side + radius)) for i, n in starts]
    return (asked[0], asked[1]), (near[0], near[1])


def window_weights(
    places: Float[Tensor, "b g rows columns"], asked: Slices, near: Slices, radius: int, width: Float[Tensor, ""]
) -> Float[Tensor, "b pixels others"]:
    """How much every pixel of `near` counts for every pixel of `asked`; for each of these 1 in all."""
    down, across = (_numbers(i, places)[:, None] - _numbers(j, places) for i, j in zip(asked, near, strict=True))
    grids = torch.broadcast_tensors(down[:, None, :, None], across[:, None, :])  # both asked, then both near
    apart = rearrange(torch.stack(grids), "t i j k l -> t (i j) (k l)")
    queries, keys = (places[..., rows, columns].flatten(2) for rows, columns in (asked, near))
    nearness = apart.square().sum(0) / (2 * width.square())
    scores = queries.mT @ keys - keys.square().sum(1, keepdim=True) / 2 - nearness
    return scores.masked_fill(apart.abs().amax(0) > radius, -math.inf).softmax(-1)


def _numbers(pixels: slice, like: Tensor) -> Int[Tensor, " n"]:
    return torch.arange(pixels.start, pixels.stop, device=like.device)
