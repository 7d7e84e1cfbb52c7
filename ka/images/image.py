"""An image with what its file says of it, and how axes and units of arrays are found."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float, Shaped

from ka.errors import KAError

ORDERS = ("h w c", "c h w", "w h c", "c w h")
"""Orders of axes that an array may have: c are bands or channels."""

DIVISORS = (1, 255, 1023, 2047, 4095, 10000, 65535)
"""What images are usually scaled to; data are divided by the first of them that is not below their maximum."""

OVERSHOOT = {1: 2.0, 10000: 1.2}
"""Reflectances, and how far highlights exceed full: up to that many times data are divided by their own maximum."""


@dataclass(frozen=True)
class Place:
    """Where an image lies on the Earth."""

    crs: str  # its coordinate reference system, as WKT
    transform: tuple[float, ...]  # from (column, row) to coordinates: a, b, c, d, e, f of the affine map


@dataclass(frozen=True, eq=False)
class Image:
    """An image as it is in its file, with its axes found."""

    values: Shaped[np.ndarray, "bands h w"]  # in the file's own unit and type
    wavelengths: Float[np.ndarray, " bands"] | None = None  # centres of the bands in nm; None if the file does not say
    place: Place | None = None
    order: str = "c h w"  # of the file's axes, in which formats without an order of their own are written again
    where: str = "image"  # begins the messages about it


@dataclass(frozen=True, eq=False)
class Stored:
    """An array as it lies in a file or in memory, before its axes are found."""

    array: Shaped[np.ndarray, "*axes"]
    where: str  # begins the messages
    order: str | None = None  # of its axes, if the format fixes it
    likely: str | None = None  # the usual order of the format; decides nothing, but is proposed
    wavelengths: Float[np.ndarray, " bands"] | None = None
    place: Place | None = None

    def orders(self, axes: str | None = None) -> list[str]:
        """Orders of axes that it may have: the one that is given, fixed or evident, else h w c and c h w.

        Evident is what makes as many bands as there are wavelengths, bands the odd one of three sides, or fewer bands
        than rows and columns; against the format's usual order, fewer than half as many.

        Raises:
            KAError: no image, an unknown order, or another than the format's.
        """
        if self.array.dtype.kind not in "fiu":
            raise KAError(f"{self.where} is of type {self.array.dtype}, not of real numbers; give an image")
        shape = self.array.shape
        if len(shape) == 2 and 0 not in shape:
            return ["h w"]
        if axes is not None and axes not in ORDERS:
            raise KAError(f"axes={axes!r} is unknown; choose one of {', '.join(map(repr, ORDERS))} (c: bands)")
        if axes and self.order and axes != self.order:
            raise KAError(f"{self.where}: axes={axes!r}, but files of this format are {self.order!r}; leave axes out")
        if len(shape) != 3 or 0 in shape:
            raise KAError(f"{self.where}: an array of shape {shape} is no image of three axes; choose or cut out one")
        if fixed := axes or self.order:
            return [fixed]
        sides = {"h w c": (shape[2], *shape[:2]), "c h w": shape}
        n = None if self.wavelengths is None else len(self.wavelengths)
        tests = (lambda c, h, w: c == n, lambda c, h, w: h == w != c, lambda c, h, w: c < min(h, w))
        for test in tests:
            if len(fitting := [order for order, side in sides.items() if test(*side)]) == 1:
                c, h, w = sides[fitting[0]]
                sure = c == n or 2 * c < min(h, w) or self.likely in (None, *fitting)
                return fitting if sure else list(sides)
        return list(sides)

    def size(self, order: str) -> tuple[int, int]:
        """Height and width, if the axes were in this order."""
        sides = dict(zip(order.split(), self.array.shape, strict=True))
        return sides["h"], sides["w"]

    def image(self, axes: str | None = None) -> Image:
        """The image, if the order of its axes is given or shows; a `KAError` if not."""
        orders = self.orders(axes)
        if len(orders) > 1:
            proposed = f"axes={self.likely!r}" if self.likely else "axes='h w c' or axes='c h w'"
            raise KAError(
                f"{self.where}: which axis of {self.array.shape} holds the bands does not show; say so, probably with "
                f"{proposed}"
            )
        values = self.array[None] if orders == ["h w"] else rearrange(self.array, f"{orders[0]} -> c h w")
        fit = self.wavelengths is not None and len(self.wavelengths) == len(values)
        return Image(values, self.wavelengths if fit else None, self.place, orders[0], self.where)


def divisor(images: Sequence[Image], maximum: float | None) -> float:
    """What images of one unit are divided by to lie in [0, 1]: `maximum`, or as their type and values let suppose.

    8-bit data are divided by 255, others by the first of `DIVISORS` that is not below their largest value, or by that
    value itself where it is a little above full reflectance (`OVERSHOOT`).

    Raises:
        KAError: NaN or infinity, values far below 0 or above `maximum`, a maximum that is not positive.
    """
    if maximum is not None and not 0 < maximum < math.inf:
        raise KAError(f"max={maximum!r} is not a positive number; give the value that stands for full reflectance")
    most = max(_largest(image) for image in images)
    if maximum is not None:
        if most > 1.05 * maximum:
            where = images[0].where
            raise KAError(
                f"{where}: values up to {most:g} are above max={maximum:g}; give the true one, or leave it out"
            )
        return float(maximum)
    if all(image.values.dtype == np.uint8 for image in images):
        return 255.0
    if 1 < most <= 1 + 1e-6:  # what rounding of float data in [0, 1] leaves
        return 1.0
    if any(full < most < full * times for full, times in OVERSHOOT.items()):
        return most
    return float(next((d for d in DIVISORS if most <= d), most))


def _largest(image: Image) -> float:
    low, high = float(image.values.min()), float(image.values.max())
    if not math.isfinite(low + high):
        n = int(np.count_nonzero(~np.isfinite(image.values)))
        raise KAError(f"{image.where}: {n} values are NaN or infinite; fill or cut them off before")
    if low < -0.02 * max(abs(high), 1e-12):
        raise KAError(
            f"{image.where}: values down to {low:g} beside a maximum of {high:g}; if that marks missing data, fill or "
            "cut it off, else shift the data to begin at 0"
        )
    return high


def unclipped(values: Shaped[np.ndarray, "*axes"], by: float) -> Float[np.ndarray, "*axes"]:
    """As float32, divided by `by`."""
    unit = np.asarray(values, dtype=np.float32)
    return unit if by == 1 else unit / np.float32(by)


def scaled(values: Shaped[np.ndarray, "*axes"], by: float) -> Float[np.ndarray, "*axes"]:
    """As float32, divided by `by`, with what is a little below 0 or above 1 set to it."""
    return np.clip(unclipped(values, by), 0, 1)
