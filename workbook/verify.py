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
from ka.evaluation import evaluate
from ka.inference import Network
from ka.methods import Method
from ka.methods.injection import Bicubic
from ka.models.checkpoints import load_checkpoint

#: Mean and sample std over the 11 test scenes, on the 16-bit originals; of the 44 patches of 256² means alone, with the
#: PSNR of the PSRT paper (one MSE, peak = max of the truth). Beside them, what is printed.
EXPECTED: dict[str, dict[str, tuple[float, float | None]]] = {
    "bicubic": {"psnr": (34.326, 3.882), "sam": (4.450, 1.618), "ergas": (7.197, 4.869)},
    "PSRT": {"psnr": (49.957, 5.152), "sam": (2.463, 0.798), "ergas": (1.675, 2.237)},
    "PSRT in patches": {"psnr_published": (48.02, None), "sam": (2.463, None), "ergas": (1.609, None)},
}
PRINTED = {
    "bicubic": " (printed in papers: 34.33±3.88 dB / 4.45±1.62° / 7.21±4.90)",
    "PSRT in patches": " (printed by its authors: 48.78 dB / 2.47° / 1.66; by a reader who ran these weights: 47.90 dB "
    "/ 2.475° / 1.629)",
}
TOLERANCE = {"psnr": 0.02, "sam": 0.01, "ergas": 0.01, "psnr_published": 0.02}
LABELS = {"psnr": "PSNR (dB)", "sam": "SAM (°)", "ergas": "ERGAS", "psnr_published": "PSNR, one MSE (dB)"}


def check(scenes: SceneSet, method: Method, expected: str) -> bool:
    """Measure a method and print it beside what is expected (mean ± sample std); whether all means agree."""
    evaluation = evaluate(method, scenes, list(EXPECTED[expected]))
    h, w = scenes[0].gt.shape[1:]
    print(f"\n{expected}: {len(scenes)} of {h}×{w} pixels, mean ± sample std{PRINTED.get(expected, '')}")
    ok = True
    for name, (mean, std) in EXPECTED[expected].items():
        good = abs(evaluation.mean(name) - mean) <= TOLERANCE[name]
        ok &= good
        found = f"{evaluation.mean(name):7.3f} ± {evaluation.std(name):5.3f}"
        spread = "" if std is None else f" ± {std:5.3f}"
        verdict = "agrees" if good else f"DIFFERS by more than {TOLERANCE[name]}"
        print(f"  {LABELS[name]:20} measured {found}   expected {mean:7.3f}{spread}   {verdict}")
    return ok


def patches(scenes: SceneSet, size: int = 256) -> SceneSet:
    """The scenes cut as in the published `test_cavepatches256-2.h5`."""
    h, w = scenes[0].gt.shape[1:]
    corners = [(row, col) for row in range(0, h - size + 1, size) for col in range(0, w - size + 1, size)]
    return replace(scenes, scenes=[scene.crop(*corner, size, size) for scene in scenes for corner in corners])


def verify(root: str | Path, weights: str | Path | None = None) -> bool:
    """Print the tables; True if every mean agrees. Data or weights that are missing or broken are a `KAError`.

    Args:
        root: CAVE as downloaded (the 11 test scenes suffice), or the published HDF5 file of the test scenes.
        weights: the published PSRT ×4 checkpoint; None for the first table alone.
    """
    model = None if weights is None else load_checkpoint(weights, "psrt")
    scenes = data.load("h5" if Path(root).suffix == ".h5" else "cave", "test", root)
    ok = check(scenes, Bicubic(), "bicubic")
    if model is not None:
        network = Network(model.to("cuda" if torch.cuda.is_available() else "cpu"))
        ok &= check(scenes, network, "PSRT")
        ok &= check(patches(scenes), network, "PSRT in patches")
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
