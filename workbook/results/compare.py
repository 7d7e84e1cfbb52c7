"""How differences between models are judged: least squares of row + seed, Student's t, Holm's procedure.

docs/intervals.md says why, with sources and measured error rates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy import stats

Values = Float[np.ndarray, "seeds scenes"]


@dataclass(frozen=True)
class Difference:
    """A mean difference, or a sum of weighted means, with its interval."""

    value: float  # NaN where it is undefined
    low: float | None = None  # the interval; None where neither scenes nor seeds tell of chance
    high: float | None = None
    covers: str = ""  # what the interval covers: `scenes and seeds`, `scenes`, `seeds`, or nothing
    equal: bool = False  # surely within the margin that was asked for
    refused: bool = False  # no seeds connect these models: nothing tells a model from its seeds
    by_scene: Sequence[float] = ()  # what it is the mean of

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, and zero is outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def decided(self) -> bool:
        """Whether its sign is sure over scenes and seeds; of scenes alone, the next seed may turn it."""
        return self.covers == "scenes and seeds" and self.excludes_zero


@dataclass(frozen=True)
class Estimate:
    """A contrast before it is judged beside others."""

    value: float
    error: float = 0.0  # standard error
    freedom: float = 0.0  # its degrees of freedom (Satterthwaite); 0 where nothing tells of chance
    covers: str = ""
    refused: bool = False
    by_scene: Sequence[float] = ()
    of_seeds: Sequence[tuple[float, float]] = ()  # squared errors from seeds that `error` holds, with their freedom

    @classmethod
    def of(cls, gaps: Float[np.ndarray, " scenes"], of_seeds: Sequence[tuple[float, float]]) -> "Estimate":
        """The mean of gaps: its error over scenes, and errors over seeds (squared, 0 degrees where nothing is known).

        Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2, 1946.
        """
        n = len(gaps)
        of_scenes = (float(gaps.var(ddof=1)) / n if n > 1 else 0.0, n - 1)
        parts = [of_scenes, *of_seeds]
        squared = sum(part for part, _ in parts)
        spread = sum(part**2 / degrees for part, degrees in parts if degrees)
        freedom = squared**2 / spread if spread else float(sum(degrees for _, degrees in parts))
        known = {"scenes": n > 1, "seeds": all(degrees for _, degrees in of_seeds)}
        covers = " and ".join(what for what, there in known.items() if there)
        return cls(float(gaps.mean()), math.sqrt(squared), freedom, covers, False, gaps.tolist(), tuple(of_seeds))


@dataclass(frozen=True, eq=False)
class Fit:
    """Least squares of value = row + seed over all runs of a protocol, scene by scene: a seed moves all rows alike."""

    models: Sequence[str]
    design: Float[np.ndarray, "runs columns"]  # a column per model, then one per seed but the first
    inverse: Float[np.ndarray, "columns runs"]  # its pseudo-inverse
    values: Float[np.ndarray, "runs scenes"]

    @classmethod
    def of(cls, values: Mapping[str, Values], seeds: Mapping[str, Sequence[int]]) -> "Fit":
        """Fit one metric of all models; those with undefined or infinite values take no part.

        Args:
            values: model → seeds × scenes, the scenes in one order for all.
            seeds: model → its seeds, in the order of its rows.
        """
        models = [model for model, rows in values.items() if rows.size and np.isfinite(rows).all()]
        runs = [(model, seed) for model in models for seed in seeds[model]]
        later = sorted({seed for _, seed in runs})[1:]
        columns = [[model == other for model, _ in runs] for other in models]
        columns += [[seed == other for _, seed in runs] for other in later]
        design = np.array(columns, dtype=np.float64).reshape(len(columns), len(runs)).T
        return cls(models, design, np.linalg.pinv(design), np.concatenate([values[m] for m in models] or [design]))

    def contrast(self, weights: Mapping[str, float], own: bool = False) -> Estimate:
        """Σ weight · (mean of a model), the weights adding up to zero: its error over scenes and over seeds.

        `own`: with what is left of these models' own runs, where that is more than what is left of all runs.
        """
        if not set(weights) <= set(self.models):
            return Estimate(math.nan)
        column = np.array([weights.get(model, 0.0) for model in self.models])
        column = np.concatenate([column, np.zeros(self.design.shape[1] - len(column))])
        of_runs = column @ self.inverse
        if np.abs(of_runs @ self.design - column).max() > 1e-8:
            return Estimate(math.nan, refused=True)
        means = self.values.mean(1)
        rest = means - self.design @ (self.inverse @ means)
        freedom = float(len(means) - np.linalg.matrix_rank(self.design))
        variance = float(rest @ rest) / freedom if freedom else 0.0
        if own and freedom:
            theirs = self.design[:, np.flatnonzero(column)].any(axis=1)
            left = float((1 - np.einsum("r c, c r -> r", self.design, self.inverse))[theirs].sum())
            squares = float(rest[theirs] @ rest[theirs])
            if left > 0.5 and squares / left > variance:  # a row with one seed has nothing left
                variance, freedom = squares / left, left
        return Estimate.of(of_runs @ self.values, [(variance * float(of_runs @ of_runs), freedom)])


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """One contrast over the scenes of several parts of a data set, each tested by runs of its own.

    Every scene counts once, so a part counts by its number of scenes. Runs of two parts share no seed (see
    `workbook.results.stored.by_test`), so the parts' errors over seeds add up.
    """
    if len(estimates) == 1 or any(not estimate.by_scene for estimate in estimates):
        return next((estimate for estimate in estimates if not estimate.by_scene), estimates[0])
    gaps = np.concatenate([estimate.by_scene for estimate in estimates])
    shares = [len(estimate.by_scene) / len(gaps) for estimate in estimates]
    of_seeds = [
        (share**2 * squared, degrees)
        for share, estimate in zip(shares, estimates, strict=True)
        for squared, degrees in estimate.of_seeds
    ]
    return Estimate.of(gaps, of_seeds)


def judge(estimates: Sequence[Estimate], alpha: float = 0.05, margin: float | None = None) -> list[Difference]:
    """Judge contrasts at once: each with the interval at whose level Holm's procedure tests it.

    An interval leaves out zero exactly where Holm decides that there is a difference: the chance of any false decision
    among all contrasts is at most `alpha`. With a `margin`, two one-sided tests each, also by Holm, say which contrasts
    are equal within it, again with at most `alpha` for any false one.
    """
    judged = [i for i, estimate in enumerate(estimates) if estimate.freedom and math.isfinite(estimate.value)]
    _, levels = _holm([_p(estimates[i], 0.0) for i in judged], alpha)
    equal = np.zeros_like(levels, dtype=bool)
    if margin is not None:
        equal = _holm([_p(estimates[i], margin) for i in judged], alpha)[0]
    differences = [Difference(e.value, refused=e.refused, by_scene=e.by_scene) for e in estimates]
    for i, level, within in zip(judged, levels, equal, strict=True):
        estimate = estimates[i]
        half = float(stats.t.isf(level / 2, estimate.freedom)) * estimate.error
        low, high = estimate.value - half, estimate.value + half
        differences[i] = replace(differences[i], low=low, high=high, covers=estimate.covers, equal=bool(within))
    return differences


def _p(estimate: Estimate, margin: float) -> float:
    """Of a difference of zero (two-sided), or with a margin above 0 of one that is at least as large."""
    distance = margin - abs(estimate.value) if margin else abs(estimate.value)
    if not estimate.error:
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / estimate.error, estimate.freedom)) * (1 if margin else 2)


def _holm(p: Sequence[float], alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Which hypotheses Holm's step-down procedure rejects, and the level at which each is tested."""
    rejected, levels = np.zeros(len(p), dtype=bool), np.full(len(p), alpha)
    for step, i in enumerate(np.argsort(p, kind="stable")):
        level = alpha / (len(p) - step)
        if p[i] > level:
            levels[~rejected] = level
            break
        rejected[i], levels[i] = True, level
    return rejected, levels


def interval(difference: Difference | None) -> str:
    """A difference with its interval, as `+0.123 [−0.045, +0.291]`; a dash for what is not there."""
    if difference is None:
        return "–"
    if difference.refused:
        return "no seeds in common"
    if not math.isfinite(difference.value):
        return "undefined"
    if difference.low is None or difference.high is None:
        return f"{_signed(difference.value)} –"
    return f"{_signed(difference.value)} [{_signed(difference.low)}, {_signed(difference.high)}]"


def _signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text[1:] == "0.000" else text
