"""The simulation of the two images that are observed of a scene.

A network gets a low-resolution hyperspectral image and a high-resolution multispectral one. Both are
simulated from the truth by the ×4 protocol of the CAVE benchmark (after Wald, as in PSRT's data): a 3×3
Gaussian blur of σ = 0.5, every 4th pixel from offset 2, and bicubic upsampling as MATLAB's `imresize`. On
the 11 full test scenes the upsampled image scores PSNR 34.33 dB, SAM 4.45°, ERGAS 7.20 against the truth:
the bicubic row printed in the field's papers. CAVE itself: Yasuma, Mitsunaga, Iso, Nayar, "Generalized
Assorted Pixel Camera", 2008.

Images are arrays `bands h w` in [0, 1]. Everything is float32 outside and float64 inside.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from ka.errors import KAError, is_whole

CAVE_WAVELENGTHS: Float[np.ndarray, "31"] = np.arange(400.0, 701.0, 10.0)
"""Band centres of CAVE in nm."""

_D700 = (
    "2 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 2 6 11 17 21 22 21 20 20 19 19 18 18 17 17",
    "1 1 1 1 1 1 2 4 6 8 11 16 19 21 20 18 16 14 11 7 5 3 2 2 1 1 2 2 2 2 2",
    "7 10 15 19 25 29 30 29 27 22 16 9 2 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1 1 1",
)
_COUNTS = np.array([row.split() for row in _D700], dtype=np.float64)

NIKON_D700: Float[np.ndarray, "3 31"] = _COUNTS / _COUNTS.sum(axis=1, keepdims=True)
"""Spectral response of the Nikon D700 at `CAVE_WAVELENGTHS`; rows R, G, B, each summing to 1."""

CAVE_WAVELENGTHS.setflags(write=False)
NIKON_D700.setflags(write=False)


@dataclass(frozen=True)
class Degradation:
    """How a low-resolution image comes from a scene; the defaults are the verified ×4 facts.

    For ×8 nothing is established: every 8th pixel from offset 4 fits the published ×8 weights (offset 0 costs
    over 4 dB), but blurs from 3×3 σ 0.5 to 7×7 σ 2 score within 1 dB of each other. ×8 numbers of different
    papers may rest on different blurs: state yours.

    Raises:
        KAError: a value outside these ranges, or of the wrong type.
    """

    ratio: int = 4  # linear scale factor, 1 or more
    blur_size: int = 3  # width of the square Gaussian kernel in pixels, odd
    blur_sigma: float = 0.5  # its standard deviation in pixels
    offset: int | None = None  # first row and column kept, 0 … ratio − 1; None means ratio // 2 (see `start`)

    def __post_init__(self) -> None:
        if not is_whole(self.ratio) or self.ratio < 1:
            raise KAError(f"ratio: {self.ratio!r} is not a whole number of 1 or more; use 4")
        if not is_whole(self.blur_size) or self.blur_size < 1 or self.blur_size % 2 == 0:
            raise KAError(f"blur_size: {self.blur_size!r} is not an odd whole number; use 3, 5 or 7 pixels")
        sigma = self.blur_sigma
        number = isinstance(sigma, int | float) and not isinstance(sigma, bool)
        if not number or not (math.isfinite(sigma) and sigma > 0):
            raise KAError(f"blur_sigma: {sigma!r} is not a number above 0; use 0.5 (pixels)")
        if self.offset is not None and not (is_whole(self.offset) and 0 <= self.offset < self.ratio):
            raise KAError(
                f"offset: {self.offset!r} is not a whole number from 0 to ratio - 1 = {self.ratio - 1}; "
                "leave it None for ratio // 2"
            )

    @property
    def start(self) -> int:
        """First row and column kept: `offset`, or ratio // 2."""
        return self.ratio // 2 if self.offset is None else self.offset


