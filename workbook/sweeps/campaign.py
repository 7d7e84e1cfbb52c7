"""All rows of a protocol with one command, which goes on where it was stopped, also on another machine.

    python -m workbook.sweeps.campaign record --data /path/to/CAVE --out runs/record [--hours 8]
    python -m workbook.sweeps.campaign --data /path/to/CAVE --out runs/record        # goes on

In the folder: `plan.json` (what is to be trained, see `workbook.sweeps.plan`), `runs/` (a run folder each),
`results/<protocol>/`
and `weights/` (what is kept of a finished run: its metrics, and its best weights in float16), `failed/` (a line for
each run that failed; it is tried again by the next call). A run whose metrics and weights are there is done.
"""

import argparse
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from filelock import FileLock

from ka.errors import KAError
from ka.files import write_bytes, write_json
from ka.models.checkpoints import save_weights
from workbook.results import stored as results
from workbook.sweeps.plan import Plan, Planned, measure, share_cores
from workbook.training.config import PRESETS, Config, parse_fields
from workbook.training.devices import pick_device
from workbook.training.run import Run
from workbook.training.scenes import Data, load_data
from workbook.training.train import train


@dataclass(frozen=True)
class Campaign:
    """A plan in its folder, and what is this machine's alone.

    Attributes:
        plan: what is to be trained.
        folder: where.
        data: the data set's folder here; None where it is not needed.
        device: as in `Config`.
        jobs: runs side by side.
    """

    plan: Plan
    folder: Path
    data: str | None = None
    device: str = "auto"
    jobs: int = 1

    def config(self, planned: Planned) -> Config:
        """The configuration of a run here."""
        return self.plan.config(planned, self.data, self.device, self.folder)

    def run(self, planned: Planned) -> Run:
        """Its run folder."""
        return Run(self.folder / "runs" / planned.name)

    def result(self, planned: Planned) -> Path:
        """Its metrics."""
        return self.folder / "results" / self.plan.protocol / f"{planned.name}.json"

    def weights(self, planned: Planned) -> Path:
        """Its best weights in float16."""
        return self.folder / "weights" / f"{planned.name}.safetensors"

    def failure(self, planned: Planned) -> Path:
        """Why it failed; there until it succeeds."""
        return self.folder / "failed" / f"{planned.name}.txt"

    def done(self, planned: Planned) -> bool:
        """Whether there is nothing left to do; its run folder may have been removed since."""
        return self.result(planned).exists() and self.weights(planned).exists()

    @property
    def missing(self) -> list[Planned]:
        """The runs that are not done, in order."""
        return [planned for planned in self.plan.runs if not self.done(planned)]

    @property
    def lacks_data(self) -> bool:
        """Whether it trains on data that must be given, and are not."""
        return self.plan.shared["dataset"] != "indian_pines" and self.data is None

    def load(self) -> Data | None:
        """The scenes, if a run still has to be trained; CAVE's are read when first asked for.

        Raises:
            KAError: the data, or the device, are not here.
        """
        untrained = [planned for planned in self.missing if not self.run(planned).finished]
        if not untrained:
            return None
        if self.lacks_data:
            raise KAError(f"{self.plan.protocol} trains on {self.plan.shared['dataset']}; give its folder with --data")
        config = self.config(untrained[0])
        pick_device(config.device)
        return load_data(config)


# One run after another


