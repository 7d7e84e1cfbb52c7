"""A sweep's folder, which holds all of its state: what is done, running or missing is read from it.

plan.json    what is to be trained (`workbook.sweeps.plan`)
runs/        a run folder each
results/, weights/    what is kept of a finished run: its metrics, and its best weights in float16
failed/      a line for each run that failed; it is tried again by the next call
notebooks/   executed notebooks, where runs are notebooks
jobs/        logs, and what submitit hands its jobs
claims/      who works at what
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ka.errors import KAError
from workbook.sweeps.plan import Plan, Planned
from workbook.training.config import Config
from workbook.training.devices import pick_device
from workbook.training.run import Run
from workbook.training.scenes import Data, load_data

DAY = 24 * 60  # minutes


@dataclass(frozen=True)
class Sweep:
    """A plan in its folder, and what is this call's alone. A run whose metrics and weights are kept is done."""

    plan: Plan
    folder: Path
    data: str | None = None  # the data set's folder here, where it needs one
    device: str = "auto"  # as in `Config`
    cluster: str = "local"  # or slurm
    jobs: int = 1  # runs at a time
    minutes: int = DAY  # after which Slurm stops a job; it is then queued again, and goes on
    slurm: Mapping[str, Any] = field(default_factory=dict)  # options of sbatch, such as partition or gres
    notebooks: bool = False  # train each run as an executed copy of `train.ipynb`
    total: int | None = None  # iterations of a run; None where that depends on scenes that are not here

    def config(self, planned: Planned) -> Config:
        return self.plan.config(planned, self.data, self.device, str(self.run(planned).path))

    def run(self, planned: Planned) -> Run:
        return Run(self.folder / "runs" / planned.name)

    def result(self, planned: Planned) -> Path:
        return self.folder / "results" / self.plan.protocol / f"{planned.name}.json"

    def weights(self, planned: Planned) -> Path:
        return self.folder / "weights" / f"{planned.name}.safetensors"

    def failure(self, planned: Planned) -> Path:  # there until it succeeds
        return self.folder / "failed" / f"{planned.name}.txt"

    def notebook(self, planned: Planned) -> Path:  # executed, also of a failure
        return self.folder / "notebooks" / f"{planned.name}.ipynb"

    def claim(self, planned: Planned) -> FileLock:
        """What the one process holds that works at it, on whichever machine; it ends with the process."""
        return FileLock(self.folder / "claims" / f"{planned.name}.lock")

    def claimed(self, planned: Planned) -> bool:
        claim = self.claim(planned)
        if not Path(claim.lock_file).exists():
            return False
        try:
            with claim.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def done(self, planned: Planned) -> bool:
        """Whether there is nothing left to do; its run folder may have been removed since."""
        return self.result(planned).exists() and self.weights(planned).exists()

    @property
    def missing(self) -> list[Planned]:
        return [planned for planned in self.plan.runs if not self.done(planned)]

    @property
    def lacks_data(self) -> bool:
        return self.plan.shared["dataset"] != "indian_pines" and self.data is None

    def load(self) -> Data | None:
        """The scenes, if a run still has to be trained; CAVE's are read when first asked for. Where the data, or the
        device of a local sweep, are not here: a `KAError`.
        """
        untrained = [planned for planned in self.missing if not self.run(planned).finished]
        if not untrained:
            return None
        if self.lacks_data:
            raise KAError(f"{self.plan.protocol} trains on {self.plan.shared['dataset']}; give its folder with --data")
        if self.cluster != "slurm":  # what is here is not what is on the nodes
            pick_device(self.device)
        return load_data(self.config(untrained[0]))
