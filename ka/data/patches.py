"""Patches cut out of the scenes of a set, on the host or on a GPU."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ka.data.scenes import ARRAYS, Scene, SceneSet
from ka.data.simulate import Degradation
from ka.errors import KAError, is_whole

SHARP, LOW = ("gt", "up", "msi"), ("lr",)
"""The arrays at the truth's resolution, and those at the low one."""

Seed = int | Sequence[int] | None
Draw = tuple[Sequence[int], Seed]
"""A batch: which patches, and the seed of their flips and rotations (None: as they are)."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Square patches of the scenes of a set, cut when asked for; scene by scene, row by row.

    On CAVE, 64×64 pixels at stride 32 are 14×14 a scene, 3,920 for training: the published file's count. Like it,
    a row of patches stops before the one that would end on the border (0, 32, …, 416, without 448).

    Raises:
        KAError: a size or stride that is no such multiple, or a size above the scenes'.
    """

    scene_set: SceneSet  # `up` is made on whole scenes, before the cut
    size: int = 64  # width and height in pixels of the truth, a multiple of the ratio
    stride: int = 32  # step between patches in pixels, a multiple of the ratio

    def __post_init__(self) -> None:
        ratio = self.scene_set.ratio
        for name, value in (("size", self.size), ("stride", self.stride)):
            if not is_whole(value) or value <= 0 or value % ratio:
                raise KAError(f"patch {name}: {value!r} is not a positive multiple of the ratio {ratio}; use one")
        for i, (h, w) in enumerate(self.scene_set.sizes):
            if self.size > min(h, w):
                fault = f"patch size: {self.size} does not fit the {h}×{w} pixels of {self.scene_set[i].name}"
                raise KAError(f"{fault}; use at most {min(h, w) // ratio * ratio}")

    @property
    def degradation(self) -> Degradation:
        """How their `lr` was simulated."""
        return self.scene_set.degradation

    @cached_property
    def grids(self) -> Int[np.ndarray, "scenes 2"]:
        """Patches of each scene, down and across."""
        return np.maximum(1, -((self.size - np.array(self.scene_set.sizes)) // self.stride))

    @cached_property
    def ends(self) -> Int[np.ndarray, " scenes"]:
        """How many patches there are up to the end of each scene."""
        return self.grids.prod(axis=1).cumsum()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def places(self, indices: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n 3"]:
        """Scene, row and column (of its grid) of patches; an `IndexError` if there is no such patch."""
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"patches {indices.min()} to {indices.max()} of {len(self)}")
        scene = np.searchsorted(self.ends, indices, side="right")
        first = np.concatenate([[0], self.ends[:-1]])[scene]
        return np.stack([scene, *np.divmod(indices - first, self.grids[scene, 1])], axis=-1)

    def __getitem__(self, index: int) -> Scene:
        scene, row, col = (int(place) for place in self.places(np.asarray(index)))
        return self.scene_set[scene].crop(row * self.stride, col * self.stride, self.size, self.size)

    def batch(self, indices: Sequence[int], seed: Seed = None) -> dict[str, Float[Tensor, "b c h w"]]:
        """Stack patches as float32 tensors under the keys gt, up, lr and msi.

        Args:
            indices: which patches.
            seed: for numpy's `default_rng`, which draws one of the eight flips and rotations for each patch, the
                same for all its arrays; None leaves them as they are. Flips and rotations move the grid of kept
                pixels: offset 2 of 0…3 becomes 1, so `lr` and `up` lie half a pixel to the other side of `gt`.
        """
        patches = [self[i] for i in indices]
        pairs = list(zip(patches, _turns(len(patches), seed).tolist(), strict=True))
        stacks = {key: np.stack([_turn(getattr(patch, key), turn) for patch, turn in pairs]) for key in ARRAYS}
        return {key: torch.from_numpy(stack) for key, stack in stacks.items()}

    def batches(self, draws: Sequence[Draw]) -> Iterator[dict[str, Float[Tensor, "b c h w"]]]:
        """One `batch` after another, each cut when it is asked for."""
        return (self.batch(indices, seed) for indices, seed in draws)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays of all scenes take in float32: what `to` needs."""
        return 4 * sum(math.prod(getattr(scene, key).shape) for scene in self.scene_set for key in ARRAYS)

    def to(self, device: torch.device) -> "DevicePatches":
        """The same patches, cut on a device: the arrays of all scenes (`nbytes`) are read and moved there now."""
        ratio, scenes = self.scene_set.ratio, list(self.scene_set)
        sharp, low = (_Stack.empty(scenes, keys, self.size // r, device) for keys, r in ((SHARP, 1), (LOW, ratio)))
        for i, scene in enumerate(scenes):
            loaded = scene.load()
            sharp.put(i, loaded)
            low.put(i, loaded)
        return DevicePatches(self, sharp, low)


@dataclass(frozen=True, eq=False)
class _Stack:
    """Arrays of one resolution of all scenes, on a device; the pixels of one scene after those of another."""

    values: Float[Tensor, "channels pixels"]  # the arrays of a scene along `channels`
    channels: Mapping[str, int]  # how many of each array
    first: tuple[int, ...]  # pixel of each scene …
    starts: Int[Tensor, " scenes"]  # … also on the device, where nothing waits for the host
    widths: Int[Tensor, " scenes"]
    offsets: Int[Tensor, "turns size size 2"]  # row and column of a patch's pixels in each of the eight symmetries

    @classmethod
    def empty(cls, scenes: Sequence[Scene], keys: Sequence[str], size: int, device: torch.device) -> "_Stack":
        channels = {key: getattr(scenes[0], key).shape[0] for key in keys}
        sides = np.array([getattr(scene, keys[0]).shape[1:] for scene in scenes])
        ends = sides.prod(axis=1).cumsum()
        values = torch.empty((sum(channels.values()), int(ends[-1])), dtype=torch.float32, device=device)
        corner = np.indices((size, size))
        turned = np.stack([_turn(corner, turn) for turn in range(8)])
        first = np.concatenate([[0], ends[:-1]])
        starts, widths, offsets = (
            torch.from_numpy(np.ascontiguousarray(x)).to(device)
            for x in (first, sides[:, 1], np.moveaxis(turned, 1, -1))
        )
        return cls(values, channels, tuple(first.tolist()), starts, widths, offsets)

    def put(self, i: int, scene: Scene) -> None:
        arrays = np.concatenate([getattr(scene, key) for key in self.channels])
        self.values[:, self.first[i] : self.first[i] + arrays[0].size] = torch.from_numpy(arrays).flatten(1)

    def cut(self, planned: Int[Tensor, "b 4"], step: int) -> dict[str, Float[Tensor, "b c h w"]]:
        """Patches `step` pixels apart; their cut, flip or rotation and stacking are one gather of pixels."""
        scene, row, col, turn = planned.unbind(-1)
        width, offset = self.widths[scene][:, None, None], self.offsets[turn]
        rows, columns = step * row[:, None, None] + offset[..., 0], step * col[:, None, None] + offset[..., 1]
        pixel = self.starts[scene][:, None, None] + rows * width + columns
        channel = torch.arange(self.values.shape[0], device=self.values.device)
        batch = self.values[channel[:, None, None], pixel[:, None]]
        return dict(zip(self.channels, batch.split(list(self.channels.values()), dim=1), strict=True))


@dataclass(frozen=True, eq=False)
class DevicePatches:
    """Patches cut on a device from scenes held there, with the values and order of `Patches`; made by `Patches.to`."""

    patches: Patches
    sharp: _Stack
    low: _Stack

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def degradation(self) -> Degradation:
        """As of `Patches`."""
        return self.patches.degradation

    def plan(self, draws: Sequence[Draw]) -> Int[Tensor, "draws b 4"]:
        """Scene, row and column of the grid, and symmetry of every patch, on the device; draws are of equal length."""
        places = self.patches.places(np.array([indices for indices, _ in draws], dtype=np.int64))
        turns = np.stack([_turns(len(indices), seed) for indices, seed in draws])
        return torch.from_numpy(np.concatenate([places, turns[..., None]], axis=-1)).to(self.sharp.values.device)

    def cut(self, planned: Int[Tensor, "b 4"]) -> dict[str, Float[Tensor, "b c h w"]]:
        """A batch of a plan, under the keys gt, up, msi and lr; nothing waits for the device."""
        stride = self.patches.stride
        return self.sharp.cut(planned, stride) | self.low.cut(planned, stride // self.patches.scene_set.ratio)

    def batch(self, indices: Sequence[int], seed: Seed = None) -> dict[str, Float[Tensor, "b c h w"]]:
        """As `Patches.batch`."""
        return self.cut(self.plan([(indices, seed)])[0])

    def batches(self, draws: Sequence[Draw]) -> Iterator[dict[str, Float[Tensor, "b c h w"]]]:
        """As `Patches.batches`; all are planned now, at once, on the host."""
        return map(self.cut, self.plan(draws).unbind())


def _turns(n: int, seed: Seed) -> Int[np.ndarray, " n"]:
    """Symmetries of the patches of a batch."""
    return np.zeros(n, dtype=np.int64) if seed is None else np.random.default_rng(seed).integers(8, size=n)


def _turn(x: Float[np.ndarray, "c h w"], turn: int) -> Float[np.ndarray, "c h w"]:
    """One of the square's eight symmetries; 0 is none."""
    x = np.rot90(x, turn % 4, axes=(1, 2))
    return x[:, :, ::-1] if turn >= 4 else x
