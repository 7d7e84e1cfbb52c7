"""A network on whole images, in one pass or in overlapping tiles."""

import logging
import math
import os
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ka.data.scenes import Scene
from ka.data.simulate import Degradation
from ka.errors import KAError, is_whole
from ka.methods.attention import ATTENDED
from ka.methods.local import RADIUS
from ka.methods.started import begun
from ka.models.own.adapter import Model, OwnRow
from ka.models.psrt import N_BLOCKS, WINDOWS
from ka.models.variants import Variant

log = logging.getLogger("ka")

UNSTATED = 64  # pixels that tiles of a user's own network overlap, where its class does not state its reach
GRID = 16  # tiles start on multiples of it, so that windows and the cells of a shuffle fall as in the whole image


@dataclass(frozen=True)
class Network:
    """A model as a method."""

    model: Model  # in eval mode, on its device
    tile: int | None = None  # side of tiles in pixels, a multiple of 16; None: one pass where memory allows, else 256

    def __call__(self, scene: Scene) -> Tensor:
        """The sharpened image of a loaded scene, on the CPU: from the model's start to its consistency."""
        weight, consistency = next(self.model.parameters()), self.model.consistency
        images = (begun(scene, self.model.start).up, scene.msi, scene.lr)
        up, msi, lr = (torch.from_numpy(x)[None].to(weight.device, weight.dtype) for x in images)
        image = run_network(self.model, up, msi, self.tile, lr)[0].cpu()
        return image if consistency is None else torch.from_numpy(consistency(image.numpy(), scene.lr, scene.msi))


@torch.no_grad()
def run_network(
    model: Model,
    up: Float[Tensor, "b bands h w"],
    msi: Float[Tensor, "b m h w"],
    tile: int | None = None,
    lr: Float[Tensor, "b bands h/ratio w/ratio"] | None = None,
) -> Float[Tensor, "b bands h w"]:
    """Run a model on images of any size, in one pass or in overlapping tiles.

    Tiles overlap by as much as the output can look sideways (`reach`), so the result is the same to rounding,
    wherever kernels are not bound to positions. It cannot be the same for `psrt_misaligned` (its shuffle is not
    local), kav1, kav9, kav17, kav18 (kernels pooled from the whole image), kav2, kav3, kav4 (kernels of its
    quadrants), nor for `psrt` where H or W, rounded up to 8, is no multiple of 16 (its shuffle wraps once).

    Args:
        model: the network.
        up: upsampled LR-HSI.
        msi: HR-MSI.
        tile: side of a tile, a multiple of 16; None for one pass if it fits half of the free memory, else 256.
            Variants bound to positions, and own networks that do not state their `reach`, are never tiled unless asked:
            their result would depend on free memory.
        lr: LR-HSI, which variants with a front need.

    Raises:
        KAError: `tile` is no positive multiple of 16; a variant bound to positions does not fit in memory, or on a GPU
            not even tiles do.
    """
    h, w = up.shape[-2:]
    if tile is None:
        needed, free = pass_bytes(model, up), free_bytes(up.device)
        if (why := model.row.position_bound(h, w)) and needed > free and not isinstance(model.row, OwnRow):
            raise KAError(
                f"one pass over {h}×{w} needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free; with "
                f"{model.row.name} tiles give another result ({why}): free memory, or ask for them with tile=256"
            )
        tile = max(h, w) if why or needed < free / 2 else 256
        return _in_one(model, up, msi, lr) if tile >= max(h, w) else _in_tiles(model, up, msi, lr, tile)
    if not is_whole(tile) or tile <= 0 or tile % GRID:
        raise KAError(f"tile={tile!r} must be a positive multiple of {GRID}; choose 256")
    return model(up, msi, lr) if tile >= max(h, w) else _in_tiles(model, up, msi, lr, tile)


