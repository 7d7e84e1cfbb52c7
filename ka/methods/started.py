"""Scenes whose `up` is the image that a network starts from, made on whole scenes before patches are cut."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ka.data.scenes import Scene, SceneSet
from ka.methods.injection import Bicubic, Start


def begun(scene: Scene, start: Start) -> Scene:
    """A scene in memory whose `up` is `start`'s image."""
    return scene if scene.start == start.key else replace(scene, up=start(scene).numpy(), start=start.key)


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

    @property
    def sizes(self) -> Sequence[tuple[int, int]] | None:
        """Heights and widths, where they are known before."""
        return getattr(self.scenes, "sizes", None)

    def __getitem__(self, index: Any) -> Any:
        if index not in self.kept:
            scene = begun(self.scenes[index].load(), self.start)
            if (len(self.kept) + 1) * scene.up.size > self.most:
                return scene
            self.kept[index] = scene
        return self.kept[index]
