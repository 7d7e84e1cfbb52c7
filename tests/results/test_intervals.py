"""Intervals that keep their promise: against scipy, by hand, and in null simulations."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from workbook.results.compare import Difference, Estimate, Fit, Values, interval, judge, pooled

PAIR = {"a": 1.0, "b": -1.0}


def alone(estimate: Estimate, alpha: float = 0.05, margin: float | None = None) -> Difference:
    (difference,) = judge([estimate], alpha, margin)
    return difference


def test_one_seed_is_the_paired_t_test(rng: np.random.Generator) -> None:
    values = {"a": rng.normal(41, 2, (1, 11)), "b": rng.normal(40, 2, (1, 11))}
    estimate = Fit.of(values, {"a": (0,), "b": (0,)}).contrast(PAIR)
    expected = stats.ttest_rel(values["a"][0], values["b"][0]).confidence_interval(0.95)
    difference = alone(estimate)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert (difference.covers, estimate.freedom) == ("scenes", pytest.approx(10))


def test_one_scene_is_the_paired_t_test_over_seeds(rng: np.random.Generator) -> None:
    values = {"a": rng.normal(41, 2, (4, 1)), "b": rng.normal(40, 2, (4, 1))}
    difference = alone(Fit.of(values, dict.fromkeys("ab", (0, 1, 2, 3))).contrast(PAIR))
    expected = stats.ttest_rel(values["a"][:, 0], values["b"][:, 0]).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert difference.covers == "seeds"


def test_what_a_seed_does_to_all_rows_cancels(rng: np.random.Generator) -> None:
    """A row that was run with a bad seed alone is not blamed for it: three seeds of the others tell how bad it is."""
    own = {"a": rng.normal(0, 0.01, (1, 5)), "b": rng.normal(0, 0.01, (3, 5)), "c": rng.normal(0, 0.01, (3, 5))}
    seeds = {"a": (10,), "b": (10, 11, 12), "c": (10, 11, 12)}
    bad = {10: -5.0, 11: 2.0, 12: 3.0}
    moved = {m: rows + np.array([[bad[seed]] for seed in seeds[m]]) for m, rows in own.items()}
    plain, blocked = (Fit.of(values, seeds).contrast(PAIR) for values in (own, moved))
    assert (blocked.value, blocked.error) == pytest.approx((plain.value, plain.error))
    assert abs(blocked.value) < 0.05


def test_the_fit_by_hand() -> None:
    """Rows 11, 15 and 10, 12 at seeds 0 and 1: means 13 and 11, residuals ±½, one degree of freedom."""
    values = {"a": np.array([[11.0], [15.0]]), "b": np.array([[10.0], [12.0]])}
    estimate = Fit.of(values, dict.fromkeys("ab", (0, 1))).contrast(PAIR)
    assert (estimate.value, estimate.error, estimate.freedom) == pytest.approx((2, 1, 1))
    both = Fit.of({name: np.hstack([rows, rows + 1]) for name, rows in values.items()}, dict.fromkeys("ab", (0, 1)))
    assert both.contrast(PAIR).error == pytest.approx(1)  # the scenes' gaps are equal, so they add nothing


def test_degrees_of_freedom_are_satterthwaites(rng: np.random.Generator) -> None:
    values = {name: rng.normal(40, 1, (3, 6)) for name in "abc"}
    seeds = dict.fromkeys("abc", (0, 1, 2))
    estimate = Fit.of(values, seeds).contrast(PAIR)
    gaps = values["a"].mean(0) - values["b"].mean(0)
    means = np.array([rows.mean(1) for rows in values.values()])
    rest = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
    scenes, of_seeds = gaps.var(ddof=1) / 6, (rest**2).sum() / 4 * 2 / 3
    assert estimate.error**2 == pytest.approx(scenes + of_seeds)
    assert estimate.freedom == pytest.approx((scenes + of_seeds) ** 2 / (scenes**2 / 5 + of_seeds**2 / 4))
    assert estimate.covers == "scenes and seeds"


def test_parts_of_a_data_set_are_pooled_by_scenes(rng: np.random.Generator) -> None:
    """Six scenes with one pair of seeds and two with another: a mean over eight scenes, the seeds' errors by 6:2."""
    values = [{name: rng.normal(40, 1, (2, n)) for name in "abc"} for n in (6, 2)]
    fits = [Fit.of(part, dict.fromkeys("abc", (i, i + 1))) for i, part in enumerate(values)]
    parts = [fit.contrast(PAIR) for fit in fits]
    gaps = np.concatenate([part["a"].mean(0) - part["b"].mean(0) for part in values])
    both = pooled(parts)
    (first, _), (second, _) = (part.of_seeds[0] for part in parts)
    terms = [(gaps.var(ddof=1) / 8, 7), (first * 0.75**2, 2), (second * 0.25**2, 2)]
    assert both.value == pytest.approx(gaps.mean())
    assert both.error**2 == pytest.approx(sum(squared for squared, _ in terms))
    assert both.freedom == pytest.approx(both.error**4 / sum(squared**2 / f for squared, f in terms))
    assert (both.by_scene, both.covers) == (pytest.approx(gaps), "scenes and seeds")
    assert pooled(parts[:1]) == parts[0]
    lone = Fit.of({name: rows[:1] for name, rows in values[1].items()}, dict.fromkeys("abc", (2,))).contrast(PAIR)
    assert pooled([parts[0], lone]).covers == "scenes"  # nothing tells of the second part's seeds
    assert interval(alone(pooled([parts[0], Estimate(float("nan"))]))) == "undefined"


