"""Kernels mixed from a bank, in place of a regression."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ka.methods.local import RADIUS
from ka.models.adaptive.fields import apply_kernels, box, degraded, upsample
from ka.models.adaptive.front import Front
from ka.models.kernel_parts import bins


class KernelBank(Front):
    """up + K(x, y)ᵀ · detail(features)(x, y), with kernels mixed from `row.bank` learned ones, B, and a fallback.

    K(x, y) = fallback + Σ_r a_r(x, y) · B_r; all start at 0, so that the network starts with the image it is given.
    Weights a are made of what `row.front` says, by a mean of what was looked at (see `Front`). Only those of pixels are
    made at full resolution; the others see features as the sensor does, and their kernels are upsampled.
    """

    bank: nn.Parameter

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
            weights = self.weights(self.seen(features))
            mixed = rearrange(weights[:, :, None] * detail[:, None], "b r k h w -> b (r k) h w")
            matrices = rearrange(torch.cat([self.fallback[None], self.bank]), "r k n -> n (r k) 1 1")
            return up + F.conv2d(torch.cat([detail, mixed], dim=1), matrices)

    def seen(self, features: Float[Tensor, "b k y x"]) -> Float[Tensor, "b hidden y x"]:
        """What weights are made of, at every pixel of features (degraded, but for weights of pixels)."""
        seen = self.look(4 * features)  # about as large as GELU bends
        if self.sees == "window":
            return box(seen, RADIUS)
        if self.sees == "pixel":
            return seen
        parts = 1 if self.sees == "image" else 2
        down, across = (_like_parts(n, parts, seen) for n in seen.shape[-2:])
        return down @ seen @ across.T

    def field(
        self, features: Float[Tensor, "b k h w"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b k n rows columns"]:
        """The kernel of every low-resolution pixel; of its pixels the mean, as the sensor takes it."""
        if self.sees != "pixel":
            return super().field(features, lr)
        return self.mixed(degraded(self.weights(self.seen(features)), self.degradation))

    def kernels(
        self, low: Float[Tensor, "b k rows columns"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b k n rows columns"]:
        """The kernel of every low-resolution pixel, where weights are not those of pixels."""
        return self.mixed(self.weights(self.seen(low)))


def _like_parts(n: int, parts: int, x: Tensor) -> Float[Tensor, "n n"]:
    """For each of n pixels the mean over its part of them: all, or a half (an odd middle belongs to both means)."""
    return bins(n, parts, x)[torch.arange(n, device=x.device) * parts // n]
