"""The study's conclusions and open questions as comparisons between rows of the table, and what runs say to each.

A comparison is a sum of models with weights, Σ w_m · (mean of m): two models that differ in one part (+1 and −1); the
mean of several such pairs, which part and chance share less of (a main effect: Box, Hunter & Hunter, "Statistics for
Experimenters", chapter 5); or a difference of two differences (an interaction). The verdict asks the interval alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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


#: The protocols that are meant to answer, as presets of the configuration.
PROTOCOLS = ("laptop", "record")


def _questions() -> dict[str, tuple[Comparison, ...]]:
    text = Path(__file__).with_name("questions.json").read_text(encoding="utf-8")
    questions = {
        title: tuple(Comparison(**comparison) for comparison in block) for title, block in json.loads(text).items()
    }
    studied = [name for name, row in VARIANTS.items() if row.has_ka and not row.ours]
    with_one = tuple(Comparison(f"{name} − conv3x3", {name: 1, "conv3x3": -1}) for name in studied)
    return questions | {"8. Against one ordinary convolution": with_one}


#: Question → the comparisons that answer it (`questions.json`). Keys are the section titles of questions.ipynb.
QUESTIONS: Mapping[str, Sequence[Comparison]] = _questions()


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
