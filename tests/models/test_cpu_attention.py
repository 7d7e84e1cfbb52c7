"""Window attention on a CPU is the formula; bands are the whole map."""

import pytest
import torch
from torch import Tensor, nn

from ka.models import cpu_attention
from ka.models.psrt import MLP, WindowAttention

WINDOW_SIZES = (8, 4, 2)


def attention(window: int, dim: int = 12, heads: int = 4) -> WindowAttention:
    """Layers whose scores differ by much, so that the softmax matters."""
    module = WindowAttention(dim, window, heads)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def by_hand(module: WindowAttention, x: Tensor) -> Tensor:
    """Window by window and head by head."""
    w, c = module.window, x.shape[-1]
    out = torch.zeros(x.shape, dtype=x.dtype)
    for n, sample in enumerate(x):
        for i in range(0, x.shape[1], w):
            for j in range(0, x.shape[2], w):
                pixels = sample[i : i + w, j : j + w].reshape(-1, c)
                q, k, v = (pixels @ module.qkv.weight.T + module.qkv.bias).split(c, dim=1)
                mixed = []
                for channels in torch.arange(c).split(c // module.heads):
                    scores = torch.exp(4 * q[:, channels] @ k[:, channels].T)
                    mixed.append(scores / scores.sum(1, keepdim=True) @ v[:, channels])
                rows = torch.cat(mixed, dim=1) @ module.proj.weight.T + module.proj.bias
                out[n, i : i + w, j : j + w] = rows.reshape(w, w, c)
    return out


@pytest.mark.parametrize("window", WINDOW_SIZES)
def test_both_forms_are_the_formula(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Values and gradients; where all scores fit the cache, some windows' of a head, and only one window's."""
    module = attention(window).double()
    x = torch.randn(2, 8, 16, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    inputs = [x, *module.parameters()]
    expected = by_hand(module, x)
    gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    for name, form, cache in (
        *[("on a CPU", module.on_cpu, cache) for cache in (2**17, 5 * window**4, 1)], ("elsewhere", module.formula, 1),
    ):  # fmt: skip
        monkeypatch.setattr(cpu_attention, "IN_CACHE", cache)
        y = form(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        for one, other in zip(torch.autograd.grad((y * weight).sum(), inputs), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(module(x), module.on_cpu(x))


def test_large_scores_do_not_overflow() -> None:
    for window in WINDOW_SIZES:
        module = attention(window)
        y = module(1e3 * torch.ones(1, 8, 8, 12))
        torch.testing.assert_close(y, module.formula(1e3 * torch.ones(1, 8, 8, 12)), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("window", WINDOW_SIZES)
def test_bfloat16_is_no_worse_than_elsewhere(window: int) -> None:
    """Scores and sums are float32, as in PyTorch's own attention: the error is that of bfloat16 inputs alone."""
    module, x = attention(window, 24).double(), torch.randn(2, 32, 32, 24)
    truth = module.formula(x.double())
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(form(x).double() - truth).norm().item() for form in (module.on_cpu, module.formula)]
    assert errors[0] <= 1.02 * errors[1]
    assert errors[1] < 0.1 * truth.norm().item()


def test_bands_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (MLP(8), *(WindowAttention(8, window, 2) for window in WINDOW_SIZES)):
        module.double()
        for height in (8, 24, 32):
            x = torch.randn(2, height, 16, 8, dtype=torch.float64)
            whole = module(x).detach()  # with gradients: in one
            monkeypatch.setattr(cpu_attention, "BAND", 2 * 16 * 8)
            with torch.no_grad():
                torch.testing.assert_close(module(x), whole, rtol=0, atol=1e-13)


def test_bands_are_cut_without_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "BAND", 16 * 16)
    rows: list[int] = []

    def seen(band: Tensor) -> Tensor:
        rows.append(band.shape[1])
        return band

    x = torch.zeros(1, 40, 16, 3)
    cpu_attention.in_bands(seen, x)
    with torch.no_grad():
        cpu_attention.in_bands(seen, x)
    assert rows == [40, 16, 16, 8]
