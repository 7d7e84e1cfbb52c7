"""The Kernel Attention (KA) layer, read top to bottom as the study's diagram.

    window kernels → SA → SE → global kernel → second convolution → fusion

Which parts a layer has is a row of `ka.models.variants`, the parts are in `ka.models.kernel_parts`; nothing here knows
a variant by name. Kernels are tensors `s m o i u v`, see there.

The second convolution and the fusion after it are linear, so `fold` merges them: n or n+1 convolutions and a 1×1
convolution become one c→c convolution, exactly. This is what `forward` computes, in training too: the folded kernel
costs nothing that grows with the image, and gradients are the same.
"""

from collections.abc import Iterator
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ka.errors import KAError
from ka.models import kernel_parts as parts
from ka.models.kernel_parts import Kernels, Map, quadrants, unquadrants
from ka.models.variants import N_WINDOWS, Variant


class KernelAttention(nn.Module):
    """One KA layer on c channels (half of the embedding), made of the parts of `row`; KAError if SA cannot split c."""

    def __init__(self, c: int, row: Variant) -> None:
        super().__init__()
        if row.sa and c % parts.KernelSA.n_heads:
            raise KAError(f"kernel SA splits c={c} channels into 4 heads; choose a dim that is a multiple of 8")
        self.row = row
        self.window_kernels = parts.WINDOW_KERNELS[row.kernels](c, row) if row.kernels in parts.WINDOW_KERNELS else None
        self.reweight = parts.Reweight(c) if row.kernels == "reweighted" else None
        self.sa = parts.KernelSA(c, row) if row.sa else None
        self.se = parts.SE(c, N_WINDOWS if row.se == "per window" else 1) if row.se else None
        self.widen = parts.WIDENINGS[row.widen](c) if row.widen else None
        self.global_kernel = parts.GlobalKernel(c, row) if row.global_from else None
        self.global_se = parts.SE(c) if row.global_se == "own" else None
        fusion = nn.Linear if "fusion" in row.linear else parts.Pointwise
        n_fused = 2 if row.second == "windows+image" else row.n_second
        self.fusion = fusion(n_fused * c, c) if row.has_fusion else None
        self.bias = nn.Parameter(torch.zeros(c)) if row.bias else None

    def stages(self, x: Map) -> Iterator[tuple[str, Kernels, Kernels | None]]:
        """The kernels after each part that the row has, in order: (part, of the windows, global).

        Parts are "window kernels", "reweighting", "global kernel", "SA", "SE" and "widening"; a global kernel that is
        made after SA comes after it. SA treats the window kernels alone, or joined with the global kernel.
        """
        row = self.row
        assert self.window_kernels is not None, "an identity layer has no kernels"
        windows, glob = self.window_kernels(x), None
        yield "window kernels", windows, glob
        if self.reweight is not None:
            windows = self.reweight(windows, x)
            yield "reweighting", windows, glob
        if self.global_kernel is not None and row.global_from == "raw":
            glob = self.global_kernel(windows)
            yield "global kernel", windows, glob
        if self.sa is not None:
            if row.sa == "windows":
                windows = self.sa(windows)
            else:
                windows, glob = self._split(self.sa(self._join(windows, glob)))
            yield "SA", windows, glob
        if self.global_kernel is not None and row.global_from == "attended":
            glob = self.global_kernel(windows)
            yield "global kernel", windows, glob
        if self.se is not None or self.global_se is not None:
            windows = windows if self.se is None else self.se(windows)
            global_se = self.se if row.global_se == "shared" else self.global_se
            glob = glob if global_se is None else global_se(glob)
            yield "SE", windows, glob
        if self.widen is not None:
            windows = self.widen(windows)
            yield "widening", windows, glob

    def kernels(self, x: Map) -> tuple[Kernels, Kernels | None]:
        """The kernels of the second convolution, after all stages: (of the windows, global or None)."""
        *_, (_, windows, glob) = self.stages(x)
        return windows, glob

    def _join(self, windows: Kernels, glob: Kernels | None) -> Kernels:
        if glob is None:
            return windows
        return torch.cat([glob, windows] if self.row.global_first else [windows, glob], dim=1)

    def _split(self, kernels: Kernels) -> tuple[Kernels, Kernels]:
        return (kernels[:, 1:], kernels[:, :1]) if self.row.global_first else (kernels[:, :-1], kernels[:, -1:])

    def folded(self, x: Map) -> "tuple[Kernels | None, Kernels | None, Tensor | None]":
        """What the layer does to `x`, folded: (a kernel per window, one for the image, the bias)."""
        if self.window_kernels is None:
            return None, None, None
        windows, glob = self.kernels(x)
        if self.fusion is None:
            if self.row.second == "windows":
                return windows, None, None
            return None, windows if glob is None else glob, self.bias
        weight, bias = self.fusion.weight, self.fusion.bias
        if self.row.second == "image":
            return None, fold(self._join(windows, glob), weight), bias
        on_windows, on_image = weight.chunk(2, dim=1)
        windows = torch.cat([fold(kernel, on_windows) for kernel in windows.split(1, dim=1)], dim=1)
        return windows, fold(cast(Tensor, glob), on_image), bias

    def forward(self, x: Map) -> Map:
        return apply_folded(x, *self.folded(x), activation=self.row.activation)


