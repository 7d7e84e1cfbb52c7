"""What a variant costs: parameters, and floating-point operations by counting.

One multiply-add is two operations (2 FLOPs). Counted are matrix products and convolutions, in attention too; not
counted is what touches every value a few times (LayerNorm, GELU, softmax, sums, gates), as is the custom. The clock
has the last word: on a CPU the memory traffic of small windows costs more than its arithmetic.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ka.data.datasets import PROTOCOL
from ka.errors import KAError
from ka.models.own.adapter import Model, OwnModel
from ka.models.psrt import PSRT, build
from ka.models.study_names import dead_parameters


def count_parameters(model: nn.Module) -> int:
    """Number of parameters. In our models all of them are live."""
    return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a variant."""

    live: int  # those the output depends on (all that our model has)
    dead: int  # what the study's module held besides
    deployed: int  # after `PSRT.fold`; equal to `live` where the variant does not fold

    @property
    def reported(self) -> int:
        """The study's parameter column: live + dead."""
        return self.live + self.dead


def parameter_count(variant: str, n_bands: int = 31, n_msi: int = 3, dim: int = 48) -> ParameterCount:
    """Parameters of a variant, errors as `build`; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        model = build(variant, n_bands, n_msi, dim)
    return ParameterCount(count_parameters(model), dead_parameters(variant, dim), count_parameters(deployed(model)))


def parameters_of(model: Model) -> ParameterCount:
    """Parameters of a model's variant; of a user's own network, which does not fold, as they are."""
    if isinstance(model, OwnModel):
        n = count_parameters(model)
        return ParameterCount(n, 0, n)
    return parameter_count(model.row.name, model.n_bands, model.n_msi, model.dim)


def deployed(model: PSRT) -> PSRT:
    """The form for inference: folded where the kernels do not depend on the image, else the model itself."""
    return model if model.row.adaptive else model.fold()


@cache
def flops(name: str, dim: int = 48, size: int = 512, n_bands: int = 31, n_msi: int = 3) -> int:
    """FLOPs of sharpening one image of size×size pixels, deployed, errors as `build`; nothing is really computed."""
    if size < 8:
        raise KAError(f"size={size} is smaller than one window; choose at least 8")
    ratio = PROTOCOL.ratio
    with torch.device("meta"), torch.no_grad():
        model = deployed(build(name, n_bands, n_msi, dim)).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(*(torch.empty(1, c, size // r, size // r) for c, r in ((n_bands, 1), (n_msi, 1), (n_bands, ratio))))
    return counter.get_total_flops()
