"""Attention looked at: weights that give the model's own output, windows where the shuffle put them, figures."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.collections import PatchCollection
from torch import Tensor

import ka
from ka.models.psrt import shuffle, unshuffle
from ka.models.variants import VARIANTS
from workbook.style import png
from workbook.views import attention_views as av
from workbook.views.trace import Trace, trace

H, W = 24, 32  # three windows of 8 high: shuffled windows of odd and even cells too
NAMES = [
    "psrt", "psrt_misaligned", "psrt_noshuffle", "kav1", "kav3", "kav6", "kav8", "kav8_as_run", "kav12",
    "kav5_as_run", "kav17",
]  # fmt: skip
WITH_SA = [name for name, row in VARIANTS.items() if row.sa and row.sa_among != "channels"]
PIXELS = [(0, 0), (3, 4), (10, 21), (13, 16), (23, 31)]


@cache
def traced(name: str, h: int = H, w: int = W) -> Trace:
    """A pass in float64 of a model whose attention, unlike a fresh one's, is far from uniform."""
    torch.manual_seed(1)
    model = ka.build(name, n_bands=3, n_msi=2, dim=16).double().eval()
    with torch.no_grad():
        for layer in model.layers():
            layer.attn.qkv.weight.mul_(40)
            if getattr(layer.ka, "sa", None) is not None:
                layer.ka.sa.qkv.weight.mul_(200)
    return trace(model, torch.rand(1, 3, h, w, dtype=torch.float64), torch.rand(1, 2, h, w, dtype=torch.float64))


def picture(h: int = H, w: int = W) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(h, w, 3))


