"""Kernels as numbers, against plain loops and algebra."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from traced import model_of, traced

from benchmarks.reference import cut, paste, plain_layer
from ka.errors import KAError
from ka.models.kernel_attention import KernelAttention
from ka.models.variants import PSRT_ROWS
from workbook.views import kernels
from workbook.views.trace import trace

KA = [name for name, row in PSRT_ROWS.items() if row.has_ka and row.kernels != "identity"]
FUSED = [name for name in KA if PSRT_ROWS[name].second == "image" and PSRT_ROWS[name].has_fusion]
ON_WINDOWS = ["kav2", "kav3", "kav4", "kav24"]
C = 8  # channels of a branch
L = 4  # a layer to look at


def branch(name: str, layer: int = L) -> tuple[KernelAttention, Tensor]:
    seen = traced(name).layers[layer]
    assert isinstance(seen.layer.ka, KernelAttention)
    assert seen.ka is not None
    return seen.layer.ka, seen.ka


@pytest.mark.parametrize("name", KA)
def test_kernels_of_every_row(name: str) -> None:
    """The last stage is what is convolved with; terms sum to the layer's output; so does the folded kernel."""
    layer, x = branch(name)
    y = plain_layer(layer, x)
    windows, glob = layer.kernels(x)
    stages = kernels.stages_of(traced(name), L)
    np.testing.assert_array_equal(stages[-1].kernels[:4], windows[0].detach().numpy())
    assert ("global" in stages[-1].labels) == (glob is not None)
    if glob is not None:
        np.testing.assert_array_equal(stages[-1].kernels[4], glob[0, 0].detach().numpy())

    for stage in stages:
        cosine = kernels.cosine(stage.kernels)
        np.testing.assert_allclose(np.diag(cosine), 1, err_msg=stage.name)
        np.testing.assert_array_equal(cosine, cosine.T, err_msg=stage.name)
        assert np.abs(cosine).max() <= 1, stage.name

    total = sum(term for _, term in kernels.terms(traced(name), L))
    assert isinstance(total, Tensor)
    torch.testing.assert_close(F.gelu(total) if layer.row.activation else total, y, rtol=1e-10, atol=1e-10)

    shares = kernels.contributions(traced(name), L)
    assert shares.window_shares.shape == (len(shares.labels), 4)
    np.testing.assert_allclose(shares.shares.sum(), 1)
    np.testing.assert_allclose(shares.window_shares.sum(0), 1)

    check_folding(name, layer, x, y)
    check_movement(name)


def check_folding(name: str, layer: KernelAttention, x: Tensor, y: Tensor) -> None:
    """One convolution of the whole image (or of each window, inside it) by the folded kernel, and the bias."""
    steps = kernels.folding(traced(name), L)
    folded = torch.from_numpy(steps[-1].kernels)
    assert len(folded) == (4 if name in ON_WINDOWS else 1)
    if name in ON_WINDOWS:
        result = paste([F.conv2d(window, kernel, padding=1) for window, kernel in zip(cut(x), folded, strict=True)])
    else:
        result = F.conv2d(x, folded[0], padding="same")
    bias = layer.bias if layer.fusion is None else layer.fusion.bias
    result = result if bias is None else result + bias[:, None, None]
    result = F.gelu(result) if layer.row.activation else result
    close = [torch.isclose(*both, rtol=1e-8, atol=1e-8) for both in zip(cut(result), cut(y), strict=True)]
    assert all(piece[..., 1:-1, 1:-1].all() for piece in close)
    if name != "kav4":  # its global kernel sees across the windows' borders
        assert all(piece.all() for piece in close)
    if PSRT_ROWS[name].has_fusion:
        first, parts, _ = steps
        np.testing.assert_array_equal(first.kernels, kernels.stages_of(traced(name), L)[-1].kernels)
        assert parts.labels == first.labels
        if name == "kav4":
            np.testing.assert_allclose(folded[1], parts.kernels[1] + parts.kernels[4])
    else:
        assert [step.name for step in steps] == ["folded"]


def check_movement(name: str) -> None:
    """Kernels move with the image where the row is adaptive, and only there."""
    a, b = traced(name), traced(name, seed=1)
    moved = kernels.layer_movement(a, b) if PSRT_ROWS[name].adaptive else kernels.movement(a, b, L)
    if PSRT_ROWS[name].adaptive:
        assert moved.shape == (18, 5 if name == "kav17" else 4)
        assert (moved > 0).all()
        assert (moved <= 2).all()
        assert moved[kernels.moves_most(a, b)].max() == moved.max()
        assert (kernels.movement(a, a, L) == 0).all()
        np.testing.assert_array_equal(kernels.movement(b, a, L), moved[L])
    else:
        assert (moved == 0).all()


