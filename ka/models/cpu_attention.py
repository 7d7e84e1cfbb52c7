"""Window attention on a CPU: the formula of `ka.models.psrt.WindowAttention`, with less memory traffic.

A PSRT map holds thousands of windows of 64, 16 or 4 pixels, and heads of 3 to 8 numbers. On a CPU the time then goes
to memory, not to arithmetic: the scores are many times the size of the map. Here channels come first, as a matrix
product can write them, so that nothing is copied into windows and heads; as many windows are worked on at a time as the
cache holds; and no scores are kept for the gradient, they are computed again.

Windows of 2×2 pixels are too small for matrix products of their own. They are laid out side by side instead, in lanes
(`h d t n`, windows last), so that one vector instruction serves many of them.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

IN_CACHE = 2**17  # scores at a time: half a megabyte
IN_LANES = 4  # tokens of the largest window that goes into lanes
BAND = 2**14  # pixels at a time, see `in_bands`
BAND_ROWS = 8  # of the largest window
Tokens = Float[Tensor, "b h w c"]
Windows = Float[Tensor, "h d n t"]
Lanes = Float[Tensor, "h d t n"]


def in_bands(function: Callable[[Tokens], Tokens], x: Tokens) -> Tokens:
    """function(x), on a CPU without gradients band by band; `function` must not look beyond bands of 8 rows.

    What is made on the way (4C numbers a pixel in an MLP) then stays in the cache and is not asked of the system anew.
    """
    b, h, w, _ = x.shape
    rows = BAND_ROWS * max(1, BAND // (b * w * BAND_ROWS))
    if torch.is_grad_enabled() or not x.is_cpu or rows >= h:
        return function(x)
    out = torch.empty(x.shape, dtype=x.dtype)
    for to, band in zip(out.split(rows, dim=1), x.split(rows, dim=1), strict=True):
        to.copy_(function(band))
    return out


def window_attention(x: Tokens, qkv: nn.Linear, proj: nn.Linear, window: int, heads: int, scale: float) -> Tokens:
    """softmax(scale q kᵀ) v among the pixels of each window and head, between the layers `qkv` and `proj`.

    `qkv` makes queries, keys and values in this order, each by head; H and W are multiples of `window` (pixels a side).
    """
    lanes = window**2 <= IN_LANES
    pixels, tokens = ("(y x b i j)", "t n") if lanes else ("(b i j y x)", "n t")
    matrix = rearrange(x, f"b (i y) (j x) c -> {pixels} c", y=window, x=window)
    channels = torch.addmm(qkv.bias[:, None], qkv.weight, matrix.T)
    by_head = rearrange(channels, f"(three h d) ({tokens}) -> three h d {tokens}", three=3, h=heads, t=window**2)
    mixed = rearrange(_Attention.apply(by_head, lanes, scale), f"h d {tokens} -> ({tokens}) (h d)")
    size = {"b": x.shape[0], "i": x.shape[1] // window, "y": window, "x": window}
    return rearrange(proj(mixed), f"{pixels} c -> b (i y) (j x) c", **size)


class _Attention(torch.autograd.Function):
    """softmax(scale q kᵀ) v with channels first: three h d n t, or three h d t n in lanes."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, qkv: Tensor, lanes: bool, scale: float) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.lanes, ctx.scale = lanes, scale
        out = torch.empty_like(qkv[0])
        for part, q, k, v in _parts(qkv, lanes):
            out[part] = _in_lanes(q * scale, k, v) if lanes else _in_windows(q * scale, k, v)
        return out

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (qkv,) = ctx.saved_tensors
        gradient = torch.empty_like(qkv)
        backward = _in_lanes_backward if ctx.lanes else _in_windows_backward
        for part, q, k, v in _parts(qkv, ctx.lanes):
            to_q, to_k, to_v = backward(q, k, v, grads[0][part].to(q.dtype), ctx.scale)
            gradient[0][part], gradient[1][part], gradient[2][part] = to_q, to_k, to_v
        return gradient, None, None


def _parts(qkv: Tensor, lanes: bool) -> Iterator[tuple[tuple[slice, ...], Tensor, Tensor, Tensor]]:
    """Heads and windows whose scores fit the cache together: where they are, their queries, keys and values.

    These are float32 at least: bfloat16 would round sums in lanes after every product, and scores before the softmax.
    """
    axis = 3 if lanes else 2
    heads, windows, tokens = qkv.shape[1], qkv.shape[axis + 1], qkv.shape[3 if lanes else 4]
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    fitting = max(1, IN_CACHE // tokens**2)
    n = min(windows, fitting)
    h = fitting // n
    for head, window in product(range(0, heads, h), range(0, windows, n)):
        part = (slice(head, head + h), *[slice(None)] * (axis - 1), slice(window, window + n))
        q, k, v = qkv[:, *part].to(dtype)
        yield part, q, k, v


def _softmax(scores: Tensor, dim: int) -> Tensor:
    return torch.softmax(scores, dim, out=scores)


def _to_scores(weights: Tensor, to_weights: Tensor, dim: int) -> Tensor:
    """The gradient behind a softmax, weights·(g - Σ weights·g), in place of g before it."""
    products = to_weights.mul_(weights)
    return products.addcmul_(weights, products.sum(dim, keepdim=True), value=-1)


def _in_windows(q: Windows, k: Windows, v: Windows) -> Windows:
    n = q.shape[2]
    q, k, v = (rearrange(x, "h d n t -> (h n) d t") for x in (q, k, v))
    return rearrange(torch.bmm(v, _softmax(torch.bmm(q.mT, k), -1).mT), "(h n) d t -> h d n t", n=n)


def _in_windows_backward(q: Windows, k: Windows, v: Windows, grad: Windows, scale: float) -> Iterator[Windows]:
    n = q.shape[2]
    q, k, v, grad = (rearrange(x, "h d n t -> (h n) d t") for x in (q, k, v, grad))
    weights = _softmax(torch.bmm((q * scale).mT, k), -1)
    to_scores = _to_scores(weights, torch.bmm(grad.mT, v), -1)
    to_q, to_k = torch.bmm(k, to_scores.mT).mul_(scale), torch.bmm(q, to_scores).mul_(scale)
    return (rearrange(x, "(h n) d t -> h d n t", n=n) for x in (to_q, to_k, torch.bmm(grad, weights)))


def _in_lanes(q: Lanes, k: Lanes, v: Lanes) -> Lanes:
    weights = _softmax(_lane_scores(q, k), 2)
    out = torch.empty_like(q)
    for e in range(q.shape[1]):
        torch.sum(weights * v[:, e, None], 2, out=out[:, e])
    return out


def _in_lanes_backward(q: Lanes, k: Lanes, v: Lanes, grad: Lanes, scale: float) -> Iterator[Lanes]:
    weights = _softmax(_lane_scores(q * scale, k), 2)
    to_scores = _to_scores(weights, _lane_scores(grad, v), 2)
    to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for e in range(q.shape[1]):
        torch.sum(to_scores * k[:, e, None], 2, out=to_q[:, e])
        torch.sum(to_scores * q[:, e, :, None], 1, out=to_k[:, e])
        torch.sum(weights * grad[:, e, :, None], 1, out=to_v[:, e])
    return iter((to_q.mul_(scale), to_k.mul_(scale), to_v))


def _lane_scores(q: Lanes, k: Lanes) -> Float[Tensor, "h t s n"]:
    scores = q[:, 0, :, None] * k[:, 0, None]
    for e in range(1, q.shape[1]):
        scores.addcmul_(q[:, e, :, None], k[:, e, None])
    return scores
