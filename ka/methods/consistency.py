"""Consistency with what was observed: how far an image is from it, and the nearest image that agrees with it.

Both observations are linear in the truth x: msi = S x, with the response S of the sharp sensor, and lr = D x Dᵀ, with
blur and decimation D along each axis. Where they are exact, projecting an estimate onto the images that agree with
them can only bring it nearer to the truth. S acts on bands and D on pixels, so the two projections commute: after one
of each both hold, if the observations agree with each other. With noise they are followed too closely; a weight below
1 goes a part of the way (Wiener's is error² / (error² + noise²)).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ka.data.scenes import Scene
from ka.data.simulate import Degradation, degrade, degrade_matrix, respond
from ka.errors import KAError, unknown
from ka.methods import Method
from ka.methods.local import check_pair

Kind = Literal["spectral", "spatial", "both"]
KINDS = get_args(Kind)
Cube = Float[np.ndarray, "bands h w"]
LowCube = Float[np.ndarray, "bands h/ratio w/ratio"]
MSI = Float[np.ndarray, "channels h w"]


@dataclass(frozen=True, eq=False)
class Consistency:
    """The projection of an estimate onto the images that agree with the observations.

    Spectral: x + S⁺(msi - S x); spatial: x + D⁺(lr - D x Dᵀ)D⁺ᵀ.

    Raises:
        KAError: an unknown kind; a weight out of range; a response that is no matrix.
    """

    degradation: Degradation  # how lr comes from the truth
    srf: Float[np.ndarray, "channels bands"]  # how msi does
    kind: Kind = "both"  # which of them to agree with: spectral (msi), spatial (lr) or both
    weight: float = 1.0  # how much of the way to go, above 0 to 1; 1 where the observations are free of noise

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("consistency", self.kind, KINDS)
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 < self.weight <= 1:
            raise KAError(f"weight: {self.weight!r} is not above 0 and at most 1; use 1 where there is no noise")
        if np.ndim(self.srf) != 2 or not np.isfinite(self.srf).all():
            raise KAError(f"srf: {np.shape(self.srf)} values are no response (channels, bands); give the sensor's own")

    def __call__(self, image: Cube, lr: LowCube, msi: MSI) -> Cube:
        """The projected image, in the unit that the three images share.

        Raises:
            KAError: images, ratio or response that do not fit together.
        """
        _check(image, lr, msi, self.degradation, self.srf)
        x = image.astype(np.float64)
        if self.kind != "spatial":
            x = self.spectral(torch.from_numpy(x), torch.from_numpy(msi.astype(np.float64))).numpy()
        if self.kind != "spectral":
            (down, back_down), (across, back_across) = (_axis(n, self.degradation) for n in x.shape[1:])
            x += self.weight * (back_down @ (lr - down @ x @ across.T) @ back_across.T)
        return x.astype(np.float32)

    def spectral(
        self, x: Float[Tensor, "*b bands h w"], msi: Float[Tensor, "*b m h w"]
    ) -> Float[Tensor, "*b bands h w"]:
        """x + S⁺(msi - S x), pixel by pixel, so on patches too; a network may be trained through it."""
        seen, back = (matrix.to(x.device, x.dtype) for matrix in self._matrices)
        lacking = msi - torch.einsum("mb,...bhw->...mhw", seen, x)
        return x + torch.einsum("bm,...mhw->...bhw", back, lacking)

    @cached_property
    def _matrices(self) -> tuple[Float[Tensor, "m bands"], Float[Tensor, "bands m"]]:
        """S and weight · S⁺; every training step asks for them."""
        srf = torch.tensor(self.srf, dtype=torch.float64)
        return srf, self.weight * torch.linalg.pinv(srf)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"srf": np.asarray(self.srf).tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Consistency":
        """What `to_dict` described; a `KAError` if that was something else."""
        try:
            degradation, srf = Degradation(**values["degradation"]), np.array(values["srf"], dtype=np.float64)
            return cls(**{**values, "degradation": degradation, "srf": srf})
        except (KeyError, TypeError, ValueError) as error:
            raise KAError(f"this describes no consistency ({error}); use another checkpoint") from error


@dataclass(frozen=True, eq=False)
class Consistent:
    """A method whose images are made consistent as a last step."""

    method: Method
    consistency: Consistency

    def __call__(self, scene: Scene) -> Tensor:
        """The sharpened image of a loaded scene."""
        return torch.from_numpy(self.consistency(self.method(scene).numpy(), scene.lr, scene.msi))


@dataclass(frozen=True, eq=False)
class Residuals:
    """What an image leaves of the observations: root mean squares over channels and bands, in units of the image."""

    spectral: Float[np.ndarray, "h w"] | None  # of msi - S x; None where S is not known
    spatial: Float[np.ndarray, "h/ratio w/ratio"]  # of lr - D x Dᵀ

    def rms(self) -> dict[str, float]:
        """Over all pixels; 0 for an image that agrees with an observation."""
        maps = {"spectral": self.spectral, "spatial": self.spatial}
        return {name: float(np.sqrt((values**2).mean())) for name, values in maps.items() if values is not None}


def residuals(
    image: Cube, lr: LowCube, msi: MSI, degradation: Degradation, srf: Float[np.ndarray, "channels bands"] | None
) -> Residuals:
    """How inconsistent an image is with the two observations, pixel by pixel.

    Raises:
        KAError: images, ratio or response that do not fit together.
    """
    _check(image, lr, msi, degradation, srf)
    spatial = _root_mean_square(lr - degrade(image, degradation))
    return Residuals(None if srf is None else _root_mean_square(msi - respond(image, srf)), spatial)


def _root_mean_square(x: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "h w"]:
    return np.sqrt((x.astype(np.float64) ** 2).mean(0))


def _check(image: Cube, lr: LowCube, msi: MSI, degradation: Degradation, srf: np.ndarray | None) -> None:
    check_pair(lr, msi, degradation)
    expected = (len(lr), *msi.shape[1:])
    if image.shape != expected:
        raise KAError(f"image: {image.shape} does not fit lr and msi, which want {expected}; give the sharpened cube")
    if srf is not None and np.shape(srf) != (len(msi), len(lr)):
        wanted = f"(channels, bands) = {(len(msi), len(lr))}"
        raise KAError(f"srf: a response of shape {np.shape(srf)} is not {wanted}; use the sensor's own")


@lru_cache(maxsize=8)
def dies_away(degradation: Degradation, within: int) -> bool:
    """Whether the projection onto lr, at a pixel, depends on what lies within so many low-resolution pixels alone (to
    1e-6). It does where blur and decimation have an inverse that is local, as every blur narrower than a pixel of lr.
    """
    n = 4 * within
    inverse = np.abs(_axis(n * degradation.ratio, degradation)[1][:, n // 2])
    far = np.abs(np.arange(len(inverse)) // degradation.ratio - n // 2) > within
    return bool(inverse[far].max() < 1e-6 * inverse.max())


@lru_cache(maxsize=8)
def _axis(n: int, degradation: Degradation) -> tuple[Float[np.ndarray, "n/ratio n"], Float[np.ndarray, "n n/ratio"]]:
    """Blur and decimation along an axis of `n` pixels, and the pseudo-inverse."""
    matrix = degrade_matrix(n, degradation)
    return matrix, np.linalg.pinv(matrix)
