"""What `make bench` measured, as `results/bench.json` holds it: fast against plain.

*Plain* is the model the way the study ran it (`benchmarks/reference.py`), *fast* the one of this workbook. Both run in
one process, in alternation, so that a machine that slows down for a while slows both: ratios are of the same round.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ka.errors import KAError
from ka.files import write_json
from ka.models.variants import PSRT_ROWS

CONVOLUTION = "conv3x3"  # the row whose KA layer is one ordinary convolution
SCENES_OF = "kav11"  # the model of whole scenes


@dataclass(frozen=True)
class Setting:
    """Sizes and rounds of a measurement; defaults are those of a full run on a CPU."""

    dim: int = 48  # of the models; a KA layer alone has dim / 2 channels
    n_bands: int = 31
    n_msi: int = 3
    layer_batch: int = 4  # input of the KA layer alone
    layer_size: int = 64
    step_batch: int = 2  # input of a training step
    step_size: int = 64
    inference_size: int = 128  # side of the image, in pixels
    counted: int = 512  # side of the image that the FLOPs of inference are counted for
    layer_rounds: int = 7  # each with every variant in both forms
    step_rounds: int = 3
    inference_rounds: int = 3
    startups: int = 5  # pairs of fresh processes
    gemm: int = 2048  # side of the matrices that the ceiling is measured with
    copied: int = 256  # MiB of the copy
    # Whole scenes: side in pixels, side of a tile; 0 for one pass.
    scenes: tuple[tuple[int, int], ...] = ((256, 0), (512, 0), (1024, 0), (512, 256), (1024, 256), (2048, 256))


@dataclass(frozen=True)
class Spread:
    """A ratio over the rounds of a measurement: median and quartiles, and the ratio of the two shortest times."""

    median: float
    low: float
    high: float
    shortest: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> "Spread":
        """The ratio above / below of times of the same rounds."""
        low, median, high = np.quantile([a / b for a, b in zip(above, below, strict=True)], (0.25, 0.5, 0.75))
        return cls(*(significant(value) for value in (median, low, high, min(above) / min(below))))


@dataclass(frozen=True)
class Pair:
    """One computation, fast against plain: median milliseconds, and peak memory above weights and inputs in MiB. On the
    CPU memory is that of PyTorch's allocator (without what oneDNN takes for itself), the same in every run.
    """

    ms: float
    plain_ms: float
    faster: Spread  # plain by fast time
    mib: float
    plain_mib: float

    @property
    def smaller(self) -> float:
        return self.plain_mib / self.mib if self.mib else math.inf


@dataclass(frozen=True)
class Speed:
    """What was measured of one variant."""

    live: int  # parameters in training
    deployed: int  # folded for inference
    gflops: float  # 10⁹ FLOPs of inference for `Setting.counted` pixels a side, deployed
    plain_gflops: float
    step_gflops: float  # of a training step (forward and backward) at its size
    step_gb: float  # 10⁹ bytes that the operations of that step read and write, run one by one
    agreement: float  # largest difference of the outputs, by the largest change of the image
    layer: Pair | None  # KA layer alone, forward and backward; None where there is nothing to time
    step: Pair  # forward, L1, backward, AdamW
    inference: Pair  # of the deployed form
    to_baseline: Spread  # time of that inference by the baseline's, fast both


@dataclass(frozen=True)
class Startup:
    """Start of a fresh process, median seconds until an import is done; `more`: ka less torch, of the same pair."""

    torch: float
    ka: float
    more: float
    low: float  # quartiles of `more`
    high: float


@dataclass(frozen=True)
class SceneCost:
    """A whole scene, sharpened by the deployed `SCENES_OF` in a process of its own."""

    size: int  # side in pixels
    tile: int  # side of a tile; 0 for one pass
    seconds: float  # the shortest run
    mib: float  # peak memory above model and inputs: growth of the process on a CPU, allocated on a GPU
    images_mib: float  # of it, the result
    process_mib: float | None  # peak of the whole process; on a GPU None

    @property
    def pixels(self) -> int:
        return self.size**2


@dataclass(frozen=True)
class Throughput:
    """Training or inference with data held on the device, in one way of running it."""

    what: str  # training or inference
    variant: str
    mode: str  # `benchmarks.throughput.MODES`
    models: int  # trained side by side
    batch: int  # patches per step of each
    size: int
    dim: int
    per_second: float | None = None  # patches or images, all models together; None if it did not run
    faster: Spread | None = None  # time of the plain form by its time
    of_gemm: float | None = None  # FLOPs per second, of what the matrix product of this precision reached
    of_copy: float | None = None  # bytes per second of the operations one by one, of what a copy reached
    mib: float | None = None  # peak memory above weights and data; None in a graph
    failed: str = ""  # why it did not run


@dataclass(frozen=True)
class Measurement:
    """One run of the benchmark on one device."""

    hardware: Mapping[str, Any]  # processor, GPU, versions, commit, time
    device: str  # cpu or cuda
    threads: int
    full: bool  # all variants at full size; else the numbers only show that everything runs
    seconds: float  # how long it took
    setting: Setting
    gemm: Mapping[str, float]  # precision → 10⁹ FLOPs per second of a large matrix product
    copy: float  # 10⁹ bytes per second, read and written, of a large copy
    variants: Mapping[str, Speed]
    startup: Startup | None = None
    scenes: tuple[SceneCost, ...] | None = None
    throughput: tuple[Throughput, ...] | None = None

    @property
    def label(self) -> str:
        threads = "" if self.device == "cuda" else f", {self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.hardware.get('gpu' if self.device == 'cuda' else 'cpu')}{threads}"

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Variants that a full run should have and this one, being older than they are, has not."""
        return tuple(name for name in PSRT_ROWS if name not in self.variants) if self.full else ()

    def to_convolution(self, name: str) -> float | None:
        """Time of a variant's KA layer by that of one ordinary convolution; None where either is not measured."""
        layer, convolution = (self.variants[key].layer if key in self.variants else None for key in (name, CONVOLUTION))
        return None if layer is None or convolution is None else layer.ms / convolution.ms

    def of_gemm(self, name: str) -> float:
        """FLOPs per second of a variant's training step, of what the matrix product reached."""
        return 1e3 * self.variants[name].step_gflops / self.variants[name].step.ms / self.gemm["float32"]

    def of_copy(self, name: str) -> float:
        """Bytes per second that the operations of a training step read and write, of what the copy reached."""
        return 1e3 * self.variants[name].step_gb / self.variants[name].step.ms / self.copy


@dataclass(frozen=True)
class Record:
    """The file."""

    format: Literal[1]
    devices: dict[str, Measurement]


def read(path: str | Path) -> dict[str, Measurement]:
    """Measurements by device; empty if there is no file. One that is damaged or of another kind is a `KAError`."""
    try:
        record = msgspec.json.decode(Path(path).read_bytes(), type=Record)
        if wrong := [device for device, entry in record.devices.items() if entry.device != device]:
            raise ValueError(f"{wrong[0]} holds another device")
        return record.devices
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, OSError, ValueError) as error:
        cure = "restore it, or remove it and measure again with make bench"
        raise KAError(f"{path} is damaged or of another kind ({error}); {cure}") from error


def write(path: str | Path, devices: Mapping[str, Measurement]) -> None:
    """Write measurements by device, whole or not at all."""
    write_json(path, asdict(Record(1, dict(devices))))


def significant(value: float, digits: int = 4) -> float:
    """`value` rounded to so many significant digits, as it is stored."""
    return float(f"{value:.{digits}g}")
