"""What a Kernel Attention layer is made of: where kernels come from, and what is done to them before they convolve.

Kernels are tensors `s m o i u v`: sample (1 where they do not depend on the image), kernel of the set (n windows,
row-major, and the global kernel), output channel, input channel, and the k×k taps.
"""

import math
from collections.abc import Callable
from functools import reduce
from itertools import product

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ka.models.variants import N_WINDOWS, Variant

GRID = math.isqrt(N_WINDOWS)  # windows a side
Map = Float[Tensor, "b c h w"]
Kernels = Float[Tensor, "s m o i u v"]


def quadrants(x: Map) -> Float[Tensor, "b m c y x"]:
    """Cut a map into its n windows (row-major); H and W must be even."""
    return rearrange(x, "b c (p y) (q x) -> b (p q) c y x", p=GRID, q=GRID)


def unquadrants(windows: Float[Tensor, "b m c y x"]) -> Map:
    """Put windows back in place: the inverse of `quadrants`."""
    return rearrange(windows, "b (p q) c y x -> b c (p y) (q x)", p=GRID, q=GRID)


def normal_(tensor: Tensor, std: float = 1.0) -> None:
    """Draw start values; not without memory, where drawing none imports PyTorch's compiler, for seconds."""
    if not tensor.is_meta:
        nn.init.normal_(tensor, std=std)


