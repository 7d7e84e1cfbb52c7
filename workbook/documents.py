"""What README and docs/ hold of results and models: tables and answers, written between comments by `make figures`.

<!-- laptop: made by make figures -->       a table, up to <!-- end -->
<!--answer: question | comparison-->        a number with its interval and verdict, up to <!--/-->
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from tabulate import tabulate

from ka.errors import unknown
from ka.models.counts import parameter_count
from ka.models.variants import KERNEL_SIZE, VARIANTS, Variant
from workbook.paths import ROOT, results_folder
from workbook.results import questions, report
from workbook.results import stored as results
from workbook.results.table import table

BASELINE = "psrt_noshuffle"
FEW = (
    *("bicubic", "linear injection", "psrt", "psrt_misaligned", "psrt_noshuffle"),
    *("conv3x3", "kav11", "kav17"),
)
"""Rows of the README's table."""

DOCUMENTS = {"README.md": "en", "README.zh.md": "zh", "docs/models.md": "en", "docs/results.md": "en"}
"""Files with generated parts, and in which language these are."""


def document(name: str) -> str:
    """The text of a file of `DOCUMENTS` with its tables and answers as `results/` and the models have them now.

    Raises:
        KAError: it asks for a table or an answer that is not there.
    """
    language = DOCUMENTS[name]
    tables: dict[str, Callable[[], str]] = {
        "laptop": lambda: results_table("laptop", language, FEW if name.startswith("README") else None),
        "demo": lambda: results_table("demo", language, None),
        "models": models_table,
    }

    def generated(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise unknown(f"{name}: table", match[2], tables)
        return match[1] + tables[match[2]]()

    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"(<!-- (\w+): made by make figures -->\n).*?(?=<!-- end -->)", generated, text, flags=re.DOTALL)
    return re.sub(
        r"(<!--answer: (.+?) \| (.+?)-->).*?(?=<!--/-->)",
        lambda match: match[1] + answer(match[2], match[3], language),
        text,
        flags=re.DOTALL,
    )


@cache
def results_table(protocol: str, language: str, names: Sequence[str] | None) -> str:
    """Quality and differences of a protocol's rows, those of `names` or all that were run, as Markdown."""
    whole = table(results.read(results_folder(), protocol), BASELINE)
    rows = [row for row in whole.rows if (row.stats if names is None else row.name in names)]
    return report.to_readme(replace(whole, rows=rows), language)


@cache
def answer(question: str, comparison: str, language: str) -> str:
    """What the runs of `laptop` say to one comparison, in words.

    Raises:
        KAError: the question has no such comparison.
    """
    answers = questions.answers(results.read(results_folder(), "laptop"), question)
    by_label = {answer.comparison.label: answer for answer in answers}
    if comparison not in by_label:
        raise unknown(f"comparison of question {question!r}", comparison, by_label)
    return questions.in_words(by_label[comparison], language)


# The table of models

HEAD = ("variant", "window kernels", "kernel SA", "SE", "global kernel", "second convolution on", "live", "folded")


def models_table() -> str:
    """Every variant as parts and parameters, for CAVE at dim 48, as Markdown."""
    rows = [model_row(row) for row in VARIANTS.values()]
    return tabulate(rows, HEAD, tablefmt="github", disable_numparse=True) + "\n"


def model_row(row: Variant) -> list[str]:
    """One variant in words."""
    count = parameter_count(row.name)
    parts = [f"`{row.name}`", _kernels(row), *_mixing(row), _global(row), _second(row)]
    return [*parts, f"{count.live:,}", f"{count.deployed:,}{' (adaptive)' if row.adaptive else ''}"]


def _kernels(row: Variant) -> str:
    words = {
        "": "no KA; "
        + {"none": "no shuffle", "aligned": "the published shuffle", "misaligned": "the study's shuffle"}[row.shuffle],
        "identity": "none (identity)",
        "learned": "learned" if row.n_windows > 1 else "one learned kernel, no windows",
        "reweighted": "learned, gated per image",
        "pooled": "pooled from the image",
    }[row.kernels]
    if row.widen in ("outer", "depthwise"):
        words += {"outer": ", widened by an outer product", "depthwise": ", depthwise"}[row.widen]
    if row.size != KERNEL_SIZE:
        words += f", {row.size}×{row.size}"
    return words + ", from N(0, 1)" * row.normal_init + "; no LayerNorm before KA" * (not row.layernorm)


def _mixing(row: Variant) -> tuple[str, str]:
    """Kernel SA and SE."""
    over = {
        "": "–",
        "windows": "windows",
        "windows+global": "windows + global",
        "global+windows": "global + windows",
        "scrambled": "axes traded",
    }[row.sa]
    among = {"taps": "", "channels": ", among channels", "both": ", among taps and channels"}[row.sa_among]
    se: list[str] = [row.se] if row.se else []
    if row.global_from and row.se and not row.global_se:
        se.append("windows only")
    if row.global_se == "own":
        se.append("own for global" if row.se else "global only")
    return over + among, ", ".join(se) or "–"


def _global(row: Variant) -> str:
    if not row.global_from:
        return "–"
    if row.global_from == "attended":
        return "yes, after SA"
    return "yes, kept out of SA" if row.sa == "windows" else "yes"


def _second(row: Variant) -> str:
    if row.kernels in ("", "identity"):
        return "–"
    where = {"windows+image": "windows and image", "global": "image (global only)"}.get(row.second, row.second)
    return where + ", with a bias" * row.bias + ", then GELU" * row.activation
