"""One model on several devices, of one machine or of several.

    torchrun --nproc-per-node 2 -m workbook.training.distributed record variant=kav11 data_root=/path/to/CAVE
    srun --ntasks-per-node 2 --kill-on-bad-exit=1 python -m workbook.training.distributed record variant=kav11
    data_root=/path/to/CAVE

`train_on` does the first of these for a notebook. A run that was begun on one device goes on on several, and the other
way round: the folder is the same.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from ka.data.scenes import is_whole
from ka.errors import KAError
from ka.metrics import METRICS
from workbook.paths import ROOT
from workbook.training.config import PRESETS, Config, parse_fields
from workbook.training.ranks import ALONE, launched
from workbook.training.run import Run
from workbook.training.train import Data, Watch, run_folder, train

PARENT = "KA_PARENT"  # in the environment: the process of the notebook


def train_on(
    devices: int, config: Config, scenes: Data | None = None, *, restart: bool = False, watch: Watch | None = None
) -> Run:
    """`workbook.training.train.train`, for notebooks: on several devices in processes of their own.

    Args:
        devices: how many of this machine: GPUs, or processes where the configuration's device is the CPU.
        config: the run.
        scenes: `load_data(config)`, if it is at hand; other processes read the data again.
        restart: throw away what the run folder holds and train anew.
        watch: called with the history after every validation.

    Returns:
        The finished run.

    Raises:
        KAError: what the processes stopped with.
    """
    if not is_whole(devices) or devices < 1:
        raise KAError(f"devices={devices!r} is not a whole number of at least 1")
    if devices == 1:
        return train(config, scenes, restart=restart, watch=watch)
    run = Run(run_folder(config).resolve())
    root = None if config.data_root is None else str(Path(config.data_root).resolve())
    places = {"run_dir": str(run.path), "data_root": root}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    fields = [f"{key}={value!r}" for key, value in (config.to_dict() | places).items()]
    command = [*torchrun, "-m", "workbook.training.distributed", "demo", *fields, *(["--restart"] if restart else [])]
    seen: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+") as told:
        environment = {**os.environ, PARENT: str(os.getpid())}
        process = subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=told, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.5)
                if watch is not None and (history := run.history()) != seen:
                    seen = history
                    watch(history)
        finally:
            if process.poll() is None:  # Ctrl-C, or an error of `watch`
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
        told.seek(0)
        lines = told.read().splitlines()
    if process.returncode:
        errors = [line.partition("error: ")[2] for line in lines if line.startswith(("error: ", "rank "))]
        raise KAError(errors[0] if errors else f"{devices} processes ended early: {' '.join(lines[-5:])[-500:]}")
    return run


def main(arguments: Sequence[str]) -> int:
    """One of the processes: 0 if the run is finished, 2 for an error of the user's, 130 if stopped."""
    parser = argparse.ArgumentParser(
        "python -m workbook.training.distributed", description="Train one model; torchrun and srun start it."
    )
    parser.add_argument("preset", help="the protocol that the fields are of", choices=PRESETS)
    parser.add_argument("fields", help="of the configuration, such as variant=kav11 data_root=/path", nargs="*")
    parser.add_argument("--restart", help="train a finished run again", action="store_true")
    asked, ranks = parser.parse_args(arguments), ALONE
    threading.Thread(target=_end_with_parents, daemon=True).start()
    try:
        config = Config.preset(asked.preset, **parse_fields(asked.fields, "field"))
        ranks = launched(config.device)
        run = train(config, restart=asked.restart, bar=sys.stderr.isatty(), ranks=ranks)
    except KAError as error:
        who = "" if ranks.count == 1 or ranks.first else f"rank {ranks.fabric.global_rank}, "
        print(f"{who}error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    if ranks.first:
        found = run.metrics()["methods"]["best"]["mean"]
        shown = ", ".join(f"{METRICS[name].heading} {found[name]:.3f}" for name in ("psnr", "sam", "ergas"))
        print(f"{run.path}: {shown}")
    return 0


def _end_with_parents() -> None:
    """End when torchrun is killed, or the notebook that started it: training on unseen would hold the run's lock."""
    parents = [os.getppid(), int(os.environ.get(PARENT, os.getppid()))]
    while os.getppid() == parents[0] and psutil.pid_exists(parents[1]):
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
