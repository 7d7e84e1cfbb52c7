"""Training: `train(config)` makes a finished run folder of it, from wherever the folder stands.

All that is random is drawn from (seed, step), so the step number is the only state of the data: a run killed at any
moment goes on from its last checkpoint and ends with the same bits (on one machine and one number of threads).
"""

import copy
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

import ka
from ka.data import datasets as data
from ka.data.scenes import DevicePatches, Draw, Patches, Scene, SceneSet
from ka.data.simulate import Degradation
from ka.errors import KAError
from ka.evaluation import (
    Evaluation,
    LinearInjection,
    Method,
    Network,
    evaluate,
    finite,
    forget_peak,
    free_bytes,
    peak_bytes,
    upsampled,
)
from ka.files import write_json
from ka.metrics import METRICS, ssim
from ka.models.checkpoints import save_weights
from ka.models.psrt import PSRT, build, parameter_count
from workbook.paths import runs_folder
from workbook.training.config import Config
from workbook.training.ranks import ALONE, Ranks
from workbook.training.run import Run

log = logging.getLogger("ka")

Watch = Callable[[list[dict[str, Any]]], None]
LOOK = 20  # iterations between two looks at the loss on CUDA: each look lets the device run dry


@dataclass(frozen=True)
class Data:
    """What a run sees.

    Attributes:
        patches: training patches.
        train, test: the scene sets.
        val: validation scenes in memory; empty where the protocol holds none out.
        degradation: how the LR-HSI was simulated.
    """

    patches: Patches
    train: SceneSet
    val: list[Scene]
    test: SceneSet
    degradation: Degradation

    @cached_property
    def injection(self) -> LinearInjection:
        """Linear detail injection, fitted on the training scenes when it is first asked for."""
        return LinearInjection.fit(self.train, self.degradation)

    @cached_property
    def test_digest(self) -> str:
        """SHA-256 over names and values (gt, up, msi) of the test scenes."""
        digest = hashlib.sha256()
        for scene in self.test:
            loaded = scene.load()
            for values in (loaded.gt, loaded.up, loaded.msi):
                digest.update(f"{scene.name} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def load_data(config: Config) -> Data:
    """The scenes of a configuration; what cannot work is found here as far as it shows without reading every pixel.

    Raises:
        KAError: missing or broken data; patches that do not fit; a batch larger than the training set.
    """
    degradation = Degradation(config.ratio)
    root, hold_out = config.data_root, config.hold_out
    if config.dataset == "h5" and root is not None and Path(root).is_file():
        raise KAError(
            f"data_root={root} is one file, and a run trains, validates and tests on different ones; give the folder "
            "that holds train_cave(with_up)x4.h5, validation_… and test_…"
        )
    train = data.load(config.dataset, "train", root, degradation, scenes=config.scene_names, hold_out_val=hold_out)
    patches = Patches(train, config.patch, config.stride)
    if config.batch > len(patches):
        raise KAError(f"batch={config.batch} is more than the {len(patches)} training patches; choose a smaller one")
    val = []
    if hold_out:
        val = [_centre(s, config) for s in data.load(config.dataset, "val", root, degradation)]
    return Data(patches, train, val, data.load(config.dataset, "test", root, degradation), degradation)


def _centre(scene: Scene, config: Config) -> Scene:
    """The central part of a validation scene, on the low-resolution grid."""
    h, w = scene.gt.shape[-2:]
    size, r = config.eval_size, config.ratio
    if size is None or size >= max(h, w):
        return scene.load()
    height, width = (min(size, side) // r * r for side in (h, w))
    return scene.crop((h - height) // 2 // r * r, (w - width) // 2 // r * r, height, width, r)


@dataclass
class State:
    """What changes during a run, and what a checkpoint holds; `network` is the model as `ranks` run it."""

    model: PSRT
    average: PSRT
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

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in _SCALARS},
        }

    def load(self, saved: dict[str, Any], where: Path) -> None:
        try:
            self.model.load_state_dict(saved["model"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            for name in _SCALARS:
                setattr(self, name, saved[name])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise KAError(f"{where} does not fit this run; start it anew with restart=True") from error


_SCALARS = ("step", "seconds", "loss_sum", "loss_count", "best", "best_step", "best_of")


def train(
    config: Config,
    scenes: Data | None = None,
    *,
    restart: bool = False,
    watch: Watch | None = None,
    bar: bool = True,
    ranks: Ranks = ALONE,
) -> Run:
    """Train to the end and measure the test scenes; goes on where a former call was stopped.

    Args:
        config: the run.
        scenes: `load_data(config)` if it is at hand, so that nothing is read twice.
        restart: throw away what the run folder holds and train anew (leave it out to go on with a stopped run).
        watch: called with the history after every validation (to draw curves).
        bar: show a progress bar.
        ranks: the processes that train it together, each of which calls this (see `workbook.training.ranks`).

    Returns:
        The finished run (of several processes, the first one finishes it). One that is finished already is returned as
        it is.

    Raises:
        KAError: anything a user can mend: data, configuration, a folder in use, a full disk, a loss that is not
            finite. What was saved before stays.
    """
    run = Run(run_folder(config))
    with ExitStack() as held:
        try:
            ranks.check(config.batch)
            if ranks.first:
                held.enter_context(run.lock())
                scenes = _begin(config, run, scenes, restart)
        except KAError as error:
            ranks.agree(str(error))
            raise
        ranks.agree()
        ranks.same(run.finished, f"run folder {run.path}")
        if not run.finished:
            device = ranks.device or pick_device(config)
            _train(config, run, scenes or load_data(config), device, watch, bar and ranks.first, ranks)
    return run


def _begin(config: Config, run: Run, scenes: Data | None, restart: bool) -> Data | None:
    """Make a run folder ready; gives the scenes, None where the run is finished."""
    if not restart:
        run.check(config)
        if run.finished:
            return None
    scenes = scenes or load_data(config)
    pick_device(config)
    for scene in scenes.test:
        scene.load()  # a broken test scene is found now, not after training
    if restart:
        run.clear()
    run.start(config)
    return scenes


def run_folder(config: Config) -> Path:
    """`run_dir`, or one under `runs/` named after dataset, variant, dim and seed."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return runs_folder() / f"{config.dataset}-{config.variant}-dim{config.dim}-seed{config.seed}"


def _train(
    config: Config, run: Run, scenes: Data, device: torch.device, watch: Watch | None, bar: bool, ranks: Ranks
) -> None:
    n = len(scenes.patches) // config.batch
    total = config.iterations if config.iterations is not None else n * (config.epochs or 0)
    state = start(config, scenes.train.n_bands, scenes.train.n_msi, device)
    if (saved := run.resume()) is not None:
        state.load(saved, run.path / "checkpoint.pt")
    ranks.same(state.step, f"checkpoint in {run.path}")  # and all have read it before the first one writes
    state.ranks, state.network = ranks, ranks.wrap(state.model)
    history = run.cut_history(state.step) if ranks.first else []
    patches = placed(scenes.patches, device)
    progress = tqdm(
        total=total, initial=state.step, desc=config.variant, unit="it", disable=not bar, dynamic_ncols=True
    )
    with deterministic(config.deterministic and device.type == "cuda"), progress:
        while state.step < total:
            _stretch(config, run, scenes, patches, state, total, progress, history)
            if watch is not None:
                watch(history)
    if ranks.first:
        finish(config, run, scenes, state, bar)


def placed(patches: Patches, device: torch.device) -> Patches | DevicePatches:
    """Patches where they are best cut: on CUDA, if the scenes fit in half of its free memory; else on the host.

    On the CPU cutting is a thousandth of an iteration, and a second copy of the scenes would only cost memory.
    """
    if device.type != "cuda":
        return patches
    try:
        if patches.nbytes <= free_bytes(device) / 2:
            return patches.to(device)
    except torch.OutOfMemoryError:  # another process was faster
        pass
    log.warning(
        "the training scenes (%.1f GiB) do not fit on %s: patches are cut by the host, which is slower",
        patches.nbytes / 2**30,
        device,
    )
    return patches


def _stretch(
    config: Config,
    run: Run,
    scenes: Data,
    patches: Patches | DevicePatches,
    state: State,
    total: int,
    progress: Any,
    history: list[dict[str, Any]],
) -> None:
    """Train up to the next validation, validate, save."""
    end = min(total, (state.step // config.eval_every + 1) * config.eval_every)
    saved = clock = time.monotonic()
    while state.step < end:
        count = min(look(state), end - state.step)
        advance = one_step if count == 1 else partial(some_steps, count=count)
        loss = advance(config, patches, state, total)
        now = time.monotonic()
        state.seconds, clock = state.seconds + now - clock, now
        progress.update(count)
        progress.set_postfix(_postfix(loss, history), refresh=False)
        if state.ranks.first and now - saved > config.checkpoint_every and state.step < end:
            run.save(state.to_dict())
            saved = time.monotonic()
    if not state.ranks.first:
        return
    note: dict[str, Any] = {
        "step": state.step,
        "seconds": round(state.seconds, 2),
        "lr": learning_rate(config, state.step - 1, total),
        "loss": state.loss_sum / state.loss_count,
    }
    if scenes.val:
        note |= validate(config, run, scenes, state)
    state.loss_sum, state.loss_count = 0.0, 0
    run.note(**note)  # before the checkpoint: a line too many is cut when the run goes on, one too few is lost
    run.save(state.to_dict())
    history.append(note)
    progress.set_postfix(_postfix(loss, history))


def _postfix(loss: float, history: list[dict[str, Any]]) -> dict[str, str]:
    shown = {"loss": f"{loss:.5f}"}
    if history and history[-1].get("psnr_average") is not None:
        shown["PSNR"] = f"{history[-1]['psnr_average']:.2f} dB"
    return shown


def start(config: Config, n_bands: int, n_msi: int, device: torch.device) -> State:
    """A model, its average and its optimiser at step 0; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build(config.variant, n_bands, n_msi, config.dim).to(device)
    with torch.no_grad():
        model.head.weight *= config.scale
        model.head.weight[:, n_bands:] *= config.msi_gain
        model.tail.weight *= 0 if config.zero_tail else 1 / config.scale
    ends = {model.head.weight: config.ends_lr * config.scale}
    ends |= dict.fromkeys(model.tail.parameters(), config.ends_lr / config.scale)
    groups: dict[float, list[Tensor]] = {}
    for parameter in model.parameters():
        groups.setdefault(ends.get(parameter, 1.0), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": group, "factor": factor} for factor, group in groups.items()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over each weight; hundreds of small ones cost more to launch than to compute
    )
    return State(model, copy.deepcopy(model), optimizer, model)


def learning_rate(config: Config, step: int, total: int) -> float:
    """The rate of iteration `step` (from 0): linear warm-up, then constant, or half a cosine down to zero."""
    rate = config.lr * min(1.0, (step + 1) / config.warmup) if config.warmup else config.lr
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / total))
    return rate


def look(state: State) -> int:
    """Iterations between two looks at the loss: waiting for a GPU leaves it idle, on the CPU looking costs nothing."""
    return LOOK if state.model.head.weight.is_cuda else 1


def one_step(config: Config, patches: Patches | DevicePatches, state: State, total: int) -> float:
    """One iteration: batch, loss, gradient, AdamW, average. Gives the loss.

    Raises:
        KAError: the loss or the gradient is not finite; the weights are as before the iteration.
    """
    return some_steps(config, patches, state, total, 1)


def some_steps(config: Config, patches: Patches | DevicePatches, state: State, total: int, count: int) -> float:
    """So many iterations, their losses looked at once, before the last update. Gives the last loss.

    With `DevicePatches` the host draws what is in all batches at the start, and then only launches kernels.

    Raises:
        KAError: a loss or a gradient is not finite; the first such iteration is named. If it is not the last one, the
            weights are lost; nothing has been saved of them.
    """
    weights: list[Tensor] = list(state.model.parameters())
    averages: list[Tensor] = list(state.average.parameters())
    draws = [draw(config, len(patches), step) for step in range(state.step, state.step + count)]
    state.model.train()
    seen: list[Tensor] = []
    last = math.nan
    for batch in patches.batches(draws):
        seen.append(_gradient(config, state, batch, weights))
        if len(seen) == count:
            last = _look_at(config, state, seen)
        _update(config, state, total, weights, averages)
    return last


def _gradient(config: Config, state: State, batch: dict[str, Tensor], weights: list[Tensor]) -> Float[Tensor, "2"]:
    """Leave the clipped gradient in the weights; gives the loss and the gradient's norm, on the device."""
    device = state.model.head.weight.device
    mine = state.ranks.share(batch)
    up, msi, gt = (mine[key].to(device, non_blocking=True) for key in ("up", "msi", "gt"))
    amp = torch.autocast(device.type, torch.bfloat16) if config.amp == "bfloat16" else nullcontext()
    with amp:
        prediction = state.network(up, msi)
    loss = loss_of(config, prediction.float(), gt)
    state.optimizer.zero_grad(set_to_none=True)
    state.ranks.backward(loss)
    return torch.stack([state.ranks.mean(loss.detach()), torch.nn.utils.clip_grad_norm_(weights, config.clip)])


def _look_at(config: Config, state: State, seen: list[Tensor]) -> float:
    """Check losses and norms up to the present iteration, and add the losses up; gives the last. Waits for the device.

    Raises:
        KAError: one of them is not finite.
    """
    values = torch.stack(seen).tolist()
    for step, (loss, norm) in enumerate(values, state.step + 2 - len(seen)):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise KAError(
                f"the loss or its gradient is not finite at iteration {step}: training diverged; lower lr "
                f"(now {config.lr:g}) or lengthen warmup (now {config.warmup}), in a new run_dir or with restart=True"
            )
        state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
    return values[-1][0]


def _update(config: Config, state: State, total: int, weights: list[Tensor], averages: list[Tensor]) -> None:
    """AdamW, then the average."""
    rate = learning_rate(config, state.step, total)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    state.optimizer.step()
    state.step += 1
    decay = min(config.ema, state.step / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(averages, weights, 1 - decay)


def draw(config: Config, n: int, step: int) -> Draw:
    """The batch of iteration `step`, out of `n` patches."""
    return batch_indices(n, config.batch, config.seed, step), (config.seed, 1, step) if config.augment else None


def batch_indices(n: int, batch: int, seed: int, step: int) -> list[int]:
    """The patches of iteration `step`: each epoch is a permutation of its own, its incomplete last batch dropped."""
    epoch, place = divmod(step, n // batch)
    return _order(n, seed, epoch)[place * batch : (place + 1) * batch].tolist()


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    order = np.random.default_rng((seed, 0, epoch)).permutation(n)
    order.setflags(write=False)
    return order


def loss_of(config: Config, prediction: Tensor, gt: Tensor) -> Tensor:
    """L1, or the study's L1 + 0.1 · (1 - SSIM)."""
    loss = (prediction - gt).abs().mean()
    if config.loss == "l1+ssim":
        loss = loss + 0.1 * (1 - ssim(prediction, gt, dtype=torch.float32, check=False).mean())
    return loss


def validate(config: Config, run: Run, scenes: Data, state: State) -> dict[str, float | None]:
    """Measure raw and averaged weights on the validation scenes; the better ones become the run's best, if they are."""
    note: dict[str, float | None] = {}
    for which, model, suffix in (("last", state.model, ""), ("average", state.average, "_average")):
        model.eval()
        found = evaluate(Network(model), scenes.val, config.ratio, ["psnr", "sam", "ergas"])
        note |= {f"{metric}{suffix}": finite(found.mean(metric)) for metric in ("psnr", "sam", "ergas")}
        if found.mean("psnr") > state.best:
            state.best, state.best_step, state.best_of = found.mean("psnr"), state.step, which
            save_weights(run.path / "best.safetensors", model, step=state.step, weights=which, ratio=config.ratio)
    return note


def finish(config: Config, run: Run, scenes: Data, state: State, bar: bool = True) -> None:
    """Write the final weights and measure every method on the test scenes, whole.

    Peak memory is the GPU's, or that of this whole process (which holds the scenes too), since its start.
    """
    device = state.model.head.weight.device
    memory = {"training_mib": round(peak_bytes(device) / 2**20)}
    forget_peak(device)
    for which, model in (("last", state.model), ("average", state.average)):
        model.eval()
        save_weights(run.path / f"{which}.safetensors", model, step=state.step, weights=which, ratio=config.ratio)
    if not scenes.val:
        state.best_step, state.best_of = state.step, "last"
        save_weights(run.path / "best.safetensors", state.model, step=state.step, weights="last", ratio=config.ratio)
    methods: dict[str, Method] = {"last": Network(state.model), "average": Network(state.average)}
    if state.best_step != state.step:
        methods["best"] = Network(run.model("best").to(device))
    with tqdm(total=(2 + len(methods)) * len(scenes.test), desc="test scenes", disable=not bar) as progress:
        found = untrained(scenes, config.ratio, run.path.parent / ".baselines", progress)
        for name, method in methods.items():
            found[name] = evaluate(method, _counted(scenes.test, progress), config.ratio)
    found.setdefault("best", found[state.best_of])
    count = parameter_count(config.variant, scenes.train.n_bands, scenes.train.n_msi, config.dim)
    memory["test_mib"] = round(peak_bytes(device) / 2**20)
    write_json(
        run.path / "metrics.json",
        {
            "variant": config.variant,
            "dataset": config.dataset,
            "split": "test",
            "ratio": config.ratio,
            "best": {"step": state.best_step, "weights": state.best_of},
            "iterations": state.step,
            "seconds": round(state.seconds, 1),
            "memory": memory,
            "parameters": {"live": count.live, "reported": count.reported, "deployed": count.deployed},
            "methods": {name: evaluation.to_dict() for name, evaluation in found.items()},
        },
    )


def untrained(scenes: Data, ratio: int, folder: Path, progress: Any) -> dict[str, Evaluation]:
    """Bicubic upsampling and linear injection on the test scenes, measured once and kept in `folder` for other runs.

    What is kept names all that it depends on: every value of the test scenes, the fitted matrix, the degradation, the
    code of this package, the libraries. If any of them is another, or the file is damaged, both are measured anew.
    """
    methods: dict[str, Method] = {"bicubic": upsampled, "linear injection": scenes.injection}
    made_of = {
        "test": scenes.test_digest,
        "matrix": hashlib.sha256(scenes.injection.weight.tobytes()).hexdigest(),
        "degradation": asdict(scenes.degradation),
        "ratio": ratio,
        "code": _CODE,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
    }
    path = folder / f"{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]}.json"
    found = _read_evaluations(path, made_of, [scene.name for scene in scenes.test])
    if found is not None and set(found) == set(methods):
        progress.update(len(methods) * len(scenes.test))
        return found
    found = {name: evaluate(method, _counted(scenes.test, progress), ratio) for name, method in methods.items()}
    with suppress(KAError):  # where it cannot be kept, every run measures it
        write_json(
            path, {"made_of": made_of, "methods": {name: one.to_dict()["scenes"] for name, one in found.items()}}
        )
    return found


# All of the package, as imported: files that change while a run goes on are not what it measures with.
_CODE = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(ka.__file__).parent.rglob("*.py")))
).hexdigest()


