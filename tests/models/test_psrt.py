"""The backbone: shuffles, sizes, dtypes, export, start values. (What it computes: test_equivalence, test_golden.)"""

import pytest
import torch
import torch.nn.functional as F

import ka
from ka.models.psrt import shuffle, unshuffle


def inputs(h: int, w: int, b: int = 1, bands: int = 5, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.rand(b, bands, h, w, dtype=dtype), torch.rand(b, 2, h, w, dtype=dtype)]


def small(name: str, dtype: torch.dtype = torch.float32) -> ka.PSRT:
    return ka.build(name, n_bands=5, n_msi=2, dim=16).to(dtype).eval()


@pytest.mark.parametrize("window", [8, 4, 2])
def test_shuffle_and_back(window: int) -> None:
    x = torch.randn(2, 16, 32, 3)
    moved = shuffle(x, window)
    assert torch.equal(unshuffle(moved, window), x)
    d = window // 2
    assert torch.equal(moved[:, :d, :d], x[:, :d, :d])
    assert torch.equal(moved[:, d : 2 * d, 16 : 16 + d], x[:, 2 * d : 3 * d, d : 2 * d])
    assert torch.equal(moved[:, 8 : 8 + d, :d], x[:, d : 2 * d, :d])


def test_the_three_shuffles_differ() -> None:
    x = inputs(16, 16)
    state = small("psrt").state_dict()
    outs = []
    for name in ("psrt", "psrt_misaligned", "psrt_noshuffle"):
        model = small(name)
        model.load_state_dict(state)
        outs.append(model(*x))
    assert not any(torch.allclose(outs[i], outs[j], atol=1e-3) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_any_size() -> None:
    """An image is what its replicated border makes of it: padding outside, or inside the model, is the same."""
    for name in ("psrt", "kav1", "kav4", "kav11_no_ln", "kav17", "conv5x5"):
        model = small(name, torch.float64)
        for h, w in ((13, 22), (3, 5), (1, 1)):
            x = inputs(h, w, dtype=torch.float64)
            padded = [F.pad(t, (0, -w % 8, 0, -h % 8), mode="replicate") for t in x]
            out = model(*x)
            assert out.shape == (1, 5, h, w)
            torch.testing.assert_close(out, model(*padded)[..., :h, :w], rtol=0, atol=1e-12)


def test_bfloat16_autocast() -> None:
    for name in ("psrt", "psrt_misaligned", "kav1", "kav4", "kav8_as_run", "kav13", "kav17", "kav10_both_sa"):
        model, x = small(name), inputs(16, 16)
        y = model(*x)
        with torch.autocast("cpu", torch.bfloat16):
            z = model(*x)
        assert (z - y).norm() < 0.1 * (y - x[0]).norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["psrt_misaligned", "kav1", "kav4", "kav17"])
def test_export_gives_the_same(name: str) -> None:
    model, x = small(name), inputs(12, 20)
    with torch.no_grad():
        exported = torch.export.export(model, tuple(x)).module()
        torch.testing.assert_close(exported(*x), model(*x), rtol=0, atol=1e-5)


def test_fold_leaves_the_model_alone() -> None:
    model = small("kav11")
    before = ka.count_parameters(model)
    assert ka.count_parameters(model.fold()) < before == ka.count_parameters(model)


def test_initial_weights_are_those_published() -> None:
    model = ka.build("kav1")
    mlp = torch.cat([layer.mlp.fc1.weight.flatten() for layer in model.layers()])
    assert abs(mlp.std().item() - 0.01) < 1e-4
    assert model.head.bias.abs().max() == 0
    assert model.layers()[0].mlp.fc1.bias.abs().max() > 0
    assert model.layers()[0].ka.se.squeeze[0].weight.std() > 0.05  # a 1×1 convolution: not N(0, 0.01²)
    assert ka.build("kav19").layers()[0].ka.window_kernels.weight.std() > 0.9


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 12}, "dim=12 does not split into 8 heads"),
        ({"dim": 0}, "dim=0 is not a positive whole number"),
        ({"n_bands": 3.0}, "n_bands=3.0 is not a positive whole number"),
        ({"n_msi": True}, "n_msi=True is not a positive whole number"),
    ],
)
def test_impossible_sizes(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ka.KAError, match=message):
        ka.build("kav1", **sizes)  # type: ignore[arg-type]


def test_inputs_that_do_not_fit_are_explained() -> None:
    model = small("kav11")
    up, msi = inputs(16, 16)
    with pytest.raises(ka.KAError, match="do not fit this model"):
        model(msi, up)
    with pytest.raises(ka.KAError, match="upsample the LR-HSI"):
        model(up[..., ::4, ::4], msi)
