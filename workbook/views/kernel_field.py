"""How kernels that adapt change from place to place: their field over an image, and one of them at a pixel.

A field holds a kernel for every low-resolution pixel, k features × bands: of a model's own regression
(`ka.models.adaptive`), or of local injection where that is what a model starts from.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ka.data import Scene
from ka.data.simulate import Degradation, bicubic, degrade
from ka.errors import KAError
from ka.methods.attention import NEAR, around, window_weights
from ka.methods.injection import LocalInjection
from ka.methods.local import likeness, with_roots
from ka.methods.started import begun
from ka.models.adaptive.fields import degraded
from ka.models.adaptive.front import Front
from ka.models.psrt import PSRT
from workbook.style import styled
from workbook.views.draw import SIGNED, WIDTH, show_image
from workbook.views.trace import check_index

Attention = tuple[Float[Tensor, "1 g rows columns"], int, Float[Tensor, ""]]
"""Where pixels stand in likeness, a window's radius, and the standard deviation of nearness: `ka.methods.attention`."""


@dataclass(frozen=True, eq=False)
class KernelField:
    """The kernels of one image, and what they act on."""

    kernels: Float[np.ndarray, "rows columns k bands"]
    common: Float[np.ndarray, "k bands"]  # what a window without detail falls back on; the mean where nothing is told
    features: Float[np.ndarray, "k h w"]
    detail: Float[np.ndarray, "k h w"]  # what features have beyond the low resolution: the kernels weigh it
    labels: tuple[str, ...]  # of the features
    attention: Attention | None = None  # what weighs a window's pixels, where these do not all count alike

    @cached_property
    def usual(self) -> Float[np.ndarray, "k 1"]:
        """The root mean square of each feature's detail: a kernel times it is what the kernel does."""
        return np.sqrt((self.detail**2).mean((1, 2)))[:, None]

    @cached_property
    def components(self) -> tuple[Float[np.ndarray, "rows columns 3"], Float[np.ndarray, " 3"]]:
        """The first three principal components as colours in [0, 1], and their shares of the variance.

        Kernels are compared by what they do (`usual`).
        """
        rows, columns = self.kernels.shape[:2]
        flat = ((self.kernels - self.kernels.mean((0, 1))) * self.usual).reshape(rows * columns, -1)
        variances, axes = np.linalg.eigh(flat.T @ flat)  # of k · bands numbers: a second less than those of all places
        scores, shares = flat @ axes[:, :-4:-1], variances[:-4:-1] / max(variances.sum(), 1e-30)
        low, high = np.percentile(scores, (1, 99), axis=0)
        colours = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
        return colours.reshape(rows, columns, 3), shares

    def at(self, row: int, col: int) -> Float[np.ndarray, "k bands"]:
        """The kernel of the low-resolution pixel that holds a pixel; a `KAError` for one that is not there."""
        return self.kernels[self.low_pixel(row, col)]

    def low_pixel(self, row: int, col: int) -> tuple[int, int]:
        """The low-resolution pixel that holds a pixel; a `KAError` for one that is not there."""
        for name, value, n in (("row", row, self.detail.shape[1]), ("col", col, self.detail.shape[2])):
            check_index(name, value, n)
        ratio = self.detail.shape[1] // self.kernels.shape[0]
        return row // ratio, col // ratio

    def counts(self, row: int, col: int) -> Float[np.ndarray, "side side"] | None:
        """How much each pixel of the window counts for the kernel there, in all 1; NaN beyond the image's border. None
        where all of a window count alike.
        """
        if self.attention is None:
            return None
        places, r, width = self.attention
        at = self.low_pixel(row, col)
        asked, near = around(at, 1, r, places)
        weights = window_weights(places, asked, near, r, width)[0, 0]
        window = np.full((2 * r + 1, 2 * r + 1), np.nan, dtype=np.float32)
        rows, columns = (slice(part.start - i + r, part.stop - i + r) for part, i in zip(near, at, strict=True))
        window[rows, columns] = weights.unflatten(0, [part.stop - part.start for part in near]).numpy()
        return window

    def pull(self, row: int, col: int, common: bool = False) -> Float[np.ndarray, " bands"]:
        """What the kernel there adds to the spectrum of a pixel (or what the common one would)."""
        kernel = self.common if common else self.at(row, col)
        return kernel.T @ self.detail[:, row, col]


def kernel_field(model: PSRT, scene: Scene, names: tuple[str, ...] = ()) -> KernelField:
    """The field of a model on a whole scene: of its regression, else of the local injection that it starts from.

    `names` are those of the HR-MSI's channels. A model that has neither is a `KAError`.
    """
    m = len(scene.msi)
    names = names if len(names) == m else tuple(f"channel {i + 1}" for i in range(m))
    roots = tuple(f"√{name}" for name in names)
    if (front := model.front) is not None:
        seen, made = (tensor.detach().numpy() for tensor in regressed(model, front, scene))
        labels = (*names, *roots, *(f"learned {i + 1}" for i in range(model.row.features)))
        by_place, common = rearrange(made, "1 k n y x -> y x k n"), front.fallback.detach().numpy()
        attention = None
        if (own := front.attention) is not None:
            places = own.places(degraded(torch.from_numpy(seen), front.degradation))
            attention = places.detach(), own.radius, own.width.detach()
        return _field(by_place, common, seen[0], front.degradation, labels, attention)
    start = model.start
    if not isinstance(start, LocalInjection):
        raise KAError(
            f"{model.row.name} has no kernels that change from place to place: it regresses none, and starts from "
            f"{start.name}; choose kav20 … kav26, or a model that starts from local injection"
        )
    features, kernels = with_roots(scene.msi) if start.roots else scene.msi, start.kernels(scene)
    common = kernels.mean((0, 1)) if start.matrix is None else np.transpose(start.matrix)
    labels, attention = names + roots if start.roots else names, None
    if start.attend:
        attention = likeness(scene.msi, start.degradation), start.half_side, torch.tensor(NEAR)
    return _field(kernels, common, features, start.degradation, labels, attention)


