"""Local injection: a kernel for every low-resolution pixel, made from its own neighbourhood in closed form.

Around each low-resolution pixel, a ridge regression says how the bands follow the channels of the HR-MSI there; the
kernels are upsampled like an image and applied to the HR-MSI's detail. Relatives: the guided filter (He, Sun, Tang,
"Guided Image Filtering", IEEE TPAMI 35, 2013) and context-based injection (Aiazzi, Alparone, Baronti, Garzelli,
"Context-driven fusion of high spatial and spectral resolution images based on oversampled multiresolution analysis",
IEEE TGRS 40, 2002).
"""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ka.data.datasets import PROTOCOL
from ka.data.simulate import Degradation, bicubic, cubic_matrix, degrade
from ka.errors import KAError, is_whole
from ka.methods.attention import ALIKE, ATTENDED, NEAR, attended

RADIUS, RIDGE = 4, 1e-5  # chosen on training scenes of CAVE, in [0, 1]
DARK = 1e-4  # added under the root, which would rise without bound at zero


def with_roots(msi: Float[np.ndarray, "m h w"]) -> Float[np.ndarray, "2*m h w"]:
    """The HR-MSI's channels and their square roots, so that kernels may follow a curve (values below 0 count as 0)."""
    return np.concatenate([msi, np.sqrt(np.maximum(msi, 0) + DARK)], dtype=np.float32)


def detail(msi: Float[np.ndarray, "m h w"], degradation: Degradation) -> Float[np.ndarray, "m h w"]:
    """What the HR-MSI has and a low-resolution image lacks: itself minus degraded-and-upsampled itself."""
    return msi - bicubic(degrade(msi, degradation), degradation.ratio)


def local_injection(
    lr: Float[np.ndarray, "bands h/ratio w/ratio"],
    msi: Float[np.ndarray, "m h w"],
    degradation: Degradation = PROTOCOL,
    *,
    matrix: Float[np.ndarray, "bands m"] | None = None,
    radius: int | None = None,
    ridge: float = RIDGE,
    roots: bool = False,
    attend: bool = False,
) -> Float[np.ndarray, "bands h w"]:
    """Sharpen a low-resolution cube with a multispectral image of the same place; needs no training.

    bicubic(lr) + K(x, y)ᵀ · detail(msi)(x, y), where K are the kernels of `local_kernels`, upsampled. Solved in
    float64, applied in float32.

    Args:
        lr: low-resolution cube in [0, 1], any number of bands.
        msi: the sharp image, `ratio` times as high and as wide.
        degradation: how `lr` comes from the truth; its ratio is that of the two images.
        matrix: what a window without detail falls back on, as `LinearInjection.fit(…).matrix`; None for the scene's own
            least squares at low resolution.
        radius: half the side of a window, in low-resolution pixels: 2 · radius + 1 of them in a row. None: 4, or 8
            where it attends.
        ridge: weight of `matrix` against the window, in squared units of the images.
        roots: take the channels' square roots as further channels; `matrix` is for twice as many then.
        attend: let the pixels of a window count by how near and how like its centre they are (`ka.methods.attention`):
            better, and two to three times as slow.

    Raises:
        KAError: images that do not fit together, hold NaN, or are of another unit; arguments outside these ranges.
    """
    check_pair(lr, msi, degradation)
    _check_unit(lr=lr, msi=msi)
    low, places = seen_low(msi, degradation, roots, attend)
    kernels = local_kernels(lr, low, matrix, half_side(radius, attend), ridge, places)
    msi = with_roots(msi) if roots else msi
    affine = np.concatenate([kernels, lr.transpose(1, 2, 0)[:, :, None]], axis=2, dtype=np.float32)
    ones = np.ones((1, *msi.shape[1:]), dtype=np.float32)
    return _apply(affine, np.concatenate([detail(msi, degradation), ones], dtype=np.float32), degradation.ratio)


