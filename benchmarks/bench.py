"""Every variant, fast against plain, in one run: KA layer, training step, inference, memory, FLOPs, parameters."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure, processes, throughput
from benchmarks.measure import Place, Say, Timed, Work, alternate, count
from benchmarks.reference import reference, reference_layer
from ka.errors import KAError
from ka.models.counts import deployed, parameter_count
from ka.models.kernel_attention import KernelAttention
from ka.models.psrt import build
from ka.models.variants import PSRT_ROWS, variant
from workbook.results.speed import (
    Measurement,
    Pair,
    SceneCost,
    Setting,
    Speed,
    Spread,
    Throughput,
    significant,
)
from workbook.results.study import BASELINE

FULL = Setting()
GPU = replace(
    FULL, layer_batch=32, step_batch=32, inference_size=512, step_rounds=7, inference_rounds=7, gemm=8192, copied=2048
)
QUICK = replace(
    FULL, layer_size=32, step_batch=2, step_size=16, inference_size=32, layer_rounds=3, step_rounds=2,
    inference_rounds=3, startups=1, gemm=1024, copied=64, scenes=((128, 0), (128, 64)),
)  # fmt: skip
FEW = (BASELINE, "kav1", "kav3", "kav11")
"""Variants of a quick run: without KA, adaptive, on windows, on the image."""
AGREE = {"cpu": 1e-4, "cuda": 1e-2}
"""Largest difference of fast and plain, by the change of the image (convolutions on a GPU use TF32 by default)."""

Save = Callable[[Measurement], object]


def run(
    setting: Setting,
    names: Sequence[str],
    place: Place,
    say: Say = lambda line: None,
    save: Save = lambda measurement: None,
) -> Measurement:
    """Measure everything; without a GPU, all but the throughput on one.

    Args:
        setting: sizes and rounds.
        names: variants; the baseline `psrt_noshuffle` is always among them.
        place: where.
        say: is told what is being done.
        save: is given what there is, several times, so that a run that is stopped leaves something.

    Raises:
        KAError: unknown variant, or a fast form that does not compute what the plain one does.
    """
    begun = time.perf_counter()
    chosen = list(dict.fromkeys([BASELINE, *(variant(name).name for name in names)]))
    full = setting in (FULL, GPU) and set(chosen) == set(PSRT_ROWS)
    if (busy := measure.busy_cores()) > 0.2:
        say(f"other programs keep {busy:.1f} processor cores busy: times of several threads will be far off")
    with place.prepared():
        say("ceilings: matrix product and copy")
        kinds = ("float32", "tf32", "bfloat16") if place.cuda else ("float32",)
        gemm = {kind: measure.gemm(place, setting.gemm, kind) for kind in kinds}
        copy = measure.copy(place, setting.copied)
        layers, steps, inferences, agreements = _works(setting, chosen, place)
        timed = {}
        for part, works, rounds in (
            ("KA layer", layers, setting.layer_rounds),
            ("training step", steps, setting.step_rounds),
            ("inference", inferences, setting.inference_rounds),
        ):
            say(f"{part}: {len(works)} variants, {rounds} rounds")
            timed[part] = alternate(works, rounds, place)
        say("FLOPs and parameters")
        speeds = {name: _speed(setting, name, timed, agreements[name]) for name in chosen}
    machine = measure.hardware() | {"busy_cores": busy}
    measurement = Measurement(machine, place.device.type, place.threads, full, 0.0, setting, gemm, copy, speeds)
    for parts in _more(setting, place, gemm, copy, say):
        measurement = replace(measurement, **parts, seconds=round(time.perf_counter() - begun, 1))
        save(measurement)
    return measurement


def _more(setting: Setting, place: Place, gemm: dict[str, float], copy: float, say: Say) -> Iterator[dict[str, Any]]:
    """What takes long, one part after the other; nothing first, so that what there is already is saved."""
    yield {}
    say(f"start-up: {setting.startups} pairs of processes")
    yield {"startup": processes.startup(setting.startups)}
    whole: list[SceneCost] = []
    for size, tile in setting.scenes:
        say(f"scene of {size}×{size}, {f'tiles of {tile}' if tile else 'one pass'}")
        repeats = 3 if size * size <= 512**2 and not tile else 1
        whole.append(processes.scene(setting, size, tile, place, repeats))
    yield {"scenes": tuple(whole)}
    rows: list[Throughput] = []
    for more in throughput.measure(throughput.Plan(), place, gemm, copy, say) if place.cuda else ():
        rows += more
        yield {"throughput": tuple(rows)}


# What is timed


Works = dict[str, dict[str, Work]]


def _works(setting: Setting, names: Sequence[str], place: Place) -> tuple[Works, Works, Works, dict[str, float]]:
    """KA layers, training steps, inferences (name → form → work), and how well the forms agree."""
    layers: Works = {}
    steps: Works = {}
    inferences: Works = {}
    agreements = {}
    c, device = setting.dim // 2, place.device
    x, grad = (torch.randn(setting.layer_batch, c, *[setting.layer_size] * 2, device=device) for _ in range(2))
    x.requires_grad_()
    patches = _images(setting, setting.step_batch, setting.step_size, place)
    truth = torch.rand_like(patches[0])
    image = _images(setting, 1, setting.inference_size, place)
    for name in names:
        if PSRT_ROWS[name].kernels not in ("", "identity"):
            layer = KernelAttention(c, PSRT_ROWS[name]).to(device)
            plain = reference_layer(layer, c)
            layers[name] = {"fast": layer_work(layer, x, grad), "plain": layer_work(plain, x, grad)}
        model = build(name, setting.n_bands, setting.n_msi, setting.dim).to(device)
        forms: dict[str, nn.Module] = {"fast": deployed(model).eval(), "plain": reference(model).eval()}
        agreements[name] = agreement(name, forms, image, AGREE[device.type])
        inferences[name] = {form: inference_work(each, image) for form, each in forms.items()}
        trained: dict[str, nn.Module] = {"fast": model, "plain": reference(model)}
        steps[name] = {form: step_work(each.train(), patches, truth) for form, each in trained.items()}
    return layers, steps, inferences, agreements


def _images(setting: Setting, batch: int, size: int, place: Place) -> tuple[Tensor, Tensor]:
    bands = (setting.n_bands, setting.n_msi)
    up, msi = (torch.rand(batch, n, size, size, device=place.device) for n in bands)
    return up, msi


def layer_work(layer: nn.Module, x: Tensor, grad: Tensor) -> Work:
    """Forward and backward, to the input and to every parameter."""

    def clear() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None

    return Work(lambda: layer(x).backward(grad), clear)


def step_work(model: nn.Module, inputs: tuple[Tensor, Tensor], truth: Tensor) -> Work:
    """A training step: forward, L1, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)

    def run() -> None:
        (model(*inputs) - truth).abs().mean().backward()
        optimizer.step()

    return Work(run, lambda: optimizer.zero_grad(set_to_none=True))


