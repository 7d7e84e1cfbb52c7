"""The KA layer as the study ran it, written independently of `ka.models.kernel_attention`: the reference of the tests.

One convolution per kernel, results concatenated and fused by a 1×1 convolution, attention as
matmul–softmax–matmul, gates from real first convolutions. Weights are taken from a `KernelAttention` by name.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ka.models.kernel_attention import KernelAttention


def plain_layer(layer: KernelAttention, x: Tensor) -> Tensor:
    """What `layer` computes of `x` (b c h w), one sample at a time, one convolution at a time."""
    return torch.cat([_sample(layer, sample[None]) for sample in x])


def cut(x: Tensor) -> list[Tensor]:
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    return [x[..., i * h : (i + 1) * h, j * w : (j + 1) * w] for i in range(2) for j in range(2)]


def paste(q: list[Tensor]) -> Tensor:
    return torch.cat([torch.cat(q[:2], dim=-1), torch.cat(q[2:], dim=-1)], dim=-2)


def attend(sa: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Multi-head attention of tokens (t c), by hand: among tokens, among the channels of a head, or the sum of both."""
    t, c = tokens.shape
    q, k, v = (tokens @ sa.qkv.weight.T + sa.qkv.bias).split(c, dim=1)
    heads = []
    for part in torch.arange(c).split(c // 4):
        head = torch.zeros(t, c // 4, dtype=tokens.dtype)
        if sa.among in ("taps", "both"):
            head = head + torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(c // 4), dim=1) @ v[:, part]
        if sa.among in ("channels", "both"):
            head = head + v[:, part] @ torch.softmax(q[:, part].T @ k[:, part] / math.sqrt(t), dim=1).T
        heads.append(head)
    return torch.cat(heads, dim=1) @ sa.proj.weight.T + sa.proj.bias


def self_attention(sa: torch.nn.Module, kernels: list[Tensor]) -> list[Tensor]:
    """Per output filter, attention over the taps of all kernels (each o i k k)."""
    m, (o, i, k, _) = len(kernels), kernels[0].shape
    n = k * k
    taps = torch.stack([torch.cat([kernel[f].reshape(i, n).T for kernel in kernels]) for f in range(o)])
    if sa.scrambled:
        taps = taps.reshape(m, o, n, i).transpose(0, 1).reshape(o, m * n, i)
    taps = torch.stack([attend(sa, tokens) for tokens in taps])
    return [torch.stack([taps[f, n * w : n * w + n].T.reshape(i, k, k) for f in range(o)]) for w in range(m)]


def excite(se: torch.nn.Module, group: int, kernel: Tensor) -> Tensor:
    mean = kernel.mean((2, 3), keepdim=True)
    first, second = se.squeeze[group], se.excite[group]
    hidden = F.relu(F.conv2d(mean, first.weight[..., None, None], first.bias))
    return kernel * torch.sigmoid(F.conv2d(hidden, second.weight[..., None, None], second.bias))


def make_global(part: torch.nn.Module, kernels: list[Tensor]) -> Tensor:
    joined = torch.cat(kernels, dim=1)
    return F.conv2d(joined, part.mix.weight[..., None, None], part.mix.bias)


def window_kernels(layer: KernelAttention, x: Tensor) -> list[Tensor]:
    row = layer.row
    if row.kernels == "pooled":
        return [F.adaptive_avg_pool2d(window, 3) for window in cut(x)]  # 1 i 3 3: no output axis yet
    kernels = list(layer.window_kernels.weight)
    if layer.reweight is None:
        return kernels
    gate = layer.reweight
    means = [F.conv2d(window, k, padding=1).mean((2, 3)) for window, k in zip(cut(x), kernels, strict=True)]
    numbers = torch.cat([squeeze(mean) for squeeze, mean in zip(gate.squeeze, means, strict=True)], dim=1)
    factors = torch.sigmoid(gate.contract(F.gelu(gate.expand(numbers))))[0]
    return [factor * kernel for factor, kernel in zip(factors, kernels, strict=True)]


def widened(layer: KernelAttention, kernel: Tensor) -> Tensor:
    part, c = layer.widen, kernel.shape[1]
    if layer.row.widen == "linear":
        taps = kernel[0].reshape(c, 9).T @ part.linear.weight.T + part.linear.bias
        return taps.T.reshape(c, c, 3, 3)
    if layer.row.widen == "outer":
        of_output, of_input = (kernel[0].reshape(c, 9).T @ part.descriptors.weight.T + part.descriptors.bias).split(
            c, 1
        )
        return torch.stack([torch.outer(a, b) for a, b in zip(of_output, of_input, strict=True)], 2).reshape(c, c, 3, 3)
    if layer.row.widen == "depthwise":
        return torch.stack([kernel[0] * (torch.arange(c) == o).reshape(c, 1, 1) for o in range(c)])
    if layer.row.widen == "repeat+affine":
        kernel = kernel * part.weight.reshape(1, c, 1, 1) + part.bias.reshape(1, c, 1, 1)
    return kernel.repeat(c, 1, 1, 1)


def _sample(layer: KernelAttention, x: Tensor) -> Tensor:
    row = layer.row
    if row.kernels == "identity":
        return x
    windows = window_kernels(layer, x)
    glob = make_global(layer.global_kernel, windows) if row.global_from == "raw" else None
    if row.sa == "windows":
        windows = self_attention(layer.sa, windows)
    elif row.sa == "windows+global":
        *windows, glob = self_attention(layer.sa, [*windows, glob])
    elif row.sa:
        glob, *windows = self_attention(layer.sa, [glob, *windows])
    if row.global_from == "attended":
        glob = make_global(layer.global_kernel, windows)
    if row.se:
        windows = [excite(layer.se, m if row.se == "per window" else 0, k) for m, k in enumerate(windows)]
    if row.global_se:
        glob = excite(layer.se if row.global_se == "shared" else layer.global_se, 0, glob)
    if row.widen:
        windows = [widened(layer, kernel) for kernel in windows]
    return second_convolution(layer, x, windows, glob)


def second_convolution(layer: KernelAttention, x: Tensor, windows: list[Tensor], glob: Tensor | None) -> Tensor:
    row = layer.row
    if row.second == "global":
        return F.conv2d(x, glob, padding=1)
    if row.second == "image" and layer.fusion is None:
        return F.conv2d(x, windows[0], layer.bias, padding="same")
    if row.second == "image":
        kernels = windows if glob is None else [glob, *windows] if row.global_first else [*windows, glob]
        results = [F.conv2d(x, kernel, padding="same") for kernel in kernels]
    else:
        pieces = [F.conv2d(window, k, padding=1) for window, k in zip(cut(x), windows, strict=True)]
        results = [paste(pieces)]
        if row.second == "windows":
            return results[0]
        results.append(F.conv2d(x, glob, padding=1))
    fused = F.conv2d(torch.cat(results, dim=1), layer.fusion.weight[..., None, None], layer.fusion.bias)
    return F.gelu(fused) if row.activation else fused
