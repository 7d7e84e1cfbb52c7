"""Looking at kernels: numbers against plain loops and algebra; figures show what they were given."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.collections import LineCollection
from plain import cut, paste, plain_layer
from torch import Tensor

import ka
from ka.errors import KAError
from ka.models.kernel_attention import KernelAttention
from ka.models.psrt import LAYERS
from ka.models.variants import VARIANTS
from workbook.style import png
from workbook.views import kernel_views as views
from workbook.views.trace import Trace, trace

KA = [name for name, row in VARIANTS.items() if row.has_ka and row.kernels != "identity"]
WITHOUT = [name for name, row in VARIANTS.items() if not row.has_ka]
STATIC = [name for name in KA if not VARIANTS[name].adaptive]
ADAPTIVE = [name for name in KA if VARIANTS[name].adaptive]
FUSED = [name for name in KA if VARIANTS[name].second == "image" and VARIANTS[name].has_fusion]
ON_WINDOWS = ["kav2", "kav3", "kav4"]
C = 8  # channels of a branch
L = 4  # a layer to look at


@functools.cache
def model_of(name: str) -> ka.PSRT:
    """A float64 model whose KA parameters are all far from zero."""
    torch.manual_seed(1)
    model = ka.build(name, n_bands=5, n_msi=2, dim=2 * C).double().eval()
    for layer in model.layers():
        if layer.ka is not None:
            for parameter in layer.ka.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    return model


@functools.cache
def traced(name: str, seed: int = 0) -> Trace:
    generator = torch.Generator().manual_seed(seed)
    up, msi = (torch.rand(1, n, 16, 24, dtype=torch.float64, generator=generator) for n in (5, 2))
    return trace(model_of(name), up, msi)


def branch(name: str, layer: int = L) -> tuple[KernelAttention, Tensor]:
    seen = traced(name).seen[layer]
    assert isinstance(seen.layer.ka, KernelAttention)
    assert seen.ka is not None
    return seen.layer.ka, seen.ka


# Stages


@pytest.mark.parametrize(
    ("name", "parts", "counts"),
    [
        ("kav1", ["window kernels", "SA", "SE", "widening"], [4, 4, 4, 4]),
        ("kav3", ["window kernels", "SA", "SE"], [4, 4, 4]),
        ("kav4", ["window kernels", "SA", "global kernel", "SE"], [4, 4, 5, 5]),
        ("kav5", ["window kernels", "global kernel", "SE"], [4, 5, 5]),
        ("kav8", ["window kernels", "global kernel", "SA", "SE"], [4, 5, 5, 5]),
        ("kav10", ["window kernels", "SA"], [4, 4]),
        ("kav17", ["window kernels", "reweighting", "global kernel"], [4, 4, 5]),
        ("kav19", ["window kernels"], [4]),
        ("conv5x5", ["window kernels"], [1]),
        ("kav1_outer", ["window kernels", "SA", "SE", "widening"], [4, 4, 4, 4]),
        ("kav6_global_after", ["window kernels", "SA", "global kernel", "SE"], [4, 4, 5, 5]),
        ("kav10_5x5", ["window kernels", "SA"], [4, 4]),
    ],
)
def test_stages(name: str, parts: list[str], counts: list[int]) -> None:
    stages = views.stages_of(traced(name), L)
    assert [stage.name for stage in stages] == parts
    assert [len(stage.kernels) for stage in stages] == counts
    for stage in stages:
        names = ("kernel",) if name == "conv5x5" else (*views.WINDOWS, "global")
        assert stage.labels == names[: len(stage.kernels)]
        outputs = 1 if name in ("kav1", "kav1_outer") and stage.name != "widening" else C
        size = 5 if "5x5" in name else 3
        assert stage.kernels.shape[1:] == (outputs, C, size, size)


@pytest.mark.parametrize("name", KA)
def test_the_last_stage_is_what_is_convolved(name: str) -> None:
    layer, x = branch(name)
    windows, glob = layer.kernels(x)
    last = views.stages_of(traced(name), L)[-1]
    np.testing.assert_array_equal(last.kernels[:4], windows[0].detach().numpy())
    assert ("global" in last.labels) == (glob is not None)
    if glob is not None:
        np.testing.assert_array_equal(last.kernels[4], glob[0, 0].detach().numpy())


@pytest.mark.parametrize("name", [*WITHOUT, "kav5_as_run"])
def test_models_without_kernels(name: str) -> None:
    advice = "kav5, as described" if name == "kav5_as_run" else "such as kav11"
    for look in (views.stages_of, views.contributions, views.folding):
        with pytest.raises(KAError, match=f"{name}.*{advice}"):
            look(traced(name), 0)
    with pytest.raises(KAError, match=name):
        views.movement(traced(name), traced(name, 1), 0)


@pytest.mark.parametrize("layer", [-1, 18, 0.5, True])
def test_no_such_layer(layer: int) -> None:
    with pytest.raises(KAError, match="0 … 17"):
        views.stages_of(traced("kav11"), layer)


def test_a_folded_model_has_no_kernels_left() -> None:
    seen = traced("kav11")
    with pytest.raises(KAError, match="before `fold"):
        views.stages_of(trace(model_of("kav11").fold(), seen.up, seen.msi), 0)


# Size and likeness


def test_norms() -> None:
    stages = views.stages_of(traced("kav11"), L)
    found = views.norms(stages)
    assert found.shape == (2, 5)
    assert np.isnan(found[0, 4])
    assert np.isfinite(found).sum() == 9
    np.testing.assert_allclose(found[1, 2], sum(w * w for w in stages[1].kernels[2].ravel()) ** 0.5)
    layers = views.norms(views.final_stages(traced("kav11")))
    assert layers.shape == (18, 5)
    np.testing.assert_array_equal(layers[L], found[1])


def test_cosine() -> None:
    a = np.zeros((1, 2, 3, 3))
    a[0, 0, 0, 0] = 3
    b = np.zeros_like(a)
    b[0, 0, 0, 0] = b[0, 1, 2, 2] = 1
    found = views.cosine(np.stack([a, b, -2 * a, 0 * a]))
    half = 2**-0.5
    expected = [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize("name", KA)
def test_cosines_inside_a_layer(name: str) -> None:
    for stage in views.stages_of(traced(name), L):
        found = views.cosine(stage.kernels)
        np.testing.assert_allclose(np.diag(found), 1)
        np.testing.assert_array_equal(found, found.T)
        assert np.abs(found).max() <= 1


@pytest.mark.parametrize("fused", [False, True])
def test_cosines_between_layers(fused: bool) -> None:
    stages = views.final_stages(traced("kav6"), fused=fused)
    found = views.layer_cosine(stages, "window 3 (bottom left)")
    assert found.shape == (18, 18)
    a, b = stages[2].kernels[2].ravel(), stages[9].kernels[2].ravel()
    np.testing.assert_allclose(found[2, 9], a @ b / np.sqrt((a @ a) * (b @ b)))
    np.testing.assert_allclose(np.diag(found), 1)
    with pytest.raises(KAError, match=r"'window 9'.*global"):
        views.layer_cosine(stages, "window 9")


# Frequency response


def test_response_of_a_delta_is_flat() -> None:
    for at in ((1, 1), (0, 2)):
        kernel = np.zeros((3, 3))
        kernel[at] = -1
        np.testing.assert_allclose(views.response(kernel), 1)


def test_response_of_a_box_is_dirichlets_kernel() -> None:
    f = np.linspace(-0.5, 0.5, 33)
    f[16] = 1e-9  # its limit at 0 is 1
    dirichlet = np.abs(np.sin(3 * np.pi * f) / (3 * np.sin(np.pi * f)))
    np.testing.assert_allclose(views.response(np.full((3, 3), 1 / 9)), np.outer(dirichlet, dirichlet), atol=1e-12)


def test_response_tells_down_from_across() -> None:
    difference = np.array([[0, 0, 0], [-0.5, 0, 0.5], [0, 0, 0]])  # across: |sin(2πf)|
    f = views.frequencies()
    np.testing.assert_allclose(
        views.response(difference), np.abs(np.sin(2 * np.pi * f))[None].repeat(33, 0), atol=1e-12
    )


def test_response_equals_the_fft() -> None:
    kernels = np.random.default_rng(0).normal(size=(2, 5, 3, 3))
    found = views.response(kernels, n=33)  # steps of 1/32 cycles a pixel: an FFT of 32 points, and 0.5 again
    fft = np.abs(np.fft.fftshift(np.fft.fft2(kernels, s=(32, 32)), axes=(-2, -1)))
    np.testing.assert_allclose(found[..., :32, :32], fft)
    np.testing.assert_allclose(found[..., 32], found[..., 0])
    rms = np.sqrt(sum(fft[o, i] ** 2 for o in range(2) for i in range(5)) / 10)
    np.testing.assert_allclose(views.bank_response(kernels)[:32, :32], rms)


# Contributions


@pytest.mark.parametrize("name", KA)
def test_terms_sum_to_the_output(name: str) -> None:
    layer, x = branch(name)
    total = sum(term for _, term in views.terms(traced(name), L))
    assert isinstance(total, Tensor)
    y = F.gelu(total) if layer.row.activation else total
    torch.testing.assert_close(y, plain_layer(layer, x), rtol=1e-10, atol=1e-10)


def test_terms_leave_gradients_as_they_were() -> None:
    for _, term in views.terms(traced("kav11"), L):
        assert torch.is_grad_enabled()
        assert not term.requires_grad


@pytest.mark.parametrize("name", FUSED)
def test_each_term_is_its_own(name: str) -> None:
    """The term of a kernel is F_m·(K_m ∗ x), with the columns that the kernel's place in the set gives it."""
    layer, x = branch(name)
    stage, found = views.stages_of(traced(name), L)[-1], dict(views.terms(traced(name), L))
    order = ["global", *views.WINDOWS] if name.startswith("kav8") else list(stage.labels)
    assert list(found) == [*stage.labels, "bias"]
    for label, kernel in zip(stage.labels, stage.kernels, strict=True):
        place = order.index(label)
        columns = layer.fusion.weight[:, place * C : (place + 1) * C]
        term = F.conv2d(F.conv2d(x, torch.from_numpy(kernel), padding="same"), columns[:, :, None, None])
        torch.testing.assert_close(found[label], term.detach())
    torch.testing.assert_close(found["bias"][0, :, 3, 5], layer.fusion.bias.detach())


