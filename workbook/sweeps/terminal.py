"""papermill as a terminal wants it: what cells print, and an error of the notebook's in one line.

python -m workbook.sweeps.terminal notebooks/train.ipynb out.ipynb -p variant kav1
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from papermill import PapermillExecutionError
from papermill.cli import papermill

from workbook.sweeps.work import KILLED

QUIET = ("--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "-")


def main(arguments: Sequence[str]) -> int:
    """papermill with its own arguments: 0 if the notebook ran through, 2 for an error of the user's, 1 for others."""
    try:
        with silenced():
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


@contextmanager
def silenced() -> Iterator[None]:
    """Standard error, this process's and that of kernels and what they start, goes nowhere: what they say while they
    are taken down (tracebacks of a killed kernel, leaked semaphores) would hide the one line that counts.
    """
    sys.stderr.flush()
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def failed(why: str, code: int) -> int:
    """Say why in one line."""
    print(f"error: {' '.join(why.split())}", file=sys.stderr)
    return code


def stopped() -> int:
    """Say that nothing is lost."""
    print("stopped; the same command goes on", file=sys.stderr)
    return 130


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the interpreter says while it is taken down helps nobody
    sys.exit(ended)
