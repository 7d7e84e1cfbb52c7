"""The measurement in words: tables for the terminal."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.goals import verdicts
from workbook.results.speed import Measurement, Pair, Spread


def lines(measurement: Measurement, measured: Mapping[str, Measurement]) -> Iterator[str]:
    """A measurement as text, and which of the targets were reached by what is `measured` on all devices."""
    s = measurement.setting
    yield f"{measurement.label}, PyTorch {measurement.hardware.get('torch')}, {measurement.seconds:.0f} s"
    gemm = ", ".join(f"{kind} {value:,.0f} GFLOP/s" for kind, value in measurement.gemm.items())
    yield f"matrix product: {gemm}; copy: {measurement.copy:,.1f} GB/s"
    yield ""
    yield "Times as fast as the plain form: median over rounds [quartiles]. Memory: plain by fast, peak."
    yield (
        f"KA layer {s.layer_batch}×{s.layer_size}² forward and backward; training step {s.step_batch}×{s.step_size}²; "
        f"inference {s.inference_size}²; dim {s.dim}"
    )
    yield f"{'':16}{'KA layer':^32}{'training step':^32}{'inference':^32}"
    yield f"{'':16}" + f"{'time':^21}{'memory':^11}" * 3
    for name, speed in measurement.variants.items():
        yield f"{name:16}" + "".join(_pair(pair) for pair in (speed.layer, speed.step, speed.inference))
    yield ""
    heads = ("live", "deployed", "GFLOPs", "plain", "step, ms", "samples/s", "GEMM", "copy", "layer")
    yield f"{'':16}" + "".join(
        f"{head:>{width}}" for head, width in zip(heads, (9, 10, 9, 9, 11, 11, 7, 7, 8), strict=True)
    )
    for name, speed in measurement.variants.items():
        yield (
            f"{name:16}{speed.live:9,}{speed.deployed:10,}{speed.gflops:9.1f}{speed.plain_gflops:9.1f}"
            f"{speed.step.ms:11.1f}{1e3 * s.step_batch / speed.step.ms:11.2f}{measurement.of_gemm(name):7.1%}"
            f"{measurement.of_copy(name):7.1%}{_times(measurement.to_convolution(name)):>8}"
        )
    yield (
        f"GFLOPs of inference for {s.counted}²; GEMM, copy: share of the ceilings that a training step reaches; "
        "layer: time of the KA layer by that of one convolution"
    )
    yield from _rest(measurement)
    yield ""
    yield from map(str, verdicts(measured))


def _pair(pair: Pair | None) -> str:
    if pair is None:
        return f"{'–':^32}"
    return f"{_spread(pair.faster):^21}{f'{pair.smaller:.2f}' if pair.mib else '–':^11}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]"


def _rest(measurement: Measurement) -> Iterator[str]:
    """Start-up, scenes, throughput: what there is of them."""
    yield ""
    if measurement.startup is not None:
        start = measurement.startup
        yield (
            f"start-up: import ka {start.ka:.2f} s, import torch {start.torch:.2f} s, "
            f"{start.more:.2f} s more [{start.low:.2f}, {start.high:.2f}]"
        )
    for scene in measurement.scenes or ():
        how = f"in tiles of {scene.tile}" if scene.tile else "in one pass"
        whole = "" if scene.process_mib is None else f", whole process {scene.process_mib * 2**20 / 1e9:.2f} GB"
        yield (
            f"{scene.size}×{scene.size} {how}: {scene.seconds:.2f} s, peak {scene.mib:.0f} MiB above model and inputs"
            f" ({scene.images_mib:.0f} of them the result){whole}"
        )
    for row in measurement.throughput or ():
        what = f"{row.what} {row.variant}, {row.models} × {row.batch}×{row.size}², dim {row.dim}, {row.mode}"
        if row.per_second is None:
            yield f"{what}: not measured ({row.failed})"
            continue
        shares = [f"{share:.1%} of {of}" for share, of in ((row.of_gemm, "GEMM"), (row.of_copy, "copy")) if share]
        ratio = [] if row.faster is None else [f"{_spread(row.faster)} × plain"]
        yield f"{what}: {', '.join([f'{row.per_second:,.1f} a second', *ratio, *shares])}"
    if measurement.throughput is None:
        yield "throughput on a GPU: not measured"


def ranges(runs: Sequence[Mapping[str, Measurement]]) -> Iterator[str]:
    """Several runs beside each other: smallest and largest median of every ratio, and how often targets were reached.

    Args:
        runs: measurements by device, of each run; devices that are not in all are left out.
    """
    for device in [device for device in runs[0] if all(device in run for run in runs)]:
        each = [run[device] for run in runs]
        yield f"{each[0].label}: {len(runs)} runs, range of the medians (times as fast as the plain form)"
        heads = ("KA layer", "training step", "inference", "layer, memory", "by one convolution")
        yield f"{'':16}" + "".join(f"{head:^20}" for head in heads)
        for name in [name for name in each[0].variants if all(name in measurement.variants for measurement in each)]:
            speeds = [measurement.variants[name] for measurement in each]
            layers = [speed.layer for speed in speeds if speed.layer is not None]
            cells = [
                _range([layer.faster.median for layer in layers]),
                _range([speed.step.faster.median for speed in speeds]),
                _range([speed.inference.faster.median for speed in speeds]),
                _range([layer.smaller for layer in layers]),
                _range([price for measurement in each if (price := measurement.to_convolution(name)) is not None]),
            ]
            yield f"{name:16}" + "".join(f"{cell:^20}" for cell in cells)
        yield ""
    for judged in zip(*(verdicts(run) for run in runs), strict=True):
        known = [verdict for verdict in judged if verdict.reached is not None]
        yield f"{judged[0].text}: " + (
            f"reached in {sum(bool(verdict.reached) for verdict in known)} of {len(known)}" if known else "not measured"
        )


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else "–"
