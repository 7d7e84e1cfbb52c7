"""Training and inference with data held on the device: how many samples a second, in which way of running.

Patches are cut, turned and batched on the device from scenes that lie there (`ka.data.patches.DevicePatches`): a step
needs no work of the host; which patches is drawn beforehand, and a captured graph reads it as it goes. Beside the bare
steps stand those of `workbook.training.train` (clipping, averaged weights, checks). On a CPU everything runs but
graphs, whose rows
say so.
"""

import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Place, Say, Work, alternate, count, matmul_precision
from benchmarks.reference import reference
from ka.data import Degradation, Patches, Scene, SceneSet
from ka.data.patches import DevicePatches
from ka.errors import KAError
from ka.models.counts import deployed
from ka.models.psrt import PSRT, build
from workbook.results.speed import Spread, Throughput, significant
from workbook.training.config import AMP, Config
from workbook.training.step import Step, initial_state, read_every

RATIO = 4
PLANNED = 1024  # steps whose patches are drawn beforehand; then they come again


@dataclass(frozen=True)
class Mode:
    """A way of running a model.

    Attributes:
        name: as in the rows.
        kind: `float32`, `tf32` (its products on a GPU's matrix units) or `bfloat16` (automatic mixed precision).
        plain: the model as the study ran it.
        compiled: by `torch.compile`.
        graph: all of a step as one CUDA graph, the cutting of patches included.
        whole: the step of `workbook.training.train`, several at a time as there.
    """

    name: str
    kind: str = "float32"
    plain: bool = False
    compiled: bool = False
    graph: bool = False
    whole: bool = False


MODES = (
    Mode("plain", plain=True),
    Mode("float32"),
    Mode("float32, graph", graph=True),
    Mode("tf32, graph", "tf32", graph=True),
    Mode("bfloat16", "bfloat16"),
    Mode("bfloat16, graph", "bfloat16", graph=True),
    Mode("float32, workbook.training.train", whole=True),
    Mode("bfloat16, workbook.training.train", "bfloat16", whole=True),
    Mode("float32, compiled, graph", compiled=True, graph=True),
    Mode("bfloat16, compiled, graph", "bfloat16", compiled=True, graph=True),
)


@dataclass(frozen=True)
class Plan:
    """What is run; defaults are the study's protocol.

    Attributes:
        variants: models.
        compiled: those that are also compiled (a minute each).
        modes: ways of running.
        dim, n_bands, n_msi: of the models.
        batch, size: patches of a training step, and their side in pixels.
        image: side of the image of inference.
        scenes, scene: number of scenes held (speed does not depend on it), and their side.
        rounds: of the clock.
        together: numbers of small models to train side by side.
        small_dim, small_batch, small_size: of these.
        backend: of `torch.compile`.
    """

    variants: tuple[str, ...] = ("psrt_noshuffle", "kav11")
    compiled: tuple[str, ...] = ("kav11",)
    modes: tuple[Mode, ...] = MODES
    dim: int = 48
    n_bands: int = 31
    n_msi: int = 3
    batch: int = 32
    size: int = 64
    image: int = 512
    scenes: int = 4
    scene: int = 512
    rounds: int = 5
    together: tuple[int, ...] = (1, 2, 4, 8)
    small_dim: int = 24
    small_batch: int = 8
    small_size: int = 16
    backend: str = "inductor"