@pytest.mark.parametrize("name", ["conv3x3", "conv5x5"])
def test_an_ordinary_convolution_is_its_kernel_and_its_bias(name: str) -> None:
    layer, x = branch(name)
    found = dict(views.terms(traced(name), L))
    assert list(found) == ["kernel", "bias"]
    torch.testing.assert_close(found["kernel"], F.conv2d(x, layer.window_kernels.weight[0], padding="same").detach())
    torch.testing.assert_close(found["bias"][0, :, 3, 5], layer.bias.detach())


@pytest.mark.parametrize("name", ON_WINDOWS)
def test_terms_of_windows_stay_in_them(name: str) -> None:
    found = dict(views.terms(traced(name), L))
    assert list(found)[:4] == list(views.WINDOWS)
    for m, label in enumerate(views.WINDOWS):
        size = [float(piece.abs().max()) for piece in cut(found[label])]
        assert [value > 0 for value in size] == [m == k for k in range(4)]
    if name == "kav4":
        assert all(float(piece.abs().max()) > 0 for piece in cut(found["global"]))


def test_kav5_is_one_term() -> None:
    found = views.contributions(traced("kav5"), L)
    assert found.labels == ("global",)
    np.testing.assert_allclose([found.norms, found.shares], 1)


@pytest.mark.parametrize("name", KA)
def test_shares_sum_to_one(name: str) -> None:
    found = views.contributions(traced(name), L)
    assert found.window_shares.shape == (len(found.labels), 4)
    np.testing.assert_allclose(found.shares.sum(), 1)
    np.testing.assert_allclose(found.window_shares.sum(0), 1)


