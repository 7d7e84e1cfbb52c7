"""Sharpening of a real pair: a low-resolution cube and a sharp multispectral image, of any unit, and no truth."""

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from ka.data.scenes import Scene
from ka.data.simulate import Degradation, bicubic, degrade, respond
from ka.errors import KAError
from ka.files import user_path
from ka.images import Image, Place, Stored, divisor, scaled
from ka.inference import Network, trained_ratio
from ka.methods import Method
from ka.methods.injection import Bicubic, LocalInjection
from ka.models.checkpoints import load_checkpoint
from ka.models.own.adapter import Model, OwnModel
from ka.models.psrt import PSRT

log = logging.getLogger("ka")

FOREIGN = 0.05
"""A pair is not of the sensors that a model knows if responded lr and degraded msi differ by more than this part."""

UNTRAINED: Mapping[str, Callable[[Degradation], Method]] = {
    "attentive injection": lambda degradation: LocalInjection(degradation, roots=True, attend=True),
    "local injection": lambda degradation: LocalInjection(degradation, radius=5, roots=True),
    "bicubic": lambda degradation: Bicubic(),
}
"""Methods that need neither training nor a response, by name; the first is the default."""

DEFAULT = next(iter(UNTRAINED))


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images of one place, held to each other."""

    lr: Image  # low-resolution cube
    msi: Image  # sharp image
    ratio: int  # how much larger it is
    divisors: tuple[float, float]  # what lr and msi are divided by to lie in [0, 1]
    supposed: bool  # whether that of lr is as its values let suppose
    notes: tuple[str, ...]  # what was found and converted, in words

    @cached_property
    def scene(self) -> Scene:
        """Both in [0, 1], as a scene without truth."""
        return self.part(0, 0, *self.msi.values.shape[1:])

    def part(self, row: int, col: int, height: int, width: int) -> Scene:
        """A rectangle of the scene, in pixels of msi, multiples of the ratio; nothing of the rest is made."""
        r = self.ratio
        lr = scaled(self.lr.values[:, row // r : (row + height) // r, col // r : (col + width) // r], self.divisors[0])
        msi = scaled(self.msi.values[:, row : row + height, col : col + width], self.divisors[1])
        return Scene(self.lr.where, None, lr, bicubic(lr, r), msi)

    def image(self, sharp: Float[np.ndarray, "bands h w"]) -> Image:
        """A sharp cube in [0, 1] as an image in the unit of `lr`, with its wavelengths and the place of `msi`."""
        place = self.msi.place
        if place is None and self.lr.place is not None:
            a, b, c, d, e, f = self.lr.place.transform
            place = Place(self.lr.place.crs, (a / self.ratio, b / self.ratio, c, d / self.ratio, e / self.ratio, f))
        values = sharp if self.divisors[0] == 1 else sharp * np.float32(self.divisors[0])
        return replace(self.lr, values=values, place=place, where="the sharp image")


def pair_of(
    lr: Stored,
    msi: Stored,
    *,
    axes: str | None = None,
    msi_axes: str | None = None,
    maximum: float | None = None,
    msi_maximum: float | None = None,
) -> Pair:
    """Hold two images to each other: order of axes, ratio, units (see `sharpen`).

    Raises:
        KAError: as `sharpen`, about the two images.
    """
    cube, sharp, ratio = _with_orders(lr, msi, axes, msi_axes)
    divisors = _divisors(cube, sharp, maximum, msi_maximum)
    notes = [f"{len(cube.values)} bands and {len(sharp.values)} channels, ratio {ratio}"]
    for name, image, by in (("lr", cube, divisors[0]), ("msi", sharp, divisors[1])):
        if image.order not in ("c h w", "h w"):
            notes.append(f"{name} was read as {image.order} (c: {'bands' if name == 'lr' else 'channels'})")
        if by != 1:
            notes.append(f"{name} was divided by {by:g}" + ("; the result is multiplied by it" if name == "lr" else ""))
        if image.values.dtype == np.float64:
            notes.append(f"{name} was converted from float64 to float32")
    return Pair(cube, sharp, ratio, divisors, maximum is None, tuple(notes))


def sharpen(
    lr: Shaped[np.ndarray, "bands h w"] | Tensor,
    msi: Shaped[np.ndarray, "channels h*ratio w*ratio"] | Tensor,
    model: str | Path | Model | Method = DEFAULT,
    *,
    axes: str | None = None,
    msi_axes: str | None = None,
    max: float | None = None,
    msi_max: float | None = None,
    degradation: Degradation | None = None,
    tile: int | None = None,
) -> Float[np.ndarray, "bands h*ratio w*ratio"]:
    """Sharpen a low-resolution cube with a multispectral image of the same place. No truth, no training needed.

    What is converted is said (logger "ka"): integers and images beyond [0, 1] are divided by the usual maximum (255,
    1023, 2047, 4095, 10000, 65535) or their own where it is a little above a reflectance of 1 (`OVERSHOOT`), both by
    one number if both are of one kind; float64 becomes float32; values a little below 0 or above the maximum are set
    to it.

    Args:
        lr: the cube. Axes in the order "h w c" (c: bands) are found if only they fit, or said with `axes`.
        msi: the sharp image, registered to it, its sides whole multiples of lr's.
        model: a method without training ("attentive injection", "local injection", "bicubic"), a run folder or weights'
            file, a loaded model, or any function from a `Scene` to the sharp image.
        axes: order of lr's axes, "c h w" or "h w c".
        msi_axes: order of msi's.
        max: what stands for full reflectance in lr.
        msi_max: the same in msi.
        degradation: blur of lr, for a method without training (a model brings its own); None for the usual one.
        tile: side of the tiles in which a model runs, a multiple of 16; None for one pass where memory allows.

    Returns:
        The sharp cube, float32, in the unit and order of axes of `lr`.

    Raises:
        KAError: images that do not fit each other or the model (bands, channels, ratio); values that are not finite,
            given or made; a function that does not return the sharp image.
    """
    cube, sharp = _in_memory(lr, "lr"), _in_memory(msi, "msi")
    pair = pair_of(cube, sharp, axes=axes, msi_axes=msi_axes, maximum=max, msi_maximum=msi_max)
    method = method_of(model, pair, degradation, tile)
    if pair.notes[1:]:
        log.warning("%s", "; ".join(pair.notes[1:]))
    values = pair.image(made_by(method, pair.scene)).values
    return values[0] if pair.lr.order == "h w" else rearrange(values, f"c h w -> {pair.lr.order}")


def made_by(method: Method, scene: Scene) -> Float[np.ndarray, "bands h w"]:
    """What a method makes of a scene; a function that returns no image of its size, or NaN, is a `KAError`."""
    made = method(scene)
    image = np.asarray(made.detach().cpu() if isinstance(made, Tensor) else made)
    expected = (len(scene.lr), *scene.msi.shape[1:])
    if image.shape != expected:
        raise KAError(f"the method made an image of shape {image.shape}, not of {expected} (bands h w); mend it")
    if not np.isfinite(image).all():
        n = np.count_nonzero(~np.isfinite(image))
        raise KAError(f"the method made {n} values that are NaN or infinite; use {DEFAULT!r}, or mend it")
    return image


def method_of(
    model: str | Path | Model | Method, pair: Pair, degradation: Degradation | None = None, tile: int | None = None
) -> Method:
    """The method that `model` names, held to a pair; arguments and errors as in `sharpen`."""
    if isinstance(model, str) and model in UNTRAINED:
        degradation = degradation or Degradation(pair.ratio)
        if degradation.ratio != pair.ratio:
            raise KAError(f"degradation is of ratio {degradation.ratio}, the images of {pair.ratio}; give theirs")
        return UNTRAINED[model](degradation)
    if isinstance(model, str | Path):
        path = user_path(model)
        if not path.exists():
            known = ", ".join(map(repr, UNTRAINED))
            raise KAError(f"model={str(model)!r} is neither one of {known} nor a run folder or weights' file; give one")
        model = load_checkpoint(path)
    if not isinstance(model, PSRT | OwnModel):
        return model
    _check_model(model, pair)
    return Network(model, tile)


def _check_model(model: Model, pair: Pair) -> None:
    """Hold a model to a pair, and warn where the two images are of other sensors than it was trained for."""
    bands, channels = len(pair.lr.values), len(pair.msi.values)
    if (model.n_bands, model.n_msi) != (bands, channels):
        raise KAError(
            f"{model.row.name} was trained for {model.n_bands} bands and {model.n_msi} channels, the images have "
            f"{bands} and {channels}; use {DEFAULT!r}, or a model trained for such images"
        )
    if (ratio := trained_ratio(model)) not in (pair.ratio, None):
        raise KAError(
            f"{model.row.name} was trained for ratio {ratio}, the images are of {pair.ratio}; use {DEFAULT!r}, or a "
            "model of that ratio"
        )
    by, unit = pair.divisors[0], model.unit
    if unit is not None and pair.supposed and by != unit and 1 not in (by, unit):
        log.warning(
            "lr is divided by %g, as its values let suppose, the cubes that %s was trained on by %g; if all have one "
            "unit, give max=%g (and msi_max=)", by, model.row.name, unit, unit,
        )  # fmt: skip
    if model.consistency is None:
        return
    consistency, r = model.consistency, pair.ratio
    h, w = pair.msi.values.shape[1:]
    height, width = (min(n, 1024 // r * r) for n in (h, w))
    scene = pair.part((h - height) // 2 // r * r, (w - width) // 2 // r * r, height, width)  # the middle tells
    seen, low = respond(scene.lr, consistency.srf), degrade(scene.msi, consistency.degradation)
    difference = float(np.sqrt(((seen - low) ** 2).mean() / max(float((low**2).mean()), 1e-12)))
    if difference > FOREIGN:
        log.warning(
            "the two images differ by %.0f %% where the model's sensors would agree: other units, another response, or "
            "shifted; if the result is poor, give max= and msi_max=, or use %r", 100 * difference, DEFAULT,
        )  # fmt: skip


def _in_memory(image: Any, where: str) -> Stored:
    """An array or tensor; bands first, unless that does not fit its partner."""
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.ndim == 4 and len(array) == 1:
        raise KAError(f"{where}: a batch of shape {array.shape}; give the image alone, {where}[0]")
    return Stored(array, where, likely="c h w")


def _with_orders(lr: Stored, msi: Stored, axes: str | None, msi_axes: str | None) -> tuple[Image, Image, int]:
    """Both with the orders of axes in which msi is a whole number of times as large as lr, and that ratio.

    What each shows by itself comes first, then every order that is not given.
    """
    evident = lr.orders(axes), msi.orders(msi_axes)
    every = [found if given or stored.order or len(found[0]) == 3 else ["c h w", "h w c"]
             for found, given, stored in zip(evident, (axes, msi_axes), (lr, msi), strict=True)]  # fmt: skip
    for orders in (evident, every):
        fitting = {pair: n for pair in itertools.product(*orders) if (n := _ratio(lr.size(pair[0]), msi.size(pair[1])))}
        first, second = usual = tuple(
            stored.likely if stored.likely in found else found[0]
            for stored, found in zip((lr, msi), orders, strict=True)
        )
        if len(fitting) == 1 or usual in fitting:
            first, second = usual if usual in fitting else next(iter(fitting))
            return lr.image(first), msi.image(second), fitting[first, second]
        if fitting:
            shapes = f"lr {lr.array.shape} and msi {msi.array.shape}"
            raise KAError(f"{shapes} fit together in several orders of axes; say which with axes= and msi_axes=")
    (h, w), (height, width) = lr.size(first), msi.size(second)
    if (h, w) == (height, width):
        raise KAError(f"{lr.where}: {h}×{w} pixels, as many as {msi.where}; give the low-resolution cube as it was "
                      "before it was upsampled")  # fmt: skip
    n = max(2, round(height / h))
    raise KAError(
        f"{msi.where}: {height}×{width} pixels are no whole multiple, the same both ways, of the {h}×{w} of "
        f"{lr.where}; crop or resample it to {n * h}×{n * w}, or say the order of axes (axes, msi_axes)"
    )


def _ratio(small: tuple[int, int], large: tuple[int, int]) -> int:
    """How many times as large, 0 if that is no whole number above 1, the same both ways."""
    ratio = large[0] // small[0]
    return ratio if ratio > 1 and (small[0] * ratio, small[1] * ratio) == large else 0


def _divisors(lr: Image, msi: Image, maximum: float | None, msi_maximum: float | None) -> tuple[float, float]:
    """What each is divided by; one number for both where they are of one kind and beyond [0, 1], or reflectances."""
    alone = divisor([lr], maximum), divisor([msi], msi_maximum)
    kinds = {image.values.dtype.kind + ("8" if image.values.dtype == np.uint8 else "") for image in (lr, msi)}
    if maximum is None and msi_maximum is None and len(kinds) == 1 and (min(alone) > 1 or max(alone) < 2):
        return (max(alone),) * 2
    return alone