def patches_of(plan: Plan, size: int) -> Patches:
    """Patches of scenes of noise: speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    scenes = []
    for k in range(plan.scenes):
        sizes = (plan.n_bands, plan.n_bands, plan.n_msi)
        gt, up, msi = (rng.random((n, plan.scene, plan.scene), dtype=np.float32) for n in sizes)
        scenes.append(Scene(str(k), gt, gt[:, ::RATIO, ::RATIO], up, msi))
    names = tuple(map(str, range(plan.n_msi)))
    return Patches(
        SceneSet("noise", "train", Degradation(RATIO), None, (0, 0, 0), names, scenes), size, max(RATIO, size // 2)
    )


def measure(plan: Plan, place: Place, gemm: Mapping[str, float], moved: float, say: Say) -> Iterator[list[Throughput]]:
    """Every mode of every variant, in alternation, and small models side by side; what takes longest comes last.

    Args:
        plan: what is run.
        place: where.
        gemm: precision → 10⁹ FLOPs per second that a matrix product reached.
        moved: 10⁹ bytes per second that a copy reached.
        say: is told what is being done.

    Returns:
        Rows, a group after the other; what did not run says why.
    """
    usual = [mode for mode in plan.modes if not mode.compiled]
    compiled = [mode for mode in plan.modes if mode.compiled]
    for what in ("training", "inference"):
        for name in plan.variants:
            say(f"throughput: {what}, {name}")
            yield _modes(plan, usual, place, what, name, gemm, moved)
    for name in plan.variants[-1:]:
        say(f"throughput: small models side by side, {name}")
        yield _together(plan, place, name)
    for what in ("training", "inference") if compiled else ():
        for name in plan.compiled:
            say(f"throughput: {what}, {name}, compiled")
            plain = [mode for mode in usual if mode.plain]
            rows = _modes(plan, [*plain, *compiled], place, what, name, gemm, moved)
            yield rows[len(plain) :]


def _modes(
    plan: Plan,
    modes: Sequence[Mode],
    place: Place,
    what: str,
    name: str,
    gemm: Mapping[str, float],
    moved: float,
) -> list[Throughput]:
    """One variant in these modes, in alternation."""
    torch.manual_seed(0)
    model = build(name, plan.n_bands, plan.n_msi, plan.dim).to(place.device)
    training = what == "training"
    batch, size = (plan.batch, plan.size) if training else (1, plan.image)
    image = [torch.rand(1, bands, size, size, device=place.device) for bands in (plan.n_bands, plan.n_msi)]
    patches = patches_of(plan, plan.size).to(place.device)
    rows: dict[str, Throughput] = {}
    works: dict[str, Work] = {}
    for mode in modes:
        if mode.whole and not training:
            continue
        rows[mode.name] = Throughput(what, name, mode.name, 1, batch, size, plan.dim)
        try:
            if mode.whole:
                work = whole_work(plan, name, patches, mode, place)
            else:
                form = _form(model, mode, training, plan.backend)
                work = training_work(form, patches, batch, mode, place) if training else _inference(form, image, mode)
            works[mode.name] = captured(work, place) if mode.graph else work
            works[mode.name].run()
        except Exception as error:  # a mode that does not run here must not end a run on a machine lent by the minute
            works.pop(mode.name, None)
            rows[mode.name] = replace(rows[mode.name], failed=_reason(error))
    timed = alternate({name: works}, plan.rounds, place)[name]
    sizes = (name, plan.dim, batch, size, plan.n_bands, plan.n_msi)
    flops, moves = count(*sizes, "step" if training else "deployed")
    for mode in modes:
        if mode.name in timed:
            found = timed[mode.name]
            per_second = 1 / statistics.median(found.seconds)  # steps or images
            ceiling = gemm.get(mode.kind)
            rows[mode.name] = replace(
                rows[mode.name],
                per_second=significant(batch * per_second),
                faster=Spread.of(timed["plain"].seconds, found.seconds) if "plain" in timed else None,
                of_gemm=None if mode.plain or ceiling is None else significant(flops * per_second / 1e9 / ceiling),
                of_copy=None if mode.plain else significant(moves * per_second / 1e9 / moved),
                mib=None if mode.graph else significant(found.mib),
            )
    return list(rows.values())


def _together(plan: Plan, place: Place, name: str) -> list[Throughput]:
    """Numbers of small models side by side: on a GPU a graph each, on streams of their own."""
    patches = patches_of(plan, plan.small_size).to(place.device)
    mode = Mode("float32, graph", graph=True) if place.cuda else Mode("float32")
    sizes = (plan.small_batch, plan.small_size, plan.small_dim)
    rows: dict[int, Throughput] = {}
    works: dict[str, Work] = {}
    for number in plan.together:
        rows[number] = Throughput("training", name, mode.name, number, *sizes)
        try:
            works[str(number)] = _side_by_side(plan, place, patches, name, number, mode)
            works[str(number)].run()
        except Exception as error:  # as above
            works.pop(str(number), None)
            rows[number] = replace(rows[number], failed=_reason(error))
    timed = alternate({str(number): {"": work} for number, work in works.items()}, plan.rounds, place)
    for number in plan.together:
        if str(number) in timed:
            seconds = statistics.median(timed[str(number)][""].seconds)
            rows[number] = replace(rows[number], per_second=significant(number * plan.small_batch / seconds))
    return list(rows.values())


def _side_by_side(plan: Plan, place: Place, patches: DevicePatches, name: str, number: int, mode: Mode) -> Work:
    models = [build(name, plan.n_bands, plan.n_msi, plan.small_dim).to(place.device) for _ in range(number)]
    works = [training_work(model, patches, plan.small_batch, mode, place) for model in models]
    if not mode.graph:

        def one_after_the_other() -> None:
            for work in works:
                work.clear()
                work.run()

        return Work(one_after_the_other)
    graphs = [captured(work, place) for work in works]
    streams = [torch.cuda.Stream() for _ in graphs]

    def at_once() -> None:
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.run()

    return Work(at_once)


def _form(model: PSRT, mode: Mode, training: bool, backend: str) -> nn.Module:
    """A copy of the model as the mode runs it."""
    if mode.plain:
        form: nn.Module = reference(model)
    else:
        form = copy.deepcopy(model) if training else deployed(model)
    if mode.compiled:
        form.compile(backend=backend)
    return form.train(training)


def training_work(model: nn.Module, patches: DevicePatches, batch: int, mode: Mode, place: Place) -> Work:
    """A training step on patches that it cuts itself: forward, L1, backward, AdamW."""
    rng = np.random.default_rng(0)
    plan = patches.plan([(rng.integers(len(patches), size=batch).tolist(), (0, step)) for step in range(PLANNED)])
    turn = torch.zeros(1, dtype=torch.int64, device=place.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, capturable=mode.graph)

    def run() -> None:
        cut = patches.cut(plan.index_select(0, turn % PLANNED)[0])
        with _precision(mode, place):
            prediction = model(cut["up"], cut["msi"])
            (prediction.float() - cut["gt"]).abs().mean().backward()
        optimizer.step()
        turn.add_(1)

    return Work(run, lambda: optimizer.zero_grad(set_to_none=True))


def whole_work(plan: Plan, name: str, patches: DevicePatches, mode: Mode, place: Place) -> Work:
    """As many steps of `workbook.training.train` as it takes between two readings of the loss."""
    amp: AMP = "bfloat16" if mode.kind == "bfloat16" else "none"
    config = Config(
        name, dim=plan.dim, patch=plan.size, stride=patches.patches.stride, batch=plan.batch, iterations=10**6,
        lr=1e-4, augment=True, amp=amp,
    )  # fmt: skip
    state = initial_state(config, plan.n_bands, plan.n_msi, place.device)
    steps, count = Step(config, 10**6, patches), read_every(place.device)
    return Work(lambda: steps(state, count), count=count)


def _inference(model: nn.Module, image: Sequence[Tensor], mode: Mode) -> Work:
    def run() -> None:
        with torch.no_grad(), _precision(mode, Place(image[0].device, 0)):
            model(*image)

    return Work(run)


@contextmanager
def _precision(mode: Mode, place: Place) -> Iterator[None]:
    with matmul_precision("high" if mode.kind == "tf32" else "highest"):
        if mode.kind == "bfloat16":
            with torch.autocast(place.device.type, torch.bfloat16):
                yield
        else:
            yield


def captured(work: Work, place: Place) -> Work:
    """The same work as one CUDA graph.

    Raises:
        KAError: there is no GPU.
    """
    if not place.cuda:
        raise KAError("graphs need a GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work.clear()
            work.run()
    torch.cuda.current_stream().wait_stream(side)
    work.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.run()
    return Work(graph.replay)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]
