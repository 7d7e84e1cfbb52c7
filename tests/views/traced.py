"""Models and passes over random images that the tests of views look at."""

from functools import cache

import numpy as np
import torch

import ka
from workbook.views.attention import Query
from workbook.views.trace import Trace, trace


def scattered(asked: Query) -> bool:
    """Whether a window's pixels lie apart in the image."""
    return any(np.ptp(places) >= len(np.unique(places)) for places in (asked.rows, asked.cols))


@cache
def traced(name: str, h: int = 16, w: int = 24, seed: int = 0) -> Trace:
    """A pass in float64 over a random image."""
    generator = torch.Generator().manual_seed(seed)
    up, msi = (torch.rand(1, n, h, w, dtype=torch.float64, generator=generator) for n in (3, 2))
    return trace(model_of(name), up, msi)


@cache
def model_of(name: str) -> ka.PSRT:
    """A model whose KA parameters are far from zero, and whose attention, unlike a fresh one's, is far from uniform."""
    torch.manual_seed(1)
    model = ka.build(name, n_bands=3, n_msi=2, dim=16).double().eval()
    with torch.no_grad():
        for layer in model.layers():
            layer.attn.qkv.weight.mul_(40)
            for parameter in [] if layer.ka is None else layer.ka.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            if getattr(layer.ka, "sa", None) is not None:
                layer.ka.sa.qkv.weight.mul_(3)
    return model
