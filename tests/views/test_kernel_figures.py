"""Figures of kernels show what they were given."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from traced import traced

from ka.errors import KAError
from ka.models.psrt import LAYERS
from workbook.style import png
from workbook.views import draw, kernel_figures, kernels

C = 8  # channels of a branch
L = 4  # a layer to look at


@pytest.mark.parametrize("name", ["kav1", "kav4", "kav5", "conv5x5"])
def test_figures_draw(name: str) -> None:
    a, b = traced(name), traced(name, seed=1)
    stages, shares = kernels.stages_of(a, L), kernels.contributions(a, L)
    finals, moved = kernels.final_stages(a), kernels.layer_movement(a, b)
    pictures = {which: np.zeros((16, 24, 3)) for which in "ab"}
    figures = [
        kernel_figures.filter_grid(stages, title=name),
        kernel_figures.filter_grid(kernels.folding(a, L), range(4), [1, 5], shared=False, title=name),
        kernel_figures.single(stages, 0, C - 1, title=name),
        kernel_figures.norm_steps(stages, title=name),
        kernel_figures.cosine_heatmaps(stages, title=name),
        kernel_figures.layer_cosine_heatmap(kernels.layer_cosine(finals, finals[0].labels[0]), title=name),
        kernel_figures.frequency_responses(stages[0], title=name),
        kernel_figures.frequency_responses(stages[-1], pair=(2, 3), title=name),
        kernel_figures.contribution_panel(shares, title=name),
        kernel_figures.contribution_layers([shares] * len(LAYERS), title=name),
        kernel_figures.movement_panel(pictures, (finals[L], kernels.stages_of(b, L)[-1]), moved[L], title=name),
        kernel_figures.layer_heatmap(kernels.norms(finals), finals[0].labels, "Frobenius norm"),
    ]
    for figure in figures:
        assert png(figure).startswith(b"\x89PNG")
    assert {figure.get_suptitle() for figure in figures[:-1]} == {name}


def test_the_grid_shows_the_filters() -> None:
    stages = kernels.stages_of(traced("kav11"), L)
    outs, ins = [7, 0, 3], [2, 5]
    figure = kernel_figures.filter_grid(stages, outs, ins)
    first, second = (np.asarray(image.get_array()) for image in figure.axes[0].images)
    step = 3 * len(ins) + 1  # a column between kernels
    assert (first.shape, second.shape) == ((9, 4 * step - 1), (9, 5 * step - 1))
    for k in range(5):
        for row, o in enumerate(outs):
            for col, i in enumerate(ins):
                shown = second[3 * row : 3 * row + 3, k * step + 3 * col : k * step + 3 * col + 3]
                np.testing.assert_array_equal(shown, stages[1].kernels[k, o, i])
    top = max(np.abs(stage.kernels[:, outs][:, :, ins]).max() for stage in stages)
    assert all(image.get_clim() == (-top, top) for image in figure.axes[0].images)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["window\nkernels", "global\nkernel"]


def test_lines_part_filters_of_any_size() -> None:
    for name, size, n in (("kav10", 3, 4), ("kav10_5x5", 5, 4), ("conv5x5", 5, 1)):
        axis = kernel_figures.filter_grid(kernels.stages_of(traced(name), L)[:1], [0, 1], [2, 5]).axes[0]
        (lines,) = [part for part in axis.collections if isinstance(part, LineCollection)]
        upright = [line for line in lines.get_segments() if line[0, 0] == line[1, 0]]
        places = sorted({float(line[0, 0]) for line in upright})
        assert len(places) == 3 * n, name  # before, between and after two filters
        assert np.diff(places[:3]).tolist() == [size, size], name


def test_the_grid_scales_rows_apart() -> None:
    stages = kernels.stages_of(traced("kav1"), L)
    tops = [np.abs(stage.kernels).max() for stage in stages]
    images = kernel_figures.filter_grid(stages, shared=False).axes[0].images
    assert [image.get_clim()[1] for image in images] == tops
    assert [len(np.asarray(image.get_array())) for image in images] == [3, 3, 3, 3 * C]


def test_single_writes_every_tap() -> None:
    stages = kernels.stages_of(traced("kav11"), L)
    axis = kernel_figures.single(stages, 1, 2).axes[0]
    written = [part for part in axis.collections if isinstance(part, PathCollection)]
    assert [len(numbers.get_paths()) for numbers in written] == [4 * 9, 5 * 9]
    np.testing.assert_array_equal(shown_taps(axis.images[1]), stages[1].kernels[:, 1, 2])


def shown_taps(image: object) -> np.ndarray:
    """The 3×3 filters in a row of a mosaic of one filter a kernel."""
    values = np.asarray(image.get_array())  # type: ignore[attr-defined]
    return values[:, ~np.isnan(values[0])].reshape(3, -1, 3).transpose(1, 0, 2)


def test_numbers_are_written_in_their_cells() -> None:
    """One for each finite value, at the middle of its cell; white on dark colours, black on light ones."""
    figure, (axis,) = draw.side_by_side([2], 1, (0, 0, 0, 0))
    values = np.array([[0.0, 1.0], [np.nan, 0.5]])
    image = axis.imshow(values, extent=(10, 30, 5, 1), cmap="gray")
    numbers = draw.write_numbers(axis, image, factor=10)
    assert numbers.get_offsets().tolist() == [[15, 2], [25, 2], [25, 4]]
    assert [tuple(colour[:3]) for colour in numbers.get_facecolors()] == [(1, 1, 1), (0, 0, 0), (0, 0, 0)]
    zero, ten, five = (path.get_extents() for path in numbers.get_paths())
    for box in (zero, ten, five):  # outlines of a word span its width, and the height of digits, about the origin
        assert abs(box.x0 + box.x1) < 0.03 * box.width
        assert abs(box.y0 + box.y1) < 0.1 * box.height
    assert ten.width > 1.2 * five.width  # "10.00" and "5.00"
    assert figure.get_size_inches().tolist() == [2, 1]


def test_responses_share_a_scale_and_reach_half_a_cycle() -> None:
    stage = kernels.stages_of(traced("kav11"), L)[-1]
    figure = kernel_figures.frequency_responses(stage, n=9)
    images = [axis.images[0] for axis in figure.axes if axis.images]
    responses = [kernels.bank_response(bank, 9) for bank in stage.kernels]
    assert all(np.array_equal(image.get_array(), values) for image, values in zip(images, responses, strict=True))
    assert all(image.get_clim() == (0, np.max(responses)) for image in images)
    left, right, _, _ = images[0].get_extent()
    pixel = (right - left) / 9
    np.testing.assert_allclose([left + pixel / 2, right - pixel / 2], [-0.5, 0.5])


def test_small_numbers_get_a_power_of_ten() -> None:
    figure = kernel_figures.layer_heatmap(np.full((18, 4), 0.0012), kernels.WINDOW_LABELS, "movement")
    assert figure.axes[0].images[0].get_clim() == pytest.approx((0, 1.2))
    labels = [child.get_ylabel() for child in figure.axes[0].child_axes]
    assert labels == ["movement (× 10$^{-3}$)"]


def test_contributions_are_drawn_as_bars() -> None:
    shares = kernels.contributions(traced("kav4"), L)
    bars, table, *_ = kernel_figures.contribution_panel(shares).axes
    widths = [patch.get_width() for patch in bars.patches]
    np.testing.assert_allclose(widths, [*shares.shares, *shares.norms])
    assert np.array_equal(table.images[0].get_array(), shares.window_shares)
    above, below = kernel_figures.contribution_layers([shares] * 18).axes
    assert above.get_legend_handles_labels()[1] == list(shares.labels)
    assert [line.get_ydata()[0] for line in below.lines] == shares.norms.tolist()


def test_fixed_kernels_are_said_to_be() -> None:
    pictures = {which: np.zeros((16, 24, 3)) for which in "ab"}
    last = kernels.stages_of(traced("kav11"), L)[-1]
    axes = kernel_figures.movement_panel(pictures, (last, last), np.zeros(5)).axes
    assert [axis.get_title() for axis in axes[:2]] == ["a", "b"]
    assert any("fixed" in text.get_text() for axis in axes for text in axis.texts)


@pytest.mark.parametrize("channels", [[], [8], [-1]])
def test_no_such_channel(channels: list[int]) -> None:
    stages = kernels.stages_of(traced("kav11"), L)
    for chosen in ((channels, None), (None, channels)):
        with pytest.raises(KAError, match="0 … 7"):
            kernel_figures.filter_grid(stages, *chosen)
