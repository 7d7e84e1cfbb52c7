"""What kernels that adapt are worth: a trained model with other kernels than those of the image at hand.

`python -m workbook.audit.swaps CAVE_FOLDER RUN…` measures the test scenes with runs of rows with a front, each with its
own kernels, with these frozen at their mean over the image, and with those of another image (the one before it in the
set), and keeps the means in results/swaps.json.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from jaxtyping import Float
from tabulate import tabulate
from torch import Tensor

from ka.data import Scene, SceneSet
from ka.errors import KAError
from ka.evaluation import evaluate
from ka.files import write_json
from ka.inference import Network
from ka.methods import Method
from ka.methods.started import begun
from ka.models.adaptive import RegressedKernels, degraded
from ka.models.psrt import PSRT
from workbook.paths import results_folder
from workbook.results.stored import SHOWN
from workbook.training.run import Run
from workbook.training.scenes import load_data

Kernels = Float[Tensor, "1 k n rows columns"]


def front_of(model: PSRT) -> RegressedKernels:
    """The model's regression; a `KAError` if it has none."""
    if model.front is None or model.front.sees == "nothing":
        raise KAError(f"{model.row.name} regresses no kernels; give runs of kav20 … kav22")
    return model.front


@torch.no_grad()
def kernels_of(model: PSRT, scene: Scene) -> Kernels:
    """The kernels that a model makes of a whole scene."""
    front, loaded = front_of(model), scene.load()
    up, msi, lr = (torch.from_numpy(x)[None] for x in (begun(loaded, model.start).up, loaded.msi, loaded.lr))
    return front.kernels(degraded(front.features(up, msi), front.degradation), lr)


def with_kernels(model: PSRT, kernels: Kernels) -> PSRT:
    """A copy of a model whose kernels are these, whatever it is shown: for one pass over a whole image."""
    fixed = copy.deepcopy(model)
    front_of(fixed).__dict__["kernels"] = lambda low, lr: kernels.expand(-1, -1, -1, *lr.shape[-2:])
    return fixed


def measure(model: PSRT, scenes: SceneSet) -> dict[str, dict[str, float]]:
    """Means over scenes of `SHOWN`, with own kernels, with their mean over the image, with another image's."""
    if len(scenes) < 2:
        raise KAError(f"{scenes.name}: kernels of another image want two scenes or more; choose another split")
    before = {scene.name: scenes[i - 1] for i, scene in enumerate(scenes)}
    side = 16 * max(max(scene.gt.shape[1:]) for scene in scenes)  # one pass

    def mean(scene: Scene) -> Tensor:
        frozen = kernels_of(model, scene).mean((-2, -1), keepdim=True)
        return Network(with_kernels(model, frozen), side)(scene)

    def another(scene: Scene) -> Tensor:
        return Network(with_kernels(model, kernels_of(model, before[scene.name])), side)(scene)

    methods: dict[str, Method] = {"own": Network(model), "mean of the image": mean, "of another image": another}
    evaluations = {name: evaluate(method, scenes, list(SHOWN)) for name, method in methods.items()}
    return {name: {metric: each.mean(metric) for metric in SHOWN} for name, each in evaluations.items()}


def read() -> dict[str, dict[str, dict[str, float]]]:
    """What was kept: run, origin of kernels, metric."""
    return msgspec.json.decode(_path().read_bytes(), type=dict[str, dict[str, dict[str, float]]])


def _path() -> Path:
    return results_folder() / "swaps.json"


def to_markdown(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """PSNR / SAM / ERGAS, a row per run and a column per origin of kernels."""
    rows = [
        [name, *(" / ".join(f"{means[metric]:.3f}" for metric in SHOWN) for means in values.values())]
        for name, values in measured.items()
    ]
    head = ["run", *next(iter(measured.values()))]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True) + "\n"


def main(arguments: Sequence[str]) -> int:
    """The command line; exit code 2 for an error of the user's."""
    try:
        if len(arguments) < 2:
            raise KAError("give CAVE's folder and folders of finished runs: python -m workbook.audit.swaps DATA RUN…")
        measured = {}
        for folder in arguments[1:]:
            run = Run(Path(folder))
            config = run.config()
            if config is None:
                raise KAError(f"{folder} holds no run; give folders of finished runs")
            test = load_data(type(config)(**config.to_dict() | {"data_root": arguments[0]})).test
            measured[run.path.name] = measure(run.model(), test)
        write_json(_path(), measured)
        print(_path())
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
