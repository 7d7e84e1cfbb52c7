"""Point 8: which weights the study kept; a small training at a constant rate, and what our loader refuses."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ka.data import SceneSet
from ka.errors import KAError
from ka.evaluation import evaluate
from ka.inference import Network
from ka.methods.injection import Bicubic
from ka.models.checkpoints import load_checkpoint
from ka.models.psrt import build
from workbook.audit.trials import seeded
from workbook.training.config import Config
from workbook.training.devices import pick_device
from workbook.training.scenes import Data
from workbook.training.step import Step, initial_state


def constant_rate(config: Config, scenes: Data, every: int = 5) -> list[dict[str, float]]:
    """Train in memory, without a run folder; every so many iterations, measure raw and averaged weights.

    Gives, per measurement: step, mean training loss since the last, validation PSNR (dB) of the raw weights (psnr) and
    of the averaged ones (psnr_average). A length in epochs, or no validation scene, is a `KAError`.
    """
    if config.iterations is None or not scenes.val:
        raise KAError("this small training wants iterations and validation scenes; give iterations, not epochs")
    sizes, device = (scenes.train.n_bands, scenes.train.n_msi), pick_device(config.device)
    state = initial_state(config, *sizes, device, scenes.start, scenes.consistency, scenes.train.degradation)
    one_step = Step(config, config.iterations, scenes.patches, scenes.consistency)
    history = []
    for step in range(every, config.iterations + 1, every):
        losses = [one_step(state) for _ in range(every)]
        networks = [Network(model.eval()) for model in (state.model, state.average)]
        raw, average = (evaluate(network, scenes.val, ["psnr"]).mean("psnr") for network in networks)
        history.append({"step": step, "loss": float(np.mean(losses)), "psnr": raw, "psnr_average": average})
    return history


def running_mean(losses: Sequence[float], resumed: int = 0) -> Float[np.ndarray, " n"]:
    """Mean of all losses of the process so far; a process that is resumed after `resumed` of them begins anew."""
    spans = [np.asarray(losses[:resumed]), np.asarray(losses[resumed:])]
    return np.concatenate([np.cumsum(span) / np.arange(1, len(span) + 1) for span in spans])


def called_best(losses: Sequence[float]) -> Bool[np.ndarray, " n"]:
    """The study's rule: an epoch is "best" when the running mean of the training loss is the lowest so far."""
    mean = running_mean(losses)
    return mean < np.concatenate([[np.inf], np.minimum.accumulate(mean)[:-1]])


class Kept(NamedTuple):
    """Validation PSNR (dB) of the weights that each rule would keep of a run."""

    last: float  # the raw weights of the last measurement (what the study's table took)
    running_mean: float  # the raw weights that the running mean of the training loss called "best" last
    validated: float  # the raw weights that validation would choose
    average: float  # the averaged weights of the last measurement
    step: float  # root mean square change of the raw weights' PSNR between measurements, second half
    step_average: float  # the same of the averaged weights

    def rows(self) -> list[dict[str, str]]:
        values = {
            "last raw weights (the study's row)": self.last,
            "called “best” by the running mean of the loss": self.running_mean,
            "chosen by validation, raw": self.validated,
            "last averaged weights": self.average,
            "change from one measurement to the next, raw (rms, dB)": self.step,
            "the same, averaged": self.step_average,
        }
        return [{"kept": what, "validation PSNR (dB)": f"{value:.2f}"} for what, value in values.items()]


def kept(history: Sequence[Mapping[str, float]]) -> Kept:
    """What the rules for choosing weights make of the history of a run with validation (`Result.history`). Fewer than
    four measurements are a `KAError`.
    """
    if len(history) < 4:
        raise KAError(f"a history of {len(history)} measurements shows no jitter; at least 4 are expected")
    raw, average = (np.array([note[key] for note in history]) for key in ("psnr", "psnr_average"))
    half = len(raw) // 2
    best = np.flatnonzero(called_best([note["loss"] for note in history]))
    rms = [float(np.sqrt(np.mean(np.diff(values[half:]) ** 2))) for values in (raw, average)]
    return Kept(float(raw[-1]), float(raw[best[-1]]), float(raw.max()), float(average[-1]), *rms)


class Selection(NamedTuple):
    """What the study's rule makes of the second half of a history, in dB where not a share."""

    called_best: float  # share of the measurements that it calls "best"
    below: float  # how far the worst of these lies below the best raw weights so far
    tolerance: float  # how many times the late losses (last quarter) a loss can be and still be called "best"
    fall: float  # largest fall of validation PSNR from one measurement to the next, of raw weights
    fall_average: float  # and of averaged ones


def selection(history: Sequence[Mapping[str, float]]) -> Selection:
    """Judge a history of `constant_rate`. A new loss lowers the mean of all losses if, and only if, it lies below that
    mean: this is all that the rule asks.
    """
    losses = [note["loss"] for note in history]
    half = len(history) // 2
    raw, average = (np.array([note[key] for note in history]) for key in ("psnr", "psnr_average"))
    best = called_best(losses)[half:]
    below = (np.maximum.accumulate(raw) - raw)[half:][best]
    tolerance = running_mean(losses)[-1] / np.mean(losses[len(losses) * 3 // 4 :])
    falls = [float(-np.diff(values[half:]).min(initial=0.0)) for values in (raw, average)]
    return Selection(float(best.mean()), float(below.max(initial=0.0)), float(tolerance), *falls)


def refusals() -> dict[str, str]:
    """What our loader says of checkpoints that do not fit; the study's code only logged them."""
    with seeded(0):
        kav6, kav7 = (build(name, dim=8).state_dict() for name in ("kav6", "kav7"))
    lacking = {key: value for key, value in kav6.items() if key != "blocks.0.0.layers.0.ka.fusion.weight"}
    sources: dict[str, Any] = {"no file": "results/PSRT_KAv6/2000.pth.tar", "a weight is missing": lacking}
    said = {}
    for what, source in (sources | {"weights of another variant": kav7}).items():
        try:
            load_checkpoint(source, "kav6")
        except KAError as error:
            said[what] = str(error)
    return said


def untrained(scenes: SceneSet, dim: int = 48) -> tuple[float, float]:
    """PSNR in dB of (bicubic upsampling, KAv6 with random weights as published) on some scenes."""
    with seeded(0):
        model = build("kav6", scenes.n_bands, scenes.n_msi, dim).eval()
    bicubic, network = (evaluate(method, scenes, ["psnr"]).mean("psnr") for method in (Bicubic(), Network(model)))
    return bicubic, network
