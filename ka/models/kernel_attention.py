"""The Kernel Attention (KA) layer, read top to bottom as the study's diagram.

    window kernels → SA → SE → global kernel → second convolution → fusion

Kernels are tensors `s m o i u v`: sample (1 where they do not depend on the image), kernel of the set (n windows,
row-major, and the global kernel), output channel, input channel, and the k×k taps. Which parts a layer has is a row
of `ka.models.variants`; nothing here knows a variant by name.

The second convolution and the fusion after it are linear, so `fold` merges them: n or n+1 convolutions and a 1×1
convolution become one c→c convolution, exactly. This is what `forward` computes, in training too (the folded kernel
costs nothing that grows with the image, and gradients are the same). `fold` is the only seam between the study's
formula and the fast form.
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ka.errors import KAError
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


class Pointwise(nn.Linear):
    """A 1×1 convolution, applied to the last axis.

    Starts as a convolution does in the published code: PyTorch's default weight, bias 0. (Plain Linear layers of the
    body start from N(0, 0.01²) instead; see `ka.models.psrt.init_weights`.)
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def mix(c_in: int, c_out: int, *, linear: bool, bias: bool = True) -> nn.Linear:
    """A 1×1 mix of channels that the study built as Linear or as a 1×1 convolution: the start values differ."""
    return (nn.Linear if linear else Pointwise)(c_in, c_out, bias=bias)


class LearnedKernels(nn.Module):
    """One k×k kernel per window. The output of the convolution they come from is never used: only the weight is."""

    def __init__(self, c: int, row: Variant) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(row.n_windows, c, c, row.size, row.size))
        if row.normal_init:
            nn.init.normal_(self.weight)
        else:
            for kernel in self.weight.unbind():
                nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))  # PyTorch's convolution default

    def forward(self, x: Map) -> Kernels:
        return self.weight[None]


class PooledKernels(nn.Module):
    """Each window of the input, average-pooled to k×k; there is no output axis yet (o = 1)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Map) -> Kernels:
        windows = quadrants(x)
        rows, cols = (bins(n, self.size, x) for n in windows.shape[-2:])
        return einsum(rows, windows, cols, "u y, b m i y x, v x -> b m i u v")[:, :, None]


def bins(n: int, k: int, like: Tensor) -> Float[Tensor, "k n"]:
    """Adaptive average pooling of n pixels to k as a matrix: bin i averages pixels ⌊i·n/k⌋ … ⌈(i+1)·n/k⌉ - 1.

    PyTorch's own pooling has no reproducible gradient on CUDA.
    """
    pixel, i = torch.arange(n, device=like.device), torch.arange(k, device=like.device)[:, None]
    inside = (pixel >= i * n // k) & (pixel < -(-(i + 1) * n // k))
    weight = inside.to(like.dtype)
    return weight / weight.sum(1, keepdim=True)


class Reweight(nn.Module):
    """Gate each window kernel per sample by what it finds in its window (kav17, kav18).

    First convolution of each window by its own kernel → global average → 1×1 convolution c→1 per window → n numbers →
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

    The mean of a convolution is the kernel times the mean of the shifted window, and a shift by one pixel only drops
    a border row or column: k² sums serve every output channel.
    """
    (h, w), k = windows.shape[-2:], kernels.shape[-1]
    shifts = range(-(k // 2), k // 2 + 1)
    sums = [
        windows[..., max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)].sum((-2, -1))
        for dy in shifts
        for dx in shifts
    ]
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
        mixes = []
        if self.among != "channels":
            mixes.append(F.scaled_dot_product_attention(*heads))
        if self.among != "taps":
            mixes.append(F.scaled_dot_product_attention(*heads.mT).mT)
        mixed = reduce(torch.add, mixes)
        taps = self.proj(rearrange(mixed, "(s o) h t d -> s o t (h d)", s=s))
        return rearrange(taps, "s o (m u v) i -> s m o i u v", m=m, u=u, v=v)


class SE(nn.Module):
    """Squeeze-and-excitation of kernels over their input channels.

    Mean over k×k → 1×1 convolution → ReLU → 1×1 convolution → sigmoid → multiply. One set of weights for all kernels
    (`groups=1`) or one each (`groups` = number of kernels).
    """

    def __init__(self, c: int, groups: int = 1) -> None:
        super().__init__()
        self.squeeze = nn.ModuleList(Pointwise(c, c) for _ in range(groups))
        self.excite = nn.ModuleList(Pointwise(c, c) for _ in range(groups))

    def gate(self, mean: Float[Tensor, "*any i"], group: int) -> Float[Tensor, "*any i"]:
        """The factor in (0, 1) of every input channel."""
        return self.excite[group](F.relu(self.squeeze[group](mean))).sigmoid()

    def forward(self, kernels: Kernels) -> Kernels:
        mean = kernels.mean((-2, -1))
        if len(self.squeeze) == 1:
            gate = self.gate(mean, 0)
        else:
            gate = torch.stack([self.gate(mean[:, m], m) for m in range(len(self.squeeze))], dim=1)
        return kernels * gate[..., None, None]


class GlobalKernel(nn.Module):
    """One kernel made of all window kernels: these joined on the input axis, through a 1×1 convolution n·c → c."""

    def __init__(self, c: int, *, bias: bool, linear: bool) -> None:
        super().__init__()
        self.mix = mix(N_WINDOWS * c, c, bias=bias, linear=linear)

    def forward(self, kernels: Kernels) -> Kernels:
        taps = rearrange(kernels, "s m o i u v -> s o u v (m i)")
        return rearrange(self.mix(taps), "s o u v i -> s 1 o i u v")


# How pooled kernels (s m 1 i u v) get an output axis


class LinearWidening(nn.Module):
    """Learned per tap: c → c², output major."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c, c * c)

    def forward(self, kernels: Kernels) -> Kernels:
        taps = self.linear(rearrange(kernels, "s m 1 i u v -> s m u v i"))
        return rearrange(taps, "s m u v (o i) -> s m o i u v", i=kernels.shape[3])