def fold(kernels: Kernels, fusion: Float[Tensor, "c mo"]) -> Kernels:
    """Merge m convolutions of one image and the 1×1 fusion of their results into one kernel, exactly.

    Σ_m F_m · (K_m ∗ x) = (Σ_m F_m · K_m) ∗ x. Kernel m's output channels are columns m·o … of `fusion`.
    """
    by_kernel = rearrange(fusion, "c (m o) -> c m o", m=kernels.shape[1])
    return einsum(by_kernel, kernels, "c m o, s m o i u v -> s c i u v")[:, None]


def apply_folded(
    x: Map, windows: Kernels | None, image: Kernels | None, bias: Tensor | None, activation: bool = False
) -> Map:
    """The second convolution: each window by its kernel, the image by its own, summed; bias, GELU. No kernels: `x`."""
    results = [] if windows is None else [convolve_windows(x, windows)]
    results += [] if image is None else [convolve(x, image[:, 0])]
    if not results:
        return x
    y = reduce(torch.add, results)
    if bias is not None:
        y = y + bias[:, None, None].to(y.dtype)
    return F.gelu(y) if activation else y


def convolve(x: Map, kernel: Float[Tensor, "s o i u v"]) -> Map:
    """k×k convolution, stride 1, zero padding, no bias; one kernel for all samples, or one each (groups)."""
    pad = kernel.shape[-1] // 2
    if len(kernel) == 1:
        return F.conv2d(x, kernel[0], padding=pad)
    one_image, filters = rearrange(x, "b c h w -> 1 (b c) h w"), rearrange(kernel, "b o i u v -> (b o) i u v")
    y = F.conv2d(one_image, filters, padding=pad, groups=len(x))
    return rearrange(y, "1 (b c) h w -> b c h w", b=len(x))


def convolve_windows(x: Map, kernels: Kernels) -> Map:
    """k×k convolution of each quadrant by its own kernel (of each sample), zero-padded at the quadrant's border."""
    pairs = zip(quadrants(x).unbind(1), kernels.unbind(1), strict=True)
    return unquadrants(torch.stack([convolve(window, kernel) for window, kernel in pairs], dim=1))


class FoldedKernelAttention(nn.Module):
    """A trained KA layer whose kernels do not depend on the image, as plain convolution weights.

    Same output as the layer it was made from, without SA, SE, global kernel and fusion. KAError if the variant is
    adaptive: its kernels differ for every image and cannot be stored.
    """

    def __init__(self, layer: KernelAttention) -> None:
        super().__init__()
        if layer.row.adaptive:
            raise KAError(f"{layer.row.name} cannot be folded: its kernels depend on the image; use it as it is")
        self.activation = layer.row.activation
        with torch.no_grad():
            folded = layer.folded(torch.empty(0))  # static kernels need no image
        self.windows, self.image, self.bias = (None if t is None else nn.Parameter(t.clone()) for t in folded)

    def forward(self, x: Map) -> Map:
        return apply_folded(x, self.windows, self.image, self.bias, self.activation)
