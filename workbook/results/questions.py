"""The study's conclusions and open questions as comparisons between rows of the table, and what runs say to each.

A comparison is a sum of models with weights, Σ w_m · (mean of m): two models that differ in one part (+1 and −1); the
mean of several such pairs, which part and chance share less of (a main effect: Box, Hunter & Hunter, "Statistics for
Experimenters", chapter 5); or a difference of two differences (an interaction). The verdict asks the interval alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ka.errors import KAError, unknown
from ka.metrics import METRICS
from ka.models.variants import VARIANTS
from workbook.results.compare import Difference, Values, difference, interval, seed_noise
from workbook.results.stored import SHOWN, Result
from workbook.results.table import by_variant, measured

Verdict = Literal["supported", "refuted", "better", "worse", "not decided at this budget", "not run"]
Claim = Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Comparison:
    """One comparison that answers (a part of) a question.

    Attributes:
        label: what is compared with what, in a few words.
        weights: variant → weight; they add up to zero.
        claim: what the study says of the first side: `better`, `worse`, or nothing (`open`).
    """

    label: str
    weights: Mapping[str, float]
    claim: Claim = "open"

    def __post_init__(self) -> None:
        """Refuse a comparison that mixes in the level of the models, or names a model that is not there."""
        if set(self.weights) - set(VARIANTS) or abs(sum(self.weights.values())) > 1e-9:
            raise KAError(
                f"comparison {self.label!r}: weights of known variants that add up to zero are expected, "
                f"not {dict(self.weights)}"
            )


def less(first: str, second: str) -> dict[str, float]:
    """The weights of one variant less another."""
    return {first: 1.0, second: -1.0}


def mean_of(*pairs: tuple[str, str]) -> dict[str, float]:
    """The weights of the mean over pairs of (first less second)."""
    return combined(*((1 / len(pairs), pair) for pair in pairs))


def interaction(first: tuple[str, str], second: tuple[str, str]) -> dict[str, float]:
    """The weights of one difference less another."""
    return combined((1.0, first), (-1.0, second))


def combined(*terms: tuple[float, tuple[str, str]]) -> dict[str, float]:
    """The weights of a sum of (factor, pair)."""
    weights: dict[str, float] = {}
    for factor, (first, second) in terms:
        weights[first] = weights.get(first, 0.0) + factor
        weights[second] = weights.get(second, 0.0) - factor
    return weights


#: The protocols that are meant to answer, as presets of the configuration.
PROTOCOLS = ("laptop", "record")

#: Question → the comparisons that answer it. Keys are the section titles of questions.ipynb.
QUESTIONS: Mapping[str, Sequence[Comparison]] = {
    "0. Kernel Attention": (
        Comparison("KAv11 − the study's baseline", less("kav11", "psrt_noshuffle"), "better"),
        Comparison("one ordinary 3×3 convolution − the baseline", less("conv3x3", "psrt_noshuffle")),
        Comparison("no convolution at all − the baseline", less("kav5_as_run", "psrt_noshuffle")),
    ),
    "1. Shuffle": (
        Comparison("none − misaligned (what the study compared)", less("psrt_noshuffle", "psrt_misaligned"), "better"),
        Comparison("none − aligned (the published model)", less("psrt_noshuffle", "psrt"), "better"),
        Comparison("aligned − misaligned", less("psrt", "psrt_misaligned")),
    ),
    "2. LayerNorm before KA": (Comparison("KAv11 without LayerNorm before KA − with", less("kav11_no_ln", "kav11")),),
    "3. Global kernel": (
        Comparison("with − without, learned (KAv11)", less("kav11", "kav11_no_global"), "better"),
        Comparison("with − without, gated (KAv17 − KAv18)", less("kav17", "kav18"), "better"),
        Comparison("with − without, mean of both", mean_of(("kav11", "kav11_no_global"), ("kav17", "kav18")), "better"),
        Comparison("alone − no convolution at all (KAv5)", less("kav5", "kav5_as_run"), "better"),
        Comparison("made after SA − before, both outside SA", less("kav6_global_after", "kav6_global_apart")),
        Comparison("inside SA (KAv6) − outside", less("kav6", "kav6_global_apart")),
    ),
    "4. Output axis of pooled kernels": (
        Comparison("repeated (KAv9) − c → c² (KAv1)", less("kav9", "kav1")),
        Comparison("outer product − c → c² (KAv1)", less("kav1_outer", "kav1"), "better"),
        Comparison("depthwise − c → c² (KAv1)", less("kav1_depthwise", "kav1"), "better"),
        Comparison("pooled (KAv1) − no convolution at all", less("kav1", "kav5_as_run")),
    ),
    "5. Kernel SA": (
        Comparison("SA over taps − none (KAv10)", less("kav10", "kav11_no_global"), "worse"),
        Comparison("SA over channels − over taps", less("kav10_channel_sa", "kav10"), "better"),
        Comparison("SA over both − over taps", less("kav10_both_sa", "kav10")),
        Comparison("SA over channels − none", less("kav10_channel_sa", "kav11_no_global")),
        Comparison("5×5 − 3×3, with SA", less("kav10_5x5", "kav10")),
        Comparison(
            "the same, beyond what 5×5 gives a convolution",
            interaction(("kav10_5x5", "kav10"), ("conv5x5", "conv3x3")),
            "better",
        ),
    ),
    "6. SE": (
        Comparison("shared SE − none (KAv7 − KAv10)", less("kav7", "kav10")),
        Comparison(
            "one SE each − shared, windows and image",
            mean_of(("kav3", "kav2"), ("kav7_se_each", "kav7")),
        ),
        Comparison("SE on the global kernel too (KAv6) − not", less("kav6", "kav6_no_global_se")),
    ),
    "7. Windows or image": (Comparison("image (KAv7) − windows (KAv2)", less("kav7", "kav2"), "better"),),
    "8. Against one ordinary convolution": tuple(
        Comparison(f"{name} − conv3x3", less(name, "conv3x3"))
        for name, row in VARIANTS.items()
        if row.has_ka and not row.ours
    ),
}


@dataclass(frozen=True)
class Answer:
    """What the runs of a protocol say to one comparison.

    Attributes:
        comparison: the comparison.
        seeds: number of seeds of each model in it.
        differences: metric → difference with its interval, simultaneous over the question's comparisons; empty if a
            model was not run.
        verdict: by PSNR.
    """

    comparison: Comparison
    seeds: Mapping[str, int] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """By PSNR, and only if the interval covers seeds as well as scenes and leaves out zero."""
        if not self.differences:
            return "not run"
        psnr = self.differences["psnr"]
        if psnr.covers != "scenes and seeds" or not psnr.excludes_zero:
            return "not decided at this budget"
        side: Literal["better", "worse"] = "better" if psnr.value > 0 else "worse"
        if self.comparison.claim == "open":
            return side
        return "supported" if side == self.comparison.claim else "refuted"


def answers(results: Sequence[Result], question: str, which: str = "best") -> list[Answer]:
    """What runs say to every comparison of a question.

    Intervals are those of `workbook.results.compare`, 95 % for all comparisons of the question that were run at once
    (Bonferroni); the noise of seeds is pooled over all models of the protocol that have several, and paired as it says.

    Args:
        results: of one protocol, from `workbook.results.stored.read`.
        question: a key of `QUESTIONS`.
        which: `best`, `last` or `average` weights.

    Raises:
        KAError: unknown question.
    """
    if question not in QUESTIONS:
        raise unknown("question", question, QUESTIONS)
    values = {name: metrics for name, metrics in measured(results, which).items() if metrics}
    seeds = {name: tuple(run.config.seed for run in runs) for name, runs in by_variant(results).items()}
    comparisons = QUESTIONS[question]
    were_run = [comparison for comparison in comparisons if set(comparison.weights) <= set(values)]
    return [
        _answer(comparison, values, seeds, 0.05 / len(were_run)) if comparison in were_run else Answer(comparison)
        for comparison in comparisons
    ]


def _answer(
    comparison: Comparison,
    values: Mapping[str, Mapping[str, Values]],
    seeds: Mapping[str, tuple[int, ...]],
    alpha: float,
) -> Answer:
    differences = {}
    for metric in SHOWN:
        of_all = {name: metrics[metric] for name, metrics in values.items()}
        plus, minus = (
            sum(abs(w) * of_all[name].mean(0, keepdims=True) for name, w in comparison.weights.items() if w * sign > 0)
            for sign in (1, -1)
        )
        noise = seed_noise(comparison.weights, of_all, seeds)
        differences[metric] = difference(np.asarray(plus), np.asarray(minus), noise, alpha)
    return Answer(comparison, {name: len(values[name]["psnr"]) for name in comparison.weights}, differences)


def rows(block: Sequence[Answer]) -> list[dict[str, str]]:
    """Answers as rows for `workbook.notebook.table`."""
    lines = []
    for answer in block:
        cells = {
            f"Δ {METRICS[metric].heading}": (interval(answer.differences[metric]) if answer.differences else "–")
            for metric in SHOWN
        }
        lines.append(
            {
                "compared": answer.comparison.label,
                "claimed": answer.comparison.claim,
                "seeds": ", ".join(map(str, answer.seeds.values())) or "–",
                **cells,
                "verdict": answer.verdict,
            }
        )
    return lines


def summary(results: Sequence[Result], which: str = "best") -> list[dict[str, str]]:
    """Rows: the verdicts of all questions but the last, which compares every variant with one convolution."""
    return [
        {"question": title} | {key: row[key] for key in ("compared", "Δ PSNR (dB)", "verdict")}
        for title in QUESTIONS
        if not title.startswith("8")
        for row in rows(answers(results, title, which))
    ]


_IN_CHINESE: Mapping[Verdict, str] = {
    "supported": "支持原来的说法",
    "refuted": "与原来的说法相反",
    "better": "更好",
    "worse": "更差",
    "not decided at this budget": "此训练量下不能判定",
    "not run": "未运行",
}


def in_words(answer: Answer, language: str = "en") -> str:
    """An answer within a sentence, in English (`en`) or Chinese (`zh`): the difference in PSNR, and the verdict."""
    verdict = answer.verdict if language == "en" else _IN_CHINESE[answer.verdict]
    return f"{interval(answer.differences['psnr'])} dB, {verdict}" if answer.differences else verdict