def test_stages() -> None:
    expected = {
        "kav1": [("window kernels", 4), ("SA", 4), ("SE", 4), ("widening", 4)],
        "kav3": [("window kernels", 4), ("SA", 4), ("SE", 4)],
        "kav4": [("window kernels", 4), ("SA", 4), ("global kernel", 5), ("SE", 5)],
        "kav5": [("window kernels", 4), ("global kernel", 5), ("SE", 5)],
        "kav8": [("window kernels", 4), ("global kernel", 5), ("SA", 5), ("SE", 5)],
        "kav17": [("window kernels", 4), ("reweighting", 4), ("global kernel", 5)],
        "kav19": [("window kernels", 4)],
        "conv5x5": [("window kernels", 1)],
        "kav1_outer": [("window kernels", 4), ("SA", 4), ("SE", 4), ("widening", 4)],
        "kav6_global_after": [("window kernels", 4), ("SA", 4), ("global kernel", 5), ("SE", 5)],
        "kav10_5x5": [("window kernels", 4), ("SA", 4)],
    }
    for name, parts in expected.items():
        stages = kernels.stages_of(traced(name), L)
        assert [(stage.name, len(stage.kernels)) for stage in stages] == parts, name
        for stage in stages:
            labels = ("kernel",) if name == "conv5x5" else (*kernels.WINDOW_LABELS, "global")
            assert stage.labels == labels[: len(stage.kernels)], name
            outputs = 1 if name in ("kav1", "kav1_outer") and stage.name != "widening" else C
            size = 5 if "5x5" in name else 3
            assert stage.kernels.shape[1:] == (outputs, C, size, size), name


@pytest.mark.parametrize("name", ["psrt_noshuffle", "kav5_as_run"])
def test_models_without_kernels(name: str) -> None:
    advice = "kav5, as described" if name == "kav5_as_run" else "such as kav11"
    for look in (kernels.stages_of, kernels.contributions, kernels.folding):
        with pytest.raises(KAError, match=f"{name}.*{advice}"):
            look(traced(name), 0)
    with pytest.raises(KAError, match=name):
        kernels.movement(traced(name), traced(name, seed=1), 0)


def test_what_is_not_there() -> None:
    seen = traced("kav11")
    for layer in (-1, 18, 0.5, True):
        with pytest.raises(KAError, match="0 … 17"):
            kernels.stages_of(seen, layer)  # type: ignore[arg-type]
    with pytest.raises(KAError, match="before `fold"):
        kernels.stages_of(trace(model_of("kav11").fold(), seen.up, seen.msi), 0)
    with pytest.raises(KAError, match="two models"):
        kernels.movement(traced("kav1"), traced("kav9"), L)


# Size, likeness, frequency response


def test_norms() -> None:
    stages = kernels.stages_of(traced("kav11"), L)
    values = kernels.norms(stages)
    assert values.shape == (2, 5)
    assert np.isnan(values[0, 4])
    assert np.isfinite(values).sum() == 9
    np.testing.assert_allclose(values[1, 2], sum(w * w for w in stages[1].kernels[2].ravel()) ** 0.5)
    layers = kernels.norms(kernels.final_stages(traced("kav11")))
    assert layers.shape == (18, 5)
    np.testing.assert_array_equal(layers[L], values[1])


