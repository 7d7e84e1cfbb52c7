"""Figures of the audit (`workbook.audit.findings`, `audit.ipynb`): one function each, from what the functions there
give."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.style
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbook.audit import findings as audit
from workbook.audit.findings import (
    EXACT,
    NOISE,
    STUDY_ROWS,
    TAPS,
    Adaptivity,
    Agreement,
    Branch,
    Noise,
    Placement,
    Seam,
    TwoPSNRs,
    called_best,
    running_mean,
)
from workbook.paths import STYLE


def figures() -> dict[str, Callable[[], Figure]]:
    """The pictures that `make figures` keeps, by name."""
    return {
        "misaligned": lambda: placements([one for one in audit.placements("psrt_misaligned") if one.layer == "L2"]),
        "kav8_sets": lambda: token_sets({name: audit.token_sets(name) for name in ("kav8", "kav8_as_run")}),
        "seam": lambda: seams(audit.seams(["kav2", "kav3", "kav4", "kav7", "kav11"]), ["kav3", "kav11"]),
        "noise": lambda: differences(audit.differences(), audit.noise()),
    }


def _bare(axis: Axes, title: str) -> None:
    axis.set(xticks=[], yticks=[], title=title)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def added(maps: Mapping[str, tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]]) -> Figure:
    """`added` of several variants, a column each: the shortcut above, what attention adds to it below.

    Every map is scaled to its own 1st and 92nd percentile: the place of things is to be compared, not their size.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(2.5 * len(maps) + 0.4, 5.2), layout="constrained")
        axes = figure.subplots(2, len(maps), squeeze=False)
        for column, (name, pair) in zip(axes.T, maps.items(), strict=True):
            for axis, values, what in zip(column, pair, ("shortcut", "added to it"), strict=True):
                low, high = np.percentile(values, (1, 92))
                axis.imshow(values, vmin=low, vmax=high)
                _bare(axis, f"{name}\n{what}" if what == "shortcut" else what)
    return figure


def placements(placed: Sequence[Placement]) -> Figure:
    """A panel per layer: how far from its own pixel each attention output is added."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(2.7 * len(placed) + 0.9, 3.0), layout="constrained")
        axes = figure.subplots(1, len(placed), squeeze=False)[0]
        top = max(one.distance.max() for one in placed)
        for axis, one in zip(axes, placed, strict=True):
            drawn = axis.imshow(one.distance, vmin=0, vmax=top)
            _bare(axis, f"{one.window}×{one.window}, {one.layer}: {one.share:.1%} displaced")
        figure.colorbar(drawn, ax=axes, label="displacement (pixels)")
    return figure


def token_sets(sets: Mapping[str, Int[np.ndarray, "sets taps three"]]) -> Figure:
    """Which filters attend to each other: a column per set of tokens, its filters one below the other.

    Colour: the output channel that a filter belongs to. Letter: its kernel, G or window 1 to 4.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.5, 2.1 * len(sets)), layout="constrained")
        axes = figure.subplots(len(sets), 1, squeeze=False, sharex=True)[:, 0]
        for axis, (name, tokens) in zip(axes, sets.items(), strict=True):
            kernel, output = (part[:, ::TAPS].T for part in np.moveaxis(tokens, -1, 0)[:2])
            top = len(tokens) - 1
            drawn = axis.imshow(output, aspect="auto", vmin=0, vmax=top)
            for (slot, column), k in np.ndenumerate(kernel):
                colour = "white" if output[slot, column] < 0.6 * top else "black"
                axis.text(column, slot, "G1234"[k], ha="center", va="center", fontsize=7, color=colour)
            axis.set(title=name, yticks=[], ylabel="filters of the set")
            axis.grid(visible=False)
        axes[-1].set(xlabel="token set (one self-attention each)", xticks=range(0, len(tokens), 4))
        figure.colorbar(drawn, ax=axes, label="output channel\nof the filter")
    return figure