def seen_low(
    msi: Float[np.ndarray, "m h w"], degradation: Degradation, roots: bool, attend: bool
) -> "tuple[Float[np.ndarray, 'm rows columns'], Float[Tensor, '1 g rows columns'] | None]":
    """What kernels are made of: the degraded HR-MSI (and its roots), and, to attend by, where pixels stand."""
    low = degrade(with_roots(msi) if roots else msi, degradation)
    return low, likeness(msi, degradation) if attend else None


def half_side(radius: int | None, attend: bool) -> int:
    """Half the side of a window, in low-resolution pixels, where none (None) may be given."""
    return radius if radius is not None else ATTENDED if attend else RADIUS


def local_kernels(
    lr: Float[np.ndarray, "bands rows columns"],
    low_msi: Float[np.ndarray, "m rows columns"],
    matrix: Float[np.ndarray, "bands m"] | None = None,
    radius: int = RADIUS,
    ridge: float = RIDGE,
    places: Float[Tensor, "1 g rows columns"] | None = None,
) -> Float[np.ndarray, "rows columns m bands"]:
    """The kernel of every low-resolution pixel p: K = (C + ridge · I)⁻¹ (X + ridge · matrixᵀ), in float64.

    C = mean(m' m'ᵀ) and X = mean(m' h'ᵀ) over the window of p, of what is left of the degraded HR-MSI (m') and of `lr`
    (h') without their 3×3 means. Borders are mirrored. A flat window gives `matrix`. With `places` (see
    `ka.methods.attention`) means are an attention's.

    Raises:
        KAError: a radius or a ridge that is not positive; a matrix of another shape.
    """
    if not is_whole(radius) or radius < 1:
        raise KAError(f"radius: {radius!r} is not a whole number of 1 or more; use {RADIUS} (low-resolution pixels)")
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 < ridge < math.inf:
        raise KAError(f"ridge: {ridge!r} is not a number above 0; use {RIDGE:g} for images in [0, 1]")
    n, bands = len(low_msi), len(lr)
    if matrix is not None and np.shape(matrix) != (bands, n):
        raise KAError(f"matrix: {np.shape(matrix)} is not (bands, channels) = {(bands, n)}; fit it on such images")
    high = _high(lr, low_msi)
    products = high[:, :, :n, None] * high[:, :, None]
    if matrix is None:
        matrix = own_matrix(lr, low_msi)
    flat = products.reshape(*high.shape[:2], -1)
    means = (_box_mean(flat, radius) if places is None else _attended(flat, places, radius)).reshape(products.shape)
    squares, crosses = means[..., :n], means[..., n:]
    return np.linalg.solve(squares + ridge * np.eye(n), crosses + ridge * np.transpose(matrix))


def likeness(msi: Float[np.ndarray, "m h w"], degradation: Degradation) -> Float[Tensor, "1 g rows columns"]:
    """Where low-resolution pixels stand for `ka.methods.attention`: like ones near each other."""
    low = degrade(np.sqrt(np.maximum(msi, 0) + DARK), degradation)
    return torch.from_numpy(low.astype(np.float64) / ALIKE)[None]


def _attended(
    x: Float[np.ndarray, "rows columns c"], places: Float[Tensor, "1 g rows columns"], radius: int
) -> Float[np.ndarray, "rows columns c"]:
    values = torch.from_numpy(x.transpose(2, 0, 1))[None]
    return attended(places, values, radius, torch.tensor(NEAR))[0].numpy().transpose(1, 2, 0)


def own_matrix(
    lr: Float[np.ndarray, "bands rows columns"], low_msi: Float[np.ndarray, "m rows columns"]
) -> Float[np.ndarray, "bands m"]:
    """Least squares over the whole image, from what the degraded HR-MSI has more than its 3×3 means to what lr has."""
    n, high = len(low_msi), _high(lr, low_msi).reshape(-1, len(low_msi) + len(lr))
    total = high[:, :n].T @ high / len(high)
    return np.linalg.lstsq(total[:, :n], total[:, n:], rcond=None)[0].T


