"""What the results table takes of `make bench`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from workbook.results import speed


@dataclass(frozen=True)
class Cost:
    """What one variant costs, deployed.

    Attributes:
        gflops: 10⁹ FLOPs for an image of `Costs.counted` pixels a side.
        ms: median milliseconds for an image of `Costs.size` pixels a side.
        ratio: median over rounds of its time by the baseline's in the same round, which a busy machine disturbs less.
        low, high: lower and upper quartile of this ratio.
    """

    gflops: float
    ms: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Costs:
    """What the results table takes of the benchmark's run on the CPU (`workbook.results.speed`).

    Attributes:
        hardware: processor, cores, versions.
        device, threads, dim, size, n_bands, n_msi, repeats: what was run.
        counted: side of the image that FLOPs are counted for, in pixels.
        variants: variant → its cost.
    """

    hardware: Mapping[str, Any]
    device: str
    threads: int
    dim: int
    size: int
    n_bands: int
    n_msi: int
    repeats: int
    counted: int
    variants: Mapping[str, Cost]

    @property
    def label(self) -> str:
        """What the milliseconds are of, in a few words."""
        return (
            f"{self.size}×{self.size}×{self.n_bands} image, dim {self.dim}, {self.device}, "
            f"{self.threads} thread{'s' * (self.threads != 1)}, {self.hardware.get('cpu')}"
        )

    @classmethod
    def read(cls, path: str | Path) -> Self | None:
        """The CPU's part of a file of the benchmark; None if there is no file, or only another device's.

        Raises:
            KAError: the file is damaged or of another kind.
        """
        found = speed.read(path).get("cpu")
        if found is None:
            return None
        setting = found.setting
        variants = {
            name: Cost(
                each.gflops, each.inference.ms, each.to_baseline.median, each.to_baseline.low, each.to_baseline.high
            )
            for name, each in found.variants.items()
        }
        return cls(
            found.hardware,
            "cpu",
            found.threads,
            setting.dim,
            setting.inference_size,
            setting.n_bands,
            setting.n_msi,
            setting.inference_rounds,
            setting.counted,
            variants,
        )
