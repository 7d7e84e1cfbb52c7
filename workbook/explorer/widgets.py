"""The explorers: kernels, attention, kernel fields."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

from matplotlib.figure import Figure

from ka.errors import KAError
from ka.methods.injection import LocalInjection
from ka.models.psrt import PSRT
from workbook.explorer.catalog import DATA, Catalog
from workbook.explorer.controls import Choices, Explorer, PixelExplorer, View, menu, slider
from workbook.views import attention, attention_figures, kernel_figures, kernels
from workbook.views.kernel_field import field_figure
from workbook.views.trace import Trace

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
        raise KAError(f"two images are compared, and there is one; give CAVE's folder ({DATA})")
    other = chosen.catalog.trace(chosen.model, chosen.beside)
    pictures = {name: chosen.catalog.images[name].picture for name in (chosen.image, chosen.beside)}
    stages = (_stages(chosen)[-1], kernels.stages_of(other, chosen.index)[-1])
    few, moved = range(min(FEW, chosen.trace.model.dim // 2)), kernels.movement(chosen.trace, other, chosen.index)
    return kernel_figures.movement_panel(pictures, stages, moved, few, few, chosen.title)


def _has_kernels(model: PSRT) -> bool:
    return model.row.has_ka and model.row.kernels != "identity"


def _view(draw: Callable[[SimpleNamespace], Figure], how: str, uses: Collection[str] = ()) -> View:
    return View(draw, how, {"layer", *uses}, _has_kernels, "kernels of KA layers")


class KernelExplorer(Explorer):
    """Window kernels and the global kernel of a layer, from all sides. Further controls: kernel, output and input
    (channels from 1), colours (one scale for all parts), beside (a second image, for how kernels move).
    """

    pictures: ClassVar = {
        "filters, part by part": _view(
            lambda chosen: _grid(_stages(chosen), chosen.kernel, chosen),
            "Each mosaic is a kernel, a row per output and a column per input channel; red is positive, blue negative.",
            {"kernel", "colours"},
        ),
        "one filter, part by part": _view(
            lambda chosen: kernel_figures.single(
                _stages(chosen), chosen.output - 1, chosen.input - 1, chosen.colours, chosen.title
            ),
            "The taps of one output and one input channel with their numbers, after each part of the layer.",
            {"output", "input", "colours"},
        ),
        "folded kernel and its parts": _view(
            lambda chosen: _grid(kernels.folding(chosen.trace, chosen.index), ALL, chosen),
            "Above, what each kernel is once the fusion is in it; below, their sum, the one convolution that runs.",
            {"colours"},
        ),
        "frequency response": _view(
            lambda chosen: _frequencies(chosen, None),
            "The centre is the image's mean, the rim its finest detail: bright inside is a blur, outside sharpening.",
        ),
        "frequency response, one filter": _view(
            lambda chosen: _frequencies(chosen, (chosen.output - 1, chosen.input - 1)),
            "The same of one output and one input channel alone.",
            {"output", "input"},
        ),
        "norms": _view(
            lambda chosen: kernel_figures.norm_steps(_stages(chosen), chosen.title),
            "How large each kernel is after each part: a part that shrinks kernels shows as a fall.",
        ),
        "cosine similarity": _view(
            lambda chosen: kernel_figures.cosine_heatmaps(_stages(chosen), chosen.title),
            "1 is the same kernel up to a factor, 0 an unrelated one.",
        ),
        "contributions": _view(
            lambda chosen: kernel_figures.contribution_panel(
                kernels.contributions(chosen.trace, chosen.index), chosen.title
            ),
            "Shares of the layer's output add up to 1; sizes do not, as terms cancel.",
        ),
        "two images": _view(
            _moved,
            "The same kernels for both images, and 0 on the right, is a layer that does not look at the image.",
            {"beside"},
        ),
    }

    def __init__(self, catalog: Catalog, chosen: Mapping[str, Any] = MappingProxyType({})) -> None:
        channels = {name: slider(name, 1, 1) for name in ("output", "input")}
        super().__init__(catalog, {name: menu(name) for name in ("kernel", "colours", "beside")} | channels, chosen)

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


_ATTENDS = (lambda model: bool(model.layers()), "window attention")
_AMONG_TAPS = (lambda model: attention.among_taps(model.row), "kernel SA among taps")


class AttentionExplorer(PixelExplorer):
    """Window attention of a pixel, kernel SA, and entropies. Further controls: head, filter (of kernel SA)."""

    pictures: ClassVar = {
        "window attention of the pixel": View(
            lambda chosen: attention_figures.query_maps(
                **_pixel(chosen), layer=chosen.index, head=_from_0(chosen.head)
            ),
            "The larger a dot, the more the pixel looks there; the orange line in the colour bar is uniform attention.",
            {"layer", "row", "col", "head"},
            *_ATTENDS,
        ),
        "the pixel, all layers": View(
            lambda chosen: attention_figures.query_layers(**_pixel(chosen)),
            "Red is looked at more than in uniform attention, blue less; grey is outside the window.",
            {"row", "col"},
            *_ATTENDS,
        ),
        "kernel SA": View(
            _kernel_sa,
            "A row is the tap that looks, a column the tap looked at: equal rows mean that all taps become the same.",
            {"layer", "head", "filter"},
            *_AMONG_TAPS,
        ),
        "entropy of window attention": View(
            lambda chosen: attention_figures.entropy_map(attention.entropies(chosen.trace)),
            "1 is attention spread evenly over the window, 0 a single pixel.",
            (),
            *_ATTENDS,
        ),
        "entropy of kernel SA": View(
            lambda chosen: attention_figures.entropy_map(
                attention.kernel_entropies(chosen.trace), title=_kernel_sa_title(chosen.trace)
            ),
            "1 is attention spread evenly over the taps: every tap becomes the same mean.",
            (),
            *_AMONG_TAPS,
        ),
    }

    def __init__(self, catalog: Catalog, chosen: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(catalog, {"head": menu("head"), "filter": menu("filter")}, chosen)

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


def _adapts(model: PSRT) -> bool:
    return model.front is not None or isinstance(model.start, LocalInjection)


class FieldExplorer(PixelExplorer):
    """How kernels that adapt change over the whole scene, and the one at a pixel of its middle."""

    pictures: ClassVar = {
        "kernel field": View(
            _field,
            "Where colours are equal, kernels are; beside it, what the kernel at the cross adds to the spectrum there"
            " (and, of a model that attends, what counts in its window).",
            {"row", "col"},
            _adapts,
            "kernels that change from place to place",
        )
    }
    of_layers: ClassVar = False

    def __init__(self, catalog: Catalog, chosen: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(catalog, {}, chosen)
