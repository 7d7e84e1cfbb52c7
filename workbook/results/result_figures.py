"""Figures of results: differences with intervals and scene by scene, quality against cost, answers to the questions."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import offset_copy
from scipy.optimize import isotonic_regression

from ka.metrics import METRICS
from ka.models.variants import VARIANTS
from workbook.results.compare import Difference
from workbook.results.questions import QUESTIONS, answers
from workbook.results.stored import SHOWN, UNTRAINED, Result
from workbook.results.table import Row, Table
from workbook.style import COLUMN, narrow, styled

COLOURS = {"better": "C0", "worse": "C1", "open": "0.45"}
LABELLED = (
    *("psrt_noshuffle", "kav6", "kav11", "kav11_no_ln", "kav17", "conv3x3"),
    *("kav20", "kav21", "kav22", "residual", "kav26", "kav26_wide"),
)
"""Rows that quality_against_cost names, the others are light, and that scene_by_scene shows."""


@narrow
def forest(table: Table) -> Figure:
    """Differences to the baseline with their intervals, one panel per metric; variants that were not run are absent."""
    rows = [row for row in table.rows if row.differences][::-1]
    figure = Figure(figsize=(COLUMN, 0.95 + 0.12 * max(len(rows), 3)), layout="constrained")
    axes = figure.subplots(1, len(SHOWN), sharey=True)
    for axis, metric in zip(axes, SHOWN, strict=True):
        _forest(axis, rows, metric)
    axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
    axes[0].set_ylim(-0.7, max(len(rows), 1) - 0.3)
    if not rows:
        for axis in axes:
            axis.set(xticks=[])
        axes[1].text(0.5, 0.6, "no run to compare yet", ha="center", transform=axes[1].transAxes)
    texts = {"better": f"better than {table.baseline}", "worse": "worse", "open": "holds zero, or one seed or scene"}
    marks = [(text, COLOURS[side], COLOURS[side], 0.9) for side, text in texts.items()]
    _legend(figure, [*marks, ("no interval", COLOURS["open"], "white", 0)])
    return figure


def _legend(figure: Figure, marks: Sequence[tuple[str, str, str, float]]) -> None:
    """Under the figure: (label, colour, face, width of the line) of each mark."""
    handles = [
        Line2D([], [], color=colour, marker="o", markerfacecolor=face, label=label, linewidth=width)
        for label, colour, face, width in marks
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def mark(axis: Axes, difference: Difference, y: float, colour: str) -> None:
    """A difference as a dot, open where it has no interval, and its interval as a bar."""
    face = "white"
    if difference.low is not None and difference.high is not None:
        axis.plot([difference.low, difference.high], [y, y], color=colour, solid_capstyle="butt")
        face = colour
    axis.plot(difference.value, y, "o", color=colour, markerfacecolor=face)


def _forest(axis: Axes, rows: Sequence[Row], metric: str) -> None:
    everything = [(y, row.differences[metric]) for y, row in enumerate(rows)]
    differences = [(y, difference) for y, difference in everything if math.isfinite(difference.value)]
    axis.axvline(0, color="black", linewidth=0.8)
    for y, difference in differences:
        good = (difference.value > 0) == (METRICS[metric].better == "higher")
        mark(axis, difference, y, COLOURS["open" if not difference.decided else "better" if good else "worse"])
    axis.set_xlabel(f"Δ {METRICS[metric].heading},\n{METRICS[metric].better} is better")
    axis.grid(visible=False, axis="y")
    axis.locator_params(axis="x", nbins=4)
    axis.xaxis.set_major_formatter("{x:g}")  # a short zero leaves room for its neighbours
    if differences:
        # An interval from few seeds may be a hundred times as wide as the differences: it is cut at the frame.
        reach = max(abs(end or 0.0) for _, gap in differences for end in (gap.value, gap.low, gap.high))
        reach = min(reach, 6 * max(abs(gap.value) for _, gap in differences)) or reach
        if reach > 0:
            axis.set_xlim(-1.08 * reach, 1.08 * reach)


@narrow
def scene_by_scene(table: Table) -> Figure:
    """PSNR differences to the baseline, a dot for every test scene and row: the `LABELLED` rows and own networks, all
    where none of these was run. The scene that gains least stands at the bottom, under it the mean.
    """
    compared = [row for row in table.rows if row.differences and row.differences["psnr"].by_scene]
    rows = [row for row in compared if row.name in LABELLED or row.name not in VARIANTS] or compared
    gaps = np.array([row.differences["psnr"].by_scene for row in rows]).reshape(len(rows), len(table.scenes))
    order = np.argsort(gaps.mean(0)) if rows else np.arange(0)
    heights = np.array([0.0, *range(2, len(order) + 2)])
    figure = Figure(figsize=(COLUMN, 1.0 + 0.16 * heights.max(initial=3)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="black", linewidth=0.8)
    for i, (row, gap) in enumerate(zip(rows, gaps, strict=True)):
        spread = heights + 0.7 * (0.5 - (i + 0.5) / len(rows))  # or dots of one scene would hide each other
        marker = "os^Dv"[i % 5]
        axis.plot([gap.mean(), *gap[order]], spread, marker, color=f"C{i % 7}", label=row.name)
    axis.set_yticks(heights, ["mean of all", *(table.scenes[i] for i in order)])
    axis.set_ylim(-0.6, heights[-1] + 0.6)
    axis.set_xlabel(f"Δ PSNR (dB) to {table.baseline}")
    if rows:
        figure.legend(loc="outside lower center", ncols=3)
    else:
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.6, "no run to compare yet", ha="center", transform=axis.transAxes)
    return figure


@styled
def quality_against_cost(table: Table) -> Figure:
    """PSNR against GFLOPs, deployed parameters and time of training; bars are the standard deviation over seeds.

    Methods without training are lines, where they are near enough to the networks to be seen.
    """
    rows = [row for row in table.rows if row.deployed is not None and row.stats]
    rows = [row for row in rows if math.isfinite(row.stats["psnr"].mean)]
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    minutes = [(row.seconds or 0.0) / 60 for row in rows]
    xs = [[row.gflops or 0.0 for row in rows], [(row.deployed or 0) / 1e6 for row in rows], minutes]
    labels = ("GFLOPs, 512×512×31 at dim 48, deployed", "deployed parameters at dim 48 (M)", "training here (min)")
    for axis, x, label in zip(axes, xs, labels, strict=True):
        axis.set_xlabel(label)
        axis.margins(x=0.3, y=0.08)
        for row, at in zip(rows, x, strict=True):
            named = row.name in LABELLED
            psnr = row.stats["psnr"]
            axis.errorbar(
                at, psnr.mean, psnr.std or None, fmt="o", markersize=4, elinewidth=0.8,
                color="C0" if named else "0.75", zorder=3 if named else 2,
            )  # fmt: skip
        near = _near(table, rows)
        levels = [row.stats["psnr"].mean for row in (*rows, *near)]
        _name_points(axis, rows, x, 0.046 * (max(levels, default=0.0) - min(levels, default=0.0)))
        for row in near:
            level = row.stats["psnr"].mean
            axis.axhline(level, color="0.6", linestyle=":", linewidth=1)
            axis.annotate(row.name, (0.02, level), xycoords=("axes fraction", "data"), fontsize=7, va="bottom")
        if not rows:
            axis.set(xticks=[], yticks=[])
            axis.text(0.5, 0.5, "no run yet", ha="center", transform=axis.transAxes)
    axes[0].set_ylabel("PSNR (dB)")
    return figure


def _near(table: Table, rows: Sequence[Row]) -> list[Row]:
    """The methods without training that lie below the networks by less than these lie apart: or they would be flat."""
    levels = [row.stats["psnr"].mean for row in rows] or [math.inf]
    without = [row for row in table.rows if row.name in UNTRAINED and row.stats]
    return [row for row in without if row.stats["psnr"].mean > 2 * min(levels) - max(levels)]


def _name_points(axis: Axes, rows: Sequence[Row], x: Sequence[float], line: float) -> None:
    """Names of the labelled rows beside their points, at least a line (in dB) apart, else as near as can be."""
    spots = sorted((row.stats["psnr"].mean, at, row.name) for row, at in zip(rows, x, strict=True))
    spots = [spot for spot in spots if spot[2] in LABELLED]
    if not spots:
        return
    apart = line * np.arange(len(spots))
    heights = isotonic_regression([level for level, _, _ in spots] - apart).x + apart
    for (level, at, name), height in zip(spots, heights, strict=True):
        side, edge = (-9, "right") if at > min(x) + 0.8 * (max(x) - min(x)) else (9, "left")
        beside = offset_copy(axis.transData, axis.get_figure(root=True), side, 0, units="points")
        to_point = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        text = axis.annotate(
            name, (at, level), (at, height), textcoords=beside, fontsize=7, va="center", ha=edge, arrowprops=to_point
        )
        text.set_in_layout(False)  # or every drawing would move the axes a little further
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # to be read over bars


@narrow
def chart(results: Sequence[Result], questions: Sequence[str] = tuple(QUESTIONS), which: str = "best") -> Figure:
    """Differences in PSNR with their intervals, question by question; what was not run is counted, without a mark."""
    colours = {"supported": "C2", "better": "C2", "refuted": "C1", "worse": "C1", "equal within 0.1 dB": "C0"}
    blocks = [(title, answers(results, title, which)) for title in questions]
    figure = Figure(layout="constrained")
    axis = figure.subplots()
    y, ticks, labels = 0.0, [], []
    for title, block in blocks:
        over = {"facecolor": "white", "linewidth": 0, "pad": 0.5}  # a long title runs over the axis
        at = (0.01, y)
        text = axis.annotate(title, at, xycoords=("figure fraction", "data"), weight="bold", va="center", bbox=over)
        text.set_in_layout(False)
        run = [(answer.comparison.label, answer) for answer in block if answer.differences]
        missing = [(f"({len(block) - len(run)} not run)", None)] if len(run) < len(block) else []
        for label, answer in (*run, *missing):
            lines = textwrap.wrap(label, 34)
            y -= 0.6 + 0.4 * len(lines)
            ticks.append(y)
            labels.append("\n".join(lines))
            if answer is not None:
                mark(axis, answer.differences["psnr"], y, colours.get(answer.verdict, "0.45"))
            y -= 0.4 * (len(lines) - 1)
        y -= 1.2
    figure.set_size_inches(COLUMN, 0.75 + 0.115 * -y)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(ticks, labels)
    axis.set_ylim(y + 0.6, 0.8)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("Δ PSNR (dB)")
    texts = (
        *(("as claimed, or better", "C2"), ("against the claim, or worse", "C1")),
        *(("equal within 0.1 dB", "C0"), ("not decided", "0.45")),
    )
    _legend(figure, [(text, colour, colour, 0.9) for text, colour in texts])
    return figure