def singular(found: Sequence[Branch]) -> Figure:
    """Singular values of the n·c outputs before fusion, on a log scale down to rounding."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(5.4, 2.8), layout="constrained")
        axis = figure.subplots()
        for one, marker in zip(found, "os^Dv", strict=False):
            values = np.maximum(one.singular, 1e-17)
            axis.plot(
                np.arange(1, len(values) + 1),
                values,
                marker=marker,
                markersize=3,
                label=f"{one.variant}: rank {one.rank}",
            )
        axis.set(xlabel="singular value", ylabel="relative size", yscale="log", ylim=(3e-18, 3))
        axis.legend(loc="center right")
    return figure


def adaptivity(found: Sequence[Adaptivity]) -> Figure:
    """Error of additivity of every variant, marked by whether its kernels move with the image."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(6.2, 0.19 * len(found) + 0.8), layout="constrained")
        axis = figure.subplots()
        for adaptive, label, marker in ((False, "fixed kernels", "o"), (True, "kernels follow the image", "D")):
            chosen = [row for row, one in enumerate(found) if one.adaptive == adaptive]
            errors = [max(found[row].error, 1e-17) for row in chosen]
            axis.scatter(errors, chosen, marker=marker, s=22, label=label, zorder=2)
        axis.axvline(EXACT, color="C6", linewidth=0.8, linestyle="--")
        axis.set(
            xscale="log",
            xlim=(1e-17, 10),
            xlabel="|f(x + y) − f(x) − f(y) + f(0)|, relative",
            ylim=(len(found) - 0.4, -0.6),
        )
        axis.set_yticks(range(len(found)), [one.variant for one in found])
        axis.legend(loc="upper center")
    return figure


def seams(found: Sequence[Seam], shown: Sequence[str]) -> Figure:
    """Constant and smooth input through the layers `shown`, and the steps between rows of all of them."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.5, 2.2 * len(shown) + 0.4), layout="constrained")
        grid = figure.add_gridspec(len(shown), 3, width_ratios=(1, 1, 2))
        by_name = {one.variant: one for one in found}
        for i, name in enumerate(shown):
            for j, (values, what) in enumerate(
                ((by_name[name].constant, "constant"), (by_name[name].smooth, "smooth"))
            ):
                axis = figure.add_subplot(grid[i, j])
                low, high = np.percentile(values, (2, 98))
                _bare(axis, f"{name}, {what} image")
                middle, half = (low + high) / 2, max((high - low) / 2, 1e-3)
                figure.colorbar(axis.imshow(values, vmin=middle - half, vmax=middle + half), ax=axis)
        axis = figure.add_subplot(grid[:, 2])
        for one, style in zip(found, ("-", "--", ":", "-.", (0, (1, 3))), strict=False):
            rows = np.arange(len(one.step)) + 0.5
            axis.plot(rows, one.step / np.nanmedian(one.step), linestyle=style, label=f"{one.variant}: {one.ratio:.1f}")
        axis.set(title="smooth image: step between rows, over the median", xlabel="row", ylabel="step / median step")
        axis.set_ylim(bottom=0)
        axis.legend(title="in the middle", loc="upper right")
    return figure


def agreement(found: Sequence[Agreement], met: Int[np.ndarray, "n h w"]) -> Figure:
    """How far a layer on patches is from the same layer on the whole; `kernels_met` beside it."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(3.1 * len(found) + 3.1, 2.9), layout="constrained")
        *axes, last = figure.subplots(1, len(found) + 1)
        top = max(float(np.percentile(one.difference, 99)) for one in found)
        for axis, one in zip(axes, found, strict=True):
            drawn = axis.imshow(one.difference, vmin=0, vmax=top)
            _bare(axis, f"{one.variant}: {one.share:.0%} of the inside equal")
        figure.colorbar(drawn, ax=axes, label="|patches − whole|, relative", shrink=0.85)
        drawn = last.imshow((met > 0).sum(0), vmin=0, vmax=len(met))
        _bare(last, f"{len(met[0])}² scene: kernels met in training")
        figure.colorbar(drawn, ax=last, ticks=range(len(met) + 1), shrink=0.85)
    return figure


