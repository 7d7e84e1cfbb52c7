"""Benchmarks: the plain reference is the same function, counts and memory are exact, the clock is fair, and files,
verdicts and figures say what was measured."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor

import ka
from benchmarks import __main__ as command
from benchmarks import bench, measure, report, scenes, startup, throughput
from benchmarks.counts import Counter, count
from benchmarks.measure import Place, Work, alternate
from benchmarks.reference import ReferenceLayer, reference, reference_layer, serial
from ka.data.patches import DevicePatches
from ka.errors import KAError
from ka.models import kernel_attention, kernel_parts, psrt
from ka.models.counts import flops
from ka.models.kernel_attention import KernelAttention
from ka.models.study_names import study_layer_keys
from ka.models.variants import VARIANTS, variant
from workbook.results import speed, speed_figures
from workbook.results.speed import (
    Goal,
    Measurement,
    Pair,
    SceneCost,
    Setting,
    Speed,
    Spread,
    Startup,
    Throughput,
    verdicts,
)
from workbook.style import encoded

KA = [name for name, row in VARIANTS.items() if row.has_ka]
CPU = Place.of("cpu", 1)
TINY = Setting(
    dim=8, n_bands=4, n_msi=2, layer_batch=2, layer_size=8, step_batch=1, step_size=8, inference_size=8, counted=8,
    layer_rounds=2, step_rounds=2, inference_rounds=2, startups=1, gemm=32, copied=1, scenes=((16, 0), (32, 16)),
)  # fmt: skip


def model_of(name: str, dtype: torch.dtype) -> ka.PSRT:
    """A small model whose every parameter is far from zero."""
    model = ka.build(name, n_bands=4, n_msi=2, dim=8).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, by the largest value (gradients behind a ReLU that is off are zero)."""
    return ((one - other).abs().max() / other.abs().max().clamp(min=1e-30)).item()