def test_cosine() -> None:
    a = np.zeros((1, 2, 3, 3))
    a[0, 0, 0, 0] = 3
    b = np.zeros_like(a)
    b[0, 0, 0, 0] = b[0, 1, 2, 2] = 1
    half = 2**-0.5
    expected = [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(kernels.cosine(np.stack([a, b, -2 * a, 0 * a])), expected, atol=1e-15)


@pytest.mark.parametrize("fused", [False, True])
def test_cosines_between_layers(fused: bool) -> None:
    stages = kernels.final_stages(traced("kav6"), fused=fused)
    values = kernels.layer_cosine(stages, "window 3 (bottom left)")
    assert values.shape == (18, 18)
    a, b = stages[2].kernels[2].ravel(), stages[9].kernels[2].ravel()
    np.testing.assert_allclose(values[2, 9], a @ b / np.sqrt((a @ a) * (b @ b)))
    np.testing.assert_allclose(np.diag(values), 1)
    with pytest.raises(KAError, match=r"'window 9'.*global"):
        kernels.layer_cosine(stages, "window 9")


def test_response_of_known_kernels() -> None:
    for at in ((1, 1), (0, 2)):  # a delta: flat
        kernel = np.zeros((3, 3))
        kernel[at] = -1
        np.testing.assert_allclose(kernels.response(kernel), 1)
    f = kernels.frequencies()
    difference = np.array([[0, 0, 0], [-0.5, 0, 0.5], [0, 0, 0]])  # across: |sin(2πf)|
    across = np.abs(np.sin(2 * np.pi * f))[None].repeat(33, 0)
    np.testing.assert_allclose(kernels.response(difference), across, atol=1e-12)
    f[16] = 1e-9  # a box: Dirichlet's kernel, whose limit at 0 is 1
    dirichlet = np.abs(np.sin(3 * np.pi * f) / (3 * np.sin(np.pi * f)))
    box = np.full((3, 3), 1 / 9)
    np.testing.assert_allclose(kernels.response(box), np.outer(dirichlet, dirichlet), atol=1e-12)


def test_response_equals_the_fft() -> None:
    bank = np.random.default_rng(0).normal(size=(2, 5, 3, 3))
    values = kernels.response(bank, n=33)  # steps of 1/32 cycles a pixel: an FFT of 32 points, and 0.5 again
    fft = np.abs(np.fft.fftshift(np.fft.fft2(bank, s=(32, 32)), axes=(-2, -1)))
    np.testing.assert_allclose(values[..., :32, :32], fft)
    np.testing.assert_allclose(values[..., 32], values[..., 0])
    rms = np.sqrt(sum(fft[o, i] ** 2 for o in range(2) for i in range(5)) / 10)
    np.testing.assert_allclose(kernels.bank_response(bank)[:32, :32], rms)


# Terms and contributions


def test_each_term_is_its_own() -> None:
    """The term of a kernel is F_m·(K_m ∗ x), with the columns that the kernel's place in the set gives it."""
    for name in FUSED:
        layer, x = branch(name)
        stage, terms = kernels.stages_of(traced(name), L)[-1], dict(kernels.terms(traced(name), L))
        order = ["global", *kernels.WINDOW_LABELS] if name.startswith("kav8") else list(stage.labels)
        assert list(terms) == [*stage.labels, "bias"], name
        for label, kernel in zip(stage.labels, stage.kernels, strict=True):
            place = order.index(label)
            columns = layer.fusion.weight[:, place * C : (place + 1) * C]
            term = F.conv2d(F.conv2d(x, torch.from_numpy(kernel), padding="same"), columns[:, :, None, None])
            torch.testing.assert_close(
                terms[label], term.detach(), msg=lambda text, case=(name, label): f"{case} {text}"
            )
            assert not terms[label].requires_grad
        torch.testing.assert_close(terms["bias"][0, :, 3, 5], layer.fusion.bias.detach())


@pytest.mark.parametrize("name", ["conv3x3", "conv5x5"])
def test_an_ordinary_convolution_is_its_kernel_and_its_bias(name: str) -> None:
    layer, x = branch(name)
    terms = dict(kernels.terms(traced(name), L))
    assert list(terms) == ["kernel", "bias"]
    torch.testing.assert_close(terms["kernel"], F.conv2d(x, layer.window_kernels.weight[0], padding="same").detach())
    torch.testing.assert_close(terms["bias"][0, :, 3, 5], layer.bias.detach())


@pytest.mark.parametrize("name", ON_WINDOWS)
def test_terms_of_windows_stay_in_them(name: str) -> None:
    terms = dict(kernels.terms(traced(name), L))
    assert list(terms)[:4] == list(kernels.WINDOW_LABELS)
    for m, label in enumerate(kernels.WINDOW_LABELS):
        size = [float(piece.abs().max()) for piece in cut(terms[label])]
        assert [value > 0 for value in size] == [m == k for k in range(4)]
    if name == "kav4":
        assert all(float(piece.abs().max()) > 0 for piece in cut(terms["global"]))
    else:
        np.testing.assert_allclose(kernels.contributions(traced(name), L).window_shares, np.eye(4), atol=1e-12)


@pytest.mark.parametrize("name", ["kav1", "kav4", "kav5", "kav8", "kav13"])
def test_contributions_by_hand(name: str) -> None:
    values, terms = kernels.contributions(traced(name), L), dict(kernels.terms(traced(name), L))
    assert values.labels == tuple(terms)
    y = sum(terms.values())
    norms = [(t.square().sum() / y.square().sum()).sqrt().item() for t in terms.values()]
    shares = [(t * y).sum().item() / y.square().sum().item() for t in terms.values()]
    bottom_left = [(t * y)[..., 8:, :12].sum() / y[..., 8:, :12].square().sum() for t in terms.values()]
    np.testing.assert_allclose(values.norms, norms)
    np.testing.assert_allclose(values.shares, shares)
    np.testing.assert_allclose(values.window_shares[:, 2], bottom_left)


def test_gated_kernels_move_as_their_gates() -> None:
    """kav18: K(a) = g(a)·K, so that the movement is |g(a) - g(b)| over the mean gate."""
    a, b = traced("kav18"), traced("kav18", seed=1)
    gates = []
    for seen in (a.layers[L], b.layers[L]):
        gate, weights = seen.layer.ka.reweight, seen.layer.ka.window_kernels.weight
        means = [F.conv2d(window, k, padding=1).mean((2, 3)) for window, k in zip(cut(seen.ka), weights, strict=True)]
        numbers = torch.cat([squeeze(mean) for squeeze, mean in zip(gate.squeeze, means, strict=True)], dim=1)
        gates.append(torch.sigmoid(gate.contract(F.gelu(gate.expand(numbers))))[0].detach().numpy())
    expected = np.abs(gates[0] - gates[1]) / ((gates[0] + gates[1]) / 2)
    np.testing.assert_allclose(kernels.movement(a, b, L), expected, rtol=1e-8)
