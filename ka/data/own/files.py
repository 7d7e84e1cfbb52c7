"""Own scenes: cubes in the field's formats, of any size, split by name, by fraction, or cut into parts."""

import glob
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ka.data.own.responses import Response, response
from ka.data.scenes import KeptScenes, Scene, SceneSet, choose, display_bands, observe
from ka.data.simulate import Degradation
from ka.errors import KAError
from ka.files import user_path
from ka.images import ENDINGS, divisor, images_in, in_nm, read_image, scaled

log = logging.getLogger("ka")

SMALLEST = 16  # pixels: a part below it has no room for the windows of metrics
FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SAME_NM = 1.0  # as far may two files' wavelengths of a band be apart: each may be rounded to 0.001 µm
Box = tuple[int, int, int, int]  # first and end row, first and end column


@dataclass(frozen=True)
class Reading:
    """How own files are read and split; None is found, and said where it is a guess."""

    key: str | None = None  # the variable that holds the cube
    axes: str | None = None  # order of its axes, "h w c" or "c h w" (c: bands)
    max: float | None = None  # what stands for full reflectance
    wavelengths: str | None = None  # of the bands in nm: first and last, or all, comma-separated; None: as files say
    srf: str | None = None  # the response that makes the HR-MSI: a built-in sensor or a file (`ka.data.own.responses`)
    val_scenes: str | None = None  # names of validation scenes, comma-separated …
    test_scenes: str | None = None  # … and of test scenes; None: by share
    val_share: float = 0.1  # part of the scenes (of one scene: of its longer side) that validates …
    test_share: float = 0.2  # … and that tests

    def __post_init__(self) -> None:
        if not (self.val_share > 0 and self.test_share > 0 and self.val_share + self.test_share < 1):
            raise KAError(
                f"val_share={self.val_share} and test_share={self.test_share} leave nothing to train on or measure; "
                "give parts above 0 that add up to less than 1"
            )


@dataclass(frozen=True, eq=False)
class Survey:
    """What all scenes of a set share, found in the first of them."""

    reading: Reading
    first: Path
    n_bands: int
    divisor: float
    wavelengths: Float[np.ndarray, " bands"] | None
    size: tuple[int, int]  # of the first scene

    def read(self, path: Path) -> Float[np.ndarray, "bands h w"]:
        """The cube of a file in [0, 1]; a `KAError` if it is not like the first one."""
        image = read_image(path, self.reading.key, self.reading.axes)
        if len(image.values) != self.n_bands:
            raise KAError(f"{path}: {len(image.values)} bands, {self.first.name} has {self.n_bands}; leave one out")
        self._check_wavelengths(path, image.wavelengths)
        if divisor([image], self.reading.max) > 1.05 * self.divisor:
            raise KAError(
                f"{path}: values up to {float(image.values.max()):g}, and {self.first.name} lets suppose that "
                f"{self.divisor:g} is full reflectance; say what is (max=…)"
            )
        return scaled(image.values, self.divisor)

    def _check_wavelengths(self, path: Path, nm: Float[np.ndarray, " bands"] | None) -> None:
        """Hold what a file says to the first one's, which the response is made for; what the user gives counts more."""
        if self.reading.wavelengths is not None or self.wavelengths is None or nm is None:
            return
        band = int(np.argmax(np.abs(nm - self.wavelengths)))
        if abs(nm[band] - self.wavelengths[band]) > SAME_NM:
            raise KAError(
                f"{path}: its band {band} lies at {nm[band]:g} nm, that of {self.first.name} at "
                f"{self.wavelengths[band]:g} nm; reorder or resample its bands, leave it out, or give wavelengths=… if "
                "what the files say is wrong"
            )


def load_files(
    split: str, root: str | Path | Sequence[Path], degradation: Degradation, scenes: Sequence[str] | None,
    hold_out_val: bool, reading: Reading, name: str = "files",
) -> SceneSet:  # fmt: skip
    """One split of the cubes in a folder or a file; see `ka.data.load`."""
    files = find_files(root)
    first = next(iter(files.values()))
    where = root if isinstance(root, str | Path) else first.parent
    survey = _survey(first, _stamp(first), reading)
    parts = _split(files, _top(root, files), survey, degradation.ratio)
    if not hold_out_val and split == "train":
        parts["train"] |= {name: part for name, part in parts["val"].items() if name not in parts["train"]}
    if not parts[split]:
        raise KAError(
            f"{where}: no scene is left for {split}; give more scenes, or name them (val_scenes, test_scenes)"
        )
    chosen = choose(list(parts[split]), scenes, f"{where}'s {split} split")
    seen = _response(reading, survey)
    held = KeptScenes(tuple(chosen), partial(_read, parts[split], survey, seen.srf, degradation))
    display = display_bands(survey.wavelengths, survey.n_bands)
    return SceneSet(name, split, degradation, survey.wavelengths, display, seen.names, held, seen.srf, survey.divisor)


