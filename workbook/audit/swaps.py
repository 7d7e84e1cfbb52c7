"""What kernels that adapt are worth: a trained model with other kernels than those of the image at hand.

`python -m workbook.audit.swaps CAVE_FOLDER RUN…` measures the test scenes with runs of rows with a front, each with its
own kernels, with these frozen at their mean over the image, and with those of another image (the one before it in the
set), and keeps the means in results/swaps.json.
"""

import copy
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jaxtyping import Float
from tabulate import tabulate
from torch import Tensor

from ka.data import Scene, SceneSet
from ka.errors import KAError
from ka.evaluation import evaluate
from ka.inference import GRID, Network
from ka.methods import Method
from ka.models.own.adapter import Model
from workbook.results.stored import SHOWN, Means, means, measure_runs
from workbook.training.run import begun_runs
from workbook.training.scenes import data_at
from workbook.views.kernel_field import regressed

Kernels = Float[Tensor, "1 k n rows columns"]


def kernels_of(model: Model, scene: Scene) -> Kernels:
    """The kernels that a model makes of a whole scene; a `KAError` if it regresses none."""
    if model.front is None or model.front.sees in ("nothing", "pixel"):  # a pixel's own are no field to swap
        raise KAError(f"{model.row.name} makes no kernels per window; give runs of kav20 … kav22, kav23_window …")
    return regressed(model, model.front, scene.load())[1]


def with_kernels(model: Model, kernels: Kernels) -> Model:
    """A copy of a model whose kernels are these, whatever it is shown: for one pass over a whole image."""
    fixed = copy.deepcopy(model)
    assert fixed.front is not None

    def given(low: Tensor, lr: Tensor) -> Tensor:
        return kernels.expand(-1, -1, -1, *lr.shape[-2:])

    fixed.front.kernels = given  # type: ignore[method-assign]
    return fixed


def swapped(model: Model, scenes: SceneSet) -> dict[str, dict[str, float]]:
    """Means over scenes of `SHOWN`, with own kernels, with their mean over the image, with another image's."""
    if len(scenes) < 2:
        raise KAError(f"{scenes.name}: kernels of another image want two scenes or more; choose another split")
    before = {scene.name: scenes[i - 1] for i, scene in enumerate(scenes)}
    one_pass = max(math.ceil(side / GRID) * GRID for scene in scenes for side in scene.gt.shape[1:])

    def mean(scene: Scene) -> Tensor:
        frozen = kernels_of(model, scene).mean((-2, -1), keepdim=True)
        return Network(with_kernels(model, frozen), one_pass)(scene)

    def another(scene: Scene) -> Tensor:
        return Network(with_kernels(model, kernels_of(model, before[scene.name])), one_pass)(scene)

    methods: dict[str, Method] = {"own": Network(model), "mean of the image": mean, "of another image": another}
    evaluations = {name: evaluate(method, scenes, list(SHOWN)) for name, method in methods.items()}
    return {name: {metric: each.mean(metric) for metric in SHOWN} for name, each in evaluations.items()}


def measure(root: str | Path, runs: Sequence[str | Path]) -> Means:
    """`swapped`, of the best weights of finished runs on their test scenes: run → origin of kernels → metric."""
    return {run.path.name: swapped(run.model(), data_at(config, root).test) for run, config in begun_runs(runs)}


def to_markdown(measured: Means) -> str:
    """PSNR / SAM / ERGAS, a row per run and a column per origin of kernels."""
    rows = [
        [name, *(" / ".join(f"{means[metric]:.3f}" for metric in SHOWN) for means in values.values())]
        for name, values in measured.items()
    ]
    head = ["run", *next(iter(measured.values()))]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True) + "\n"


read = partial(means, "swaps")
main = partial(measure_runs, "workbook.audit.swaps", measure)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
