"""The two numbers that prove the pipeline: `python -m workbook.verify CAVE_FOLDER [PUBLISHED_WEIGHTS]`.

1. Bicubic upsampling of the 11 test scenes, as the field's papers print it: proves data, simulation and metrics.
2. The published PSRT ×4 weights on the same scenes: proves the model and its inputs too.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ka import data
from ka.data import SceneSet
from ka.errors import KAError
from ka.evaluation import Evaluation, Method, evaluate, upsampled
from ka.inference import Network
from ka.models.checkpoints import load_checkpoint

#: Mean and sample std over the 11 test scenes, on the 16-bit originals: PSNR (dB), SAM (°), ERGAS.
EXPECTED = {
    "bicubic": {"psnr": (34.326, 3.882), "sam": (4.450, 1.618), "ergas": (7.197, 4.869)},
    "PSRT": {"psnr": (49.957, 5.152), "sam": (2.463, 0.798), "ergas": (1.675, 2.237)},
}
#: The same as the field's papers print it.
PRINTED = {"bicubic": "34.33±3.88 dB / 4.45±1.62° / 7.21±4.90"}
#: The 44 patches of 256², with the metrics of the PSRT paper (its PSNR: one MSE, peak = max of the truth).
EXPECTED_PATCHES = {"psnr_published": 48.02, "sam": 2.463, "ergas": 1.609}
TOLERANCE = {"psnr": 0.02, "sam": 0.01, "ergas": 0.01, "psnr_published": 0.02}
LABELS = {"psnr": "PSNR (dB)", "sam": "SAM (°)", "ergas": "ERGAS", "psnr_published": "PSNR, one MSE (dB)"}


def check(scenes: SceneSet, method: Method, expected: str) -> tuple[Evaluation, bool]:
    """Measure a method on whole scenes and print it beside what is expected; whether all means agree."""
    found = evaluate(method, scenes, ["psnr", "sam", "ergas"])
    printed = f"; printed in papers: {PRINTED[expected]}" if expected in PRINTED else ""
    print(f"\n{expected}, {len(scenes)} test scenes, whole (mean ± sample std{printed})")
    ok = True
    for name, (mean, std) in EXPECTED[expected].items():
        good = abs(found.mean(name) - mean) <= TOLERANCE[name]
        ok &= good
        print(
            f"  {LABELS[name]:20} measured {found.mean(name):7.3f} ± {found.std(name):5.3f}   expected {mean:7.3f} ± "
            f"{std:5.3f}   {'agrees' if good else f'DIFFERS by more than {TOLERANCE[name]}'}"
        )
    return found, ok


def check_patches(scenes: SceneSet, method: Method) -> bool:
    """The same in the 44 patches of 256² of `test_cavepatches256-2.h5`, as the PSRT paper measures."""
    size = 256
    h, w = scenes[0].gt.shape[1:]
    cuts = [
        scene.crop(row, col, size, size)
        for scene in scenes
        for row in range(0, h - size + 1, size)
        for col in range(0, w - size + 1, size)
    ]
    found = evaluate(method, replace(scenes, scenes=cuts), list(EXPECTED_PATCHES))
    print(f"\nPSRT, {len(cuts)} patches of {size}×{size} (printed by its authors: 48.78 dB / 2.47° / 1.66;")
    print("  by a reader who ran these weights: 47.90 dB / 2.475° / 1.629)")
    ok = True
    for name, mean in EXPECTED_PATCHES.items():
        good = abs(found.mean(name) - mean) <= TOLERANCE[name]
        ok &= good
        print(
            f"  {LABELS[name]:20} measured {found.mean(name):7.3f}   expected {mean:7.3f}   "
            f"{'agrees' if good else f'DIFFERS by more than {TOLERANCE[name]}'}"
        )
    return ok


def verify(root: str | Path, weights: str | Path | None = None) -> bool:
    """Print the tables; True if every mean agrees.

    Args:
        root: CAVE as downloaded (the 11 test scenes suffice), or the published HDF5 file of the test scenes.
        weights: the published PSRT ×4 checkpoint; None for the first table alone.

    Raises:
        KAError: data or weights are missing or broken.
    """
    model = None if weights is None else load_checkpoint(weights, "psrt")
    scenes = data.load("h5" if Path(root).suffix == ".h5" else "cave", "test", root)
    ok = check(scenes, upsampled, "bicubic")[1]
    if model is not None:
        network = Network(model.to("cuda" if torch.cuda.is_available() else "cpu"))
        ok &= check(scenes, network, "PSRT")[1]
        ok &= check_patches(scenes, network)
    return ok


def main(arguments: Sequence[str]) -> int:
    """The command line; exit code 0 if all agrees, 1 if not, 2 for an error of the user's."""
    if not 1 <= len(arguments) <= 2 or not arguments[0]:
        print("usage: make verify DATA=/path/to/CAVE [WEIGHTS=/path/to/best.pth.tar]", file=sys.stderr)
        return 2
    try:
        return 0 if verify(*arguments) else 1
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
