"""What a network can start from, as methods on scenes: bicubic upsampling, linear and local detail injection.

Each is also a row of every table: a network that does not pass them has learned little. All describe themselves as
plain values (`to_dict`), so that a checkpoint holds what it started from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ka.data.scenes import BICUBIC, Scene, SceneSet
from ka.data.simulate import Degradation
from ka.errors import KAError
from ka.methods.local import RADIUS, RIDGE, detail, local_injection


@dataclass(frozen=True)
class Bicubic:
    """Bicubic upsampling alone: the field's lowest baseline, and what the study's networks start from."""

    name: ClassVar[str] = "bicubic"
    key: ClassVar[str] = BICUBIC

    def __call__(self, scene: Scene) -> Tensor:
        """The upsampled image of a loaded scene."""
        return torch.from_numpy(scene.bicubic)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclass(frozen=True, eq=False)
class LinearInjection:
    """Linear detail injection: up + matrix · detail(msi), one matrix fitted on training scenes by least squares."""

    name: ClassVar[str] = "linear"
    matrix: Float[np.ndarray, "bands m"]
    degradation: Degradation

    @classmethod
    def fit(cls, scenes: SceneSet) -> "LinearInjection":
        """Least squares over all pixels of all scenes, from the MSI's detail to the residual gt - up."""
        square = np.zeros((scenes.n_msi, scenes.n_msi))
        cross = np.zeros((scenes.n_msi, scenes.n_bands))
        for scene in scenes:
            loaded = scene.load()
            x = detail(loaded.msi, scenes.degradation).reshape(scenes.n_msi, -1).astype(np.float64)
            residual = (loaded.gt - loaded.bicubic).reshape(scenes.n_bands, -1)
            square += x @ x.T
            cross += x @ residual.T
        return cls(np.linalg.lstsq(square, cross, rcond=None)[0].T, scenes.degradation)

    def __call__(self, scene: Scene) -> Tensor:
        """The sharpened image of a loaded scene."""
        added = np.einsum("om,mhw->ohw", self.matrix, detail(scene.msi, self.degradation))
        return torch.from_numpy((scene.bicubic + added).astype(np.float32))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "degradation": asdict(self.degradation), "matrix": self.matrix.tolist()}

    @property
    def key(self) -> str:
        return _key(self)


@dataclass(frozen=True, eq=False)
class LocalInjection:
    """Local injection (`ka.local_injection`) towards the matrix of a linear one, or towards the scene's own."""

    name: ClassVar[str] = "local"
    degradation: Degradation
    matrix: Float[np.ndarray, "bands m"] | None = None
    radius: int = RADIUS
    ridge: float = RIDGE

    def __call__(self, scene: Scene) -> Tensor:
        """The sharpened image of a loaded scene."""
        matrix, radius, ridge = self.matrix, self.radius, self.ridge
        sharp = local_injection(scene.lr, scene.msi, self.degradation, matrix=matrix, radius=radius, ridge=ridge)
        return torch.from_numpy(sharp)

    def to_dict(self) -> dict[str, Any]:
        matrix = None if self.matrix is None else self.matrix.tolist()
        local = {"matrix": matrix, "radius": self.radius, "ridge": self.ridge}
        return {"name": self.name, "degradation": asdict(self.degradation), **local}

    @property
    def key(self) -> str:
        return _key(self)


Start = Bicubic | LinearInjection | LocalInjection


def _key(start: "Start") -> str:
    """What tells a start from others: its name and a digest of its values."""
    text = json.dumps(start.to_dict(), sort_keys=True)
    return f"{start.name} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


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
