"""Scenes whose `up` is the image that a network starts from, made on whole scenes before patches are cut."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ka.data.scenes import Scene, SceneSet
from ka.methods.injection import Bicubic, Start


def started(scenes: SceneSet, start: Start) -> SceneSet:
    """The same scenes with `start`'s image as `up`."""
    return scenes if isinstance(start, Bicubic) else replace(scenes, scenes=StartedScenes(scenes.scenes, start))


@dataclass(frozen=True)
class StartedScenes(Sequence[Scene]):
    """Scenes made when first asked for, and kept as long as they are fewer than `most` values."""

    scenes: Sequence[Scene]
    start: Start
    most: int = 10**9
    kept: dict[int, Scene] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: Any) -> Any:
        if index not in self.kept:
            scene = self.scenes[index].load()
            begun = replace(scene, up=self.start(scene).numpy(), start=self.start.key)
            if (len(self.kept) + 1) * scene.up.size > self.most:
                return begun
            self.kept[index] = begun
        return self.kept[index]
