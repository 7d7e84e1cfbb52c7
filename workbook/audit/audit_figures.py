"""Figures of the audit: one function each, from what the functions of this folder give."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from workbook.audit import adaptivity as adapting
from workbook.audit import kept_weights, layers, shuffle, table
from workbook.audit.kept_weights import called_best, running_mean
from workbook.audit.table import NOISE, STUDY_ROWS
from workbook.audit.trials import EXACT, TAPS
from workbook.style import styled
from workbook.views.draw import row_of_axes, show_image


def figures() -> dict[str, Callable[[], Figure]]:
    """The pictures that `make figures` keeps, by name."""
    return {
        "misaligned": lambda: placements([at for at in shuffle.placements("psrt_misaligned") if at.layer == "L2"]),
        "kav8_sets": lambda: token_sets({name: layers.token_sets(name) for name in ("kav8", "kav8_as_run")}),
        "seam": lambda: seams(adapting.seams(["kav2", "kav3", "kav4", "kav7", "kav11"]), ["kav3", "kav11"]),
        "noise": lambda: differences(table.differences(), table.noise()),
    }


@styled
def added(maps: Mapping[str, tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]]) -> Figure:
    """`added` of several variants, a column each: the shortcut above, what attention adds to it below. Every map is
    scaled to its own 1st and 92nd percentile: the place of things is to be compared, not their size.
    """
    figure = Figure(figsize=(2.5 * len(maps) + 0.4, 5.2), layout="constrained")
    axes = figure.subplots(2, len(maps), squeeze=False)
    for column, (name, pair) in zip(axes.T, maps.items(), strict=True):
        for axis, values, title in zip(column, pair, (f"{name}\nshortcut", "added to it"), strict=True):
            low, high = np.percentile(values, (1, 92))
            show_image(axis, values, title, vmin=low, vmax=high)
    return figure


@styled
def placements(placed: Sequence[shuffle.Placement]) -> Figure:
    """A panel per layer: how far from its own pixel each attention output is added."""
    figure, axes = row_of_axes(len(placed), 2.7 * len(placed) + 0.9, 3.0)
    top = max(placement.distance.max() for placement in placed)
    for axis, placement in zip(axes, placed, strict=True):
        title = f"{placement.window}×{placement.window}, {placement.layer}: {placement.share:.1%} displaced"
        drawn = show_image(axis, placement.distance, title, vmin=0, vmax=top)
    figure.colorbar(drawn, ax=axes, label="displacement (pixels)")
    return figure


@styled
def token_sets(sets: Mapping[str, Int[np.ndarray, "sets taps three"]]) -> Figure:
    """Which filters attend to each other: a column per set of tokens, its filters one below the other. Colour: the
    output channel that a filter belongs to. Letter: its kernel, G or window 1 to 4.
    """
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


@styled
def singular(branches: Sequence[layers.Branch]) -> Figure:
    """Singular values of the n·c outputs before fusion, on a log scale down to rounding."""
    figure, (axis,) = row_of_axes(1, 5.4, 2.8)
    for branch, marker in zip(branches, "os^Dv", strict=False):
        x, values = np.arange(1, len(branch.singular) + 1), np.maximum(branch.singular, 1e-17)
        axis.plot(x, values, marker=marker, markersize=3, label=f"{branch.variant}: rank {branch.rank}")
    axis.set(xlabel="singular value", ylabel="relative size", yscale="log", ylim=(3e-18, 3))
    axis.legend(loc="center right")
    return figure


@styled
def adaptivity(variants: Sequence[adapting.Adaptivity]) -> Figure:
    """Error of additivity of every variant, marked by whether its kernels move with the image."""
    figure, (axis,) = row_of_axes(1, 6.2, 0.19 * len(variants) + 0.8)
    for adaptive, label, marker in ((False, "fixed kernels", "o"), (True, "kernels follow the image", "D")):
        chosen = [row for row, variant in enumerate(variants) if variant.adaptive == adaptive]
        errors = [max(variants[row].error, 1e-17) for row in chosen]
        axis.scatter(errors, chosen, marker=marker, s=22, label=label, zorder=2)
    axis.axvline(EXACT, color="C6", linewidth=0.8, linestyle="--")
    axis.set(xscale="log", xlim=(1e-17, 10), ylim=(len(variants) - 0.4, -0.6))
    axis.set_xlabel("|f(x + y) − f(x) − f(y) + f(0)|, relative")
    axis.set_yticks(range(len(variants)), [variant.variant for variant in variants])
    axis.legend(loc="upper center")
    return figure


@styled
def seams(seams: Sequence[adapting.Seam], shown: Sequence[str]) -> Figure:
    """Constant and smooth input through the layers `shown`, and the steps between rows of all of them."""
    figure = Figure(figsize=(9.5, 2.2 * len(shown) + 0.4), layout="constrained")
    grid = figure.add_gridspec(len(shown), 3, width_ratios=(1, 1, 2))
    by_name = {seam.variant: seam for seam in seams}
    for i, name in enumerate(shown):
        for j, (values, what) in enumerate(((by_name[name].constant, "constant"), (by_name[name].smooth, "smooth"))):
            axis = figure.add_subplot(grid[i, j])
            low, high = np.percentile(values, (2, 98))
            middle, half = (low + high) / 2, max((high - low) / 2, 1e-3)
            image = show_image(axis, values, f"{name}, {what} image", vmin=middle - half, vmax=middle + half)
            figure.colorbar(image, ax=axis)
    axis = figure.add_subplot(grid[:, 2])
    for seam, style in zip(seams, ("-", "--", ":", "-.", (0, (1, 3))), strict=False):
        rows = np.arange(len(seam.step)) + 0.5
        axis.plot(rows, seam.step / np.nanmedian(seam.step), linestyle=style, label=f"{seam.variant}: {seam.ratio:.1f}")
    axis.set(title="smooth image: step between rows, over the median", xlabel="row", ylabel="step / median step")
    axis.set_ylim(bottom=0)
    axis.legend(title="in the middle", loc="upper right")
    return figure


@styled
def agreement(agreements: Sequence[adapting.Agreement], met: Int[np.ndarray, "n h w"]) -> Figure:
    """How far a layer on patches is from the same layer on the whole; `kernels_met` beside it."""
    figure, (*axes, last) = row_of_axes(len(agreements) + 1, 3.1 * len(agreements) + 3.1, 2.9)
    top = max(float(np.percentile(agreement.difference, 99)) for agreement in agreements)
    for axis, agreement in zip(axes, agreements, strict=True):
        title = f"{agreement.variant}: {agreement.share:.0%} of the inside equal"
        drawn = show_image(axis, agreement.difference, title, vmin=0, vmax=top)
    figure.colorbar(drawn, ax=axes, label="|patches − whole|, relative", shrink=0.85)
    drawn = show_image(last, (met > 0).sum(0), f"{len(met[0])}² scene: kernels met in training", vmin=0, vmax=len(met))
    figure.colorbar(drawn, ax=last, ticks=range(len(met) + 1), shrink=0.85)
    return figure


@styled
def selection(history: Sequence[Mapping[str, float]]) -> Figure:
    """A run at a constant rate: validation PSNR of raw and averaged weights, and what the study's rule looked at."""
    figure, (quality, loss) = row_of_axes(2, 9.5, 2.9)
    steps = np.array([note["step"] for note in history])
    losses = [note["loss"] for note in history]
    raw, average = (np.array([note[key] for note in history]) for key in ("psnr", "psnr_average"))
    best, verdict = called_best(losses), kept_weights.selection(history)
    quality.plot(steps, raw, label="raw weights")
    quality.plot(steps, average, label="averaged weights")
    quality.scatter(steps[best], raw[best], s=12, color="C0", zorder=3, label="“best” by the study's rule")
    falls = f"raw {verdict.fall:.1f} dB, averaged {verdict.fall_average:.1f} dB"
    quality.set(title=f"largest fall, second half: {falls}", xlabel="iteration", ylabel="validation PSNR (dB)")
    quality.set_ylim(np.percentile(raw, 10) - 1, average.max() + 0.3)
    quality.legend(fontsize=7, loc="lower right")
    loss.plot(steps, losses, color="C4", linewidth=1, label="training loss")
    loss.plot(steps, running_mean(losses), color="C6", label="running mean over the whole process")
    half = len(losses) // 2
    resumed = running_mean(losses, half)
    loss.plot(steps[half:], resumed[half:], color="C3", linestyle="--", label="the same, resumed half-way")
    title = f"“best”: {verdict.called_best:.0%} of the second half, up to {verdict.below:.1f} dB below the best"
    loss.set(title=title, xlabel="iteration", ylabel="training loss")
    loss.legend(fontsize=7)
    return figure


