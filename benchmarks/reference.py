"""Every model the plain way the study ran it: what tests and the clock compare the fast models with.

Nothing here is fast and nothing fast is called: of a model only its weights and its row are taken. A KA layer is
written for one image, part by part as the study describes it; `torch.vmap` runs the same lines for a batch, so that a
kernel per sample costs what it cost the study (one grouped convolution), and no sample can see another.

Kernels are made by the study's stages, the first convolution of every window is computed (and thrown away, but for the
gates of kav17 and kav18), attention is matmul–softmax–matmul, windows are copies. The second convolution runs all n or
n+1 kernels: as one grouped convolution of the repeated image, or, where the study's code was serial, one after the
other.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ka.models.kernel_attention import KernelAttention
from ka.models.psrt import PSRT
from ka.models.variants import N_WINDOWS, Variant, variant

GRID = math.isqrt(N_WINDOWS)
Map = Float[Tensor, "b c h w"]
Image = Float[Tensor, "c h w"]
Kernel = Float[Tensor, "o i u v"]
Tokens = Float[Tensor, "b h w c"]
Weights = Any  # a part of a model, taken for its weights


def reference(model: PSRT) -> "Reference":
    """A copy of a model (not folded) that computes the same function plainly; see `Reference.model` for its weights."""
    return Reference(model)


def reference_layer(layer: KernelAttention, c: int) -> "ReferenceLayer":
    """A copy of a KA layer on `c` channels that computes the same function plainly."""
    return ReferenceLayer(layer, c)


class ReferenceLayer(nn.Module):
    """A KA layer as the study ran it: maps b c h w in and out.

    Attributes:
        layer: the copy that holds the weights, by the names they have in the layer copied.
        dead: what kav5's code computed before it returned its input (audit, point 3); else None.
    """

    def __init__(self, layer: KernelAttention, c: int) -> None:
        """Copy the weights of `layer`; `c` is its number of channels."""
        super().__init__()
        self.layer = copy.deepcopy(layer)
        self.dead: ReferenceLayer | None = None
        if layer.row.kernels == "identity":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.dead = ReferenceLayer(KernelAttention(c, variant("kav5")), c)

    def forward(self, x: Map) -> Map:
        """What the layer makes of a map; H and W are even."""
        if self.dead is not None:
            self.dead(x)
            return x
        return plain_layer(self.layer, x)


def plain_layer(layer: KernelAttention, x: Map) -> Map:
    """What a KA layer makes of a map, plainly, on the very weights of `layer`; H and W are even."""
    return torch.vmap(partial(_of_one_image, layer))(x)


def _of_one_image(layer: Weights, x: Image) -> Image:
    row = layer.row
    if row.kernels == "identity":
        return x
    windows, glob = kernels(layer, x)
    if row.second == "windows":
        y = convolve_windows(x, windows, row)
    elif row.second == "windows+image":
        y = torch.cat([convolve_windows(x, windows, row), convolve(x, [_known(glob)], row)])
    elif row.second == "global":
        y = convolve(x, [_known(glob)], row)
    else:
        y = convolve(x, join(windows, glob, row), row)
    if row.has_fusion:
        y = pointwise(layer.fusion, y)
    if layer.bias is not None:
        y = y + layer.bias[:, None, None]
    return F.gelu(y) if row.activation else y


def serial(row: Variant) -> bool:
    """Whether the study's code ran a loop over windows, not a grouped convolution: it then had SE modules per window
    (kav3, kav4), some of which nothing used (kav5, kav6). Of rows of our own it had no code: they run as the rest."""
    return not row.ours and (row.se == "per window" or "window_se" in row.dead)


# Kernels of one image, one per window; o = 1 while pooled kernels have no output axis


def kernels(layer: Weights, x: Image) -> tuple[list[Kernel], Kernel | None]:
    """The kernels of the second convolution: (of the windows, global or None)."""
    row = layer.row
    if row.kernels == "regressed":
        windows = [regress(layer.window_kernels, window) for window in cut(x)]
    else:
        windows = [F.adaptive_avg_pool2d(w, row.size)[None] for w in cut(x)] if row.widen else learned(layer, x)
    glob = make_global(layer.global_kernel, windows) if row.global_from == "raw" else None
    if row.sa == "windows":
        windows = attend(layer.sa, windows, row)
    elif row.sa:
        windows, glob = part(attend(layer.sa, join(windows, glob, row), row), row)
    if row.global_from == "attended":
        glob = make_global(layer.global_kernel, windows)
    if row.se and row.global_se == "shared":
        windows, glob = part(excite(layer.se, join(windows, glob, row)), row)
    elif row.se:
        windows = excite(layer.se, windows)
    if row.global_se == "own":
        (glob,) = excite(layer.global_se, [_known(glob)])
    if row.widen:
        windows = [widen(layer.widen, kernel, row) for kernel in windows]
    return windows, glob


def learned(layer: Weights, x: Image) -> list[Kernel]:
    """The windows' kernels, which the first convolution was run for; kav17 and kav18 gate them by what it gives."""
    weights = list(layer.window_kernels.weight)
    if len(weights) == 1:  # an ordinary convolution has no windows to look at first
        return weights
    first = convolve_windows(x, weights, layer.row)
    if layer.reweight is None:
        return weights
    gate = layer.reweight
    means = [window.mean((1, 2), keepdim=True) for window in cut(first)]
    numbers = [pointwise(squeeze, mean) for squeeze, mean in zip(gate.squeeze, means, strict=True)]
    hidden = F.gelu(F.linear(torch.cat(numbers).flatten(), gate.expand.weight, gate.expand.bias))
    gates = torch.sigmoid(F.linear(hidden, gate.contract.weight, gate.contract.bias))
    return [factor * weight for factor, weight in zip(gates.unbind(), weights, strict=True)]


