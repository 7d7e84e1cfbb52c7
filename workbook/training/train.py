"""Training: `train(config)` makes a finished run folder of it, from wherever the folder stands.

A run killed at any moment goes on from its last checkpoint and ends with the same bits (on one machine and one number
of threads): all that is random is drawn from (seed, iteration).
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ka.data.scan import digest, response_digest, scan
from ka.errors import KAError
from ka.evaluation import Evaluation, evaluate, finite
from ka.inference import Network
from ka.models.checkpoints import load_weights
from workbook.paths import runs_folder
from workbook.training.config import Config
from workbook.training.devices import deterministic, pick_device, placed
from workbook.training.finish import finish
from workbook.training.ranks import ALONE, Ranks
from workbook.training.run import Run
from workbook.training.scenes import Data, load_data
from workbook.training.step import State, Step, fresh, initial_state, read_every

Watch = Callable[[list[dict[str, Any]]], None]
VALIDATED = ("psnr", "sam", "ergas", "rmse")
log = logging.getLogger("ka")


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

    What a user can mend (data, configuration, a folder in use, a full disk, a loss that is not finite) is a `KAError`;
    what was saved before stays.

    Args:
        config: the run. One that is finished already is returned as it is, also where its data are not here.
        scenes: `load_data(config)` if it is at hand, so that nothing is read twice.
        restart: throw away what the run folder holds and train anew.
        watch: called with the history after every validation (to draw curves).
        bar: show a progress bar.
        ranks: the processes that train it together, each of which calls this.
    """
    run = Run(run_folder(config))
    with ExitStack() as stack:
        try:
            ranks.check(config.batch)
            if ranks.first:
                stack.enter_context(run.lock())
                scenes = _begin(config, run, scenes, restart)
        except KAError as error:
            ranks.agree(str(error))
            raise
        ranks.agree()
        ranks.same(run.finished, f"run folder {run.path}")
        if not run.finished:
            device = ranks.device or pick_device(config.device)
            _train(config, run, scenes or load_data(config), device, watch, bar and ranks.first, ranks)
    return run


