"""The processes that train one model together, each with its share of every batch: Lightning Fabric's, if several.

Every rank draws the same batch and takes its share of it; gradients are averaged over ranks, so that a run is that of
one process to rounding. Rank 0 alone writes and validates. What a run folder holds does not depend on the number of
ranks: it may change on the way. `workbook.training.distributed` starts them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from ka.errors import KAError


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model, as a launched Lightning Fabric joins them; by default this one alone."""

    fabric: Any = None

    @property
    def count(self) -> int:
        return 1 if self.fabric is None else int(self.fabric.world_size)

    @property
    def number(self) -> int:
        return 0 if self.fabric is None else int(self.fabric.global_rank)

    @property
    def first(self) -> bool:
        return self.fabric is None or bool(self.fabric.is_global_zero)

    @property
    def device(self) -> torch.device | None:
        """The device of this rank; None if the configuration says."""
        return None if self.fabric is None else self.fabric.device

    def check(self, batch: int) -> None:
        """Make sure that every rank has as many patches of a batch; a `KAError` if it does not divide."""
        if batch % self.count:
            raise KAError(f"batch={batch} does not divide by {self.count} processes; change one of the two")

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over ranks, on the same parameters."""
        return model if self.fabric is None else self.fabric.setup_module(model)

    def share(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.fabric is None:
            return dict(batch)
        return {key: value[self.number :: self.count] for key, value in batch.items()}

    def backward(self, loss: Tensor) -> None:
        if self.fabric is None:
            loss.backward()
        else:
            self.fabric.backward(loss)

    def mean(self, value: Tensor) -> Tensor:
        return value if self.fabric is None else self.fabric.all_reduce(value, reduce_op="mean")

    def agree(self, error: str | None = None) -> None:
        """Wait for all; what rank 0 could not do is every rank's `KAError`."""
        if self.fabric is not None and (first := self.fabric.broadcast(error)) is not None:
            raise KAError(first)

    def same(self, number: int, what: str) -> None:
        """Make sure that all ranks came with the same number; a `KAError` if they see different files."""
        if self.fabric is not None and self.fabric.all_gather(torch.tensor(number)).unique().numel() > 1:
            raise KAError(f"the processes do not see the same {what}; put it on a disk that all machines share")


ALONE = Ranks()


def launched(device: str = "auto") -> Ranks:
    """This process among those that torchrun or Slurm started; alone if neither did.

    `device` is `auto`, `cpu` or `cuda`; on CUDA every process of a machine has a GPU of its own. A GPU by number is a
    `KAError`, and so is Fabric not being installed, or not able to join them.
    """
    local, nodes = _places(os.environ)
    if local * nodes == 1:
        return ALONE
    if ":" in device:
        raise KAError(f"device={device!r} is one GPU, and every process has its own; give auto, cpu or cuda")
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    try:
        from lightning_fabric import Fabric  # noqa: PLC0415  (seconds that a single process need not pay)
        from lightning_fabric.strategies import DDPStrategy  # noqa: PLC0415
    except ImportError:
        raise KAError("several processes need lightning-fabric; pip install lightning-fabric") from None
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(local))  # Fabric asks for it; srun sets it only if told
    patient = DDPStrategy(timeout=timedelta(days=1))  # while rank 0 validates, the others wait
    try:
        fabric = Fabric(accelerator="cuda" if cuda else "cpu", devices=local, num_nodes=nodes, strategy=patient)
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        cure = "give every process a GPU that it sees beside the others', or device=cpu"
        raise KAError(f"{local} processes on {nodes} machines could not be joined ({reason}); {cure}") from error
    return Ranks(fabric)


def _places(environment: Mapping[str, str]) -> tuple[int, int]:
    """Processes on this machine, and machines, as torchrun or a step of Slurm (srun) tell; as many on each."""
    if "LOCAL_WORLD_SIZE" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        return local, int(environment.get("WORLD_SIZE", local)) // local
    tasks, nodes = (int(environment.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("TASKS", "NODES"))
    if tasks % nodes:
        raise KAError(f"{tasks} tasks on {nodes} machines are not as many on each; give srun --ntasks-per-node")
    return tasks // nodes, nodes
