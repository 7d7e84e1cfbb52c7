"""Which weights of a run are kept: the study's rule, and what validation chooses instead."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def running_mean(losses: Sequence[float], resumed: int = 0) -> Float[np.ndarray, " n"]:
    """Mean of all losses of the process so far; a process that is resumed after `resumed` of them begins anew."""
    spans = [np.asarray(losses[:resumed]), np.asarray(losses[resumed:])]
    return np.concatenate([np.cumsum(span) / np.arange(1, len(span) + 1) for span in spans])


def called_best(losses: Sequence[float]) -> Bool[np.ndarray, " n"]:
    """The study's rule: an epoch is "best" when the running mean of the training loss is the lowest so far."""
    mean = running_mean(losses)
    return mean < np.concatenate([[np.inf], np.minimum.accumulate(mean)[:-1]])