@pytest.mark.parametrize("name", ["kav1", "kav4", "kav8", "kav13"])
def test_contributions_by_hand(name: str) -> None:
    found, parts = views.contributions(traced(name), L), [term for _, term in views.terms(traced(name), L)]
    y = sum(parts)
    norms = [(t.square().sum() / y.square().sum()).sqrt().item() for t in parts]
    shares = [(t * y).sum().item() / y.square().sum().item() for t in parts]
    bottom_left = [(t * y)[..., 8:, :12].sum().item() / y[..., 8:, :12].square().sum().item() for t in parts]
    np.testing.assert_allclose(found.norms, norms)
    np.testing.assert_allclose(found.shares, shares)
    np.testing.assert_allclose(found.window_shares[:, 2], bottom_left)


@pytest.mark.parametrize("name", ["kav2", "kav3"])
def test_each_window_is_its_own_kernels(name: str) -> None:
    found = views.contributions(traced(name), L)
    np.testing.assert_allclose(found.window_shares, np.eye(4), atol=1e-12)
    assert found.labels == views.WINDOWS


# Folding


@pytest.mark.parametrize("name", KA)
def test_the_folded_kernel_is_the_layers(name: str) -> None:
    """One convolution of the whole image (or of each window, inside it) by the folded kernel, and the bias."""
    layer, x = branch(name)
    *_, folded = views.folding(traced(name), L)
    kernels = torch.from_numpy(folded.kernels)
    assert len(kernels) == (4 if name in ON_WINDOWS else 1)
    if name in ON_WINDOWS:
        y = paste([F.conv2d(window, kernel, padding=1) for window, kernel in zip(cut(x), kernels, strict=True)])
    else:
        y = F.conv2d(x, kernels[0], padding="same")
    bias = layer.bias if layer.fusion is None else layer.fusion.bias
    if bias is not None:
        y = y + bias[:, None, None]
    y = F.gelu(y) if layer.row.activation else y
    inside = [
        torch.isclose(*both, rtol=1e-8, atol=1e-8) for both in zip(cut(y), cut(plain_layer(layer, x)), strict=True)
    ]
    assert all(piece[..., 1:-1, 1:-1].all() for piece in inside)
    if name != "kav4":  # its global kernel sees across the windows' borders
        assert all(piece.all() for piece in inside)


