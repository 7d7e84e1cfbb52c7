"""The training step: what the configuration says, batch by batch, and losses that are not finite."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from ka.errors import KAError
from ka.metrics import ssim
from workbook.training import step as stepping
from workbook.training.config import Config
from workbook.training.scenes import load_data
from workbook.training.step import LOSSES, State, Step, draw, initial_state, learning_rate

Smoke = Callable[..., Config]
CPU = torch.device("cpu")


def begin(config: Config) -> State:
    return initial_state(config, 4, 3, CPU)


def spoil(monkeypatch: pytest.MonkeyPatch, what: str, call: int) -> None:
    """Make the loss NaN at a call, or its gradient alone (that of √x² at 0, times x)."""
    inner, calls = LOSSES["l1"], 0

    def loss(prediction: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        value = inner(prediction, gt)
        if calls != call:
            return value
        return value * float("nan") if what == "loss" else value + (0 * prediction).square().sum().sqrt()

    monkeypatch.setitem(LOSSES, "l1", loss)


def test_an_iteration_is_what_the_configuration_says(smoke: Smoke, tmp_path: Path) -> None:
    """Two iterations against AdamW, clipping, rates and averaging written out by hand."""
    config = smoke(tmp_path, lr=1e-2, warmup=2, weight_decay=0.1, clip=0.01, schedule="constant", ema=0.5, ends_lr=0.3)
    patches = load_data(config).patches
    state, step = begin(config), Step(config, 10, patches)
    mine = {key: value.detach().clone() for key, value in state.model.named_parameters()}
    average = {key: value.clone() for key, value in mine.items()}
    m, v = ({key: torch.zeros_like(value) for key, value in mine.items()} for _ in range(2))
    factor = dict.fromkeys(mine, 1.0) | {"head.weight": 0.3 * 100, "tail.weight": 0.3 / 100, "tail.bias": 0.3 / 100}
    reference = begin(config).model
    for t in (1, 2):
        batch = patches.batch(draw(len(patches), config.batch, config.seed, False, t - 1)[0])
        reference.load_state_dict(mine)
        loss = (reference(batch["up"], batch["msi"]) - batch["gt"]).abs().mean()
        grads = dict(zip(mine, torch.autograd.grad(loss, list(reference.parameters())), strict=True))
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        assert norm > config.clip
        decay = min(0.5, t / (10 + t))
        for key, g in grads.items():
            rate, g = 1e-2 * t / 2 * factor[key], g * config.clip / norm  # noqa: PLW2901
            m[key], v[key] = 0.9 * m[key] + 0.1 * g, 0.999 * v[key] + 0.001 * g**2
            move = m[key] / (1 - 0.9**t) / ((v[key] / (1 - 0.999**t)).sqrt() + 1e-8)
            mine[key] = mine[key] * (1 - rate * 0.1) - rate * move
            average[key] = decay * average[key] + (1 - decay) * mine[key]
        assert step(state) == pytest.approx(loss.item(), rel=1e-6)
        for weights, expected in ((state.model, mine), (state.average, average)):
            for key, value in weights.named_parameters():
                torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5, msg=key)
    assert (state.step, state.loss_count) == (2, 2)


def test_the_ema_of_the_configuration_is_its_limit(smoke: Smoke, tmp_path: Path) -> None:
    """The decay grows from 1/11 to `ema`: with 0 the average is the weights, with 0.1 it lags from iteration 2 on."""
    for ema, lags in ((0.0, False), (0.1, True)):
        config = smoke(tmp_path, ema=ema)
        state, step = begin(config), Step(config, 6, load_data(config).patches)
        for _ in range(2):
            before = state.average.head.weight.detach().clone()
            step(state)
        assert torch.equal(state.average.head.weight, state.model.head.weight) != lags
        expected = before + (1 - ema) * (state.model.head.weight - before)
        torch.testing.assert_close(state.average.head.weight, expected, rtol=1e-6, atol=0)


def test_learning_rates(smoke: Smoke, tmp_path: Path) -> None:
    rate = partial(learning_rate, 1.0, 4, 100)
    assert rate(0) == pytest.approx(0.25, abs=1e-3)
    assert rate(50) == pytest.approx(0.5)
    assert rate(99) < 1e-3
    assert [learning_rate(0.5, 0, None, k) for k in (0, 5, 9)] == [0.5] * 3
    patches = load_data(smoke(tmp_path)).patches
    cosine, constant = (
        Step(smoke(tmp_path, schedule=schedule, lr=1.0, warmup=2), 10, patches).rate
        for schedule in ("cosine", "constant")
    )
    assert [cosine(0), cosine(5)] == [pytest.approx(0.5), pytest.approx(0.5)]
    assert [constant(0), constant(5)] == [0.5, 1.0]


def test_batches_are_permutations_of_each_epoch(smoke: Smoke, tmp_path: Path) -> None:
    for epoch in range(3):
        drawn = [i for k in range(3) for i in draw(11, 3, 0, False, 3 * epoch + k)[0]]
        assert len(set(drawn)) == 9
        assert set(drawn) <= set(range(11))
    assert draw(11, 3, 0, False, 0) != draw(11, 3, 0, False, 3) != draw(11, 3, 1, False, 3)
    patches = load_data(smoke(tmp_path)).patches
    plain, turned = (Step(smoke(tmp_path, augment=augment, seed=3), 6, patches).draw(5) for augment in (False, True))
    assert plain == draw(32, 2, 3, False, 5)
    assert (plain[1], turned) == (None, (plain[0], (3, 1, 5)))


def test_the_studys_loss() -> None:
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    l1, similar = (x - y).abs().mean(), ssim(x, y).mean().float()
    torch.testing.assert_close(LOSSES["l1"](x, y), l1)
    torch.testing.assert_close(LOSSES["l1+ssim"](x, y), l1 + 0.1 * (1 - similar))


def test_loss_and_precision_are_those_of_the_configuration(smoke: Smoke, tmp_path: Path) -> None:
    losses = set()
    for changes in ({}, {"loss": "l1+ssim"}, {"amp": "bfloat16"}):
        config = smoke(tmp_path, zero_tail=False, **changes)
        losses.add(Step(config, 6, load_data(config).patches)(begin(config)))
    assert len(losses) == 3


def test_scale_is_the_same_as_scaling_the_data(smoke: Smoke, tmp_path: Path) -> None:
    """Head and tail absorb `scale`: the scaled start on raw data is the plain start on scaled data."""
    plain, scaled = (begin(smoke(tmp_path, zero_tail=False, scale=s, msi_gain=1.0)).model.double() for s in (1.0, 8.0))
    up, msi = torch.rand(1, 4, 8, 8).double(), torch.rand(1, 3, 8, 8).double()
    torch.testing.assert_close(scaled(up, msi), plain(8 * up, 8 * msi) / 8, rtol=0, atol=1e-9)


def test_the_start(smoke: Smoke, tmp_path: Path) -> None:
    """From bicubic, with the HR-MSI's weights larger, and without touching the global random state."""
    before = torch.random.get_rng_state()
    model, plain = begin(smoke(tmp_path)).model, begin(smoke(tmp_path, msi_gain=1.0, scale=1.0)).model
    assert torch.equal(torch.random.get_rng_state(), before)
    up = torch.rand(1, 4, 8, 8)
    assert torch.equal(model(up, torch.rand(1, 3, 8, 8)), up)
    torch.testing.assert_close(model.head.weight[:, :4], 100 * plain.head.weight[:, :4])
    torch.testing.assert_close(model.head.weight[:, 4:], 1000 * plain.head.weight[:, 4:])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_iteration_that_diverges_leaves_the_weights(
    what: str, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, what, 2)
    config = smoke(tmp_path)
    state, step = begin(config), Step(config, 6, load_data(config).patches)
    step(state)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    with pytest.raises(
        KAError, match=r"not finite at iteration 2: training diverged; lower lr \(now 0.003\) or length"
    ):
        step(state)
    assert all(torch.equal(value, before[key]) for key, value in state.model.state_dict().items())
    assert state.step == 1