def selection(history: Sequence[Mapping[str, float]]) -> Figure:
    """A run at a constant rate: validation PSNR of raw and averaged weights, and what the study's rule looked at."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.5, 2.9), layout="constrained")
        quality, loss = figure.subplots(1, 2)
        steps = np.array([note["step"] for note in history])
        losses = [note["loss"] for note in history]
        raw, average = (np.array([note[key] for note in history]) for key in ("psnr", "psnr_average"))
        best, found = called_best(losses), audit.selection(history)
        quality.plot(steps, raw, label="raw weights")
        quality.plot(steps, average, label="averaged weights")
        quality.scatter(steps[best], raw[best], s=12, color="C0", zorder=3, label="“best” by the study's rule")
        quality.set(
            title=f"largest fall, second half: raw {found.fall:.1f} dB, averaged {found.fall_average:.1f} dB",
            xlabel="iteration",
            ylabel="validation PSNR (dB)",
            ylim=(np.percentile(raw, 10) - 1, average.max() + 0.3),
        )
        quality.legend(fontsize=7, loc="lower right")
        loss.plot(steps, losses, color="C4", linewidth=1, label="training loss")
        loss.plot(steps, running_mean(losses), color="C6", label="running mean over the whole process")
        half = len(losses) // 2
        loss.plot(
            steps[half:],
            running_mean(losses, half)[half:],
            color="C3",
            linestyle="--",
            label="the same, resumed half-way",
        )
        loss.set(
            title=f"“best”: {found.called_best:.0%} of the second half, up to {found.below:.1f} dB below the best",
            xlabel="iteration",
            ylabel="training loss",
        )
        loss.legend(fontsize=7)
    return figure


def differences(gaps: Mapping[str, float], found: Noise, lowest: float = -1.0) -> Figure:
    """Printed differences to the baseline with the bands of noise; what lies below `lowest` is written at the edge."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(8.2, 0.21 * len(gaps) + 0.9), layout="constrained")
        axis = figure.subplots()
        axis.axvspan(
            -found.two_sigma,
            found.two_sigma,
            color="C5",
            alpha=0.18,
            linewidth=0,
            label=f"±{found.two_sigma:.2f} dB: 95 % of\npairs of equal models",
        )
        axis.axvspan(-NOISE, NOISE, color="C5", alpha=0.35, linewidth=0, label=f"±{NOISE} dB")
        for colour, label, chosen in (
            ("C0", "the study's table", [name for name in gaps if name in STUDY_ROWS]),
            ("C1", "the later report", [name for name in gaps if name not in STUDY_ROWS]),
        ):
            places = [list(gaps).index(name) for name in chosen]
            axis.scatter(
                [max(gaps[name], lowest) for name in chosen], places, s=22, color=colour, label=label, zorder=3
            )
        for row, gap in enumerate(gaps.values()):
            if gap < lowest:
                axis.text(lowest + 0.04, row, f"◂ {gap:.1f} dB".replace("-", "−"), va="center", fontsize=8)
        axis.set(
            xlabel="printed PSNR less the baseline's (dB)", ylim=(len(gaps) - 0.4, -0.6), xlim=(lowest - 0.05, 0.75)
        )
        axis.set_yticks(range(len(gaps)), list(gaps))
        figure.legend(loc="outside right upper", fontsize=7)
    return figure


def two_psnrs(found: Mapping[str, TwoPSNRs]) -> Figure:
    """PSNR of every band, and the two numbers that are printed under the one name."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(4.75 * len(found), 2.9), layout="constrained")
        axes = figure.subplots(1, len(found), squeeze=False)[0]
        for axis, (title, one) in zip(axes, found.items(), strict=True):
            axis.plot(np.arange(1, len(one.bands) + 1), one.bands, color="C5", linewidth=1, label="each band, peak 1")
            for value, label, colour, style in (
                (one.ours, "mean over bands, peak 1 (study)", "C0", "-"),
                (one.pooled, "all bands' MSE, peak 1", "C2", "--"),
                (one.published, "all bands' MSE, peak max (published)", "C1", "-."),
            ):
                axis.axhline(value, color=colour, linestyle=style, label=f"{value:.2f}: {label}")
            low, high = min(one.bands.min(), one.published), one.bands.max()
            axis.set(title=title, xlabel="band", ylabel="PSNR (dB)", ylim=(low - 1, high + 0.55 * (high - low)))
            axis.legend(fontsize=7, loc="upper right")
    return figure
