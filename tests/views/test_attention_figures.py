"""Figures of attention show what they were given."""

import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from traced import scattered, traced

import ka
from workbook.style import png
from workbook.views import attention, attention_figures

H, W = 24, 32


def picture(h: int = H, w: int = W) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(h, w, 3))


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "kav3"])
def test_query_maps_draw_the_weights_at_their_places(name: str) -> None:
    there, image = traced(name, H, W), picture()
    for layer, head in ((0, None), (1, 2), (4, None), (5, 0), (8, 3)):
        for row, col in ((10, 21), (23, 31)):
            asked = attention.query(there, layer, row, col)
            figure = attention_figures.query_maps(there, image, layer, row, col, head)
            whole, near, heads, bar = figure.axes
            assert np.array_equal(whole.images[0].get_array(), image)
            assert whole.get_title() == f"row {row}, column {col}"
            dots = near.collections[0]
            expected = asked.weights.mean(0) if head is None else asked.weights[head]
            assert np.array_equal(dots.get_array(), expected)
            x, y = dots.get_offsets().astype(int).T
            assert np.array_equal(near.images[0].get_array()[y, x], image[asked.rows, asked.cols])
            assert bar.get_ylim() == (0, pytest.approx(asked.weights.max()))
            for axis in (whole, near):
                outlines = [part for part in axis.collections if isinstance(part, PatchCollection)]
                assert len(outlines[0].get_paths()) == (4 if scattered(asked) else 1)
            assert [text.get_text() for text in heads.texts] == [f"head {i + 1}" for i in range(len(asked.weights))]
            assert figure.get_suptitle().startswith(f"{name}, block 1, ")
            assert ("the answer is added to" in figure.get_suptitle()) == (asked.lands != (row, col))


@pytest.mark.parametrize(("layer", "size"), [(0, 8), (3, 4), (6, 2)])
def test_tiles_by_head_are_the_windows(layer: int, size: int) -> None:
    there = traced("psrt", H, W)
    asked = attention.query(there, layer, 10, 21)
    figure = attention_figures.query_maps(there, picture(), layer, 10, 21)
    heads = figure.axes[2]
    assert len(heads.images) == len(asked.weights)
    for i, (image, weights) in enumerate(zip(heads.images, asked.weights, strict=True)):
        assert np.array_equal(image.get_array(), weights.reshape(size, size))
        assert image.norm(asked.weights.max()) == 1
        left, top = 1.2 * (i % 4), 1.2 * (i // 4) + 0.2
        np.testing.assert_allclose(image.get_extent(), (left, left + 1, top + 1, top))


def test_tiles_of_a_shuffled_window_hold_its_cells() -> None:
    """The window's weights where its pixels are, nothing between its four cells."""
    asked = attention.query(traced("psrt", H, W), 4, 10, 21)
    assert scattered(asked)
    tile, mark = attention_figures._tile(asked, np.arange(16.0))
    assert tile.shape == (6, 6)
    assert np.isnan(tile[2:4]).all()
    assert np.isnan(tile[:, 2:4]).all()
    assert tile[~np.isnan(tile)].tolist() == np.arange(16.0).tolist()
    assert tile[mark] == asked.token


@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "kav12"])
def test_query_layers_reach_as_far_as_the_largest_weight(name: str) -> None:
    there = traced(name, H, W)
    figure = attention_figures.query_layers(there, picture(), 10, 21)
    asked = [attention.query(there, i, 10, 21).weights for i in range(18)]
    largest = max(weights.mean(0).max() * weights.shape[1] for weights in asked)
    assert figure.axes[2].get_ylim()[1] == pytest.approx(max(1, np.log2(largest)))
    labels = [text.get_text() for text in figure.axes[1].texts]
    assert labels[:7] == ["8×8, L1", "4×4, L1", "2×2, L1", "8×8, L1", "4×4, L1", "2×2, L1", "8×8, L2"]
    assert labels[18:] == ["block 1", "block 2"]
    assert figure.get_suptitle() == f"{name}, mean over heads"


def test_kernel_sa_map_draws_means_or_one() -> None:
    weights = attention.kernel_sa(traced("kav8_as_run"), 1)
    main, _, bar = attention_figures.kernel_sa_map(weights).axes
    np.testing.assert_allclose(main.images[0].get_array(), weights.weights.mean((0, 1)))
    assert bar.get_ylim()[1] == pytest.approx(weights.weights.mean(0).max())
    figure = attention_figures.kernel_sa_map(weights, head=1, filter=5)
    main = figure.axes[0]
    np.testing.assert_allclose(main.images[0].get_array(), weights.weights[5, 1])
    memory = [divmod(m * 8 + 5, 5) for m in range(5)]  # (filter, kernel) of the memory read as (kernel, filter)
    names = [f"{('global', 'window 1', 'window 2', 'window 3', 'window 4')[m]}\nof filter {f + 1}" for f, m in memory]
    assert [text.get_text() for text in main.get_xticklabels()] == names
    assert (main.get_title(), figure.get_suptitle()) == ("head 2", "kernel SA, filter 6")


def test_maps_are_cut_into_kernels_of_their_size() -> None:
    weights = attention.kernel_sa(traced("kav10_5x5"), 0)
    main = attention_figures.kernel_sa_map(weights).axes[0]
    assert main.get_xticks().tolist() == [12, 37, 62, 87]
    assert [text.get_text() for text in main.get_xticklabels()] == [f"window {m}" for m in (1, 2, 3, 4)]


def test_entropy_map_names_its_layers() -> None:
    entropies = attention.entropies(traced("kav3"))
    axis, bar = attention_figures.entropy_map(entropies).axes
    assert np.array_equal(axis.images[0].get_array(), entropies)
    assert axis.get_yticklabels()[17].get_text() == "block 2, 2×2, L3"
    assert bar.get_yticklabels()[-1].get_text() == "1: uniform"


def test_figures_are_drawn() -> None:
    there, image = traced("kav6", H, W), picture()
    weights = attention.kernel_sa(there, 1)
    for figure in (
        attention_figures.query_maps(there, image, 4, 3, 4, 1),
        attention_figures.query_maps(traced("psrt_misaligned", H, W), image, 4, 3, 4),
        attention_figures.query_layers(there, image, 3, 4),
        attention_figures.kernel_sa_map(weights, 0, 1),
        attention_figures.entropy_map(attention.kernel_entropies(there), title="kernel SA"),
    ):
        assert len(png(figure)) > 10_000


def test_mistakes_are_explained() -> None:
    there, image = traced("kav11", 8, 8), picture(8, 8)
    with pytest.raises(ka.KAError, match="head=4 is not one of the 4; choose 0 … 3"):
        attention_figures.query_maps(there, image, 0, 0, 0, head=4)
    with pytest.raises(ka.KAError, match="the traced image"):
        attention_figures.query_layers(there, picture(8, 16), 0, 0)
    weights = attention.kernel_sa(traced("kav6"), 0)
    with pytest.raises(ka.KAError, match="filter=8 is not one of the 8"):
        attention_figures.kernel_sa_map(weights, filter=8)
