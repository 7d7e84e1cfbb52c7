"""papermill as a terminal wants it: what cells print, and an error of the notebook's in one line.

python -m workbook.sweeps.terminal notebooks/train.ipynb out.ipynb -p variant kav1
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO

import click
from papermill import PapermillExecutionError
from papermill.cli import papermill

from workbook.sweeps.work import KILLED

QUIET = ("--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "-")


def main(arguments: Sequence[str]) -> int:
    """papermill with its own arguments: 0 if the notebook ran through, 2 for an error of the user's, 1 for others."""
    try:
        with redirect_stderr(StringIO()):  # a killed kernel's traceback, which papermill prints itself
            papermill([*QUIET, *arguments], prog_name="papermill", standalone_mode=False)
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            return stopped()
        return failed(error.evalue, 2) if error.ename == "KAError" else failed(f"{error.ename}: {error.evalue}", 1)
    except click.ClickException as error:
        return failed(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return stopped()
    except SystemExit as ended:
        return failed(KILLED, 1) if ended.code else 0
    return 0


def failed(why: str, code: int) -> int:
    """Say why in one line."""
    print(f"error: {' '.join(why.split())}", file=sys.stderr)
    return code


def stopped() -> int:
    """Say that nothing is lost."""
    print("stopped; the same command goes on", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
