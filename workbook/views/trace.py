"""What every layer of a model sees in one image: the ground on which kernels and attention maps are looked at."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ka.errors import KAError
from ka.models.psrt import PSRT, WINDOWS, Layer, shuffle, unshuffle

L1, L2, L3 = range(3)
NO_LAYERS = "look at its kernel field, or choose a model with PSRT's body"


class LayerTrace(NamedTuple):
    """What one layer saw."""

    layer: Layer
    attention: Float[Tensor, "1 h w c"]  # input of its window attention, after LN1 (and, where there is one, a shuffle)
    ka: Float[Tensor, "1 c h w"] | None  # input of its KA branch, None without one
    sa: Float[Tensor, "1 m o i u v"] | None  # the kernels that its kernel SA was given, None without one
    places: Int[Tensor, "h w"]  # the image's pixel (row · W + column) at each position of `attention`


class Trace(NamedTuple):
    """A model's pass over one image: what it was given and gave, and what each of its 18 layers (none without PSRT's
    body) saw, in order.
    """

    model: PSRT
    up: Float[Tensor, "1 bands h w"]
    msi: Float[Tensor, "1 m h w"]
    lr: Float[Tensor, "1 bands h/ratio w/ratio"] | None
    output: Float[Tensor, "1 bands h w"]
    layers: tuple[LayerTrace, ...]

    def layer(self, index: int) -> LayerTrace:
        """What layer 0 … 17 saw (`ka.models.psrt.LAYERS` names them); any other is a `KAError`."""
        if not self.layers:
            raise KAError(f"{self.model.row.name} has no layers of window attention; {NO_LAYERS}")
        return self.layers[check_index("layer", index, len(self.layers))]


def check_index(what: str, value: int, n: int, first: int = 0) -> int:
    """`value`, if it is one of n whole numbers; else a `KAError` says what `what` can be."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value not in range(first, first + n):
        raise KAError(f"{what}={value!r} is not one of the {n}; choose {first} … {first + n - 1}")
    return int(value)


@torch.no_grad()
def trace(
    model: PSRT,
    up: Float[Tensor, "1 bands h w"],
    msi: Float[Tensor, "1 m h w"],
    lr: Float[Tensor, "1 bands h/ratio w/ratio"] | None = None,
) -> Trace:
    """Run a model, in eval mode, on one image and keep what its layers saw. H and W are multiples of 8, so that no
    window is padded; another size, or what does not fit the model, is a `KAError`. `lr` is for rows that look at it.
    """
    h, w = up.shape[-2:]
    if up.shape[0] != 1 or h % WINDOWS[0] or w % WINDOWS[0]:
        raise KAError(f"up {tuple(up.shape)}: one image with sides that are multiples of {WINDOWS[0]} is expected")
    caught: dict[nn.Module | None, Tensor] = {}

    def catch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught[module] = inputs[0].detach()

    watched = [(layer.attn, layer.ka, getattr(layer.ka, "sa", None)) for layer in model.layers()]
    hooks = [part.register_forward_pre_hook(catch) for parts in watched for part in parts if part is not None]
    try:
        output = model(up, msi, lr)
    finally:
        for hook in hooks:
            hook.remove()
    layers = [
        LayerTrace(layer, caught[attn], caught.get(ka), caught.get(sa), _places(layer, i % 3, model.row.shuffle, h, w))
        for i, (layer, (attn, ka, sa)) in enumerate(zip(model.layers(), watched, strict=True))
    ]
    return Trace(model, up, msi, lr, output, tuple(layers))


def _places(layer: Layer, which: int, kind: str, h: int, w: int) -> Int[Tensor, "h w"]:
    """Pixel numbers, moved as the layer's input was."""
    places = torch.arange(h * w).reshape(1, h, w, 1)
    if kind != "none" and which == L2:
        places = shuffle(places, layer.window)
    elif kind == "misaligned" and which == L3:
        places = unshuffle(places, layer.window)
    return places[0, ..., 0]
