"""Point 6: which kernels look at the image; the seam where they belong to quadrants of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int

from ka.models.variants import N_WINDOWS, VARIANTS
from workbook.audit.trials import EXACT, random_layer, random_maps, relative, seeded, yes


class Adaptivity(NamedTuple):
    """Whether a KA layer looks at the image."""

    variant: str
    moves: float  # relative change of its kernels from one image to another
    error: float  # of f(x + y) = f(x) + f(y) - f(0), relative

    @property
    def adaptive(self) -> bool:
        return self.moves > EXACT

    @property
    def additive(self) -> bool:
        """Whether the layer is a fixed linear map plus a constant."""
        return self.error < EXACT

    def row(self) -> dict[str, str]:
        return {
            "variant": self.variant,
            "kernels change with the image": yes(self.adaptive),
            "additive, that is, a fixed convolution": yes(self.additive),
        }


def ka_variants() -> list[str]:
    """Variants of the study and of the second report with kernels."""
    return [name for name, row in VARIANTS.items() if row.has_ka and row.kernels != "identity" and not row.ours]


@torch.no_grad()
def adaptivity(names: Sequence[str], c: int = 24) -> list[Adaptivity]:
    """Give each layer two images, their sum, and nothing."""
    variants = []
    x, y = random_maps(c, 16, 2).split(1)
    for name in names:
        layer = random_layer(name, c)
        here, there = (torch.cat([k.flatten() for k in layer.kernels(image) if k is not None]) for image in (x, y))
        additive = layer(x) + layer(y) - layer(torch.zeros_like(x))
        variants.append(Adaptivity(name, relative(here, there), relative(layer(x + y), additive)))
    return variants


class Seam(NamedTuple):
    """One output channel of a layer for a constant and for a smooth image."""

    variant: str
    constant: Float[np.ndarray, "h w"]
    smooth: Float[np.ndarray, "h w"]
    step: Float[np.ndarray, " h-1"]  # mean |difference| of neighbouring rows (smooth), all channels; NaN at the border

    @property
    def ratio(self) -> float:
        """The largest of the three steps at the middle (zero padding acts on either side), over the median step."""
        middle = len(self.step) // 2
        return float(self.step[middle - 1 : middle + 2].max() / np.nanmedian(self.step))


@torch.no_grad()
def seams(names: Sequence[str], c: int = 24, size: int = 64, seed: int = 0) -> list[Seam]:
    """Show layers a constant image, and one of slow waves (two periods at most over the image)."""
    with seeded(seed):
        level = torch.randn(c, dtype=torch.float64)
        amplitude = torch.randn(c, 2, 2, dtype=torch.float64)
    t = torch.arange(size, dtype=torch.float64) / size
    waves = torch.stack([torch.cos(2 * math.pi * t), torch.cos(4 * math.pi * t + 1)])
    constant = level[None, :, None, None].expand(1, c, size, size)
    smooth = constant + 0.3 * torch.einsum("cij,iy,jx->cyx", amplitude, waves, waves)
    shown = []
    for name in names:
        layer = random_layer(name, c, seed)
        flat, y = layer(constant)[0], layer(smooth)[0]
        step = (y[:, 1:] - y[:, :-1])[..., 2:-2].abs().mean((0, 2)).numpy()
        step[:2] = step[-2:] = np.nan
        shown.append(Seam(name, flat[0].numpy(), y[0].numpy(), step))
    return shown


class Agreement(NamedTuple):
    """A layer on training patches against the same layer on the whole image they were cut from."""

    variant: str
    difference: Float[np.ndarray, "h w"]  # per pixel, its length over the mean length of the output
    inside: Bool[np.ndarray, "h w"]  # pixels that no border of a patch or a quadrant is next to

    @property
    def share(self) -> float:
        """Share of the inner pixels where both agree."""
        return float((self.difference[self.inside] < EXACT).mean())


@torch.no_grad()
def patch_and_whole(names: Sequence[str], patch: int = 64, patches: int = 4, c: int = 24) -> list[Agreement]:
    """Run a layer patch by patch (as in training) and on the whole image (as at test)."""
    size = patch * patches
    x = random_maps(c, size)
    cut = rearrange(x, "1 c (p y) (q x) -> (p q) c y x", p=patches, q=patches)
    inner = np.isin(np.arange(size) % (patch // 2), (0, patch // 2 - 1), invert=True)
    agreements = []
    for name in names:
        layer = random_layer(name, c)
        whole = layer(x)[0]
        joined = rearrange(layer(cut), "(p q) c y x -> c (p y) (q x)", p=patches)
        difference = (joined - whole).norm(dim=0) / whole.norm(dim=0).mean()
        agreements.append(Agreement(name, difference.numpy(), np.outer(inner, inner)))
    return agreements


def kernels_met(size: int = 512, patch: int = 64, stride: int = 32) -> Int[np.ndarray, "n size size"]:
    """How many training patches show a pixel to each window kernel (the study's patches of a scene, see `Patches`)."""
    half = np.zeros((2, size), dtype=int)
    for first in range(0, size - patch, stride):
        half[0, first : first + patch // 2] += 1
        half[1, first + patch // 2 : first + patch] += 1
    return np.einsum("py,qx->pqyx", half, half).reshape(N_WINDOWS, size, size)