def attempt(campaign: Campaign, planned: Planned, fit: Callable[[Config], object]) -> str:
    """Train a run to its end and keep its metrics and weights; whatever fails is noted in `failed/`.

    Args:
        campaign: whose run it is.
        planned: the run.
        fit: trains a configuration to its end, from wherever its folder stands.

    Returns:
        How it went, in a few words.
    """
    run, note = campaign.run(planned), campaign.failure(planned)
    try:
        fit(_here(run, campaign.config(planned)))
        metrics = run.metrics()
        psnr = metrics["methods"]["best"]["mean"]["psnr"]
        notes = {"dataset": metrics["dataset"], "step": metrics["best"]["step"]}
        notes |= {} if psnr is None else {"psnr": round(psnr, 3)}
        save_weights(campaign.weights(planned), run.model("best"), half=True, **notes)
        results.export(run, campaign.folder / "results", campaign.plan.protocol)
    except Exception as error:  # one run's mishap is not the others'
        line = " ".join(str(error).split()) or "no message"
        if isinstance(error, KAError) and line.startswith(f"{run.path} is in use"):
            return "skipped, in use by another process"
        line = line if isinstance(error, KAError) else f"{type(error).__name__}: {line}"
        write_bytes(note, f"{line}\n".encode())
        return f"failed: {line}"
    note.unlink(missing_ok=True)
    return _numbers(psnr, metrics["seconds"])


def _here(run: Run, config: Config) -> Config:
    """Let an unfinished run go on with this machine's data and device, whatever it was begun with.

    `Run.check` takes another device for another run, and for HDF5 files another folder too; of a campaign they are not
    part, as it may be carried to another machine.
    """
    before = run.config()
    if before is None:
        return config
    place = {"device": config.device, "data_root": config.data_root}
    if run.finished:
        return replace(config, device=before.device, data_root=before.data_root)
    if any(getattr(before, key) != value for key, value in place.items()):
        with run.lock():
            write_json(run.path / "config.json", before.to_dict() | place)
    return config


def _numbers(psnr: float | None, seconds: float) -> str:
    return f"done   PSNR {math.nan if psnr is None else psnr:.2f} dB   trained for {seconds / 60:.1f} min"


