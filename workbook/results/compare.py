"""How a model's difference to the baseline is judged: its interval, over scenes and seeds.

The squared standard error is that of scenes (paired) plus that of seeds (paired where all compared models have the same
ones, else pooled over all models). The interval is difference ± q · SE with q from a symmetric bootstrap-t, at a level
corrected for the number of comparisons: docs/intervals.md, with sources.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, "seeds scenes"]


@dataclass(frozen=True)
class Difference:
    """A mean difference to the baseline with its interval."""

    value: float  # this model minus the baseline
    low: float | None = None  # the interval; None where scenes and seeds are too few for one
    high: float | None = None
    covers: str = ""  # what the interval covers: `scenes and seeds`, `scenes`, `seeds`, or nothing

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, and zero is outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class SeedNoise:
    """Variance of a mean difference that is due to seeds; 0 degrees of freedom where no seeds tell."""

    variance: float = 0.0
    freedom: int = 0


def seed_noise(
    weights: Mapping[str, float], values: Mapping[str, Values], seeds: Mapping[str, tuple[int, ...]]
) -> SeedNoise:
    """How far seeds move Σ weight · (mean of a model), judged from all models (see docs/intervals.md).

    Args:
        weights: model → its weight; the models have values, and the weights add up to zero: +1 and -1 for a difference.
        values: model → one metric, seeds × scenes; those with undefined values tell nothing.
        seeds: model → its seeds, in the order of its rows.
    """
    means = {model: rows.mean(1) for model, rows in values.items() if rows.size and np.isfinite(rows).all()}
    if not set(weights) <= set(means):
        return SeedNoise()
    first, *others = (seeds[name] for name in weights)
    if len(first) > 1 and all(other == first for other in others):
        blocks = np.array([mean for model, mean in means.items() if seeds[model] == first])
        rest = blocks - blocks.mean(1, keepdims=True) - blocks.mean(0) + blocks.mean()
        freedom = (blocks.shape[0] - 1) * (blocks.shape[1] - 1)
    else:
        rest = np.concatenate([mean - mean.mean() for mean in means.values()])
        freedom = sum(len(mean) - 1 for mean in means.values())
    if not freedom:
        return SeedNoise()
    variance = float((rest**2).sum()) / freedom
    return SeedNoise(variance * sum(weight**2 / len(seeds[name]) for name, weight in weights.items()), freedom)


def difference(ours: Values, theirs: Values, noise: SeedNoise, alpha: float, draws: int = 20_000) -> Difference:
    """Mean difference ours - theirs with its (1 - alpha) interval (docs/intervals.md).

    Args:
        ours, theirs: one metric, seeds × scenes; the scenes are the same in the same order.
        noise: of the seeds, from `seed_noise`.
        alpha: chance to miss the true difference, in (0, 1).
        draws: of the bootstrap, from a generator that starts anew for each difference.
    """
    gaps = ours.mean(0) - theirs.mean(0)
    value, n = float(gaps.mean()), len(gaps)
    if not math.isfinite(value) or (n == 1 and noise.freedom < 2):
        return Difference(value)
    variance = noise.variance + (float(gaps.var(ddof=1)) / n if n > 1 else 0.0)
    half = critical(gaps, noise, alpha, draws) * math.sqrt(variance) if variance > 0 else 0.0
    if not math.isfinite(half):
        return Difference(value)
    covers = [what for what, covered in (("scenes", n > 1), ("seeds", noise.freedom > 0)) if covered]
    return Difference(value, value - half, value + half, " and ".join(covers))


def critical(gaps: Float[np.ndarray, " scenes"], noise: SeedNoise, alpha: float, draws: int) -> float:
    """The (1 - alpha) quantile of |t*|, how many standard errors a bootstrap's mean lies off the mean of `gaps`.

    Infinite where too many draws hold a single scene again and again (at four scenes or fewer, for small alpha).
    """
    rng, n = np.random.default_rng(0), len(gaps)
    off, variance = np.zeros(draws), np.zeros(draws)
    if n > 1:
        drawn = gaps[rng.integers(n, size=(draws, n))]
        off += drawn.mean(1) - gaps.mean()
        variance += drawn.var(1, ddof=1) / n
    if noise.freedom:
        off += math.sqrt(noise.variance) * rng.standard_normal(draws)
        variance += noise.variance * rng.chisquare(noise.freedom, draws) / noise.freedom
    error = np.sqrt(variance)
    t = np.divide(np.abs(off), error, out=np.full(draws, np.inf), where=error > 1e-9 * np.abs(off))
    return float(np.quantile(t, 1 - alpha, method="higher"))


def interval(difference: Difference | None) -> str:
    """A difference with its interval, as `+0.123 [−0.045, +0.291]`; a dash for what is not there."""
    if difference is None:
        return "–"
    if not math.isfinite(difference.value):
        return "undefined"
    if difference.low is None or difference.high is None:
        return f"{_signed(difference.value)} –"
    return f"{_signed(difference.value)} [{_signed(difference.low)}, {_signed(difference.high)}]"


def _signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text[1:] == "0.000" else text
