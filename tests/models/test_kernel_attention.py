"""The KA layer: what the algebra says of it, and its parts one by one."""

import pytest
import torch
from torch import Tensor

from ka.errors import KAError
from ka.models.kernel_attention import KernelAttention, convolve, convolve_windows
from ka.models.kernel_parts import SE, mean_response, quadrants, unquadrants
from ka.models.variants import VARIANTS, variant

KA = [name for name, row in VARIANTS.items() if row.has_ka]
STATIC = [name for name in KA if not VARIANTS[name].adaptive]
LINEAR = [name for name in STATIC if not VARIANTS[name].activation]


def layer_of(name: str, c: int = 8) -> KernelAttention:
    """A float64 layer whose every parameter is far from zero."""
    layer = KernelAttention(c, variant(name)).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def image(c: int = 8, b: int = 2, h: int = 16, w: int = 24) -> Tensor:
    return torch.randn(b, c, h, w, dtype=torch.float64)


def test_which_layers_are_affine_in_the_image() -> None:
    """Audit, point 6: where nothing depends on the image, f(x + y) = f(x) + f(y) - f(0); the others are not."""
    for name in KA:
        layer, x, y = layer_of(name), image(h=8, w=12), image(h=8, w=12)
        gap = layer(x + y) - layer(x) - layer(y) + layer(torch.zeros_like(x))
        size = gap.abs().max() / layer(x).abs().max()
        if name in LINEAR:
            assert size < 1e-12, name
        else:
            assert size > 1e-3, name


def test_kav2_is_kav3_with_tied_se() -> None:
    """Audit, point 2: they differ by SE sharing alone, the reshape called a code error is none."""
    tied, each = layer_of("kav2"), layer_of("kav3")
    state = {key: value for key, value in tied.state_dict().items() if not key.startswith("se.")}
    for part in ("squeeze", "excite"):
        for kind in ("weight", "bias"):
            state |= {f"se.{part}.{m}.{kind}": tied.state_dict()[f"se.{part}.0.{kind}"] for m in range(4)}
    each.load_state_dict(state)
    x = image()
    torch.testing.assert_close(tied(x), each(x), rtol=0, atol=1e-12)
    torch.nn.init.normal_(each.se.squeeze[3].weight)
    assert (tied(x) - each(x)).abs().max() > 1e-3


def test_an_ordinary_convolution_is_pytorchs() -> None:
    for name, size in (("conv3x3", 3), ("conv5x5", 5)):
        layer, x = layer_of(name), image()
        conv = torch.nn.Conv2d(8, 8, size, padding=size // 2).double()
        conv.load_state_dict({"weight": layer.window_kernels.weight[0], "bias": layer.bias})
        assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in conv.parameters())
        torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-12)


def test_an_ordinary_convolution_starts_as_pytorchs_does() -> None:
    """The weight's distribution; biases start at 0, as all of the published code's convolutions do."""
    layer, conv = KernelAttention(24, variant("conv3x3")), torch.nn.Conv2d(24, 24, 3)
    bound = (24 * 9) ** -0.5
    for weight in (layer.window_kernels.weight, conv.weight):
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert (layer.bias == 0).all()


def test_depthwise_kernels_see_their_own_channel_alone() -> None:
    windows, _ = layer_of("kav1_depthwise").kernels(image())
    off = windows * (1 - torch.eye(8)[..., None, None])
    assert off.abs().max() == 0
    assert (windows.abs().amax((-2, -1)).diagonal(dim1=2, dim2=3) > 0).all()


def test_outer_kernels_have_rank_1_at_every_tap() -> None:
    windows, _ = layer_of("kav1_outer").kernels(image(b=1))
    by_tap = windows[0].permute(0, 3, 4, 1, 2).reshape(-1, 8, 8)
    assert (torch.linalg.matrix_rank(by_tap, rtol=1e-10) == 1).all()


