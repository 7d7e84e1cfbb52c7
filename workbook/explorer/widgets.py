"""The explorers: a picture with controls, for JupyterLab and as a page (`make explore`).

A control that changes redraws the picture, which is a PNG in an Image widget. (`interact` and Output widgets make
papermill hang at random.) `Explorer.figure` draws the same without any widget, for scripts.
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import ipywidgets
from ipyevents import Event
from matplotlib.figure import Figure

from ka.errors import KAError, unknown
from ka.models.psrt import LAYERS, PSRT
from workbook.explorer.catalog import Catalog
from workbook.style import png
from workbook.views import attention, attention_figures, kernel_figures, kernels
from workbook.views.kernel_field import field_figure
from workbook.views.plots import pixels_png
from workbook.views.trace import Trace, check_index

Choices = Iterator[tuple[str, Sequence[Any]]]


class Explorer(ABC):
    """Controls above a picture: `box`, to be shown.

    The values of `controls` are the arguments of `figure`; all explorers have `show` (one of the `pictures`), `model`
    and `image`, and those of layers have `layer` (1 … 18). `picture` is the figure as PNG, empty while there is none;
    `message` says why.
    """

    # By name, a function of what was chosen: the values of the controls, and with them `catalog` and a `title`; of
    # layers, the `trace` of the model and image, and the `index` of the layer.
    pictures: ClassVar[Mapping[str, Callable[[SimpleNamespace], Figure]]]
    of_layers: ClassVar = True

    def __init__(self, catalog: Catalog, further: Mapping[str, ipywidgets.ValueWidget]) -> None:
        self.catalog = catalog
        common = {name: menu(name) for name in ("show", "model", "image")}
        layer = {"layer": slider("layer", 1, len(LAYERS))} if self.of_layers else {}
        self.controls = {**common, **layer, **further}
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.picture.add_class("ka-picture")
        self.message = ipywidgets.HTML()
        layout = {"display": "flex", "flex_flow": "row wrap", "max_width": "1100px"}
        rows = ipywidgets.Box(list(self.controls.values()), layout=layout)
        self.box = ipywidgets.VBox([rows, self.message, self.picture]).add_class("ka-explorer")
        self._paused = False
        for name, control in self.controls.items():
            control.add_class(f"ka-{name}")
            control.observe(self.redraw, names="value")
        self.redraw()

    def figure(self, **changes: Any) -> Figure:
        """The picture for what the controls say, some of it changed; needs no display and leaves the controls alone.

        What depends on a changed value (the kernels that a model has, say) follows it, as the controls would. Unknown
        names, values that are no choice, and choices for which there is no picture are a `KAError`.
        """
        if others := changes.keys() - self.controls:
            raise unknown("control", min(others), self.controls)
        values = {name: control.value for name, control in self.controls.items()} | changes
        for name, choices in self.choices(values):
            if name in changes and isinstance(choices, range):
                check_index(name, values[name], len(choices), choices[0])
            elif name in changes and values[name] not in choices:
                raise unknown(name, values[name], map(str, choices))
            elif values[name] not in choices:
                values[name] = _instead(choices)
        chosen = SimpleNamespace(**values, catalog=self.catalog, title=values["model"])
        if self.of_layers:
            chosen.index, chosen.trace = values["layer"] - 1, self.catalog.trace(chosen.model, chosen.image)
            chosen.title += f", {LAYERS[chosen.index]}"
        return self.pictures[chosen.show](chosen)

    def choices(self, values: Mapping[str, Any]) -> Choices:
        """Every control and its choices, those first on which others depend; `values` is what was chosen so far."""
        yield "show", list(self.pictures)
        yield "model", list(self.catalog.models)
        model = self.catalog.model(values["model"])
        yield "image", self.catalog.images_for(model)
        if self.of_layers:
            yield "layer", range(1, len(LAYERS) + 1)
        yield from self.further_choices(model, values["image"])

    @abstractmethod
    def further_choices(self, model: PSRT, image: str) -> Choices:
        """Those of the controls that not all explorers have."""

    def adjust(self) -> None:
        """Bring the controls' choices in line with each other, and keep what was chosen where it still is one."""
        values = {name: control.value for name, control in self.controls.items()}
        for name, choices in self.choices(values):
            control = self.controls[name]
            if isinstance(control, ipywidgets.IntSlider):
                control.min, control.max = choices[0], choices[-1]
            elif tuple(value for _, value in control.options) != tuple(choices):
                before = control.value
                control.options = [(self.label(name, value), value) for value in choices]
                control.value = before if before in choices else _instead(choices)
            values[name] = control.value

    def label(self, name: str, value: Any) -> str:
        """What a drop-down list calls a choice."""
        return str(value)

    def redraw(self, change: object = None) -> None:
        """The picture of what the controls say, or why there is none."""
        if self._paused:
            return
        try:
            with self.paused():
                self.adjust()
            self.picture.value, self.message.value = png(self.figure()), ""
        except KAError as error:
            self.picture.value, self.message.value = b"", f"<b>{html.escape(str(error))}</b>"
        self.picture.layout.display = None if self.picture.value else "none"

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


