"""Point 1: the study's PSRT adds attention outputs to the wrong pixels."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ka.data import Scene
from ka.models.psrt import LAYERS, WINDOWS, Layer, SaRBlock, build, shuffle, unshuffle
from ka.models.variants import variant
from workbook.audit.trials import seeded, yes


class Placement(NamedTuple):
    """Where one layer (L1, L2 or L3 of a SaR block with windows of `window` pixels) adds its attention's outputs.

    `shift` is rows and columns from the pixel that an output belongs to (whose query made it) to the one that it is
    added to; read at the latter, in the layer's own map.
    """

    variant: str
    window: int
    layer: str
    shift: Int[np.ndarray, "2 h w"]

    @property
    def distance(self) -> Float[np.ndarray, "h w"]:
        """Pixels between where an output lands and where it belongs."""
        return np.hypot(*self.shift)

    @property
    def share(self) -> float:
        """Share of pixels that get another pixel's output."""
        return float((self.distance > 0).mean())

    def row(self) -> dict[str, str]:
        return {
            "variant": self.variant,
            "layer": f"{self.window}×{self.window}, {self.layer}",
            "outputs on a wrong pixel": f"{self.share:.2%}",
            "mean displacement (pixels)": f"{self.distance.mean():.1f}",
        }


@torch.no_grad()
def placements(name: str, size: int = 64) -> list[Placement]:
    """Watch the three SaR blocks of a variant at work, and see which pixel's query each attention output answers.

    Hooks take every layer's LN1 output and its attention's input; both hold the same vectors, moved or not, so equal
    vectors give the position map. Nothing about the shuffle is assumed. `size`, of the map, is a multiple of 16.
    """
    placed = []
    with seeded(0):
        x = torch.randn(1, size, size, 8)
        blocks = [SaRBlock(8, window, variant(name)) for window in WINDOWS]
    caught: dict[nn.Module, Tensor] = {}
    for window, block in zip(WINDOWS, blocks, strict=True):
        layers = [cast(Layer, layer) for layer in block.layers]
        for layer in layers:
            layer.norm1.register_forward_hook(lambda norm, _inputs, output: caught.update({norm: output}))
            layer.attn.register_forward_pre_hook(lambda attn, inputs: caught.update({attn: inputs[0]}))
        block(x)
        for i, layer in enumerate(layers):
            asks = caught[layer.attn][0]
            normed = caught[layer.norm1][0, ..., : asks.shape[-1]]
            placed.append(Placement(name, window, f"L{i + 1}", _shift(_match(asks, normed))))
    return placed


def _match(moved: Float[Tensor, "h w c"], original: Float[Tensor, "h w c"]) -> Int[np.ndarray, "h w"]:
    """For each vector of `moved` the pixel (row · W + column) of `original` that holds the same bits."""
    places = {vector.tobytes(): p for p, vector in enumerate(original.flatten(0, 1).contiguous().numpy())}
    sources = [places[vector.tobytes()] for vector in moved.flatten(0, 1).contiguous().numpy()]
    return np.array(sources).reshape(moved.shape[:2])


def _shift(source: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "2 h w"]:
    here = np.indices(source.shape)
    return here - np.stack(np.divmod(source, source.shape[1]))


def map_shift(window: int, size: int, back: bool = False) -> Int[np.ndarray, "2 size size"]:
    """The shift that `ka.models.psrt.shuffle` (or `unshuffle`) makes where nothing undoes it."""
    pixels = torch.arange(size * size).reshape(1, size, size, 1)
    return _shift((unshuffle if back else shuffle)(pixels, window)[0, ..., 0].numpy())


def on_maps(placement: Placement) -> dict[str, str]:
    """A row: whether the shift seen at L2 is `map_shift`'s, and how far that moves outputs on maps of two sizes."""
    hooked = np.array_equal(map_shift(placement.window, placement.shift.shape[-1]), placement.shift)
    row = {"window": str(placement.window), "as hooked": yes(hooked)}
    for size in (64, 512):
        row[f"mean on {size}² (pixels)"] = f"{np.hypot(*map_shift(placement.window, size)).mean():.1f}"
    return row


class Response(NamedTuple):
    """Pixels of L2 whose attention output changes when one pixel of its input does; the distance to the nearest."""

    variant: str
    changed: int
    itself: bool
    nearest: float

    def row(self) -> dict[str, object]:
        return {
            "variant": self.variant,
            "outputs that change": self.changed,
            "the touched pixel's own among them": yes(self.itself),
            "nearest change (pixels)": f"{self.nearest:.1f}",
        }


@torch.no_grad()
def responses(
    names: Sequence[str], window: int = 8, size: int = 64, pixel: tuple[int, int] = (20, 43)
) -> list[Response]:
    """Touch one pixel of L2's input and see where the attention's output, as it is added, changes."""
    measured = []
    for name in names:
        with seeded(0):
            block = SaRBlock(8, window, variant(name)).double()
            x = torch.randn(1, size, size, 8, dtype=torch.float64)
        touched = x.clone()
        touched[0, *pixel, 0] += 1.0
        outputs: list[Tensor] = []
        l2 = cast(Layer, block.layers[1])
        l2.attn.register_forward_hook(lambda _module, _inputs, y, into=outputs: into.append(y[0]))
        for image in (x, touched):
            l2(image)
        rows, cols = (outputs[0] != outputs[1]).any(-1).nonzero(as_tuple=True)
        distance = torch.hypot((rows - pixel[0]).double(), (cols - pixel[1]).double())
        measured.append(Response(name, len(rows), bool((distance == 0).any()), distance.min().item()))
    return measured


@torch.no_grad()
def added(name: str, scene: Scene, dim: int = 48) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """What the first L2 with 2×2 windows of an untrained model adds on a scene: (shortcut, attention added to it). Both
    as the length of each pixel's vector, its mean over the map taken off. In `psrt` both are shuffled alike.
    """
    with seeded(0):
        model = build(name, len(scene.gt), len(scene.msi), dim).eval()
    layer = model.layers()[LAYERS.index("block 1, 2×2, L2")]
    caught: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    layer.attn.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    model(torch.from_numpy(scene.up)[None], torch.from_numpy(scene.msi)[None])
    shortcut, output = ((x[0] - x[0].mean((0, 1))).norm(dim=-1).numpy() for x in caught)
    return shortcut, output
