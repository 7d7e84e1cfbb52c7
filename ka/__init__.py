"""Kernel Attention for hyperspectral image super-resolution: the models of the study, and what the notebooks share."""

from ka.checkpoints import load_checkpoint, save_weights
from ka.config import PRESETS, Config
from ka.files import KAError
from ka.psrt import PSRT, ParameterCount, build, count_parameters, parameter_count
from ka.variants import VARIANTS, Variant, variant

__all__ = [
    "PRESETS",
    "PSRT",
    "VARIANTS",
    "Config",
    "KAError",
    "ParameterCount",
    "Variant",
    "build",
    "count_parameters",
    "load_checkpoint",
    "parameter_count",
    "save_weights",
    "variant",
]
