"""Kernels of a KA model as numbers: their stages, likeness, frequency responses, contributions and movement.

A layer is an index 0 … 17 into `ka.models.psrt.LAYERS`. Kernels are ordered as their labels say: the windows,
row-major, then the global kernel. What takes a `Trace` raises `KAError` where there is no such layer, or where the
model has no kernels (no KA, kav5_as_run, a folded copy); the message says what to choose.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from einops import repeat
from jaxtyping import Complex, Float
from torch import Tensor

from ka.errors import KAError
from ka.models.kernel_attention import KernelAttention, apply_folded, convolve, fold
from ka.models.kernel_parts import quadrants, unquadrants
from ka.models.psrt import LAYERS
from ka.models.variants import N_WINDOWS, Variant
from workbook.views.trace import Trace

WINDOW_LABELS = ("window 1 (top left)", "window 2 (top right)", "window 3 (bottom left)", "window 4 (bottom right)")
KERNEL = "kernel"  # where there is a single one
GLOBAL = "global"
BIAS = "bias"

Bank = Float[np.ndarray, "o i u v"]
Maps = Float[Tensor, "1 c h w"]


@dataclass(frozen=True, eq=False)
class Stage:
    """The kernels of one layer, with their names, after one of its parts (named as in `KernelAttention.stages`). Pooled
    kernels have one output (o = 1) until they are widened.
    """

    name: str
    kernels: Float[np.ndarray, "k o i u v"]
    labels: tuple[str, ...]


def kernel_labels(row: Variant) -> tuple[str, ...]:
    """Names of a variant's kernels, once all are made."""
    windows = (KERNEL,) if row.n_windows == 1 else WINDOW_LABELS
    return (*windows, GLOBAL) if row.global_from else windows


@torch.no_grad()
def stages_of(trace: Trace, layer: int) -> list[Stage]:
    """The kernels of one layer after each of its parts, in order; the last are those that are convolved with."""
    ka, x = _branch(trace, layer)
    labels, sets = kernel_labels(ka.row), [(name, _joined(windows, glob)) for name, windows, glob in ka.stages(x)]
    return [Stage(name, _array(kernels), labels[: len(kernels)]) for name, kernels in sets]


def final_stages(trace: Trace, fused: bool = False) -> list[Stage]:
    """The last kernels of each of the 18 layers, or what the fusion makes of them (`fused_stage`)."""
    return [fused_stage(trace, layer) if fused else stages_of(trace, layer)[-1] for layer in range(len(LAYERS))]


@torch.no_grad()
def fused_stage(trace: Trace, layer: int) -> Stage:
    """F_m·K_m: every kernel that is convolved with, times its own columns of the fusion ("times fusion").

    Output channels of K_m alone are read by different columns for every m, so that only F_m·K_m have outputs that
    mean the same for all kernels, and (channels of the residual stream) for all layers. Variants without a fusion:
    K_m itself.
    """
    labels, fused = _fused(*_branch(trace, layer))
    return Stage("times fusion", _array(fused), labels)


def _branch(trace: Trace, layer: int) -> tuple[KernelAttention, Maps]:
    row = trace.model.row
    if not row.has_ka:
        field = "look at it in Kernel field (explore.ipynb, make explore)"
        instead = field if row.front else "choose a KA variant, such as kav11"
        raise KAError(f"{row.name} has no KA layers, so there are no kernels of layers; {instead}")
    if row.kernels == "identity":
        raise KAError(f"{row.name}: its KA branch returns its input and has no kernels; choose kav5, as described")
    seen = trace.layer(layer)
    if not isinstance(seen.layer.ka, KernelAttention):
        raise KAError(f"{row.name} was folded, its kernels are merged; trace the model before `fold()`")
    return seen.layer.ka, cast(Maps, seen.ka)


def _joined(windows: Tensor, glob: Tensor | None) -> Float[Tensor, "k o i u v"]:
    return (windows if glob is None else torch.cat([windows, glob], dim=1))[0]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


# Size, likeness, frequency response