class Pointwise(nn.Linear):
    """A 1×1 convolution of the last axis; its start is that of a convolution (default weight, bias 0), no Linear's."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LearnedKernels(nn.Module):
    """One k×k kernel per window. The output of the convolution they come from is never used: only the weight is."""

    def __init__(self, c: int, row: Variant) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(row.n_windows, c, c, row.size, row.size))
        if row.normal_init:
            normal_(self.weight)
        else:
            for kernel in self.weight.unbind():
                nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))  # PyTorch's convolution default

    def forward(self, x: Map) -> Kernels:
        return self.weight[None]


class PooledKernels(nn.Module):
    """Each window of the input, average-pooled to k×k; there is no output axis yet (o = 1)."""

    def __init__(self, c: int, row: Variant) -> None:
        super().__init__()
        self.size = row.size

    def forward(self, x: Map) -> Kernels:
        windows = quadrants(x)
        rows, cols = (bins(n, self.size, x) for n in windows.shape[-2:])
        return einsum(rows, windows, cols, "u y, b m i y x, v x -> b m i u v")[:, :, None]


class RidgeKernels(nn.Module):
    """Each window's ridge regression of values on keys, and queries to apply it to: a c→c kernel of k×k.

    Keys and values are 1×1 convolutions of the input, queries Q a k×k one. Of what keys and values have beyond their
    means over the window, W = (C + R)⁻¹ (X + R · fallback), C the mean of k kᵀ, X of k vᵀ; the ridge R is a learned
    share of each key's own energy (the diagonal of C) and a floor, so that a flat window has the fallback, at first
    the identity. The layer's kernel is Wᵀ Q, all in one. The solve is in float64.
    """

    floor = 1e-6

    def __init__(self, c: int, row: Variant) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(c, c, row.size, row.size))
        nn.init.kaiming_uniform_(self.query, a=math.sqrt(5))
        self.key_value = Pointwise(c, 2 * c, bias=False)  # which means would take away
        self.fallback = nn.Parameter(torch.eye(c))
        self.log_share = nn.Parameter(torch.zeros(c))

    def forward(self, x: Map) -> Kernels:
        with torch.autocast(x.device.type, enabled=False):
            tokens = rearrange(quadrants(x), "b m c y x -> b m (y x) c")
            tokens = F.linear(tokens - tokens.mean(2, keepdim=True), self.key_value.weight)
            keys, values = tokens.double().chunk(2, dim=-1)
            squares, crosses = (keys.mT @ other / keys.shape[2] for other in (keys, values))
            ridge = self.floor + self.log_share.double().exp() * squares.diagonal(dim1=-2, dim2=-1)
            towards = crosses + ridge[..., None] * self.fallback.double()
            solved = torch.linalg.solve(squares + torch.diag_embed(ridge), towards)
            return einsum(solved.to(self.query.dtype), self.query, "b m d o, d i u v -> b m o i u v")


def bins(n: int, k: int, like: Tensor) -> Float[Tensor, "k n"]:
    """Adaptive average pooling of n pixels to k as a matrix: bin i averages pixels ⌊i·n/k⌋ … ⌈(i+1)·n/k⌉ - 1."""
    # PyTorch's own pooling has no reproducible gradient on CUDA
    pixel, i = torch.arange(n, device=like.device), torch.arange(k, device=like.device)[:, None]
    weight = ((pixel >= i * n // k) & (pixel < -(-(i + 1) * n // k))).to(like.dtype)
    return weight / weight.sum(1, keepdim=True)


class Reweight(nn.Module):
    """Gate each window kernel per sample by what it finds in its window.

    Convolution of each window by its own kernel → global average → 1×1 convolution c→1 per window → n numbers →
    MLP n→4n→n with GELU → sigmoid → one gate per sample and window.
    """

    def __init__(self, c: int) -> None:
        super().__init__()
        self.squeeze = nn.ModuleList(Pointwise(c, 1) for _ in range(N_WINDOWS))
        self.expand = nn.Linear(N_WINDOWS, 4 * N_WINDOWS)
        self.contract = nn.Linear(4 * N_WINDOWS, N_WINDOWS)

    def forward(self, kernels: Kernels, x: Map) -> Kernels:
        mean = mean_response(quadrants(x), kernels[0])
        numbers = torch.cat([squeeze(mean[:, m]) for m, squeeze in enumerate(self.squeeze)], dim=1)
        gate = self.contract(F.gelu(self.expand(numbers))).sigmoid()
        return kernels * rearrange(gate, "b m -> b m 1 1 1 1")


def mean_response(windows: Float[Tensor, "b m i y x"], kernels: Float[Tensor, "m o i u v"]) -> Float[Tensor, "b m o"]:
    """Mean over each window of its convolution by its own kernel (stride 1, zero padding), without convolving.

    It is the kernel times the means of the shifted window (a shift drops border rows or columns): k² sums in all.
    """
    (h, w), k = windows.shape[-2:], kernels.shape[-1]
    shifts = product(range(-(k // 2), k // 2 + 1), repeat=2)
    sums = [windows[..., max(y, 0) : h + min(y, 0), max(x, 0) : w + min(x, 0)].sum((-2, -1)) for y, x in shifts]
    taps = rearrange(sums, "(u v) b m i -> b m i u v", u=k) / (h * w)
    return einsum(taps, kernels, "b m i u v, m o i u v -> b m o")


class KernelSA(nn.Module):
    """Self-attention over kernel taps, as the study has it, or over channels.

    For each output filter the m·k² taps (window-major, then row-major in k×k) are tokens, each a vector over the
    input channels. 4 heads, scale (c/4)^-0.5, no residual. Among channels, queries, keys and values are the same, but
    the c/4 channels of a head are the tokens, each a vector over the taps: the transposed attention of XCiT (El-Nouby
    et al., NeurIPS 2021, equation 2), scaled by (m·k²)^-0.5 instead of being normalised. Both: their sum.
    """

    n_heads = 4

    def __init__(self, c: int, row: Variant) -> None:
        super().__init__()
        self.qkv = nn.Linear(c, 3 * c)
        self.proj = nn.Linear(c, c)
        self.scrambled = row.sa == "scrambled"
        self.among = row.sa_among

    def heads(self, kernels: Kernels) -> Float[Tensor, "three so heads taps d"]:
        """Queries, keys and values of every output filter, by head."""
        s, m, o, _, u, v = kernels.shape
        taps = rearrange(kernels, "s m o i u v -> s o (m u v) i")
        if self.scrambled:  # KAv8's reshape, without the permutation it needed (audit, point 4)
            taps = rearrange(taps.reshape(s, m, o, u * v, -1), "s m o t i -> s o (m t) i")
        return rearrange(self.qkv(taps), "s o t (three h d) -> three (s o) h t d", three=3, h=self.n_heads)

    def forward(self, kernels: Kernels) -> Kernels:
        s, m, _, _, u, v = kernels.shape
        heads = self.heads(kernels)
        mixed = [] if self.among == "channels" else [F.scaled_dot_product_attention(*heads)]
        mixed += [] if self.among == "taps" else [F.scaled_dot_product_attention(*heads.mT).mT]
        taps = self.proj(rearrange(reduce(torch.add, mixed), "(s o) h t d -> s o t (h d)", s=s))
        return rearrange(taps, "s o (m u v) i -> s m o i u v", m=m, u=u, v=v)


class SE(nn.Module):
    """Squeeze-and-excitation of kernels over their input channels, the same for all (`groups=1`) or of each its own.

    Mean over k×k → 1×1 convolution → ReLU → 1×1 convolution → sigmoid → multiply.
    """

    def __init__(self, c: int, groups: int = 1) -> None:
        super().__init__()
        self.squeeze = nn.ModuleList(Pointwise(c, c) for _ in range(groups))
        self.excite = nn.ModuleList(Pointwise(c, c) for _ in range(groups))

    def gate(self, mean: Float[Tensor, "*any i"], group: int) -> Float[Tensor, "*any i"]:
        """The factor in (0, 1) of every input channel."""
        return self.excite[group](F.relu(self.squeeze[group](mean))).sigmoid()

    def forward(self, kernels: Kernels) -> Kernels:
        means = kernels.mean((-2, -1)).chunk(len(self.squeeze), dim=1)
        return kernels * torch.cat([self.gate(mean, m) for m, mean in enumerate(means)], dim=1)[..., None, None]


class GlobalKernel(nn.Module):
    """One kernel made of all window kernels: these joined on the input axis, through a 1×1 convolution n·c → c."""

    def __init__(self, c: int, row: Variant) -> None:
        super().__init__()
        self.mix = (nn.Linear if "global" in row.linear else Pointwise)(N_WINDOWS * c, c, bias=row.global_bias)

    def forward(self, kernels: Kernels) -> Kernels:
        taps = rearrange(kernels, "s m o i u v -> s o u v (m i)")
        return rearrange(self.mix(taps), "s o u v i -> s 1 o i u v")


class LinearWidening(nn.Module):
    """The output axis that pooled kernels (s m 1 i u v) lack, learned per tap: c → c², output major."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c, c * c)

    def forward(self, kernels: Kernels) -> Kernels:
        taps = self.linear(rearrange(kernels, "s m 1 i u v -> s m u v i"))
        return rearrange(taps, "s m u v (o i) -> s m o i u v", i=kernels.shape[3])