def _instead(choices: Sequence[Any]) -> Any:
    """What is chosen where the choice is gone: the first of a list, the end of a slider."""
    return choices[-1] if isinstance(choices, range) else choices[0]


def menu(label: str) -> ipywidgets.Dropdown:
    """A drop-down list, still empty."""
    return ipywidgets.Dropdown(options=[("", None)], description=label, layout={"width": "300px"})


def slider(label: str, low: int, high: int) -> ipywidgets.IntSlider:
    """A slider over whole numbers that reports when it is let go."""
    settings = {"description": label, "continuous_update": False, "layout": {"width": "300px"}}
    return ipywidgets.IntSlider(value=low, min=low, max=high, **settings)


class PixelExplorer(Explorer):
    """One whose picture is of a pixel, chosen by clicking the image (`scene`); its controls are row and col, from 0."""

    zoom = 5  # screen pixels a side of a pixel of the image

    def __init__(self, catalog: Catalog, further: Mapping[str, ipywidgets.ValueWidget]) -> None:
        h, w, _ = next(iter(catalog.images.values())).picture.shape
        row, col = slider("row", 0, h - 1), slider("column", 0, w - 1)
        row.value, col.value = h // 2, w // 2
        self.scene = ipywidgets.Image(format="png", layout={"max_width": "none"}).add_class("ka-scene")
        Event(source=self.scene, watched_events=["click"]).on_dom_event(self.click)
        super().__init__(catalog, {**further, "row": row, "col": col})
        scene = ipywidgets.VBox([ipywidgets.HTML("Click a pixel:"), self.scene], layout={"flex": "0 0 auto"})
        *above, picture = self.box.children
        picture.layout.min_width = "0"  # it gives way to the image beside it
        self.box.children = [*above, ipywidgets.HBox([scene, picture])]

    def further_choices(self, model: PSRT, image: str) -> Choices:
        h, w, _ = self.catalog.images[image].picture.shape
        yield "row", range(h)
        yield "col", range(w)

    def adjust(self) -> None:
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


# Kernels

ALL = "all kernels"
FEW = 8  # channels that are shown of all kernels at once: more would be too small to be seen


def _stages(chosen: SimpleNamespace) -> list[kernels.Stage]:
    return kernels.stages_of(chosen.trace, chosen.index)


def _grid(stages: Sequence[kernels.Stage], kernel: str, chosen: SimpleNamespace) -> Figure:
    """All kernels, of a few channels; or one, at the stages that have it."""
    few = range(min(FEW, stages[-1].kernels.shape[2])) if kernel == ALL else None
    if kernel != ALL:
        places = [(stage, stage.labels.index(kernel)) for stage in stages if kernel in stage.labels]
        stages = [replace(stage, kernels=stage.kernels[[k]], labels=(kernel,)) for stage, k in places]
    return kernel_figures.filter_grid(stages, few, few, chosen.colours, chosen.title)


def _frequencies(chosen: SimpleNamespace, pair: tuple[int, int] | None) -> Figure:
    return kernel_figures.frequency_responses(_stages(chosen)[-1], pair, title=chosen.title)