def _read_evaluations(path: Path, made_of: dict[str, Any], scenes: list[str]) -> dict[str, Evaluation] | None:
    """What `untrained` wrote; None if it is not there, of something else, or damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = {
            name: {
                scene: {metric: math.nan if values[metric] is None else float(values[metric]) for metric in METRICS}
                for scene, values in of.items()
            }
            for name, of in kept["methods"].items()
        }
        fits = kept["made_of"] == made_of and all(list(of) == scenes for of in found.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return {name: Evaluation(of) for name, of in found.items()} if fits else None


def _counted(scenes: SceneSet, progress: Any) -> Iterator[Scene]:
    for scene in scenes:
        yield scene
        progress.update()


def images(run: Run, scenes: Data, scene: Scene) -> dict[str, np.ndarray]:
    """What each method makes of a loaded scene, `bands h w`: bicubic, linear injection, the run's best weights."""
    model = run.model()
    methods: dict[str, Method] = {
        "bicubic": upsampled,
        "linear injection": scenes.injection,
        model.row.name: Network(model),
    }
    return {name: method(scene).numpy() for name, method in methods.items()}


def pick_device(config: Config) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one.

    Raises:
        KAError: CUDA is asked for and absent.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device.startswith("cuda"):
        n = torch.cuda.device_count()
        if int(config.device.partition(":")[2] or 0) >= n:
            raise KAError(f"device={config.device!r} is not here ({n} CUDA devices are); choose auto or cpu")
    return torch.device(config.device)


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Reproducible CUDA kernels inside the block."""
    if not on:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
