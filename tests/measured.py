"""Models and measurements for the tests of the benchmark."""

from typing import Any

import torch

import ka
from benchmarks.measure import Place
from ka.models.variants import PSRT_ROWS
from workbook.results.speed import Measurement, Pair, Setting, Speed, Spread

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


def ratio(value: float) -> Spread:
    return Spread(value, value - 0.1, value + 0.1, value)


def pair(faster: float, smaller: float = 4) -> Pair:
    return Pair(10, 10 * faster, ratio(faster), 1, smaller)


def blank(device: str = "cpu", **changes: Any) -> Measurement:
    """A full measurement in which everything is four times as fast."""
    speeds = {
        name: Speed(9, 9, 9, 9, 9, 9, 0, pair(4) if row.has_ka else None, pair(4), pair(4), ratio(1))
        for name, row in PSRT_ROWS.items()
    }
    known = {"hardware": {"cpu": "none", "gpu": "some", "torch": "2"}, "gemm": {"float32": 100.0}, "copy": 10.0}
    return Measurement(
        **(  # type: ignore[arg-type]
            {"device": device, "threads": 2, "full": True, "seconds": 1.0, "setting": Setting(), "variants": speeds}
            | known
            | changes
        )
    )