class OuterWidening(nn.Module):
    """A `LinearWidening` of rank 1: per tap, the outer product of two descriptors, each a Linear c → c of the pooled
    one."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.descriptors = nn.Linear(c, 2 * c)

    def forward(self, kernels: Kernels) -> Kernels:
        of_output, of_input = self.descriptors(rearrange(kernels, "s m 1 i u v -> s m u v i")).chunk(2, dim=-1)
        return einsum(of_output, of_input, "s m u v o, s m u v i -> s m o i u v")


class DepthwiseWidening(nn.Module):
    """Output o sees input o alone; the fusion mixes channels."""

    def __init__(self, c: int) -> None:
        super().__init__()

    def forward(self, kernels: Kernels) -> Kernels:
        c = kernels.shape[3]
        return kernels * torch.eye(c, dtype=kernels.dtype, device=kernels.device)[..., None, None]


class Repeat(nn.Module):
    """The same kernel for every output channel."""

    def __init__(self, c: int) -> None:
        super().__init__()

    def forward(self, kernels: Kernels) -> Kernels:
        return kernels.expand(-1, -1, kernels.shape[3], -1, -1, -1)


class AffineRepeat(Repeat):
    """The same kernel for every output channel, each input channel scaled and shifted."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, kernels: Kernels) -> Kernels:
        return super().forward(kernels * self.weight[:, None, None] + self.bias[:, None, None])


WIDENINGS: dict[str, Callable[[int], nn.Module]] = {
    "linear": LinearWidening,
    "outer": OuterWidening,
    "depthwise": DepthwiseWidening,
    "repeat": Repeat,
    "repeat+affine": AffineRepeat,
}