class OuterWidening(nn.Module):
    """A `LinearWidening` of rank 1: per tap the outer product of two descriptors, each a Linear c → c."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.descriptors = nn.Linear(c, 2 * c)

    def forward(self, kernels: Kernels) -> Kernels:
        of_output, of_input = self.descriptors(rearrange(kernels, "s m 1 i u v -> s m u v i")).chunk(2, dim=-1)
        return einsum(of_output, of_input, "s m u v o, s m u v i -> s m o i u v")


class DepthwiseWidening(nn.Module):
    """Output o sees input o alone; the fusion mixes channels."""

    def forward(self, kernels: Kernels) -> Kernels:
        c = kernels.shape[3]
        return kernels * torch.eye(c, dtype=kernels.dtype, device=kernels.device)[..., None, None]


class Repeat(nn.Module):
    """The same kernel for every output channel."""

    def forward(self, kernels: Kernels) -> Kernels:
        return kernels.expand(-1, -1, kernels.shape[3], -1, -1, -1)


class AffineRepeat(Repeat):
    """The same kernel for every output channel, each input channel scaled and shifted."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, kernels: Kernels) -> Kernels:
        return super().forward(kernels * self.weight[:, None, None] + self.bias[:, None, None])


WIDENINGS: dict[str, Callable[[int], nn.Module]] = {
    "linear": LinearWidening,
    "outer": OuterWidening,
    "depthwise": lambda c: DepthwiseWidening(),
    "repeat": lambda c: Repeat(),
    "repeat+affine": AffineRepeat,
}

WINDOW_KERNELS: dict[str, Callable[[int, Variant], nn.Module]] = {
    "pooled": PooledKernels,
    "learned": LearnedKernels,
    "reweighted": LearnedKernels,
    "regressed": RidgeKernels,
}
