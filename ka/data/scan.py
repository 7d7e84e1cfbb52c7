"""What whole sets of scenes are looked through for before they are used: what is broken, what holds no signal."""

import hashlib
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from ka.data.scenes import ARRAYS, SceneSet

log = logging.getLogger("ka")


def scan(*sets: SceneSet) -> None:
    """Read every scene once, and warn of bands without signal: those whose truth is one value everywhere.

    Raises:
        KAError: missing or broken data (NaN, say), naming the file, and of an HDF5 file the field and row.
    """
    told: dict[str, list[str]] = {}
    for scenes in sets:
        flat: dict[str, set[int]] = {}
        for scene in scenes:
            gt = scene.load().gt
            flat[scene.name] = set(np.flatnonzero(gt.max((1, 2)) == gt.min((1, 2))).tolist())
        if any(flat.values()):
            told.setdefault(_where(flat, scenes.n_bands), []).append(scenes.split)
    if told:
        what = "; ".join(f"{', '.join(splits)}: {text}" for text, splits in told.items())
        log.warning("no signal (one value everywhere: left out of PSNR, and of ERGAS where it is 0) in %s", what)


def _where(flat: Mapping[str, set[int]], n: int) -> str:
    """The bands of all scenes (a detector's gap) once, of others the first few."""
    everywhere = set.intersection(*flat.values())
    parts = [f"{_listed(everywhere, n)} of all scenes"] if everywhere else []
    some = {name: bands - everywhere for name, bands in flat.items() if bands - everywhere}
    parts += [f"{_listed(bands, n)} of {name}" for name, bands in list(some.items())[:5]]
    return ", ".join(parts) + (f" and bands of {len(some) - 5} more" if len(some) > 5 else "")


def _listed(bands: set[int], n: int) -> str:
    """Bands, counted from 0, in a few words."""
    if len(bands) == n:
        return "all bands"
    first = ", ".join(map(str, sorted(bands)[:12]))
    return ("band " if len(bands) == 1 else "bands ") + first + (", …" if len(bands) > 12 else "")


def digest(sets: Sequence[SceneSet]) -> str:
    """SHA-256 that tells other data from the same in another place, in a moment.

    It is over the number of scenes and the first, middle and last of each set: name, shape, truth, and what else a file
    holds. What is simulated follows from the truth, to the rounding of a machine.
    """
    seen = hashlib.sha256()
    for scenes in sets:
        seen.update(f"{len(scenes)} scenes".encode())
        for index in sorted({0, len(scenes) // 2, len(scenes) - 1} if len(scenes) else ()):
            scene = scenes[index]
            seen.update(f"{scene.name} {scene.gt.shape}".encode())
            for key in ARRAYS:
                if key == "gt" or not isinstance(getattr(scene, key), np.ndarray):
                    seen.update(np.ascontiguousarray(getattr(scene, key)[:], dtype="<f4").data)
    return seen.hexdigest()


def response_digest(scenes: SceneSet) -> str | None:
    """SHA-256 of the response that made the HR-MSI, None where it is unknown; to float32, so that it is the same on
    machines that round otherwise.
    """
    if scenes.srf is None:
        return None
    srf = np.ascontiguousarray(scenes.srf, dtype="<f4")
    return hashlib.sha256(f"{srf.shape}".encode() + srf.tobytes()).hexdigest()