def gaussian(size: int = 3, sigma: float = 0.5) -> Float[np.ndarray, " size"]:
    """One axis of the Gaussian kernel, summing to 1; the blur is its outer product with itself."""
    x = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def degrade(gt: Float[np.ndarray, "bands h w"], degradation: Degradation) -> Float[np.ndarray, "bands h/ratio w/ratio"]:
    """Blur each band with a Gaussian and keep every `ratio`-th pixel from `degradation.start`.

    The border is mirrored without repeating the edge pixel (numpy's 'reflect'). With the default offset no kept
    pixel sees it through a kernel of up to ratio − 1 pixels, so the published ×4 numbers hold for any border.

    Raises:
        KAError: h or w is no multiple of the ratio.
    """
    (_, h, w), ratio, start = gt.shape, degradation.ratio, degradation.start
    if h % ratio or w % ratio:
        raise KAError(f"a scene of {h}×{w} pixels does not divide by the ratio {ratio}; crop it, or change the ratio")
    kernel, half = gaussian(degradation.blur_size, degradation.blur_sigma), degradation.blur_size // 2
    padded = np.pad(gt, ((0, 0), (half, half), (half, half)), mode="reflect")
    rows = sum(k * padded[:, start + i : start + i + h : ratio] for i, k in enumerate(kernel))
    out = sum(k * rows[:, :, start + i : start + i + w : ratio] for i, k in enumerate(kernel))
    return np.asarray(out, dtype=np.float32)


@lru_cache(maxsize=32)
def degrade_matrix(n: int, degradation: Degradation) -> Float[np.ndarray, "n/ratio n"]:
    """`degrade` along one axis of `n` pixels, as a matrix; rows sum to 1."""
    half, start, ratio = degradation.blur_size // 2, degradation.start, degradation.ratio
    pixels, rows = np.pad(np.arange(n), half, mode="reflect"), np.arange(n // ratio)
    matrix = np.zeros((n // ratio, n))
    for i, weight in enumerate(gaussian(degradation.blur_size, degradation.blur_sigma)):
        np.add.at(matrix, (rows, pixels[start + i : start + i + n : ratio][: len(rows)]), weight)
    matrix.setflags(write=False)
    return matrix


def bicubic(lr: Float[np.ndarray, "bands h w"], ratio: int) -> Float[np.ndarray, "bands h*ratio w*ratio"]:
    """Upsample as MATLAB's `imresize`: Keys' cubic, half-pixel centres, symmetric border, not clipped.

    Keys' a is −0.5 (PyTorch's bicubic has −0.75). The result may overshoot [0, 1] a little.
    """
    _, h, w = lr.shape
    up = cubic_matrix(h, ratio) @ lr.astype(np.float64) @ cubic_matrix(w, ratio).T
    return up.astype(np.float32)


def respond(
    gt: Float[np.ndarray, "bands h w"], srf: Float[np.ndarray, "channels bands"]
) -> Float[np.ndarray, "channels h w"]:
    """The image that a sensor of spectral response `srf` (one row per channel) sees of the scene.

    Raises:
        KAError: `srf` is for another number of bands.
    """
    if srf.shape[1] != gt.shape[0]:
        raise KAError(
            f"the response has {srf.shape[1]} bands and the scene {gt.shape[0]}; use the sensor's own response"
        )
    return np.tensordot(srf, gt, axes=1).astype(np.float32)


def broad_bands(
    wavelengths: Float[np.ndarray, " bands"], ranges: list[tuple[float, float]]
) -> Float[np.ndarray, "channels bands"]:
    """A response of one row per range (lowest, highest) in nm: the plain average over the bands inside it."""
    inside = np.array([(wavelengths >= low) & (wavelengths <= high) for low, high in ranges], dtype=np.float64)
    for (low, high), row in zip(ranges, inside, strict=True):
        if not row.any():
            raise KAError(f"no band lies between {low} and {high} nm; choose a range inside the sensor's")
    return inside / inside.sum(axis=1, keepdims=True)


@lru_cache(maxsize=32)
def cubic_matrix(n: int, ratio: int) -> Float[np.ndarray, "n*ratio n"]:
    """Weights of `n` input samples in each of `n * ratio` outputs; rows sum to 1."""
    centre = (np.arange(n * ratio) + 0.5) / ratio - 0.5
    taps = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
    t = np.abs(centre[:, None] - taps)
    weights = np.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)
    mirrored = np.concatenate([np.arange(n), np.arange(n)[::-1]])[taps % (2 * n)]
    matrix = np.zeros((n * ratio, n))
    np.add.at(matrix, (np.arange(n * ratio)[:, None], mirrored), weights)
    matrix.setflags(write=False)
    return matrix
