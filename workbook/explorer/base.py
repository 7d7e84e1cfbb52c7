"""What the explorers have in common: a picture with controls, for JupyterLab and as a page (`make explore`).

A control that changes redraws the picture, which is a PNG in an Image widget. (`interact` and Output widgets make
papermill hang at random.) `Explorer.figure` draws the same without any widget, for scripts.
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import ipywidgets
from matplotlib.figure import Figure

from ka.errors import KAError, unknown
from ka.models.psrt import LAYERS, PSRT
from workbook.explorer.catalog import Catalog
from workbook.style import png
from workbook.views.trace import check_index

Choices = Iterator[tuple[str, Sequence[Any]]]


class Explorer(ABC):
    """Controls above a picture.

    Attributes:
        pictures: what can be shown, by name: a function of what was chosen. That are the values of the controls, and
            with them `catalog`, the `trace` of the model and image, the `index` of the layer, and a `title`.
        controls: name → widget; their values are the arguments of `figure`. All explorers have `show` (which picture),
            `model`, `image` and `layer` (1 … 18).
        picture: the figure, as PNG; empty while there is none.
        message: what is wrong with the choice, if anything is.
        box: all of it, to be shown.
    """

    pictures: ClassVar[Mapping[str, Callable[[SimpleNamespace], Figure]]]

    def __init__(self, catalog: Catalog, controls: Mapping[str, ipywidgets.ValueWidget]) -> None:
        self.catalog = catalog
        self.controls = dict(controls)
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.message = ipywidgets.HTML()
        rows = ipywidgets.Box(
            list(self.controls.values()), layout={"display": "flex", "flex_flow": "row wrap", "max_width": "1100px"}
        )
        self.box = ipywidgets.VBox([rows, self.message, self.picture]).add_class("ka-explorer")
        self.picture.add_class("ka-picture")
        self._paused = False
        for name, control in self.controls.items():
            control.add_class(f"ka-{name}")
            control.observe(self.redraw, names="value")
        self.redraw()

    def values(self) -> dict[str, Any]:
        """What the controls say."""
        return {name: control.value for name, control in self.controls.items()}

    def figure(self, **changes: Any) -> Figure:
        """The picture for what the controls say, some of it changed; needs no display and leaves the controls alone.

        What depends on a changed value (the kernels that a model has, say) follows it, as the controls would.

        Raises:
            KAError: unknown name, a value that is no choice, or a choice for which there is no picture.
        """
        for name in changes:
            if name not in self.controls:
                raise unknown("control", name, self.controls)
        values = self.values() | changes
        for name, choices in self.choices(values):
            if name in changes and isinstance(choices, range):
                check_index(name, values[name], len(choices), choices[0])
            elif name in changes and values[name] not in choices:
                raise unknown(name, values[name], map(str, choices))
            elif values[name] not in choices:
                values[name] = _instead(choices)
        trace, index = self.catalog.trace(values["model"], values["image"]), values["layer"] - 1
        title = f"{values['model']}, {LAYERS[index]}"
        chosen = SimpleNamespace(**values, catalog=self.catalog, trace=trace, index=index, title=title)
        return self.pictures[values["show"]](chosen)

    def choices(self, values: Mapping[str, Any]) -> Choices:
        """Every control and its choices, those first on which others depend; `values` is what was chosen so far."""
        yield "show", list(self.pictures)
        yield "model", list(self.catalog.models)
        model = self.catalog.model(values["model"])
        yield "image", self.catalog.images_for(model)
        yield "layer", range(1, len(LAYERS) + 1)
        yield from self.further_choices(model, values["image"])

    @abstractmethod
    def further_choices(self, model: PSRT, image: str) -> Choices:
        """Those of the controls that not all explorers have."""

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
        """Controls change without a new picture for each."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


def _instead(choices: Sequence[Any]) -> Any:
    """What is chosen where the choice is gone: the first of a list, the end of a slider."""
    return choices[-1] if isinstance(choices, range) else choices[0]


def menu(label: str) -> ipywidgets.Dropdown:
    """A drop-down list; its choices come from `Explorer.choices`."""
    return ipywidgets.Dropdown(options=[("", None)], description=label, layout={"width": "300px"})


def slider(label: str, low: int, high: int) -> ipywidgets.IntSlider:
    """A slider over whole numbers that reports when it is let go."""
    return ipywidgets.IntSlider(
        value=low, min=low, max=high, description=label, continuous_update=False, layout={"width": "300px"}
    )