def _read(
    parts: Mapping[str, tuple[Path, Box | None]], survey: Survey, srf: np.ndarray, degradation: Degradation, name: str
) -> Scene:
    """A scene, or the part of it that its box says, down to multiples of the ratio."""
    path, box = parts[name]
    top, bottom, left, right = box or (0, None, 0, None)
    gt = survey.read(path)[:, top:bottom, left:right]
    h, w = (n // degradation.ratio * degradation.ratio for n in gt.shape[1:])
    return observe(name, np.ascontiguousarray(gt[:, :h, :w]), srf, degradation)


def find_files(root: str | Path | Sequence[Path]) -> dict[str, Path]:
    """Image files by scene name: of a folder (with its folders train, val, test), one file, or several: a sequence, or
    text with commas.

    Raises:
        KAError: nothing there, or two scenes of one name.
    """
    paths = _listed(root) if isinstance(root, str | Path) else root
    if lost := [file for file in paths if not os.path.isfile(file)]:
        raise KAError(f"{lost[0]}: no such file or folder; give a folder of cubes, or files separated by commas")
    files: dict[str, Path] = {}
    for file in paths:
        if file.stem in files:
            raise KAError(f"{files[file.stem]} and {file} are two scenes of one name; rename or remove one")
        files[file.stem] = file
    if not files:
        raise KAError(f"{root}: no image there; give a folder of {', '.join(ENDINGS)} files")
    return files


def _listed(root: str | Path) -> list[Path]:
    """The images of a folder and of its folders train, val, test; or the file, or the files with commas, as given."""
    path = user_path(root)
    if os.path.isdir(path):  # os.path, as pathlib stops at text that is too long for a name
        inner = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
        folders = [path, *(folder for names in FOLDERS.values() for folder in inner if folder.name.lower() in names)]
        return [file for folder in folders for file in images_in(folder)]
    return [path] if os.path.exists(path) else [user_path(part.strip()) for part in str(root).split(",")]


def _top(root: str | Path | Sequence[Path], files: Mapping[str, Path]) -> Path | None:
    """The folder that is itself no train, val or test, whatever its name; None for files of several folders."""
    if isinstance(root, str | Path) and os.path.isdir(user_path(root)):
        return user_path(root)
    parents = {path.parent for path in files.values()}
    return parents.pop() if len(parents) == 1 else None


def _stamp(path: Path) -> tuple[tuple[int, int, int], ...]:
    """What tells a rewritten file: of an ENVI header also what lies beside it."""
    beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}*")) if path.suffix.lower() == ".hdr" else [path]
    return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in map(Path.stat, beside))


@lru_cache(maxsize=8)
def _survey(first: Path, stamp: tuple[tuple[int, int, int], ...], reading: Reading) -> Survey:
    """What the first file says; `stamp` is there to read a rewritten one anew."""
    image = read_image(first, reading.key, reading.axes)
    by = divisor([image], reading.max)
    bands, h, w = image.values.shape
    guess = "; give max=… if that is not full reflectance" if reading.max is None else ""
    unit = "" if by == 1 else f", values are divided by {by:g}{guess}"
    log.warning("%s: %d bands of %d×%d pixels%s", first.name, bands, h, w, unit)  # always: a wrong order of axes shows
    nm = image.wavelengths if reading.wavelengths is None else given_wavelengths(reading.wavelengths, bands)
    return Survey(reading, first, bands, by, nm, (h, w))


def given_wavelengths(given: str, n: int) -> Float[np.ndarray, " bands"]:
    """What `Reading.wavelengths` says of `n` bands, in nm; a `KAError` if it is not that."""
    try:
        values = np.array([float(text) for text in given.split(",")])
    except ValueError:
        values = np.empty(0)
    nm = in_nm(np.linspace(values[0], values[1], n) if len(values) == 2 else values)
    if nm is None or len(nm) != n:
        raise KAError(f"wavelengths={given!r} are not those of {n} bands; give first and last in nm, '430,860', or all")
    return nm


