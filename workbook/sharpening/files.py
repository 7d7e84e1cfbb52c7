"""Pairs of image files, sharpened: one pair, or two folders of them."""

import hashlib
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ka.data import Degradation, Scene, SceneSet, load
from ka.errors import KAError
from ka.evaluation import evaluate
from ka.files import user_path
from ka.images import (
    FORMATS,
    Image,
    check_format,
    divisor,
    images_in,
    read_image,
    read_stored,
    unclipped,
    write_image,
    written_order,
)
from ka.methods import Method
from ka.pairs import DEFAULT, UNTRAINED, Pair, method_of, pair_of
from workbook.sharpening.tiles import TILE, Canvas, Tell, paint
from workbook.training.run import Run

KINDS = re.compile(r"[_-](lr|hsi|lrhsi|lr_?hsi|ms|msi|hrmsi|hr_?msi|rgb|sharp)$", re.IGNORECASE)
"""Endings of names that tell a pair's two images apart."""


@dataclass(frozen=True)
class Request:
    """What is to be sharpened, with what, and how its files are read."""

    lr: str | Path  # the low-resolution cube, or a folder of them
    msi: str | Path  # the sharp image, or a folder of them, with the same names
    model: str | Path = DEFAULT  # a method without training, a run folder, or a weights' file
    out: str | Path | None = None  # the result: a file, or a folder of them; None: beside `lr`
    truth: str | Path | None = None  # the true sharp cube, if it is known
    key: str | None = None  # the variable of `lr` …
    msi_key: str | None = None  # … and of `msi`, where their files have several
    axes: str | None = None  # order of the axes of `lr`, "h w c" or "c h w", where it does not show …
    msi_axes: str | None = None  # … and of `msi`
    max: float | None = None  # what stands for full reflectance in `lr` …
    msi_max: float | None = None  # … and in `msi`; None: as their values let suppose
    blur_size: int = 3  # of a method without training; a model brings its own
    blur_sigma: float = 0.5
    tile: int = TILE  # side of the tiles, in pixels

    def pair(self) -> Pair:
        """The two images, read and held to each other."""
        lr, msi = read_stored(self.lr, self.key), read_stored(self.msi, self.msi_key)
        given = {"axes": self.axes, "msi_axes": self.msi_axes, "maximum": self.max, "msi_maximum": self.msi_max}
        return pair_of(lr, msi, **given)  # type: ignore[arg-type]

    def method(self, pair: Pair) -> Method:
        """What sharpens the pair."""
        run = Run(user_path(self.model))
        model = run.model() if self.model not in UNTRAINED and run.config() is not None else self.model
        return method_of(model, pair, Degradation(pair.ratio, self.blur_size, self.blur_sigma))

    def given(self) -> set[Path]:
        """The files of the images, which no result may replace."""
        paths = [user_path(path).resolve() for path in (self.lr, self.msi, self.truth) if path is not None]
        envi = [path for path in paths if path.suffix.lower() in (".hdr", ".img")]
        return {*paths, *(path.with_suffix(ending) for path in envi for ending in (".hdr", ".img"))}

    @property
    def target(self) -> Path:
        """The file to write: `out`, or `…_sharp` beside `lr`, of its format."""
        if self.out is not None:
            return check_format(self.out)
        lr = user_path(self.lr)
        ending = lr.suffix if lr.suffix.lower() in FORMATS else ".tif"
        return lr.with_name(f"{KINDS.sub('', lr.stem)}_sharp{ending}")


@dataclass(frozen=True, eq=False)
class Sharpened:
    """A pair and what was made of it."""

    pair: Pair
    method: Method
    path: Path  # where it lies
    seconds: float
    truth: np.ndarray | None  # `bands h w` in [0, 1], where it is known …
    metrics: Mapping[str, Any]  # … and then bicubic's and the result's, as those of a run

    @property
    def shape(self) -> tuple[int, int, int]:
        """Bands, height and width of the result."""
        _, height, width = self.pair.msi.values.shape
        return len(self.pair.lr.values), height, width

    def rows(self) -> list[dict[str, str]]:
        """What was read and written, in words."""
        height, width = self.pair.lr.values.shape[1:]
        lines = {
            "low-resolution cube": f"{self.pair.lr.where}: {height}×{width} pixels",
            "sharp image": self.pair.msi.where,
            "found": "; ".join(self.pair.notes),
            "written": f"{self.path}: {' × '.join(map(str, self.shape))} (bands, height, width)",
        }
        return [{"": name, "what": text} for name, text in lines.items()]

    def sharp(self) -> np.ndarray:
        """The result in [0, 1], `bands h w`, read back from its file."""
        image = read_image(self.path, axes=written_order(self.path, self.pair.lr))
        return unclipped(image.values, self.pair.divisors[0])


def sharpen_file(request: Request, tell: Tell | None = None) -> Sharpened:
    """Sharpen one pair into a file, which is whole or absent; called again after a stop, it goes on.

    Raises:
        KAError: images that cannot be read, or do not fit each other or the model; a result that cannot be written.
    """
    target, begun = request.target, time.monotonic()
    if target.resolve() in request.given():
        raise KAError(f"{target}: this is one of the images given; give another out")
    pair = request.pair()
    method = request.method(pair)
    truth = None if request.truth is None else _truth(request, pair)
    order = written_order(target, pair.lr)
    shape = (len(pair.lr.values), *pair.msi.values.shape[1:])
    check_format(target, 4 * math.prod(shape))
    canvas = Canvas(target.with_name(f".{target.name}.parts"), shape, order)
    paint(pair, method, canvas, _described(request), request.tile, tell)
    values = canvas.values()
    sharp = pair.image(np.empty(0, np.float32))
    write_image(target, Image(values, sharp.wavelengths, sharp.place, pair.lr.order))
    metrics: dict[str, Any] = {"methods": {}}
    try:
        if truth is not None:
            made = {"bicubic": pair.scene.up, Path(request.model).name: unclipped(values, pair.divisors[0])}
            metrics = _measure(made, truth, pair)
    finally:
        canvas.remove()
    return Sharpened(pair, method, target, time.monotonic() - begun, truth, metrics)


