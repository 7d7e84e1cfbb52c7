"""A pair sharpened tile by tile into a file on disk, so that memory is bounded and what was stopped goes on."""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from ka.data.simulate import degrade
from ka.errors import KAError
from ka.files import write_json
from ka.images import scaled
from ka.inference import GRID, Network, reach
from ka.methods import Method
from ka.methods.consistency import dies_away
from ka.methods.injection import Bicubic, LinearInjection, LocalInjection
from ka.methods.local import own_matrix, with_roots
from ka.pairs import Pair, made_by

TILE = 512
CONSISTENT = 16  # low-resolution pixels over which a projection onto lr dies away, unless the blur is wide

Tell = Callable[[int, int, float], None]
"""Called after every tile with how many are done, how many there are, and about the seconds left."""


@dataclass(frozen=True)
class Canvas:
    """The image that is being made, `order` float32 in a file, and which of its tiles are done."""

    folder: Path  # beside the result; gone when that is whole
    shape: tuple[int, int, int]  # bands, height, width
    order: str  # of the axes in the file

    def begin(self, work: dict[str, Any]) -> set[int]:
        """Tiles of the same work that a former call has done; anything else that lies there is thrown away."""
        described = self.folder / "work.json"
        try:
            if json.loads(described.read_text()) == work and self._file.is_file():
                *done, _ = (self.folder / "tiles.txt").read_text().split("\n")  # the last may be half a line
                return {int(line) for line in done}
        except (OSError, ValueError):
            pass
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            sides = dict(zip("chw", self.shape, strict=True))
            np.lib.format.open_memmap(self._file, "w+", np.float32, tuple(sides[a] for a in self.order.split()))
            if hasattr(os, "posix_fallocate"):  # or a disk that fills up later would kill the process
                with open(self._file, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, self._file.stat().st_size)
        except OSError as error:
            reason = error.strerror or error
            raise KAError(
                f"{self.folder}: could not be written ({reason}); free some space, or give another out"
            ) from error
        (self.folder / "tiles.txt").touch()
        write_json(described, work)
        return set()

    @property
    def _file(self) -> Path:
        return self.folder / "sharp.npy"

    def values(self) -> np.ndarray:
        """The image as `c h w`, mapped from the file."""
        return rearrange(np.load(self._file, mmap_mode="r+"), f"{self.order} -> c h w")

    def put(self, index: int, box: tuple[slice, slice], tile: np.ndarray) -> None:
        """Write a tile, and note it when it is on disk."""
        try:
            held = np.load(self._file, mmap_mode="r+")
            rearrange(held, f"{self.order} -> c h w")[:, box[0], box[1]] = tile
            held.flush()
            with open(self.folder / "tiles.txt", "a") as done:
                done.write(f"{index}\n")
        except OSError as error:
            cure = "free some space and give the same command again"
            raise KAError(f"{self.folder}: could not be written ({error.strerror or error}); {cure}") from error

    def remove(self) -> None:
        (self.folder / "work.json").unlink(missing_ok=True)  # what a kill leaves is not gone on with
        shutil.rmtree(self.folder, ignore_errors=True)


def paint(pair: Pair, method: Method, canvas: Canvas, name: str, tile: int = TILE, tell: Tell | None = None) -> None:
    """Sharpen a pair into `canvas`, in the unit of its lr, from where a former call of the same work was stopped.

    Args:
        pair: the images.
        method: what sharpens; tiles overlap by as far as it looks, so that they equal one pass.
        canvas: where to.
        name: of the method: another name, images or tile begins anew.
        tile: side of a tile in pixels; a method whose reach is not known sees the whole image.
        tell: hears of the progress.
    """
    size, method = pair.msi.values.shape[1:], with_matrix(method, pair)
    margin = _margin(method, pair)
    boxes = list(_boxes(size, pair.ratio, None if margin is None else tile))
    done = canvas.begin({"method": name, "tile": tile, "images": _digest(pair)})
    begun, first = time.monotonic(), len(done)
    for index, (top, left, height, width) in enumerate(boxes):
        if index in done:
            continue
        m = margin or 0
        y0, x0 = max(0, top - m), max(0, left - m)
        h, w = (min(n, stop + m) - start for n, stop, start in
                zip(size, (top + height, left + width), (y0, x0), strict=True))  # fmt: skip
        sharp = made_by(method, pair.part(y0, x0, h, w))
        sharp = sharp[:, top - y0 : top - y0 + height, left - x0 : left - x0 + width]
        canvas.put(index, (slice(top, top + height), slice(left, left + width)), pair.image(sharp).values)
        done.add(index)
        if tell is not None:
            each = (time.monotonic() - begun) / (len(done) - first)
            tell(len(done), len(boxes), each * (len(boxes) - len(done)))


def with_matrix(method: Method, pair: Pair) -> Method:
    """Local injection with the matrix of the whole scene, which a tile does not see; other methods as they are."""
    if isinstance(method, LocalInjection) and method.matrix is None:
        lr, msi = (scaled(image.values, by) for image, by in zip((pair.lr, pair.msi), pair.divisors, strict=True))
        low = degrade(with_roots(msi) if method.roots else msi, method.degradation)
        return replace(method, matrix=own_matrix(lr, low))
    return method


def _margin(method: Method, pair: Pair) -> int | None:
    """Pixels that a method looks beyond a tile, on the grid of tiles; None where it has to see the whole image."""
    ratio, (h, w) = pair.ratio, pair.msi.values.shape[1:]
    if isinstance(method, Network):
        row = method.model.row
        if row.position_bound(h, w):
            return None
        pixels = reach(row, ratio) + _start_margin(method.model.start, ratio)
        consistency = method.model.consistency
        if consistency is not None and consistency.kind != "spectral":
            if not dies_away(consistency.degradation, CONSISTENT):
                return None
            pixels += CONSISTENT * ratio
    elif isinstance(method, Bicubic | LinearInjection | LocalInjection):
        pixels = _start_margin(method, ratio)
    else:
        return None
    grid = math.lcm(GRID, ratio)
    return math.ceil(pixels / grid) * grid


def _start_margin(start: Bicubic | LinearInjection | LocalInjection, ratio: int) -> int:
    """Pixels that a start looks: a cubic's support, the blur, and local injection's window and 3×3 means."""
    blur = 0 if isinstance(start, Bicubic) else start.degradation.blur_size // 2
    return (3 + (start.half_side + 1 if isinstance(start, LocalInjection) else 0)) * ratio + blur


def _boxes(size: tuple[int, ...], ratio: int, tile: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, height and width of the tiles; all of the image for None, or where two would be little more."""
    h, w = size
    grid = math.lcm(GRID, ratio)
    step = max(h, w) if tile is None or max(h, w) <= 1.5 * tile else math.ceil(tile / grid) * grid
    for top in range(0, h, step):
        for left in range(0, w, step):
            yield top, left, min(step, h - top), min(step, w - left)


def _digest(pair: Pair) -> str:
    digest = hashlib.sha256(repr((pair.lr.values.shape, pair.msi.values.shape, pair.divisors)).encode())
    for image in (pair.lr, pair.msi):
        digest.update(np.ascontiguousarray(image.values).data)
    return digest.hexdigest()