def _high(lr: np.ndarray, low_msi: np.ndarray) -> Float[np.ndarray, "rows columns m+bands"]:
    both = np.concatenate([low_msi, lr], dtype=np.float64).transpose(1, 2, 0)
    return both - _box_mean(both, 1)


def check_pair(
    lr: Float[np.ndarray, "bands h/ratio w/ratio"], msi: Float[np.ndarray, "m h w"], degradation: Degradation
) -> None:
    """Hold the two images to each other; a `KAError` says what does not fit."""
    for name, image in (("lr", lr), ("msi", msi)):
        if np.ndim(image) != 3 or 0 in np.shape(image):
            raise KAError(f"{name}: an array of shape {np.shape(image)} is no image; give (bands, height, width)")
        if not np.isfinite(image).all():
            raise KAError(f"{name}: {np.count_nonzero(~np.isfinite(image))} values are not finite; mend them before")
    ratio, expected = degradation.ratio, tuple(n * degradation.ratio for n in lr.shape[1:])
    if msi.shape[1:] != expected:
        given = "×".join(map(str, msi.shape[1:]))
        raise KAError(
            f"msi: {given} pixels do not fit lr at ratio {ratio}, which wants {expected[0]}×{expected[1]}; crop one, "
            "or give the ratio of yours: Degradation(ratio=…)"
        )


def _check_unit(**images: np.ndarray) -> None:
    """Refuse images that are far from [0, 1]: ridge, roots and likeness are in this unit."""
    for name, image in images.items():
        if image.min() < -0.5 or image.max() > 2:
            raise KAError(
                f"{name}: values from {image.min():g} to {image.max():g} are not in [0, 1]; divide by what stands for "
                "full reflectance, or let ka.sharpen do it"
            )


def _box_mean(x: Float[np.ndarray, "rows columns c"], radius: int) -> Float[np.ndarray, "rows columns c"]:
    """Mean over (2 · radius + 1)² pixels; borders are mirrored without repeating the edge."""
    rows, columns = x.shape[:2]
    down = (box_matrix(rows, radius) @ x.reshape(rows, -1)).reshape(x.shape)
    return np.matmul(box_matrix(columns, radius), down)


@lru_cache(maxsize=32)
def box_matrix(n: int, radius: int) -> Float[np.ndarray, "n n"]:
    """Mean over 2 · radius + 1 of `n` pixels, mirrored without repeating the edge, as a matrix."""
    pixels = np.pad(np.arange(n), radius, mode="reflect")
    matrix = np.zeros((n, n))
    for shift in range(2 * radius + 1):
        np.add.at(matrix, (np.arange(n), pixels[shift : shift + n]), 1 / (2 * radius + 1))
    matrix.setflags(write=False)
    return matrix


def _apply(
    kernels: Float[np.ndarray, "rows columns m bands"], channels: Float[np.ndarray, "m h w"], ratio: int
) -> Float[np.ndarray, "bands h w"]:
    """Upsample the kernels bicubically and apply them, a low-resolution row at a time: all would fill gigabytes."""
    rows, columns, n, bands = kernels.shape
    down, across = (cubic_matrix(size, ratio).astype(np.float32) for size in (rows, columns))
    wide = [np.matmul(across, kernels[:, :, c]).reshape(rows, -1) for c in range(n)]
    out = np.empty((bands, *channels.shape[1:]), dtype=np.float32)
    for row in range(rows):
        near, here = slice(max(0, row - 2), row + 3), slice(row * ratio, (row + 1) * ratio)  # a cubic's support
        parts = [(down[here, near] @ wide[c][near]).reshape(ratio, -1, bands) for c in range(n)]
        for part, channel in zip(parts, channels[:, here], strict=True):
            np.multiply(part, channel[:, :, None], out=part)
        out[:, here] = sum(parts[1:], parts[0]).transpose(2, 0, 1)
    return out
