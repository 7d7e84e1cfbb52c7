"""Attention as numbers: weights that give the model's own output, windows where the shuffle put them."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from traced import scattered, traced

import ka
from ka.models.psrt import shuffle, unshuffle
from ka.models.variants import PSRT_ROWS, VARIANTS
from workbook.views import attention
from workbook.views.trace import Trace, trace

H, W = 24, 32  # three windows of 8 high: shuffled windows of odd and even cells too
NAMES = ["psrt", "psrt_misaligned", "psrt_noshuffle", "kav3", "kav5_as_run", "kav6", "kav17"]
WITH_SA = [name for name, row in PSRT_ROWS.items() if attention.among_taps(row)]
PIXELS = [(0, 0), (3, 4), (10, 21), (13, 16), (23, 31)]
close = partial(torch.testing.assert_close, rtol=0, atol=1e-11)


def plain_shuffle(h: int, w: int, window: int) -> list[list[tuple[int, int]]]:
    """The pixel that PSRT's shuffle puts at each position, cell by cell."""
    d = window // 2
    rows = [i for i in range(h // d) if i % 2 == 0] + [i for i in range(h // d) if i % 2 == 1]
    cols = [j for j in range(w // d) if j % 2 == 0] + [j for j in range(w // d) if j % 2 == 1]
    return [[(rows[y // d] * d + y % d, cols[x // d] * d + x % d) for x in range(w)] for y in range(h)]


@pytest.mark.parametrize("name", NAMES)
def test_weights_give_the_attention(name: str) -> None:
    with torch.no_grad():
        for seen in traced(name, H, W).layers:
            attn, size = seen.layer.attn, seen.layer.window
            weights = attention.window_weights(seen)
            mixed = weights @ attn.split(seen.attention)[2]
            out = torch.empty_like(seen.attention)
            for m, window in enumerate(mixed):
                top, left = m // (W // size) * size, m % (W // size) * size
                tokens = window.transpose(0, 1).reshape(size, size, -1)
                out[0, top : top + size, left : left + size] = attn.proj(tokens)
            close(out, attn(seen.attention))
            close(attention.window_weights(seen, 5), weights[5:6])


@pytest.mark.parametrize("name", NAMES)
def test_queries_are_distributions_over_their_window(name: str) -> None:
    there = traced(name, H, W)
    peaks = []
    for i, seen in enumerate(there.layers):
        size = seen.layer.window
        for row, col in PIXELS:
            asked = attention.query(there, i, row, col)
            heads = 4 if there.model.row.has_ka else 8
            assert asked.weights.shape == (heads, size**2)
            np.testing.assert_allclose(asked.weights.sum(1), 1, rtol=0, atol=1e-12)
            pixels = set(zip(asked.rows.tolist(), asked.cols.tolist(), strict=True))
            assert len(pixels) == size**2
            assert (asked.rows[asked.token], asked.cols[asked.token]) == (row, col)
            shuffled = (name.startswith("psrt") and i % 3 == 1) or (name == "psrt_misaligned" and i % 3 == 2)
            if name == "psrt_noshuffle" or not shuffled:
                top, left = row - row % size, col - col % size
                assert asked.rows.tolist() == [top + t // size for t in range(size**2)]
                assert asked.cols.tolist() == [left + t % size for t in range(size**2)]
                assert not scattered(asked)
            peaks.append(asked.weights.max() * size**2)
    assert max(peaks) > 2  # else the tests here would see uniform weights only


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned"])
@pytest.mark.parametrize(("layer", "size"), [(1, 8), (4, 4), (16, 2)])
def test_shuffled_windows_are_where_the_shuffle_puts_them(name: str, layer: int, size: int) -> None:
    moved = plain_shuffle(H, W, size)
    there = traced(name, H, W)
    for top in range(0, H, size):
        for left in range(0, W, size):
            window = [moved[top + t // size][left + t % size] for t in range(size**2)]
            row, col = window[-1]
            asked = attention.query(there, layer, row, col)
            assert list(zip(asked.rows.tolist(), asked.cols.tolist(), strict=True)) == window
            assert scattered(asked)
            assert asked.lands == ((row, col) if name == "psrt" else (top + size - 1, left + size - 1))


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "psrt_noshuffle", "kav6"])
def test_weights_and_places_together_give_the_answer(name: str) -> None:
    """Values taken from the image at the query's places, mixed by its weights, are what the layer adds."""
    there = traced(name, H, W)
    kind = there.model.row.shuffle
    with torch.no_grad():
        for i, seen in enumerate(there.layers):
            attn, size = seen.layer.attn, seen.layer.window
            in_image, answers = seen.attention, attn(seen.attention)
            if kind != "none" and i % 3 == 1:
                in_image = unshuffle(in_image, size)
                answers = unshuffle(answers, size) if kind == "aligned" else answers
            elif kind == "misaligned" and i % 3 == 2:
                in_image = shuffle(in_image, size)
            for row, col in PIXELS:
                asked = attention.query(there, i, row, col)
                values = attn.qkv(in_image[0, asked.rows, asked.cols]).chunk(3, dim=-1)[2]
                by_head = values.reshape(size**2, len(asked.weights), -1).transpose(0, 1)
                mixed = torch.from_numpy(asked.weights)[:, None] @ by_head
                close(attn.proj(mixed.flatten()), answers[0, asked.lands[0], asked.lands[1]])


# Entropy


def test_entropy_of_known_weights() -> None:
    known = torch.tensor([[0.5, 0.25, 0.25, 0], [0.25] * 4, [0, 0, 1, 0], [0.5, 0, 0, 0.5]])
    expected = torch.tensor([0.75, 1, 0, 0.5]).double()
    torch.testing.assert_close(attention.normalised_entropy(known), expected, rtol=0, atol=0)
    drawn = torch.rand(1000, 64).softmax(-1)
    uniform = torch.full((64,), 1 / 64)
    assert (attention.normalised_entropy(drawn) < attention.normalised_entropy(uniform)).all()


@pytest.mark.parametrize("name", ["psrt", "kav9_as_run"])
def test_uniform_attention_has_entropy_1(name: str) -> None:
    model = ka.build(name, n_bands=3, n_msi=2, dim=16)
    for layer in model.layers():
        torch.nn.init.zeros_(layer.attn.qkv.weight)
        torch.nn.init.zeros_(layer.attn.qkv.bias)
    values = attention.entropies(trace(model, torch.rand(1, 3, 16, 8), torch.rand(1, 2, 16, 8)))
    assert values.shape == (18, 8 if name == "psrt" else 4)
    np.testing.assert_allclose(values, 1, rtol=0, atol=1e-12)


def test_sharp_attention_has_entropy_0() -> None:
    """Queries far along the features' own direction look at themselves alone."""
    model = ka.build("psrt_noshuffle", n_bands=3, n_msi=2, dim=16).double()
    layer = model.layers()[0]
    with torch.no_grad():
        layer.attn.qkv.bias.zero_()
        layer.attn.qkv.weight[:16] = 1e6 * torch.eye(16)
        layer.attn.qkv.weight[16:32] = torch.eye(16)
    there = trace(model, torch.rand(1, 3, 8, 8, dtype=torch.float64), torch.rand(1, 2, 8, 8, dtype=torch.float64))
    assert attention.entropy(there.layers[0]).max() < 1e-3


@pytest.mark.parametrize(("name", "h", "w"), [("psrt_misaligned", H, W), ("kav3", H, W), ("psrt", 72, 128)])
def test_entropy_is_the_mean_over_windows_and_queries(name: str, h: int, w: int) -> None:
    """The last image has so many windows that they are taken in parts."""
    there = traced(name, h, w)
    for i in (0, 4, 8):
        p = attention.window_weights(there.layers[i]).numpy()
        bits = -(p * np.log2(p)).sum(-1)
        expected = bits.mean((0, 2)) / {0: 6, 4: 4, 8: 2}[i]
        np.testing.assert_allclose(attention.entropy(there.layers[i]), expected, rtol=0, atol=1e-12)
    assert attention.entropies(there)[4].tolist() == attention.entropy(there.layers[4]).tolist()


# Kernel SA


def kernels_around_sa(there: Trace, layer: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Kernels (o i k k) by name, before and after a layer's SA."""
    seen = there.layers[layer]
    stages = list(seen.layer.ka.stages(seen.ka))
    at = [part for part, _, _ in stages].index("SA")
    named: list[dict[str, Tensor]] = []
    for _, windows, glob in stages[at - 1 : at + 1]:
        named.append({f"window {m + 1}": windows[0, m] for m in range(4)})
        if glob is not None:
            named[-1]["global"] = glob[0, 0]
    return named[0], named[1]


@pytest.mark.parametrize("name", WITH_SA)
def test_kernel_sa_and_its_labels_give_the_kernels_after_sa(name: str) -> None:
    """Each filter's taps are collected by their labels, mixed by the weights and compared by label."""
    there, row = traced(name), VARIANTS[name]
    with torch.no_grad():
        for layer in (0, 17):
            weights = attention.kernel_sa(there, layer)
            before, after = kernels_around_sa(there, layer)
            sa = there.layers[layer].layer.ka.sa
            n_filters, n_heads, n_taps, _ = weights.weights.shape
            assert (n_heads, n_taps) == (4, (4 + (row.sa != "windows")) * row.size**2)
            assert n_filters == (1 if row.kernels == "pooled" else 8)
            np.testing.assert_allclose(weights.weights.sum(-1), 1, rtol=0, atol=1e-12)
            assert weights.weights.max() > 1.5 / n_taps
            for f in range(n_filters):
                tokens: list[Tensor] = []
                for name_of_filter in weights.kernel_names(f):
                    kernel, _, other = name_of_filter.partition(" of filter ")
                    tokens += before[kernel][int(other) - 1 if other else f].flatten(1).T
                values = sa.qkv(torch.stack(tokens)).chunk(3, dim=-1)[2].reshape(n_taps, 4, -1).transpose(0, 1)
                mixed = torch.from_numpy(weights.weights[f]) @ values
                if row.sa_among == "both":  # the other half of what the module sums
                    q, k, v = sa.qkv(torch.stack(tokens)).reshape(n_taps, 3, 4, -1).permute(1, 2, 3, 0)
                    mixed = mixed + ((q @ k.mT / n_taps**0.5).softmax(-1) @ v).mT
                mixed = mixed.transpose(0, 1).reshape(n_taps, -1)
                results = sa.proj(mixed).split(row.size**2)
                for name_of_result, result in zip(weights.kernel_names(), results, strict=True):
                    close(result.T.reshape(-1, row.size, row.size), after[name_of_result.rpartition(" → ")[2]][f])


def test_attention_among_channels_is_not_among_taps() -> None:
    message = r"^kav10_channel_sa has kernel SA among channels, not among taps; choose a model of one of kav1, "
    with pytest.raises(ka.KAError, match=message) as error:
        attention.kernel_sa(traced("kav10_channel_sa"), 0)
    assert "kav10_both_sa" in str(error.value)
    assert ", kav10_channel_sa" not in str(error.value)


def test_kernel_sa_entropy_and_order() -> None:
    weights = attention.kernel_sa(traced("kav6"), 2)
    p = weights.weights
    np.testing.assert_allclose(weights.entropy, -(p * np.log(p)).sum(-1).mean((0, 2)) / np.log(45), rtol=0, atol=1e-12)
    assert attention.kernel_entropies(traced("kav6"))[2].tolist() == weights.entropy.tolist()
    windows = ["window 1", "window 2", "window 3", "window 4"]
    assert weights.kernel_names() == [*windows, "global"]
    assert attention.kernel_sa(traced("kav8"), 2).kernel_names() == ["global", *windows]
    assert attention.kernel_sa(traced("kav8_as_run"), 2).kernel_names()[1] == "slot 2 → window 1"
    assert attention.kernel_sa(traced("kav10_5x5"), 0).kernel_names(2) == windows


def test_mistakes_are_explained() -> None:
    there = traced("kav11", 8, 8)
    with pytest.raises(ka.KAError, match=r"pixel \(row 8, column 0\) is outside the image; choose row 0 … 7, column"):
        attention.query(there, 0, 8, 0)
    with pytest.raises(ka.KAError, match=r"outside the image"):
        attention.query(there, 0, 0, -1)
    with pytest.raises(ka.KAError, match="layer=18 is not one of the 18; choose 0 … 17"):
        attention.query(there, 18, 0, 0)
    with pytest.raises(ka.KAError, match="window=4 is not one of the 4; choose 0 … 3"):
        attention.window_weights(there.layers[3], 4)
    with pytest.raises(ka.KAError, match=r"kav11 has no kernel SA; choose a model of one of kav1, kav2, .* kav12, .*"):
        attention.kernel_sa(there, 0)
    with pytest.raises(ka.KAError, match="filter=-1 is not one of the 8"):
        attention.kernel_sa(traced("kav6"), 0).kernel_names(-1)
    folded = trace(traced("kav6").model.fold(), traced("kav6").up, traced("kav6").msi)
    assert attention.entropies(folded).shape == (18, 4)
    with pytest.raises(ka.KAError, match="folded"):
        attention.kernel_sa(folded, 0)


def test_one_image_of_whole_windows_is_traced() -> None:
    for shape in ((2, 3, 8, 8), (1, 3, 12, 8)):
        with pytest.raises(ka.KAError, match="one image with sides that are multiples of 8"):
            trace(traced("psrt").model, torch.rand(shape), torch.rand(shape))