# The reference


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", VARIANTS)
def test_fast_and_plain_are_the_same_function(name: str, dtype: torch.dtype, bound: float) -> None:
    fast = model_of(name, dtype)
    plain = reference(fast)
    up, msi = (torch.rand(2, bands, 16, 24, dtype=dtype) for bands in (4, 2))
    weight = torch.randn_like(up)
    outs = [model(up, msi) for model in (fast, plain)]
    assert gap(*outs) <= bound
    for out in outs:
        (out * weight).sum().backward()
    wanted = {key: parameter.grad for key, parameter in plain.model.named_parameters()}
    assert set(wanted) == {key for key, _ in fast.named_parameters()}
    for key, parameter in fast.named_parameters():
        assert gap(parameter.grad, wanted[key]) <= 30 * bound, key


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", KA)
def test_layers_alone_are_the_same_function(name: str, dtype: torch.dtype, bound: float) -> None:
    fast = KernelAttention(8, variant(name)).to(dtype)
    for parameter in fast.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain = reference_layer(fast, 8).to(dtype)
    x = torch.randn(2, 8, 8, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn_like(x)
    ours, theirs = fast(x), plain(x)
    assert gap(ours, theirs) <= bound
    one = torch.autograd.grad((ours * weight).sum(), [x, *fast.parameters()])
    other = torch.autograd.grad((theirs * weight).sum(), [x, *plain.layer.parameters()])
    assert all(gap(a, b) <= 10 * bound for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("size", [(13, 22), (1, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    fast = model_of("kav4", torch.float64)
    up, msi = (torch.rand(1, bands, *size).double() for bands in (4, 2))
    assert gap(reference(fast)(up, msi), fast(up, msi)) < 1e-12


@pytest.mark.parametrize("name", ["kav1", "kav3", "kav6", "kav8_as_run", "kav16"])
def test_the_reference_meets_golden_layers(shared: Path, name: str) -> None:
    with np.load(shared / "golden" / f"{name}.npz") as golden:
        arrays = {key: torch.from_numpy(golden[key]) for key in golden.files}
    weights = {key.removeprefix("w."): value for key, value in arrays.items() if key.startswith("w.")}
    layer = KernelAttention(24, variant(name)).double()
    layer.load_state_dict(study_layer_keys(weights, variant(name)))
    y = reference_layer(layer, 24)(arrays["x"].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(y, arrays["y"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["net_kav3", "psrt_misaligned", "psrt_noshuffle"])
def test_the_reference_meets_golden_networks(shared: Path, name: str) -> None:
    with np.load(shared / "golden" / f"{name}.npz") as golden:
        arrays = {key: torch.from_numpy(golden[key]) for key in golden.files}
    state = {key.removeprefix("w."): value for key, value in arrays.items() if key.startswith("w.")}
    plain = reference(ka.load_checkpoint(state, variant=name.removeprefix("net_")))
    with torch.no_grad():
        torch.testing.assert_close(plain(arrays["up"], arrays["rgb"]), arrays["out"], rtol=0, atol=1e-10)


def test_the_reference_calls_nothing_of_the_fast_models(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [reference(model_of(name, torch.float32)) for name in ("psrt", "kav1", "kav4", "kav6", "kav17")]

    def fast(*args: object, **more: object) -> Tensor:
        raise AssertionError("fast code was called")

    for module in (kernel_attention, kernel_parts, psrt):
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, torch.nn.Module) and thing.__module__ == module.__name__:
                monkeypatch.setattr(thing, "forward", fast)
    monkeypatch.setattr(F, "scaled_dot_product_attention", fast)
    with pytest.raises(AssertionError, match="fast code"):
        model_of("kav6", torch.float32)(torch.rand(1, 4, 8, 8), torch.rand(1, 2, 8, 8))
    for model in plain:
        assert model(torch.rand(1, 4, 8, 8), torch.rand(1, 2, 8, 8)).isfinite().all()


def test_serial_variants_are_those_that_the_study_names() -> None:
    """Its list marks kav3, kav4, kav5 and kav6 as serial, and kav1, kav2, kav10 and kav11 as parallel."""
    assert {name for name in KA if serial(VARIANTS[name])} == {"kav3", "kav4", "kav5", "kav6", "kav5_as_run"}


def test_kav5_as_run_computes_before_it_returns_its_input() -> None:
    plain = reference_layer(KernelAttention(8, variant("kav5_as_run")), 8)
    x = torch.randn(1, 8, 8, 8)
    with Counter() as counter:
        assert torch.equal(plain(x), x)
    assert counter.flops > 2 * 2 * 64 * 8 * 8 * 9  # the convolutions of the windows, and of the image
    before = torch.random.get_rng_state()
    assert isinstance(reference_layer(plain.layer, 8).dead, ReferenceLayer)
    assert torch.equal(torch.random.get_rng_state(), before)


# Counts


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


# Clock and memory


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
    found = [measure.peak(work, CPU)[0] for _ in range(3)]
    assert found[0] == found[1] == found[2] > 3 * x.nbytes / 2**20  # its result, and two gradients


def test_work_begins_without_gradients() -> None:
    layer = KernelAttention(8, variant("kav11"))
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    work = bench.layer_work(layer, x, torch.ones(1, 8, 8, 8))
    work.run()
    once = x.grad.clone()
    work.clear()
    work.run()
    assert torch.equal(x.grad, once)


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


def test_every_round_has_every_work_side_by_side_in_an_order_of_its_own() -> None:
    place = Fake()
    works = {name: {form: place.work(name + form, 2.0) for form in "fp"} for name in "abcdef"}
    found = alternate(works, 5, place)  # type: ignore[arg-type]
    rounds = [place.ran[i : i + 12] for i in range(12, 72, 12)]
    assert len(place.ran) == 72  # one to warm up
    assert all(sorted(each) == sorted(place.ran[:12]) for each in rounds)
    assert all(each[i][0] == each[i + 1][0] for each in rounds for i in range(0, 12, 2))
    assert len({tuple(each) for each in rounds}) == 5
    assert all(timed.seconds == [2.0] * 5 for forms in found.values() for timed in forms.values())


def test_short_works_are_repeated_for_one_reading() -> None:
    place = Fake()
    found = alternate({"a": {"fast": place.work("", 0.01)}}, 2, place)  # type: ignore[arg-type]
    assert found["a"]["fast"].seconds == pytest.approx([0.01, 0.01])
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


# A whole run


@pytest.fixture(scope="module")
def found() -> Measurement:
    """A tiny run of three variants; processes of their own are tested apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "measure", lambda pairs: Startup(2.0, 2.5, 0.5, 0.4, 0.6))
        patch.setattr(scenes, "measure", lambda setting, size, tile, place, repeats: SceneCost(size, tile, 1, 1, 1, 1))
        parts: list[Measurement] = []
        torch.manual_seed(7)
        wanted = torch.rand(1)
        torch.manual_seed(7)
        result = bench.run(TINY, ["kav17", "kav5_as_run"], CPU, save=parts.append)
        assert torch.rand(1) == wanted  # the random state outside is left alone
    assert [part.scenes is None for part in parts] == [True, True, False]
    assert parts[-1] == result
    return result


def test_a_run_measures_everything(found: Measurement) -> None:
    assert list(found.variants) == ["psrt_noshuffle", "kav17", "kav5_as_run"]
    assert (found.device, found.threads, found.full, found.throughput) == ("cpu", 1, False, None)
    base, gated, identity = found.variants.values()
    assert base.layer is None
    assert identity.layer is None  # it returns its input: there is nothing to time
    assert gated.layer is not None
    assert base.to_baseline == Spread(1, 1, 1, 1)
    assert all(speed.agreement < 1e-4 for speed in found.variants.values())
    assert gated.live == gated.deployed == ka.parameter_count("kav17", 4, 2, 8).live
    for name, each in found.variants.items():
        for pair in filter(None, (each.layer, each.step, each.inference)):
            assert min(pair.ms, pair.plain_ms, pair.mib, pair.plain_mib) > 0
            assert pair.faster.low <= pair.faster.median <= pair.faster.high
        assert found.of_gemm(name) > 0
        assert found.of_copy(name) > 0
    assert set(found.gemm) == {"float32"}
    assert found.hardware["torch"] == torch.__version__


def test_a_measurement_comes_back_equal_and_leaves_other_devices_alone(found: Measurement, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    other = replace(found, device="cuda", hardware={"gpu": "H200"})
    assert speed.read(path) == {}
    command.store(path, {}, other)
    command.store(path, speed.read(path), found)
    assert speed.read(path) == {"cuda": other, "cpu": found}
    command.store(None, {}, found)
    assert [each.name for each in tmp_path.iterdir()] == ["bench.json"]


def test_the_report_says_what_was_not_measured(found: Measurement) -> None:
    text = "\n".join(report.lines(found, {"cpu": found}))
    assert "kav17" in text
    assert "throughput on a GPU: not measured" in text
    assert "0.50 s more [0.40, 0.60]" in text
    assert text.count(": not measured") == 1 + len(verdicts({}))  # a run that is not full judges nothing


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(format=2), lambda value: value.pop("devices"),
        lambda value: value["devices"]["cpu"].update(more=1),
        lambda value: value["devices"]["cpu"].pop("gemm"),
        lambda value: value["devices"]["cpu"].update(copy="9"),
        lambda value: value["devices"]["cpu"].update(copy=math.inf),
        lambda value: value["devices"]["cpu"].update(threads=True),
        lambda value: value["devices"]["cpu"].update(variants=[]),
        lambda value: value["devices"]["cpu"].update(scenes=[{}]),
        lambda value: value["devices"]["cpu"].update(device="cuda"),
        lambda value: value["devices"]["cpu"]["variants"]["kav17"]["step"].update(faster=None),
        lambda value: value["devices"]["cpu"]["setting"].update(scenes=[[1]]),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(found: Measurement, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    path = tmp_path / "bench.json"
    command.store(path, {}, found)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(KAError, match=r"bench\.json is damaged or of another kind .* make bench"):
        speed.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "devices": []}'])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(KAError, match="damaged or of another kind"):
        speed.read(tmp_path / "bench.json")


# Processes of their own


def test_a_scene_in_a_process_of_its_own() -> None:
    """Its memory is its own: less than this process holds, were it inherited."""
    found = scenes.measure(TINY, 256, 128, CPU)
    assert (found.size, found.tile, found.pixels) == (256, 128, 256**2)
    assert found.seconds > 0
    assert found.images_mib == pytest.approx(4 * 4 * 256**2 / 2**20, rel=1e-3)
    assert found.images_mib / 2 < found.mib < found.process_mib


def test_a_scene_that_fails_is_explained() -> None:
    with pytest.raises(KAError, match=r"a scene of 32×32 could not be sharpened \(.*tile=7 must be"):
        scenes.measure(TINY, 32, 7, CPU)


def test_start_up_is_the_difference_within_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    time, started = [0.0], list[str]()

    def run(arguments: list[str], **more: object) -> None:
        started.append(arguments[-1])
        slow = 1 + len(started)
        time[0] += slow + (0.5 if arguments[-1] == "import ka" else 0)

    monkeypatch.setattr(startup.subprocess, "run", run)
    monkeypatch.setattr(startup.time, "perf_counter", lambda: time[0])
    found = startup.measure(2)
    assert started == ["import ka", "import torch", "import torch", "import ka", "import ka", "import torch"]
    # pairs: torch 4, ka 5.5; then ka 6.5, torch 7
    assert found == Startup(torch=5.5, ka=6.0, more=0.5, low=0.0, high=1.0)


# Throughput


def noise() -> DevicePatches:
    plan = throughput.Plan(n_bands=4, n_msi=2, scenes=2, scene=20)
    return throughput.patches_of(plan, 8).to(CPU.device)


def test_a_step_takes_the_next_patches_without_being_told() -> None:
    patches, seen = noise(), list[Tensor]()
    model = model_of("psrt_noshuffle", torch.float32)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    work = throughput.training_work(model, patches, 2, throughput.Mode("float32"), CPU)
    before = model.head.weight.clone()
    for _ in range(3):
        work.clear()
        work.run()
    assert [each.shape for each in seen] == [(2, 4, 8, 8)] * 3
    assert len({each.sum().item() for each in seen}) == 3
    inside = patches.scenes[:, 4:8].flatten()
    assert all(torch.isin(each, inside).all() for each in seen)
    assert not torch.equal(model.head.weight, before)


def test_throughput_runs_on_a_cpu_but_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is left out here: it takes half a minute."""
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append(options))
    modes = (*throughput.MODES, throughput.Mode("float32, compiled", compiled=True))
    plan = throughput.Plan(
        variants=("psrt_noshuffle",), compiled=("psrt_noshuffle",), modes=modes, dim=8, n_bands=4, n_msi=2, batch=2,
        size=8, image=8, scenes=2, scene=16, rounds=2, together=(1, 2), small_dim=8, small_batch=1, small_size=8,
    )  # fmt: skip
    groups = list(throughput.measure(plan, CPU, {"float32": 10.0}, 5.0, lambda line: None))
    rows = [row for group in groups for row in group]
    assert (
        len(rows) == 2 * len(modes) - 2 + 2
    )  # workbook.training.train has no inference; two rows of models side by side
    for row in rows:
        assert ("graph" in row.mode) == (row.per_second is None) == (row.failed == "KAError: graphs need a GPU")
    by = {(row.what, row.mode): row for row in rows if (row.models == 1 and row.batch == 2) or row.what == "inference"}
    for what in ("training", "inference"):
        assert by[what, "plain"].faster == Spread(1, 1, 1, 1)
        assert by[what, "float32"].of_gemm > 0
        assert by[what, "float32"].of_copy > 0
        assert by[what, "bfloat16"].of_gemm is None  # no ceiling of this precision was given
        assert by[what, "float32, compiled"].per_second > 0
    assert by["training", "float32, workbook.training.train"].per_second > 0
    assert [row.models for row in groups[2]] == [1, 2]
    assert all("compiled" in row.mode for group in groups[3:] for row in group)  # what takes longest comes last
    assert compiled == [{"backend": "inductor"}] * 2 * 3
    found = blank(throughput=tuple(rows))
    assert sum("not measured (KAError: graphs need a GPU)" in line for line in report.lines(found, {})) == 10


# Verdicts


def ratio(value: float) -> Spread:
    return Spread(value, value - 0.1, value + 0.1, value)


def pair(faster: float, smaller: float = 4) -> Pair:
    return Pair(10, 10 * faster, ratio(faster), 1, smaller)


def blank(device: str = "cpu", **changes: Any) -> Measurement:
    """A full measurement in which everything is four times as fast."""
    speeds = {
        name: Speed(9, 9, 9, 9, 9, 9, 0, pair(4) if row.has_ka else None, pair(4), pair(4), ratio(1))
        for name, row in VARIANTS.items()
    }
    known = {"hardware": {"cpu": "none", "gpu": "some", "torch": "2"}, "gemm": {"float32": 100.0}, "copy": 10.0}
    return Measurement(
        **(  # type: ignore[arg-type]
            {"device": device, "threads": 2, "full": True, "seconds": 1.0, "setting": Setting(), "variants": speeds}
            | known
            | changes
        )
    )


def test_nothing_measured_is_nothing_judged() -> None:
    assert {verdict.reached for verdict in verdicts({})} == {None}
    assert {verdict.reached for verdict in verdicts({"cpu": blank(full=False)})} == {None}
    assert all(str(verdict).endswith(": not measured") for verdict in verdicts({}))


def test_ratios_are_judged_by_their_median() -> None:
    five, three, memory, step, inference, *cuda = verdicts({"cpu": blank()})[: len(speed.GOALS)]
    assert (five.reached, three.reached, memory.reached) == (False, True, True)
    assert (step.reached, inference.reached) == (True, True)
    assert five.found == "0 of 3; kav6 4.00 [3.90 to 4.10], kav8 4.00 [3.90 to 4.10], kav11 4.00 [3.90 to 4.10]"
    assert {verdict.reached for verdict in cuda} == {None}
    speeds = dict(blank().variants)
    speeds["kav7"] = replace(speeds["kav7"], step=pair(1.49), layer=pair(3, smaller=2.99))
    found = verdicts({"cpu": blank(variants=speeds)})
    assert found[1].reached
    assert (found[2].reached, found[2].found) == (False, "6 of 7; kav7 2.99")
    every = len(VARIANTS)
    assert (found[3].reached, found[3].found) == (False, f"{every - 1} of {every}; kav7 1.49 [1.39 to 1.59]")


def newer_than_the_run() -> Measurement:
    """A full run from before rows of our own came to the table."""
    found = blank()
    return replace(found, variants={name: each for name, each in found.variants.items() if not variant(name).ours})


def test_variants_without_a_measurement_are_said_not_to_have_one() -> None:
    old = newer_than_the_run()
    ours = [name for name, row in VARIANTS.items() if row.ours]
    assert list(old.unmeasured) == ours
    assert blank().unmeasured == replace(old, full=False).unmeasured == ()
    *named, step, inference = verdicts({"cpu": old})[:5]
    assert all(verdict.found.endswith(f"; {len(ours)} not measured") for verdict in (step, inference))
    assert not any("not measured" in verdict.found for verdict in named)


def test_on_a_gpu_the_best_float32_mode_counts() -> None:
    def row(what: str, mode: str, faster: float | None) -> Throughput:
        return Throughput(what, "kav11", mode, 1, 32, 64, 48, 1.0, None if faster is None else ratio(faster))

    rows = (
        row("training", "plain", 1), row("training", "float32", 3), row("training", "float32, graph", 5.5),
        row("training", "bfloat16, graph", 9), row("training", "float32, compiled, graph", None),
        row("inference", "float32", 4.9), row("inference", "bfloat16", 9), row("inference", "tf32, graph", 8),
    )  # fmt: skip
    step, inference = verdicts({"cuda": blank("cuda", throughput=rows)})[len(speed.GOALS) - 2 : len(speed.GOALS)]
    assert (step.reached, step.found) == (True, "kav11 (float32, graph) 5.50 [5.40 to 5.60]")
    assert (inference.reached, inference.found) == (False, "0 of 1; kav11 (float32) 4.90 [4.80 to 5.00]")


def test_scenes_and_start_up_are_judged() -> None:
    def scene(size: int, tile: int, seconds: float, mib: float, process: float = 900) -> SceneCost:
        return SceneCost(size, tile, seconds, mib, 31 * 4 * size**2 / 2**20, process)

    whole = (scene(256, 0, 1, 100), scene(512, 0, 4, 400), scene(512, 256, 5, 131), scene(1024, 256, 20, 224))
    start = Startup(2, 3, 1.0, 0.9, 1.1)
    memory, bounded, linear, startup = verdicts({"cpu": blank(scenes=whole, startup=start)})[len(speed.GOALS) :]
    assert (memory.reached, memory.found) == (True, "0.94 GB")
    assert (bounded.reached, bounded.found) == (True, "512²: 100 MiB, 1024²: 100 MiB, beside the result")
    assert (linear.reached, linear.found) == (True, "1.00 and 1.00")
    assert (startup.reached, startup.found) == (True, "1.00 s [0.90 to 1.10]")
    worse = (scene(256, 0, 1, 100), scene(512, 0, 8, 400, 2900), scene(512, 256, 5, 131), scene(1024, 256, 20, 300))
    found = verdicts({"cpu": blank(scenes=worse, startup=replace(start, more=1.6))})[len(speed.GOALS) :]
    assert [verdict.reached for verdict in found] == [False] * 4
    assert found[2].found == "1.50 and 1.00"


def test_spread_by_hand() -> None:
    assert Spread.of([20.0, 200.0, 33.0], [10.0, 100.0, 11.0]) == Spread(median=2, low=2, high=2.5, shortest=2)
    assert Spread.of([3.0], [2.0]) == Spread(1.5, 1.5, 1.5, 1.5)


def test_no_memory_is_infinitely_smaller() -> None:
    assert Pair(1, 1, ratio(1), 0, 5).smaller == math.inf


def test_the_price_of_a_layer_is_that_of_convolutions() -> None:
    speeds = dict(blank().variants)
    speeds["kav6"] = replace(speeds["kav6"], layer=replace(pair(4), ms=25))
    found = blank(variants=speeds)
    assert found.to_convolution("kav6") == 2.5
    assert found.to_convolution("conv3x3") == 1
    assert found.to_convolution("psrt") is None
    assert newer_than_the_run().to_convolution("kav6") is None
    assert any(line.startswith("kav6 ") and line.endswith("2.50") for line in report.lines(found, {}))


def test_every_target_of_the_table_can_be_met() -> None:
    assert all(name in VARIANTS for goal in speed.GOALS for name in goal.variants)
    assert all(set(asdict(goal)) == set(Goal.__dataclass_fields__) for goal in speed.GOALS)


def test_runs_are_put_side_by_side() -> None:
    speeds = dict(blank().variants)
    speeds["kav6"] = replace(speeds["kav6"], layer=pair(5.25, smaller=2), step=pair(1.25))
    runs = [{"cpu": blank()}, {"cpu": blank(variants=speeds)}, {"cpu": blank(), "cuda": blank("cuda")}]
    lines = list(report.ranges(runs))
    (row,) = [line for line in lines if line.startswith("kav6 ")]
    found = re.findall(r"[\d.]+ to [\d.]+", row)
    assert found == ["4.00 to 5.25", "1.25 to 4.00", "4.00 to 4.00", "2.00 to 4.00", "1.00 to 1.00"]
    assert "3 runs" in lines[0]
    assert not any("some" in line for line in lines)  # the GPU is in one run only
    assert any(line.startswith("CPU: training step") and line.endswith(": reached in 2 of 3") for line in lines)
    assert any(line.startswith("CPU: 512×512") and line.endswith(": not measured") for line in lines)


# The command line


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, found: Measurement) -> Iterator[list[tuple[Any, ...]]]:
    """The command line without measuring: what it asked for."""
    asked: list[tuple[Any, ...]] = []

    def run(setting: Setting, names: list[str], place: Place, say: object, save: Callable[..., object]) -> Measurement:
        asked.append((setting, list(names), place.threads))
        save(found)
        return found

    monkeypatch.setattr(bench, "run", run)
    return asked


def test_only_full_runs_are_stored_unasked(
    quiet: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "STORED", tmp_path / "bench.json")
    assert command.main(["--quick"]) == 0
    assert command.main(["--variants", "kav1", "kav2", "--threads", "1"]) == 0
    assert not (tmp_path / "bench.json").exists()
    assert command.main(["--quick", "--out", str(tmp_path / "quick.json")]) == 0
    assert command.main([]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "quick.json"}
    assert [setting for setting, _, _ in quiet] == [bench.QUICK, bench.FULL, bench.QUICK, bench.FULL]
    assert [names for _, names, _ in quiet] == [list(bench.FEW), ["kav1", "kav2"], list(bench.FEW), list(VARIANTS)]
    assert quiet[1][2] == 1
    assert "CPU: training step, at least 1.5× faster" in capsys.readouterr().out


def test_mistakes_are_told_in_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for arguments, message in (
        (["--variants", "kav99"], "variant 'kav99' is unknown"),
        (["--device", "tpu"], "choose cpu or cuda"),
        (["--threads", "0"], "threads=0"),
        (["--out", str(tmp_path / "bad.json")], "damaged"),
    ):
        assert command.main(["--quick", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert command.main(["--compare", str(tmp_path / "bad.json")]) == 2
    assert "damaged" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda"]) == 2
        assert "device='cuda' is not here" in capsys.readouterr().err


def test_the_benchmark_is_run_from_the_checkout() -> None:
    assert command.STORED == ROOT / "results" / "bench.json"


# Figures


def test_the_figure_of_ratios_shows_what_was_measured() -> None:
    figure = speed_figures.ratios(blank())
    layer, step, inference = figure.axes
    dots = [line for line in layer.lines if line.get_marker() == "o"]
    assert len(dots) == sum(row.has_ka for row in VARIANTS.values())
    assert all(line.get_xdata()[0] == 4 for line in dots)
    names = [label.get_text() for label in layer.get_yticklabels()]
    colors = {names[int(line.get_ydata()[0])]: line.get_color() for line in dots}
    assert (colors["kav6"], colors["kav7"], colors["kav2"]) == ("C1", "C0", "0.45")
    assert names == list(VARIANTS)[::-1]
    for axis, least in ((step, 1.5), (inference, 2.0)):
        targets = [line for line in axis.lines if line.get_color() == "black" and len(set(line.get_ydata())) == 2]
        assert sum(line.get_xdata()[0] == least for line in targets) == len(VARIANTS)


def test_the_figure_of_ratios_keeps_a_line_for_what_was_not_measured() -> None:
    old = newer_than_the_run()
    axes = speed_figures.ratios(old).axes
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert set(names) == set(VARIANTS)
    for axis in axes:
        assert {names[round(text.get_position()[1])] for text in axis.texts} == set(old.unmeasured)
        assert {text.get_text() for text in axis.texts} == {"not measured"}


def test_the_figure_of_scenes_shows_what_was_measured() -> None:
    whole = tuple(SceneCost(size, tile, size / 9, size, 1, 1) for size, tile in Setting().scenes)
    seconds, memory = speed_figures.scenes(blank(scenes=whole)).axes
    passes, tiles, guide = seconds.lines
    assert list(passes.get_xdata()) == [256**2, 512**2, 1024**2]
    assert list(tiles.get_xdata()) == [512**2, 1024**2, 2048**2]
    assert guide.get_ydata()[1] == pytest.approx(256 / 9 * 64)
    assert list(memory.lines[1].get_ydata()) == [512, 1024, 2048]
    empty = speed_figures.scenes(blank())
    assert [text.get_text() for axis in empty.axes for text in axis.texts] == ["not measured"] * 2


def test_figures_are_the_same_bytes_again() -> None:
    whole = (SceneCost(64, 0, 1, 1, 1, 1), SceneCost(128, 64, 4, 2, 1, 1))
    for draw in (speed_figures.ratios, speed_figures.scenes):
        assert encoded(draw(blank(scenes=whole)), "svg") == encoded(draw(blank(scenes=whole)), "svg")
