"""`python -m workbook.results.ship RUN…`: keep the best weights of finished runs in checkpoints/, for the explorers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ka.errors import KAError
from ka.models.checkpoints import save_weights
from workbook.paths import CHECKPOINTS
from workbook.training.run import Run


def save_small(run: Run, path: str | Path) -> None:
    """Write a finished run's best weights in float16 (half the size), with what they were trained on in the header.

    Raises:
        KAError: the run is not finished, or the file cannot be written.
    """
    metrics = run.metrics()
    psnr = metrics["methods"]["best"]["mean"]["psnr"]  # before rounding; None where it is infinite
    notes = {"dataset": metrics["dataset"], "step": metrics["best"]["step"]}
    notes |= {} if psnr is None else {"psnr": round(psnr, 3)}
    save_weights(path, run.model("best"), half=True, **notes)


def ship(run: Run, folder: str | Path = CHECKPOINTS) -> Path:
    """Keep a finished run as `<variant>.safetensors` in a folder.

    Raises:
        KAError: as `save_small`.
    """
    path = Path(folder) / f"{run.metrics()['variant']}.safetensors"
    save_small(run, path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m workbook.results.ship", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run folder")
    try:
        for path in parser.parse_args(arguments).runs:
            print(ship(Run(path)))
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
