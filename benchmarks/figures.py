"""Figures of the benchmark: how much faster than the plain form, and what a scene costs."""

from matplotlib.figure import Figure

from workbook.results.speed import SCENES_OF, Measurement, SceneCost
from workbook.style import styled

_PARTS = {"layer": "KA layer, forward and backward", "step": "training step", "inference": "inference"}


@styled
def ratios(measurement: Measurement) -> Figure:
    """Time of the plain form by time of the fast one, every variant: KA layer, training step, inference.

    A dot is the median over rounds, its bar reaches from the lower to the upper quartile; at the black line both take
    as long. Variants that came to the table after a full run are "not measured".
    """
    rows = [*measurement.variants, *measurement.unmeasured][::-1]
    figure = Figure(figsize=(9.5, 1.5 + 0.21 * max(len(rows), 2)), layout="constrained")
    axes = figure.subplots(1, len(_PARTS), sharey=True)
    for axis, (part, title) in zip(axes, _PARTS.items(), strict=True):
        axis.set_title(title)
        for y, name in enumerate(rows):
            if name not in measurement.variants:
                at, style = axis.get_yaxis_transform(), {"color": "0.45", "va": "center", "ha": "right"}
                axis.text(0.98, y, "not measured", transform=at, **style)
            elif (pair := getattr(measurement.variants[name], part)) is not None:
                axis.plot([pair.faster.low, pair.faster.high], [y, y], color="C0", solid_capstyle="butt")
                axis.plot(pair.faster.median, y, "o", color="C0", markersize=4)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlim(left=0)
        axis.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(-0.7, max(len(rows), 1) - 0.3)
    axes[1].set_xlabel("times as fast as the plain form")
    return figure


@styled
def scenes(measurement: Measurement) -> Figure:
    """Time and peak memory of sharpening a whole scene against its pixels, in one pass and in tiles.

    The dotted line through the smallest scene in one pass is a cost proportional to pixels. Memory is what comes on
    top of model and inputs; dashed is the part of it that the result takes.
    """
    measured = measurement.scenes or ()
    series: dict[str, list[SceneCost]] = {}
    for scene in sorted(measured, key=lambda scene: scene.size):
        series.setdefault(f"in tiles of {scene.tile}" if scene.tile else "in one pass", []).append(scene)
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, label in zip(axes, ("seconds", "peak memory (MiB)"), strict=True):
        axis.set(xlabel="scene (pixels)", ylabel=label)
        if not measured:
            axis.set(xticks=[], yticks=[])
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
    if not measured:
        return figure
    for k, (label, some) in enumerate(series.items()):
        pixels = [scene.pixels for scene in some]
        style = {"marker": "os^"[k % 3], "markersize": 4, "label": label}
        axes[0].plot(pixels, [scene.seconds for scene in some], **style)
        axes[1].plot(pixels, [scene.mib for scene in some], **style)
    every = sorted({scene.size for scene in measured})
    ends = [every[0] ** 2, every[-1] ** 2]
    first = next(iter(series.values()))[0]
    line = [first.seconds * pixels / first.pixels for pixels in ends]
    axes[0].plot(ends, line, ":", color="black", linewidth=1, label="proportional to pixels", zorder=1)
    result = {scene.pixels: scene.images_mib for scene in measured}
    axes[1].plot(list(result), list(result.values()), "--", color="0.45", linewidth=1, label="the result itself")
    for axis in axes:
        axis.set(xscale="log", yscale="log")
        axis.set_xticks([size**2 for size in every], [f"{size}²" for size in every], minor=False)
        axis.minorticks_off()
        axis.legend()
    bands, dim = measurement.setting.n_bands, measurement.setting.dim
    figure.suptitle(f"{SCENES_OF}, {bands} bands, dim {dim}, {measurement.label}", fontsize=9)
    return figure