@pytest.mark.parametrize("name", KA)
def test_parts_before_the_folded_kernel(name: str) -> None:
    steps = views.folding(traced(name), L)
    if VARIANTS[name].has_fusion:
        first, parts, folded = steps
        np.testing.assert_array_equal(first.kernels, views.stages_of(traced(name), L)[-1].kernels)
        assert parts.labels == first.labels
        if name == "kav4":
            np.testing.assert_allclose(folded.kernels[1], parts.kernels[1] + parts.kernels[4])
    else:
        assert [step.name for step in steps] == ["folded"]


# Movement


@pytest.mark.parametrize("name", STATIC)
def test_static_kernels_do_not_move(name: str) -> None:
    assert (views.layer_movement(traced(name), traced(name, 1)) == 0).all()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_kernels_move(name: str) -> None:
    a, b = traced(name), traced(name, 1)
    found = views.layer_movement(a, b)
    assert found.shape == (18, 5 if name == "kav17" else 4)
    assert (found > 0).all()
    assert (found <= 2).all()
    assert (views.movement(a, a, L) == 0).all()
    np.testing.assert_array_equal(views.movement(b, a, L), found[L])


def test_gated_kernels_move_as_their_gates() -> None:
    """kav18: K(a) = g(a)·K, so that the movement is |g(a) - g(b)| over the mean gate."""
    a, b = traced("kav18"), traced("kav18", 1)
    gates = []
    for seen in (a.seen[L], b.seen[L]):
        gate, kernels = seen.layer.ka.reweight, seen.layer.ka.window_kernels.weight
        means = [F.conv2d(window, k, padding=1).mean((2, 3)) for window, k in zip(cut(seen.ka), kernels, strict=True)]
        numbers = torch.cat([squeeze(mean) for squeeze, mean in zip(gate.squeeze, means, strict=True)], dim=1)
        gates.append(torch.sigmoid(gate.contract(F.gelu(gate.expand(numbers))))[0].detach().numpy())
    expected = np.abs(gates[0] - gates[1]) / ((gates[0] + gates[1]) / 2)
    np.testing.assert_allclose(views.movement(a, b, L), expected, rtol=1e-8)


def test_movement_is_of_one_model() -> None:
    with pytest.raises(KAError, match="two models"):
        views.movement(traced("kav1"), traced("kav9"), L)


# Figures


@pytest.mark.parametrize("name", ["kav1", "kav4", "kav5", "conv5x5"])
def test_figures_draw(name: str) -> None:
    a, b = traced(name), traced(name, 1)
    stages, found = views.stages_of(a, L), views.contributions(a, L)
    finals, moved = views.final_stages(a), views.layer_movement(a, b)
    pictures = {which: np.zeros((16, 24, 3)) for which in "ab"}
    figures = [
        views.filter_grid(stages, title=name),
        views.filter_grid(views.folding(a, L), range(4), [1, 5], shared=False),
        views.single(stages, 0, C - 1, title=name),
        views.norm_steps(stages),
        views.layer_heatmap(views.norms(finals), finals[0].labels, "Frobenius norm"),
        views.layer_heatmap(moved, finals[0].labels, "movement"),
        views.cosine_heatmaps(stages, title=name),
        views.layer_cosine_heatmap(views.layer_cosine(finals, finals[0].labels[0])),
        views.frequency_responses(stages[0], title=name),
        views.frequency_responses(stages[-1], pair=(2, 3)),
        views.contribution_panel(found, title=name),
        views.contribution_layers([found] * len(LAYERS)),
        views.movement_panel(pictures, (finals[L], views.stages_of(b, L)[-1]), moved[L], title=name),
    ]
    for figure in figures:
        assert png(figure).startswith(b"\x89PNG")