def inference_work(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> Work:
    """One image, without gradients."""

    def run() -> None:
        with torch.no_grad():
            model(*inputs)

    return Work(run)


def agreement(name: str, forms: dict[str, nn.Module], inputs: tuple[Tensor, Tensor], bound: float) -> float:
    """Largest difference of the two forms' outputs, by the largest change that the plain one makes to the image.

    Raises:
        KAError: it is above `bound`: what is timed would not be the same function.
    """
    with torch.no_grad():
        fast, plain = (forms[form](*inputs) for form in ("fast", "plain"))
    gap = ((fast - plain).abs().max() / (plain - inputs[0]).abs().max()).item()
    if not gap <= bound:
        raise KAError(
            f"{name}: fast and plain differ by {gap:.1e} of the change they make; they are not to be compared"
        )
    return significant(gap, 2)


# What is made of it


def _speed(setting: Setting, name: str, timed: dict[str, dict[str, dict[str, Timed]]], gap: float) -> Speed:
    parameters = parameter_count(name, setting.n_bands, setting.n_msi, setting.dim)
    bands, inference = (setting.n_bands, setting.n_msi), timed["inference"]
    flops = {form: count(name, setting.dim, 1, setting.counted, *bands, form)[0] for form in ("deployed", "plain")}
    step_flops, step_bytes = count(name, setting.dim, setting.step_batch, setting.step_size, *bands, "step")
    return Speed(
        live=parameters.live,
        deployed=parameters.deployed,
        gflops=round(flops["deployed"] / 1e9, 3),
        plain_gflops=round(flops["plain"] / 1e9, 3),
        step_gflops=significant(step_flops / 1e9),
        step_gb=significant(step_bytes / 1e9),
        agreement=gap,
        layer=_pair(timed["KA layer"][name]) if name in timed["KA layer"] else None,
        step=_pair(timed["training step"][name]),
        inference=_pair(inference[name]),
        to_baseline=Spread.of(inference[name]["fast"].seconds, inference[BASELINE]["fast"].seconds),
    )


def _pair(forms: dict[str, Timed]) -> Pair:
    fast, plain = forms["fast"], forms["plain"]
    return Pair(
        ms=significant(1e3 * statistics.median(fast.seconds)),
        plain_ms=significant(1e3 * statistics.median(plain.seconds)),
        faster=Spread.of(plain.seconds, fast.seconds),
        mib=significant(fast.mib),
        plain_mib=significant(plain.mib),
    )
