"""Kernel Attention for hyperspectral image super-resolution: the models of the study, and what the notebooks share."""

from ka import data
from ka.data.simulate import Degradation
from ka.errors import KAError
from ka.evaluation import Evaluation, evaluate
from ka.inference import Network
from ka.methods.consistency import Consistency, residuals
from ka.methods.local import local_injection
from ka.models.checkpoints import load_checkpoint, save_weights
from ka.models.counts import ParameterCount, count_parameters, parameter_count
from ka.models.psrt import PSRT, build
from ka.models.variants import VARIANTS, Variant, variant
from ka.pairs import sharpen

__all__ = [
    "PSRT",
    "VARIANTS",
    "Consistency",
    "Degradation",
    "Evaluation",
    "KAError",
    "Network",
    "ParameterCount",
    "Variant",
    "build",
    "count_parameters",
    "data",
    "evaluate",
    "load_checkpoint",
    "local_injection",
    "parameter_count",
    "residuals",
    "save_weights",
    "sharpen",
    "variant",
]
