"""Figures of training and of sharpened images: from plain values to a matplotlib figure."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ka.data import Scene, SceneSet
from ka.methods.consistency import residuals
from workbook.style import styled
from workbook.views.draw import WIDTH, row_of_axes, show_image

Image = Float[np.ndarray, "bands h w"]


def pixels_png(picture: Float[np.ndarray, "h w 3"], zoom: int = 1) -> bytes:
    """A picture in [0, 1] as PNG bytes, every pixel as a square of `zoom` pixels."""
    pixels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


@styled
def curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss and validation PSNR against iterations, raw and averaged weights apart."""
    figure, (loss, quality) = row_of_axes(2, 8, 2.6)
    steps = [note["step"] for note in history]
    loss.plot(steps, [note["loss"] for note in history], marker=".")
    loss.set(xlabel="iteration", ylabel="training loss", yscale="log" if history else "linear")
    for key, label in (("psnr", "raw weights"), ("psnr_average", "averaged weights")):
        points = [(note["step"], note[key]) for note in history if note.get(key) is not None]
        if points:
            quality.plot(*zip(*points, strict=True), marker=".", label=label)
    quality.set(xlabel="iteration", ylabel="validation PSNR (dB)")
    if quality.lines:
        quality.legend()
    else:
        text = "undefined" if any("psnr" in note for note in history) else "no validation yet"
        quality.text(0.5, 0.5, text, ha="center", va="center", transform=quality.transAxes)
    return figure


@styled
def curves_beside(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss and validation PSNR (of averaged weights) of several runs, by name, against iterations."""
    figure, (loss, quality) = row_of_axes(2, 8, 3)
    for name, history in histories.items():
        loss.plot([note["step"] for note in history], [note["loss"] for note in history], marker=".", label=name)
        points = [(note["step"], note["psnr_average"]) for note in history if note.get("psnr_average") is not None]
        quality.plot([step for step, _ in points], [psnr for _, psnr in points], marker=".")
    loss.set(xlabel="iteration", ylabel="training loss", yscale="log")
    quality.set(xlabel="iteration", ylabel="validation PSNR (dB)")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def as_rgb(image: Image, display: tuple[int, int, int], like: Image) -> Float[np.ndarray, "h w 3"]:
    """Three bands as a picture, black to white from the 0.5th to the 99.5th percentile of the same bands of `like`."""
    chosen = np.moveaxis(np.asarray(image, dtype=np.float64)[list(display)], 0, -1)
    black, white = np.percentile(np.asarray(like)[list(display)], (0.5, 99.5))
    return np.clip((chosen - black) / max(white - black, 1e-6), 0, 1)


@styled
def natural_colours(scenes: SceneSet, scene: Scene, images: Mapping[str, Image]) -> Figure:
    """The scene in natural colours: truth (if known), the low-resolution image, and each method's result."""
    panels = ({} if scene.gt is None else {"truth": scene.gt}) | {"LR-HSI": scene.lr, **images}
    figure, axes = _panels(len(panels), scene.msi.shape)
    for axis, (title, image) in zip(axes, panels.items(), strict=True):
        show_image(axis, as_rgb(image, scenes.display, scene.lr if scene.gt is None else scene.gt), title)
    return figure


@styled
def error_maps(scene: Scene, images: Mapping[str, Image]) -> Figure:
    """Absolute error, mean over bands, a panel per method on one colour scale; the number is its mean.

    Bicubic's errors, several times as large, do not set the scale, or the others would be dark and alike.
    """
    errors = {title: np.abs(image - scene.gt).mean(0) for title, image in images.items()}
    figure, axes = _panels(len(errors), scene.gt.shape)
    scale = [error for title, error in errors.items() if title != "bicubic"] or list(errors.values())
    top = max(float(np.percentile(error, 99.5)) for error in scale)
    for axis, (title, error) in zip(axes, errors.items(), strict=True):
        drawn = show_image(axis, error, f"{title}\nmean {error.mean():.5f}", vmin=0, vmax=top, cmap="viridis")
    figure.colorbar(drawn, ax=axes, label="|error|, mean over bands", shrink=0.8, extend="max")
    return figure


@styled
def residual_maps(scenes: SceneSet, scene: Scene, images: Mapping[str, Image]) -> Figure:
    """What each method's image leaves of the two observations (`ka.residuals`): of the HR-MSI above, the LR-HSI below.

    Without a known response there is no upper row. The numbers are root mean squares; 0 is an image that agrees.
    """
    seen = {
        name: residuals(image, scene.lr, scene.msi, scenes.degradation, scenes.srf) for name, image in images.items()
    }
    parts = ["spatial"] if scenes.srf is None else ["spectral", "spatial"]
    h, w = scene.msi.shape[1:]
    figure = Figure(figsize=(WIDTH, len(parts) * min(4.0, WIDTH / len(images) * h / w + 0.6)), layout="constrained")
    axes = figure.subplots(len(parts), len(images), squeeze=False)
    for part, row in zip(parts, axes, strict=True):
        maps = {name: getattr(residual, part) for name, residual in seen.items()}
        top = max(float(np.percentile(values, 99.5)) for values in maps.values()) or 1.0
        for axis, (name, values) in zip(row, maps.items(), strict=True):
            rms = np.sqrt((values**2).mean())
            drawn = show_image(axis, values, f"{name}\n{part} {rms:.1e}", vmin=0, vmax=top, cmap="viridis")
        figure.colorbar(drawn, ax=row, shrink=0.8)
    return figure


@styled
def spectra(scenes: SceneSet, scene: Scene, images: Mapping[str, Image], pixels: Sequence[tuple[int, int]]) -> Figure:
    """Spectra of chosen pixels (row, column): truth and every method, the error of each below.

    Without a truth, the low-resolution pixel that they lie in stands in its place.
    """
    known = scene.gt is not None
    bands = np.arange(scenes.n_bands) if scenes.wavelengths is None else scenes.wavelengths
    order = np.argsort(bands, kind="stable")  # AVIRIS's spectrometers overlap: its table steps back
    figure = Figure(figsize=(3.2 * len(pixels), 4.4), layout="constrained")
    axes = figure.subplots(2, len(pixels), sharex=True, squeeze=False, height_ratios=(2, 1))
    for (above, below), (row, col) in zip(axes.T, pixels, strict=True):
        truth = scene.gt[:, row, col] if known else scene.lr[:, row // scene.ratio, col // scene.ratio]
        above.plot(bands[order], truth[order], color="black", label="truth" if known else "LR-HSI")
        for k, (title, image) in enumerate(images.items()):
            values = image[:, row, col]
            above.plot(bands[order], values[order], color=f"C{k}", label=title, linewidth=1)
            below.plot(bands[order], (values - truth)[order], color=f"C{k}", linewidth=1)
        above.set_title(f"row {row}, column {col}")
        below.set_xlabel("band" if scenes.wavelengths is None else "wavelength (nm)")
    axes[0, 0].set_ylabel("value, of 1")
    axes[1, 0].set_ylabel("error" if known else "minus LR-HSI")
    axes[0, 0].legend(fontsize=7)
    return figure


def _panels(n: int, shape: Sequence[int]) -> tuple[Figure, list[Axes]]:
    return row_of_axes(n, WIDTH, min(6.0, WIDTH / n * shape[-2] / shape[-1] + 0.6))