def test_attention_among_channels_does_not_know_the_order_of_taps() -> None:
    """Its weights sum over taps, so that permuted taps give permuted results; so do those among taps. But taps that
    attention has not mixed stay apart: where values are 0, results among channels are, and among taps are not."""
    kernels = torch.randn(1, 4, 8, 8, 3, 3).double()
    for name in ("kav10_channel_sa", "kav10_both_sa", "kav10"):
        sa = layer_of(name).sa
        flipped = sa(kernels.flip(-1)).flip(-1)
        torch.testing.assert_close(sa(kernels), flipped, rtol=0, atol=1e-12)
        for part in (sa.qkv, sa.proj):
            torch.nn.init.zeros_(part.bias)
        kernels[..., 1, 2] = 0
        untouched = sa(kernels)[..., 1, 2].abs().max() == 0
        assert untouched == (name == "kav10_channel_sa")


def test_attention_among_both_is_the_sum() -> None:
    kernels = torch.randn(1, 4, 8, 8, 3, 3).double()
    both = layer_of("kav10_both_sa").sa
    torch.nn.init.zeros_(both.proj.bias)
    taps, channels = layer_of("kav10").sa, layer_of("kav10_channel_sa").sa
    for each in (taps, channels):
        each.load_state_dict(both.state_dict())
    torch.testing.assert_close(both(kernels), taps(kernels) + channels(kernels))


def test_se_of_each_window_tied_is_the_shared_one() -> None:
    tied, each = layer_of("kav7"), layer_of("kav7_se_each")
    state = {key: value for key, value in tied.state_dict().items() if not key.startswith("se.")}
    for key, value in tied.se.state_dict().items():
        state |= {f"se.{key.replace('.0.', f'.{m}.')}": value for m in range(4)}
    each.load_state_dict(state)
    x = image()
    torch.testing.assert_close(each(x), tied(x), rtol=0, atol=1e-12)


def test_se_that_leaves_the_global_kernel_alone() -> None:
    layer, x = layer_of("kav6_no_global_se"), image()
    stages = {name: glob for name, _, glob in layer.stages(x)}
    assert torch.equal(stages["SE"], stages["SA"])


def test_repeated_kernels_have_rank_n() -> None:
    """Audit, point 5: one kernel repeated for every output channel leaves at most n independent outputs."""
    for name, rank in (("kav9", 4), ("kav9_as_run", 4), ("kav1", 8), ("kav1_outer", 8)):
        y = layer_of(name)(image(b=1)).flatten(2)[0]
        assert torch.linalg.matrix_rank(y - y.mean(1, keepdim=True)) == rank, name


@pytest.mark.parametrize("name", ["kav2", "kav3", "kav4"])
def test_window_variants_leave_a_seam(name: str) -> None:
    """Audit, point 6: a pixel across the quadrants' border does not reach a second convolution on windows."""
    layer = layer_of(name)
    x = image(b=1, h=16, w=16).requires_grad_()
    windows = layer.kernels(x)[0]
    y = convolve_windows(x, windows)
    (across,) = torch.autograd.grad(y[..., 4, 7].sum(), x)
    assert across[..., 8].abs().max() == 0
    assert across[..., 6].abs().max() > 0


def test_quadrants_and_back() -> None:
    x = image()
    windows = quadrants(x)
    assert torch.equal(unquadrants(windows), x)
    assert torch.equal(windows[:, 1], x[..., :8, 12:])
    assert torch.equal(windows[:, 2], x[..., 8:, :12])


@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 3), (8, 5)])
def test_mean_response_equals_convolving(h: int, w: int) -> None:
    windows, kernels = torch.randn(2, 4, 5, h, w).double(), torch.randn(4, 7, 5, 3, 3).double()
    convolved = [torch.conv2d(windows[:, m], kernels[m], padding=1).mean((-2, -1)) for m in range(4)]
    torch.testing.assert_close(mean_response(windows, kernels), torch.stack(convolved, dim=1))


def test_one_kernel_per_sample() -> None:
    x, kernels = image(b=3), torch.randn(3, 5, 8, 3, 3).double()
    each = torch.cat([convolve(x[i : i + 1], kernels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(convolve(x, kernels), each)


def test_se_gates_input_channels() -> None:
    se, kernels = SE(8).double(), torch.randn(1, 4, 8, 8, 3, 3).double()
    ratio = se(kernels) / kernels
    assert ((ratio > 0) & (ratio < 1)).all()
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))


def test_sa_needs_four_heads() -> None:
    with pytest.raises(KAError, match="4 heads"):
        KernelAttention(6, variant("kav7"))