def _response(reading: Reading, survey: Survey) -> Response:
    return response(reading.srf, survey.wavelengths, survey.n_bands)


def _split(
    files: Mapping[str, Path], top: Path | None, survey: Survey, ratio: int
) -> dict[str, dict[str, tuple[Path, Box | None]]]:
    """The parts of each split: by names, as folders say, by share, or cut out of one or two scenes."""
    reading = survey.reading
    val, test = (_named(text, files) for text in (reading.val_scenes, reading.test_scenes))
    if both := set(val) & set(test):
        raise KAError(f"{min(both)} is to validate and to test; choose one of them")
    lying = {split: [name for name, path in files.items() if path.parent != top and path.parent.name.lower() in names]
             for split, names in FOLDERS.items()}  # fmt: skip
    if any(lying.values()):
        chosen = _as_folders_say(lying, files, val, test)
    elif not test and len(files) < 3:
        if val:
            raise KAError(
                f"val_scenes={reading.val_scenes!r} of {len(files)} leaves no scene to train or to test; leave it out "
                "(each is cut in three then), or give three scenes and more"
            )
        return _cut(files, survey, ratio)
    else:
        test = test or _some([name for name in files if name not in val], reading.test_share)
        rest = [name for name in files if name not in val + test]
        if not val and len(rest) > 1:
            val = _some(rest, reading.val_share)
        chosen = {"train": [name for name in rest if name not in val], "val": val, "test": test}
    return {split: {name: (files[name], None) for name in chosen[split]} for split in FOLDERS}


def _as_folders_say(
    lying: Mapping[str, Sequence[str]], files: Mapping[str, Path], val: Sequence[str], test: Sequence[str]
) -> dict[str, Sequence[str]]:
    """Scenes of each split where folders train, val, test hold them: names count more, but what lies in val or test
    does not train for that.
    """
    there = ", ".join(split for split in lying if lying[split])
    used = {*val, *test, *lying["train"], *lying["val"], *lying["test"]}
    if stray := [name for name in files if name not in used]:
        raise KAError(
            f"{files[stray[0]]} lies beside folders that say the split ({there}); move it into one of train, val and "
            "test, or all cubes into one folder"
        )
    if lacking := [split for split, named in (("train", ()), ("test", test)) if not lying[split] and not named]:
        raise KAError(
            f"folders say the split ({there}), and none holds what is to {' and to '.join(lacking)}; add a folder "
            f"{' and '.join(lacking)}, or move all cubes into one folder, to be split by names or shares"
        )
    return {
        "train": [name for name in lying["train"] if name not in (*val, *test)],
        "val": val or [name for name in lying["val"] if name not in test],
        "test": test or [name for name in lying["test"] if name not in val],
    }


def _named(text: str | None, files: Mapping[str, Path]) -> list[str]:
    return choose(list(files), text, "the folder") if text else []


def _some(names: Sequence[str], share: float) -> list[str]:
    """A share of the names, at least one, the same wherever they lie: those whose digests are smallest."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return sorted(ordered[: max(1, round(share * len(names)))])


def _cut(files: Mapping[str, Path], survey: Survey, ratio: int) -> dict[str, dict[str, tuple[Path, Box | None]]]:
    """Each scene in three along its longer side: train, val, test. They share no pixel; each is simulated alone."""
    parts: dict[str, dict[str, tuple[Path, Box | None]]] = {split: {} for split in FOLDERS}
    for name, path in files.items():
        h, w = survey.size if path == survey.first else survey.read(path).shape[1:]
        sides = _sides(max(h, w), survey.reading, ratio)
        for split, (start, end) in sides.items():
            box = (start, end, 0, w) if h >= w else (0, h, start, end)
            if min(box[1] - box[0], box[3] - box[2]) < SMALLEST:
                raise KAError(f"{path}: {h}×{w} pixels are too few to be cut into three parts of {SMALLEST} and more; "
                              "give more scenes, or other shares")  # fmt: skip
            parts[split][f"{name}_{split}"] = (path, box)
    return parts


def _sides(n: int, reading: Reading, ratio: int) -> Mapping[str, tuple[int, int]]:
    def down(x: float) -> int:
        return int(x) // ratio * ratio

    first = down(n * (1 - reading.val_share - reading.test_share))
    second = first + max(down(n * reading.val_share), -(-SMALLEST // ratio) * ratio)
    return {"train": (0, first), "val": (first, second), "test": (second, down(n))}
