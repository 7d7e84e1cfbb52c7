"""What a variant costs: floating-point operations by counting, and what the results table takes of `make bench`.

One multiply-add is two operations (2 FLOPs). Counted are matrix products and convolutions, in attention too; not
counted is what touches every value a few times (LayerNorm, GELU, softmax, sums, gates), as is the custom. So FLOPs
compare variants, and the clock has the last word: on a CPU the memory traffic of small windows costs more than its
arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.flop_counter import FlopCounterMode

from ka.errors import KAError
from ka.models.psrt import PSRT, build
from workbook.results import speed


def deployed(model: PSRT) -> PSRT:
    """The form for inference: folded where the kernels do not depend on the image, else the model itself."""
    return model if model.row.adaptive else model.fold()


@cache
def flops(name: str, dim: int = 48, size: int = 512, n_bands: int = 31, n_msi: int = 3, form: str = "deployed") -> int:
    """FLOPs (2 per multiply-add) of sharpening one image of size×size pixels; nothing is computed or allocated.

    Args:
        name: a key of `ka.VARIANTS`.
        dim: embedding width, a multiple of 8.
        size: side of the image in pixels.
        n_bands, n_msi: bands of the two inputs.
        form: `deployed` (folded, see `deployed`), or `training` (as `PSRT` runs in training: folded on the way).

    Raises:
        KAError: unknown variant or form, impossible size.
    """
    forms: dict[str, Callable[[PSRT], PSRT]] = {"deployed": deployed, "training": lambda model: model}
    if form not in forms:
        raise KAError(f"form={form!r} is unknown; choose one of {', '.join(forms)}")
    if size < 8:
        raise KAError(f"size={size} is smaller than one window; choose at least 8")
    with torch.device("meta"), torch.no_grad():
        model = forms[form](build(name, n_bands, n_msi, dim)).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, n_bands, size, size), torch.empty(1, n_msi, size, size))
    return counter.get_total_flops()


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
