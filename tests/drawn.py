"""What a diagram shows, read off its figure; and what a reader would stumble over."""

from functools import cache

import matplotlib.style
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox
from torch import Tensor, nn

from ka.models.kernel_attention import KernelAttention
from ka.models.variants import Variant, variant
from workbook.diagrams import ka_layer
from workbook.paths import STYLE

SLOT_OF_STAGE = {
    "window kernels": {"window-kernels"},
    "reweighting": {"reweighting"},
    "global kernel": {"global-kernel-raw", "global-kernel-attended"},
    "SA": {"SA"},
    "SE": {"SE"},
    "widening": {"widening"},
}


def a_layer(row: Variant, c: int = 8) -> KernelAttention:
    layer = KernelAttention(c, row)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def image(c: int = 8) -> Tensor:
    return torch.randn(2, c, 16, 24)


@cache
def drawn_layer(name: str) -> Figure:
    """The diagram of a variant with c = 8, to be read, not changed."""
    return ka_layer.layer(variant(name), dim=16)


def real_parts(row: Variant) -> list[set[str]]:
    """What a real layer does, in order; each as the slots it may stand in."""
    if not row.has_ka:
        return []
    layer, x = a_layer(row), image()
    y = layer(x)
    if torch.equal(y, x):
        return []
    parts = [SLOT_OF_STAGE[name] for name, _, _ in layer.stages(x)]
    parts.append({"second-convolution"})
    parts += [{"fusion"}] * (layer.fusion is not None)
    return parts + [{"GELU"}] * bool(y.min() > -0.2)  # which no linear layer keeps to


def boxes(figure: Figure, state: str) -> list[tuple[str, float, Patch]]:
    """(part, top, patch) of what a figure draws as present or absent, from the top."""
    found = [(str(patch.get_gid()), patch) for patch in figure.axes[0].patches]
    kept = [(gid.split(".", 1)[1], patch) for gid, patch in found if gid.startswith(f"{state}.")]
    placed = [(gid, float(patch.get_extents().ymax), patch) for gid, patch in kept]
    return sorted(placed, key=lambda part: -part[1])


def slots(figure: Figure, state: str, name: str) -> list[str]:
    """Slots of the KA layer of one variant in a figure, from the top."""
    gids = [gid.split(".") for gid, _, _ in boxes(figure, state)]
    return list(dict.fromkeys(gid[1] for gid in gids if gid[0] == name and len(gid) > 2))


def matches(drawn: list[str], real: list[set[str]]) -> bool:
    return len(drawn) == len(real) and all(slot in allowed for slot, allowed in zip(drawn, real, strict=True))


def numbers(label: str) -> list[int]:
    """Sizes of a shape's label, for the test's image: b = 2, h = 16, w = 24."""
    axes, sizes = label.split(" = ")
    assert len(axes.split()) == len(sizes.split("·"))
    return [{"b": 2, "h": 16, "w": 24}.get(size) or int(size) for size in sizes.split("·")]


def texts(figure: Figure) -> dict[str, str]:
    found = [(str(text.get_gid()), text.get_text()) for text in figure.axes[0].texts]
    assert len({gid for gid, _ in found}) == len(found), "ids are unique"
    return dict(found)


def inside(inner: Bbox, outer: Bbox) -> bool:
    (a, b, c, d), (left, low, right, high) = inner.extents.tolist(), outer.extents.tolist()
    return a >= left and b >= low and c <= right and d <= high


def touching(boxes: list[Bbox], others: list[Bbox]) -> list[tuple[int, int]]:
    """Pairs (i, j) where box i and other j share area."""
    one, two = (np.array([box.extents for box in some])[:, :, None] for some in (boxes, others))
    x0, y0, x1, y1 = one.swapaxes(0, 1)
    u0, v0, u1, v1 = two.swapaxes(0, 1)
    meet = (x0 < u1.T) & (x1 > u0.T) & (y0 < v1.T) & (y1 > v0.T)
    return [(int(i), int(j)) for i, j in np.argwhere(meet)]


def faults(figure: Figure) -> list[str]:
    """What a reader would stumble over."""
    figure.set_dpi(200)
    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    with matplotlib.style.context(STYLE):
        written = [(str(text.get_gid()), text, text.get_window_extent(renderer)) for text in axes.texts]
    outlines = [(str(patch.get_gid()), patch.get_extents()) for patch in axes.patches]
    parts = [(gid, box) for gid, box in outlines if gid.startswith(("present", "absent", "legend"))]
    wires = [w.get_transform().transform_path(w.get_path()) for w in axes.lines if w.get_gid() == "wire"]
    found = [f"{gid} is too small" for gid, text, _ in written if text.get_fontsize() < 6]
    found += [f"{gid} leaves the figure" for gid, _, box in written if not inside(box, figure.bbox)]
    texts_at = [box for _, _, box in written]
    found += [f"{written[i][0]} overlaps {written[j][0]}" for i, j in touching(texts_at, texts_at) if i < j]
    for i, j in touching(texts_at, [outline for _, outline in parts]):
        (gid, _, box), (part, outline) = written[i], parts[j]
        if not inside(box, outline):
            found.append(f"{gid} runs into {part}")
    outline_of = dict(parts)
    for gid, text, box in written:
        home = gid.rpartition(".")[0]
        if home in outline_of and not inside(box, outline_of[home]):
            found.append(f"{gid} leaves its box")
        if any(wire.intersects_bbox(box, filled=False) for wire in wires):
            found.append(f"a wire crosses {gid}: {text.get_text()}")
    return found
