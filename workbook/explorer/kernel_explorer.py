"""The kernel explorer: window kernels and the global kernel of a layer, from all sides."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

from matplotlib.figure import Figure

from ka.errors import KAError
from ka.models.psrt import LAYERS, PSRT
from workbook.explorer.base import Choices, Explorer, menu, slider
from workbook.explorer.catalog import Catalog
from workbook.views import kernel_figures, kernels

ALL = "all kernels"
FEW = 8  # channels that are shown of all kernels at once: more would be too small to be seen


def _stages(chosen: SimpleNamespace) -> list[kernels.Stage]:
    return kernels.stages_of(chosen.trace, chosen.index)


def _last(chosen: SimpleNamespace) -> kernels.Stage:
    return _stages(chosen)[-1]


def _grid(stages: Sequence[kernels.Stage], kernel: str, chosen: SimpleNamespace) -> Figure:
    """All kernels, of a few channels; or one, at the stages that have it."""
    few = range(min(FEW, stages[-1].kernels.shape[2])) if kernel == ALL else None
    if kernel != ALL:
        stages = [
            replace(stage, kernels=stage.kernels[[stage.labels.index(kernel)]], labels=(kernel,))
            for stage in stages
            if kernel in stage.labels
        ]
    return kernel_figures.filter_grid(stages, few, few, chosen.colours, chosen.title)


def _moved(chosen: SimpleNamespace) -> Figure:
    if chosen.image == chosen.beside:
        raise KAError("two images are compared, and there is one; give data_root, the folder of CAVE")
    other = chosen.catalog.trace(chosen.model, chosen.beside)
    pictures = {name: chosen.catalog.images[name].picture for name in (chosen.image, chosen.beside)}
    stages = (_last(chosen), kernels.stages_of(other, chosen.index)[-1])
    few = range(min(FEW, chosen.trace.model.dim // 2))
    moved = kernels.movement(chosen.trace, other, chosen.index)
    return kernel_figures.movement_panel(pictures, stages, moved, few, few, chosen.title)


class KernelExplorer(Explorer):
    """Window kernels and the global kernel of a layer, from all sides.

    Further controls: kernel, output and input (channels from 1), colours (one scale for all parts), beside (a second
    image, for how kernels move).
    """

    pictures: ClassVar = {
        "filters, part by part": lambda chosen: _grid(_stages(chosen), chosen.kernel, chosen),
        "one filter, part by part": lambda chosen: kernel_figures.single(
            _stages(chosen), chosen.output - 1, chosen.input - 1, chosen.colours, chosen.title
        ),
        "folded kernel and its parts": lambda chosen: _grid(kernels.folding(chosen.trace, chosen.index), ALL, chosen),
        "frequency response": lambda chosen: kernel_figures.frequency_responses(_last(chosen), title=chosen.title),
        "frequency response, one filter": lambda chosen: kernel_figures.frequency_responses(
            _last(chosen), (chosen.output - 1, chosen.input - 1), title=chosen.title
        ),
        "norms": lambda chosen: kernel_figures.norm_steps(_stages(chosen), chosen.title),
        "cosine similarity": lambda chosen: kernel_figures.cosine_heatmaps(_stages(chosen), chosen.title),
        "contributions": lambda chosen: kernel_figures.contribution_panel(
            kernels.contributions(chosen.trace, chosen.index), chosen.title
        ),
        "two images": _moved,
    }

    def __init__(self, catalog: Catalog) -> None:
        names = ("show", "model", "image", "beside", "layer", "kernel", "colours", "output", "input")
        sliders = {"layer": len(LAYERS), "output": 1, "input": 1}
        super().__init__(
            catalog, {name: slider(name, 1, sliders[name]) if name in sliders else menu(name) for name in names}
        )

    def further_choices(self, model: PSRT, image: str) -> Choices:
        images = self.catalog.images_for(model)
        yield "beside", [name for name in images if name != image] or images
        yield "kernel", [ALL, *kernels.kernel_labels(model.row)]
        yield "colours", [False, True]
        for name in ("output", "input"):
            yield name, range(1, model.dim // 2 + 1)

    def label(self, name: str, value: Any) -> str:
        return ("one scale for all" if value else "a scale for each part") if name == "colours" else str(value)