def _work(campaign: Campaign, turns: Iterator[Planned], scenes: Data | None, bar: bool) -> None:
    for planned in turns:
        if not campaign.done(planned):
            how = attempt(campaign, planned, lambda config: train(config, scenes, bar=bar))
            print(f"{planned.name:24} {how}", flush=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # the next run, or another process, may need it


# Several at once


def _side_by_side(campaign: Campaign, missing: Sequence[Planned]) -> bool:
    """Train in as many processes as there are jobs; whether all of them came to their end."""
    context = multiprocessing.get_context("spawn")
    turn = context.Value("i", 0)
    workers: list[BaseProcess] = [
        context.Process(target=_worker, args=(campaign, missing, turn), daemon=True)
        for _ in range(min(campaign.jobs, len(missing)))
    ]
    # Ctrl-C reaches every process of a terminal: workers are born deaf to it, and hear of it from here.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for worker in workers:
            worker.start()
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        raise
    return all(worker.exitcode == 0 for worker in workers)


def _worker(campaign: Campaign, missing: Sequence[Planned], turn: "Synchronized[int]") -> None:
    """Take the next run that nobody took yet, until there is none."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _interrupt)

    def turns() -> Iterator[Planned]:
        while True:
            with turn.get_lock():
                mine, turn.value = turn.value, turn.value + 1
            if mine >= len(missing):
                return
            yield missing[mine]

    try:
        share_cores(campaign.jobs, pick_device(campaign.config(missing[0]).device))
        _work(campaign, turns(), campaign.load(), bar=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on unseen, and hold its run's lock."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


# The command


def agree(arguments: argparse.Namespace) -> tuple[Campaign, Data | None]:
    """The folder's plan, made or added to as asked, and the scenes if they are needed.

    Nothing is written if something is wrong, or with `--dry-run`.

    Raises:
        KAError: the plan is another; names, values, data or a device that do not exist.
    """
    folder, path = Path(arguments.out), Path(arguments.out) / "plan.json"
    changes = parse_fields(arguments.set)
    if arguments.iterations is not None:
        if "iterations" in changes:
            raise KAError("iterations are given twice; give --iterations alone")
        changes["iterations"] = arguments.iterations
    if arguments.hours is not None and {"iterations", "epochs"} & set(changes):
        raise KAError("--hours decides on the number of iterations; give one of the two")
    here = (folder, arguments.data, arguments.device, arguments.jobs)
    with _held(folder, arguments.dry_run):
        old = Plan.read(path)
        if old is None:
            if arguments.protocol is None:
                raise KAError(f"{path} does not exist; say what to train: one of {', '.join(PRESETS)}")
            plan = Plan.new(arguments.protocol, arguments.variants, arguments.seeds, **changes)
        else:
            old.check(arguments.protocol, arguments.hours, **changes)
            plan = old
            if arguments.variants or arguments.seeds:
                plan = plan.extended(arguments.variants, arguments.seeds)
        campaign = Campaign(plan, *here)
        scenes = None if arguments.dry_run and campaign.lacks_data else campaign.load()
        if old is None and arguments.hours is not None:
            if scenes is None:
                raise KAError("--hours measures speed on the data; give --data")
            pace = measure(campaign.config(plan.runs[0]), _variants(plan.runs), campaign.jobs)
            plan = plan.for_hours(arguments.hours, pace)
            campaign = replace(campaign, plan=plan)
        if plan != old and not arguments.dry_run:
            plan.write(path)
    return campaign, scenes


@contextmanager
def _held(folder: Path, dry: bool) -> Iterator[None]:
    """One process at a time makes or changes the plan."""
    if dry:
        yield
        return
    lock = FileLock(folder / ".plan.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise KAError(f"{folder} cannot be written ({error.strerror or error}); choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def _variants(runs: Sequence[Planned]) -> list[str]:
    return list(dict.fromkeys(planned.variant for planned in runs))


def describe(campaign: Campaign) -> str:
    """The plan, run by run: what is done, begun, failed or missing."""
    plan = campaign.plan
    kept = {}
    if plan.protocol in results.protocols(campaign.folder / "results"):
        kept = {result.name: result for result in results.read(campaign.folder / "results", plan.protocol)}
    lines = [headline(campaign)]
    for planned in plan.runs:
        note, history = campaign.failure(planned), campaign.run(planned).history()
        if campaign.done(planned):
            found = kept[planned.name]
            state = _numbers(found.methods["best"].mean("psnr"), found.record.seconds)
        elif note.exists():
            state = f"failed: {note.read_text(encoding='utf-8').strip()}"
        elif campaign.run(planned).finished:
            state = "trained, its metrics and weights are still to be kept"
        else:
            state = f"begun, iteration {history[-1]['step']} at least" if history else "missing"
        lines.append(f"  {planned.name:24} {state}")
    return "\n".join(lines)


def headline(campaign: Campaign) -> str:
    """The plan in a line."""
    plan, missing = campaign.plan, len(campaign.missing)
    length = "{iterations} iterations" if plan.shared["epochs"] is None else "{epochs} epochs"
    return (
        f"{plan.protocol}: {len(plan.runs)} runs of {length.format(**plan.shared)} (dim {plan.shared['dim']}, batch "
        f"{plan.shared['batch']}), {len(plan.runs) - missing} done, {missing} missing"
    )


def estimate(campaign: Campaign, scenes: Data | None) -> str:
    """How long what is missing will take, by the plan's measurement or else one made now."""
    plan, missing = campaign.plan, campaign.missing
    if not missing:
        return "nothing is missing"
    pace, iterations = plan.pace, plan.shared["iterations"]
    if pace is None:
        if scenes is None:
            return "no estimate without data: give --data"
        pace = measure(campaign.config(missing[0]), _variants(missing), campaign.jobs)
        iterations = iterations or plan.shared["epochs"] * (len(scenes.patches) // plan.shared["batch"])
    hours = pace.seconds(len(missing), iterations, plan.shared["eval_every"]) / 3600
    return (
        f"about {hours:.1f} h for what is missing, as measured on this {pace.device} with {pace.jobs} side by side "
        f"(slowest variant: {max(pace.iteration.values()):.3f} s an iteration)"
    )


def closing(campaign: Campaign) -> tuple[str, bool]:
    """What is done, what failed and what to bring home; and whether something failed."""
    plan, folder, missing = campaign.plan, campaign.folder, campaign.missing
    failed = [planned for planned in missing if campaign.failure(planned).exists()]
    lines = [f"{len(plan.runs) - len(missing)} of {len(plan.runs)} runs are done"]
    if failed:
        lines.append(f"{len(failed)} failed; the same command tries them again (from their last checkpoint):")
        lines += [f"  {one.name}: {campaign.failure(one).read_text(encoding='utf-8').strip()}" for one in failed]
    if others := [planned.name for planned in missing if planned not in failed]:
        lines.append(f"not done, in use by another process or stopped: {', '.join(others)}")
    size = sum(path.stat().st_size for part in ("results", "weights") for path in (folder / part).rglob("*.*"))
    lines.append(
        f"bring home {folder / 'results'} and {folder / 'weights'} ({size / 1e6:.1f} MB); {folder / 'runs'} is only "
        "for going on"
    )
    return "\n".join(lines), bool(failed)


class Parser(argparse.ArgumentParser):
    """The arguments that tell what is to be trained, and where; a mistake is a KAError.

    Args:
        module: whose command line it is.
        description: what it does.
    """

    def __init__(self, module: str, description: str) -> None:
        super().__init__(f"python -m {module}", description=description)
        self.add("protocol", f"one of {', '.join(PRESETS)}; a later call may leave it out", nargs="?")
        self.add("--out", "folder of the runs; all it holds may be moved to another machine", required=True)
        self.add("--data", "folder of the data set, on this machine")
        self.add("--variants", "rows, instead of all of the study; a later call adds them", nargs="+")
        self.add("--seeds", "of every row, instead of the preset's one; a later call adds them", nargs="+", type=int)
        self.add("--iterations", "length of every run, instead of the preset's", type=int)
        self.add("--device", "auto, cpu, cuda or cuda:N, on this machine", default="auto")
        more = "further fields of the configuration, such as dim=24 batch=8"
        self.add("--set", more, nargs="+", default=[], action="extend")
        self.set_defaults(hours=None, dry_run=False)

    def add(self, name: str, text: str, **options: Any) -> None:
        """One more argument."""
        self.add_argument(name, help=text, **options)

    def error(self, message: str) -> NoReturn:
        """As argparse, but without ending the process."""
        raise KAError(f"{message}; {self.prog} --help lists the arguments")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        KAError: an argument that does not exist, or a value of the wrong kind.
    """
    parser = Parser("workbook.sweeps.campaign", "Train all rows of a protocol; the same command goes on.")
    parser.add("--hours", "choose the length so that all runs take so many hours", type=float)
    parser.add("--jobs", "runs side by side (on a CPU with one thread each, then)", type=int, default=1)
    parser.add("--dry-run", "only say what would be trained, and how long it would take", action="store_true")
    found = parser.parse_args(arguments)
    if found.jobs < 1:
        raise KAError(f"--jobs {found.jobs} is not at least 1")
    if found.hours is not None and not 0 < found.hours < 1e5:
        raise KAError(f"--hours {found.hours:g} is no number of hours; give one above 0")
    return found


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks; gives the exit code.

    Raises:
        KAError: what `agree` raises.
    """
    campaign, scenes = agree(arguments)
    if arguments.dry_run:
        print(describe(campaign))
        print(estimate(campaign, scenes))
        return 0
    print(headline(campaign), flush=True)
    missing, whole = campaign.missing, True
    if campaign.jobs == 1:
        _work(campaign, iter(missing), scenes, bar=sys.stderr.isatty())
    elif missing:
        whole = _side_by_side(campaign, missing)
    text, failed = closing(campaign)
    print(text, flush=True)
    return 1 if failed or not whole else 0


def main(arguments: Sequence[str]) -> int:
    """`python -m workbook.sweeps.campaign`: 0 if none failed, 1 if a run did, 2 for a user's error, 130 if stopped."""
    try:
        return run(parse(arguments))
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