def test_what_no_seeds_connect_is_refused(rng: np.random.Generator) -> None:
    """Two models, two seeds: the difference may be the seed's. A third one that has both connects them."""
    values = {"a": rng.normal(size=(1, 5)), "b": rng.normal(size=(1, 5)), "c": rng.normal(size=(2, 5))}
    seeds = {"a": (0,), "b": (1,), "c": (0, 1)}
    apart = Fit.of({name: values[name] for name in "ab"}, seeds).contrast(PAIR)
    assert apart.refused
    assert interval(alone(apart)) == "no seeds in common"
    assert not Fit.of(values, seeds).contrast(PAIR).refused


def test_undefined_values_have_no_interval() -> None:
    values = {"a": np.array([[1.0, np.nan]]), "b": np.array([[1.0, 2.0]])}
    estimate = Fit.of(values, {"a": (0,), "b": (0,)}).contrast(PAIR)
    assert interval(alone(estimate)) == "undefined"
    single = Fit.of({"a": np.array([[2.0]]), "b": np.array([[1.0]])}, {"a": (0,), "b": (0,)}).contrast(PAIR)
    assert interval(alone(single)) == "+1.000 –"


def test_holm_by_hand() -> None:
    """Four contrasts with p = 0.005, 0.03, 0.02 and 0.9: levels α/4, then α/3 = 0.0167, where it stops."""
    p = (0.005, 0.03, 0.02, 0.9)
    estimates = [Estimate(float(stats.t.isf(each / 2, 9)), 1.0, 9.0, "scenes") for each in p]
    judged = judge([*estimates, Estimate(float("nan"))])
    assert [difference.excludes_zero for difference in judged] == [True, False, False, False, False]
    halves = [d.high - d.value for d in judged[:4] if d.high is not None]
    assert halves == pytest.approx([stats.t.isf(0.05 / 4 / 2, 9)] + 3 * [stats.t.isf(0.05 / 3 / 2, 9)])
    sure = judge([replace(estimate, value=estimate.value + 3) for estimate in estimates[:2]])
    assert [difference.excludes_zero for difference in sure] == [True, True]


def test_equal_is_two_one_sided_tests() -> None:
    """Within ±0.1 by t = (0.1 − |d|) / SE; a decided difference may be equal within the margin too."""
    error = 0.02
    for value, expected in ((0.0, True), (0.06, True), (-0.06, True), (0.07, False), (0.2, False)):
        p = stats.t.sf((0.1 - abs(value)) / error, 12)
        assert alone(Estimate(value, error, 12, "scenes"), margin=0.1).equal == (p <= 0.05) == expected
    assert not alone(Estimate(0.0, error, 12, "scenes")).equal
    many = judge([Estimate(0.06, error, 12, "scenes")] * 20, margin=0.1)
    assert not any(difference.equal for difference in many)