def tell(done: int, tiles: int, left: float) -> None:
    """Print a line for every tile, where there are several."""
    if tiles > 1:
        print(f"tile {done} of {tiles}, {left / 60:.1f} min left", flush=True)


def example(folder: str | Path) -> Request:
    """The test part of the embedded scene as the files of a pair with its truth, in its own unit (0 … 10000)."""
    scenes = load("indian_pines", "test")
    values = {"lr": scenes[0].lr, "msi": scenes[0].msi, "truth": scenes[0].gt}
    for name, array in values.items():
        nm = None if name == "msi" else scenes.wavelengths
        write_image(Path(folder) / f"{name}.tif", Image((array * 10000).round().astype(np.uint16), nm))
    paths = {name: Path(folder) / f"{name}.tif" for name in values}
    return Request(**paths, out=Path(folder) / "sharp.tif")  # type: ignore[arg-type]


def pairs_in(request: Request) -> list[Request]:
    """One request for every pair of two folders, or the request itself.

    Raises:
        KAError: a folder beside a file, images without partner, or none.
    """
    lr, msi = user_path(request.lr), user_path(request.msi)
    if not lr.is_dir() and not msi.is_dir():
        return [request]
    if not (lr.is_dir() and msi.is_dir()):
        raise KAError(f"{lr} and {msi} are a folder and a file; give two files, or two folders with the same names")
    if request.truth is not None and not user_path(request.truth).is_dir():
        raise KAError(f"truth={request.truth} is no folder as lr and msi are; give one with the same names")
    folders = {"lr": lr, "msi": msi} | ({} if request.truth is None else {"truth": user_path(request.truth)})
    found = {name: _images(folder) for name, folder in folders.items()}
    names = sorted(set.union(*(set(images) for images in found.values())))
    if lonely := [name for name in names if any(name not in images for images in found.values())]:
        listed = ", ".join(lonely[:8])
        raise KAError(
            f"{lr} and {msi}: {listed} is not in both; give each pair one name (…_lr and …_msi may follow it)"
        )
    if not names:
        raise KAError(f"{lr}: no image there; give a folder of .mat, .npy, .npz, .h5, .hdr or .tif files")
    out = lr.with_name(f"{lr.name}_sharp") if request.out is None else user_path(request.out)
    requests = []
    for name in names:
        ending = found["lr"][name].suffix
        target = out / f"{name}{ending if ending.lower() in FORMATS else '.tif'}"
        paths: dict[str, Any] = {key: images[name] for key, images in found.items()}
        requests.append(replace(request, **paths, out=target))
    return requests


def _images(folder: Path) -> dict[str, Path]:
    """Image files of a folder by the name of their pair; ENVI by its header."""
    images: dict[str, Path] = {}
    for path in images_in(folder, pictures=True):
        name = KINDS.sub("", path.stem)
        if name in images:
            raise KAError(f"{folder}: {images[name].name} and {path.name} are both {name}; move one away")
        images[name] = path
    return images


def _truth(request: Request, pair: Pair) -> np.ndarray:
    """The true sharp cube in the unit of `lr` divided to [0, 1], nothing clipped."""
    assert request.truth is not None
    stored, shape = read_stored(request.truth), (len(pair.lr.values), *pair.msi.values.shape[1:])
    fitting = [order for order in (stored.order, "h w c", "c h w") if order and _shape(stored.array, order) == shape]
    if not fitting:
        raise KAError(
            f"{stored.where}: {stored.array.shape} is not the truth of {shape} (bands h w); give another, or none"
        )
    image = stored.image(fitting[0])
    divisor([image], None)  # refuses what is not finite
    low, high = float(np.mean(pair.lr.values)), float(np.mean(image.values))
    if not 0.5 * low <= high <= 2 * low:
        raise KAError(
            f"{stored.where}: a mean of {high:g} where lr has {low:g}; give the truth in the unit of lr, or none"
        )
    return unclipped(image.values, pair.divisors[0])


def _shape(array: np.ndarray, order: str) -> tuple[int, ...]:
    return (array.shape[2], *array.shape[:2]) if order == "h w c" and array.ndim == 3 else array.shape


def _measure(made: Mapping[str, np.ndarray], truth: np.ndarray, pair: Pair) -> dict[str, Any]:
    """Every metric of some images, as a run's `metrics()` hold those of its methods."""
    scene = replace(pair.scene, gt=truth)
    scenes = SceneSet("pair", "test", Degradation(pair.ratio), None, (0, 0, 0), (), [scene])
    tensors = {name: torch.from_numpy(np.ascontiguousarray(image)) for name, image in made.items()}
    return {"methods": {name: evaluate(partial(_given, x), scenes).to_dict() for name, x in tensors.items()}}


def _given(image: Tensor, scene: Scene) -> Tensor:
    """An image that is made already, as a method."""
    return image


def _described(request: Request) -> str:
    """The method, so that another one (or other weights under the same name) does not go on with half its tiles."""
    if request.model in UNTRAINED:
        return f"{request.model} {request.blur_size} {request.blur_sigma}"
    path = user_path(request.model)
    return hashlib.sha256((path / "best.safetensors" if path.is_dir() else path).read_bytes()).hexdigest()
