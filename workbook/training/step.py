"""The training step, and what it changes.

All that is random is drawn from (seed, iteration), so the number of the iteration is the only state of the data.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ka.data import Degradation
from ka.data.patches import DevicePatches, Draw, Patches
from ka.errors import KAError
from ka.methods.consistency import Consistency
from ka.methods.injection import Bicubic, Start
from ka.metrics import ssim
from ka.models.adaptive.fields import degraded
from ka.models.checkpoints import load_weights
from ka.models.own.adapter import Model, OwnModel, find_network, own_model
from ka.models.own.trial import try_out
from ka.models.psrt import PSRT, build
from workbook.training.config import Config
from workbook.training.ranks import ALONE, Ranks

BICUBIC = Bicubic()
READ_EVERY = 20  # iterations between two readings of the loss on CUDA: each waits, and lets the device run dry
SCALARS = ("step", "seconds", "loss_sum", "loss_count", "best", "best_step", "best_of")


@dataclass
class State:
    """What changes during a run, and what a checkpoint holds; `network` is the model as `ranks` run it."""

    model: Model
    average: Model
    optimizer: torch.optim.Optimizer
    network: torch.nn.Module
    ranks: Ranks = ALONE
    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float = -math.inf
    best_step: int = 0
    best_of: str = ""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def begin_with(self, source: str) -> None:
        """Take over the weights of a checkpoint, and nothing else of it."""
        load_weights(self.model, source)
        self.average.load_state_dict(self.model.state_dict())

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        return parts | {name: getattr(self, name) for name in SCALARS}

    def load(self, saved: dict[str, Any], where: Path) -> None:
        """Take over a checkpoint; a `KAError` if it is that of another model."""
        try:
            self.model.load_state_dict(saved["model"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            for name in SCALARS:
                setattr(self, name, saved[name])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise KAError(f"{where} does not fit this run; start it anew with restart=True") from error


def initial_state(
    config: Config,
    n_bands: int,
    n_msi: int,
    device: torch.device,
    start: Start = BICUBIC,
    consistency: Consistency | None = None,
    degradation: Degradation | None = None,
) -> State:
    """A model, its average and its optimiser at step 0; the global random state is left alone."""
    model = fresh(config, n_bands, n_msi, device)
    model.start, model.consistency = start, consistency
    factors = _begin(model, config, degradation or Degradation(config.ratio)) if isinstance(model, PSRT) else {}
    groups: dict[float, list[Tensor]] = {}
    for parameter in model.parameters():
        groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    # Fused: one pass over each weight; hundreds of small ones cost more to launch than to compute.
    parts = [{"params": group, "factor": factor} for factor, group in groups.items()]
    optimizer = torch.optim.AdamW(parts, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return State(model, copy.deepcopy(model), optimizer, model)


def fresh(
    config: Config, n_bands: int, n_msi: int, device: torch.device, sizes: Iterable[tuple[int, int]] = ()
) -> Model:
    """The run's model as it is initialised. One's own is tried on a patch, and on images of `sizes`; a `KAError` if it
    cannot work.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        if config.model is None:
            return build(config.variant, n_bands, n_msi, config.dim).to(device)
        made = own_model(find_network(config.model), n_bands, n_msi, config.ratio, config.dim, config.model)
    model = made.to(device)
    try_out(model, {(config.patch, config.patch), *sizes})
    return model


def _begin(model: PSRT, config: Config, degradation: Degradation) -> dict[Tensor, float]:
    """Put a fresh model at its start; gives the factors on the learning rate of those parameters that have one."""
    factors: dict[Tensor, float] = {}
    if model.front is not None:
        model.front.begin(degradation, model.start.matrix)
        factors |= dict.fromkeys(model.front.parameters(), config.front_lr)
    if model.body is not None:
        return factors | dict.fromkeys(model.body.parameters(), config.body_lr)
    if not model.row.body:
        return factors
    with torch.no_grad():
        model.head.weight *= config.scale
        model.head.weight[:, model.n_bands :] *= config.msi_gain
        model.tail.weight *= 0 if config.zero_tail else 1 / config.scale
    factors[model.head.weight] = config.ends_lr * config.scale
    return factors | dict.fromkeys(model.tail.parameters(), config.ends_lr / config.scale)


