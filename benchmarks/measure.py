"""The clock, memory, what the machine can do at most; operations and bytes, counted."""

import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import psutil
import torch
from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, RecordScope, _ExperimentalConfig
from torch.autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.reference import reference
from ka.errors import KAError
from ka.models.counts import deployed
from ka.models.psrt import build
from workbook.environment import environment
from workbook.results.speed import significant

MIB = 2**20
Say = Callable[[str], object]
SHORT = 0.05  # seconds: what takes less is run several times for one reading of the clock


@dataclass(frozen=True)
class Place:
    """Where things run.

    Attributes:
        device: `cpu` or `cuda`.
        threads: of PyTorch.
    """

    device: torch.device
    threads: int

    @classmethod
    def of(cls, device: str, threads: int) -> "Place":
        """A place by name.

        Raises:
            KAError: another device, a GPU that is not here, or no positive number of threads.
        """
        if device not in ("cpu", "cuda"):
            raise KAError(f"device={device!r} is unknown; choose cpu or cuda")
        if device == "cuda" and not torch.cuda.is_available():
            raise KAError("device='cuda' is not here; choose cpu, or run this on a machine with a GPU")
        if threads < 1:
            raise KAError(f"threads={threads} is not a positive whole number")
        return cls(torch.device(device), threads)

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def now(self) -> float:
        """Seconds of a clock, when all that was started is done.

        With one thread it is the processor's time, which stands still while other programs run.
        """
        if self.cuda:
            torch.cuda.synchronize()
        return time.process_time() if not self.cuda and self.threads == 1 else time.perf_counter()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Threads, and a random state of its own, inside the block."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Work:
    """Something to be timed.

    Attributes:
        run: does it, `count` times.
        clear: makes it run as if for the first time (drops gradients).
        count: how often it is done in one run.
    """

    run: Callable[[], object]
    clear: Callable[[], object] = lambda: None
    count: int = 1


@dataclass(frozen=True)
class Timed:
    """What was found of one work.

    Attributes:
        seconds: of every round.
        mib: peak memory above what was there before.
    """

    seconds: list[float]
    mib: float


def alternate(works: Mapping[str, Mapping[str, Work]], rounds: int, place: Place) -> dict[str, dict[str, Timed]]:
    """Time works (name → form → work), in alternation.

    Every round runs every name in an order of its own, and the forms of a name one after the other, in an order of
    their own too: the same place in every round would have its own speed. Memory is measured before, which warms up.
    """
    timed: dict[str, dict[str, Timed]] = {}
    repeats: dict[tuple[str, str], int] = {}
    for name, forms in works.items():
        timed[name] = {}
        for form, work in forms.items():
            mib, seconds = peak(work, place)
            if seconds < 1:
                mib, seconds = peak(work, place)  # the first call also sets up what later ones find
            timed[name][form] = Timed([], mib)
            repeats[name, form] = ceil(SHORT / max(seconds, SHORT / 100))
    shuffled = random.Random(0)
    for _ in range(rounds):
        for name in shuffled.sample(list(works), len(works)):
            for form in shuffled.sample(list(works[name]), len(works[name])):
                timed[name][form].seconds.append(clock(works[name][form], repeats[name, form], place))
    return timed


def clock(work: Work, repeats: int, place: Place) -> float:
    """Seconds of doing it once, over so many runs."""
    begun = place.now()
    for _ in range(repeats):
        work.clear()
        work.run()
    return (place.now() - begun) / (repeats * work.count)


def peak(work: Work, place: Place) -> tuple[float, float]:
    """Peak memory of a run above what was there before, in MiB, and its seconds.

    On the CPU it is counted from what PyTorch's allocator gives out and takes back.
    """
    work.clear()
    begun = place.now()
    if place.cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work.run()
        return (torch.cuda.max_memory_allocated() - before) / MIB, place.now() - begun
    with allocations() as events:
        work.run()
    seconds = place.now() - begun
    held = most = 0
    for size in events:
        held += size
        most = max(most, held)
    return most / MIB, seconds


