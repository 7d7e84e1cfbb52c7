"""Attention of a model as numbers: which pixels a pixel looks at, which kernel taps a tap looks at.

Two attentions are in a model. *Window attention* mixes the w² pixels of a window, in all 18 layers. *Kernel SA* mixes
the taps of a layer's kernels, in the variants whose row has it (attention among channels is not looked at here). Both
are looked at on a `workbook.views.trace.Trace`. Layers (`ka.models.psrt.LAYERS` names them), heads, filters, rows and
columns count from 0; one that is not there is a `KAError`.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ka.errors import KAError
from ka.models.kernel_attention import KernelAttention
from ka.models.kernel_parts import KernelSA
from ka.models.psrt import Q_SCALE, Heads
from ka.models.variants import N_WINDOWS, VARIANTS, Variant
from workbook.views.trace import LayerTrace, Trace, check_index

# Window attention


@torch.no_grad()
def window_weights(seen: LayerTrace, window: int | None = None) -> Float[Tensor, "windows heads tokens tokens"]:
    """Softmax weights softmax(4 q kᵀ) of a layer's window attention: every query (third axis) over its window's keys.

    They sum to 1 over the last axis; tokens are row-major in a window. Of all windows, row-major among the layer's
    (possibly shuffled) positions, or of one of them.
    """
    x, size = seen.attention, seen.layer.window
    if window is not None:
        across = x.shape[2] // size
        check_index("window", window, across * (x.shape[1] // size))
        top, left = window // across * size, window % across * size
        x = x[:, top : top + size, left : left + size]
    q, k, _ = seen.layer.attn.split(x)
    return _softmax(q, k, Q_SCALE)


def _softmax(q: Heads, k: Heads, scale: float) -> Float[Tensor, "windows heads tokens tokens"]:
    return (scale * q @ k.transpose(-2, -1)).softmax(-1)


class Query(NamedTuple):
    """What one pixel (row, col) of the image looks at in one layer."""

    layer: int
    row: int
    col: int
    weights: Float[np.ndarray, "heads tokens"]  # over the pixels of its window, by head; they sum to 1
    rows: Int[np.ndarray, " tokens"]  # where in the image these are; in a shuffled layer apart, in up to 2×2 cells
    cols: Int[np.ndarray, " tokens"]
    lands: tuple[int, int]  # the pixel that the answer is added to: but in L2, L3 of `psrt_misaligned` the asking one

    @property
    def token(self) -> int:
        """The asking pixel's own number in its window."""
        return int(np.flatnonzero((self.rows == self.row) & (self.cols == self.col))[0])


