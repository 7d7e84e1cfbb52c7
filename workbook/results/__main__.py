"""`python -m workbook.results PROTOCOL RUN…`: keep the metrics of finished runs in results/PROTOCOL.

`python -m workbook.results --weights RUN…` keeps their best weights in checkpoints/, for the explorers to open with.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ka.errors import KAError
from workbook.paths import results_folder
from workbook.results.stored import export, ship
from workbook.training.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m workbook.results", description=__doc__)
    parser.add_argument(
        "--weights", action="store_true", help="the weights, in checkpoints/; there is no protocol then"
    )
    parser.add_argument("names", nargs="+", metavar="[PROTOCOL] RUN", help="a folder under results/, run folders")
    asked = parser.parse_args(arguments)
    protocol, *runs = ["", *asked.names] if asked.weights else asked.names
    if not runs:
        parser.error("name a protocol (such as laptop) and at least one run folder")
    try:
        for path in runs:
            run = Run(Path(path))
            print(ship(run) if asked.weights else export(run, results_folder(), protocol))
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