def norms(stages: Sequence[Stage]) -> Float[np.ndarray, "stages k"]:
    """Frobenius norm of every kernel at every stage (or layer: `final_stages`); NaN where it is not made yet."""
    values = np.full((len(stages), max(len(stage.labels) for stage in stages)), np.nan)
    for line, stage in zip(values, stages, strict=True):
        line[: len(stage.labels)] = np.sqrt(np.square(stage.kernels).sum((1, 2, 3, 4)))
    return values


def cosine(kernels: Float[np.ndarray, "k ..."]) -> Float[np.ndarray, "k k"]:
    """Cosine of the angle between every two kernels taken as vectors, in [-1, 1]; 0 with a kernel that is all zero.
    Filters are compared output channel by output channel; see `fused_stage` for when these correspond.
    """
    vectors = kernels.reshape(len(kernels), -1)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return np.clip(unit @ unit.T, -1, 1)


def layer_cosine(stages: Sequence[Stage], label: str) -> Float[np.ndarray, "layers layers"]:
    """`cosine` between layers, of the kernel called `label` in each of `final_stages`."""
    for stage in stages:
        if label not in stage.labels:
            raise KAError(f"kernel {label!r} is not there; choose one of {', '.join(stage.labels)}")
    return cosine(np.stack([stage.kernels[stage.labels.index(label)] for stage in stages]))


def frequencies(n: int = 33) -> Float[np.ndarray, " n"]:
    """n frequencies from -0.5 to 0.5 cycles per pixel."""
    return np.linspace(-0.5, 0.5, n)


def response(kernel: Float[np.ndarray, "*any u v"], n: int = 33) -> Float[np.ndarray, "*any n n"]:
    """Magnitude of the frequency response of a k×k kernel, at `frequencies(n)` down and across.

    |H(f_y, f_x)| = |Σ_uv K[u, v] exp(-2πi (f_y u + f_x v))| (Dudgeon & Mersereau, "Multidimensional Digital Signal
    Processing", 1984). Where the kernel is centred, and whether it is flipped, does not change the magnitude.
    """
    taps = np.arange(kernel.shape[-1])
    wave: Complex[np.ndarray, "n u"] = np.exp(-2j * np.pi * np.outer(frequencies(n), taps))
    return np.abs(wave @ kernel @ wave.T)


def bank_response(bank: Bank, n: int = 33) -> Float[np.ndarray, "n n"]:
    """Root mean square of `response` over all output and input channels of one kernel."""
    return np.sqrt(np.square(response(bank, n)).mean((0, 1)))


# What the second convolution and the fusion make of the kernels


def folding(trace: Trace, layer: int) -> list[Stage]:
    """From the kernels of the second convolution to the folded k×k kernel, in three steps.

    "second convolution": the kernels K_m as they are used. "times fusion": F_m·K_m, each with its own columns of the
    fusion. "folded": their sum, the one convolution that a pixel meets. kav2 and kav3 (kernel of the window), kav5
    (global kernel) and ordinary convolutions have no fusion: "folded" alone. kav4 has one folded kernel per window,
    window plus global: what a pixel meets unless it lies at its window's border.
    """
    ka, _ = _branch(trace, layer)
    parts = fused_stage(trace, layer)
    if ka.fusion is None:
        return [replace(parts, name="folded")]
    if ka.row.second == "image":
        folded = Stage("folded", parts.kernels.sum(0, keepdims=True), ("sum of all",))
    else:
        both = tuple(label.replace(" (", " + global (") for label in WINDOW_LABELS)
        folded = Stage("folded", parts.kernels[:-1] + parts.kernels[-1:], both)
    return [replace(stages_of(trace, layer)[-1], name="second convolution"), parts, folded]


def _fused(ka: KernelAttention, x: Maps) -> tuple[tuple[str, ...], Float[Tensor, "k o i u v"]]:
    """The kernels that the second convolution uses, by name, each times its columns of the fusion."""
    windows, glob = ka.kernels(x)
    if ka.row.second == "global":
        return (GLOBAL,), cast(Tensor, glob)[0]
    labels, kernels = kernel_labels(ka.row), _joined(windows, glob)
    if ka.fusion is None:
        return labels, kernels
    weight = ka.fusion.weight
    if ka.row.second == "windows+image":  # one set of columns for all windows, one for the image
        on_windows, on_image = weight.chunk(2, dim=1)
        columns = [*[on_windows] * N_WINDOWS, on_image]
    else:
        columns = list(weight.chunk(len(kernels), dim=1))
        if ka.row.global_first:
            columns = [*columns[1:], columns[0]]
    return labels, torch.stack([fold(kernel[None, None], f)[0, 0] for kernel, f in zip(kernels, columns, strict=True)])


@torch.no_grad()
def terms(trace: Trace, layer: int) -> Iterator[tuple[str, Maps]]:
    """The layer's output, before a GELU, as a sum: F_m·(K_m ∗ x) for each kernel, and the bias (of the fusion, or of an
    ordinary convolution). Where the second convolution is on windows, the term of a window is zero outside it.
    """
    ka, x = _branch(trace, layer)
    labels, fused = _fused(ka, x)
    windows = quadrants(x)
    for m, label in enumerate(labels):
        if ka.row.second.startswith("windows") and label != GLOBAL:
            pasted = torch.zeros_like(windows)
            pasted[:, m] = convolve(windows[:, m], fused[m : m + 1])
            yield label, unquadrants(pasted)
        else:
            yield label, convolve(x, fused[m : m + 1])
    bias = ka.bias if ka.fusion is None else ka.fusion.bias
    if bias is not None:
        yield BIAS, repeat(bias.detach(), "c -> 1 c h w", h=x.shape[-2], w=x.shape[-1])


class Contributions(NamedTuple):
    """How much of a layer's output y (before a GELU) each of its `terms` t is."""

    labels: tuple[str, ...]
    norms: Float[np.ndarray, " t"]  # ‖t‖ / ‖y‖; above 1 where terms cancel each other
    shares: Float[np.ndarray, " t"]  # ⟨t, y⟩ / ⟨y, y⟩; they sum to 1. Negative: the term works against the output
    window_shares: Float[np.ndarray, "t 4"]  # the same inside each of the four windows; every column sums to 1


@torch.no_grad()
def contributions(trace: Trace, layer: int) -> Contributions:
    """How much each kernel, and the bias, contributes to the output of one layer."""
    ka, x = _branch(trace, layer)
    y = quadrants(apply_folded(x, *ka.folded(x)))[0]
    energy = y.square().sum((1, 2, 3), dtype=torch.float64)
    labels, parts = zip(*((label, quadrants(term)[0]) for label, term in terms(trace, layer)), strict=True)
    size = torch.stack([t.square().sum(dtype=torch.float64) for t in parts])
    inner = torch.stack([(t * y).sum((1, 2, 3), dtype=torch.float64) for t in parts])
    norms, shares = _array((size / energy.sum()).sqrt()), _array(inner.sum(1) / energy.sum())
    return Contributions(labels, norms, shares, _array(inner / energy))


def movement(a: Trace, b: Trace, layer: int) -> Float[np.ndarray, " k"]:
    """How far each kernel of a layer moves from one image to another: ‖K(a) - K(b)‖ over the mean of the two norms. In
    [0, 2]; exactly 0 where the kernels do not depend on the image. Both traces are of one model.
    """
    if a.model is not b.model:
        raise KAError("the two traces are of two models; trace both images with the same one")
    before, after = (stages_of(trace, layer)[-1] for trace in (a, b))
    moved = norms([replace(after, kernels=after.kernels - before.kernels)])[0]
    mean = norms([before, after]).mean(0)
    return np.divide(moved, mean, out=np.zeros_like(moved), where=mean > 0)


def moves_most(a: Trace, b: Trace) -> int:
    """The index of the layer whose kernels move most between two images; the first where none do."""
    return int(layer_movement(a, b).max(1).argmax())


def layer_movement(a: Trace, b: Trace) -> Float[np.ndarray, "layers k"]:
    """`movement` of all 18 layers."""
    return np.stack([movement(a, b, layer) for layer in range(len(LAYERS))])
