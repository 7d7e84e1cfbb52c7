"""Kernels that adapt, on learned features: regressed in every window, or mixed from a bank; and the lean body that may
follow them.

Local injection (`ka.methods.local`) makes a kernel for every low-resolution pixel from its own neighbourhood; here the
channels that it sees, its ridge and what a window without detail falls back on are learned, through the solve.
Differentiating a ridge regression as a layer: Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable
closed-form solvers", ICLR 2019.
"""

from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ka.data.datasets import PROTOCOL
from ka.data.simulate import Degradation, cubic_matrix, degrade_matrix
from ka.methods.local import DARK, RADIUS, box_matrix
from ka.models.kernel_parts import bins
from ka.models.variants import Variant

FLOOR = 1e-6  # least ridge, in squared units of the images: below it flat windows fit their noise
# Ridge beside it, in parts of a feature's own energy in the window: of channels, of their roots, of learned features.
# At an edge all features say the same; the channels, in which mixed pixels are linear, shall then explain it.
SHRINK = (0.01, 0.02, 1.0)
REACH = RADIUS + 4  # low-resolution pixels: a window, a 3×3 mean, the kernels' upsampling, a blur
STRIP = 16  # low-resolution rows whose kernels are upsampled at a time: those of a whole scene would fill gigabytes


