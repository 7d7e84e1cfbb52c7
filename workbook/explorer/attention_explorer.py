"""The attention explorer: window attention of a pixel that is chosen by clicking the image, kernel SA, entropies."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import ipywidgets
from ipyevents import Event
from matplotlib.figure import Figure

from ka.models.psrt import LAYERS, PSRT
from workbook.explorer.base import Choices, Explorer, menu, slider
from workbook.explorer.catalog import Catalog
from workbook.views import attention, attention_figures
from workbook.views.plots import pixels_png
from workbook.views.trace import Trace

EACH = "all"


def _picture(chosen: SimpleNamespace) -> attention_figures.Picture:
    return chosen.catalog.images[chosen.image].picture


def _from_0(choice: str | int) -> int | None:
    return None if isinstance(choice, str) else choice - 1


def _kernel_sa(chosen: SimpleNamespace) -> Figure:
    weights = attention.kernel_sa(chosen.trace, chosen.index)
    title = f"{_kernel_sa_title(chosen.trace)}, {chosen.title}"
    return attention_figures.kernel_sa_map(weights, _from_0(chosen.head), _from_0(chosen.filter), title)


def _kernel_sa_title(trace: Trace) -> str:
    return "kernel SA" if trace.model.row.sa_among == "taps" else "kernel SA among taps"


class AttentionExplorer(Explorer):
    """Window attention of a pixel that is chosen by clicking the image, kernel SA, and entropies.

    Further controls: head, row and col (the pixel, from 0), filter (of kernel SA).

    Attributes:
        scene: the image that takes clicks.
    """

    pictures: ClassVar = {
        "window attention of the pixel": lambda chosen: attention_figures.query_maps(
            chosen.trace, _picture(chosen), chosen.index, chosen.row, chosen.col, _from_0(chosen.head)
        ),
        "the pixel, all layers": lambda chosen: attention_figures.query_layers(
            chosen.trace, _picture(chosen), chosen.row, chosen.col
        ),
        "kernel SA": _kernel_sa,
        "entropy of window attention": lambda chosen: attention_figures.entropy_map(attention.entropies(chosen.trace)),
        "entropy of kernel SA": lambda chosen: attention_figures.entropy_map(
            attention.kernel_entropies(chosen.trace), title=_kernel_sa_title(chosen.trace)
        ),
    }

    zoom = 5  # screen pixels a side of a pixel of the image

    def __init__(self, catalog: Catalog) -> None:
        names = ("show", "model", "image", "layer", "head", "filter")
        controls: dict[str, ipywidgets.ValueWidget] = {
            name: slider(name, 1, len(LAYERS)) if name == "layer" else menu(name) for name in names
        }
        h, w, _ = next(iter(catalog.images.values())).picture.shape
        controls |= {"row": slider("row", 0, h - 1), "col": slider("column", 0, w - 1)}
        controls["row"].value, controls["col"].value = h // 2, w // 2
        self.scene = ipywidgets.Image(format="png", layout={"max_width": "none"})
        self.scene.add_class("ka-scene")
        Event(source=self.scene, watched_events=["click"]).on_dom_event(self.click)
        super().__init__(catalog, controls)
        hint = ipywidgets.HTML("Click a pixel:")
        scene = ipywidgets.VBox([hint, self.scene], layout={"flex": "0 0 auto"})
        *above, picture = self.box.children
        picture.layout.min_width = "0"  # it gives way to the image beside it
        self.box.children = [*above, ipywidgets.HBox([scene, picture])]

    def further_choices(self, model: PSRT, image: str) -> Choices:
        yield "head", [EACH, *range(1, model.layers()[0].attn.heads + 1)]
        n_filters = model.dim // 2 if attention.among_taps(model.row) and model.row.kernels != "pooled" else 1
        yield "filter", [EACH, *range(1, n_filters + 1)]
        h, w, _ = self.catalog.images[image].picture.shape
        yield "row", range(h)
        yield "col", range(w)

    def adjust(self) -> None:
        """The controls' choices, and the image with the pixel marked."""
        super().adjust()
        marked = self.catalog.images[self.controls["image"].value].picture.copy()
        row, col = self.controls["row"].value, self.controls["col"].value
        marked[row], marked[:, col] = 0.5 * marked[row], 0.5 * marked[:, col]
        marked[row, col] = (1, 0.35, 0)
        self.scene.value = pixels_png(marked, self.zoom)
        for side, n in zip(("height", "width"), marked.shape, strict=False):
            setattr(self.scene.layout, side, f"{n * self.zoom}px")

    def click(self, event: Mapping[str, Any]) -> None:
        """Choose the pixel that was clicked; dataX and dataY are pixels of the PNG."""
        with self.paused():
            for name, at in (("row", event["dataY"]), ("col", event["dataX"])):
                control = self.controls[name]
                control.value = min(max(int(at) // self.zoom, 0), control.max)
        self.redraw()
