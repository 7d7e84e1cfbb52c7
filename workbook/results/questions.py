"""The study's conclusions and open questions as comparisons between rows of the table, and what runs say to each.

A comparison is a sum of models with weights, Σ w_m · (mean of m): two models that differ in one part (+1 and −1); the
mean of several such pairs, which part and chance share less of (a main effect: Box, Hunter & Hunter, "Statistics for
Experimenters", chapter 5); or a difference of two differences (an interaction). The verdict asks the interval alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ka.errors import KAError
from ka.metrics import METRICS
from ka.models.variants import VARIANTS
from workbook.paths import STYLE
from workbook.results.compare import Difference, difference, seed_noise
from workbook.results.report import interval
from workbook.results.selection import called_best
from workbook.results.stored import SHOWN, Result, by_variant, measured

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
        unknown = sorted(set(self.weights) - set(VARIANTS))
        if unknown or abs(sum(self.weights.values())) > 1e-9:
            raise KAError(
                f"comparison {self.label!r}: weights of known variants that add up to zero are expected, "
                f"not {dict(self.weights)}"
            )


def less(one: str, other: str) -> dict[str, float]:
    """The weights of `one` less `other`."""
    return {one: 1.0, other: -1.0}


def mean_of(*pairs: tuple[str, str]) -> dict[str, float]:
    """The weights of the mean over pairs of (one less other)."""
    return combined(*((1 / len(pairs), pair) for pair in pairs))


def interaction(one: tuple[str, str], other: tuple[str, str]) -> dict[str, float]:
    """The weights of one difference less another."""
    return combined((1.0, one), (-1.0, other))


def combined(*terms: tuple[float, tuple[str, str]]) -> dict[str, float]:
    """The weights of a sum of (factor, pair)."""
    weights: dict[str, float] = {}
    for factor, (one, other) in terms:
        weights[one] = weights.get(one, 0.0) + factor
        weights[other] = weights.get(other, 0.0) - factor
    return weights


#: The protocols that are meant to answer, as presets of `workbook.training.config.Config`.
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
        found = self.differences["psnr"]
        if found.covers != "scenes and seeds" or not found.excludes_zero:
            return "not decided at this budget"
        side: Literal["better", "worse"] = "better" if found.value > 0 else "worse"
        if self.comparison.claim == "open":
            return side
        return "supported" if side == self.comparison.claim else "refuted"


def answers(results: Sequence[Result], question: str, which: str = "best") -> list[Answer]:
    """What runs say to every comparison of a question.

    Intervals are those of `workbook.results.compare`, 95 % for all comparisons of the question that were run at once
    (Bonferroni);
    the noise of seeds is pooled over all models of the protocol that have several, and paired as it says.

    Args:
        results: of one protocol, from `workbook.results.stored.read`.
        question: a key of `QUESTIONS`.
        which: `best`, `last` or `average` weights.

    Raises:
        KAError: unknown question.
    """
    if question not in QUESTIONS:
        raise KAError(f"question {question!r} is unknown; choose one of {'; '.join(QUESTIONS)}")
    values = {name: found for name, found in measured(results, which).items() if found}
    seeds = {name: tuple(run.config.seed for run in found) for name, found in by_variant(results).items()}
    comparisons = QUESTIONS[question]
    run = [one for one in comparisons if set(one.weights) <= set(values)]
    found = []
    for one in comparisons:
        if one not in run:
            found.append(Answer(one))
            continue
        differences = {}
        for metric in SHOWN:
            of_all = {name: each[metric] for name, each in values.items()}
            plus, minus = (
                sum(abs(w) * of_all[name].mean(0, keepdims=True) for name, w in one.weights.items() if w * sign > 0)
                for sign in (1, -1)
            )
            noise = seed_noise(one.weights, of_all, seeds)
            differences[metric] = difference(np.asarray(plus), np.asarray(minus), noise, 0.05 / len(run))
        found.append(Answer(one, {name: len(values[name]["psnr"]) for name in one.weights}, differences))
    return found


def rows(found: Sequence[Answer]) -> list[dict[str, str]]:
    """Answers as rows for `workbook.notebook.table`."""
    lines = []
    for one in found:
        cells = {
            f"Δ {METRICS[metric].heading}": (interval(one.differences[metric]) if one.differences else "–")
            for metric in SHOWN
        }
        lines.append(
            {
                "compared": one.comparison.label,
                "claimed": one.comparison.claim,
                "seeds": ", ".join(map(str, one.seeds.values())) or "–",
                **cells,
                "verdict": one.verdict,
            }
        )
    return lines


_IN_CHINESE: Mapping[Verdict, str] = {
    "supported": "支持原来的说法",
    "refuted": "与原来的说法相反",
    "better": "更好",
    "worse": "更差",
    "not decided at this budget": "此训练量下不能判定",
    "not run": "未运行",
}


def in_words(one: Answer, language: str = "en") -> str:
    """An answer within a sentence, in English (`en`) or Chinese (`zh`): the difference in PSNR, and the verdict."""
    verdict = one.verdict if language == "en" else _IN_CHINESE[one.verdict]
    return f"{interval(one.differences['psnr'])} dB, {verdict}" if one.differences else verdict


_COLOURS = {"supported": "C2", "better": "C2", "refuted": "C1", "worse": "C1"}


def chart(results: Sequence[Result], questions: Sequence[str] = tuple(QUESTIONS), which: str = "best") -> Figure:
    """Differences in PSNR with their intervals, question by question; what was not run is named without a mark.

    Args:
        results, which: as `answers`.
        questions: keys of `QUESTIONS`, top to bottom.
    """
    blocks = [(title, answers(results, title, which)) for title in questions]
    height = sum(len(found) + 1.2 for _, found in blocks)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.5, 0.9 + 0.2 * height), layout="constrained")
        axis = figure.subplots()
        y, ticks, labels = 0.0, [], []
        for title, found in blocks:
            axis.text(0.0, y, title, weight="bold", va="center", transform=axis.get_yaxis_transform())
            for one in found:
                y -= 1
                ticks.append(y)
                labels.append(one.comparison.label + ("" if one.differences else " (not run)"))
                if one.differences:
                    _mark(axis, one, y)
            y -= 1.2
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(ticks, labels, fontsize=7.5)
        axis.set_ylim(y + 0.6, 0.8)
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("Δ PSNR (dB)")
        marks = [
            Line2D([], [], color=colour, marker="o", markersize=4, label=label)
            for label, colour in (
                ("as claimed, or better", "C2"),
                ("against the claim, or worse", "C1"),
                ("not decided", "0.45"),
            )
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    return figure


def _mark(axis: Axes, one: Answer, y: float) -> None:
    found = one.differences["psnr"]
    colour = _COLOURS.get(one.verdict, "0.45")
    if found.low is not None and found.high is not None:
        axis.plot([found.low, found.high], [y, y], color=colour, solid_capstyle="butt")
    axis.plot(found.value, y, "o", color=colour, markersize=4)


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


def kept(history: Sequence[Mapping[str, float]]) -> Kept:
    """What the rules for choosing weights make of a run's history (see `Kept`).

    Args:
        history: of a run with validation, as `workbook.results.stored.Result.history`.

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
