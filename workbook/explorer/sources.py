"""What there is to look at: models and images, for the notebooks and the explorers."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ka.data import datasets as data
from ka.data.scenes import Scene, SceneSet
from ka.errors import KAError
from ka.models.checkpoints import load_checkpoint, save_weights
from ka.models.psrt import LAYERS, PSRT, WINDOWS
from workbook.paths import ROOT, runs_folder
from workbook.training.run import Run
from workbook.views.plots import as_rgb
from workbook.views.trace import Trace, trace

CHECKPOINTS = ROOT / "checkpoints"
"""Small models that come with the project: the demo preset on the embedded scene, float16."""

Thing = TypeVar("Thing")
SIDE = 64  # largest side of what is looked at: a pass over it takes a tenth of a second


@dataclass(frozen=True, eq=False)
class View:
    """An image to look at.

    Attributes:
        name: what the explorers call it.
        up, msi: what a model is given.
        picture: natural (or false) colours in [0, 1].
    """

    name: str
    up: Float[Tensor, "1 bands h w"]
    msi: Float[Tensor, "1 m h w"]
    picture: Float[np.ndarray, "h w 3"]


def shipped() -> dict[str, Path]:
    """The checkpoints that come with the project, by variant."""
    return {path.stem: path for path in sorted(CHECKPOINTS.glob("*.safetensors"))}


def ship(run: Run, folder: str | Path = CHECKPOINTS) -> Path:
    """Keep a finished run's best weights as a small checkpoint that comes with the project: `<variant>.safetensors`.

    Weights are float16 (half the size); the header says what they were trained on, and their PSNR before rounding.

    Raises:
        KAError: the run is not finished.
    """
    found = run.metrics()
    path = Path(folder) / f"{found['variant']}.safetensors"
    psnr = found["methods"]["best"]["mean"]["psnr"]
    notes = {"dataset": found["dataset"], "step": found["best"]["step"], "psnr": round(psnr, 3)}
    save_weights(path, run.model("best"), half=True, **notes)
    return path


def finished_runs(folder: str | Path | None = None) -> dict[str, Path]:
    """Finished runs in a folder (None: the checkout's `runs/`), by name.

    Raises:
        KAError: there is no such folder.
    """
    if folder is not None and not Path(folder).is_dir():
        raise KAError(f"runs={str(folder)!r} is no folder; give one that holds run folders, or leave it out")
    found = sorted(Path(folder or runs_folder()).glob("*/metrics.json"))
    return {path.parent.name: path.parent for path in found}


def views(
    data_root: str | Path | None = None, scenes: Sequence[str] = ("balloons", "feathers", "jelly_beans")
) -> dict[str, View]:
    """Images to look at, the central 64×64 pixels: two parts of the embedded scene, and some CAVE test scenes.

    Args:
        data_root: the folder of CAVE, for models of 31 bands.
        scenes: which of the 11 test scenes.

    Raises:
        KAError: CAVE is not there.
    """
    sets = [data.load("indian_pines", split) for split in ("test", "train")]
    if data_root is not None:
        sets.append(data.load("cave", "test", data_root, scenes=scenes))
    return {view.name: view for one in sets for view in (_view(one, scene) for scene in one)}


def _view(scenes: SceneSet, scene: Scene) -> View:
    h, w = scene.gt.shape[-2:]
    height, width = (min(side // WINDOWS[0] * WINDOWS[0], SIDE) for side in (h, w))
    top, left = ((side - cut) // 2 // scenes.ratio * scenes.ratio for side, cut in ((h, height), (w, width)))
    crop = scene.crop(top, left, height, width, scenes.ratio)
    up, msi = (torch.from_numpy(x)[None] for x in (crop.up, crop.msi))
    return View(scene.name, up, msi, as_rgb(crop.gt, scenes.display, crop.gt))


class Looker:
    """Models and images by name, and what a model saw in an image; the last few passes are kept.

    Args:
        models: name → run folder or checkpoint.
        views: name → image.

    Raises:
        KAError: there is no model, or no image.
    """

    def __init__(self, models: Mapping[str, str | Path], views: Mapping[str, View]) -> None:
        if not models:
            raise KAError("there is no model to look at; train one (make train), or give a checkpoint")
        if not views:
            raise KAError("there is no image to look at")
        self.models, self.views = dict(models), dict(views)
        self._loaded: dict[str, PSRT] = {}
        self._traces: dict[tuple[str, str], Trace] = {}

    def model(self, name: str) -> PSRT:
        """The model of that name, read once."""
        if name not in self._loaded:
            self._loaded[name] = load_checkpoint(_known(self.models, name, "model"))
        return self._loaded[name]

    def images_for(self, model: PSRT) -> list[str]:
        """Names of the images that have the model's bands.

        Raises:
            KAError: there is none.
        """
        bands = (model.n_bands, model.n_msi)
        fitting = [name for name, view in self.views.items() if (view.up.shape[1], view.msi.shape[1]) == bands]
        if not fitting:
            raise KAError(
                f"no image at hand has the model's {bands[0]} + {bands[1]} bands; give data_root, the folder of CAVE"
            )
        return fitting

    def trace(self, model: str, view: str, keep: int = 12) -> Trace:
        """What the model saw in the image."""
        key = (model, view)
        if key not in self._traces:
            image = _known(self.views, view, "image")
            found = trace(self.model(model), image.up, image.msi)
            while len(self._traces) >= keep:
                self._traces.pop(next(iter(self._traces)))
            self._traces[key] = found
        return self._traces[key]


def gather(*models: str, runs: str | Path | None = None, data_root: str | Path | None = None) -> Looker:
    """All that is at hand: the models named, those that come with the project, and finished runs.

    Args:
        models: a name of one of those, or the path of a run folder or checkpoint (which becomes its name).
        runs: folder of run folders; None for the checkout's `runs/`.
        data_root: the folder of CAVE, for models of 31 bands.

    Raises:
        KAError: a model is neither known nor a path; CAVE is not there.
    """
    for name, value in (("runs", runs), ("data_root", data_root)):
        if value is not None and not isinstance(value, str | Path):
            raise KAError(f"{name}={value!r} is of type {type(value).__name__}; give a folder")
    found: dict[str, str | Path] = {**shipped()}
    for name, run in finished_runs(runs).items():
        found[str(run) if name in found else name] = run
    for model in models:
        if model not in found and not Path(str(model)).exists():
            raise KAError(f"{model!r} is neither a path nor one of {', '.join(found)}; train it, or choose one of them")
    named = {model: found.get(model, model) for model in models}
    return Looker(named | found, views(data_root))


def layer_index(layer: int) -> int:
    """The index of a layer that is counted from 1, as in the notebooks.

    Raises:
        KAError: it is none of 1 … 18.
    """
    if isinstance(layer, bool) or layer not in range(1, len(LAYERS) + 1):
        raise KAError(f"layer={layer!r} is not one of the {len(LAYERS)}; choose 1 … {len(LAYERS)}")
    return layer - 1


def _known(things: Mapping[str, Thing], name: str, what: str) -> Thing:
    if name not in things:
        raise KAError(f"there is no {what} {name!r}; choose one of {', '.join(things)}")
    return things[name]


def main(arguments: Sequence[str]) -> int:
    """`python -m workbook.explorer.sources RUN…`: keep the weights of run folders in checkpoints/; exit code 2 for an
    error."""
    try:
        for path in arguments:
            print(ship(Run(Path(path))))
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
