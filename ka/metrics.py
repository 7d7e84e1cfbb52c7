"""How good a reconstruction is: every metric of the field's tables, each with its convention written down.

Papers mean different numbers by "PSNR": each function states its formula, its source, and who computes something else
under the same name. All in `METRICS`:

- take `prediction` and `target` of shape `b c h w`, of any floating dtype, on one device, and give one float64
  number per image, on that device (Apple's MPS has no float64: move both to the CPU first);
- compute in float64, whatever the input: squares of float32 differences lose the digits that the tables compare;
- **never clip**. The study did not, and clipping a prediction to [0, 1] first lowers its error;
- raise KAError, before any arithmetic, for shapes that differ or are not `b c h w`, for an empty tensor, for integers,
  for NaN or infinity (saying where), for a peak or ratio that is not positive, for images smaller than their window;
- raise `Undefined`, a KAError, where these images have no such number (psnr_published, sam, ergas, cc).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ka.errors import KAError, Undefined, unknown

Images = Float[Tensor, "b c h w"]
PerImage = Float64[Tensor, " b"]
PerBand = Float64[Tensor, "b c"]
OfBands = Callable[[Images, Images], Float[Tensor, "b c"]]

SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03
UIQI_WINDOW = 8
PIECE = 2**18  # values computed with at a time: a band of 512×512, whose 2 MiB in float64 a cache can hold
DENSE = 128  # up to this side SSIM's window is a matrix: faster for training patches, slower for scenes


def psnr(prediction: Images, target: Images, peak: float = 1.0) -> PerImage:
    """Peak signal-to-noise ratio in dB: the mean over bands of 10·log10(peak² / MSE_band). Higher is better.

    The study's PSNR and that of the field's CAVE tables. The more bands differ, the further it is above the PSNR of the
    MSE over all bands (Jensen's inequality), so `psnr_published` is not comparable. inf if one band has no error;
    `ka.evaluate` leaves bands without signal out.
    """
    _check(prediction, target)
    _check_positive("peak", peak)
    return (20 * torch.as_tensor(peak, dtype=torch.float64).log10() - 10 * _mse(prediction, target).log10()).mean(1)


def psnr_published(prediction: Images, target: Images) -> PerImage:
    """PSNR in dB as the published PSRT code: 10·log10(max(target)² / MSE over bands and pixels).

    The peak is the brightest value of each target image, so a dark scene scores lower than with peak 1, and a patch
    scores differently from the scene it was cut from. inf where `prediction == target`. Higher is better.
    """
    _check(prediction, target)
    peak = target.amax((1, 2, 3)).double()
    _check_defined("psnr_published", peak > 0, "the target, whose maximum is the peak, has no positive value; use psnr")
    return 20 * peak.log10() - 10 * _mse(prediction, target).mean(1).log10()


def sam(prediction: Images, target: Images) -> PerImage:
    """Spectral angle in degrees: the mean over pixels of arccos(⟨p, t⟩ / (‖p‖·‖t‖)), p and t over bands.

    0 is best, 180 worst. Blind to the brightness of a pixel, and to everything when there is one band. The cosine is
    clipped to [-1, 1]; its rounding leaves up to 3e-6° where both are the same. A pixel where p or t is zero has no
    angle and is out of the mean; `Undefined` where there is no other. Elsewhere: torchmetrics gives radians, and NaN if
    there is such a pixel; other code lets it count as 90° (a small constant in the denominator) or as 0°.
    Source: Yuhas, Goetz & Boardman, "Discrimination among semi-arid landscape endmembers using the Spectral Angle
    Mapper (SAM) algorithm", JPL Airborne Geoscience Workshop 1992.
    """
    _check(prediction, target)
    pieces = _pieces(prediction, target, torch.float64, rows=True)
    sums = [torch.stack([(p * t).sum(1), (p * p).sum(1), (t * t).sum(1)]) for p, t in pieces]
    dot, square_p, square_t = torch.cat(sums, 2)
    norms = square_p.sqrt() * square_t.sqrt()
    inside = norms > 0
    number = inside.sum((1, 2))
    _check_defined("sam", number > 0, "every pixel is zero in the prediction or the target; check what was loaded")
    cosine = (dot / norms.where(inside, 1.0)).clamp(-1, 1)
    return torch.rad2deg(cosine.acos().where(inside, 0.0).sum((1, 2)) / number)


def ergas(prediction: Images, target: Images, ratio: float) -> PerImage:
    """Relative error over bands: 100/ratio · sqrt(mean over bands of MSE_band / mean(target_band)²).

    `ratio` is the scale of super-resolution (4 for ×4). 0 is best, there is no upper end. A few near-black bands can
    make up the whole value; one of mean 0 leaves it `Undefined`.
    Source: Wald, "Data Fusion: Definitions and Architectures", Presses des Mines 2002, with the factor 100·h/l, h/l
    being the pixel size of the fine image over that of the coarse one, 1/ratio. Code that multiplies by the ratio
    prints numbers 16 times as large at ×4; code that leaves 4 as a default is off at ×8.
    """
    _check(prediction, target)
    _check_positive("ratio", ratio)
    mean = _over_bands(lambda _, t: t.mean((2, 3)), prediction, target)
    dark = (mean == 0).any(0).nonzero().flatten().tolist()
    _check_defined("ergas", (mean != 0).all(1), f"a band ({dark}) of the target has mean 0; leave it out of both")
    return 100 / ratio * (_mse(prediction, target) / mean**2).mean(1).sqrt()


def ssim(
    prediction: Images, target: Images, peak: float = 1.0, *, dtype: torch.dtype = torch.float64, check: bool = True
) -> Float[Tensor, " b"]:
    """Structural similarity: the mean over bands and pixels of `ssim_map`. At most 1, which is best.

    `peak` is the dynamic range L of the data; `dtype`, float64 or float32, what it computes in and returns; `check`
    looks for NaN and infinity. As a training loss: `1 - ssim(p, t, dtype=torch.float32, check=False).mean()`, which
    leaves autocast for its own arithmetic and never waits for a GPU. The variances are differences of large numbers:
    keep `torch.set_float32_matmul_precision` at "highest" for float32.
    Source: Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 13(4), 2004, eqs. 13 and 17: Gaussian window 11×11, σ = 1.5, K1 = 0.01, K2 = 0.03. Border:
    reflected, every pixel counts, as torchmetrics (equal to it with data_range=peak). Wang's own code and skimage
    (gaussian_weights=True, use_sample_covariance=False) average only windows inside the image: that value is
    `ssim_map(p, t)[..., 5:-5, 5:-5].mean((1, 2, 3))`. Code that pads with zeros, common among losses, differs along
    the border. skimage's default is another window, uniform 7×7.
    """
    _check(prediction, target, finite=check)
    _check_positive("peak", peak)
    if dtype not in (torch.float64, torch.float32):
        raise KAError(f"ssim: dtype is {dtype}, too coarse for its variances; use torch.float32 or torch.float64")
    return _over_bands(lambda p, t: ssim_map(p, t, peak).mean((2, 3)), prediction, target, dtype).mean(1)


def ssim_map(prediction: Images, target: Images, peak: float = 1.0) -> Images:
    """SSIM at each pixel and band, in the inputs' own dtype (the same for both), unchecked: see `ssim`.

    (2·μp·μt + C1)·(2·σpt + C2) / ((μp² + μt² + C1)·(σp² + σt² + C2)), C1 = (K1·peak)², C2 = (K2·peak)², with
    Gaussian-weighted means and (co)variances, the images reflected at the border.
    """
    _check_window("ssim", prediction, SSIM_WINDOW)
    c1, c2 = (SSIM_K1 * peak) ** 2, (SSIM_K2 * peak) ** 2
    window = _gaussian_window(prediction)
    with torch.autocast(prediction.device.type, enabled=False):
        mean_p, mean_t = window(prediction), window(target)
        product, squares = mean_p * mean_t, mean_p**2 + mean_t**2
        covariance = window(prediction * target) - product
        variances = window(prediction**2 + target**2) - squares
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def rmse(prediction: Images, target: Images) -> PerImage:
    """Root of the mean squared error over bands and pixels, in the unit of the data. 0 is best.

    Some CAVE tables print it on the 8-bit scale, 255 times this one; others average the RMSE of each band.
    """
    _check(prediction, target)
    return _mse(prediction, target).mean(1).sqrt()


def cc(prediction: Images, target: Images) -> PerImage:
    """Pearson's correlation over the pixels of a band, mean over bands, from -1 to 1 (best).

    A band that is constant in the prediction or the target is out of the mean (all of them: `Undefined`), so to predict
    a constant costs nothing here: look at another metric too. Blind to gain and offset of each band.
    """
    _check(prediction, target)
    varies = (prediction.amax((2, 3)) > prediction.amin((2, 3))) & (target.amax((2, 3)) > target.amin((2, 3)))
    number = varies.sum(1)
    _check_defined("cc", number > 0, "every band of the prediction or the target is constant; check what was loaded")
    return _over_bands(_correlation, prediction, target).where(varies, 0.0).sum(1) / number


def uiqi(prediction: Images, target: Images) -> PerImage:
    """Universal quality index: mean over bands and 8×8 windows of 4·σpt·μp·μt / ((σp² + σt²)·(μp² + μt²)).

    From -1 to 1 (best). It is SSIM with C1 = C2 = 0, hence unstable where the image is flat or dark.
    Source: Wang & Bovik, "A universal image quality index", IEEE Signal Processing Letters 9(3), 2002, eq. 1, with the
    uniform windows of 8×8 at every position inside the image that they used. Degenerate windows are as in their code:
    both flat (σp² + σt² under 64 ε times the mean of p² + t²), the luminance term 2·μp·μt / (μp² + μt²) alone; both of
    mean 0, 1. torchmetrics uses a Gaussian window of 11 (σ = 1.5) and gives 0 for flat windows: another number.
    """
    _check(prediction, target)
    _check_window("uiqi", prediction, UIQI_WINDOW)
    return _over_bands(_quality, prediction, target).mean(1)


@dataclass(frozen=True)
class Metric:
    """One column of a results table. Call `function(prediction, target, ratio=ratio)`."""

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"]
    function: Callable[..., PerImage]

    @property
    def heading(self) -> str:
        """Label with its unit, as tables and axes show it."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def _free(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A metric to which the ratio of super-resolution means nothing."""
    return lambda prediction, target, ratio: function(prediction, target)


_COLUMNS = (
    Metric("psnr", "PSNR", "dB", "higher", _free(psnr)),
    Metric("sam", "SAM", "°", "lower", _free(sam)),
    Metric("ergas", "ERGAS", "", "lower", ergas),
    Metric("ssim", "SSIM", "", "higher", _free(ssim)),
    Metric("rmse", "RMSE", "", "lower", _free(rmse)),
    Metric("cc", "CC", "", "higher", _free(cc)),
    Metric("uiqi", "UIQI", "", "higher", _free(uiqi)),
    Metric("psnr_published", "PSNR, global MSE", "dB", "higher", _free(psnr_published)),
)
METRICS = {metric.name: metric for metric in _COLUMNS}


@torch.no_grad()
def measure(
    prediction: Images, target: Images, ratio: float, names: Sequence[str] | None = None
) -> dict[str, PerImage]:
    """Compute the metrics in `names` (default: all), in that order, without gradients; one that raises ends it."""
    names = list(METRICS) if names is None else names
    if wrong := [name for name in names if name not in METRICS]:
        raise unknown("metric", wrong[0], METRICS)
    return {name: METRICS[name].function(prediction, target, ratio=ratio) for name in names}


def _check(prediction: Tensor, target: Tensor, finite: bool = True) -> None:
    if prediction.shape != target.shape or prediction.ndim != 4 or prediction.numel() == 0:
        shapes = f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}"
        raise KAError(f"{shapes}; give both the same, (images, bands, rows, columns), none 0 (one image: tensor[None])")
    if prediction.device != target.device:
        raise KAError(f"prediction is on {prediction.device}, target on {target.device}; move one to the other")
    for name, tensor in (("prediction", prediction), ("target", target)):
        if not tensor.is_floating_point():
            raise KAError(f"{name} is of {tensor.dtype}, not floating point; convert it, and scale it to the peak")
        # The extremes are NaN where any value is, and one pass without a temporary tensor
        if finite and not torch.stack(tensor.detach().aminmax()).isfinite().all():
            wrong = (~torch.isfinite(tensor)).nonzero()
            first = "image {}, band {}, row {}, column {}; find where it arose".format(*wrong[0].tolist())
            raise KAError(f"{name} has {len(wrong)} values that are NaN or infinite, the first at {first}")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise KAError(f"{name} is {value}; it must be a positive number")


