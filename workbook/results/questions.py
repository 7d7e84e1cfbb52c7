"""The study's conclusions and open questions as comparisons between rows of the table, and what runs say to each.

A comparison is a sum of models with weights, Σ w_m · (mean of m): two models that differ in one part (+1 and −1); the
mean of several such pairs, which part and chance share less of (a main effect: Box, Hunter & Hunter, "Statistics for
Experimenters", chapter 5); or a difference of two differences (an interaction). The verdict asks the interval alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from ka.errors import KAError, unknown
from ka.metrics import METRICS
from ka.models.variants import VARIANTS
from workbook.results.compare import Difference, interval
from workbook.results.stored import SHOWN, Result, by_test
from workbook.results.table import differences

Verdict = Literal[
    "supported", "refuted", "better", "worse", "equal within 0.1 dB", "not decided at this budget", "not run"
]
MARGIN = 0.1  # dB: a PSNR difference surely below it is an answer too
Claim = Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Comparison:
    """One comparison that answers (a part of) a question."""

    label: str  # what is compared with what, in a few words
    weights: Mapping[str, float]  # variant → weight; they add up to zero
    claim: Claim = "open"  # what the study says of the first side, if anything

    def __post_init__(self) -> None:
        """Refuse a comparison that mixes in the level of the models, or names a model that is not there."""
        if set(self.weights) - set(VARIANTS) or abs(sum(self.weights.values())) > 1e-9:
            expected = "weights of known variants that add up to zero are expected"
            raise KAError(f"comparison {self.label!r}: {expected}, not {dict(self.weights)}")


#: The protocols that are meant to answer: their questions are drawn.
PROTOCOLS = ("laptop", "laptop-bicubic", "adaptive", "record")

#: Numbers of the questions that have a table of their own: every row against one, and the one that other runs answer.
APART = ("8", "10")


def _questions() -> dict[str, tuple[Comparison, ...]]:
    path = Path(__file__).with_name("questions.json")
    questions = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[Comparison, ...]])
    # The study's, and our own KA layer that regresses its kernels.
    layers = [name for name, row in VARIANTS.items() if row.has_ka and (not row.ours or row.kernels == "regressed")]
    with_one = tuple(Comparison(f"{name} − conv3x3", {name: 1, "conv3x3": -1}) for name in layers)
    questions["8. Against one ordinary convolution"] = with_one
    return dict(sorted(questions.items(), key=lambda item: int(item[0].partition(".")[0])))


#: Question → the comparisons that answer it (`questions.json`). Keys are the section titles of questions.ipynb.
QUESTIONS: Mapping[str, Sequence[Comparison]] = _questions()


@dataclass(frozen=True)
class Answer:
    """What the runs of a protocol say to one comparison."""

    comparison: Comparison
    seeds: Mapping[str, int] = field(default_factory=dict)  # number of seeds of each model in it, of all parts
    # By metric, judged beside all comparisons of all questions; empty if a model was not run.
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """By PSNR, and only from scenes and seeds: a sign that is sure, else a difference that is surely small."""
        if not self.differences:
            return "not run"
        psnr = self.differences["psnr"]
        if not psnr.decided and not (psnr.covers == "scenes and seeds" and psnr.equal):
            return "not decided at this budget"
        if not psnr.decided:
            return "equal within 0.1 dB"
        side: Literal["better", "worse"] = "better" if psnr.value > 0 else "worse"
        if self.comparison.claim == "open":
            return side
        return "supported" if side == self.comparison.claim else "refuted"


def asked(results: Sequence[Result]) -> list[str]:
    """The questions to which something was run."""
    run = _were_run(by_test(results))
    return [title for title, block in QUESTIONS.items() if any(comparison in run for comparison in block)]


def _were_run(parts: Sequence[Sequence[Result]]) -> list[Comparison]:
    """The comparisons whose models were run, in every part of crosswise results."""
    rows_of = [{result.row for result in part} for part in parts]
    every = [comparison for block in QUESTIONS.values() for comparison in block]
    return [c for c in every if rows_of and all(set(c.weights) <= there for there in rows_of)]


def answers(results: Sequence[Result], question: str, which: str = "best", own: bool = False) -> list[Answer]:
    """What runs say to every comparison of a question.

    Differences are judged as `workbook.results.compare` says, beside all comparisons of all questions that were run
    (Holm): at most 5 % for any false difference among them, and 5 % for any false equality (within `MARGIN`).

    Args:
        results: of one protocol, from `workbook.results.stored.read`; or of all parts of one, from `crosswise` there.
        question: a key of `QUESTIONS`; another one is a `KAError`.
        which: `best`, `last` or `average` weights.
        own: with what is left of the compared rows' own runs, where it is more than what is left of all (`Fit`).
    """
    if question not in QUESTIONS:
        raise unknown("question", question, QUESTIONS)
    parts = by_test(results)
    were_run = _were_run(parts)
    judged = differences([comparison.weights for comparison in were_run], parts, which, own, psnr=MARGIN)
    counts = Counter(result.row for result in results)
    return [
        Answer(c, {name: counts[name] for name in c.weights}, judged[were_run.index(c)]) if c in were_run else Answer(c)
        for c in QUESTIONS[question]
    ]


def rows(block: Sequence[Answer]) -> list[dict[str, str]]:
    """Answers as rows for `workbook.notebook.table`."""
    return [
        {
            "compared": answer.comparison.label,
            "claimed": answer.comparison.claim,
            "seeds": ", ".join(map(str, answer.seeds.values())) or "–",
            **{f"Δ {METRICS[metric].heading}": interval(answer.differences.get(metric)) for metric in SHOWN},
            "verdict": answer.verdict,
        }
        for answer in block
    ]


def summary(results: Sequence[Result], which: str = "best") -> list[dict[str, str]]:
    """Rows: the verdicts of all questions but those `APART`: what is decided, what is equal, the rest."""
    found = [
        {"question": title} | {key: row[key] for key in ("compared", "Δ PSNR (dB)", "verdict")}
        for title in QUESTIONS
        if not title.startswith(APART)
        for row in rows(answers(results, title, which))
    ]
    last_first = ("not run", "not decided", "equal")
    return sorted(found, key=lambda row: [row["verdict"].startswith(word) for word in last_first])


_IN_CHINESE: Mapping[Verdict, str] = {
    "supported": "支持原来的说法",
    "refuted": "与原来的说法相反",
    "better": "更好",
    "worse": "更差",
    "equal within 0.1 dB": "相差不超过 0.1 dB",
    "not decided at this budget": "此训练量下不能判定",
    "not run": "未运行",
}


def tally(results: Sequence[Result], language: str = "en") -> str:
    """How many of the comparisons that were run have which verdict, in English (`en`) or Chinese (`zh`)."""
    found = Counter(one.verdict for title in asked(results) for one in answers(results, title) if one.differences)
    between, comma = (" ", ", ") if language == "en" else (" 项", "，")
    return comma.join(f"{count}{between}{_verdict(verdict, language)}" for verdict, count in found.most_common())


def _verdict(verdict: Verdict, language: str) -> str:
    return verdict if language == "en" else _IN_CHINESE[verdict]


def in_words(answer: Answer, language: str = "en") -> str:
    """An answer within a sentence, in English (`en`) or Chinese (`zh`): the difference in PSNR, and the verdict."""
    verdict = _verdict(answer.verdict, language)
    return f"{interval(answer.differences['psnr'])} dB, {verdict}" if answer.differences else verdict
