"""The explorers: a picture with controls, for JupyterLab and as a page (`make explore`).

A control that changes redraws the picture, which is a PNG in an Image widget. (`interact` and Output widgets make
papermill hang at random.) `figure` draws the same without any widget, for scripts.
"""

import gc
import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ipywidgets
import numpy as np
from ipyevents import Event
from matplotlib.figure import Figure

from ka.errors import KAError
from ka.models.psrt import LAYERS
from workbook.explorer.sources import Looker
from workbook.style import png
from workbook.views import attention_views, kernel_views
from workbook.views.kernel_views import Stage
from workbook.views.plots import pixels_png
from workbook.views.trace import Trace


class Explorer(ABC):
    """Controls above a picture.

    Attributes:
        controls: name → widget; their values are the arguments of `figure`.
        picture: the figure, as PNG.
        message: what is wrong with the choice, if anything is.
        box: all of it, to be shown.
    """

    def __init__(self, look: Looker, controls: Mapping[str, ipywidgets.ValueWidget]) -> None:
        self.look = look
        self.controls = dict(controls)
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.message = ipywidgets.HTML()
        rows = ipywidgets.Box(
            list(self.controls.values()), layout={"display": "flex", "flex_flow": "row wrap", "max_width": "1100px"}
        )
        self.box = ipywidgets.VBox([rows, self.message, self.picture]).add_class("ka-explorer")
        self.picture.add_class("ka-picture")
        for name, control in self.controls.items():
            control.add_class(f"ka-{name}")
        self._held = False
        for control in self.controls.values():
            control.observe(self._changed, names="value")
        self._changed()
        gc.freeze()  # or every now and then a picture waits 0.4 s for Python to look through all of PyTorch for garbage

    def values(self) -> dict[str, Any]:
        """What the controls say."""
        return {name: control.value for name, control in self.controls.items()}

    def figure(self, **changes: Any) -> Figure:
        """The picture for what the controls say, some of it changed; needs no display and leaves the controls alone.

        What depends on a changed value (the kernels that a model has, say) follows it, as the controls would.

        Raises:
            KAError: unknown name, a value that is no choice, or a choice for which there is no picture.
        """
        unknown = set(changes) - set(self.controls)
        if unknown:
            raise KAError(f"unknown control {', '.join(sorted(unknown))}; choose from {', '.join(self.controls)}")
        values = self.values() | changes
        for name, choices in self.choices(values):
            if values[name] in choices:
                continue
            if name in changes:
                numbers = isinstance(choices, range)
                listed = f"{choices[0]} … {choices[-1]}" if numbers else ", ".join(map(str, choices))
                raise KAError(f"{name}={values[name]!r} is no choice; choose one of {listed}")
            values[name] = choices[-1] if isinstance(choices, range) else choices[0]
        return self.draw(**values)

    @abstractmethod
    def choices(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
        """Every control and its choices, those first on which others depend; `values` is what was chosen so far."""

    @abstractmethod
    def draw(self, **values: Any) -> Figure:
        """The figure for these values."""

    def adjust(self) -> None:
        """Bring the controls' choices in line with each other, and keep what was chosen where it still is one."""
        values = self.values()
        for name, choices in self.choices(values):
            control = self.controls[name]
            if isinstance(control, ipywidgets.IntSlider):
                control.min, control.max = choices[0], choices[-1]
            elif tuple(value for _, value in control.options) != tuple(choices):
                before = control.value
                control.options = [(self.label(name, value), value) for value in choices]
                control.value = before if before in choices else choices[0]
            values[name] = control.value

    @staticmethod
    def label(name: str, value: Any) -> str:
        """What a drop-down list calls a choice."""
        return {True: "one scale for all", False: "a scale for each part"}[value] if name == "colours" else str(value)

    def _changed(self, change: object = None) -> None:
        if self._held:
            return
        try:
            with self._hold():
                self.adjust()
            self.picture.value = png(self.figure())
            self.message.value = ""
        except KAError as error:
            self.message.value = f"<b>{html.escape(str(error))}</b>"

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Controls change without a new picture for each."""
        self._held = True
        try:
            yield
        finally:
            self._held = False


def menu(label: str) -> ipywidgets.Dropdown:
    """A drop-down list; its choices come from `Explorer.choices`."""
    return ipywidgets.Dropdown(options=[("", None)], description=label, layout={"width": "300px"})


def slider(label: str, low: int, high: int) -> ipywidgets.IntSlider:
    """A slider over whole numbers that reports when it is let go."""
    return ipywidgets.IntSlider(
        value=low, min=low, max=high, description=label, continuous_update=False, layout={"width": "300px"}
    )


ALL = "all kernels"
EACH = "all"
FEW = 8  # channels that are shown of all kernels at once: more would be too small to be seen


class KernelExplorer(Explorer):
    """Window kernels and the global kernel of a layer, from all sides.

    Controls: model, image, show (which picture), layer (1 … 18), kernel, output and input (channels from 1), colours
    (one scale for all parts), beside (a second image, for how kernels move).

    Args:
        look: the models and images.
    """

    def __init__(self, look: Looker) -> None:
        names = ("show", "model", "image", "beside", "layer", "kernel", "colours", "output", "input")
        sliders = {"layer": len(LAYERS), "output": 1, "input": 1}
        super().__init__(
            look, {name: slider(name, 1, sliders[name]) if name in sliders else menu(name) for name in names}
        )

    def pictures(self) -> dict[str, Callable[..., Figure]]:
        """What can be shown, by name."""
        return {
            "filters, part by part": self._filters,
            "one filter, part by part": self._one,
            "folded kernel and its parts": self._folded,
            "frequency response": self._frequencies,
            "frequency response, one filter": self._frequency,
            "norms": lambda trace, layer, title, **_: kernel_views.norm_steps(_stages(trace, layer), title),
            "cosine similarity": lambda trace, layer, title, **_: kernel_views.cosine_heatmaps(
                _stages(trace, layer), title
            ),
            "contributions": lambda trace, layer, title, **_: kernel_views.contribution_panel(
                kernel_views.contributions(trace, layer), title
            ),
            "two images": self._moved,
        }

    def choices(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
        """Images of the model's bands, kernels that its layers have, its number of channels."""
        yield "show", list(self.pictures())
        yield "model", list(self.look.models)
        model = self.look.model(values["model"])
        images = self.look.images_for(model)
        yield "image", images
        yield "beside", [image for image in images if image != values["image"]] or images
        yield "layer", range(1, len(LAYERS) + 1)
        yield "kernel", [ALL, *kernel_views.kernel_labels(model.row)]
        yield "colours", [False, True]
        for name in ("output", "input"):
            yield name, range(1, model.dim // 2 + 1)

    def draw(self, **values: Any) -> Figure:
        """The figure for these values."""
        trace = self.look.trace(values["model"], values["image"])
        layer = values["layer"] - 1
        title = f"{values['model']}, {LAYERS[layer]}"
        return self.pictures()[values["show"]](trace=trace, layer=layer, title=title, **_but(values, "layer"))

    def _filters(self, trace: Trace, layer: int, title: str, kernel: str, colours: bool, **_: Any) -> Figure:
        return _grid(_chosen(_stages(trace, layer), kernel), kernel, colours, title)

    def _folded(self, trace: Trace, layer: int, title: str, colours: bool, **_: Any) -> Figure:
        return _grid(kernel_views.folding(trace, layer), ALL, colours, title)

    def _one(self, trace: Trace, layer: int, title: str, output: int, input: int, colours: bool, **_: Any) -> Figure:
        return kernel_views.single(_stages(trace, layer), output - 1, input - 1, colours, title)

    def _frequencies(self, trace: Trace, layer: int, title: str, **_: Any) -> Figure:
        return kernel_views.frequency_responses(_stages(trace, layer)[-1], title=title)

    def _frequency(self, trace: Trace, layer: int, title: str, output: int, input: int, **_: Any) -> Figure:
        return kernel_views.frequency_responses(_stages(trace, layer)[-1], (output - 1, input - 1), title=title)

    def _moved(self, trace: Trace, layer: int, title: str, model: str, image: str, beside: str, **_: Any) -> Figure:
        if image == beside:
            raise KAError("two images are compared, and there is one; give data_root, the folder of CAVE")
        other = self.look.trace(model, beside)
        pictures = {name: self.look.views[name].picture for name in (image, beside)}
        stages = (_stages(trace, layer)[-1], _stages(other, layer)[-1])
        few = range(min(FEW, trace.model.dim // 2))
        return kernel_views.movement_panel(
            pictures, stages, kernel_views.movement(trace, other, layer), few, few, title
        )


class AttentionExplorer(Explorer):
    """Window attention of a pixel that is chosen by clicking the image, kernel SA, and entropies.

    Controls: model, image, show (which picture), layer (1 … 18), head, row and col (the pixel, from 0), filter (of
    kernel SA).

    Attributes:
        scene: the image that takes clicks.

    Args:
        look: the models and images.
    """

    zoom = 5  # screen pixels a side of a pixel of the image

    def __init__(self, look: Looker) -> None:
        names = ("show", "model", "image", "layer", "head", "filter")
        controls: dict[str, ipywidgets.ValueWidget] = {
            name: slider(name, 1, len(LAYERS)) if name == "layer" else menu(name) for name in names
        }
        h, w, _ = next(iter(look.views.values())).picture.shape
        controls |= {"row": slider("row", 0, h - 1), "col": slider("column", 0, w - 1)}
        controls["row"].value, controls["col"].value = h // 2, w // 2
        self.scene = ipywidgets.Image(format="png", layout={"max_width": "none"})
        self.scene.add_class("ka-scene")
        clicks = Event(source=self.scene, watched_events=["click"])
        clicks.on_dom_event(self._clicked)
        super().__init__(look, controls)
        hint = ipywidgets.HTML("Click a pixel:")
        chosen = ipywidgets.VBox([hint, self.scene], layout={"flex": "0 0 auto"})
        *above, picture = self.box.children
        picture.layout.min_width = "0"  # it gives way to the image beside it
        self.box.children = [*above, ipywidgets.HBox([chosen, picture])]

    def pictures(self) -> dict[str, Callable[..., Figure]]:
        """What can be shown, by name."""
        return {
            "window attention of the pixel": self._query,
            "the pixel, all layers": self._layers,
            "kernel SA": self._kernel_sa,
            "entropy of window attention": self._entropy,
            "entropy of kernel SA": self._sa_entropy,
        }

    def choices(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
        """Images of the model's bands, its heads and filters, the image's pixels."""
        yield "show", list(self.pictures())
        yield "model", list(self.look.models)
        model = self.look.model(values["model"])
        yield "image", self.look.images_for(model)
        yield "layer", range(1, len(LAYERS) + 1)
        yield "head", [EACH, *range(1, model.layers()[0].attn.heads + 1)]
        n_filters = model.dim // 2 if attention_views.among_taps(model.row) and model.row.kernels != "pooled" else 1
        yield "filter", [EACH, *range(1, n_filters + 1)]
        h, w, _ = self.look.views[values["image"]].picture.shape
        yield "row", range(h)
        yield "col", range(w)

    def adjust(self) -> None:
        """The controls' choices, and the image with the pixel marked."""
        super().adjust()
        marked = self.look.views[self.controls["image"].value].picture.copy()
        row, col = self.controls["row"].value, self.controls["col"].value
        marked[row], marked[:, col] = 0.5 * marked[row], 0.5 * marked[:, col]
        marked[row, col] = (1, 0.35, 0)
        self.scene.value = pixels_png(marked, self.zoom)
        for side, n in zip(("height", "width"), marked.shape, strict=False):
            setattr(self.scene.layout, side, f"{n * self.zoom}px")

    def _clicked(self, event: Mapping[str, Any]) -> None:
        """The pixel that was clicked; dataX and dataY are pixels of the PNG."""
        with self._hold():
            for name, at in (("row", event["dataY"]), ("col", event["dataX"])):
                control = self.controls[name]
                control.value = min(max(int(at) // self.zoom, 0), control.max)
        self._changed()

    def draw(self, **values: Any) -> Figure:
        """The figure for these values."""
        trace = self.look.trace(values["model"], values["image"])
        picture = self.look.views[values["image"]].picture
        given = _but(values, "layer", "head", "filter")
        head, filter_ = (None if values[name] == EACH else values[name] - 1 for name in ("head", "filter"))
        return self.pictures()[values["show"]](
            trace=trace, layer=values["layer"] - 1, picture=picture, head=head, filter=filter_, **given
        )

    def _query(self, trace: Trace, layer: int, picture: Any, row: int, col: int, head: int | None, **_: Any) -> Figure:
        return attention_views.query_maps(trace, picture, layer, row, col, head)

    def _layers(self, trace: Trace, picture: Any, row: int, col: int, **_: Any) -> Figure:
        return attention_views.query_layers(trace, picture, row, col)

    def _kernel_sa(
        self, trace: Trace, layer: int, head: int | None, filter: int | None, model: str, **_: Any
    ) -> Figure:
        found = attention_views.kernel_sa(trace, layer)
        title = f"{_sa_title(trace)}, {model}, {LAYERS[layer]}"
        return attention_views.kernel_sa_map(found.weights, found.taps(filter), head, filter, title)

    def _entropy(self, trace: Trace, **_: Any) -> Figure:
        return attention_views.entropy_map(attention_views.entropies(trace))

    def _sa_entropy(self, trace: Trace, **_: Any) -> Figure:
        found = [attention_views.kernel_sa(trace, layer).entropy for layer in range(len(LAYERS))]
        return attention_views.entropy_map(np.stack(found), title=_sa_title(trace))


def _sa_title(trace: Trace) -> str:
    return "kernel SA" if trace.model.row.sa_among == "taps" else "kernel SA among taps"


def _but(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _stages(trace: Trace, layer: int) -> list[Stage]:
    return kernel_views.stages_of(trace, layer)


def _chosen(stages: Sequence[Stage], kernel: str) -> list[Stage]:
    """One kernel at the stages that have it, or all."""
    if kernel == ALL:
        return list(stages)
    having = [stage for stage in stages if kernel in stage.labels]
    return [replace(stage, kernels=stage.kernels[[stage.labels.index(kernel)]], labels=(kernel,)) for stage in having]


def _grid(stages: Sequence[Stage], kernel: str, shared: bool, title: str) -> Figure:
    few = range(min(FEW, stages[-1].kernels.shape[2])) if kernel == ALL else None
    return kernel_views.filter_grid(stages, few, few, shared, title)
