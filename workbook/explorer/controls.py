"""What the explorers are made of: a picture with controls, for JupyterLab and as a page (`make explore`).

A control that changes redraws the picture, which is a PNG in an Image widget. (`interact` and Output widgets make
papermill hang at random.) `Explorer.figure` draws the same without any widget, for scripts.
"""

import base64
import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import ipywidgets
from ipyevents import Event
from matplotlib.figure import Figure

from ka.errors import KAError, unknown
from ka.models.psrt import LAYERS, PSRT
from workbook.explorer.catalog import Catalog
from workbook.style import png
from workbook.views.plots import pixels_png
from workbook.views.trace import check_index

Choices = Iterator[tuple[str, Sequence[Any]]]
TOOLTIPS = {
    "show": "what the picture is of",
    "model": "models that come with the workbook and have an image here, and finished runs",
    "image": "what the model sees; the images that have its bands",
    "layer": "1 is the first to run; six in each of the blocks, of windows of 8×8, 4×4 and 2×2 pixels",
    "kernel": "one kernel, or all of them (then their first eight channels)",
    "colours": "whether the colours of all parts mean the same numbers",
    "beside": "a second image, to see whether the kernels move with it",
    "output": "the filter's output channel",
    "input": "the filter's input channel",
    "head": "one head of the attention, or all of them",
    "filter": "the output channel whose taps attend, or the mean of all",
    "row": "of the pixel, from the top; or click the image",
    "col": "of the pixel, from the left; or click the image",
}  # of every control


class View(NamedTuple):
    """A picture that an explorer shows."""

    draw: Callable[[SimpleNamespace], Figure]
    how: str  # to read it, in a sentence
    uses: Collection[str] = ()  # controls that change it, besides show, model and image
    can: Callable[[PSRT], bool] = lambda model: True  # whether a model has what is shown …
    what: str = ""  # … and what that is


class Explorer(ABC):
    """Controls above a picture: `box`, to be shown.

    The values of `controls` are the arguments of `figure`; all explorers have `show` (one of the `pictures`), `model`
    and `image`, and those of layers have `layer` (1 … 18). `picture` is the figure as PNG, empty while there is none;
    `message` says why, or how to read it. `chosen`: what the controls say at first, as far as it is a choice.
    """

    # By name. Drawn from what was chosen: the values of the controls, and with them `catalog` and a `title`; of
    # layers, the `trace` of the model and image, and the `index` of the layer.
    pictures: ClassVar[Mapping[str, View]]
    of_layers: ClassVar = True

    def __init__(
        self, catalog: Catalog, further: Mapping[str, ipywidgets.ValueWidget], chosen: Mapping[str, Any]
    ) -> None:
        self.catalog, self.wanted = catalog, dict(chosen)
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
            control.tooltip = TOOLTIPS[name]
            control.observe(self.redraw, names="value")
        self.redraw()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widgets where there is a kernel, the picture for a reader who has none."""
        return shown(self.box, self)

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
        view = self.pictures[chosen.show]
        if not view.can(self.catalog.model(chosen.model)):
            able = self.catalog.able(view.can)
            cure = f"choose {', '.join(able)}" if able else "none of the models here has"
            raise KAError(f"{chosen.model} has no {view.what}; {cure}")
        return view.draw(chosen)

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
        """Bring the controls' choices in line with each other, and keep what was chosen where it still is one. Those
        that change nothing in what is shown are disabled, and those that cannot be filled emptied.
        """
        values = {name: control.value for name, control in self.controls.items()} | self.wanted
        lost = set(self.controls)
        try:
            for name, choices in self.choices(values):
                values[name] = self._adjusted(name, choices, values[name])
                lost.discard(name)
        finally:
            used = {"show", "model", "image", *self.pictures[self.controls["show"].value].uses}
            for name, control in self.controls.items():
                control.disabled = name in lost or name not in used
                if name in lost and not isinstance(control, ipywidgets.IntSlider):
                    control.options = [("", None)]
        self.wanted = {}

    def _adjusted(self, name: str, choices: Sequence[Any], wanted: Any) -> Any:
        """Give a control its choices; what it says then is as wanted, if that is one of them."""
        control = self.controls[name]
        value = wanted if wanted in choices else _instead(choices)
        if isinstance(control, ipywidgets.IntSlider):
            control.max, control.min = choices[-1], choices[0]
        elif tuple(choice for _, choice in control.options) != tuple(choices):
            control.options = [(self.label(name, choice), choice) for choice in choices]
        control.value = value
        return value

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
            self.picture.value = png(self.figure())
            self.message.value = f"<i>{html.escape(self.pictures[self.controls['show'].value].how)}</i>"
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


def shown(box: ipywidgets.Widget, explorer: Explorer) -> dict[str, Any]:
    """What Jupyter shows of widgets: themselves, or a picture where they cannot be shown."""
    picture = base64.b64encode(explorer.picture.value).decode()
    text = "An explorer: run this notebook, or make explore, to choose what it shows."
    return box._repr_mimebundle_() | {"text/plain": text} | ({"image/png": picture} if picture else {})


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

    def __init__(
        self, catalog: Catalog, further: Mapping[str, ipywidgets.ValueWidget], chosen: Mapping[str, Any]
    ) -> None:
        h, w, _ = next(iter(catalog.images.values())).picture.shape
        row, col = slider("row", 0, h - 1), slider("column", 0, w - 1)
        row.value, col.value = h // 2, w // 2
        self.scene = ipywidgets.Image(format="png", layout={"max_width": "none"}).add_class("ka-scene")
        Event(source=self.scene, watched_events=["click"]).on_dom_event(self.click)
        super().__init__(catalog, {**further, "row": row, "col": col}, chosen)
        scene = ipywidgets.VBox([ipywidgets.HTML("Click a pixel:"), self.scene], layout={"flex": "0 0 auto"})
        *above, picture = self.box.children
        picture.layout.min_width = "0"  # it gives way to the image beside it
        self.box.children = [*above, ipywidgets.HBox([scene, picture])]

    def further_choices(self, model: PSRT, image: str) -> Choices:
        h, w, _ = self.catalog.images[image].picture.shape
        yield "row", range(h)
        yield "col", range(w)

    def adjust(self) -> None:
        self.scene.value = b""  # not another model's, where this one has no image
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
