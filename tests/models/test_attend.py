"""The fast form of window attention is the formula; bands are the whole map."""

import pytest
import torch
from einops import rearrange

from ka.models import cpu_attention as attend
from ka.models.cpu_attention import Q_SCALE, attend_cpu, in_lanes
from ka.models.psrt import MLP, WindowAttention, in_bands

WINDOW_SIZES = (8, 4, 2)


def formula(qkv: torch.Tensor) -> torch.Tensor:
    """By hand, window by window and head by head; three heads d n t."""
    q, k, v = qkv
    out = torch.empty_like(q)
    for h in range(q.shape[0]):
        for n in range(q.shape[2]):
            scores = torch.exp(Q_SCALE * q[h, :, n].T @ k[h, :, n])
            out[h, :, n] = v[h, :, n] @ (scores / scores.sum(1, keepdim=True)).T
    return out


@pytest.mark.parametrize("cache", [1, 5 * 64, 2**17])
@pytest.mark.parametrize("window", WINDOW_SIZES)
def test_attend_cpu_is_the_formula(monkeypatch: pytest.MonkeyPatch, window: int, cache: int) -> None:
    """Values and gradients, in one part and in many."""
    monkeypatch.setattr(attend, "IN_CACHE", cache)
    tokens = window**2
    qkv = (0.5 * torch.randn(3, 4, 3, 7, tokens, dtype=torch.float64)).requires_grad_()
    order = "m h d n t -> m h d t n" if in_lanes(tokens) else "m h d n t -> m h d n t"
    given = rearrange(qkv.detach(), order).requires_grad_()
    weight = torch.randn(4, 3, 7, tokens, dtype=torch.float64)
    laid = rearrange(weight, order.replace("m ", ""))
    out, expected = attend_cpu(given, tokens), formula(qkv)
    torch.testing.assert_close(out, rearrange(expected, order.replace("m ", "")), rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad((out * laid).sum(), given)
    (right,) = torch.autograd.grad((expected * weight).sum(), qkv)
    torch.testing.assert_close(gradient, rearrange(right, order), rtol=1e-11, atol=1e-12)


def test_large_scores_do_not_overflow() -> None:
    for tokens in (4, 16):
        out = attend_cpu(1e3 * torch.ones(3, 2, 3, tokens, tokens), tokens)
        torch.testing.assert_close(out, 1e3 * torch.ones(2, 3, tokens, tokens))


@pytest.mark.parametrize("window", WINDOW_SIZES)
def test_the_two_forms_of_window_attention_agree(window: int) -> None:
    """What runs on a CPU against what runs elsewhere: split into heads, attend, put back."""
    module = WindowAttention(24, window, 4).double()
    x = torch.randn(2, 16, 24, 24, dtype=torch.float64)
    heads = attend.attend(*module.split(x))
    whole = rearrange(
        heads, "(b i j) h (y x) d -> b (i y) (j x) (h d)", b=2, i=16 // window, j=24 // window, y=window, x=window
    )
    torch.testing.assert_close(module(x), module.proj(whole), rtol=0, atol=1e-13)


@pytest.mark.parametrize("height", [8, 24, 32])
@pytest.mark.parametrize("make", [lambda: MLP(8), *(lambda w=w: WindowAttention(8, w, 2) for w in WINDOW_SIZES)])
def test_bands_are_the_whole(monkeypatch: pytest.MonkeyPatch, make: object, height: int) -> None:
    module = make().double()
    x = torch.randn(2, height, 16, 8, dtype=torch.float64)
    whole = module(x)  # with gradients: in one
    monkeypatch.setattr("ka.models.psrt.BAND", 2 * 16 * 8)
    with torch.no_grad():
        torch.testing.assert_close(module(x), whole.detach(), rtol=0, atol=1e-13)


def test_bands_are_cut_without_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ka.models.psrt.BAND", 16 * 16)
    seen: list[int] = []
    x = torch.zeros(1, 40, 16, 3)
    in_bands(lambda band: seen.append(band.shape[1]) or band, x)
    with torch.no_grad():
        in_bands(lambda band: seen.append(band.shape[1]) or band, x)
    assert seen == [40, 16, 16, 8]
