"""Kernels as images: seen as the sensor sees, averaged, upsampled, applied."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ka.data.simulate import Degradation, cubic_matrix, degrade_matrix
from ka.methods.local import box_matrix

STRIP = 16  # low-resolution rows whose kernels are upsampled at a time: those of a whole scene would fill gigabytes


def apply_kernels(
    kernels: Float[Tensor, "b k n rows columns"],
    detail: Float[Tensor, "b k h w"],
    image: Float[Tensor, "b n h w"],
) -> Float[Tensor, "b n h w"]:
    """image + Σ_k bicubic(kernels_k) · detail_k, a strip of low-resolution rows at a time."""
    rows, ratio = kernels.shape[-2], detail.shape[-2] // kernels.shape[-2]
    down, across = (like(cubic_matrix(n, ratio), detail) for n in kernels.shape[-2:])
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
    down, across = (like(degrade_matrix(n, degradation), x) for n in x.shape[-2:])
    return down @ x @ across.T


def upsample(x: Float[Tensor, "b k rows columns"], ratio: int) -> Float[Tensor, "b k h w"]:
    """Bicubic, as `ka.data.simulate.bicubic`."""
    down, across = (like(cubic_matrix(n, ratio), x) for n in x.shape[-2:])
    return down @ x @ across.T


def box(x: Float[Tensor, "... rows columns"], radius: int) -> Float[Tensor, "... rows columns"]:
    """Mean over (2 · radius + 1)² pixels, mirrored at borders."""
    down, across = (like(box_matrix(n, radius), x) for n in x.shape[-2:])
    return down @ x @ across.T


def like(matrix: Float[np.ndarray, "i j"], x: Tensor) -> Float[Tensor, "i j"]:
    """The matrix, on the device and in the precision of x."""
    return torch.from_numpy(np.array(matrix)).to(x.device, x.dtype)
