"""The command that trains a sweep, and goes on where it was stopped, also on another machine.

python -m workbook.sweeps record --data /path/to/CAVE --out runs/record
python -m workbook.sweeps --data /path/to/CAVE --out runs/record        # goes on
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock

from ka.errors import KAError
from ka.files import user_path
from workbook.sweeps.folder import DAY, Sweep
from workbook.sweeps.plan import Plan
from workbook.sweeps.runner import places, run
from workbook.sweeps.status import Lines, describe, headline
from workbook.training.config import PRESETS, parse_fields


class Parser(argparse.ArgumentParser):
    """The command line; a mistake is a KAError."""

    def __init__(self) -> None:
        super().__init__("python -m workbook.sweeps", description="Train many runs; the same command goes on.")
        self.add("protocol", f"one of {', '.join(PRESETS)}; a later call may leave it out", nargs="?")
        self.add("--out", "folder of the runs; all it holds may be moved to another machine", required=True)
        self.add("--data", "folder of the data set, on this machine")
        self.add("--variants", "rows, instead of the preset's or the whole table; a later call adds them", nargs="+")
        self.add("--seeds", "of every row, instead of the preset's one; a later call adds them", nargs="+", type=int)
        self.add("--iterations", "length of every run, instead of the preset's", type=int)
        more = "further fields of the configuration, such as dim=24 batch=8"
        self.add("--set", more, nargs="+", default=[], action="extend")
        self.add("--device", "auto, cpu, cuda or cuda:N", default="auto")
        self.add("--notebooks", "train each run as an executed copy of train.ipynb", action="store_true")
        self.add("--cluster", "where: local (default) or slurm", choices=("local", "slurm"), default="local")
        self.add("--jobs", "runs at a time (default: one per GPU or two cores here, all on Slurm)", type=int, default=0)
        self.add("--minutes", "of Slurm's time for a job, which then goes on in another", type=int, default=DAY)
        self.add("--slurm", "options of sbatch, such as partition=gpu gres=gpu:1", nargs="+", default=[])
        self.add("--dry-run", "only say how the runs stand, and how long the rest will take", action="store_true")

    def add(self, name: str, text: str, **options: Any) -> None:
        self.add_argument(name, help=text, **options)

    def error(self, message: str) -> NoReturn:
        """As argparse, but without ending the process."""
        raise KAError(f"{message}; {self.prog} --help lists the arguments")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; an argument that does not exist, or a value of the wrong kind, is a `KAError`."""
    asked = Parser().parse_args(arguments)
    if asked.jobs < 0 or asked.minutes < 1:
        raise KAError(f"--jobs {asked.jobs} and --minutes {asked.minutes} have to be at least 1")
    asked.set, asked.slurm = parse_fields(asked.set), parse_fields(asked.slurm, "--slurm")
    if asked.iterations is not None:
        if "iterations" in asked.set:
            raise KAError("iterations are given twice; give --iterations alone")
        asked.set["iterations"] = asked.iterations
    return asked


def prepare(asked: argparse.Namespace) -> Sweep:
    """What the command line asks for: a new folder's plan is written, an old one's is added to. Another plan, and
    names, values, data or a device that do not exist, are a `KAError`. Nothing is written then, or with `--dry-run`.
    """
    folder = user_path(asked.out).resolve()
    path = folder / "plan.json"
    with nullcontext() if asked.dry_run else _planning(folder):
        old = Plan.read(path)
        if old is None:
            if asked.protocol is None:
                raise KAError(f"{path} does not exist; say what to train: one of {', '.join(PRESETS)}")
            plan = Plan.new(asked.protocol, asked.variants, asked.seeds, **asked.set)
        else:
            old.check(asked.protocol, **asked.set)
            plan = old.extended(asked.variants, asked.seeds) if asked.variants or asked.seeds else old
        here = (asked.data, asked.device, asked.cluster, asked.jobs, asked.minutes, asked.slurm, asked.notebooks)
        sweep = Sweep(plan, folder, *here)
        scenes = None if asked.dry_run and sweep.lacks_data else sweep.load()
        if plan != old and not asked.dry_run:
            plan.write(path)
    total = plan.shared["iterations"]
    if total is None and scenes is not None:
        total = plan.shared["epochs"] * (len(scenes.patches) // plan.shared["batch"])
    jobs = (asked.jobs or len(plan.runs)) if asked.cluster == "slurm" else len(places(asked.device, asked.jobs))
    return replace(sweep, total=total, jobs=jobs)


def _planning(folder: Path) -> AbstractContextManager[object]:
    """Makes sure that one process at a time makes or changes the plan."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".plan.lock").acquire()
    except OSError as error:
        raise KAError(f"{folder} cannot be written ({error.strerror or error}); choose another --out") from error


def main(arguments: Sequence[str]) -> int:
    """`python -m workbook.sweeps`: 0 if all is done, 1 if not, 2 for an error of the user's, 130 if stopped."""
    try:
        asked = parse(arguments)
        sweep = prepare(asked)
        if asked.dry_run:
            print(describe(sweep))
            return 0
        print(headline(sweep), flush=True)
        run(sweep, Lines(sweep.jobs))
        print(describe(sweep), flush=True)
        return 1 if sweep.missing else 0
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on (jobs of Slurm go on without it)", file=sys.stderr)
        return 130
