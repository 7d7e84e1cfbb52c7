"""What there is to look at: models and images by name, for the notebooks and the explorers."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ka import data
from ka.data import Scene, SceneSet
from ka.data.cave import CAVE_TEST, find_bands
from ka.errors import KAError, unknown
from ka.files import user_path
from ka.inference import trained_ratio
from ka.methods.injection import Start
from ka.methods.started import begun
from ka.models.checkpoints import load_checkpoint
from ka.models.psrt import LAYERS, PSRT, WINDOWS
from workbook.paths import CHECKPOINTS
from workbook.training.run import RUNS, Run, finished_runs
from workbook.training.scenes import load_data
from workbook.views.kernel_field import KernelField, kernel_field
from workbook.views.plots import as_rgb
from workbook.views.trace import Trace, check_index, trace

T = TypeVar("T")
DATA = "DATA= of make explore, data_root in a notebook"  # what the folder of CAVE is called at each door
CAVE_SHOWN = tuple(sorted(CAVE_TEST, key=("balloons", "feathers", "jelly_beans").__contains__, reverse=True))
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


def broken(run: Path) -> str | None:
    """Why a run's weights cannot be shown, None if they can, as far as it shows without reading them."""
    try:
        _bands(run / "best.safetensors")
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def usable_runs(folder: str | Path | None = None) -> tuple[dict[str, Path], list[str]]:
    """Finished runs in a folder, and a line on each that cannot be shown, or where there is none."""
    finished = finished_runs(folder)
    reasons = {name: why for name, run in finished.items() if (why := broken(run))}
    notices = [f"{finished[name]} is left out: its best.safetensors is missing or damaged ({why})"
               for name, why in reasons.items()]  # fmt: skip
    if folder is not None and not finished:
        notices.append(f"{folder} holds no finished run, nor do the folders in it ({RUNS})")
    return {name: run for name, run in finished.items() if name not in reasons}, notices


def scene_sets(data_root: str | Path | None = None) -> list[SceneSet]:
    """What `scene_crops` cuts its images from; of CAVE the headers are read."""
    sets = [data.load("indian_pines", split) for split in ("test", "train")]
    if data_root is not None:
        root = user_path(data_root)
        there = [name for name in CAVE_SHOWN if name in find_bands(root)]
        sets.append(data.load("cave", "test", root, scenes=there[:3] or CAVE_SHOWN[:3]))
    return sets


def scene_crops(data_root: str | Path | None = None) -> dict[str, SceneCrop]:
    """Images to look at, the central 64×64 pixels: two parts of the embedded scene, and some test scenes of CAVE, for
    models of 31 bands, where its folder is given (and if it is not there, a `KAError`).
    """
    return {scene.name: _crop(scene_set, scene) for scene_set in scene_sets(data_root) for scene in scene_set}


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
    """Models (run folders or checkpoints) and images by name; a name that is not there is a `KAError`. `notices` are
    lines on what was asked for and is not among them.
    """

    def __init__(
        self, models: Mapping[str, str | Path], images: Mapping[str, SceneCrop], notices: Sequence[str] = ()
    ) -> None:
        if not models:
            raise KAError("there is no model to look at; train one (make train), or give a checkpoint")
        if not images:
            raise KAError("there is no image to look at")
        self.models, self.images, self.notices = dict(models), Images(images), list(notices)
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
        ratio = trained_ratio(model)
        fitting = [
            name for name, image in self.images.items() if image.bands == wanted and ratio in (None, image.scene.ratio)
        ]
        if not own + fitting:
            what = f"{wanted[0]} + {wanted[1]} bands" + (f" at ratio {ratio}" if ratio else "")
            raise KAError(missing or f"no image at hand has the model's {what}; give CAVE's folder ({DATA})")
        return list(dict.fromkeys(own + fitting))

    def _own(self, run: Path) -> list[str]:
        digest = Run(run).metrics().get("test_digest") if Run(run).finished else None
        if (digest or run) not in self.own:
            self.own[digest or run] = self.images.add(run)
        return self.own[digest or run]

    def able(self, can: Callable[[PSRT], bool]) -> list[str]:
        """Names of the models that can do something, and have an image here."""
        names = []
        for name in self.models:
            with suppress(KAError):
                if can(self.model(name)) and self.images_for(self.model(name)):
                    names.append(name)
        return names


def open_catalog(
    *models: str, runs: str | Path | None = None, data_root: str | Path | None = None, strict: bool = True
) -> Catalog:
    """All that is at hand: the models named, those that come with the project and have an image here, finished runs.

    A model is a name of one of those, or the path of a run folder or checkpoint (which becomes its name); any other is
    a `KAError`. `runs` and `data_root` are as in `finished_runs` and `scene_crops`; with `strict=False` a folder that
    is wrong is a notice of the catalog, and the rest is offered. Runs that are broken always are.
    """
    notices: list[str] = []

    def found(what: Callable[[Any], T], name: str, folder: object) -> T:
        try:
            if folder is not None and not isinstance(folder, str | Path):
                raise KAError(f"{name}={folder!r} is of type {type(folder).__name__}; give a folder")
            return what(folder)
        except KAError as error:
            if strict:
                raise
            notices.append(str(error))
            return what(None)

    (finished, unusable), images = found(usable_runs, "runs", runs), found(scene_crops, "data_root", data_root)
    seen = {image.bands for image in images.values()}
    at_hand: dict[str, str | Path] = {name: path for name, path in shipped().items() if _bands(path) in seen}
    at_hand |= {str(run) if name in at_hand else name: run for name, run in finished.items()}
    known = shipped() | at_hand
    for model in models:
        if model not in known and not user_path(str(model)).exists():
            raise KAError(f"{model!r} is neither a path nor one of {', '.join(known)}; train it, or choose one of them")
    named = {model: known.get(model, model) for model in models}
    return Catalog(named | at_hand, images, [*notices, *unusable])


def _bands(path: Path) -> tuple[int, int]:
    """Bands of the cube and channels of the HR-MSI that a checkpoint of ours is for."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    return int(header["n_bands"]), int(header["n_msi"])


def layer_index(layer: int) -> int:
    """The index of a layer that is counted from 1, as in the notebooks; any but 1 … 18 is a `KAError`."""
    return check_index("layer", layer, len(LAYERS), first=1) - 1
