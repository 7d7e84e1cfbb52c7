"""What is measured in processes of its own: the start of Python, and whole scenes, whose peak memory is theirs alone.

`python -m benchmarks.processes` reads its task as JSON from standard input and writes the result to standard output.
"""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.measure import MIB, Place
from ka.errors import KAError
from ka.inference import run_network
from ka.models.counts import deployed
from ka.models.psrt import build
from workbook.paths import ROOT
from workbook.results.speed import SCENES_OF, SceneCost, Setting, Startup, significant
from workbook.training.devices import forget_peak, peak_bytes


def startup(pairs: int) -> Startup:
    """Start so many pairs of processes, after one that is not counted; the order within a pair alternates."""
    seconds: dict[str, list[float]] = {"torch": [], "ka": []}
    for turn in range(pairs + 1):
        for module in ("torch", "ka") if turn % 2 else ("ka", "torch"):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
            if turn:
                seconds[module].append(time.perf_counter() - begun)
    more = [ka - torch for ka, torch in zip(seconds["ka"], seconds["torch"], strict=True)]
    low, _, high = statistics.quantiles(more, n=4, method="inclusive") if pairs > 1 else more * 3
    values = (*(statistics.median(seconds[module]) for module in ("torch", "ka")), statistics.median(more), low, high)
    return Startup(*(significant(value) for value in values))


def scene(setting: Setting, size: int, tile: int, place: Place, repeats: int = 1) -> SceneCost:
    """Sharpen a random scene of `size` pixels a side, in tiles or (0) in one pass, in a new process.

    Raises:
        KAError: the process failed, as where memory ran out; the message ends with its last line.
    """
    task = {
        "size": size, "tile": tile, "device": place.device.type, "threads": place.threads, "repeats": repeats,
        "dim": setting.dim, "n_bands": setting.n_bands, "n_msi": setting.n_msi,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.processes"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise KAError(f"a scene of {size}×{size} could not be sharpened ({last[0]}); measure it on a larger machine")
    return SceneCost(size, tile, **json.loads(done.stdout))


def sharpened(
    size: int, tile: int, device: str, threads: int, repeats: int, dim: int, n_bands: int, n_msi: int
) -> dict[str, Any]:
    """What `SceneCost` holds besides size and tile; to be called in a process that did nothing large before."""
    place, model = Place.of(device, threads), deployed(build(SCENES_OF, n_bands, n_msi, dim)).eval()
    with place.prepared():
        model = model.to(place.device)
        up, msi = (torch.rand(1, bands, size, size, device=place.device) for bands in (n_bands, n_msi))
        small = min(size, 32) // 16 * 16
        run_network(model, up[..., :small, :small], msi[..., :small, :small], small)  # sets up what is not the scene's
        seconds, mib = [], 0.0
        for turn in range(repeats):
            forget_peak(place.device)
            before = peak_bytes(place.device)
            begun = place.now()
            run_network(model, up, msi, tile or max(16, -(-size // 16) * 16))
            seconds.append(place.now() - begun)
            if not turn:  # later runs reuse what the first one took
                mib = (peak_bytes(place.device) - before) / MIB
    return {
        "seconds": significant(min(seconds)),
        "mib": significant(mib),
        "images_mib": significant(up.nbytes / MIB),
        "process_mib": None if place.cuda else significant(peak_bytes(place.device) / MIB),
    }


if __name__ == "__main__":
    print(json.dumps(sharpened(**json.load(sys.stdin))))
