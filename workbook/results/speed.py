"""What `make bench` measured, as `results/bench.json` holds it: fast against plain.

*Plain* is the model the way the study ran it (`benchmarks/reference.py`), *fast* the one of this workbook. Both run in
one process, in alternation, so that a machine that slows down for a while slows both: ratios are of the same round.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from ka.errors import KAError
from ka.files import write_json
from ka.models.variants import VARIANTS

BASELINE = "psrt_noshuffle"
CONVOLUTION = "conv3x3"
"""The row whose KA layer is one ordinary convolution."""
SCENES_OF = "kav11"
"""The model of whole scenes."""


@dataclass(frozen=True)
class Setting:
    """Sizes and rounds of a measurement; defaults are those of a full run on a CPU.

    Attributes:
        dim, n_bands, n_msi: of the models; a KA layer alone has dim / 2 channels.
        layer_batch, layer_size: input of the KA layer alone.
        step_batch, step_size: input of a training step.
        inference_size: side of the image of inference, in pixels.
        counted: side of the image that the FLOPs of inference are counted for.
        layer_rounds, step_rounds, inference_rounds: rounds, each with every variant in both forms.
        startups: pairs of fresh processes that start up.
        gemm, copied: side of the matrices, and MiB of the copy, that the ceilings are measured with.
        scenes: whole scenes: (side in pixels, side of a tile; 0 for one pass).
    """

    dim: int = 48
    n_bands: int = 31
    n_msi: int = 3
    layer_batch: int = 4
    layer_size: int = 64
    step_batch: int = 2
    step_size: int = 64
    inference_size: int = 128
    counted: int = 512
    layer_rounds: int = 7
    step_rounds: int = 3
    inference_rounds: int = 3
    startups: int = 5
    gemm: int = 2048
    copied: int = 256
    scenes: tuple[tuple[int, int], ...] = ((256, 0), (512, 0), (1024, 0), (512, 256), (1024, 256), (2048, 256))


@dataclass(frozen=True)
class Spread:
    """A ratio over the rounds of a measurement.

    Attributes:
        median, low, high: median, lower and upper quartile over rounds.
        shortest: ratio of the two shortest times, whichever rounds they are of.
    """

    median: float
    low: float
    high: float
    shortest: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> "Spread":
        """The ratio above / below of times of the same rounds."""
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        values = (statistics.median(ratios), low, high, min(above) / min(below))
        return cls(*(significant(value) for value in values))


@dataclass(frozen=True)
class Pair:
    """One computation, fast against plain.

    Attributes:
        ms, plain_ms: median milliseconds.
        faster: plain by fast time.
        mib, plain_mib: peak memory above weights and inputs, in MiB. On the CPU that of PyTorch's allocator (without
            what oneDNN takes for itself), the same in every run.
    """

    ms: float
    plain_ms: float
    faster: Spread
    mib: float
    plain_mib: float

    @property
    def smaller(self) -> float:
        """Plain by fast memory."""
        return self.plain_mib / self.mib if self.mib else math.inf


@dataclass(frozen=True)
class Speed:
    """What was measured of one variant.

    Attributes:
        live, deployed: parameters in training, and folded for inference.
        gflops, plain_gflops: 10⁹ FLOPs of inference for an image of `Setting.counted` pixels a side: the deployed
            form, the plain one.
        step_gflops: 10⁹ FLOPs of a training step (forward and backward) at its size.
        step_gb: 10⁹ bytes that the operations of that step read and write, as PyTorch runs them one by one.
        agreement: largest difference of the outputs, by the largest change of the image (fast against plain).
        layer: KA layer alone, forward and backward; None where there is nothing to time.
        step: training step: forward, L1, backward, AdamW.
        inference: inference of the deployed form.
        to_baseline: time of that inference by the baseline's, fast both.
    """

    live: int
    deployed: int
    gflops: float
    plain_gflops: float
    step_gflops: float
    step_gb: float
    agreement: float
    layer: Pair | None
    step: Pair
    inference: Pair
    to_baseline: Spread


@dataclass(frozen=True)
class Startup:
    """Start of a fresh process, in seconds, medians.

    Attributes:
        torch, ka: until `import torch`, `import ka` is done.
        more: by how much longer the second took than the first of the same pair.
        low, high: quartiles of that.
    """

    torch: float
    ka: float
    more: float
    low: float
    high: float


@dataclass(frozen=True)
class SceneCost:
    """A whole scene, sharpened by the deployed baseline of scenes (`SCENES_OF`) in a process of its own.

    Attributes:
        size, tile: side of the scene and of its tiles in pixels; 0 for one pass.
        seconds: the shortest of its runs.
        mib: peak memory above model and inputs: growth of the process on a CPU, allocated on a GPU.
        images_mib: of it, the result.
        process_mib: peak of the whole process; on a GPU None.
    """

    size: int
    tile: int
    seconds: float
    mib: float
    images_mib: float
    process_mib: float | None

    @property
    def pixels(self) -> int:
        return self.size**2


@dataclass(frozen=True)
class Throughput:
    """Training or inference with data held on the device, in one way of running it.

    Attributes:
        what: `training` or `inference`.
        variant: the model.
        mode: how it ran (`benchmarks.throughput.MODES`).
        models: models trained side by side.
        batch, size, dim: patches per step of each, their side, embedding width.
        per_second: samples (patches, images) per second, all models together; None if it did not run.
        faster: time of the plain form by its time; None for models side by side.
        of_gemm: FLOPs per second, of what the matrix product of this precision reached.
        of_copy: bytes per second that the operations move when run one by one, of what a copy reached; above 1 where
            they are fused.
        mib: peak memory above weights and data; None where it is not known (in a graph).
        failed: why it did not run, else "".
    """

    what: str
    variant: str
    mode: str
    models: int
    batch: int
    size: int
    dim: int
    per_second: float | None = None
    faster: Spread | None = None
    of_gemm: float | None = None
    of_copy: float | None = None
    mib: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Measurement:
    """One run of the benchmark on one device.

    Attributes:
        hardware: processor, GPU, versions, commit, time.
        device: `cpu` or `cuda`.
        threads: of PyTorch.
        full: all variants at full size; else the numbers only show that everything runs.
        seconds: how long it took.
        setting: what was run.
        gemm: precision → 10⁹ FLOPs per second of a large matrix product.
        copy: 10⁹ bytes per second, read and written, of a large copy.
        variants: variant → its measurement.
        startup, scenes, throughput: None where not measured.
    """

    hardware: Mapping[str, Any]
    device: str
    threads: int
    full: bool
    seconds: float
    setting: Setting
    gemm: Mapping[str, float]
    copy: float
    variants: Mapping[str, Speed]
    startup: Startup | None = None
    scenes: tuple[SceneCost, ...] | None = None
    throughput: tuple[Throughput, ...] | None = None

    @property
    def label(self) -> str:
        """Where it was measured, in a few words."""
        threads = "" if self.device == "cuda" else f", {self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.hardware.get('gpu' if self.device == 'cuda' else 'cpu')}{threads}"

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Variants that a full run should have and this one, being older than they are, has not."""
        return tuple(name for name in VARIANTS if name not in self.variants) if self.full else ()

    def to_convolution(self, name: str) -> float | None:
        """Time of a variant's KA layer by that of one ordinary convolution; None where either is not measured."""
        one, convolution = (self.variants[key].layer if key in self.variants else None for key in (name, CONVOLUTION))
        return None if one is None or convolution is None else one.ms / convolution.ms

    def of_gemm(self, name: str) -> float:
        """FLOPs per second of a variant's training step, of what the matrix product reached."""
        speed = self.variants[name]
        return 1e3 * speed.step_gflops / speed.step.ms / self.gemm["float32"]

    def of_copy(self, name: str) -> float:
        """Bytes per second that the operations of a training step read and write, of what the copy reached."""
        speed = self.variants[name]
        return 1e3 * speed.step_gb / speed.step.ms / self.copy


@dataclass(frozen=True)
class Record:
    """The file: measurements by device."""

    format: Literal[1]
    devices: dict[str, Measurement]


def read(path: str | Path) -> dict[str, Measurement]:
    """Measurements by device; empty if there is no file.

    Raises:
        KAError: the file is damaged or of another kind.
    """
    try:
        record = msgspec.json.decode(Path(path).read_bytes(), type=Record)
        if wrong := [device for device, entry in record.devices.items() if entry.device != device]:
            raise ValueError(f"{wrong[0]} holds another device")
        return record.devices
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, OSError, ValueError) as error:
        raise KAError(
            f"{path} is damaged or of another kind ({error}); restore it, or remove it and measure again with make "
            "bench"
        ) from error


def write(path: str | Path, devices: Mapping[str, Measurement]) -> None:
    """Write measurements by device, whole or not at all."""
    write_json(path, asdict(Record(1, dict(devices))))


def significant(value: float, digits: int = 4) -> float:
    """`value` rounded to so many significant digits, as it is stored."""
    return float(f"{value:.{digits}g}")
