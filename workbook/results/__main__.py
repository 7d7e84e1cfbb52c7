"""`python -m workbook.results PROTOCOL RUN…`: keep the metrics of finished runs in results/PROTOCOL."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ka.errors import KAError
from workbook.paths import results_folder
from workbook.results.stored import export
from workbook.training.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m workbook.results", description=__doc__)
    parser.add_argument("protocol", help="a folder under results/, such as laptop")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run folder")
    asked = parser.parse_args(arguments)
    try:
        for path in asked.runs:
            print(export(Run(path), results_folder(), asked.protocol))
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