def query(trace: Trace, layer: int, row: int, col: int) -> Query:
    """What the image's pixel (row, col) looks at in a layer.

    In a shuffled layer the pixel is found where the shuffle put it, and the pixels of its window where they are in the
    image. (In `psrt_misaligned` features moved in earlier layers too: there (row, col) is where the layer takes the
    query from.)
    """
    seen = trace.layer(layer)
    h, w = seen.places.shape
    if not (0 <= row < h and 0 <= col < w):
        cure = f"choose row 0 … {h - 1}, column 0 … {w - 1}"
        raise KAError(f"pixel (row {row}, column {col}) is outside the image; {cure}")
    size = seen.layer.window
    y, x = (int(i) for i in (seen.places == row * w + col).nonzero()[0])
    top, left = y // size * size, x // size * size
    window, token = top // size * (w // size) + left // size, (y - top) * size + x - left
    weights = window_weights(seen, window)[0, :, token]
    pixels = seen.places[top : top + size, left : left + size].flatten().numpy()
    lands = (row, col) if seen.layer.move is None else (y, x)
    return Query(layer, row, col, weights.double().cpu().numpy(), pixels // w, pixels % w, lands)


def normalised_entropy(weights: Float[Tensor, "*any tokens"]) -> Float[Tensor, "*any"]:
    """Entropy of weights that sum to 1 over n tokens, divided by that of uniform weights: -Σ p log₂ p / log₂ n.

    1: all tokens alike; 0: a single one. So windows of 4, 16 and 64 pixels can be compared. In float64.
    """
    p = weights.double()
    return torch.special.entr(p).sum(-1) / np.log(p.shape[-1])


@torch.no_grad()
def entropy(seen: LayerTrace) -> Float[np.ndarray, " heads"]:
    """Normalised entropy of a layer's window attention by head, mean over all windows and queries."""
    q, k, _ = seen.layer.attn.split(seen.attention)
    at_once = max(1, 2**22 // (q.shape[1] * q.shape[2] ** 2))  # windows: 32 MB of float64
    parts = zip(q.split(at_once), k.split(at_once), strict=True)
    total = sum(normalised_entropy(_softmax(a, b, Q_SCALE)).sum((0, 2)) for a, b in parts)
    return (torch.as_tensor(total) / (q.shape[0] * q.shape[2])).cpu().numpy()


def entropies(trace: Trace) -> Float[np.ndarray, "layers heads"]:
    """Normalised entropy (see `entropy`) of the window attention of all 18 layers."""
    return np.stack([entropy(seen) for seen in trace.layers])


# Kernel SA


class KernelWeights(NamedTuple):
    """Attention among the kernel taps of one layer: softmax weights of every tap (third axis) over all; they sum to 1.

    Taps are kernel-major (`kernel_names`), then row-major in k×k. Filters are the kernels' output channels; pooled
    kernels (kav1, kav9) have one, as they get an output axis later.
    """

    row: Variant
    weights: Float[np.ndarray, "filters heads taps taps"]

    @property
    def entropy(self) -> Float[np.ndarray, " heads"]:
        """Normalised entropy by head, mean over filters and taps."""
        return normalised_entropy(torch.from_numpy(self.weights)).mean((0, 2)).numpy()

    def kernel_names(self, filter: int | None = None) -> list[str]:
        """The kernels of the set, in its order: "window 1" … "window 4" (quadrants, row-major) and "global".

        Where KAv8's code traded axes (`kav8_as_run`) the set of a filter holds kernels of several windows *and
        filters*. Without `filter` they are named by what their results are used as ("slot 2 → window 1"); with one, by
        what they are ("window 3 of filter 7", from 1).
        """
        n_filters = len(self.weights)
        if filter is not None:
            check_index("filter", filter, n_filters)
        names = [f"window {m + 1}" for m in range(N_WINDOWS)]
        if self.row.global_first:
            names = ["global", *names]
        elif self.row.sa == "windows+global":
            names = [*names, "global"]
        if self.row.sa != "scrambled":
            return names
        if filter is None:
            return [f"slot {m + 1} → {name}" for m, name in enumerate(names)]
        memory = [divmod(m * n_filters + filter, len(names)) for m in range(len(names))]
        return [f"{names[m]} of filter {f + 1}" for f, m in memory]  # (filter, kernel), read as (kernel, filter)


def among_taps(row: Variant) -> bool:
    """Whether a variant has attention among kernel taps."""
    return bool(row.sa) and row.sa_among != "channels"


@torch.no_grad()
def kernel_sa(trace: Trace, layer: int) -> KernelWeights:
    """The weights of a layer's kernel SA among taps, softmax(q kᵀ / √d), d = channels of a head. Only where kernels are
    pooled do they depend on the image. Without kernel SA among taps, or folded: a `KAError`.
    """
    seen, row = trace.layer(layer), trace.model.row
    if not among_taps(row):
        lacks = "kernel SA among channels, not among taps" if row.sa else "no kernel SA"
        able = [name for name, other in VARIANTS.items() if among_taps(other)]
        raise KAError(f"{row.name} has {lacks}; choose a model of one of {', '.join(able)}")
    if seen.sa is None:
        raise KAError(f"this {row.name} is folded and has no kernel SA any more; trace the model before `fold`")
    q, k, _ = cast(KernelSA, cast(KernelAttention, seen.layer.ka).sa).heads(seen.sa)
    return KernelWeights(row, _softmax(q, k, q.shape[-1] ** -0.5).double().cpu().numpy())


def kernel_entropies(trace: Trace) -> Float[np.ndarray, "layers heads"]:
    """Normalised entropy of the kernel SA of all 18 layers."""
    return np.stack([kernel_sa(trace, layer).entropy for layer in range(len(trace.layers))])
