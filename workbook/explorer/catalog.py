"""What there is to look at: models and images by name, for the notebooks and the explorers."""

import math
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from ka import data
from ka.data import Scene, SceneSet
from ka.errors import KAError, unknown
from ka.files import user_path
from ka.methods.injection import Start
from ka.methods.started import begun
from ka.models.checkpoints import load_checkpoint
from ka.models.psrt import LAYERS, PSRT, WINDOWS
from workbook.paths import CHECKPOINTS, runs_folder
from workbook.training.run import Run
from workbook.training.scenes import load_data
from workbook.views.kernel_field import KernelField, kernel_field
from workbook.views.plots import as_rgb
from workbook.views.trace import Trace, check_index, trace

SIDE = 64  # largest side of what is looked at: a pass over it takes a tenth of a second


class SceneCrop(NamedTuple):
    """The middle of a scene, to be looked at."""

    scene: Scene  # the whole of it, in memory
    box: tuple[int, int, int, int]  # row, column, height and width of the middle
    picture: Float[np.ndarray, "h w 3"]  # its colours, natural or false, in [0, 1]
    scenes: SceneSet  # what the scene is one of: its wavelengths, the names of its channels

    @property
    def bands(self) -> tuple[int, int]:
        """Bands of the cube, channels of the HR-MSI."""
        return len(self.scene.gt), len(self.scene.msi)

    def given(self, start: Start) -> tuple[Tensor, Tensor, Tensor]:
        """What a model that begins with `start` sees there: `up`, made on the whole scene, HR-MSI and LR-HSI."""
        crop = begun(self.scene, start).crop(*self.box)
        up, msi, lr = (torch.from_numpy(x)[None] for x in (crop.up, crop.msi, crop.lr))
        return up, msi, lr


def shipped() -> dict[str, Path]:
    """The checkpoints that come with the project, by variant."""
    return {path.stem: path for path in sorted(CHECKPOINTS.glob("*.safetensors"))}


def finished_runs(folder: str | Path | None = None) -> dict[str, Path]:
    """Finished runs in a folder (None: the checkout's `runs/`), by name; no such folder is a `KAError`."""
    place = user_path(folder or runs_folder())
    if folder is not None and not place.is_dir():
        raise KAError(f"runs={str(folder)!r} is no folder; give one that holds run folders, or leave it out")
    return {path.parent.name: path.parent for path in sorted(place.glob("*/metrics.json"))}


def scene_crops(data_root: str | Path | None = None) -> dict[str, SceneCrop]:
    """Images to look at, the central 64×64 pixels: two parts of the embedded scene, and some test scenes of CAVE, for
    models of 31 bands, where its folder is given (and if it is not there, a `KAError`).
    """
    sets = [data.load("indian_pines", split) for split in ("test", "train")]
    if data_root is not None:
        sets.append(data.load("cave", "test", data_root, scenes=("balloons", "feathers", "jelly_beans")))
    return {scene.name: _crop(scene_set, scene) for scene_set in sets for scene in scene_set}


