"""Kernels on learned features, regressed or mixed from a bank, against local injection, plain loops, what is known."""

import numpy as np
import pytest
import torch
from torch import Tensor

import ka
from ka import data
from ka.data.simulate import Degradation
from ka.inference import reach
from ka.models.adaptive import regressed
from ka.models.adaptive.attention import WindowAttention
from ka.models.adaptive.bank import KernelBank
from ka.models.adaptive.front import FLOOR
from ka.models.counts import flops
from ka.models.kernel_attention import KernelAttention
from ka.models.variants import VARIANTS

N, M = 31, 3
ATTEND = ("kav25", "kav25_near", "kav26")
LADDER = ("kav23", "kav23_window", "kav23_quadrant", "kav23_image")
Images = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def images(side: int = 32, b: int = 1, scale: float = 1.0) -> Images:
    """up, msi and lr of nothing in particular, float64."""
    shapes = ((N, side), (M, side), (N, side // 4))
    up, msi, lr = (scale * torch.rand(b, c, n, n, dtype=torch.float64) for c, n in shapes)
    return up, msi, lr


def awake(name: str) -> ka.PSRT:
    """A float64 model none of whose parts starts at zero."""
    model = ka.build(name, N, M, dim=8).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_without_learned_features_it_is_local_injection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch form and numpy's are the same formula: equal windows, ridge, matrix, borders and upsampling."""
    scene = data.load("indian_pines", "val")[0].load()
    m, ridge = len(scene.msi), 1e-4
    matrix = np.random.default_rng(0).normal(size=(len(scene.lr), 2 * m)) / 10
    monkeypatch.setattr(regressed, "SHRINK", (0.0, 0.0, 0.0))
    front = ka.build("kav21", len(scene.lr), m, dim=8).double().front
    assert front is not None
    front.begin(Degradation(), matrix)
    with torch.no_grad():
        front.learned[4].weight.zero_()
        front.log_ridge.fill_(float(np.log(ridge - FLOOR)))
        given = (torch.from_numpy(x)[None].double() for x in (scene.up, scene.msi, scene.lr))
        image = front(*given)[0].numpy()
    expected = ka.local_injection(scene.lr, scene.msi, matrix=matrix, ridge=ridge, roots=True)
    assert np.abs(image - expected).max() < 2e-6  # float32 there


def plain_bank(front: KernelBank, up: Tensor, msi: Tensor) -> Tensor:
    """What a front with a bank makes of one image, a place at a time."""
    features = front.features(up, msi)
    low = torch.from_numpy(data.degrade(features[0].numpy(), front.degradation))[None].double()
    seen = front.look(4 * (features if front.sees == "pixel" else low))[0]
    rows, columns = seen.shape[1:]
    mirrored = np.pad(seen.numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    kernels = torch.empty(14, N, rows, columns).double()
    for y, x in np.ndindex(rows, columns):
        quadrant = tuple(slice(0, n // 2) if at < n // 2 else slice(n // 2, n) for at, n in ((y, rows), (x, columns)))
        place = {
            "pixel": seen[:, y, x],
            "window": torch.from_numpy(mirrored[:, y : y + 9, x : x + 9].mean((1, 2))),
            "quadrant": seen[(slice(None), *quadrant)].mean((1, 2)),
            "image": seen.mean((1, 2)),
        }[front.sees]
        weights = front.weigh(place[:, None, None])[:, 0, 0]
        weights /= (weights.square().mean() + FLOOR).sqrt()
        kernels[..., y, x] = front.fallback + sum(w * kernel for w, kernel in zip(weights, front.bank, strict=True))
    ratio = front.degradation.ratio
    if front.sees != "pixel":
        kernels = torch.from_numpy(data.bicubic(kernels.flatten(0, 1).numpy(), ratio)).unflatten(0, (14, -1))
    detail = features[0] - torch.from_numpy(data.bicubic(low[0].numpy(), ratio))
    return up[0] + (kernels * detail[:, None]).sum(0)


@pytest.mark.parametrize("name", LADDER)
@torch.no_grad()
def test_a_bank_is_its_plain_form(name: str) -> None:
    """And a sample of a batch as alone; fresh, the whole network gives the image that it starts from."""
    front, given = awake(name).front, images(24, b=2)
    assert isinstance(front, KernelBank)
    out = front(*given)
    alone = [x[1:] for x in given]
    torch.testing.assert_close(front(*alone), out[1:], rtol=0, atol=1e-10)
    torch.testing.assert_close(out[1], plain_bank(front, *alone[:2]), rtol=0, atol=2e-5)  # numpy's are float32
    fresh = ka.build(name, N, M, dim=8).double()
    assert fresh.front is not None
    fresh.front.begin(Degradation(), np.ones((N, 2 * M)))
    assert torch.equal(fresh(*given), given[0])


def test_a_pixels_field_is_the_sensors_mean() -> None:
    """A kernel for every low-resolution pixel, which the explorer can show, of weights at full resolution."""
    front = awake("kav23").front
    assert isinstance(front, KernelBank)
    up, msi, lr = images(16)
    front.weigh[2].weight.data.zero_()
    field = front.field(front.features(up, msi), lr)
    weights = front.weigh[2].bias / (front.weigh[2].bias.square().mean() + FLOOR).sqrt()
    expected = front.fallback + torch.einsum("r,rkn->kn", weights, front.bank)
    torch.testing.assert_close(field, expected[None, :, :, None, None].expand(1, -1, -1, 4, 4), rtol=0, atol=1e-10)


@pytest.mark.parametrize("alike", [True, False])
@torch.no_grad()
def test_attention_is_its_plain_form(alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A softmax over the window of each pixel, written as it is said, where blocks end within the image and not."""
    monkeypatch.setattr(WindowAttention, "radius", 3)
    attention = WindowAttention(M, 14, alike).double()
    low, values = torch.rand(2, 14, 19, 34, dtype=torch.float64), torch.rand(2, 5, 19, 34, dtype=torch.float64)
    means, width = attention(low, values), attention.log_width.exp()
    for sample, y, x in ((0, 0, 0), (0, 15, 16), (1, 18, 33), (1, 16, 15), (1, 9, 30)):
        ys, xs = (range(max(0, i - 3), min(n, i + 4)) for i, n in ((y, 19), (x, 34)))
        near = [(v, u) for v in ys for u in xs]
        scores = [-((v - y) ** 2 + (u - x) ** 2) / (2 * width**2) for v, u in near]
        if attention.likeness is not None:
            apart = [attention.likeness @ (low[sample, :, v, u] - low[sample, :, y, x]) for v, u in near]
            scores = [score - difference.square().sum() / 2 for score, difference in zip(scores, apart, strict=True)]
        weights = torch.stack(scores).softmax(0)
        expected = sum(w * values[sample, :, v, u] for w, (v, u) in zip(weights, near, strict=True))
        torch.testing.assert_close(means[sample, :, y, x], expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_what_a_window_falls_back_on_may_be_mixed() -> None:
    """Where there is nothing to regress on, the kernel is one and the place's mixture of a bank."""
    front = awake("kav26").front
    assert front is not None
    assert front.bank is not None
    low, lr = torch.full((1, 14, 6, 6), 0.3, dtype=torch.float64), torch.full((1, N, 6, 6), 0.3, dtype=torch.float64)
    seen = front.look(4 * low)
    weights = front.weigh(seen) / (front.weigh(seen).square().mean(1, keepdim=True) + FLOOR).sqrt()
    expected = front.fallback[None, :, :, None, None] + torch.einsum("bryx,rkn->bknyx", weights, front.bank)
    torch.testing.assert_close(front.kernels(low, lr), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["kav20", "kav20_image", "kav20_fixed", "kav21", "residual", *LADDER, "kav24", *ATTEND]
)
def test_gradients(name: str) -> None:
    """Of images and of weights, through the solve, against differences."""
    model = awake(name)
    up, msi, lr = (x.requires_grad_() for x in images(8))
    probes = [torch.randn_like(x) for x in (up, msi, lr)]
    felt = ("front.", "tail", "blocks.0.0.layers.0.ka.")
    weights = [parameter for key, parameter in model.named_parameters() if any(part in key for part in felt)][-9:]

    def along(step: torch.Tensor) -> torch.Tensor:
        moved = (x + step * probe for x, probe in zip((up, msi, lr), probes, strict=True))
        return model(*moved).square().mean()

    assert torch.autograd.gradcheck(along, torch.zeros((), dtype=torch.float64, requires_grad=True), atol=1e-7)
    torch.manual_seed(0)
    for weight in weights:
        probe = torch.randn_like(weight)
        slope = (torch.autograd.grad(model(up, msi, lr).square().mean(), weight)[0] * probe).sum()
        ends = []
        for step in (1e-5, -2e-5, 1e-5):
            weight.data.add_(probe, alpha=step)
            with torch.no_grad():
                ends.append(model(up, msi, lr).square().mean())
        assert slope.item() == pytest.approx(((ends[0] - ends[1]) / 2e-5).item(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
def test_the_regression_of_a_layer_is_safe_in_float32(scale: float) -> None:
    """Quadrants that are flat, all but flat, large, of fewer pixels than keys: near float64, finite gradients."""
    torch.manual_seed(0)
    layer = KernelAttention(24, VARIANTS["kav24"])
    x = 1 + scale * torch.randn(1, 24, 8, 8)
    x[..., :4, :4] = 1.0
    y = layer(x)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert torch.equal(layer.kernels(x)[0][:, 0], layer.window_kernels.query[None])  # type: ignore[union-attr, arg-type]
    exact = layer.double()(x.double())
    assert (y - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("name", ["kav20", "kav26"])
@pytest.mark.parametrize("flat", [0.0, 0.5, 1.0])
def test_flat_and_saturated_windows_are_safe_in_float32(flat: float, name: str) -> None:
    """Nothing to regress on: no NaN, no large kernel, finite gradients; half of the image flat, half not."""
    model = ka.build(name, N, M, dim=8)
    up, msi, lr = (x.float() for x in images(128))  # the first columns see none of the other half
    for image in (up, msi, lr):
        image[..., : image.shape[-1] // 2] = flat
    out = model(up, msi, lr)
    out.mean().backward()
    assert (out[..., :8] - flat).abs().max() < 1e-4
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_kernels_look_at_their_window_and_no_farther() -> None:
    """A change at one place moves the kernels of the windows that hold it; of one image all; of none none."""
    moved = {}
    for name in ("kav20", "kav20_image", "kav20_fixed", "kav25_near", *LADDER[1:]):
        front = awake(name).front
        assert front is not None
        low, lr = torch.rand(1, 14, 24, 24, dtype=torch.float64), torch.rand(1, N, 24, 24, dtype=torch.float64)
        before = front.kernels(low, lr)
        low[..., 12, 12] += 1
        lr[..., 12, 12] += 1
        moved[name] = (front.kernels(low, lr) - before).abs().amax((0, 1, 2)) > 1e-12
    for name in ("kav20", "kav23_window"):
        across = moved[name].any(0).nonzero().flatten()
        assert (across.min().item(), across.max().item()) == (7, 17)  # radius 4, and the 3×3 mean or convolution
    assert moved["kav20_image"].all()
    assert moved["kav23_image"].all()
    assert moved["kav23_quadrant"][12:, 12:].all()
    assert not moved["kav20_fixed"].any()


@pytest.mark.parametrize("name", ["kav20", "kav21", "residual", "kav23", "kav23_window", "kav25", "kav26"])
def test_reach(name: str) -> None:
    """From a pixel at a tile's edge, the gradient dies within `reach`, and not far within it."""
    model = awake(name)
    up, msi, lr = (x[..., : max(4, x.shape[-2] // 8), :].requires_grad_() for x in images(128))
    seen = torch.autograd.grad(model(up, msi, lr)[..., :64].square().sum(), (msi, lr), allow_unused=True)
    farthest = []
    for gradient, ratio in zip(seen, (1, 4), strict=True):
        columns = gradient.abs().amax((0, 1, 2)).nonzero().flatten()
        farthest.append((int(columns.max()) + 1) * ratio - 64)
    assert reach(VARIANTS[name]) - 16 <= max(farthest) <= reach(VARIANTS[name])


def test_what_does_not_fit_is_refused() -> None:
    model = ka.build("kav20", N, M, dim=8).double()
    up, msi, lr = images()
    with pytest.raises(ka.KAError, match=r"^kav20 looks at the LR-HSI itself; give it too"):
        model(up, msi)
    with pytest.raises(ka.KAError, match=r"^lr \(1, 31, 4, 4\) does not fit up .* at ratio 4; give one whose sides"):
        model(up, msi, lr[..., :4, :4])


def test_a_checkpoint_knows_its_sensor(tmp_path: object) -> None:
    path = f"{tmp_path}/front.safetensors"
    for name in ("kav20", "kav21", "kav22", "residual", *LADDER, *ATTEND):
        model = ka.build(name, N, M, dim=16)
        if model.front is not None:
            model.front.begin(Degradation(ratio=8, blur_sigma=1.0))
        ka.save_weights(path, model)
        loaded = ka.load_checkpoint(path)
        assert loaded.row.name == name
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
        if loaded.front is not None:
            assert loaded.front.degradation == Degradation(ratio=8, blur_sigma=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kav20", "kav21", "kav22", *LADDER, "kav24", *ATTEND])
def test_export_gives_the_same(name: str) -> None:
    model, given = awake(name), images(16)
    with torch.no_grad():
        exported = torch.export.export(model, given).module()
        torch.testing.assert_close(exported(*given), model(*given), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["kav20", "kav21", "kav22", "residual", *LADDER, *ATTEND])
def test_what_it_costs_is_counted_without_computing(name: str) -> None:
    """On the meta device; a convolution's share is exact: 2 · weights · pixels."""
    model, counted = ka.build(name, N, M, dim=8), flops(name, 8, 64, N, M)
    convolutions = sum(p.numel() for p in model.parameters() if p.ndim == 4)
    assert 2 * convolutions * 64 * 64 <= counted < 4e9
