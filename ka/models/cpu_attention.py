"""softmax(4 q kᵀ) v in many small windows: the formula, and a form of it that is fast on a CPU.

A PSRT map holds thousands of windows of 64, 16 or 4 pixels, and heads of 3 to 8 numbers. On a CPU the time then goes
to memory, not to arithmetic: the scores are many times the size of the map. `attend_cpu` takes the channels first, as
a matrix product can write them, so that nothing is copied into windows and heads; it works on as many windows at a time
as the cache holds; and it keeps no scores for the gradient, but computes them again.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Q_SCALE = 4.0  # not head_dim^-0.5: the published weights need it
IN_CACHE = 2**17  # scores at a time: half a megabyte
Heads = Float[Tensor, "windows heads tokens d"]
Windows = Float[Tensor, "h d n t"]
Lanes = Float[Tensor, "h d t n"]


def attend(q: Heads, k: Heads, v: Heads) -> Heads:
    """softmax(4 q kᵀ) v, with 4 in place of d^-0.5."""
    return F.scaled_dot_product_attention(q, k, v, scale=Q_SCALE)


def in_lanes(tokens: int) -> bool:
    """Whether windows are too small for matrix products of their own.

    Those of 2×2 pixels are laid out side by side instead (`h d t n`, windows last), one vector instruction serving
    many of them.
    """
    return tokens <= 4


def attend_cpu(qkv: Float[Tensor, "three h d n t"] | Float[Tensor, "three h d t n"], tokens: int) -> Tensor:
    """`attend` with channels first: h heads of d channels, n windows of t tokens, windows last where `in_lanes`.

    Args:
        qkv: queries, keys and values.
        tokens: t.

    Returns:
        What the windows attended to, laid out as each of the three.
    """
    return _Attend.apply(qkv, tokens)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.tokens = tokens
        apply = _lanes if in_lanes(tokens) else _windows
        out = torch.empty_like(qkv[0])
        for part in _parts(out, tokens):
            q, k, v = qkv[:, *part]
            out[part] = apply(q, k, v)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (qkv,) = ctx.saved_tensors
        apply = _lanes_backward if in_lanes(ctx.tokens) else _windows_backward
        found = torch.empty_like(qkv)
        for part in _parts(qkv[0], ctx.tokens):
            q, k, v = qkv[:, *part]
            for whole, piece in zip(found, apply(q, k, v, grads[0][part]), strict=True):
                whole[part] = piece
        return found, None


def _parts(x: Tensor, tokens: int) -> Iterator[tuple[slice, ...]]:
    """Heads and windows whose scores fit the cache together."""
    axis = 3 if in_lanes(tokens) else 2
    heads, windows = x.shape[0], x.shape[axis]
    fitting = max(1, IN_CACHE // tokens**2)
    n = min(windows, fitting)
    h = fitting // n
    for head in range(0, heads, h):
        for window in range(0, windows, n):
            yield slice(head, head + h), *[slice(None)] * (axis - 1), slice(window, window + n)


def _windows(q: Windows, k: Windows, v: Windows) -> Windows:
    n = q.shape[2]
    q, k, v = (rearrange(x, "h d n t -> (h n) d t") for x in (q, k, v))
    return rearrange(torch.bmm(v, _weights(q, k).transpose(1, 2)), "(h n) d t -> h d n t", n=n)


def _windows_backward(q: Windows, k: Windows, v: Windows, grad: Windows) -> tuple[Windows, Windows, Windows]:
    n = q.shape[2]
    q, k, v, grad = (rearrange(x, "h d n t -> (h n) d t") for x in (q, k, v, grad))
    weights = _weights(q, k)
    to_v = torch.bmm(grad, weights)
    to_scores = torch._softmax_backward_data(torch.bmm(grad.transpose(1, 2), v), weights, -1, weights.dtype)
    to_q = torch.bmm(k, to_scores.transpose(1, 2)).mul_(Q_SCALE)
    to_k = torch.bmm(q, to_scores).mul_(Q_SCALE)
    to_q, to_k, to_v = (rearrange(x, "(h n) d t -> h d n t", n=n) for x in (to_q, to_k, to_v))
    return to_q, to_k, to_v


def _weights(q: Float[Tensor, "hn d t"], k: Float[Tensor, "hn d s"]) -> Float[Tensor, "hn t s"]:
    scores = torch.bmm((Q_SCALE * q).transpose(1, 2), k)
    return torch.softmax(scores, -1, out=scores)


def _lanes(q: Lanes, k: Lanes, v: Lanes) -> Lanes:
    weights = _lane_weights(q, k)
    out = torch.empty_like(q)
    for e in range(q.shape[1]):
        torch.sum(weights * v[:, e, None], 2, out=out[:, e])
    return out


def _lanes_backward(q: Lanes, k: Lanes, v: Lanes, grad: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    weights = _lane_weights(q, k)
    to_scores = torch._softmax_backward_data(_lane_scores(grad, v), weights, 2, weights.dtype)
    to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for e in range(q.shape[1]):
        torch.sum(to_scores * k[:, e, None], 2, out=to_q[:, e])
        torch.sum(to_scores * q[:, e, :, None], 1, out=to_k[:, e])
        torch.sum(weights * grad[:, e, :, None], 1, out=to_v[:, e])
    return to_q.mul_(Q_SCALE), to_k.mul_(Q_SCALE), to_v


def _lane_weights(q: Lanes, k: Lanes) -> Float[Tensor, "h t s n"]:
    scores = _lane_scores(Q_SCALE * q, k)
    return torch.softmax(scores, 2, out=scores)


def _lane_scores(q: Lanes, k: Lanes) -> Float[Tensor, "h t s n"]:
    scores = q[:, 0, :, None] * k[:, 0, None]
    for e in range(1, q.shape[1]):
        scores.addcmul_(q[:, e, :, None], k[:, e, None])
    return scores
