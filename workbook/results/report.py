"""The results table as files for a paper: CSV, Markdown, LaTeX (booktabs), and figures.

Names of models and notes are text: nothing in them is taken for Markdown, HTML, LaTeX or a spreadsheet's formula.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ka.errors import KAError
from ka.files import write_bytes
from ka.metrics import METRICS
from workbook.paths import STYLE
from workbook.results.compare import Difference
from workbook.results.stored import SHOWN, Row, Stat, Table
from workbook.results.study import Reported
from workbook.style import encoded

# Text


@dataclass(frozen=True)
class Cell:
    """Text of a cell in plain Unicode; every format escapes it its own way."""

    text: str
    bold: bool = False


NONE = Cell("–")


def to_csv(table: Table) -> str:
    """Every number of the table, one row each, plain (RFC 4180); empty where there is none."""
    lines = [_csv_row(row) for row in table.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """Quality, differences and cost as three Markdown tables, and the notes."""
    parts = []
    for title, head, body in _parts(table):
        lines = [head, ["---"] * len(head)]
        lines += [[f"**{_md(cell.text)}**" if cell.bold else _md(cell.text) for cell in cells] for cells in body]
        lines[0] = [_md(label) for label in head]
        parts.append(f"**{_md(title)}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    parts.append("\n".join(f"- {_md(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


_README = {
    "en": ("model", "seeds", "Δ PSNR to {baseline} (dB)", "study: PSNR (dB)", "not run"),
    "zh": ("模型", "种子数", "与 {baseline} 的 PSNR 之差 (dB)", "原研究 PSNR (dB)", "未运行"),
}


def to_readme(table: Table, language: str = "en") -> str:
    """Quality and the difference in PSNR as one Markdown table, in English (`en`) or Chinese (`zh`).

    Raises:
        KAError: another language.
    """
    if language not in _README:
        raise KAError(f"language={language!r} is unknown; choose one of {', '.join(_README)}")
    model, seeds, gap, printed, absent = _README[language]
    heads = [METRICS[metric].heading for metric in SHOWN]
    lines = [[model, seeds, *heads, gap.format(baseline=table.baseline), printed]]
    lines.append(["---"] * len(lines[0]))
    for row in table.rows:
        quality = [cell.text for cell in _quality(row)] if row.stats else [absent, "–", "–"]
        difference = interval(row.differences["psnr"]) if row.differences else "–"
        lines.append([f"`{row.name}`", _seeds(row), *quality, difference, _printed(row.printed, "psnr").text])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def to_latex(table: Table) -> str:
    """The same as three LaTeX tables (packages booktabs; UTF-8), the notes under the last."""
    parts = []
    sections = _parts(table)
    for number, (title, head, body) in enumerate(sections, 1):
        lines = [
            " & ".join(rf"\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text) for cell in cells)
            for cells in body
        ]
        notes = " ".join(_tex(note) for note in table.notes) if number == len(sections) else ""
        parts.append(
            "\n".join(
                [
                    r"\begin{table*}",
                    r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
                    rf"\caption{{{_tex(title)}.}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
                    r"\toprule",
                    " & ".join(_tex(label) for label in head) + r" \\",
                    r"\midrule",
                    *(line + r" \\" for line in lines),
                    r"\bottomrule",
                    r"\end{tabular}",
                    *([rf"\par\smallskip\parbox{{\textwidth}}{{{notes}}}"] if notes else []),
                    r"\end{table*}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _parts(table: Table) -> list[tuple[str, list[str], list[list[Cell]]]]:
    """Title, head and body of the three tables."""
    heads = [METRICS[metric].heading for metric in SHOWN]
    quality = [
        [Cell(row.name), Cell(_seeds(row)), *_quality(row), *(_printed(row.printed, metric) for metric in SHOWN)]
        for row in table.rows
    ]
    differences = [
        [Cell(row.name), *(Cell(interval(row.differences[metric])) for metric in SHOWN), _covers(row)]
        for row in table.rows
        if row.differences
    ]
    cost = [
        [
            Cell(row.name),
            *(NONE if number is None else Cell(f"{number:,}") for number in (row.reported, row.deployed, row.here)),
            *(NONE if number is None else Cell(f"{number:.1f}") for number in (row.gflops,)),
            Cell("not measured" if row.ms is None else f"{row.ms:.0f}"),
            Cell("not measured" if row.ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*row.ratio)),
            _printed(row.printed, "params"),
        ]
        for row in table.rows
        if row.reported is not None
    ]
    parts = [("Quality", ["model", "seeds", *heads, *(f"study: {head}" for head in heads)], quality)]
    if differences:
        judged = any(each.low is not None for row in table.rows for each in row.differences.values())
        title = f"Difference to {table.baseline}" + ", with simultaneous 95 % intervals" * judged
        parts.append((title, ["model", *(f"Δ {head}" for head in heads), "interval covers"], differences))
    head = ["model", "reported", "deployed", "live, here", "GFLOPs", "ms", "× psrt_noshuffle", "study: parameters (M)"]
    return [*parts, ("Parameters and cost", head, cost)]


def _quality(row: Row) -> list[Cell]:
    if not row.stats:
        return [Cell("not run"), NONE, NONE]
    return [Cell(_mean(row.stats[metric]), metric in row.bold) for metric in SHOWN]


def _seeds(row: Row) -> str:
    return str(len(row.seeds)) if row.seeds else "–"


def _mean(stat: Stat) -> str:
    if not math.isfinite(stat.mean):
        return "undefined"
    return f"{stat.mean:.3f}" + ("" if stat.std is None else f" ± {stat.std:.3f}")


def interval(found: Difference) -> str:
    """A difference with its interval, as `+0.123 [−0.045, +0.291]`; a dash where there is none."""
    if not math.isfinite(found.value):
        return "undefined"
    ends = "–" if found.low is None or found.high is None else f"[{_signed(found.low)}, {_signed(found.high)}]"
    return f"{_signed(found.value)} {ends}"


def _signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text[1:] == "0.000" else text


def _covers(row: Row) -> Cell:
    covers = {found.covers for found in row.differences.values()} - {""}
    return Cell(covers.pop()) if covers else NONE


def _printed(printed: Reported | None, name: str) -> Cell:
    value = None if printed is None else getattr(printed, name)
    return NONE if value is None else Cell(f"{value:.3f}")


def _csv_row(row: Row) -> dict[str, str]:
    def number(value: float | None) -> str:
        return (
            "" if value is None or not math.isfinite(value) else f"{round(value, 6) + 0.0:.6f}".rstrip("0").rstrip(".")
        )

    line = {
        "model": _csv(row.name),
        "status": "measured" if row.stats else "not run",
        "seeds": " ".join(map(str, row.seeds)),
    }
    for metric in SHOWN:
        stat = row.stats.get(metric, Stat(math.nan))
        found = row.differences.get(metric, Difference(math.nan))
        line[metric] = number(stat.mean)
        line[f"{metric}_std"] = number(stat.std)
        line[f"{metric}_difference"] = number(found.value)
        line[f"{metric}_low"] = number(found.low)
        line[f"{metric}_high"] = number(found.high)
        line[f"{metric}_covers"] = found.covers
        line[f"{metric}_bold"] = "yes" if metric in row.bold else ""
        line[f"{metric}_study"] = number(None if row.printed is None else getattr(row.printed, metric))
    for name in ("reported", "deployed", "here"):
        line[f"parameters_{name}"] = "" if getattr(row, name) is None else str(getattr(row, name))
    line["parameters_study_millions"] = number(None if row.printed is None else row.printed.params)
    ratio, low, high = row.ratio or (None, None, None)
    line |= {"gflops": number(row.gflops), "ms": number(row.ms)}
    return line | {"ms_ratio": number(ratio), "ms_ratio_low": number(low), "ms_ratio_high": number(high)}


def _csv(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    line = _line(text)
    return f"'{line}" if line[:1] in "=+-@" else line


def _line(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _md(text: str) -> str:
    """Text that Markdown, HTML and MathJax show as it is."""
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    escaped = (
        entities.get(letter) or (f"\\{letter}" if letter in "\\`*_{}[]#|~$!" else letter) for letter in _line(text)
    )
    return "".join(escaped)


_TEX = {
    **{letter: f"\\{letter}" for letter in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "°": r"$^\circ$",
    "⁹": r"$^9$",
    "–": "--",
    "“": "``",
    "”": "''",
}


def _tex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    line = _line(text)
    guard = "{}" if line[:1] in ("[", "*") else ""  # after the end of a row they would be taken for its argument
    return guard + "".join(_TEX.get(letter, letter) for letter in line)


# Figures


def forest(table: Table) -> Figure:
    """Differences to the baseline with their intervals, one panel per metric; variants that were not run are absent."""
    rows = [row for row in table.rows if row.differences][::-1]
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.5, 1.5 + 0.21 * max(len(rows), 2)), layout="constrained")
        axes = figure.subplots(1, len(SHOWN), sharey=True)
        for axis, metric in zip(axes, SHOWN, strict=True):
            _forest(axis, rows, metric)
        axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
        axes[0].set_ylim(-0.7, max(len(rows), 1) - 0.3)
        if not rows:
            for axis in axes:
                axis.set(xticks=[])
            axes[1].text(0.5, 0.6, "no run to compare yet", ha="center", transform=axes[1].transAxes)
        marks = [
            Line2D([], [], color=color, marker="o", markersize=4, markerfacecolor=face, label=label, linewidth=width)
            for label, color, face, width in (
                (f"better than {table.baseline}", *_COLORS["better"], 1.4),
                ("worse", *_COLORS["worse"], 1.4),
                ("interval holds zero", *_COLORS["open"], 1.4),
                ("no interval", "0.45", "white", 0),
            )
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    return figure


_COLORS = {"better": ("C0", "C0"), "worse": ("C1", "C1"), "open": ("0.45", "0.45")}


def _forest(axis: Axes, rows: Sequence[Row], metric: str) -> None:
    found = [(y, row.differences[metric]) for y, row in enumerate(rows) if math.isfinite(row.differences[metric].value)]
    axis.axvline(0, color="black", linewidth=0.8)
    for y, each in found:
        good = (each.value > 0) == (METRICS[metric].better == "higher")
        color, face = _COLORS["open" if not each.excludes_zero else "better" if good else "worse"]
        if each.low is not None and each.high is not None:
            axis.plot([each.low, each.high], [y, y], color=color, solid_capstyle="butt")
        axis.plot(each.value, y, "o", color=color, markersize=4, markerfacecolor="white" if each.low is None else face)
    axis.set_xlabel(f"Δ {METRICS[metric].heading}, {METRICS[metric].better} is better")
    axis.grid(visible=False, axis="y")
    axis.locator_params(axis="x", nbins=5)
    if found:
        # An interval from few seeds may be a hundred times as wide as the differences: it is cut at the frame.
        reach = max(abs(end) for _, each in found for end in (each.value, each.low or 0, each.high or 0))
        reach = min(reach, 6 * max(abs(each.value) for _, each in found)) or reach
        if reach > 0:
            axis.set_xlim(-1.08 * reach, 1.08 * reach)


def quality_against_cost(table: Table) -> Figure:
    """PSNR against GFLOPs and against deployed parameters; bars are the standard deviation over seeds."""
    rows = [row for row in table.rows if row.reported is not None and row.stats]
    rows = [row for row in rows if math.isfinite(row.stats["psnr"].mean)]
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.5, 4.6))
        figure.subplots_adjust(left=0.07, right=0.99, bottom=0.12, top=0.95, wspace=0.12)
        axes = figure.subplots(1, 2, sharey=True)
        xs = [[row.gflops or 0.0 for row in rows], [(row.deployed or 0) / 1e6 for row in rows]]
        labels = ("GFLOPs, 512×512×31 at dim 48, deployed", "deployed parameters at dim 48 (M)")
        for axis, x, label in zip(axes, xs, labels, strict=True):
            axis.set_xlabel(label)
            if rows:
                _scatter(axis, rows, x)
            else:
                axis.set(xticks=[], yticks=[])
                axis.text(0.5, 0.5, "no run yet", ha="center", transform=axis.transAxes)
        axes[0].set_ylabel("PSNR (dB)")
    return figure


def _scatter(axis: Axes, rows: Sequence[Row], x: Sequence[float]) -> None:
    y = [row.stats["psnr"].mean for row in rows]
    bars = [row.stats["psnr"].std or 0.0 for row in rows]
    axis.errorbar(x, y, yerr=bars, fmt="o", markersize=4, elinewidth=0.8, color="C0")
    low, high = min(np.subtract(y, bars)), max(np.add(y, bars))
    for setter, ends in ((axis.set_xlim, (min(x), max(x))), (axis.set_ylim, (low, high))):
        room = 0.22 * (ends[1] - ends[0]) or 0.05 * abs(ends[1])
        setter(ends[0] - room, ends[1] + room)
    points = axis.transData.transform(np.column_stack([x, y]))
    tips = [axis.transData.transform(np.column_stack([x, np.add(y, np.multiply(side, bars))])) for side in (-1, 1)]
    marks = np.column_stack([tips[0] - 4, tips[1] + 4])
    pixel = 72 / axis.figure.dpi  # in points
    corners = _places([row.name for row in rows], points, marks, np.array(axis.get_window_extent().extents), 1 / pixel)
    for row, point, corner in zip(rows, zip(x, y, strict=True), corners - points, strict=True):
        axis.annotate(
            row.name,
            point,
            tuple(corner * pixel),
            textcoords="offset points",
            fontsize=_LABEL,
            va="bottom",
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2.5},
        )


_LABEL = 7.0  # points


def _places(
    names: Sequence[str],
    points: Float[np.ndarray, "n 2"],
    marks: Float[np.ndarray, "n 4"],
    frame: Float[np.ndarray, " 4"],
    point: float,
) -> Float[np.ndarray, "n 2"]:
    """Lower left corners for labels of points, near them, on no other label or mark, inside the frame.

    Greedy, on rings around each point; where no place is free, the label covers its point.

    Args:
        names: the labels.
        points: in pixels.
        marks: boxes (left, bottom, right, top) that labels must not touch, in pixels.
        frame: the box for all.
        point: a typographic point in pixels.
    """
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rings = np.arange(7, 260, 5)[:, None] * point
    ways = np.stack([rings * np.cos(angles), rings * np.sin(angles)], axis=-1).reshape(-1, 2)
    lean = np.tile(np.cos(angles), len(rings))
    taken = list(marks)
    for name, spot in zip(names, points, strict=True):
        size = np.array([0.66 * len(name), 1.5]) * _LABEL * point  # generous for DejaVu Sans
        corners = spot + ways - size / 2 + np.stack([lean * size[0] / 2, np.zeros_like(lean)], axis=-1)
        free = (corners > frame[:2]).all(1) & (corners + size < frame[2:]).all(1)
        for box in taken:
            free &= ~((corners < box[2:]).all(1) & (box[:2] < corners + size).all(1))
        corner = corners[free.argmax()] if free.any() else spot
        taken.append(np.concatenate([corner, corner + size]))
    return np.array([box[:2] for box in taken[len(marks) :]])


# Files


def write(table: Table, folder: str | Path) -> list[Path]:
    """Write the table as `results.csv`, `.md` and `.tex`, and both figures as PDF; each whole or not at all.

    Raises:
        KAError: the folder cannot be written.
    """
    texts = {"results.csv": to_csv(table), "results.md": to_markdown(table), "results.tex": to_latex(table)}
    figures = {"differences.pdf": forest(table), "quality_cost.pdf": quality_against_cost(table)}
    files = {name: text.encode() for name, text in texts.items()}
    files |= {name: encoded(figure, "pdf") for name, figure in figures.items()}
    for name, data in files.items():
        write_bytes(Path(folder) / name, data)
    return [Path(folder) / name for name in files]
