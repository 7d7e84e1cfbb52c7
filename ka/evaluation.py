"""One evaluation routine for whole scene sets, in one pass or in tiles, and the methods without training."""

import logging
import math
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from ka.data.scenes import Scene, SceneSet
from ka.data.simulate import Degradation, bicubic, degrade
from ka.errors import KAError
from ka.metrics import METRICS, measure
from ka.models.psrt import N_BLOCKS, PSRT, WINDOWS
from ka.models.variants import Variant

log = logging.getLogger("ka")

GRID = 16  # tiles start on multiples of it, so that windows and the cells of a shuffle fall as in the whole image

#: A method: a loaded scene → the sharpened image, `bands h w`.
Method = Callable[[Scene], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one method on a set of scenes.

    Attributes:
        scenes: scene name → metric name → value.
    """

    scenes: Mapping[str, Mapping[str, float]]

    def values(self, metric: str) -> Float[np.ndarray, " scenes"]:
        """One metric, scene by scene."""
        return np.array([scene[metric] for scene in self.scenes.values()])

    def mean(self, metric: str) -> float:
        """Mean over scenes."""
        return float(self.values(metric).mean())

    def std(self, metric: str) -> float:
        """Sample standard deviation over scenes (n - 1), as the field's tables print; 0 for a single scene."""
        return float(self.values(metric).std(ddof=1)) if len(self.scenes) > 1 else 0.0

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON, with None for what is infinite or undefined."""
        names = list(next(iter(self.scenes.values())))
        scenes = {
            scene: {name: finite(value) for name, value in values.items()} for scene, values in self.scenes.items()
        }
        mean, std = ({name: finite(of(name)) for name in names} for of in (self.mean, self.std))
        return {"mean": mean, "std": std, "scenes": scenes}


def finite(value: float) -> float | None:
    """`value`, or None if JSON cannot hold it (the PSNR of a perfect band, an undefined metric)."""
    return value if math.isfinite(value) else None


def evaluate(
    method: Method, scenes: SceneSet | Iterable[Scene], ratio: int, names: list[str] | None = None
) -> Evaluation:
    """Metrics of a method, scene by scene (see `ka.metrics`; full images, nothing clipped).

    A metric that a scene leaves undefined (ERGAS where a band is black) is NaN there, and so is its mean.

    Raises:
        KAError: a prediction is not finite; the message names the scene.
    """
    found = {}
    for scene in scenes:
        loaded = scene.load()
        gt = torch.from_numpy(loaded.gt)[None]
        prediction = method(loaded)[None].to("cpu", torch.float32)
        if not prediction.isfinite().all():
            n = int((~prediction.isfinite()).sum())
            raise KAError(f"scene {scene.name}: {n} values of the prediction are not finite; use other weights")
        found[scene.name] = {name: _value(prediction, gt, ratio, name) for name in names or METRICS}
    return Evaluation(found)


def _value(prediction: Tensor, gt: Tensor, ratio: int, name: str) -> float:
    try:
        return measure(prediction, gt, ratio, [name])[name].item()
    except KAError:
        if name not in METRICS:
            raise
        return math.nan


# Methods without training


def upsampled(scene: Scene) -> Tensor:
    """Bicubic upsampling alone: the field's lowest baseline."""
    return torch.from_numpy(scene.up)


def detail(msi: Float[np.ndarray, "m h w"], degradation: Degradation) -> Float[np.ndarray, "m h w"]:
    """What the HR-MSI has and a low-resolution image lacks: itself minus degraded-and-upsampled itself."""
    d = degradation
    low = degrade(msi, d.ratio, d.blur_size, d.blur_sigma, d.offset)
    return msi - bicubic(low, d.ratio)


@dataclass(frozen=True)
class LinearInjection:
    """Linear detail injection: up + W · detail(msi), with W fitted on training scenes by least squares.

    A network that does not pass it has learned little. Without training in the sense of the field: one matrix.
    """

    weight: Float[np.ndarray, "bands m"]
    degradation: Degradation

    @classmethod
    def fit(cls, scenes: SceneSet, degradation: Degradation) -> "LinearInjection":
        """Least squares over all pixels of all scenes, from the MSI's detail to the residual gt - up."""
        square = np.zeros((scenes.n_msi, scenes.n_msi))
        cross = np.zeros((scenes.n_msi, scenes.n_bands))
        for scene in scenes:
            loaded = scene.load()
            x = detail(loaded.msi, degradation).reshape(scenes.n_msi, -1).astype(np.float64)
            residual = (loaded.gt - loaded.up).reshape(scenes.n_bands, -1)
            square += x @ x.T
            cross += x @ residual.T
        return cls(np.linalg.lstsq(square, cross, rcond=None)[0].T, degradation)

    def __call__(self, scene: Scene) -> Tensor:
        """The sharpened image of a loaded scene."""
        added = np.einsum("om,mhw->ohw", self.weight, detail(scene.msi, self.degradation))
        return torch.from_numpy((scene.up + added).astype(np.float32))


# Networks on whole scenes


@dataclass(frozen=True)
class Network:
    """A model as a method.

    Attributes:
        model: in eval mode, on its device.
        tile: side of the tiles in pixels (a multiple of 16); None for one pass where memory allows, else tiles of 256.
    """

    model: PSRT
    tile: int | None = None

    def __call__(self, scene: Scene) -> Tensor:
        """The sharpened image of a loaded scene, on the CPU."""
        weight = self.model.head.weight
        up, msi = (torch.from_numpy(x)[None].to(weight.device, weight.dtype) for x in (scene.up, scene.msi))
        return sharpen(self.model, up, msi, self.tile)[0].cpu()


@torch.no_grad()
def sharpen(
    model: PSRT, up: Float[Tensor, "b bands h w"], msi: Float[Tensor, "b m h w"], tile: int | None = None
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
            Variants bound to positions are never tiled unless asked: their result would depend on free memory.

    Raises:
        KAError: `tile` is no positive multiple of 16; a variant bound to positions does not fit in memory, or on a GPU
            not even tiles do.
    """
    h, w = up.shape[-2:]
    if tile is None:
        needed, free = pass_bytes(model, up), free_bytes(up.device)
        if (why := model.row.position_bound(h, w)) and needed > free:
            raise KAError(
                f"one pass over {h}×{w} needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free; with "
                f"{model.row.name} tiles give another result ({why}): free memory, or ask for them with tile=256"
            )
        tile = max(h, w) if why or needed < free / 2 else 256
        return _in_one(model, up, msi) if tile >= max(h, w) else _in_tiles(model, up, msi, tile)
    if isinstance(tile, bool) or not isinstance(tile, int) or tile <= 0 or tile % GRID:
        raise KAError(f"tile={tile!r} must be a positive multiple of {GRID}; choose 256")
    return model(up, msi) if tile >= max(h, w) else _in_tiles(model, up, msi, tile)


def _in_one(model: PSRT, up: Tensor, msi: Tensor) -> Tensor:
    """One pass; in tiles if a GPU's memory does not suffice after all, as when another program took it meanwhile."""
    h, w = up.shape[-2:]
    try:
        return model(up, msi)
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
            return _in_tiles(model, up, msi, tile)
        except torch.OutOfMemoryError:
            continue
    raise KAError(
        f"not even tiles of 64 pixels fit in the memory of {up.device}; end other programs, or use device='cpu'"
    )


def _in_tiles(model: PSRT, up: Tensor, msi: Tensor, tile: int) -> Tensor:
    """Overlapping tiles, of which the inner parts are kept."""
    h, w = up.shape[-2:]
    margin = math.ceil(reach(model.row) / GRID) * GRID
    out = torch.empty_like(up)
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            y0, x0 = max(0, top - margin), max(0, left - margin)
            rows = slice(y0, min(h, top + tile + margin))
            cols = slice(x0, min(w, left + tile + margin))
            y = model(up[..., rows, cols], msi[..., rows, cols])
            out[..., top : top + tile, left : left + tile] = y[
                ..., top - y0 : top - y0 + tile, left - x0 : left - x0 + tile
            ]
    return out


def reach(row: Variant) -> int:
    """How many pixels away from a tile's edge an input can still change the output inside.

    Backwards through the network: head and tail look one pixel far, window attention to the end of its window
    (of two windows where shuffled), a KA branch half a kernel more. For variants bound to positions there is no such
    number; theirs without the binding is given.
    """
    pixels = 1
    for window in tuple(reversed(WINDOWS)) * N_BLOCKS:
        for layer in (3, 2, 1):
            span = 2 * window if row.shuffle == "aligned" and layer == 2 else window
            convolved = pixels + (row.size // 2 if row.has_ka and row.kernels != "identity" else 0)
            pixels = max(math.ceil(pixels / span) * span, convolved)
    return pixels + 1


def pass_bytes(model: PSRT, up: Tensor) -> int:
    """About the memory that one pass over `up` takes: 20 maps of `dim` channels and 3 of the image's."""
    per_pixel = 20 * model.dim + 3 * (model.n_bands + model.n_msi)
    return up.shape[0] * up.shape[-2] * up.shape[-1] * per_pixel * up.element_size()


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def peak_bytes(device: torch.device) -> int:
    """Most memory in use so far, or since `forget_peak`: allocated on a GPU, or of this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # where there is one, getrusage would also tell of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: torch.device) -> None:
    """Begin to measure `peak_bytes` anew. Where the system cannot, the peak of the process's start stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
