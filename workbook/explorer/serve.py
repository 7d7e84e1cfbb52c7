"""`make explore`: the explorers as a page, on this machine alone.

python -m workbook.explorer.serve --data /path/to/CAVE --runs /path/to/runs
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import papermill

from ka.errors import KAError
from ka.files import user_path
from workbook.explorer.catalog import scene_sets, usable_runs
from workbook.paths import ROOT, runs_folder

NOTEBOOK = ROOT / "notebooks" / "explore.ipynb"
# A kernel waits for the next page, so that it appears at once. Those whose page is gone end after a minute or two.
VOILA = (
    *("--Voila.ip=127.0.0.1", "--token", "--preheat_kernel=True", "--pool_size=1"),
    *("--MappingKernelManager.cull_interval=30", "--MappingKernelManager.cull_idle_timeout=60"),
)


def absolute(folder: str | None) -> str | None:
    """A folder as the page's kernel will find it, from wherever that runs."""
    return str(user_path(folder).resolve()) if folder else None


def wrong(runs: str | None, data_root: str | None) -> list[str]:
    """A line on each folder that will not do, and on each broken run."""
    lines: list[str] = []
    try:
        lines += usable_runs(runs)[1]
    except KAError as error:
        lines.append(str(error))
    try:
        scene_sets(data_root)
    except KAError as error:
        lines.append(str(error))
    return lines


def prepare(out: Path, runs: str | None, data_root: str | None) -> None:
    """Write the notebook that is served; what is chosen on its page is kept beside it."""
    given = {"runs": runs, "data_root": data_root, "kept": str(out.with_suffix(".json"))}
    out.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(NOTEBOOK, out, given, prepare_only=True, progress_bar=False)


def main(arguments: Sequence[str]) -> None:
    """Say what is wrong with the folders, and serve what works; other arguments are voila's."""
    parser = argparse.ArgumentParser("python -m workbook.explorer.serve")
    parser.add_argument("--data", help="folder of CAVE")
    parser.add_argument("--runs", help="folder of runs, of a sweep, or of several")
    parser.add_argument("--out", help="the notebook that is served", default=runs_folder() / "explore.ipynb", type=Path)
    asked, more = parser.parse_known_args(arguments)
    runs, data_root = absolute(asked.runs), absolute(asked.data)
    for line in wrong(runs, data_root):
        print(f"{line}\nthe page offers what works", file=sys.stderr, flush=True)
    prepare(asked.out.resolve(), runs, data_root)
    os.execv(sys.executable, [sys.executable, "-m", "voila", str(asked.out.resolve()), *VOILA, *more])


if __name__ == "__main__":
    main(sys.argv[1:])
