"""One evaluation routine for whole scene sets and any method."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ka.data.scenes import SceneSet
from ka.errors import KAError, Undefined
from ka.methods import Method
from ka.metrics import METRICS, measure


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one method on a set of scenes."""

    scenes: Mapping[str, Mapping[str, float]]  # scene name → metric name → value

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


def evaluate(method: Method, scenes: SceneSet, names: list[str] | None = None) -> Evaluation:
    """Metrics of a method, scene by scene, at the ratio of the set (see `ka.metrics`; full images, nothing clipped).

    A metric that a scene leaves undefined (ERGAS where a band is black) is NaN there, and so is its mean.

    Args:
        method: what sharpens a loaded scene: a function, or `ka.Network(model)`.
        scenes: the scenes and how they were simulated.
        names: keys of `METRICS`; None for all.

    Raises:
        KAError: an unknown metric; a prediction that is not finite, or an image too small for a metric (the message
            names the scene and the metric).
    """
    evaluation = {}
    for scene in scenes:
        loaded = scene.load()
        if loaded.gt is None:
            raise KAError(f"scene {scene.name} has no truth to be measured against; look at `ka.residuals` instead")
        gt = torch.from_numpy(loaded.gt)[None]
        prediction = method(loaded)[None].to("cpu", torch.float32)
        if not prediction.isfinite().all():
            n = int((~prediction.isfinite()).sum())
            raise KAError(f"scene {scene.name}: {n} values of the prediction are not finite; use other weights")
        evaluation[scene.name] = {
            name: _measure(scene.name, name, prediction, gt, scenes.ratio) for name in names or METRICS
        }
    return Evaluation(evaluation)


def _measure(scene: str, name: str, prediction: Tensor, gt: Tensor, ratio: int) -> float:
    try:
        return measure(prediction, gt, ratio, [name])[name].item()
    except Undefined:
        return math.nan
    except KAError as error:
        raise KAError(f"scene {scene}, metric {name}: {str(error).removeprefix(f'{name}: ')}") from error