def _check_window(name: str, images: Tensor, window: int) -> None:
    height, width = images.shape[2:]
    if min(height, width) < window:
        raise KAError(f"{name}: the image is {height}×{width}, its window {window}×{window}; use larger patches")


def _check_defined(name: str, defined: Bool[Tensor, " b"], otherwise: str) -> None:
    if not defined.all():
        raise Undefined(f"{name}: in image {int((~defined).nonzero()[0])} {otherwise}")


def _pieces(p: Images, t: Images, dtype: torch.dtype, rows: bool = False) -> Iterator[tuple[Images, Images]]:
    """Both tensors a few bands (or rows) at a time, converted to `dtype`."""
    axis = 2 if rows else 1
    several = max(1, PIECE // p.select(axis, 0).numel())
    for piece_p, piece_t in zip(p.split(several, axis), t.split(several, axis), strict=True):
        yield piece_p.to(dtype), piece_t.to(dtype)


def _over_bands(function: OfBands, p: Images, t: Images, dtype: torch.dtype = torch.float64) -> Float[Tensor, "b c"]:
    return torch.cat([function(*piece) for piece in _pieces(p, t, dtype)], 1)


def _mse(prediction: Images, target: Images) -> PerBand:
    return _over_bands(lambda p, t: (p - t).square().mean((2, 3)), prediction, target)


def _correlation(p: Images, t: Images) -> PerBand:
    p, t = p - p.mean((2, 3), keepdim=True), t - t.mean((2, 3), keepdim=True)
    return (p * t).sum((2, 3)) / (p.square().sum((2, 3)).sqrt() * t.square().sum((2, 3)).sqrt())


def _quality(p: Images, t: Images) -> PerBand:
    mean_p, mean_t, energy = _box(p), _box(t), _box(p**2 + t**2)
    product, squares = mean_p * mean_t, mean_p**2 + mean_t**2
    covariance, variances = _box(p * t) - product, energy - squares
    flat = variances <= 64 * torch.finfo(p.dtype).eps * energy
    structure = torch.where(flat, 1.0, 2 * covariance / variances)
    return torch.where(squares == 0, 1.0, 2 * product / squares * structure).mean((2, 3))


def _box(images: Images) -> Images:
    """Mean of every 8×8 window: the sums of 2, 4 and 8 neighbours in turn, along rows and along columns."""
    for axis in (2, 3):
        for apart in (1, 2, 4):
            n = images.shape[axis] - apart
            images = images.narrow(axis, 0, n) + images.narrow(axis, apart, n)
    return images / UIQI_WINDOW**2


def _gaussian_window(like: Images) -> Callable[[Images], Images]:
    """The SSIM window around every pixel, reflected at the border; for small images a matrix, made of the identity."""
    offset = torch.arange(SSIM_WINDOW, device=like.device) - SSIM_WINDOW // 2
    weights = torch.exp(-offset.to(like.dtype).square() / (2 * SSIM_SIGMA**2))
    height, width = like.shape[2:]
    if max(height, width) > DENSE:
        weights /= weights.sum()
        return lambda images: _weighted(_weighted(images, weights, 2), weights, 3)
    rows, columns = (_weighted(weights.new_ones(n).diag(), weights, 0) / weights.sum() for n in (height, width))
    return lambda images: rows @ images @ columns.T


def _weighted(images: Tensor, weights: Float[Tensor, " window"], axis: int) -> Tensor:
    """The weighted sum of each pixel's neighbours along an axis."""
    n, half = images.shape[axis], len(weights) // 2
    # Joined, not padded: CUDA cannot make the gradient of padding repeatable
    before, after = images.narrow(axis, 1, half), images.narrow(axis, n - 1 - half, half)
    reflected = torch.cat([before.flip(axis), images, after.flip(axis)], axis)
    total = weights[0] * reflected.narrow(axis, 0, n)
    for i in range(1, len(weights)):
        total.addcmul_(weights[i], reflected.narrow(axis, i, n))
    return total
