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

from ka.errors import KAError, is_whole
from ka.files import write_bytes
from ka.metrics import METRICS
from workbook.paths import ROOT
from workbook.training.config import PRESETS, Config, parse_fields
from workbook.training.ranks import ALONE, launched
from workbook.training.run import Run
from workbook.training.scenes import Data
from workbook.training.train import Watch, run_folder, train

PARENT, ERRORS = "KA_PARENT", "KA_ERRORS"  # in the environment: the notebook's process, and where it reads errors


def train_on(
    devices: int, config: Config, scenes: Data | None = None, *, restart: bool = False, watch: Watch | None = None
) -> Run:
    """`workbook.training.train.train`, for notebooks: on several devices in processes of their own.

    `devices` is how many of this machine: GPUs, or processes where the configuration's device is the CPU. Processes of
    their own read the data again; what they stopped with is a `KAError`. No bar is shown: kept in a notebook, it says
    0 % for ever.
    """
    if not is_whole(devices) or devices < 1:
        raise KAError(f"devices={devices!r} is not a whole number of at least 1; give one")
    if devices == 1:
        return train(config, scenes, restart=restart, watch=watch, bar=False)
    run = Run(run_folder(config).resolve())
    fields = config.to_dict() | {"run_dir": str(run.path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    command = [*torchrun, "-m", "workbook.training.distributed", "demo", *(f"{k}={v!r}" for k, v in fields.items())]
    # Errors come back in files outside the run folder, which may be in use, or what cannot be written.
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+", encoding="utf-8") as log:
        # One's own network lies here. The processes stay here too: paths of data may be relative, and any of a list
        where = os.pathsep.join(filter(None, (os.getcwd(), str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, PARENT: str(os.getpid()), ERRORS: folder, "PYTHONPATH": where}
        command += ["--restart"] if restart else []
        code = _watched(subprocess.Popen(command, stdout=log, stderr=log, env=environment), run, watch)
        errors = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("rank*.txt"))]
        if code and not errors:
            log.seek(0)
            errors = [f"{devices} processes ended early: {' '.join(log.read().splitlines()[-5:])[-500:]}"]
    if errors:
        raise KAError(errors[0])
    return run


def _watched(process: "subprocess.Popen[bytes]", run: Run, watch: Watch | None) -> int:
    """Show a run's history until its process ends, and end it where the watching ends: Ctrl-C, or an error."""
    shown: list[dict[str, Any]] = []
    try:
        while process.poll() is None:
            time.sleep(0.5)
            if watch is not None and (history := run.history()) != shown:
                shown = history
                watch(history)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
    return process.wait()


def main(arguments: Sequence[str]) -> int:
    """One of the processes: 0 if the run is finished, 2 for an error of the user's, 130 if stopped."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser("python -m workbook.training.distributed", description=about)
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
        if (folder := os.environ.get(ERRORS)) is not None:
            write_bytes(Path(folder) / f"rank{ranks.number:05}.txt", str(error).encode())
        print(("" if ranks.first else f"rank {ranks.number}, ") + f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    if ranks.first:
        mean = run.metrics()["methods"]["best"]["mean"]
        known = [name for name in ("psnr", "sam", "ergas") if mean[name] is not None]
        print(f"{run.path}: " + ", ".join(f"{METRICS[name].heading} {mean[name]:.3f}" for name in known))
    return 0


def _end_with_parents() -> None:
    """End when torchrun is killed, or the notebook that started it: training on unseen would hold the run's lock."""
    parents = [os.getppid(), int(os.environ.get(PARENT, os.getppid()))]
    while os.getppid() == parents[0] and psutil.pid_exists(parents[1]):
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