def plain_shuffle(h: int, w: int, window: int) -> list[list[tuple[int, int]]]:
    """The pixel that PSRT's shuffle puts at each position, cell by cell."""
    d = window // 2
    rows = [i for i in range(h // d) if i % 2 == 0] + [i for i in range(h // d) if i % 2 == 1]
    cols = [j for j in range(w // d) if j % 2 == 0] + [j for j in range(w // d) if j % 2 == 1]
    return [[(rows[y // d] * d + y % d, cols[x // d] * d + x % d) for x in range(w)] for y in range(h)]


@pytest.mark.parametrize("name", NAMES)
def test_weights_give_the_attention(name: str) -> None:
    with torch.no_grad():
        for seen in traced(name).seen:
            attn, size = seen.layer.attn, seen.layer.window
            weights = av.window_weights(seen)
            mixed = weights @ attn.split(seen.attention)[2]
            out = torch.empty_like(seen.attention)
            for m, window in enumerate(mixed):
                top, left = m // (W // size) * size, m % (W // size) * size
                tokens = window.transpose(0, 1).reshape(size, size, -1)
                out[0, top : top + size, left : left + size] = attn.proj(tokens)
            torch.testing.assert_close(out, attn(seen.attention), rtol=0, atol=1e-12)
            torch.testing.assert_close(av.window_weights(seen, 5), weights[5:6], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_queries_are_distributions_over_their_window(name: str) -> None:
    there = traced(name)
    peaks = []
    for i, seen in enumerate(there.seen):
        size = seen.layer.window
        for row, col in PIXELS:
            found = av.query(there, i, row, col)
            heads = 4 if there.model.row.has_ka else 8
            assert found.weights.shape == (heads, size**2)
            np.testing.assert_allclose(found.weights.sum(1), 1, rtol=0, atol=1e-12)
            pixels = set(zip(found.rows.tolist(), found.cols.tolist(), strict=True))
            assert len(pixels) == size**2
            assert (row, col) in pixels
            assert (found.rows[found.token], found.cols[found.token]) == (row, col)
            shuffled = (name.startswith("psrt") and i % 3 == 1) or (name == "psrt_misaligned" and i % 3 == 2)
            if name == "psrt_noshuffle" or not shuffled:
                top, left = row - row % size, col - col % size
                assert found.rows.tolist() == [top + t // size for t in range(size**2)]
                assert found.cols.tolist() == [left + t % size for t in range(size**2)]
                assert not found.scattered
            peaks.append(found.weights.max() * size**2)
    assert max(peaks) > 2  # else the tests here would see uniform weights only


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned"])
@pytest.mark.parametrize("layer", [1, 4, 7, 10, 13, 16])
def test_shuffled_windows_are_where_the_shuffle_puts_them(name: str, layer: int) -> None:
    size = {1: 8, 4: 4, 7: 2}[layer % 9]
    moved = plain_shuffle(H, W, size)
    there = traced(name)
    for top in range(0, H, size):
        for left in range(0, W, size):
            window = [moved[top + t // size][left + t % size] for t in range(size**2)]
            row, col = window[-1]
            found = av.query(there, layer, row, col)
            assert list(zip(found.rows.tolist(), found.cols.tolist(), strict=True)) == window
            assert found.window == top // size * (W // size) + left // size
            assert found.scattered
            assert found.lands == ((row, col) if name == "psrt" else (top + size - 1, left + size - 1))


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "psrt_noshuffle", "kav6"])
def test_weights_and_places_together_give_the_answer(name: str) -> None:
    """Values taken from the image at the query's places, mixed by its weights, are what the layer adds."""
    there = traced(name)
    kind = there.model.row.shuffle
    with torch.no_grad():
        for i, seen in enumerate(there.seen):
            attn, size = seen.layer.attn, seen.layer.window
            in_image, answers = seen.attention, attn(seen.attention)
            if kind != "none" and i % 3 == 1:
                in_image = unshuffle(in_image, size)
                answers = unshuffle(answers, size) if kind == "aligned" else answers
            elif kind == "misaligned" and i % 3 == 2:
                in_image = shuffle(in_image, size)
            for row, col in PIXELS:
                found = av.query(there, i, row, col)
                values = attn.qkv(in_image[0, found.rows, found.cols]).chunk(3, dim=-1)[2]
                by_head = values.reshape(size**2, len(found.weights), -1).transpose(0, 1)
                mixed = torch.from_numpy(found.weights)[:, None] @ by_head
                expected = answers[0, found.lands[0], found.lands[1]]
                torch.testing.assert_close(attn.proj(mixed.flatten()), expected, rtol=0, atol=1e-12)


def test_entropy_of_known_weights() -> None:
    known = torch.tensor([[0.5, 0.25, 0.25, 0], [0.25] * 4, [0, 0, 1, 0], [0.5, 0, 0, 0.5]])
    torch.testing.assert_close(av.normalised_entropy(known), torch.tensor([0.75, 1, 0, 0.5]).double(), rtol=0, atol=0)
    drawn = torch.rand(1000, 64).softmax(-1)
    assert (av.normalised_entropy(drawn) < av.normalised_entropy(torch.full((64,), 1 / 64))).all()


@pytest.mark.parametrize("name", ["psrt", "kav1", "kav9_as_run"])
def test_uniform_attention_has_entropy_1(name: str) -> None:
    model = ka.build(name, n_bands=3, n_msi=2, dim=16)
    for layer in model.layers():
        torch.nn.init.zeros_(layer.attn.qkv.weight)
        torch.nn.init.zeros_(layer.attn.qkv.bias)
    found = av.entropies(trace(model, torch.rand(1, 3, 16, 8), torch.rand(1, 2, 16, 8)))
    assert found.shape == (18, 8 if name == "psrt" else 4)
    np.testing.assert_allclose(found, 1, rtol=0, atol=1e-12)


def test_sharp_attention_has_entropy_0() -> None:
    """Queries far along the features' own direction look at themselves alone."""
    model = ka.build("psrt_noshuffle", n_bands=3, n_msi=2, dim=16).double()
    layer = model.layers()[0]
    with torch.no_grad():
        layer.attn.qkv.bias.zero_()
        layer.attn.qkv.weight[:16] = 1e6 * torch.eye(16)
        layer.attn.qkv.weight[16:32] = torch.eye(16)
    there = trace(model, torch.rand(1, 3, 8, 8, dtype=torch.float64), torch.rand(1, 2, 8, 8, dtype=torch.float64))
    assert av.entropy(there.seen[0]).max() < 1e-3


@pytest.mark.parametrize(("name", "h", "w"), [("psrt_misaligned", H, W), ("kav3", H, W), ("psrt", 72, 128)])
def test_entropy_is_the_mean_over_windows_and_queries(name: str, h: int, w: int) -> None:
    """The last image has so many windows that they are taken in parts."""
    there = traced(name, h, w)
    for i in (0, 4, 8):
        p = av.window_weights(there.seen[i]).numpy()
        bits = -(p * np.log2(p)).sum(-1)
        expected = bits.mean((0, 2)) / {0: 6, 4: 4, 8: 2}[i]
        np.testing.assert_allclose(av.entropy(there.seen[i]), expected, rtol=0, atol=1e-12)
    assert av.entropies(there)[4].tolist() == av.entropy(there.seen[4]).tolist()


def kernels_around_sa(there: Trace, layer: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Kernels (o i k k) by name, before and after a layer's SA."""
    stages = list(there.seen[layer].layer.ka.stages(there.seen[layer].ka))
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
    there = traced(name)
    with torch.no_grad():
        for layer in (0, 7, 17):
            found = av.kernel_sa(there, layer)
            before, after = kernels_around_sa(there, layer)
            sa = there.seen[layer].layer.ka.sa
            n_filters, n_heads, n_taps, _ = found.weights.shape
            row = VARIANTS[name]
            assert (n_heads, n_taps) == (4, (4 + (row.sa != "windows")) * row.size**2)
            assert n_filters == (1 if row.kernels == "pooled" else 8)
            np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=0, atol=1e-12)
            assert found.weights.max() > 1.5 / n_taps
            for f in range(n_filters):
                tokens = []
                for tap in found.taps(f):
                    kernel, _, other = tap.kernel.partition(" of filter ")
                    tokens.append(before[kernel][int(other) - 1 if other else f, :, tap.u, tap.v])
                values = sa.qkv(torch.stack(tokens)).chunk(3, dim=-1)[2].reshape(n_taps, 4, -1).transpose(0, 1)
                mixed = torch.from_numpy(found.weights[f]) @ values
                if row.sa_among == "both":  # the other half of what the module sums
                    q, k, v = sa.qkv(torch.stack(tokens)).reshape(n_taps, 3, 4, -1).permute(1, 2, 3, 0)
                    mixed = mixed + ((q @ k.mT / n_taps**0.5).softmax(-1) @ v).mT
                mixed = mixed.transpose(0, 1).reshape(n_taps, -1)
                for tap, result in zip(found.taps(), sa.proj(mixed), strict=True):
                    used = tap.kernel.rpartition(" → ")[2]
                    torch.testing.assert_close(result, after[used][f, :, tap.u, tap.v], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["kav1", "kav6", "kav8_as_run"])
def test_kernel_sa_gives_the_modules_output(name: str) -> None:
    seen = traced(name).seen[3]
    sa = seen.layer.ka.sa
    caught: dict[str, Any] = {}
    hook = sa.register_forward_hook(lambda _, inputs, out: caught.update(kernels=inputs[0], out=out))
    with torch.no_grad():
        seen.layer.ka(seen.ka)
        hook.remove()
        values = sa.heads(caught["kernels"])[2]
        mixed = torch.from_numpy(av.kernel_sa(traced(name), 3).weights) @ values
        taps = sa.proj(mixed.transpose(1, 2).flatten(2))  # o t i
    out = caught["out"][0]  # m o i u v
    torch.testing.assert_close(taps, out.permute(1, 0, 3, 4, 2).reshape(taps.shape), rtol=0, atol=1e-12)


def test_attention_among_channels_is_not_among_taps() -> None:
    with pytest.raises(
        ka.KAError,
        match=r"^kav10_channel_sa has kernel SA among channels, not among taps; choose a model of one of kav1, ",
    ) as error:
        av.kernel_sa(traced("kav10_channel_sa", 8, 8), 0)
    assert "kav10_both_sa" in str(error.value)
    assert ", kav10_channel_sa" not in str(error.value)


def test_maps_are_cut_into_kernels_of_their_size() -> None:
    found = av.kernel_sa(traced("kav10_5x5", 8, 8), 0)
    main = av.kernel_sa_map(found.weights, found.taps()).axes[0]
    assert main.get_xticks().tolist() == [12, 37, 62, 87]
    assert [text.get_text() for text in main.get_xticklabels()] == [f"window {m}" for m in (1, 2, 3, 4)]
    assert found.taps()[26] == ("window 2", 0, 1)


def test_kernel_sa_entropy_and_order() -> None:
    found = av.kernel_sa(traced("kav6"), 2)
    p = found.weights
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(-1).mean((0, 2)) / np.log(45), rtol=0, atol=1e-12)
    assert found.taps()[:4] == (("window 1", 0, 0), ("window 1", 0, 1), ("window 1", 0, 2), ("window 1", 1, 0))
    assert [tap.kernel for tap in found.taps()[8::9]] == ["window 1", "window 2", "window 3", "window 4", "global"]
    assert av.kernel_sa(traced("kav8"), 2).taps()[0] == ("global", 0, 0)
    assert av.kernel_sa(traced("kav8_as_run"), 2).taps()[9].kernel == "slot 2 → window 1"


def test_mistakes_are_explained() -> None:
    there, image = traced("kav11", 8, 8), picture(8, 8)
    with pytest.raises(ka.KAError, match=r"pixel \(row 8, column 0\) is outside the image; choose row 0 … 7, column"):
        av.query(there, 0, 8, 0)
    with pytest.raises(ka.KAError, match=r"outside the image"):
        av.query(there, 0, 0, -1)
    with pytest.raises(ka.KAError, match="layer 18: the model has 18; choose 0 … 17"):
        av.query(there, 18, 0, 0)
    with pytest.raises(ka.KAError, match="window 4: this layer has 4; choose 0 … 3"):
        av.window_weights(there.seen[3], 4)
    with pytest.raises(
        ka.KAError, match=r"kav11 has no kernel SA; choose a model of one of kav1, kav2, .* kav12, kav13, .*"
    ):
        av.kernel_sa(there, 0)
    with pytest.raises(ka.KAError, match="head 4: there are 4; choose 0 … 3, or None"):
        av.query_maps(there, image, 0, 0, 0, head=4)
    with pytest.raises(ka.KAError, match="the traced image"):
        av.query_layers(there, picture(8, 16), 0, 0)
    folded = trace(traced("kav6").model.fold(), traced("kav6").up, traced("kav6").msi)
    assert av.entropies(folded).shape == (18, 4)
    with pytest.raises(ka.KAError, match="folded"):
        av.kernel_sa(folded, 0)
    found = av.kernel_sa(traced("kav6"), 0)
    with pytest.raises(ka.KAError, match="filter 8: there are 8"):
        av.kernel_sa_map(found.weights, found.taps(), filter=8)
    with pytest.raises(ka.KAError, match="filter -1"):
        found.taps(-1)


@pytest.mark.parametrize(("layer", "head"), [(0, None), (1, 2), (2, None), (4, None), (5, 0), (8, 3)])
@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "kav3"])
def test_query_maps_draw_the_weights_at_their_places(name: str, layer: int, head: int | None) -> None:
    there, image = traced(name), picture()
    for row, col in ((10, 21), (23, 31)):
        found = av.query(there, layer, row, col)
        figure = av.query_maps(there, image, layer, row, col, head)
        whole, near, heads, bar = figure.axes
        assert np.array_equal(whole.images[0].get_array(), image)
        dots = near.collections[0]
        expected = found.weights.mean(0) if head is None else found.weights[head]
        assert np.array_equal(dots.get_array(), expected)
        x, y = dots.get_offsets().astype(int).T
        assert np.array_equal(near.images[0].get_array()[y, x], image[found.rows, found.cols])
        assert bar.get_ylim() == (0, pytest.approx(found.weights.max()))
        cells = 4 if found.scattered else 1
        for axis in (whole, near):
            outlines = [one for one in axis.collections if isinstance(one, PatchCollection)]
            assert len(outlines[0].get_paths()) == cells
        canvas = heads.images[0].get_array()
        greys = np.isclose(canvas[..., 0], 0xD0 / 255, atol=2e-3) & (np.ptp(canvas[..., :3], axis=-1) < 2e-3)
        share = 1 - (2 / 3) ** 2 if found.scattered else 0
        assert greys.sum() == round(share * len(found.weights) * 48**2)


@pytest.mark.parametrize(("layer", "size"), [(0, 8), (3, 4), (6, 2)])
def test_tiles_by_head_are_the_windows(layer: int, size: int) -> None:
    there = traced("psrt")
    found = av.query(there, layer, 10, 21)
    canvas = av.query_maps(there, picture(), layer, 10, 21).axes[2].images[0].get_array()
    step = 48 // size
    for i, weights in enumerate(found.weights):
        top, left = i // 4 * 58 + 10, i % 4 * 58
        colours = colormaps["viridis"](weights.reshape(size, size) / found.weights.max())
        np.testing.assert_allclose(canvas[top : top + 48 : step, left : left + 48 : step], colours, atol=1 / 255)


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "kav12"])
def test_query_layers_reach_as_far_as_the_largest_weight(name: str) -> None:
    there = traced(name)
    figure = av.query_layers(there, picture(), 10, 21)
    largest = max(w.weights.mean(0).max() * w.weights.shape[1] for w in (av.query(there, i, 10, 21) for i in range(18)))
    assert figure.axes[2].get_ylim()[1] == pytest.approx(max(1, np.log2(largest)))
    labels = [text.get_text() for text in figure.axes[1].texts]
    assert labels[:7] == ["8×8, L1", "4×4, L1", "2×2, L1", "8×8, L1", "4×4, L1", "2×2, L1", "8×8, L2"]
    assert labels[18:] == ["block 1", "block 2"]


def test_kernel_sa_map_draws_means_or_one() -> None:
    found = av.kernel_sa(traced("kav8_as_run"), 1)
    main, _, bar = av.kernel_sa_map(found.weights, found.taps()).axes
    np.testing.assert_allclose(main.images[0].get_array(), found.weights.mean((0, 1)))
    assert bar.get_ylim()[1] == pytest.approx(found.weights.mean(0).max())
    main = av.kernel_sa_map(found.weights, found.taps(5), head=1, filter=5).axes[0]
    np.testing.assert_allclose(main.images[0].get_array(), found.weights[5, 1])
    held = [divmod(m * 8 + 5, 5) for m in range(5)]  # (filter, kernel) of the memory read as (kernel, filter)
    names = [f"{('global', 'window 1', 'window 2', 'window 3', 'window 4')[m]}\nof filter {f + 1}" for f, m in held]
    assert [text.get_text() for text in main.get_xticklabels()] == names


def test_entropy_map_names_its_layers() -> None:
    found = av.entropies(traced("kav3"))
    axis, bar = av.entropy_map(found).axes
    assert np.array_equal(axis.images[0].get_array(), found)
    assert axis.get_yticklabels()[17].get_text() == "block 2, 2×2, L3"
    assert bar.get_yticklabels()[-1].get_text() == "1: uniform"


def test_figures_are_the_same_bytes_again() -> None:
    there, image = traced("kav6"), picture()
    found = av.kernel_sa(there, 1)
    for draw in (
        lambda: av.query_maps(there, image, 4, 3, 4, 1),
        lambda: av.query_layers(there, image, 3, 4),
        lambda: av.kernel_sa_map(found.weights, found.taps(), 0, 1),
        lambda: av.entropy_map(av.entropies(there)),
    ):
        first = png(draw())
        assert first == png(draw())
        assert len(first) > 10_000