@contextmanager
def allocations() -> Iterator[list[int]]:
    """What PyTorch's CPU allocator gives out and, negative, takes back inside the block: bytes in the order of time.

    The list is filled when the block ends. `torch.profiler` shows the same, after seconds of parsing operations that
    nobody asked for here: its scope is set to one that no operation has.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its notes would stand between our lines
    config = ProfilerConfig(ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig())
    activities, sizes = {ProfilerActivity.CPU}, list[int]()
    _prepare_profiler(config, activities)
    _enable_profiler(config, activities, {RecordScope.USER_SCOPE})  # type: ignore[call-arg]
    try:
        yield sizes
    finally:
        events: list[Any] = [event for event in _disable_profiler().events() if event.name() == "[memory]"]
        sizes += [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


# What the machine can do


def gemm(place: Place, size: int, kind: str = "float32") -> float:
    """10⁹ FLOPs per second of the product of two random square matrices: the best of five runs.

    Args:
        place: where.
        size: side of the matrices.
        kind: `float32`, `tf32` (float32 on a GPU's matrix units) or `bfloat16`.
    """
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=place.device).to(dtype) for _ in range(2))
    with matmul_precision("high" if kind == "tf32" else "highest"):
        seconds = best(lambda: a @ b, place)
    return significant(2 * size**3 / seconds / 1e9)


def copy(place: Place, mib: int) -> float:
    """10⁹ bytes per second, read and written, of a copy of so many MiB: the best of five runs."""
    source = torch.randn(mib * MIB // 4, device=place.device)
    target = torch.empty_like(source)
    return significant(2 * mib * MIB / best(lambda: target.copy_(source), place) / 1e9)


def best(run: Callable[[], object], place: Place) -> float:
    """Seconds of the fastest of five readings."""
    work = Work(run)
    once = max(clock(work, 1, place) for _ in range(2))
    repeats = ceil(SHORT / max(once, SHORT / 1000))
    return min(clock(work, repeats, place) for _ in range(5))


@contextmanager
def matmul_precision(kind: str) -> Iterator[None]:
    """PyTorch's float32 matrix products in another precision inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(kind)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def busy_cores() -> float:
    """How many processor cores other programs keep busy at the moment."""
    return round(psutil.cpu_percent(interval=0.5) / 100 * (psutil.cpu_count() or 1), 2)


def hardware() -> dict[str, Any]:
    """Processor, GPU, versions and commit, to be kept with the numbers."""
    machine = environment()
    kept = {key: machine[key] for key in ("gpu", "time", "python", "system", "cores", "memory_gib", "commit")}
    return {"cpu": _cpu(), "torch": torch.__version__, **kept}


def _cpu() -> str:
    """The processor's name; Python alone often knows only its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# Counted, not timed


class Counter(TorchDispatchMode):
    """Counts operations inside its block: FLOPs as PyTorch's own counter (which is slower, as it also tells modules
    apart), and bytes, each tensor of an operation once; views move nothing.

    Attributes:
        flops, bytes: so far.
    """

    def __init__(self) -> None:
        """Start from zero."""
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        if not func.is_view:
            tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def count(name: str, dim: int, batch: int, size: int, n_bands: int, n_msi: int, form: str) -> tuple[int, int]:
    """FLOPs (2 per multiply-add of matrix products and convolutions) and bytes of one run; nothing is computed.

    Args:
        name: a key of `ka.VARIANTS`.
        dim, n_bands, n_msi: of the model.
        batch, size: images, and their side in pixels.
        form: `step` (forward and backward in training), `deployed` or `plain` (inference).
    """
    forms = {"step": lambda model: model, "deployed": deployed, "plain": reference}
    with torch.device("meta"), torch.set_grad_enabled(form == "step"):
        model = forms[form](build(name, n_bands, n_msi, dim))
        up, msi = (torch.empty(batch, bands, size, size) for bands in (n_bands, n_msi))
        with Counter() as counter:
            out = model(up, msi)
            if form == "step":
                out.abs().mean().backward()
    return counter.flops, counter.bytes