@styled
def differences(gaps: Mapping[str, float], noise: table.Noise, lowest: float = -1.0) -> Figure:
    """Printed differences to the baseline with the bands of noise; what lies below `lowest` is written at the edge."""
    figure, (axis,) = row_of_axes(1, 8.2, 0.21 * len(gaps) + 0.9)
    two_sigma = f"±{noise.two_sigma:.2f} dB: 95 % of\npairs of equal models"
    for half, alpha, label in ((noise.two_sigma, 0.18, two_sigma), (NOISE, 0.35, f"±{NOISE} dB")):
        axis.axvspan(-half, half, color="C5", alpha=alpha, linewidth=0, label=label)
    for colour, label, of_study in (("C0", "the study's table", True), ("C1", "the later report", False)):
        chosen = [name for name in gaps if (name in STUDY_ROWS) == of_study]
        places = [list(gaps).index(name) for name in chosen]
        axis.scatter([max(gaps[name], lowest) for name in chosen], places, s=22, color=colour, label=label, zorder=3)
    for row, gap in enumerate(gaps.values()):
        if gap < lowest:
            axis.text(lowest + 0.04, row, f"◂ {gap:.1f} dB".replace("-", "−"), va="center", fontsize=8)
    axis.set(xlabel="printed PSNR less the baseline's (dB)", ylim=(len(gaps) - 0.4, -0.6), xlim=(lowest - 0.05, 0.75))
    axis.set_yticks(range(len(gaps)), list(gaps))
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


@styled
def two_psnrs(measured: Sequence[table.TwoPSNRs]) -> Figure:
    """PSNR of every band, and the two numbers that are printed under the one name."""
    figure, axes = row_of_axes(len(measured), 4.75 * len(measured), 2.9)
    for axis, psnrs in zip(axes, measured, strict=True):
        axis.plot(np.arange(1, len(psnrs.bands) + 1), psnrs.bands, color="C5", linewidth=1, label="each band, peak 1")
        for value, label, colour, style in (
            (psnrs.ours, "mean over bands, peak 1 (study)", "C0", "-"),
            (psnrs.pooled, "all bands' MSE, peak 1", "C2", "--"),
            (psnrs.published, "all bands' MSE, peak max (published)", "C1", "-."),
        ):
            axis.axhline(value, color=colour, linestyle=style, label=f"{value:.2f}: {label}")
        low, high = min(psnrs.bands.min(), psnrs.published), psnrs.bands.max()
        axis.set(title=psnrs.name, xlabel="band", ylabel="PSNR (dB)", ylim=(low - 1, high + 0.55 * (high - low)))
        axis.legend(fontsize=7, loc="upper right")
    return figure