def _crop(scenes: SceneSet, scene: Scene) -> SceneCrop:
    (h, w), unit = scene.gt.shape[-2:], math.lcm(WINDOWS[0], scenes.ratio)  # whole windows, whole low-resolution pixels
    height, width = (min(side, max(SIDE, unit)) // unit * unit for side in (h, w))
    if not height * width:
        raise KAError(f"{scene.name} of {h}×{w} pixels is too small to look at; choose one of at least {unit}×{unit}")
    top, left = ((side - cut) // 2 // scenes.ratio * scenes.ratio for side, cut in ((h, height), (w, width)))
    gt = scene.crop(top, left, height, width).gt
    return SceneCrop(scene.load(), (top, left, height, width), as_rgb(gt, scenes.display, gt), scenes)


class Images(dict[str, SceneCrop]):
    """Images by name; `unread` ones, of runs' own data, are read when they are first asked for."""

    def __init__(self, images: Mapping[str, SceneCrop]) -> None:
        super().__init__(images)
        self.unread: dict[str, tuple[SceneSet, int]] = {}

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.unread

    def __missing__(self, name: str) -> SceneCrop:
        scenes, index = self.unread[name]
        self[name] = _crop(scenes, scenes[index])
        return self[name]

    def add(self, run: Path) -> list[str]:
        """Names of the test scenes of a run's own data; a `KAError` if they are not on this machine."""
        config = Run(run).config()
        if config is None:
            raise KAError(f"{run} lacks config.json, which says what its data are; restore it")
        try:
            scenes = load_data(config).test
        except KAError as error:
            raise KAError(f"the data that {run.name} was trained on are not here as they were: {error}") from error
        names = []
        for index, scene in enumerate(scenes.scenes):
            name, there = scene.name, self.get(scene.name)
            if there is None or (there.scenes.name, there.scenes.degradation) != (scenes.name, scenes.degradation):
                name += f" ×{scenes.ratio}, {run.name}" if name in self else ""
                self.unread[name] = scenes, index
            names.append(name)
        return names


class Catalog:
    """Models (run folders or checkpoints) and images by name; a name that is not there is a `KAError`."""

    def __init__(self, models: Mapping[str, str | Path], images: Mapping[str, SceneCrop]) -> None:
        if not models:
            raise KAError("there is no model to look at; train one (make train), or give a checkpoint")
        if not images:
            raise KAError("there is no image to look at")
        self.models, self.images = dict(models), Images(images)
        self.homes: dict[PSRT, Path] = {}  # run folders of the models read so far
        self.own: dict[object, list[str]] = {}  # images of runs' own data, once for all runs on the same
        self.model: Callable[[str], PSRT] = cache(self._model)  # read once
        self.trace: Callable[[str, str], Trace] = lru_cache(12)(self._trace)  # what a model saw in an image
        self.field: Callable[[str, str], KernelField] = lru_cache(4)(self._field)  # its kernels, all over the scene

    def _model(self, name: str) -> PSRT:
        if name not in self.models:
            raise unknown("model", name, self.models)
        model, path = load_checkpoint(self.models[name]), Path(self.models[name])
        if path.is_dir():
            self.homes[model] = path
        return model

    def _trace(self, model: str, image: str) -> Trace:
        if image not in self.images:
            raise unknown("image", image, self.images)
        return trace(self.model(model), *self.images[image].given(self.model(model).start))

    def _field(self, model: str, image: str) -> KernelField:
        if image not in self.images:
            raise unknown("image", image, self.images)
        crop = self.images[image]
        return kernel_field(self.model(model), crop.scene, crop.scenes.msi_names)

    def images_for(self, model: PSRT) -> list[str]:
        """Names of the images that have the model's bands and ratio: of a run, first the test scenes of its own data.

        Where there is none, a `KAError` that says which data are missing.
        """
        wanted, missing, own = (model.n_bands, model.n_msi), "", list[str]()
        try:
            own = self._own(self.homes[model]) if model in self.homes else []
        except KAError as error:
            missing = str(error)
        ratio = _ratio(model)
        fitting = [
            name for name, image in self.images.items() if image.bands == wanted and ratio in (None, image.scene.ratio)
        ]
        if not own + fitting:
            what = f"{wanted[0]} + {wanted[1]} bands" + (f" at ratio {ratio}" if ratio else "")
            raise KAError(missing or f"no image at hand has the model's {what}; give data_root, the folder of CAVE")
        return list(dict.fromkeys(own + fitting))

    def _own(self, run: Path) -> list[str]:
        digest = Run(run).metrics().get("test_digest") if Run(run).finished else None
        if (digest or run) not in self.own:
            self.own[digest or run] = self.images.add(run)
        return self.own[digest or run]


def _ratio(model: PSRT) -> int | None:
    """The ratio that a model is bound to, by its front, its start or its consistency; None if by none."""
    parts = (getattr(part, "degradation", None) for part in (model.front, model.start, model.consistency))
    return next((degradation.ratio for degradation in parts if degradation is not None), None)


def open_catalog(*models: str, runs: str | Path | None = None, data_root: str | Path | None = None) -> Catalog:
    """All that is at hand: the models named, those that come with the project and have an image here, finished runs.

    A model is a name of one of those, or the path of a run folder or checkpoint (which becomes its name); any other is
    a `KAError`. `runs` and `data_root` are as in `finished_runs` and `scene_crops`.
    """
    for name, value in (("runs", runs), ("data_root", data_root)):
        if value is not None and not isinstance(value, str | Path):
            raise KAError(f"{name}={value!r} is of type {type(value).__name__}; give a folder")
    images = scene_crops(data_root)
    seen = {image.bands for image in images.values()}
    at_hand: dict[str, str | Path] = {name: path for name, path in shipped().items() if _bands(path) in seen}
    for name, run in finished_runs(runs).items():
        at_hand[str(run) if name in at_hand else name] = run
    known = shipped() | at_hand
    for model in models:
        if model not in known and not user_path(str(model)).exists():
            raise KAError(f"{model!r} is neither a path nor one of {', '.join(known)}; train it, or choose one of them")
    named = {model: known.get(model, model) for model in models}
    return Catalog(named | at_hand, images)


def _bands(path: Path) -> tuple[int, int]:
    """Bands of the cube and channels of the HR-MSI that a checkpoint of ours is for."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    return int(header["n_bands"]), int(header["n_msi"])


def layer_index(layer: int) -> int:
    """The index of a layer that is counted from 1, as in the notebooks; any but 1 … 18 is a `KAError`."""
    return check_index("layer", layer, len(LAYERS), first=1) - 1