def tables(
    rng: np.random.Generator, models: str, seeds: int, scenes: int, of_scenes: float, of_seeds: float, shift: float = 0
) -> tuple[dict[str, Values], dict[str, Sequence[int]]]:
    """Values of models that differ by `shift` from the first; a seed moves all alike, and each a little by itself."""
    scene, block = rng.normal(40, 5, (1, scenes)), rng.normal(0, 0.2, (seeds, 1))
    values = {}
    for name in models:
        own = rng.normal(0, of_scenes, (1, scenes)) + rng.normal(0, of_seeds, (seeds, 1))
        noise = rng.normal(0, 0.1 if of_scenes else 0, (seeds, scenes))
        values[name] = scene + block + own + noise + (shift if name != models[0] else 0)
    return values, dict.fromkeys(models, tuple(range(seeds)))


NULLS = [(11, 1, 1.0, 0.0), (11, 3, 1.0, 0.3), (11, 3, 0.1, 1.0), (1, 3, 0.0, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize(("scenes", "seeds", "of_scenes", "of_seeds"), NULLS)
def test_null_tables_show_a_difference_in_one_of_twenty(
    rng: np.random.Generator, scenes: int, seeds: int, of_scenes: float, of_seeds: float
) -> None:
    """Six models without a true difference, 1,000 tables: at most 5 % (and chance: 3 sigma) show one."""
    repeats, false = 1000, 0
    for _ in range(repeats):
        fit = Fit.of(*tables(rng, "abcdef", seeds, scenes, of_scenes, of_seeds))
        judged = judge([fit.contrast({name: 1, "a": -1}) for name in "bcdef"])
        false += any(difference.excludes_zero for difference in judged)
    assert 0.01 < false / repeats < 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5


@pytest.mark.slow
def test_models_a_margin_apart_are_called_equal_in_one_of_twenty(rng: np.random.Generator) -> None:
    """Differences of exactly the margin: at most 5 % of the tables call any of them equal."""
    repeats, false = 1000, 0
    for _ in range(repeats):
        fit = Fit.of(*tables(rng, "abcdef", 3, 11, 0.05, 0.02, shift=0.1))
        judged = judge([fit.contrast({name: 1, "a": -1}) for name in "bcdef"], margin=0.1)
        false += any(difference.equal for difference in judged)
    assert 0.005 < false / repeats < 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5


def undecided(judged: Sequence[Difference]) -> list[int]:
    return [i for i, difference in enumerate(judged) if not (difference.excludes_zero or difference.equal)]


def looked_at_twice(
    rng: np.random.Generator, models: str, of_scenes: float, of_seeds: float, shift: float = 0, crosswise: bool = False
) -> list[Difference]:
    """Three seeds of every row, and five of those in comparisons with the first that three leave undecided.

    With `crosswise`, what five leave undecided is asked a third time: of two more parts of ten scenes, two seeds each.
    """
    values, _ = tables(rng, models, 9, 31, of_scenes, of_seeds, shift)
    contrasts = [{name: 1, models[0]: -1} for name in models[1:]]

    def fit(counts: dict[str, int], first: int = 0, scenes: slice = slice(11)) -> Fit:
        seeds = {name: range(first, first + count) for name, count in counts.items()}
        return Fit.of({name: values[name][list(of), scenes] for name, of in seeds.items()}, seeds)

    def judged(counts: dict[str, int]) -> list[Difference]:
        few = fit(counts)
        return judge([few.contrast(contrast) for contrast in contrasts], margin=0.1)

    again = undecided(judged(dict.fromkeys(models, 3)))
    counts = {name: 5 if again and (i == 0 or i - 1 in again) else 3 for i, name in enumerate(models)}
    found = judged(counts)
    if crosswise and (again := undecided(found)):
        rows = dict.fromkeys([models[0], *(models[i + 1] for i in again)], 2)
        parts = [fit(counts), fit(rows, 5, slice(11, 21)), fit(rows, 7, slice(21, 31))]
        every = [pooled([part.contrast(contrasts[i]) for part in parts]) for i in again]
        for i, difference in zip(again, judge(every, margin=0.1), strict=True):
            found[i] = difference
    return found


@pytest.mark.slow
@pytest.mark.parametrize("crosswise", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_more_runs_where_nothing_is_decided_keep_the_promise(
    rng: np.random.Generator, shift: float, crosswise: bool
) -> None:
    """No true difference, or one of the margin exactly: at most 5 % of 1,000 tables end with a false verdict."""
    repeats, false = 1000, 0
    for _ in range(repeats):
        judged = looked_at_twice(rng, "abcdef", 0.05, 0.03, shift, crosswise)
        false += any(difference.equal if shift else difference.excludes_zero for difference in judged)
    assert 0.003 < false / repeats < 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