def _moved(chosen: SimpleNamespace) -> Figure:
    if chosen.image == chosen.beside:
        raise KAError("two images are compared, and there is one; give data_root, the folder of CAVE")
    other = chosen.catalog.trace(chosen.model, chosen.beside)
    pictures = {name: chosen.catalog.images[name].picture for name in (chosen.image, chosen.beside)}
    stages = (_stages(chosen)[-1], kernels.stages_of(other, chosen.index)[-1])
    few, moved = range(min(FEW, chosen.trace.model.dim // 2)), kernels.movement(chosen.trace, other, chosen.index)
    return kernel_figures.movement_panel(pictures, stages, moved, few, few, chosen.title)


class KernelExplorer(Explorer):
    """Window kernels and the global kernel of a layer, from all sides. Further controls: kernel, output and input
    (channels from 1), colours (one scale for all parts), beside (a second image, for how kernels move).
    """

    pictures: ClassVar = {
        "filters, part by part": lambda chosen: _grid(_stages(chosen), chosen.kernel, chosen),
        "one filter, part by part": lambda chosen: kernel_figures.single(
            _stages(chosen), chosen.output - 1, chosen.input - 1, chosen.colours, chosen.title
        ),
        "folded kernel and its parts": lambda chosen: _grid(kernels.folding(chosen.trace, chosen.index), ALL, chosen),
        "frequency response": lambda chosen: _frequencies(chosen, None),
        "frequency response, one filter": lambda chosen: _frequencies(chosen, (chosen.output - 1, chosen.input - 1)),
        "norms": lambda chosen: kernel_figures.norm_steps(_stages(chosen), chosen.title),
        "cosine similarity": lambda chosen: kernel_figures.cosine_heatmaps(_stages(chosen), chosen.title),
        "contributions": lambda chosen: kernel_figures.contribution_panel(
            kernels.contributions(chosen.trace, chosen.index), chosen.title
        ),
        "two images": _moved,
    }

    def __init__(self, catalog: Catalog) -> None:
        channels = {name: slider(name, 1, 1) for name in ("output", "input")}
        super().__init__(catalog, {name: menu(name) for name in ("kernel", "colours", "beside")} | channels)

    def further_choices(self, model: PSRT, image: str) -> Choices:
        images = self.catalog.images_for(model)
        yield "beside", [name for name in images if name != image] or images
        yield "kernel", [ALL, *kernels.kernel_labels(model.row)]
        yield "colours", [False, True]
        for name in ("output", "input"):
            yield name, range(1, model.dim // 2 + 1)

    def label(self, name: str, value: Any) -> str:
        return ("one scale for all" if value else "a scale for each part") if name == "colours" else str(value)


# Attention

EACH = "all"


def _pixel(chosen: SimpleNamespace) -> dict[str, Any]:
    picture = chosen.catalog.images[chosen.image].picture
    return {"trace": chosen.trace, "picture": picture, "row": chosen.row, "col": chosen.col}


def _from_0(choice: str | int) -> int | None:
    return None if isinstance(choice, str) else choice - 1


def _kernel_sa(chosen: SimpleNamespace) -> Figure:
    weights, title = (
        attention.kernel_sa(chosen.trace, chosen.index),
        f"{_kernel_sa_title(chosen.trace)}, {chosen.title}",
    )
    return attention_figures.kernel_sa_map(weights, _from_0(chosen.head), _from_0(chosen.filter), title)


def _kernel_sa_title(trace: Trace) -> str:
    return "kernel SA" if trace.model.row.sa_among == "taps" else "kernel SA among taps"


class AttentionExplorer(PixelExplorer):
    """Window attention of a pixel, kernel SA, and entropies. Further controls: head, filter (of kernel SA)."""

    pictures: ClassVar = {
        "window attention of the pixel": lambda chosen: attention_figures.query_maps(
            **_pixel(chosen), layer=chosen.index, head=_from_0(chosen.head)
        ),
        "the pixel, all layers": lambda chosen: attention_figures.query_layers(**_pixel(chosen)),
        "kernel SA": _kernel_sa,
        "entropy of window attention": lambda chosen: attention_figures.entropy_map(attention.entropies(chosen.trace)),
        "entropy of kernel SA": lambda chosen: attention_figures.entropy_map(
            attention.kernel_entropies(chosen.trace), title=_kernel_sa_title(chosen.trace)
        ),
    }

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog, {"head": menu("head"), "filter": menu("filter")})

    def further_choices(self, model: PSRT, image: str) -> Choices:
        yield "head", [EACH, *range(1, model.layers()[0].attn.heads + 1 if model.layers() else 1)]
        n_filters = model.dim // 2 if attention.among_taps(model.row) and model.row.kernels != "pooled" else 1
        yield "filter", [EACH, *range(1, n_filters + 1)]
        yield from super().further_choices(model, image)


# Kernel fields


def _field(chosen: SimpleNamespace) -> Figure:
    crop = chosen.catalog.images[chosen.image]
    (top, left, _, _), wavelengths = crop.box, crop.scenes.wavelengths
    field = chosen.catalog.field(chosen.model, chosen.image)
    return field_figure(field, top + chosen.row, left + chosen.col, wavelengths, f"{chosen.title}, {chosen.image}")


class FieldExplorer(PixelExplorer):
    """How kernels that adapt change over the whole scene, and the one at a pixel of its middle."""

    pictures: ClassVar = {"kernel field": _field}
    of_layers: ClassVar = False

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog, {})