class KernelAttention(nn.Module):
    """One KA layer on c channels, made of the parts of `row`.

    Args:
        c: channels of the branch (half of the embedding); a multiple of 4 where the row has SA.
        row: the variant.

    Raises:
        KAError: `c` does not split into the 4 heads of kernel SA.
    """

    def __init__(self, c: int, row: Variant) -> None:
        super().__init__()
        if row.sa and c % KernelSA.n_heads:
            raise KAError(f"kernel SA splits c={c} channels into 4 heads; choose a dim that is a multiple of 8")
        self.row = row
        self.window_kernels: nn.Module | None = None
        if row.kernels == "pooled":
            self.window_kernels = PooledKernels(row.size)
        elif row.kernels != "identity":
            self.window_kernels = LearnedKernels(c, row)
        self.reweight = Reweight(c) if row.kernels == "reweighted" else None
        self.sa = KernelSA(c, row) if row.sa else None
        self.se = SE(c, N_WINDOWS if row.se == "per window" else 1) if row.se else None
        self.widen = WIDENINGS[row.widen](c) if row.widen else None
        self.global_kernel = (
            GlobalKernel(c, bias=row.global_bias, linear="global" in row.linear) if row.global_from else None
        )
        self.global_se = SE(c) if row.global_se == "own" else None
        n_fused = 2 if row.second == "windows+image" else row.n_second
        self.fusion = mix(n_fused * c, c, linear="fusion" in row.linear) if row.has_fusion else None
        self.bias = nn.Parameter(torch.zeros(c)) if row.bias else None

    def stages(self, x: Map) -> Iterator[tuple[str, Kernels, Kernels | None]]:
        """The kernels after each part that the row has, in order: (part, of the windows, global).

        Parts are "window kernels", "reweighting", "global kernel", "SA", "SE" and "widening"; a global kernel that is
        made after SA comes after it. SA and SE treat the window kernels alone, or joined with the global kernel, as
        the row says.
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
            if self.se is not None:
                windows = self.se(windows)
            for se in (self.se if row.global_se == "shared" else None, self.global_se):
                glob = glob if se is None else se(glob)
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
        if self.row.global_first:
            return kernels[:, 1:], kernels[:, :1]
        return kernels[:, :-1], kernels[:, -1:]

    def folded(self, x: Map) -> "tuple[Kernels | None, Kernels | None, Tensor | None]":
        """What the layer does to `x`, folded: (a kernel per window, a kernel for the image, the bias).

        Kernels are `s n o i u v` and `s 1 o i u v`; s = 1 unless the variant is adaptive. At most one of the two is
        None.
        """
        windows, glob = self.kernels(x)
        if self.fusion is None:
            if self.row.second == "windows":
                return windows, None, None
            return None, windows if glob is None else glob, self.bias
        weight, bias = self.fusion.weight, self.fusion.bias
        if self.row.second == "image":
            return None, fold(self._join(windows, glob), weight), bias
        on_windows, on_image = weight.chunk(2, dim=1)
        each = [fold(kernel, on_windows) for kernel in windows.split(1, dim=1)]
        return torch.cat(each, dim=1), fold(cast(Tensor, glob), on_image), bias

    def forward(self, x: Map) -> Map:
        if self.window_kernels is None:
            return x
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
    """The second convolution: each window by its own kernel, the image by one, summed; then bias and GELU."""
    y = None
    if windows is not None:
        y = convolve_windows(x, windows)
    if image is not None:
        on_image = convolve(x, image[:, 0])
        y = on_image if y is None else y + on_image
    assert y is not None, "a KA layer convolves windows, the image, or both"
    if bias is not None:
        y = y + bias[:, None, None].to(y.dtype)
    return F.gelu(y) if activation else y


def convolve(x: Map, kernel: Float[Tensor, "s o i u v"]) -> Map:
    """k×k convolution, stride 1, zero padding, no bias; one kernel for all samples, or one each (groups)."""
    pad = kernel.shape[-1] // 2
    if kernel.shape[0] == 1:
        return F.conv2d(x, kernel[0], padding=pad)
    b = x.shape[0]
    one_image = rearrange(x, "b c h w -> 1 (b c) h w")
    y = F.conv2d(one_image, rearrange(kernel, "b o i u v -> (b o) i u v"), padding=pad, groups=b)
    return rearrange(y, "1 (b c) h w -> b c h w", b=b)


def convolve_windows(x: Map, kernels: Kernels) -> Map:
    """k×k convolution of each quadrant by its own kernel (of each sample), zero-padded at the quadrant's border."""
    pairs = zip(quadrants(x).unbind(1), kernels.unbind(1), strict=True)
    return unquadrants(torch.stack([convolve(window, kernel) for window, kernel in pairs], dim=1))


class FoldedKernelAttention(nn.Module):
    """A trained KA layer whose kernels do not depend on the image, as plain convolution weights.

    Same output as the layer it was made from, without SA, SE, global kernel and fusion.

    Raises:
        KAError: the variant is adaptive; its kernels differ for every image and cannot be stored.
    """

    def __init__(self, layer: KernelAttention) -> None:
        super().__init__()
        row = layer.row
        if row.adaptive:
            raise KAError(
                f"{row.name} cannot be folded: its kernels depend on the image; "
                "it already runs one convolution per sample, use it as it is"
            )
        self.activation = row.activation
        self.windows, self.image, self.bias = None, None, None
        if layer.window_kernels is None:
            return
        with torch.no_grad():
            nothing = next(layer.parameters()).new_empty(0)  # static kernels do not look at the image
            windows, image, bias = layer.folded(nothing)
        self.windows, self.image, self.bias = (
            None if t is None else nn.Parameter(t.detach().clone()) for t in (windows, image, bias)
        )

    def forward(self, x: Map) -> Map:
        if self.windows is None and self.image is None:
            return x
        return apply_folded(x, self.windows, self.image, self.bias, self.activation)
