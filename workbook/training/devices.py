"""The device of a run: which one, whether the training scenes fit on it, how much of its memory was used."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from ka.data.patches import DevicePatches, Patches
from ka.errors import KAError
from ka.inference import free_bytes

log = logging.getLogger("ka")


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one. CUDA that is absent is a `KAError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        n = torch.cuda.device_count()
        if int(name.partition(":")[2] or 0) >= n:
            raise KAError(f"device={name!r} is not here ({n} CUDA devices are); choose auto or cpu")
    return torch.device(name)


def placed(patches: Patches, device: torch.device) -> Patches | DevicePatches:
    """Patches where they are best cut: on CUDA, if the scenes fit in half of its free memory; else on the host. On the
    CPU cutting is a thousandth of an iteration, and a second copy of the scenes would only cost memory.
    """
    if device.type != "cuda":
        return patches
    try:
        if patches.nbytes <= free_bytes(device) / 2:
            return patches.to(device)
    except torch.OutOfMemoryError:  # another process was faster
        pass
    text = "the training scenes (%.1f GiB) do not fit on %s: patches are cut by the host, which is slower"
    log.warning(text, patches.nbytes / 2**30, device)
    return patches


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Reproducible CUDA kernels inside the block."""
    if not on:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def peak_bytes(device: torch.device) -> int:
    """Most memory in use so far, or since `forget_peak`: allocated on a GPU, or of this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # where there is one, getrusage would also tell of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource  # noqa: PLC0415  (Windows has none)
    except ImportError:
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: torch.device) -> None:
    """Begin to measure `peak_bytes` anew. Where the system cannot, the peak of the process's start stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