class Step:
    """Iterations of a run of `total`: what its configuration says of them is asked once, here."""

    def __init__(
        self,
        config: Config,
        total: int,
        patches: Patches | DevicePatches,
        consistency: Consistency | None = None,
    ) -> None:
        self.patches = patches
        on_patches = consistency is not None and consistency.kind != "spatial"  # which wants whole images
        self.project = consistency.spectral if consistency and on_patches else _as_it_is
        self.draw: Callable[[int], Draw] = partial(draw, len(patches), config.batch, config.seed, config.augment)
        end = total if config.schedule == "cosine" else None
        # What was flipped or rotated is observed anew: the sensor's grid does not turn with the scene.
        self.turned = patches.degradation if config.augment else None
        self.rate: Callable[[int], float] = partial(learning_rate, config.lr, config.warmup, end)
        self.loss, self.precision = LOSSES[config.loss], PRECISIONS[config.amp]
        self.inside = partial(_inside, config.margin)
        self.clip, self.ema, self.seed = config.clip, config.ema, config.seed
        self.cure = f"lower lr (now {config.lr:g}) or lengthen warmup (now {config.warmup})"

    def __call__(self, state: State, count: int = 1) -> float:
        """Train `count` iterations; gives the last loss.

        Losses are read once, before the last update (see `read_every`); until then the host only launches kernels.

        Raises:
            KAError: a loss or a gradient is not finite; the first such iteration is named. With `count` = 1 the
                weights are as before it, else they are lost; nothing has been saved of them.
        """
        weights, averages = list(state.model.parameters()), list(state.average.parameters())
        draws = [self.draw(step) for step in range(state.step, state.step + count)]
        unread: list[Tensor] = []
        last = math.nan
        state.model.train()
        for batch in self.patches.batches(draws):
            share = state.ranks.share(batch)
            up, msi, lr, gt = (share[key].to(state.device, non_blocking=True) for key in ("up", "msi", "lr", "gt"))
            if self.turned is not None:
                lr = degraded(gt, self.turned)
            with self.precision(state.device.type), self.chance(state):
                prediction = state.network(up, msi, lr)
            image = self.project(prediction.float(), msi)
            loss = self.loss(self.inside(image), self.inside(gt))
            state.optimizer.zero_grad(set_to_none=True)
            state.ranks.backward(loss)
            norm = clip_grad_norm_(weights, self.clip)
            unread.append(torch.stack([state.ranks.mean(loss.detach()), norm]))
            if len(unread) == count:
                last = self._read(unread, state)
            rate = self.rate(state.step)
            for group in state.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            state.optimizer.step()
            state.step += 1
            decay = min(self.ema, state.step / (10 + state.step))
            get_ema_multi_avg_fn(decay)(averages, weights, None)
            for averaged, buffer in zip(state.average.buffers(), state.model.buffers(), strict=True):
                averaged.copy_(buffer)  # running means, of networks that have some
        return last

    @contextmanager
    def chance(self, state: State) -> Iterator[None]:
        """What a user's own network draws (dropout) is of (seed, iteration) too; rows draw nothing."""
        if not isinstance(state.model, OwnModel):
            yield
            return
        with torch.random.fork_rng([state.device] if state.device.type == "cuda" else []):
            torch.manual_seed(self.seed + state.step)
            yield

    def _read(self, unread: list[Float[Tensor, "2"]], state: State) -> float:
        """Add up the losses to the present iteration, each beside its gradient's norm; gives the last."""
        values = torch.stack(unread).tolist()
        for iteration, (loss, norm) in enumerate(values, state.step + 2 - len(values)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"the loss or its gradient is not finite at iteration {iteration}: training diverged"
                raise KAError(f"{what}; {self.cure}, in a new run_dir or with restart=True")
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
        return values[-1][0]


def read_every(device: torch.device) -> int:
    """Iterations between two readings of the loss; on the CPU reading costs nothing."""
    return READ_EVERY if device.type == "cuda" else 1


def learning_rate(peak: float, warmup: int, decay: int | None, step: int) -> float:
    """The rate of iteration `step` (from 0): linear warm-up, then constant, or half a cosine to zero at `decay`."""
    rate = peak * min(1.0, (step + 1) / warmup) if warmup else peak
    if decay is not None:
        rate *= 0.5 * (1 + math.cos(math.pi * step / decay))
    return rate


def draw(n: int, batch: int, seed: int, augment: bool, step: int) -> Draw:
    """The patches of iteration `step`, of `n`, and the seed of their flips and rotations.

    Each epoch is a permutation of its own, its incomplete last batch dropped.
    """
    epoch, place = divmod(step, n // batch)
    indices = _order(n, seed, epoch)[place * batch : (place + 1) * batch].tolist()
    return indices, (seed, 1, step) if augment else None


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    order = np.random.default_rng((seed, 0, epoch)).permutation(n)
    order.setflags(write=False)
    return order


def _as_it_is(prediction: Tensor, msi: Tensor) -> Tensor:
    return prediction


def _inside(margin: int, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h-2*margin w-2*margin"]:
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]


def _l1(prediction: Tensor, gt: Tensor) -> Tensor:
    return (prediction - gt).abs().mean()


def _l1_ssim(prediction: Tensor, gt: Tensor) -> Tensor:
    similarity = ssim(prediction, gt, dtype=torch.float32, check=False).mean()
    return _l1(prediction, gt) + 0.1 * (1 - similarity)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": _l1, "l1+ssim": _l1_ssim}
PRECISIONS: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "bfloat16": partial(torch.autocast, dtype=torch.bfloat16),
}
