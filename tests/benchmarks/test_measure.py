"""Clock, memory, counts, and processes of their own."""

import pytest
import torch
from measured import CPU, TINY, model_of

from benchmarks import bench, measure, processes
from benchmarks.measure import Counter, Work, alternate, count
from benchmarks.reference import reference
from ka.errors import KAError
from ka.models.counts import flops
from ka.models.kernel_attention import KernelAttention
from ka.models.variants import PSRT_ROWS, variant
from workbook.results.speed import (
    Startup,
)

KA = [name for name, row in PSRT_ROWS.items() if row.has_ka]


class Fake:
    """A place whose clock only runs while its works do."""

    cuda = False

    def __init__(self) -> None:
        self.time, self.ran = 0.0, list[str]()

    def now(self) -> float:
        return self.time

    def work(self, name: str, seconds: float) -> Work:
        def run() -> None:
            self.time += seconds
            self.ran.append(name)

        return Work(run)


def test_the_plain_form_pays_for_every_kernel_and_the_first_convolution() -> None:
    """kav19: four convolutions, a fusion, and the first convolution of every window, instead of one convolution."""
    extra = 2 * 64 * 64 * 18 * ((4 + 1 - 1) * 9 * 24 * 24 + 4 * 24 * 24)
    plain, deployed = (count("kav19", 48, 1, 64, 31, 3, form)[0] for form in ("plain", "deployed"))
    assert plain - deployed == extra


def test_counts_are_those_of_pytorchs_counter() -> None:
    for name in ("kav4", "kav17"):
        assert count(name, 8, 1, 16, 4, 2, "deployed")[0] == flops(name, 8, 16, 4, 2)
    assert count("kav4", 8, 1, 16, 4, 2, "step")[0] > 2 * flops("kav4", 8, 16, 4, 2)


def test_bytes_by_hand() -> None:
    a, b = torch.ones(10), torch.ones(10, dtype=torch.float64)
    with Counter() as counter:
        (a.view(2, 5).t() @ a.view(2, 5)).add_(1)
    assert counter.flops == 2 * 5 * 2 * 5
    assert counter.bytes == 4 * (10 + 10 + 25) + 4 * (25 + 25)
    with Counter() as counter:
        b.sum()
    assert (counter.flops, counter.bytes) == (0, 8 * (10 + 1))


def test_peak_memory_is_exact() -> None:
    """Two tensors of 1 MiB at once, one freed, then another of 3: at most 4 MiB are held."""

    def run() -> None:
        one, two = (torch.ones(2**18) for _ in range(2))
        del one
        three = torch.ones(3 * 2**18)
        del two, three

    assert measure.peak(Work(run), CPU)[0] == 4
    assert measure.peak(Work(lambda: torch.ones(2**18)), CPU)[0] == 1


def test_peak_memory_is_the_same_in_every_run() -> None:
    layer = KernelAttention(8, variant("kav6"))
    x, grad = torch.randn(2, 8, 16, 16, requires_grad=True), torch.randn(2, 8, 16, 16)
    work = bench.layer_work(layer, x, grad)
    work.run()
    measurement = [measure.peak(work, CPU)[0] for _ in range(3)]
    assert measurement[0] == measurement[1] == measurement[2] > 3 * x.nbytes / 2**20  # its result, and two gradients


def test_work_begins_without_gradients() -> None:
    layer = KernelAttention(8, variant("kav11"))
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    work = bench.layer_work(layer, x, torch.ones(1, 8, 8, 8))
    work.run()
    once = x.grad.clone()
    work.clear()
    work.run()
    assert torch.equal(x.grad, once)


def test_every_round_has_every_work_side_by_side_in_an_order_of_its_own() -> None:
    place = Fake()
    works = {name: {form: place.work(name + form, 2.0) for form in "fp"} for name in "abcdef"}
    measurement = alternate(works, 5, place)  # type: ignore[arg-type]
    rounds = [place.ran[i : i + 12] for i in range(12, 72, 12)]
    assert len(place.ran) == 72  # one to warm up
    assert all(sorted(each) == sorted(place.ran[:12]) for each in rounds)
    assert all(each[i][0] == each[i + 1][0] for each in rounds for i in range(0, 12, 2))
    assert len({tuple(each) for each in rounds}) == 5
    assert all(timed.seconds == [2.0] * 5 for forms in measurement.values() for timed in forms.values())


def test_short_works_are_repeated_for_one_reading() -> None:
    place = Fake()
    measurement = alternate({"a": {"fast": place.work("", 0.01)}}, 2, place)  # type: ignore[arg-type]
    assert measurement["a"]["fast"].seconds == pytest.approx([0.01, 0.01])
    assert len(place.ran) == 2 + 2 * 5


def test_ceilings_are_positive_and_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    assert measure.gemm(CPU, 32) > 0
    assert measure.gemm(CPU, 32, "bfloat16") > 0
    assert measure.copy(CPU, 1) > 0
    with measure.matmul_precision("high"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_forms_that_disagree_are_not_compared() -> None:
    model = model_of("kav11", torch.float32)
    plain = reference(model)
    torch.nn.init.normal_(plain.model.tail.weight)
    image = (torch.rand(1, 4, 8, 8), torch.rand(1, 2, 8, 8))
    with pytest.raises(KAError, match="kav11: fast and plain differ"):
        bench.agreement("kav11", {"fast": model, "plain": plain}, image, 1e-4)


@pytest.mark.slow
def test_a_scene_in_a_process_of_its_own() -> None:
    """Its memory is its own: less than this process holds, were it inherited."""
    measurement = processes.scene(TINY, 256, 128, CPU)
    assert (measurement.size, measurement.tile, measurement.pixels) == (256, 128, 256**2)
    assert measurement.seconds > 0
    assert measurement.images_mib == pytest.approx(4 * 4 * 256**2 / 2**20, rel=1e-3)
    assert measurement.images_mib / 2 < measurement.mib < measurement.process_mib


@pytest.mark.slow
def test_a_scene_that_fails_is_explained() -> None:
    with pytest.raises(KAError, match=r"a scene of 32×32 could not be sharpened \(.*tile=7 must be"):
        processes.scene(TINY, 32, 7, CPU)


def test_start_up_is_the_difference_within_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    time, started = [0.0], list[str]()

    def run(arguments: list[str], **more: object) -> None:
        started.append(arguments[-1])
        slow = 1 + len(started)
        time[0] += slow + (0.5 if arguments[-1] == "import ka" else 0)

    monkeypatch.setattr(processes.subprocess, "run", run)
    monkeypatch.setattr(processes.time, "perf_counter", lambda: time[0])
    measurement = processes.startup(2)
    assert started == ["import ka", "import torch", "import torch", "import ka", "import ka", "import torch"]
    # pairs: torch 4, ka 5.5; then ka 6.5, torch 7
    assert measurement == Startup(torch=5.5, ka=6.0, more=0.5, low=0.0, high=1.0)
