"""What README and docs/ hold of results and models: tables and answers, written between comments by `make figures`.

<!-- laptop: made by make figures -->                 a table, up to <!-- end -->
<!--answer: protocol: question | comparison-->        a number with its interval and verdict, up to <!--/-->
<!--answer: question | comparison-->                  the same of the protocol `ANSWERING`
<!--verdicts: protocol-->                             how many comparisons have which verdict, up to <!--/-->
<!--scores: protocol: variant-->                      its PSNR, SAM and ERGAS, up to <!--/-->
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
from tabulate import tabulate

from ka.errors import KAError, unknown
from ka.models.counts import parameter_count
from ka.models.variants import VARIANTS
from workbook import robustness
from workbook.audit import swaps
from workbook.diagrams.overview import settings
from workbook.diagrams.parts import SLOTS
from workbook.paths import ROOT, results_folder
from workbook.results import questions, report
from workbook.results import stored as results
from workbook.results.study import BASELINE, baseline_of
from workbook.results.table import table

FEW = ("local injection", "conv3x3", "residual", "kav20_image", "kav20", "kav21", "kav25", "kav26")
"""Rows of the README's table."""

ANSWERING = "laptop"
"""The protocol whose answers are told where none is named: the one with every row of PSRT's body."""

FOOTINGS = ("laptop", "laptop-2000", "demo-quarters", "laptop-bicubic")
"""Protocols whose answers stand side by side: they differ in start and consistency, data and length."""

DOCUMENTS = {"README.zh.md": "zh"} | dict.fromkeys(
    ("README.md", *(f"docs/{page}.md" for page in ("models", "results", "robustness", "adaptive", "intervals"))), "en"
)
"""Files with generated parts, and in which language these are."""