# As on a GPU: scenes on the device, several iterations between two readings of the loss. The CPU takes the same path.


def test_many_iterations_at_once_are_single_ones(smoke: Smoke, tmp_path: Path) -> None:
    config = smoke(tmp_path, augment=True, iterations=20)
    patches = load_data(config).patches
    single, step = begin(config), Step(config, 20, patches)
    losses = [step(single) for _ in range(7)]
    for source in (patches, patches.to(CPU)):
        many, steps = begin(config), Step(config, 20, source)
        assert [steps(many, count) for count in (3, 4)] == [losses[2], losses[6]]
        assert (many.step, many.loss_count, many.loss_sum) == (7, 7, sum(losses)) == (7, 7, single.loss_sum)
        for one, other in ((single.model, many.model), (single.average, many.average)):
            for (key, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
                assert torch.equal(a, b), key


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_late_readings_find_the_iteration_that_diverged(
    what: str, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smoke(tmp_path)
    held = load_data(config).patches.to(CPU)
    for bad in (1, 2, 3):
        with monkeypatch.context() as patch:
            spoil(patch, what, bad)
            with pytest.raises(KAError, match=f"not finite at iteration {bad}: training diverged"):
                Step(config, 6, held)(begin(config), 3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["psrt", "kav1", "kav4", "kav11", "kav17"])
def test_iterations_read_no_value(variant: str, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA each reading would wait until the device has run dry; tensors of the device `meta` have no values."""
    meta, config = torch.device("meta"), smoke(tmp_path, variant=variant, augment=True, loss="l1+ssim")
    held = load_data(config).patches.to(meta)
    monkeypatch.setattr(torch.optim, "AdamW", partial(_unfused, torch.optim.AdamW))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # `meta` has none; SSIM turns it off
    state = initial_state(config, 4, 3, meta)
    with pytest.raises((RuntimeError, NotImplementedError)):
        Step(config, 6, held)(state, 2)
    assert state.step == 1  # of two iterations the first read nothing; the second reads both losses
    monkeypatch.setattr(Step, "_read", lambda *_: 0.0)
    Step(config, 6, held)(state, 2)
    assert state.step == 3


def _unfused(kind: type[torch.optim.AdamW], *groups: object, fused: bool, **values: object) -> torch.optim.AdamW:
    assert fused
    return kind(*groups, foreach=True, **values)  # type: ignore[arg-type]  # `meta` has no fused form


def test_the_loss_is_read_rarely_on_cuda_alone() -> None:
    assert stepping.read_every(CPU) == 1
    assert stepping.read_every(torch.device("cuda")) == 20