def run_folder(config: Config) -> Path:
    """`run_dir`, or one under `runs/` named after dataset, variant, dim and seed."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return runs_folder() / f"{config.dataset}-{config.name}-dim{config.dim}-seed{config.seed}"


def _begin(config: Config, run: Run, scenes: Data | None, restart: bool) -> Data | None:
    """Make a run folder ready; gives the scenes, None where the run is finished."""
    before = None if restart else run.config()
    if before is not None:
        run.check(config)
        if run.finished and config.init != before.init:
            run.begun_from(config)  # the same weights, elsewhere
        if run.finished and (before.data_root, before.srf) == (config.data_root, config.srf):
            return None
    try:
        scenes = scenes or load_data(config)
        seen, srf = digest((scenes.train, scenes.held_out, scenes.test)), response_digest(scenes.train)
    except KAError as error:
        if before is None or not run.finished:
            raise
        log.warning("a finished run is shown as it is: its data are not here (%s)", error)
        return None
    if before is not None:
        run.check_data(seen, srf)
        if run.finished:
            return None
    total = iterations(config, scenes)
    if config.warmup >= total and before is None:  # runs begun before this was refused go on
        cure = f"choose a warmup of at most {total - 1} (-p warmup {total // 10}) or more iterations"
        raise KAError(f"warmup={config.warmup} leaves nothing of a run of {total} iterations; {cure}")
    device, init = pick_device(config.device), run.begun_from(config, restart)
    # What is broken is found now, not when it is drawn, or after training.
    scan(*((scenes.train, scenes.held_out, scenes.test) if before is None else (scenes.test,)))
    if config.model is not None or config.init is not None:  # So is a network that cannot do what is asked
        model = fresh(config, scenes.train.n_bands, scenes.train.n_msi, device, _tried_sizes(scenes))
        if config.init is not None and Path(config.init).exists():
            load_weights(model, config.init)
    if restart:
        run.clear()
    run.start(config, seen, init, srf)
    return scenes


def iterations(config: Config, scenes: Data) -> int:
    """How long a run is."""
    if config.iterations is not None:
        return config.iterations
    return len(scenes.patches) // config.batch * (config.epochs or 0)


def _tried_sizes(scenes: Data) -> set[tuple[int, int]]:
    """Sides of validation and test scenes, less multiples of 64: what a network makes of odd ones shows on these."""
    step = math.lcm(64, scenes.test.ratio)
    sizes = {scene.gt.shape[-2:] for part in (scenes.held_out, scenes.test) for scene in part}
    return {(min(h, h % step + step), min(w, w % step + step)) for h, w in sizes}


def _train(
    config: Config, run: Run, scenes: Data, device: torch.device, watch: Watch | None, bar: bool, ranks: Ranks
) -> None:
    """Go on from the last checkpoint to the end; what is written, rank 0 writes alone."""
    total = iterations(config, scenes)
    sizes = (scenes.train.n_bands, scenes.train.n_msi)
    state = initial_state(config, *sizes, device, scenes.start, scenes.consistency, scenes.train.degradation)
    if (checkpoint := run.resume()) is not None:
        state.load(checkpoint, run.path / "checkpoint.pt")
    elif config.init is not None:
        state.begin_with(config.init)
    ranks.same(state.step, f"checkpoint in {run.path}")  # and all have read it before the first one writes
    state.ranks, state.network = ranks, ranks.wrap(state.model)
    step = Step(config, total, placed(scenes.patches, device), scenes.consistency)
    history = run.cut_history(state.step) if ranks.first else []
    progress = tqdm(
        total=total, initial=state.step, desc=config.variant, unit="it", disable=not bar, dynamic_ncols=True
    )
    with deterministic(config.deterministic and device.type == "cuda"), progress:
        saved = clock = time.monotonic()
        while state.step < total:
            validation = min(total, (state.step // config.eval_every + 1) * config.eval_every)
            before = state.step
            loss = step(state, min(read_every(device), validation - before))
            now = time.monotonic()
            state.seconds, clock = state.seconds + now - clock, now
            progress.update(state.step - before)
            if state.step == validation and ranks.first:
                history.append(_validate(run, scenes, state, step.rate(state.step - 1)))
                run.save(state.to_dict())
                if watch is not None:
                    watch(history)
                saved = clock = time.monotonic()
            elif now - saved > config.checkpoint_every and ranks.first:
                run.save(state.to_dict())
                saved = time.monotonic()
            psnr = history[-1].get("psnr_average") if history else None
            shown = {"loss": f"{loss:.5f}"} | ({} if psnr is None else {"PSNR": f"{psnr:.2f} dB"})
            progress.set_postfix(shown, refresh=False)
    if ranks.first:
        finish(run, scenes, state, bar)


def _quality(evaluation: Evaluation) -> float:
    """What weights are chosen by, always a number: the PSNR; of RMSE, where that is undefined or infinite."""
    psnr = evaluation.mean("psnr")
    return psnr if math.isfinite(psnr) else -20 * math.log10(max(evaluation.mean("rmse"), 1e-9))


def _validate(run: Run, scenes: Data, state: State, rate: float) -> dict[str, Any]:
    """Note how the run stands, and measure raw and averaged weights: the better ones become its best, if they are."""
    loss = state.loss_sum / state.loss_count
    note: dict[str, Any] = {"step": state.step, "seconds": round(state.seconds, 2), "lr": rate, "loss": loss}
    weights = (("last", state.model, ""), ("average", state.average, "_average")) if scenes.val else ()
    for which, model, suffix in weights:
        evaluation = evaluate(Network(model.eval()), scenes.val, list(VALIDATED))
        note |= {f"{metric}{suffix}": finite(evaluation.mean(metric)) for metric in VALIDATED}
        if (quality := _quality(evaluation)) > state.best or not math.isfinite(state.best):
            state.best, state.best_step, state.best_of = quality, state.step, which
            run.save_model("best", model, state.step, which, scenes.test)
    state.loss_sum, state.loss_count = 0.0, 0
    run.note(**note)  # before the checkpoint: a line too many is cut when the run goes on, one too few is lost
    return note
