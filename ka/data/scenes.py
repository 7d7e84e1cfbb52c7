"""Scenes, a ground truth and what is observed of it, and sets of them that know how they were simulated."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ka.data.simulate import Degradation, bicubic, degrade, respond
from ka.errors import KAError, unknown

ARRAYS = ("gt", "up", "lr", "msi")
"""The arrays of a scene."""

BICUBIC = "bicubic"
"""`Scene.start` of scenes as they are simulated."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene and what is observed of it; arrays in [0, 1], numpy or `ka.data.h5.LazyRow` (read when sliced)."""

    name: str
    gt: Any  # truth, `bands h w`; None for images of which none is known
    lr: Float[np.ndarray, "bands h/ratio w/ratio"]  # low-resolution hyperspectral image
    up: Float[
        np.ndarray, "bands h w"
    ]  # what a network starts from: `lr` upsampled (overshoots [0, 1] a little) or more
    msi: Float[np.ndarray, "channels h w"]  # multispectral image (RGB for CAVE)
    start: str = BICUBIC  # what made `up`: the `key` of a start in `ka.methods.injection`

    @property
    def ratio(self) -> int:
        """Scale factor between `lr` and `msi`."""
        return self.msi.shape[1] // self.lr.shape[1]

    @property
    def bicubic(self) -> Float[np.ndarray, "bands h w"]:
        """`lr` upsampled, whatever `up` is."""
        return self.up if self.start == BICUBIC else bicubic(self.lr, self.ratio)

    def crop(self, row: int, col: int, height: int, width: int) -> "Scene":
        """Copy a rectangle, in pixels of the truth, as float32.

        Raises:
            KAError: one of the four is no multiple of the ratio, or the rectangle leaves the scene.
        """
        box, (h, w) = (row, col, height, width), self.msi.shape[1:]
        if any(value % self.ratio for value in box):
            raise KAError(f"{self.name}: the crop {box} is not on the grid; use multiples of the ratio {self.ratio}")
        if row < 0 or col < 0 or min(height, width) <= 0 or row + height > h or col + width > w:
            raise KAError(f"{self.name}: the crop {box} (row, col, height, width) leaves the {h}×{w} scene; shrink it")

        def cut(x: Any, ratio: int = 1) -> Any:
            if x is None:
                return None
            rows, cols = (slice(start // ratio, (start + n) // ratio) for start, n in ((row, height), (col, width)))
            return np.array(x[:, rows, cols], dtype=np.float32)

        name = f"{self.name}[{row}:{row + height},{col}:{col + width}]"
        return Scene(name, cut(self.gt), cut(self.lr, self.ratio), cut(self.up), cut(self.msi), self.start)

    def load(self) -> "Scene":
        """The scene with all arrays in memory as float32."""
        held = {key: getattr(self, key) for key in ARRAYS}
        arrays: dict[str, Any] = {
            key: None if x is None else np.asarray(x[:], dtype=np.float32) for key, x in held.items()
        }
        return Scene(self.name, start=self.start, **arrays)


@dataclass(frozen=True)
class KeptScenes(Sequence[Scene]):
    """Scenes made when first asked for, then kept (of CAVE 70 MB a scene at ×4)."""

    names: tuple[str, ...]
    make: Callable[[str], Scene]
    sizes: Sequence[tuple[int, int]] | None = None  # heights and widths, where they are known before
    kept: dict[str, Scene] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        name = self.names[index]
        if name not in self.kept:
            self.kept[name] = self.make(name)
        return self.kept[name]


def observe(
    name: str,
    gt: Float[np.ndarray, "bands h w"],
    srf: Float[np.ndarray, "channels bands"],
    degradation: Degradation,
) -> Scene:
    """Simulate what is observed of a truth `gt`, float32 in [0, 1], with the spectral response `srf`.

    Raises:
        KAError: h or w is no multiple of the ratio, or `srf` has another number of bands.
    """
    lr = degrade(gt, degradation)
    return Scene(name, gt, lr, bicubic(lr, degradation.ratio), respond(gt, srf))


@dataclass(frozen=True, eq=False)
class SceneSet:
    """The scenes of one split of one dataset, all of one size and simulated in one way."""

    name: str  # the dataset, one of `ka.data.DATASETS`
    split: str  # one of `ka.data.SPLITS`
    degradation: Degradation  # how `lr` was simulated
    wavelengths: Float[np.ndarray, " bands"] | None  # band centres in nm; None if unknown
    display: tuple[int, int, int]  # the bands of `gt` to show as red, green and blue
    msi_names: tuple[str, ...]  # name of each channel of `msi`
    scenes: Sequence[Scene]  # the scenes; those of CAVE are read when first asked for, then kept
    srf: Float[np.ndarray, "channels bands"] | None = None  # the response that made `msi`; None if unknown
    unit: float = 1.0  # what the values of own files were divided by to lie in [0, 1]

    @property
    def ratio(self) -> int:
        """Scale factor between `lr` and `gt`."""
        return self.degradation.ratio

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of every scene; those that know theirs are not read for it."""
        known = getattr(self.scenes, "sizes", None)
        return [scene.gt.shape[1:] for scene in self] if known is None else list(known)

    @property
    def n_bands(self) -> int:
        return self.scenes[0].gt.shape[0]

    @property
    def n_msi(self) -> int:
        return len(self.msi_names)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        scene = self.scenes[index]
        if scene.ratio != self.ratio:
            raise KAError(
                f"scene {scene.name} is of ratio {scene.ratio}, its set of {self.ratio}; give the set the degradation "
                "that made its scenes"
            )
        return scene

    def __iter__(self) -> Iterator[Scene]:
        return (self[i] for i in range(len(self)))


def check_values(
    values: np.ndarray, where: str, low: float = 0.0, high: float = 1.0, cure: str = "divide by {}"
) -> None:
    """Hold data to [low, high], with a tolerance of 1e-6; `cure` names a divisor that would do.

    Raises:
        KAError: NaN, or a value outside; `where` begins the message.
    """
    least, most = float(np.min(values)), float(np.max(values))
    if not np.isfinite(least + most):
        raise KAError(f"{where}: {'NaN' if np.isnan(least) else 'infinity'} in data; mend or leave out this scene")
    if least < low - 1e-6 or most > high + 1e-6:
        divisor = next((d for d in (255, 1023, 2047, 4095, 10000, 65535) if most <= d * high), 65535)
        mend = cure.format(divisor) if most > 2 * high else "scale it to [0, 1]"
        raise KAError(f"{where}: data not in [{low:g}, {high:g}] (found {least:g} to {most:g}); {mend}")


def choose(names: Sequence[str], wanted: str | Sequence[str] | None, what: str) -> list[str]:
    """The wanted ones (a list, or text with commas) of the scenes `names` of `what`, in their order.

    All for None; others than these, or none, are a `KAError`.
    """
    if isinstance(wanted, str):
        wanted = [name.strip() for name in wanted.split(",") if name.strip()]
    if wanted is not None and not wanted:
        raise KAError(f"scenes: none of {what} is chosen; name some of {', '.join(names[:40])}, or give None for all")
    for name in wanted or ():
        if name not in names:
            raise unknown(f"scene of {what}", name, names)
    return [name for name in names if wanted is None or name in wanted]


def display_bands(wavelengths: Float[np.ndarray, " bands"] | None, n_bands: int) -> tuple[int, int, int]:
    """The bands nearest to 620, 540 and 460 nm; evenly spread ones where wavelengths are unknown."""
    if wavelengths is None:
        return 3 * n_bands // 4, n_bands // 2, n_bands // 4
    red, green, blue = (int(np.argmin(np.abs(wavelengths - nm))) for nm in (620, 540, 460))
    return red, green, blue