def regress(module: Weights, window: Image) -> Kernel:
    """Values on keys over a window's pixels, by ridge regression, applied to a k×k convolution's queries."""
    c = len(window)
    both = pointwise(module.key_value, window).flatten(1)  # 2c pixels
    both = both - both.mean(1, keepdim=True)
    covariance = both.double() @ both.double().T / both.shape[1]
    squares, crosses = covariance[:c, :c], covariance[:c, c:]
    ridge = torch.diag(module.floor + torch.exp(module.log_share.double()) * torch.diagonal(squares))
    solved = torch.linalg.inv(squares + ridge) @ (crosses + ridge @ module.fallback.double())
    return torch.einsum("do,diuv->oiuv", solved.to(window.dtype), module.query)


def join(windows: list[Kernel], glob: Kernel | None, row: Variant) -> list[Kernel]:
    """The set of all kernels, the global one at its place."""
    if glob is None:
        return windows
    return [glob, *windows] if row.global_first else [*windows, glob]


def part(joined: list[Kernel], row: Variant) -> tuple[list[Kernel], Kernel]:
    """The inverse of `join`."""
    return (joined[1:], joined[0]) if row.global_first else (joined[:-1], joined[-1])


def attend(sa: Weights, each: list[Kernel], row: Variant) -> list[Kernel]:
    """Kernel SA: for every filter, attention among the taps of all its kernels, among the channels of a head, or the
    sum of both."""
    m, (o, c), n = len(each), each[0].shape[:2], row.size**2
    taps = torch.stack(each, dim=1).flatten(3).transpose(2, 3)  # o m n i
    if row.sa == "scrambled":  # KAv8's reshape, without the permutation it needed (audit, point 4)
        taps = taps.reshape(m, o, n, c).transpose(0, 1)
    q, k, v = split_heads(sa, taps.reshape(o, m * n, c), sa.n_heads)
    mixes = []
    if row.sa_among in ("taps", "both"):
        mixes.append(mix(q, k, v, (c // sa.n_heads) ** -0.5))
    if row.sa_among in ("channels", "both"):
        mixes.append(mix(q.mT, k.mT, v.mT, (m * n) ** -0.5).mT)
    out = merge_heads(sa, mixes[0] if len(mixes) == 1 else mixes[0] + mixes[1]).reshape(o, m, n, c)
    return [kernel.mT.reshape(o, c, row.size, row.size) for kernel in out.unbind(1)]


def excite(se: Weights, each: list[Kernel]) -> list[Kernel]:
    """SE of kernels seen as images: mean → 1×1 → ReLU → 1×1 → sigmoid → multiply; one module for all, or one each."""
    if len(se.squeeze) > 1:
        pairs = zip(se.squeeze, se.excite, each, strict=True)
        return [kernel * _gate(squeeze, grow, kernel) for squeeze, grow, kernel in pairs]
    together = torch.stack(each)
    return list(together * _gate(se.squeeze[0], se.excite[0], together.flatten(0, 1)).unflatten(0, (len(each), -1)))


def _gate(squeeze: Weights, grow: Weights, kernel: Kernel) -> Kernel:
    return torch.sigmoid(pointwise(grow, F.relu(pointwise(squeeze, kernel.mean((2, 3), keepdim=True)))))


def make_global(module: Weights, windows: list[Kernel]) -> Kernel:
    """The windows' kernels joined on their input axis, through a 1×1 convolution n·c → c."""
    return pointwise(module.mix, torch.cat(windows, dim=1))


def widen(module: Weights, kernel: Kernel, row: Variant) -> Kernel:
    """Pooled kernels (1 i k k) with an output axis."""
    c, taps = kernel.shape[1], kernel[0].flatten(1).T
    if row.widen == "linear":
        wide = F.linear(taps, module.linear.weight, module.linear.bias)
        return wide.T.reshape(c, c, row.size, row.size)
    if row.widen == "outer":
        both = F.linear(taps, module.descriptors.weight, module.descriptors.bias).T
        return (both[:c, None] * both[None, c:]).reshape(c, c, row.size, row.size)
    if row.widen == "depthwise":
        return torch.diag_embed(kernel[0].permute(1, 2, 0)).permute(2, 3, 0, 1)
    if row.widen == "repeat+affine":
        kernel = kernel * module.weight[:, None, None] + module.bias[:, None, None]
    return kernel.repeat(c, 1, 1, 1)


# Convolutions


def convolve(x: Image, each: list[Kernel], row: Variant) -> Image:
    """The image with every kernel, results side by side on channels."""
    pad = row.size // 2
    if serial(row):
        return torch.cat([F.conv2d(x, kernel, padding=pad) for kernel in each])
    return F.conv2d(x.repeat(len(each), 1, 1), torch.cat(each).contiguous(), padding=pad, groups=len(each))


def convolve_windows(x: Image, each: list[Kernel], row: Variant) -> Image:
    """Every window by its own kernel, padded at its border, results back in place."""
    pad = row.size // 2
    if serial(row):
        return paste([F.conv2d(window, kernel, padding=pad) for window, kernel in zip(cut(x), each, strict=True)])
    results = F.conv2d(torch.cat(cut(x)), torch.cat(each).contiguous(), padding=pad, groups=len(each))
    return paste(results.chunk(len(each)))


def cut(x: Float[Tensor, "*any h w"]) -> list[Tensor]:
    """The windows of an image (or of many), row-major."""
    return [window for band in x.chunk(GRID, dim=-2) for window in band.chunk(GRID, dim=-1)]


def paste(windows: Sequence[Tensor]) -> Tensor:
    """The inverse of `cut`."""
    bands = [torch.cat(list(windows[i : i + GRID]), dim=-1) for i in range(0, len(windows), GRID)]
    return torch.cat(bands, dim=-2)


def pointwise(module: Weights, x: Float[Tensor, "*n i h w"]) -> Float[Tensor, "*n o h w"]:
    """A 1×1 convolution by the weights of a linear layer."""
    return F.conv2d(x, module.weight[..., None, None], module.bias)


def _known(glob: Kernel | None) -> Kernel:
    assert glob is not None, "the row uses a global kernel that it does not make"
    return glob


# The backbone; maps are b h w c


class Reference(nn.Module):
    """PSRT as published, with the study's KA layers; images of any size, padded as `PSRT` pads them.

    Attributes:
        model: the copy that holds the weights, by the names they have in the model copied.
        branches: the KA layers on these weights, in order; empty without KA.
    """

    def __init__(self, model: PSRT) -> None:
        """Copy the weights of `model`."""
        super().__init__()
        self.model = copy.deepcopy(model)
        self.branches = nn.ModuleList()
        for layer in self.model.layers():
            if isinstance(layer.ka, KernelAttention):
                plain = ReferenceLayer(layer.ka, model.dim // 2).to(model.head.weight)
                plain.layer = layer.ka  # the very weights of `self.model`
                self.branches.append(plain)

    def forward(self, up: Map, msi: Map) -> Map:
        """The sharpened image; arguments as `PSRT.forward`."""
        model: Weights = self.model
        h, w = up.shape[2:]
        x = torch.cat([up, msi], dim=1)
        if h % 8 or w % 8:
            x = F.pad(x, (0, -w % 8, 0, -h % 8), mode="replicate")
        x = F.conv2d(x, model.head.weight, model.head.bias, padding=1).permute(0, 2, 3, 1)
        branches = cast(Iterator[ReferenceLayer], iter(self.branches))
        for block in (sar for stage in model.blocks for sar in stage):
            x = x + self.three(block, x, branches)
        x = F.conv2d(x.permute(0, 3, 1, 2), model.tail.weight, model.tail.bias, padding=1)[..., :h, :w]
        return F.leaky_relu(x, 0.2) + up

    def three(self, block: Weights, x: Tokens, branches: Iterator[ReferenceLayer]) -> Tokens:
        """The layers of a SaR block, with the row's shuffle."""
        kind, size = self.model.row.shuffle, block.window
        for number, layer in enumerate(block.layers):
            branch = next(branches, None)
            if kind == "aligned" and number == 1:
                x = unshuffle(layer_plain(layer, branch, shuffle(x, size), size), size)
            elif kind == "misaligned" and number > 0:
                x = layer_plain(layer, branch, x, size, (shuffle, unshuffle)[number - 1])
            else:
                x = layer_plain(layer, branch, x, size)
        return x


def layer_plain(
    layer: Weights,
    branch: "ReferenceLayer | None",
    x: Tokens,
    size: int,
    move: Callable[[Tokens, int], Tokens] | None = None,
) -> Tokens:
    """One layer: window attention (beside a KA branch on the second half of the channels), then the MLP."""
    y = F.layer_norm(x, x.shape[-1:], layer.norm1.weight, layer.norm1.bias)
    if move is not None:
        y = move(y, size)
    if branch is None:
        x = x + window_attention(layer.attn, y, size, heads=8)
    else:
        for_attention, for_ka = y.chunk(2, dim=-1)[0], (y if branch.layer.row.layernorm else x).chunk(2, dim=-1)[1]
        ka = branch(for_ka.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + torch.cat([window_attention(layer.attn, for_attention, size, heads=4), ka], dim=-1)
    y = F.layer_norm(x, x.shape[-1:], layer.norm2.weight, layer.norm2.bias)
    hidden = F.gelu(F.linear(y, layer.mlp.fc1.weight, layer.mlp.fc1.bias))
    return x + F.linear(hidden, layer.mlp.fc2.weight, layer.mlp.fc2.bias)


def window_attention(module: Weights, x: Tokens, size: int, heads: int) -> Tokens:
    """Windows as copies, attention among the pixels of each (q times 4), windows back in place."""
    b, h, w, c = x.shape
    grid = x.reshape(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
    windows = grid.contiguous().view(-1, size * size, c)
    out = softmax_attention(module, windows, heads, 4.0).view(b, h // size, w // size, size, size, c)
    return out.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, c)


def softmax_attention(
    module: Weights, tokens: Float[Tensor, "n t c"], heads: int, scale: float
) -> Float[Tensor, "n t c"]:
    """Multi-head attention among tokens (n t c) as matmul–softmax–matmul, with its output layer."""
    return merge_heads(module, mix(*split_heads(module, tokens, heads), scale))


def split_heads(module: Weights, tokens: Float[Tensor, "n t c"], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of tokens by head, each n heads t c/heads."""
    n, t, c = tokens.shape
    qkv = F.linear(tokens, module.qkv.weight, module.qkv.bias)
    q, k, v = qkv.reshape(n, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind()
    return q, k, v


def mix(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Values mixed by softmax weights."""
    return torch.softmax(q * scale @ k.transpose(-2, -1), dim=-1) @ v


def merge_heads(module: Weights, mixed: Float[Tensor, "n heads t d"]) -> Float[Tensor, "n t c"]:
    """Heads side by side, through the output layer."""
    return F.linear(mixed.transpose(1, 2).flatten(2), module.proj.weight, module.proj.bias)


def shuffle(x: Tokens, size: int) -> Tokens:
    """Cells of half a window: those of even rows (columns) to the upper (left) half of the map, odd ones after."""
    b, h, w, c = x.shape
    d = size // 2
    cells = x.reshape(b, h // size, 2, d, w // size, 2, d, c)
    return cells.permute(0, 2, 1, 3, 5, 4, 6, 7).reshape(b, h, w, c)


def unshuffle(x: Tokens, size: int) -> Tokens:
    """The inverse of `shuffle`."""
    b, h, w, c = x.shape
    d = size // 2
    cells = x.reshape(b, 2, h // size, d, 2, w // size, d, c)
    return cells.permute(0, 2, 1, 3, 5, 4, 6, 7).reshape(b, h, w, c)
