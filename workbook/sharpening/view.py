"""What came out of a sharpening, to be looked at: figures, and a picture wiped between before and after."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import ipywidgets
import numpy as np
from ipyevents import Event
from matplotlib.figure import Figure

from ka.data import Degradation, SceneSet
from ka.data.scenes import display_bands
from ka.inference import Network, trained_degradation
from workbook.sharpening.files import Sharpened
from workbook.style import png
from workbook.views import plots

SIDE = 768  # largest side of the wiped picture, in screen pixels


class View:
    """Figures of one result."""

    def __init__(self, sharpened: Sharpened) -> None:
        pair, method = sharpened.pair, sharpened.method
        consistency = method.model.consistency if isinstance(method, Network) else None
        known = trained_degradation(method.model) if isinstance(method, Network) else None
        degradation = known or getattr(method, "degradation", None) or Degradation(pair.ratio)
        nm, bands = pair.lr.wavelengths, len(pair.lr.values)
        names = tuple(f"channel {i}" for i in range(len(pair.msi.values)))
        srf = None if consistency is None else consistency.srf
        self.scene = replace(pair.scene, gt=sharpened.truth)
        self.scenes = SceneSet("pair", "test", degradation, nm, display_bands(nm, bands), names, [self.scene], srf)
        self.sharpened = sharpened

    @cached_property
    def images(self) -> dict[str, np.ndarray]:
        """Before and after, `bands h w` in [0, 1]."""
        return {"bicubic": self.scene.up, "sharpened": self.sharpened.sharp()}

    def colours(self) -> Figure:
        """The low-resolution image, and both in natural colours (false ones where no wavelengths are known)."""
        return plots.natural_colours(self.scenes, self.scene, self.images)

    def residuals(self) -> Figure:
        """What both leave of the two observations."""
        return plots.residual_maps(self.scenes, self.scene, self.images)

    def spectra(self, *pixels: tuple[int, int]) -> Figure:
        """Spectra of some pixels (row, column) of the sharp image."""
        return plots.spectra(self.scenes, self.scene, self.images, pixels)


class Wipe:
    """Before to the left of a line, after to its right; a slider moves the line, a click shows the pixel's spectrum.

    `box` is to be shown. `picture` and `spectrum` are PNGs.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        before, after = (plots.as_rgb(image, view.scenes.display, view.scene.lr) for image in view.images.values())
        self.step = max(1, -(-max(before.shape) // SIDE))  # every so many pixels is shown
        self.before, self.after = before[:: self.step, :: self.step], after[:: self.step, :: self.step]
        h, w, _ = self.before.shape
        self.zoom = max(1, SIDE // 2 // max(h, w))
        tooltip = "left of the line the bicubic image, right of it the sharp one"
        self.line = ipywidgets.IntSlider(w // 2, 0, w, description="wipe", tooltip=tooltip, readout=False)
        size = {"width": f"{w * self.zoom}px", "height": f"{h * self.zoom}px", "max_width": "none"}
        self.picture = ipywidgets.Image(format="png", layout=size).add_class("ka-wipe")
        self.spectrum = ipywidgets.Image(format="png", layout={"width": "330px", "object_fit": "contain"})
        self.line.observe(self.redraw, names="value")
        self.line.layout.width = f"{max(300, w * self.zoom)}px"
        Event(source=self.picture, watched_events=["click"]).on_dom_event(self.click)
        words = ipywidgets.HTML("Bicubic to the left, sharpened to the right. Click a pixel for its spectrum.")
        wrapped = {"display": "flex", "flex_flow": "row wrap"}
        beside = ipywidgets.Box([self.picture, self.spectrum], layout=wrapped)
        self.box = ipywidgets.VBox([words, self.line, beside])
        self.redraw()
        self.show(h // 2 * self.step, w // 2 * self.step)

    def redraw(self, change: object = None) -> None:
        """The picture with the line where the slider is."""
        line = self.line.value
        joined = np.concatenate([self.before[:, :line], self.after[:, line:]], axis=1)
        joined[:, max(0, line - 1) : line] = (1, 0.35, 0)
        self.picture.value = plots.pixels_png(joined, self.zoom)

    def click(self, event: Mapping[str, Any]) -> None:
        """The spectrum of the pixel that was clicked; dataX and dataY are pixels of the PNG."""
        h, w, _ = self.before.shape
        row, column = (min(int(event[f"data{axis}"]) // self.zoom, n - 1) for axis, n in (("Y", h), ("X", w)))
        self.show(row * self.step, column * self.step)

    def show(self, row: int, column: int) -> None:
        """The spectrum of a pixel."""
        self.spectrum.value = png(self.view.spectra((row, column)))