def document(name: str) -> str:
    """The text of a file of `DOCUMENTS` with its tables and answers as `results/` and the models have them now; a table
    or an answer that is not there is a `KAError`.
    """
    language = DOCUMENTS[name]
    tables: dict[str, Callable[[], str]] = {
        protocol: partial(results_table, protocol, language, FEW if name.startswith("README") else None)
        for protocol in results.protocols(results_folder())
    }
    tables |= {"models": models_table, "robustness": lambda: robustness.to_markdown(robustness.read())}
    tables |= {"swaps": lambda: swaps.to_markdown(swaps.read()), "footing": footing_table}
    tables |= {"own-spread": own_spread_table}
    tables |= {name: partial(crosswise_table, name) for name in results.CROSSWISE}

    def generated(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise unknown(f"{name}: table", match[2], tables)
        return match[1] + tables[match[2]]()

    def answered(match: re.Match[str]) -> str:
        return match[1] + answer(match[2] or ANSWERING, match[3], match[4], language)

    marks: dict[str, Callable[[re.Match[str]], str]] = {
        r"<!-- ([\w-]+): made by make figures -->\n": generated,
        r"<!--scores: ([\w-]+): ([\w-]+)-->": lambda match: match[1] + scores(match[2], match[3]),
        r"<!--verdicts: ([\w-]+)-->": lambda match: match[1] + verdicts(match[2], language),
        r"<!--answer: (?:([a-z][\w-]*): )?((?:(?!-->).)+?) \| ((?:(?!-->).)+?)-->": answered,
    }
    text, filled = (ROOT / name).read_text(encoding="utf-8"), 0
    there = len(re.findall(r"<!--\w|made by make figures", text))
    for mark, fill in marks.items():
        text, count = re.subn(rf"({mark})(?:(?!<!--).)*(?=<!-- end -->|<!--/-->)", fill, text, flags=re.DOTALL)
        filled += count
    if filled != there:
        raise KAError(f"{name}: {there - filled} marks are misspelt, or lack their end (<!-- end -->, <!--/-->)")
    return text


@cache
def results_table(protocol: str, language: str, names: Sequence[str] | None) -> str:
    """Quality and differences of a protocol's rows, those of `names` or all that were run, as Markdown."""
    runs = results.beside(results_folder(), protocol)
    whole = table(runs, baseline_of({run.config.variant for run in runs}) or BASELINE)
    rows = [row for row in whole.rows if row.stats and (names is None or row.name in names)]
    return report.to_readme(replace(whole, rows=rows), language)


def scores(protocol: str, variant: str) -> str:
    """PSNR, SAM and ERGAS of a row, mean over scenes and seeds; a `KAError` where it was not run."""
    runs = [run for run in results.read(results_folder(), protocol) if run.config.variant == variant]
    if not runs:
        raise KAError(f"{protocol}: {variant} was not run; name a row of results/{protocol}")
    psnr, sam, ergas = (np.mean([run.methods["best"].mean(metric) for run in runs]) for metric in results.SHOWN)
    return f"{psnr:.3f} dB / {sam:.3f}° / {ergas:.3f}"


def verdicts(protocol: str, language: str) -> str:
    """How many of a protocol's comparisons have which verdict, in words."""
    return questions.tally(_runs(protocol), language)


def _runs(protocol: str) -> list[results.Result]:
    read = results.crosswise if protocol in results.CROSSWISE else results.beside
    return read(results_folder(), protocol)


@cache
def answer(protocol: str, question: str, comparison: str, language: str) -> str:
    """What a protocol's runs say to one comparison, in words; one that the question has not is a `KAError`."""
    answers = questions.answers(_runs(protocol), question)
    by_label = {answer.comparison.label: answer for answer in answers}
    if comparison not in by_label:
        raise unknown(f"comparison of question {question!r}", comparison, by_label)
    return questions.in_words(by_label[comparison], language)


def footing_table() -> str:
    """What the protocols of `FOOTINGS` say to every comparison, side by side, those that were asked of the study."""
    said: dict[str, dict[str, str]] = {}
    for protocol in FOOTINGS:
        runs = results.beside(results_folder(), protocol)
        for question in questions.QUESTIONS:
            for found in [] if question.startswith(questions.APART) else questions.answers(runs, question):
                text = "–" if found.verdict == "not run" else questions.in_words(found, "en")
                said.setdefault(found.comparison.label, {})[protocol] = text
    rows = [[label, *answers.values()] for label, answers in said.items()]
    return tabulate(rows, ["compared", *FOOTINGS], tablefmt="github", disable_numparse=True) + "\n"


def own_spread_table() -> str:
    """The comparisons whose verdict is another when what seeds do is taken from the compared rows' own runs."""
    rows = []
    for protocol in (*FOOTINGS, "adaptive", *results.CROSSWISE):
        runs = _runs(protocol)
        for question in questions.asked(runs):
            both = zip(questions.answers(runs, question), questions.answers(runs, question, own=True), strict=True)
            rows += [
                [protocol, one.comparison.label, questions.in_words(one), questions.in_words(other)]
                for one, other in both
                if one.verdict != other.verdict
            ]
    head = ["protocol", "compared", "with the spread of all rows", "with their own, where it is larger"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True) + "\n"


def crosswise_table(name: str) -> str:
    """Every comparison whose rows were run crosswise: on the usual test scenes alone, and on every scene."""
    few = results.beside(results_folder(), results.CROSSWISE[name][0])
    every = results.crosswise(results_folder(), name)
    rows = []
    for question in questions.asked(every):
        for both in zip(questions.answers(few, question), questions.answers(every, question), strict=True):
            if both[1].differences:
                runs = (", ".join(map(str, answer.seeds.values())) for answer in both)
                told = zip(runs, map(questions.in_words, both), strict=True)
                rows.append([both[0].comparison.label, *(cell for cells in told for cell in cells)])
    if not every:
        return "Not run yet.\n"
    scenes = [len(part[0].methods["bicubic"].scenes) for part in results.by_test(every)]
    usual, whole = f"{scenes[0]} usual test scenes", f"all {sum(scenes)} scenes, crosswise"
    return tabulate(rows, ["compared", "runs", usual, "runs", whole], tablefmt="github", disable_numparse=True) + "\n"


def models_table() -> str:
    """Every variant with the settings of its parts (as the overview draws them), and its parameters at dim 48."""
    rows = []
    for row in VARIANTS.values():
        count = parameter_count(row.name)
        words = [text.replace("-\n", "").replace("\n", " ") or "–" for text in settings(row, 48, "en").values()]
        deployed = "adaptive" if row.adaptive else f"{count.deployed:,}"
        shuffle = "–" if row.shuffle == "none" else row.shuffle
        rows.append([f"`{row.name}`", shuffle, *words, f"{count.live:,}", deployed])
    head = ["variant", "shuffle", *SLOTS, "live", "folded"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True) + "\n"