def test_the_grid_shows_the_filters() -> None:
    stages = views.stages_of(traced("kav11"), L)
    outs, ins = [7, 0, 3], [2, 5]
    figure = views.filter_grid(stages, outs, ins)
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


def test_lines_part_filters_of_any_size() -> None:
    for name, size, n in (("kav10", 3, 4), ("kav10_5x5", 5, 4), ("conv5x5", 5, 1)):
        axis = views.filter_grid(views.stages_of(traced(name), L)[:1], [0, 1], [2, 5]).axes[0]
        (lines,) = [one for one in axis.collections if isinstance(one, LineCollection)]
        upright = [line for line in lines.get_segments() if line[0, 0] == line[1, 0]]
        places = sorted({float(line[0, 0]) for line in upright})
        assert len(places) == 3 * n  # before, between and after two filters
        assert np.diff(places[:3]).tolist() == [size, size]


def test_the_grid_scales_rows_apart() -> None:
    stages = views.stages_of(traced("kav1"), L)
    tops = [np.abs(stage.kernels).max() for stage in stages]
    images = views.filter_grid(stages, shared=False).axes[0].images
    assert [image.get_clim()[1] for image in images] == tops
    assert [len(np.asarray(image.get_array())) for image in images] == [3, 3, 3, 3 * C]


def test_single_writes_every_tap() -> None:
    stages = views.stages_of(traced("kav11"), L)
    written = views.single(stages, 1, 2).axes[0].collections
    assert [len(numbers.get_paths()) for numbers in written] == [4 * 9, 5 * 9]
    dark = np.asarray([tuple(colour[:3]) == (1, 1, 1) for colour in written[0].get_facecolors()])
    taps = np.abs(stages[0].kernels[:, 1, 2])
    assert dark.sum() == (taps > 0.65 * taps.max()).sum()


def test_numbers_are_written_centred_on_their_cells() -> None:
    """Outlines of a word span its width symmetrically, and the height of digits, about the origin."""
    box = views._outline("808", 0.1).get_extents()
    assert abs(box.x0 + box.x1) < 0.002
    assert abs(box.y0 + box.y1) < 0.002
    assert 0.17 < box.width < 0.2  # three digits of 0.64


def test_responses_share_a_scale_and_reach_half_a_cycle() -> None:
    stage = views.stages_of(traced("kav11"), L)[-1]
    figure = views.frequency_responses(stage, n=9)
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 5
    top = max(views.bank_response(bank, 9).max() for bank in stage.kernels)
    assert all(image.get_clim() == (0, top) for image in images)
    left, right, _, _ = images[0].get_extent()
    pixel = (right - left) / 9
    np.testing.assert_allclose([left + pixel / 2, right - pixel / 2], [-0.5, 0.5])


def test_small_numbers_get_a_power_of_ten() -> None:
    figure = views.layer_heatmap(np.full((18, 4), 0.0012), views.WINDOWS, "movement")
    assert figure.axes[0].images[0].get_clim() == pytest.approx((0, 1.2))
    labels = [child.get_ylabel() for child in figure.axes[0].child_axes]
    assert labels == ["movement (× 10$^{-3}$)"]


def test_fixed_kernels_are_said_to_be() -> None:
    a, pictures = traced("kav11"), {which: np.zeros((16, 24, 3)) for which in "ab"}
    last = views.stages_of(a, L)[-1]
    texts = [
        text.get_text()
        for axis in views.movement_panel(pictures, (last, last), np.zeros(5)).axes
        for text in axis.texts
    ]
    assert any("fixed" in text for text in texts)


@pytest.mark.parametrize("channels", [[], [8], [-1]])
def test_no_such_channel(channels: list[int]) -> None:
    stages = views.stages_of(traced("kav11"), L)
    with pytest.raises(KAError, match="0 … 7"):
        views.filter_grid(stages, channels)
    with pytest.raises(KAError, match="0 … 7"):
        views.filter_grid(stages, None, channels)


def test_same_figure_same_bytes() -> None:
    stages = views.stages_of(traced("kav6"), L)
    assert png(views.single(stages, 0, 0)) == png(views.single(stages, 0, 0))
