"""The results table as text for a paper: CSV, Markdown, LaTeX (booktabs)."""

import csv
import io
import math
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from ka.errors import unknown
from ka.files import write_bytes
from ka.metrics import METRICS
from workbook.results.compare import interval
from workbook.results.result_figures import forest, quality_against_cost, scene_by_scene
from workbook.results.stored import SHOWN, UNTRAINED
from workbook.results.study import BASELINE
from workbook.results.table import Row, Table
from workbook.style import encoded

README_HEADS = {
    "en": ("model", "seeds", "Δ PSNR to {baseline} (dB)", "study: PSNR (dB)", "not run"),
    "zh": ("模型", "种子数", "与 {baseline} 的 PSNR 之差 (dB)", "原研究 PSNR (dB)", "未运行"),
}
#: Figures of a table, by the name of their files.
FIGURES = {"differences": forest, "scenes": scene_by_scene, "quality_cost": quality_against_cost}

# What stands around bold text until a format has its own marks (private characters, which no text of ours has).
BOLD = ("\ue000", "\ue001")


class Section(NamedTuple):
    """One of the tables that a results table is printed as."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def sections(table: Table) -> list[Section]:
    """Quality, differences (where there are any), and cost."""
    heads = [METRICS[metric].heading for metric in SHOWN]
    cells = [[row.name, _seeds(row), *_quality(row), *(_printed(row, key) for key in SHOWN)] for row in table.rows]
    parts = [Section("Quality", ["model", "seeds", *heads, *(f"study: {head}" for head in heads)], cells)]
    compared = [row for row in table.rows if row.differences]
    if compared:
        judged = any(difference.low is not None for row in compared for difference in row.differences.values())
        title = f"Difference to {table.baseline}" + ", with intervals at Holm’s levels" * judged
        head = ["model", *(f"Δ {heading}" for heading in heads), "interval covers"]
        gaps = {row.name: [row.differences[metric] for metric in SHOWN] for row in compared}
        cells = [[name, *map(interval, changes), changes[0].covers or "–"] for name, changes in gaps.items()]
        parts.append(Section(title, head, cells))
    head = ["model", "reported", "deployed", "live, here", "GFLOPs", "ms", f"× {BASELINE}", "study: parameters (M)"]
    variants = [row for row in table.rows if row.name not in UNTRAINED]
    return [*parts, Section("Parameters and cost", head, [_cost(row) for row in variants])]


def _cost(row: Row) -> list[str]:
    counts = [_number(count, ",") for count in (row.reported, row.deployed, row.here)]
    ms, ratio = _number(row.ms, ".0f", "not measured"), "not measured"
    if row.ratio is not None:
        ratio = f"{row.ratio.median:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})"
    return [row.name, *counts, _number(row.gflops, ".1f"), ms, ratio, _printed(row, "params")]


def _number(value: float | None, form: str, absent: str = "–") -> str:
    return absent if value is None else format(value, form)


def _printed(row: Row, name: str) -> str:
    return _number(getattr(row.printed, name, None), ".3f")


def to_markdown(table: Table) -> str:
    """Quality, differences and cost as three Markdown tables, and the notes."""
    parts = [f"**{part.title}**\n\n{_github(part.head, part.rows)}" for part in sections(table)]
    text = "\n\n".join([*parts, "\n".join(f"- {note}" for note in table.notes)]) + "\n"
    return text.replace(BOLD[0], "**").replace(BOLD[1], "**")


def to_readme(table: Table, language: str = "en") -> str:
    """Quality and the difference in PSNR as one Markdown table, English (`en`) or Chinese (`zh`), no column empty."""
    if language not in README_HEADS:
        raise unknown("language", language, README_HEADS)
    model, seeds, gap, printed, absent = README_HEADS[language]
    head = [model, seeds, *(METRICS[metric].heading for metric in SHOWN), gap.format(baseline=table.baseline), printed]
    rows = []
    for row in table.rows:
        quality = [str(row.stats[metric]) for metric in SHOWN] if row.stats else [absent, "–", "–"]
        gap_psnr = interval(row.differences.get("psnr"))
        rows.append([f"`{row.name}`", _seeds(row), *quality, gap_psnr, _printed(row, "psnr")])
    told = [any(cell != "–" for cell in column) for column in zip(*rows, strict=True)]
    return _github(list(compress(head, told)), [list(compress(row, told)) for row in rows]) + "\n"


def _github(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def to_latex(table: Table) -> str:
    """The same as three LaTeX tables (packages booktabs; UTF-8), the notes under the last."""
    parts, lines = [], [r"\begin{table*}", r"\centering\footnotesize\setlength{\tabcolsep}{4pt}"]
    for part in sections(table):
        columns = ["left", *["right"] * (len(part.head) - 1)]
        body = tabulate(part.rows, part.head, tablefmt="latex_booktabs", disable_numparse=True, colalign=columns)
        parts.append("\n".join([*lines, rf"\caption{{{_tex(part.title)}.}}", body, r"\end{table*}"]))
    notes = rf"\par\smallskip\parbox{{\textwidth}}{{{_tex(' '.join(table.notes))}}}"
    text = "\n\n".join(parts).removesuffix(r"\end{table*}") + notes + "\n" + r"\end{table*}" + "\n"
    for sign, command in _TEX_SIGNS.items():
        text = text.replace(sign, command)
    return text


_TEX_SIGNS = {
    BOLD[0]: r"\textbf{", BOLD[1]: "}", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "Δ": r"$\Delta$",
    "°": r"$^\circ$", "⁹": "$^9$", "–": "--", "“": "``", "”": "''",
}  # fmt: skip


def _tex(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_")


def _quality(row: Row) -> list[str]:
    if not row.stats:
        return ["not run", "–", "–"]
    texts = {metric: str(row.stats[metric]) for metric in SHOWN}
    return [text.join(BOLD) if metric in row.bold else text for metric, text in texts.items()]


def _seeds(row: Row) -> str:
    return str(len(row.seeds)) if row.seeds else "–"


def to_csv(table: Table) -> str:
    """Every number of the table, one row each, plain (RFC 4180); empty where there is none."""
    lines = [_csv_row(row) for row in table.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_row(row: Row) -> dict[str, str]:
    line = {"model": row.name, "status": "measured" if row.stats else "not run"}
    line["seeds"] = " ".join(map(str, row.seeds))
    for metric in SHOWN:
        stat, difference = row.stats.get(metric), row.differences.get(metric)
        line |= {metric: _plain(stat, "mean"), f"{metric}_std": _plain(stat, "std")}
        line[f"{metric}_difference"] = _plain(difference, "value")
        line |= {f"{metric}_{end}": _plain(difference, end) for end in ("low", "high")}
        line[f"{metric}_covers"] = difference.covers if difference else ""
        line[f"{metric}_bold"] = "yes" if metric in row.bold else ""
        line[f"{metric}_study"] = _plain(row.printed, metric)
    line |= {f"parameters_{name}": _plain(row, name) for name in ("reported", "deployed", "here")}
    line["parameters_study_millions"] = _plain(row.printed, "params")
    line |= {name: _plain(row, name) for name in ("gflops", "ms")} | {"ms_ratio": _plain(row.ratio, "median")}
    return line | {f"ms_ratio_{end}": _plain(row.ratio, end) for end in ("low", "high")}


def _plain(record: object, name: str) -> str:
    """A number of a record to six decimals at most; empty where record or number is absent or undefined."""
    value = getattr(record, name, None)
    return "" if value is None or not math.isfinite(value) else f"{round(value, 6) + 0.0:.6f}".rstrip("0").rstrip(".")


def write(table: Table, folder: str | Path) -> list[Path]:
    """Write the table as `results.csv`, `.md` and `.tex`, and its figures as PDF; each whole or not at all."""
    texts = {"results.csv": to_csv, "results.md": to_markdown, "results.tex": to_latex}
    files = {name: text(table).encode() for name, text in texts.items()}
    files |= {f"{name}.pdf": encoded(draw(table), "pdf") for name, draw in FIGURES.items()}
    for name, data in files.items():
        write_bytes(Path(folder) / name, data)
    return [Path(folder) / name for name in files]
