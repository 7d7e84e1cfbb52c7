"""The scenes of a run: training patches, validation scenes, test scenes."""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ka import data
from ka.data import Degradation, Patches, Scene, SceneSet
from ka.data.h5 import file_of, held_degradation
from ka.data.own.files import Reading
from ka.errors import KAError
from ka.files import user_path
from ka.methods import Method
from ka.methods.consistency import Consistency
from ka.methods.injection import Bicubic, LinearInjection, LocalInjection, Start, fit_matrix
from ka.methods.started import started
from workbook.training.config import Config


@dataclass(frozen=True)
class Data:
    """What a run sees; what is made of all training scenes is made when it is first asked for."""

    config: Config
    train: SceneSet  # as simulated, like all three
    held_out: SceneSet  # whole validation scenes; empty where the protocol holds none out
    test: SceneSet

    @cached_property
    def untrained(self) -> dict[str, Method]:
        """The methods without training, fitted on the training scenes."""
        linear, config = LinearInjection.fit(self.train), self.config
        matrix = fit_matrix(self.train, roots=True) if config.roots else linear.matrix
        local = LocalInjection(linear.degradation, matrix, config.radius, config.ridge, config.roots)
        attentive = replace(local, radius=None, attend=True)
        methods: dict[str, Method] = {"bicubic": Bicubic(), "linear injection": linear}
        return methods | {"local injection": local, "attentive injection": attentive}

    @cached_property
    def start(self) -> Start:
        """What the network starts from."""
        if self.config.start == "bicubic":
            return Bicubic()
        start = self.untrained[f"{self.config.start} injection"]
        assert isinstance(start, LinearInjection | LocalInjection)
        return start

    @cached_property
    def consistency(self) -> Consistency | None:
        """What the network's images of whole scenes are made to agree with."""
        if self.config.consistency == "none":
            return None
        if self.train.srf is None:
            raise KAError(
                f"consistency={self.config.consistency!r} needs the response that made the HR-MSI, which "
                f"{self.config.dataset} does not state; use consistency='none'"
            )
        return Consistency(self.train.degradation, self.train.srf, self.config.consistency)

    @cached_property
    def patches(self) -> Patches:
        """Training patches, cut out of whole scenes that the start has sharpened."""
        return Patches(started(self.train, self.start), self.config.patch, self.config.stride)

    @cached_property
    def val(self) -> SceneSet:
        """The centres of the held-out scenes, in memory, with the start's image as `up`."""
        scenes = [centre(scene, self.config.eval_size) for scene in started(self.held_out, self.start)]
        return replace(self.held_out, scenes=scenes)

    @cached_property
    def test_digest(self) -> str:
        """SHA-256 over names and values (gt, up, msi) of the test scenes: do two runs tell of the same?"""
        digest = hashlib.sha256()
        for scene in self.test:
            loaded = scene.load()
            for values in (loaded.gt, loaded.up, loaded.msi):
                digest.update(f"{scene.name} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def load_data(config: Config) -> Data:
    """The scenes of a configuration; what cannot work is found here as far as it shows without reading every pixel.

    Raises:
        KAError: missing or broken data; patches that do not fit; a batch larger than the training set; a consistency
            without a known response.
    """
    root, hold_out = config.data_root, config.hold_out
    if config.dataset == "h5" and root is not None and Path(root).is_file():
        cure = "give the folder that holds train_cave(with_up)x4.h5, validation_… and test_…"
        raise KAError(f"data_root={root} is one file, and a run trains, validates and tests on different ones; {cure}")
    degradation, reading = simulation(config), Reading(**{f.name: getattr(config, f.name) for f in fields(Reading)})

    def part(split: str, names: str | None = None) -> SceneSet:
        given = {"scenes": names, "hold_out_val": hold_out, "reading": reading}
        return data.load(config.dataset, split, root, degradation, **given)  # type: ignore[arg-type]

    train = part("train", config.train_scenes or None)
    patches = len(Patches(train, config.patch, config.stride))
    if config.batch > patches:
        raise KAError(f"batch={config.batch} is more than the {patches} training patches; choose a smaller one")
    held_out = part("val") if hold_out else replace(train, split="val", scenes=[])
    scenes = Data(config, train, held_out, part("test"))
    _ = scenes.consistency  # refused now, not after the scenes were read
    return scenes


def simulation(config: Config) -> Degradation:
    """How a run's LR-HSI come from the truth: as its configuration says, else as prepared files do."""
    given = {name: getattr(config, name) for name in ("blur_size", "blur_sigma", "offset")}
    asked = {name: value for name, value in given.items() if value is not None}
    held = {}
    if config.dataset == "h5" and config.data_root is not None:
        held = held_degradation(file_of("train", user_path(config.data_root), config.ratio))
    return Degradation(config.ratio, **(held | asked))


def data_at(config: Config, root: str | Path) -> Data:
    """The scenes of a run's configuration, where they lie here (the embedded scene: nowhere); errors as `load_data`."""
    return load_data(replace(config, data_root=None if config.dataset == "indian_pines" else str(root)))


def centre(scene: Scene, size: int | None) -> Scene:
    """The central part of a scene, on the low-resolution grid; all of it for None or a size that it does not have."""
    (h, w), r = scene.gt.shape[-2:], scene.ratio
    if size is None or size >= max(h, w):
        return scene.load()
    height, width = (min(size, side) // r * r for side in (h, w))
    return scene.crop((h - height) // 2 // r * r, (w - width) // 2 // r * r, height, width)