class RegressedKernels(nn.Module):
    """bicubic(lr) + K(x, y)ᵀ · detail(features)(x, y), with kernels K regressed on `lr` at low resolution.

    Features are the HR-MSI's channels, their square roots, and `row.features` that three 3×3 convolutions make of the
    starting image and the HR-MSI. `row.front` says what a kernel looks at: the window of its low-resolution pixel, the
    whole image, or nothing (then it is a weight). The solve is in float64.
    """

    def __init__(self, n_bands: int, n_msi: int, row: Variant) -> None:
        super().__init__()
        self.sees, self.degradation = row.front, PROTOCOL
        counts = (n_msi, n_msi, row.features)
        self.shares = [share for share, n in zip(SHRINK, counts, strict=True) for _ in range(n)]
        n = 2 * n_msi + row.features
        sizes = (n_bands + n_msi, row.hidden, row.hidden, row.features)
        convolutions = [nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sizes)]
        self.learned = nn.Sequential(convolutions[0], nn.GELU(), convolutions[1], nn.GELU(), convolutions[2])
        self.fallback = nn.Parameter(torch.zeros(n, n_bands))
        self.log_ridge = nn.Parameter(torch.full((n,), -11.0)) if row.front != "nothing" and not row.bank else None

    def begin(self, degradation: Degradation, matrix: "Float[np.ndarray, 'bands m'] | None" = None) -> None:
        """What made `lr`, and a fitted matrix of the HR-MSI's channels (and their roots) to fall back on at first."""
        self.degradation = degradation
        if matrix is not None:
            with torch.no_grad():
                self.fallback[: matrix.shape[1]] = torch.from_numpy(matrix.T.copy())

    def forward(
        self, up: Float[Tensor, "b n h w"], msi: Float[Tensor, "b m h w"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b n h w"]:
        """The sharpened image; `up` is the image that the network starts from."""
        features = self.features(up, msi)
        with torch.autocast("cpu" if up.is_meta else up.device.type, enabled=False):  # the solve wants every digit
            low, ratio = degraded(features, self.degradation), self.degradation.ratio
            return apply_kernels(self.kernels(low, lr), features - upsample(low, ratio), upsample(lr, ratio))

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
        """The kernel of every low-resolution pixel: (C + R)⁻¹ (X + R · fallback), as `ka.methods.local_kernels`.

        C and X are means over the window of products of what `low` and `lr` have beyond their 3×3 means; the ridge R
        is diagonal: a learned part, and one in proportion to a feature's own energy, the diagonal of C (`SHRINK`).
        """
        if self.log_ridge is None:
            return self.fallback[None, :, :, None, None].expand(len(lr), -1, -1, *lr.shape[-2:])
        k, both = low.shape[1], torch.cat([low, lr], dim=1)
        high = both - _box(both, 1)
        products = einsum(high[:, :k], high, "b i y x, b j y x -> b i j y x")
        if self.sees == "image":
            means = products.mean((-2, -1), keepdim=True).expand_as(products)
        else:
            means = _box(products, RADIUS)
        means = rearrange(means, "b i j y x -> b y x i j").double()
        squares, crosses = means[..., :k], means[..., k:]
        shrink = torch.tensor(self.shares, dtype=squares.dtype, device=squares.device)
        ridge = FLOOR + self.log_ridge.double().exp() + shrink * squares.diagonal(dim1=-2, dim2=-1)
        towards = crosses + ridge[..., None] * self.fallback.double()
        solved = torch.linalg.solve(squares + torch.diag_embed(ridge), towards)
        return rearrange(solved, "b y x i j -> b i j y x").to(lr.dtype)


class KernelBank(RegressedKernels):
    """up + K(x, y)ᵀ · detail(features)(x, y), with kernels mixed from `row.bank` learned ones, B, and a fallback.

    K(x, y) = fallback + Σ_r a_r(x, y) · B_r; all start at 0, so that the network starts with the image it is given.
    Weights a, of any sign, are made of the features (as of `RegressedKernels`) by a 3×3 convolution, GELU, a mean over
    what `row.front` says, and two 1×1 convolutions, and divided by their root mean square: small ones would hardly
    learn. Only those of pixels are made at full resolution; the others see
    features as the sensor does, and their kernels are upsampled. Mixing kernels by weights of the input: Yang, Bender,
    Le, Ngiam, "CondConv", NeurIPS 2019.
    """

    def __init__(self, n_bands: int, n_msi: int, row: Variant) -> None:
        super().__init__(n_bands, n_msi, row)
        k, hidden = len(self.fallback), row.hidden
        self.bank = nn.Parameter(torch.zeros(row.bank, k, n_bands))
        self.look = nn.Sequential(nn.Conv2d(k, hidden, 3, padding=1), nn.GELU())
        self.weigh = nn.Sequential(nn.Conv2d(hidden, hidden, 1), nn.GELU(), nn.Conv2d(hidden, row.bank, 1))

    def forward(
        self, up: Float[Tensor, "b n h w"], msi: Float[Tensor, "b m h w"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b n h w"]:
        """The sharpened image; `up` is the image that the network starts from."""
        features = self.features(up, msi)
        with torch.autocast("cpu" if up.is_meta else up.device.type, enabled=False):
            low = degraded(features, self.degradation)
            detail = features - upsample(low, self.degradation.ratio)
            if self.sees != "pixel":
                return apply_kernels(self.kernels(low, lr), detail, up)
            mixed = rearrange(self.weights(features)[:, :, None] * detail[:, None], "b r k h w -> b (r k) h w")
            matrices = rearrange(torch.cat([self.fallback[None], self.bank]), "r k n -> n (r k) 1 1")
            return up + F.conv2d(torch.cat([detail, mixed], dim=1), matrices)

    def begin(self, degradation: Degradation, matrix: "Float[np.ndarray, 'bands m'] | None" = None) -> None:
        """What made `lr`; a fitted matrix is in the starting image already."""
        super().begin(degradation)

    def weights(self, features: Float[Tensor, "b k y x"]) -> Float[Tensor, "b r y x"]:
        """How much of each kernel of the bank, at every pixel of features (degraded, but for weights of pixels)."""
        seen = self.look(4 * features)  # about as large as GELU bends
        if self.sees == "window":
            seen = _box(seen, RADIUS)
        elif self.sees != "pixel":
            parts = 1 if self.sees == "image" else 2
            down, across = (_like_parts(n, parts, seen) for n in seen.shape[-2:])
            seen = down @ seen @ across.T
        weights = self.weigh(seen)
        return weights * torch.rsqrt(weights.square().mean(1, keepdim=True) + FLOOR)

    def field(
        self, features: Float[Tensor, "b k h w"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b k n rows columns"]:
        """The kernel of every low-resolution pixel; of its pixels the mean, as the sensor takes it."""
        if self.sees != "pixel":
            return super().field(features, lr)
        return self.mixed(degraded(self.weights(features), self.degradation))

    def kernels(
        self, low: Float[Tensor, "b k rows columns"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b k n rows columns"]:
        """The kernel of every low-resolution pixel, where weights are not those of pixels."""
        return self.mixed(self.weights(low))

    def mixed(self, weights: Float[Tensor, "b r y x"]) -> Float[Tensor, "b k n y x"]:
        """fallback + Σ_r weights_r · bank_r."""
        return self.fallback[:, :, None, None] + einsum(weights, self.bank, "b r y x, r k n -> b k n y x")


def apply_kernels(
    kernels: Float[Tensor, "b k n rows columns"],
    detail: Float[Tensor, "b k h w"],
    image: Float[Tensor, "b n h w"],
) -> Float[Tensor, "b n h w"]:
    """image + Σ_k bicubic(kernels_k) · detail_k, a strip of low-resolution rows at a time."""
    rows, ratio = kernels.shape[-2], detail.shape[-2] // kernels.shape[-2]
    down, across = (_like(cubic_matrix(n, ratio), detail) for n in kernels.shape[-2:])
    strips = []
    for top in range(0, rows, STRIP):
        near = slice(max(0, top - 2), min(rows, top + STRIP + 2))  # a cubic's support
        here = slice(top * ratio, min(rows, top + STRIP) * ratio)
        weights, strip = down[here, near], image[..., here, :]
        for kernel, channel in zip(kernels.unbind(1), detail.unbind(1), strict=True):
            strip = torch.addcmul(strip, weights @ (kernel[..., near, :] @ across.T), channel[:, None, here])
        strips.append(strip)
    return torch.cat(strips, dim=-2)


def degraded(x: Float[Tensor, "b k h w"], degradation: Degradation) -> Float[Tensor, "b k rows columns"]:
    """As the low-resolution sensor sees it: `ka.data.simulate.degrade`."""
    down, across = (_like(degrade_matrix(n, degradation), x) for n in x.shape[-2:])
    return down @ x @ across.T


def upsample(x: Float[Tensor, "b k rows columns"], ratio: int) -> Float[Tensor, "b k h w"]:
    """Bicubic, as `ka.data.simulate.bicubic`."""
    down, across = (_like(cubic_matrix(n, ratio), x) for n in x.shape[-2:])
    return down @ x @ across.T


def _box(x: Float[Tensor, "... rows columns"], radius: int) -> Float[Tensor, "... rows columns"]:
    """Mean over (2 · radius + 1)² pixels, mirrored at borders."""
    down, across = (_like(box_matrix(n, radius), x) for n in x.shape[-2:])
    return down @ x @ across.T


def _like_parts(n: int, parts: int, x: Tensor) -> Float[Tensor, "n n"]:
    """For each of n pixels the mean over its part of them: all, or a half (an odd middle belongs to both means)."""
    return bins(n, parts, x)[torch.arange(n, device=x.device) * parts // n]


def _like(matrix: Float[np.ndarray, "i j"], x: Tensor) -> Float[Tensor, "i j"]:
    return torch.from_numpy(np.array(matrix)).to(x.device, x.dtype)


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