@torch.no_grad()
def regressed(
    model: PSRT, front: Front, scene: Scene
) -> tuple[Float[Tensor, "1 k h w"], Float[Tensor, "1 k n rows columns"]]:
    """Features and kernels that a model's front makes of a whole scene, loaded."""
    images = (begun(scene, model.start).up, scene.msi, scene.lr)
    up, msi, lr = (torch.from_numpy(x)[None].to(front.fallback.dtype) for x in images)
    features = front.features(up, msi)
    return features, front.field(features, lr)


def _field(
    kernels: np.ndarray,
    common: np.ndarray,
    features: np.ndarray,
    degradation: Degradation,
    labels: tuple[str, ...],
    attention: Attention | None,
) -> KernelField:
    detail = features - bicubic(degrade(features, degradation), degradation.ratio)
    return KernelField(kernels, common, features, detail, labels, attention)


@styled
def field_figure(
    field: KernelField,
    row: int,
    col: int,
    wavelengths: Float[np.ndarray, " bands"] | None = None,
    title: str = "",
) -> Figure:
    """The image with a pixel marked, the field in colours, the kernel's pull there; below, the kernel and the common.

    Equal colours are equal kernels: the field's first three principal components as red, green and blue. Below, every
    feature's weights are times its usual detail, so that large ones do much. A model that attends shows its window too.
    """
    figure = Figure(figsize=(WIDTH, 0.66 * WIDTH), layout="constrained")
    figure.suptitle(title)
    window = field.counts(row, col)
    grid = figure.add_gridspec(2, 12, height_ratios=(1.3, 1))
    n = 3 if window is None else 4
    image, colours, pull, *more = (figure.add_subplot(grid[0, 12 // n * i : 12 // n * (i + 1)]) for i in range(n))
    _show_field(image, colours, field, row, col)
    if window is not None:
        _show_window(more[0], window)
    bands = np.arange(1, field.common.shape[1] + 1) if wavelengths is None else wavelengths
    along = "band" if wavelengths is None else "wavelength (nm)"
    for label, common in (("this kernel", False), ("the common one", True)):
        pull.plot(bands, field.pull(row, col, common), label=label, linestyle="--" if common else "-")
    pull.set(title=f"what it adds at ({row}, {col})", xlabel=along, box_aspect=1)
    pull.legend()
    here, common = field.at(row, col) * field.usual, field.common * field.usual
    largest = max(np.abs(here).max(), np.abs(common).max(), 1e-12)
    for i, (name, kernel) in enumerate({"this kernel": here, "the common one": common}.items()):
        axis = figure.add_subplot(grid[1, 6 * i : 6 * i + 6])
        shown = axis.imshow(
            kernel, cmap=SIGNED, vmin=-largest, vmax=largest, aspect="auto", extent=_extent(bands, kernel)
        )
        axis.set(title=name, xlabel=along, yticks=range(len(field.labels)), yticklabels=field.labels if i == 0 else ())
        axis.grid(visible=False)
        axis.tick_params(axis="y", labelsize=6, length=0)
    figure.colorbar(shown, ax=figure.axes[-1], label="weight × usual detail")
    return figure


def _show_field(image: Axes, colours: Axes, field: KernelField, row: int, col: int) -> None:
    h, w = field.detail.shape[1:]
    seen = np.moveaxis(field.features[:3] if len(field.features) >= 3 else field.features[[0, 0, 0]], 0, -1)
    show_image(image, np.clip(seen / max(np.percentile(seen, 99.5), 1e-6), 0, 1), "HR-MSI", extent=(0, w, h, 0))
    components, shares = field.components
    share = f"{100 * shares.sum():.0f} % of the variance"
    show_image(colours, components, f"kernels, {share}", extent=(0, w, h, 0), interpolation="nearest")
    for axis in (image, colours):
        axis.plot(col + 0.5, row + 0.5, "+", color="white", markersize=11, markeredgewidth=2.4)
        axis.plot(col + 0.5, row + 0.5, "+", color="black", markersize=10, markeredgewidth=1)


def _show_window(axis: Axes, window: Float[np.ndarray, "side side"]) -> None:
    r = len(window) // 2
    half = r + 0.5
    shown = axis.imshow(window, cmap="magma", vmin=0, extent=(-half, half, half, -half))
    axis.set(title="what counts for it", xlabel="pixels of the LR-HSI", xticks=(-r, 0, r), yticks=(-r, 0, r))
    axis.grid(visible=False)
    axis.figure.colorbar(shown, ax=axis, shrink=0.6)


def _extent(
    bands: Float[np.ndarray, " bands"], kernel: Float[np.ndarray, "k bands"]
) -> tuple[float, float, float, float]:
    """So that a column stands at its band, a row at its number."""
    half = (bands[-1] - bands[0]) / max(len(bands) - 1, 1) / 2
    return (bands[0] - half, bands[-1] + half, len(kernel) - 0.5, -0.5)
