"""What a network can start from, as methods on scenes: bicubic upsampling, linear and local detail injection.

Each is also a row of every table: a network that does not pass them has learned little. All describe themselves as
plain values (`to_dict`), so that a checkpoint holds what it started from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ka.data.scenes import BICUBIC, Scene, SceneSet
from ka.data.simulate import Degradation
from ka.errors import KAError
from ka.methods.local import RIDGE, detail, half_side, local_injection, local_kernels, seen_low, with_roots


@dataclass(frozen=True)
class Bicubic:
    """Bicubic upsampling alone: the field's lowest baseline, and what the study's networks start from."""

    name: ClassVar[str] = "bicubic"
    key: ClassVar[str] = BICUBIC
    matrix: ClassVar[None] = None

    def __call__(self, scene: Scene) -> Tensor:
        """The upsampled image of a loaded scene."""
        return torch.from_numpy(scene.bicubic)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A start with a matrix: how it describes itself, and what tells it from others."""

    name: ClassVar[str]
    degradation: Degradation
    matrix: Float[np.ndarray, "bands m"] | None

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self), "matrix": None if self.matrix is None else self.matrix.tolist()}

    @cached_property
    def key(self) -> str:
        """Its name and a digest of its values."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return f"{self.name} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, eq=False)
class LinearInjection(_Fitted):
    """Linear detail injection: up + matrix · detail(msi), one matrix fitted on training scenes by least squares."""

    name: ClassVar[str] = "linear"
    matrix: Float[np.ndarray, "bands m"]

    @classmethod
    def fit(cls, scenes: SceneSet) -> "LinearInjection":
        """Fit the matrix on all pixels of all scenes."""
        return cls(scenes.degradation, fit_matrix(scenes))

    def __call__(self, scene: Scene) -> Tensor:
        """The sharpened image of a loaded scene."""
        added = np.einsum("om,mhw->ohw", self.matrix, detail(scene.msi, self.degradation))
        return torch.from_numpy((scene.bicubic + added).astype(np.float32))


@dataclass(frozen=True, eq=False)
class LocalInjection(_Fitted):
    """Local injection (`ka.local_injection`) towards the matrix of a linear one, or towards the scene's own."""

    name: ClassVar[str] = "local"
    matrix: Float[np.ndarray, "bands m"] | None = None
    radius: int | None = None
    ridge: float = RIDGE
    roots: bool = False
    attend: bool = False

    def __call__(self, scene: Scene) -> Tensor:
        """The sharpened image of a loaded scene."""
        options = {name: getattr(self, name) for name in ("matrix", "radius", "ridge", "roots", "attend")}
        return torch.from_numpy(local_injection(scene.lr, scene.msi, self.degradation, **options))

    def kernels(self, scene: Scene) -> Float[np.ndarray, "rows columns m bands"]:
        """The kernel of every low-resolution pixel of a loaded scene."""
        low, places = seen_low(scene.msi, self.degradation, self.roots, self.attend)
        return local_kernels(scene.lr, low, self.matrix, self.half_side, self.ridge, places)

    @property
    def half_side(self) -> int:
        """Of a window, in low-resolution pixels."""
        return half_side(self.radius, self.attend)


def fit_matrix(scenes: SceneSet, roots: bool = False) -> Float[np.ndarray, "bands m"]:
    """Least squares over all pixels of all scenes, from the MSI's detail (`roots`: and its roots') to gt - bicubic."""
    squares: list[np.ndarray] = []
    crosses: list[np.ndarray] = []
    for scene in scenes:
        loaded = scene.load()
        channels = detail(with_roots(loaded.msi) if roots else loaded.msi, scenes.degradation)
        x = channels.reshape(len(channels), -1).astype(np.float64)
        squares.append(x @ x.T)
        crosses.append(x @ (loaded.gt - loaded.bicubic).reshape(scenes.n_bands, -1).T)
    return np.linalg.lstsq(sum(squares[1:], squares[0]), sum(crosses[1:], crosses[0]), rcond=None)[0].T


Start = Bicubic | LinearInjection | LocalInjection


def start_from_dict(values: Mapping[str, Any]) -> Start:
    """The start that `to_dict` described.

    Raises:
        KAError: it describes none.
    """
    try:
        name, options = values["name"], {key: value for key, value in values.items() if key != "name"}
        if name == "bicubic":
            return Bicubic(**options)
        options["degradation"] = Degradation(**options["degradation"])
        if options["matrix"] is not None:
            options["matrix"] = np.array(options["matrix"], dtype=np.float64)
        return {"linear": LinearInjection, "local": LocalInjection}[name](**options)
    except (KeyError, TypeError, ValueError) as error:
        raise KAError(f"this describes nothing that a network starts from ({error}); use another checkpoint") from error
