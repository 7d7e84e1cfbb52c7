"""Which weights of a run are kept: the study's rule, and what validation chooses instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ka.errors import KAError


def running_mean(losses: Sequence[float], resumed: int = 0) -> Float[np.ndarray, " n"]:
    """Mean of all losses of the process so far; a process that is resumed after `resumed` of them begins anew."""
    spans = [np.asarray(losses[:resumed]), np.asarray(losses[resumed:])]
    return np.concatenate([np.cumsum(span) / np.arange(1, len(span) + 1) for span in spans])


def called_best(losses: Sequence[float]) -> Bool[np.ndarray, " n"]:
    """The study's rule: an epoch is "best" when the running mean of the training loss is the lowest so far."""
    mean = running_mean(losses)
    return mean < np.concatenate([[np.inf], np.minimum.accumulate(mean)[:-1]])


@dataclass(frozen=True)
class Kept:
    """Validation PSNR (dB) of the weights that each rule would keep of a run.

    Attributes:
        last: the raw weights of the last measurement (what the study's table took).
        running_mean: the raw weights that the running mean of the training loss called "best" last.
        validated: the raw weights that validation would choose.
        average: the averaged weights of the last measurement.
        step: root mean square change of the raw weights' PSNR from one measurement to the next, second half.
        step_average: the same of the averaged weights.
    """

    last: float
    running_mean: float
    validated: float
    average: float
    step: float
    step_average: float

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
    """What the rules for choosing weights make of a run's history (see `Kept`).

    Args:
        history: of a run with validation, as `Result.history`.

    Raises:
        KAError: fewer than four measurements.
    """
    if len(history) < 4:
        raise KAError(f"a history of {len(history)} measurements shows no jitter; at least 4 are expected")
    raw, average = (np.array([note[key] for note in history]) for key in ("psnr", "psnr_average"))
    half = len(raw) // 2
    best = np.flatnonzero(called_best([note["loss"] for note in history]))
    rms = [float(np.sqrt(np.mean(np.diff(values[half:]) ** 2))) for values in (raw, average)]
    return Kept(float(raw[-1]), float(raw[best[-1]]), float(raw.max()), float(average[-1]), *rms)