def _in_one(model: Model, up: Tensor, msi: Tensor, lr: Tensor | None) -> Tensor:
    """One pass; in tiles if a GPU's memory does not suffice after all, as when another program took it meanwhile."""
    h, w = up.shape[-2:]
    try:
        return model(up, msi, lr)
    except torch.OutOfMemoryError:
        if why := model.row.position_bound(h, w):
            raise KAError(
                f"one pass over {h}×{w} does not fit in the memory of {up.device}; with {model.row.name} tiles give "
                f"another result ({why}): free memory, or ask for them with tile=256"
            ) from None
    for tile in (256, 128, 64):
        log.warning("one pass over %d×%d does not fit in the memory of %s: in tiles of %d", h, w, up.device, tile)
        torch.cuda.empty_cache()
        try:
            return _in_tiles(model, up, msi, lr, tile)
        except torch.OutOfMemoryError:
            continue
    raise KAError(
        f"not even tiles of 64 pixels fit in the memory of {up.device}; end other programs, or use device='cpu'"
    )


def _in_tiles(model: Model, up: Tensor, msi: Tensor, lr: Tensor | None, tile: int) -> Tensor:
    """Overlapping tiles, of which the inner parts are kept."""
    (h, w), ratio = up.shape[-2:], 1 if lr is None else up.shape[-1] // lr.shape[-1]
    grid = math.lcm(GRID, ratio)
    margin, tile = (math.ceil(n / grid) * grid for n in (reach(model.row, ratio), tile))
    out = torch.empty_like(up)
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            y0, x0, y1, x1 = max(0, top - margin), max(0, left - margin), top + tile + margin, left + tile + margin
            low = None if lr is None else lr[..., y0 // ratio : y1 // ratio, x0 // ratio : x1 // ratio]
            y = model(up[..., y0:y1, x0:x1], msi[..., y0:y1, x0:x1], low)
            out[..., top : top + tile, left : left + tile] = y[
                ..., top - y0 : top - y0 + tile, left - x0 : left - x0 + tile
            ]
    return out


def reach(row: Variant, ratio: int = 4) -> int:
    """How many pixels away from a tile's edge an input can still change the output inside.

    Backwards through the network: head and tail look one pixel far, window attention to the end of its window
    (of two windows where shuffled), a KA branch half a kernel more, a residual block two pixels; a front's kernels see
    their window, and are upsampled. For variants bound to positions there is no such number; theirs without the binding
    is given.
    """
    if isinstance(row, OwnRow):
        return UNSTATED if row.reach is None else row.reach
    window = ATTENDED if row.attends else -1 if row.front == "pixel" else RADIUS
    front = (window + 4) * ratio + 3 if row.front else 0  # 4: a 3×3 mean, the kernels' upsampling (2), a blur
    if row.body != "PSRT":
        return (front or 3 * ratio) + (2 + 2 * row.blocks if row.body else 0)
    pixels = 1
    for window in tuple(reversed(WINDOWS)) * N_BLOCKS:
        for layer in (3, 2, 1):
            span = 2 * window if row.shuffle == "aligned" and layer == 2 else window
            convolved = pixels + (row.size // 2 if row.has_ka and row.kernels != "identity" else 0)
            pixels = max(math.ceil(pixels / span) * span, convolved)
    return front + pixels + 1


def trained_degradation(model: Model) -> Degradation | None:
    """How the low-resolution images came about that a model was trained for: its start, front or consistency says."""
    parts = (getattr(part, "degradation", None) for part in (model.start, model.front, model.consistency))
    return next((degradation for degradation in parts if degradation is not None), None)


def trained_ratio(model: Model) -> int | None:
    """The ratio of the images that a model was trained for: its degradation or its file says; None: none."""
    degradation = trained_degradation(model)
    return model.ratio if degradation is None else degradation.ratio


def pass_bytes(model: Model, up: Tensor) -> int:
    """About the memory that one pass over `up` takes: 20 maps of `dim` channels and 3 of the image's.

    A front needs some 12 of the image's and 64 beside, before the body's are there. Of an own network it is a guess.
    """
    image = model.n_bands + model.n_msi
    per_pixel = max(20 * model.dim + 3 * image, 12 * image + 64 if model.row.front else 0)
    return up.shape[0] * up.shape[-2] * up.shape[-1] * per_pixel * up.element_size()


def free_bytes(device: torch.device) -> float:
    """Free memory of a device in bytes; infinity where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:  # what Linux could give, caches included
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf
