"""The study's modules: their names of weights → ours, and what they held in vain.

Checkpoints of the study and of the published PSRT name weights by the modules of their code. Parts are translated one
by one; those that no output depended on are left out by name, and counted here.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from einops import rearrange
from torch import Tensor

from ka.errors import KAError
from ka.models.psrt import N_BLOCKS, WINDOWS
from ka.models.variants import KERNEL_SIZE, N_WINDOWS, VARIANTS, Variant, variant

StateDict = Mapping[str, Tensor]

# Parts of the study's KA layer that no output depended on: pattern of their weights' names, parameters for c channels
DEAD_PARTS: dict[str, tuple[str, Callable[[int], int]]] = {
    "conv_bias": (r"convlayers?\.(\d\.)?conv\.bias", lambda c: N_WINDOWS * c),
    "norm": (r"norm\..+", lambda c: 2 * c),
    "layernorm": (r"layernorm\..+", lambda c: 2 * c),
    "kernels": (r"convlayers?\.(\d\.)?conv\.weight", lambda c: N_WINDOWS * c * c * KERNEL_SIZE**2),
    "sa": (r"proj_(qkv|out)\..+", lambda c: 4 * c * c + 4 * c),
    "shared_se": (r"se\.se\.[13]\..+", lambda c: 2 * (c * c + c)),
    "window_se": (r"selayers\.\d\.se\.[13]\..+", lambda c: N_WINDOWS * 2 * (c * c + c)),
    "global_se": (r"global_kernel_selayer\.se\.[13]\..+", lambda c: 2 * (c * c + c)),
    "global": (r"kernel_linear\..+", lambda c: N_WINDOWS * c * c + c),
    "fusion2": (r"fusion\..+", lambda c: 2 * c * c + c),
    "reweight": (r"wink_reweight\..+", lambda c: N_WINDOWS * (c + 1 + 8 * N_WINDOWS + 5)),
}
# The study's names of the parts of a layer → ours. `{i}`: the window.
_PARTS = {
    r"proj_qkv": "sa.qkv",
    r"proj_out": "sa.proj",
    r"se\.se\.1": "se.squeeze.0",
    r"se\.se\.3": "se.excite.0",
    r"selayers\.(\d)\.se\.1": "se.squeeze.{i}",
    r"selayers\.(\d)\.se\.3": "se.excite.{i}",
    r"global_kernel_selayer\.se\.1": "global_se.squeeze.0",
    r"global_kernel_selayer\.se\.3": "global_se.excite.0",
    r"kernels_linear": "widen",
    r"gk_generation(?:\.\d)?": "global_kernel.mix",
    r"(?:concat_linear|fusion)": "fusion",
}
_ENDS = {"w.conv": "head", "conv.0": "tail"}


def dead_parameters(name: str, dim: int = 48, n_layers: int = 18) -> int:
    """Parameters of the study's module that no output depended on; 0 for rows of our own, which it did not have.

    For kav12 … kav19 this is what its modules are known to have held: the second report prints no counts to match.
    """
    row = variant(name)
    unused_norms = (n_layers // 3) * 2 * 2 * dim  # two LayerNorms in every SaR block, of three layers
    return 0 if row.ours else unused_norms + n_layers * sum(DEAD_PARTS[part][1](dim // 2) for part in row.dead)


def readings(state: StateDict, where: str) -> dict[str, dict[str, Tensor]]:
    """What a state dict under the study's names may be: variant → its weights under our names.

    KAError if it holds no KA layer and is not the published PSRT either.
    """
    is_ka = any(".KernelAttention." in key for key in state)
    if not is_ka and not any(re.search(r"layers\.\d\.layers\.\d\.norm[23]\.", key) for key in state):
        return {"psrt": study_keys(state, variant("psrt"), where)}  # only the study's SaR blocks hold spare norms
    possible: dict[str, dict[str, Tensor]] = {}
    for row in VARIANTS.values():
        dead = [rf"KernelAttention\.{DEAD_PARTS[part][0]}$" for part in row.dead]
        whole = all(any(re.search(pattern, key) for key in state) for pattern in dead)
        if not row.ours and row.has_ka == is_ka and row.shuffle != "aligned" and whole:
            with suppress(KAError):
                possible[row.name] = study_keys(state, row, where)
    return possible


def study_keys(state: StateDict, row: Variant, where: str = "the state dict") -> dict[str, Tensor]:
    """The study's (and the published) names of a network's weights, as ours.

    KAError for a row that the study never had, and a name that is neither a part of this variant nor dead.
    """
    if row.ours:
        others = f"others never had {row.name}; name their variant"
        raise KAError(f"{where} lacks head.weight, so it is not this workbook's, and {others}")
    ours: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, value in state.items():
        found = re.fullmatch(r"w\.layers\.(\d+)\.layers\.(\d+)\.(?:WA([123])\.(.+)|norm[23]\.(?:weight|bias))", key)
        part, _, kind = key.rpartition(".")
        if part in _ENDS and kind in ("weight", "bias"):
            ours[f"{_ENDS[part]}.{kind}"] = value
        elif found is None or int(found[1]) >= N_BLOCKS or int(found[2]) >= len(WINDOWS):
            strange.append(key)
        elif found[3]:  # else one of the SaR block's spare norms
            layer, part = f"blocks.{found[1]}.{found[2]}.layers.{int(found[3]) - 1}", found[4]
            if part.startswith("KernelAttention.") and row.has_ka:
                layers.setdefault(layer, {})[part.removeprefix("KernelAttention.")] = value
            else:
                ours[f"{layer}.{part}"] = value
    _refuse(strange, row, where)
    for layer, weights in layers.items():
        ours |= {f"{layer}.ka.{key}": value for key, value in study_layer_keys(weights, row, where).items()}
    return ours


def study_layer_keys(weights: StateDict, row: Variant, where: str = "the layer") -> dict[str, Tensor]:
    """Names of one KA layer's weights of the study, as ours; its dead weights are left out.

    KAError for a name that is neither part of this variant nor dead, and for kernels or a gate of impossible shape.
    """
    ours: dict[str, Tensor] = {}
    windows: dict[int, Tensor] = {}
    reweight: dict[str, Tensor] = {}
    strange = []
    dead = "|".join(DEAD_PARTS[part][0] for part in {"conv_bias", "norm", "layernorm", *row.dead})
    for key, value in weights.items():
        if re.fullmatch(dead, key):
            continue
        if key in ("convlayer.conv.weight", "convlayer1.params"):
            if value.ndim != 4 or len(value) % N_WINDOWS:
                raise _misshapen(where, key, value, f"({N_WINDOWS}·c, c, k, k)")
            windows = dict(enumerate(rearrange(value, "(m o) i u v -> m o i u v", m=N_WINDOWS)))
        elif found := re.fullmatch(r"convlayers\.(\d)\.conv\.weight", key):
            windows[int(found[1])] = value
        elif key.startswith("wink_reweight."):
            reweight[key.removeprefix("wink_reweight.")] = value
        elif (name := _part(key, row)) is not None:
            matrix = value.flatten(1) if value.ndim > 2 else value  # of a 1×1 convolution
            put(ours, name, value.flatten() if name in ("widen.weight", "widen.bias") else matrix, key, where)
        else:
            strange.append(key)
    _refuse(strange, row, where)
    for m, value in windows.items():
        if value.shape != windows[min(windows)].shape:
            raise _misshapen(where, f"convlayers.{m}.conv.weight", value, "the shape of the other windows")
    if windows:
        ours["window_kernels.weight"] = torch.stack([windows[m] for m in sorted(windows)])
    return ours | _reweight_keys(reweight, where)


def _part(key: str, row: Variant) -> str | None:
    """Our name of one weight or bias, None if no part of any layer is called so."""
    part, _, kind = key.rpartition(".")
    if part == "kernel_linear":  # KAv1's c → c² and every global kernel share this name
        return f"{'widen.linear' if row.kernels == 'pooled' else 'global_kernel.mix'}.{kind}"
    for pattern, name in _PARTS.items():
        if found := re.fullmatch(pattern, part):
            return f"{name.format(i=found[1]) if found.groups() else name}.{kind}"
    return None


def _reweight_keys(weights: StateDict, where: str) -> dict[str, Tensor]:
    """The gate of kav17 and kav18: its parts are told apart by their shapes (c→1 per window, n→4n, 4n→n)."""
    ours: dict[str, Tensor] = {}
    squeeze: list[tuple[Tensor, Tensor]] = []
    names = {(4 * N_WINDOWS, N_WINDOWS): "reweight.expand", (N_WINDOWS, 4 * N_WINDOWS): "reweight.contract"}
    for stem in sorted({key.rpartition(".")[0] for key in weights}):
        weight, bias = weights.get(f"{stem}.weight"), weights.get(f"{stem}.bias")
        if weight is None or bias is None:
            raise KAError(f"{where}: unexpected wink_reweight.{stem} without both weight and bias; the file is damaged")
        if weight.ndim < 2 or bias.shape != weight.shape[:1]:
            shapes = f"(n, m) and its bias (n,), not {tuple(bias.shape)}"
            raise _misshapen(where, f"wink_reweight.{stem}.weight", weight, shapes)
        matrix = weight.flatten(1)
        if name := names.get((len(matrix), matrix.shape[1])):
            put(ours, f"{name}.weight", matrix, f"wink_reweight.{stem}.weight", where)
            ours[f"{name}.bias"] = bias
        else:
            squeeze += zip(matrix.split(1), bias.split(1), strict=True)
    for m, (weight, bias) in enumerate(squeeze):
        ours |= {f"reweight.squeeze.{m}.weight": weight, f"reweight.squeeze.{m}.bias": bias}
    return ours


def put(state: dict[str, Tensor], name: str, value: Tensor, key: str, where: str) -> None:
    """Enter a weight under our name; two of one name are an error, not a matter of order."""
    if name in state:
        raise KAError(f"{where}: unexpected {key}, as another weight is {name} already; remove the one not used")
    state[name] = value


def some(keys: list[str], most: int = 4) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _misshapen(where: str, key: str, value: Tensor, expected: str) -> KAError:
    return KAError(f"{where}: {key} has shape {tuple(value.shape)}, not {expected}; the file is damaged")


def _refuse(keys: list[str], row: Variant, where: str) -> None:
    if keys:
        raise KAError(f"{where} is no checkpoint of {row.name}: unexpected {some(sorted(keys))}")
