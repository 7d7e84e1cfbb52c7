"""What a training run is: one frozen configuration, with named presets."""

import ast
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from ka.data.datasets import DATASETS
from ka.errors import KAError
from ka.models.variants import variant

Schedule = Literal["constant", "cosine"]
Loss = Literal["l1", "l1+ssim"]
AMP = Literal["none", "bfloat16"]


@dataclass(frozen=True)
class Config:
    """Everything that decides the outcome of a run; equal configurations give equal weights on one machine.

    Attributes:
        variant: the model, a key of `ka.VARIANTS`.
        dataset: one of `ka.data.datasets.DATASETS`.
        data_root: folder or file of `cave` and `h5`.
        ratio: scale factor between LR-HSI and HR-MSI.
        train_scenes: train on these scenes only, comma-separated; None for all of the split.
        dim: embedding width, a multiple of 8.
        patch, stride: size and step of training patches, in pixels of the ground truth.
        batch: patches per iteration.
        iterations, epochs: length of the run, in one of the two.
        lr: peak learning rate of AdamW.
        ends_lr: factor on it for the first and last convolution, whose many inputs (all bands, 3×3) add up.
        scale: the network sees the data multiplied by it. Nothing is left of it after training: head and tail start
            and learn that much larger and smaller, which is the same (all between them and `up` is scale-free).
        msi_gain: the head's weights on the HR-MSI start larger by it, so that its few channels are heard among many
            bands.
        schedule: `cosine` decays to zero over the run; `constant` does not.
        warmup: iterations of linear warm-up.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        loss: L1, or L1 + 0.1 · (1 − SSIM).
        augment: random flips and 90° rotations. They turn the grid of kept pixels too, so `up` lies half a pixel to
            the other side of the truth: more variety, at the price of registration.
        zero_tail: start with a tail of zeros, that is from the bicubic image.
        ema: decay of the averaged weights per iteration.
        hold_out: keep the validation scenes out of training; without it there is none, and the last weights count.
        eval_every: iterations between validations.
        eval_size: side of the central part that validation looks at, in pixels; None for whole scenes.
        seed: of initial weights, order of patches and augmentation.
        amp: `bfloat16` for automatic mixed precision.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        deterministic: reproducible kernels on CUDA too, slower (on the CPU runs always are).
        checkpoint_every: seconds between resumable checkpoints, besides those after each validation.
        run_dir: folder of the run; None for a name made of dataset, variant, dim and seed under `runs/`.
    """

    variant: str = "kav11"
    dataset: str = "indian_pines"
    data_root: str | None = None
    ratio: int = 4
    train_scenes: str | None = None
    dim: int = 24
    patch: int = 16
    stride: int = 4
    batch: int = 4
    iterations: int | None = 1200
    epochs: int | None = None
    lr: float = 3e-3
    ends_lr: float = 0.05
    scale: float = 100.0
    msi_gain: float = 10.0
    schedule: Schedule = "cosine"
    warmup: int = 100
    weight_decay: float = 1e-4
    clip: float = 5.0
    loss: Loss = "l1"
    augment: bool = False
    zero_tail: bool = True
    ema: float = 0.99
    hold_out: bool = True
    eval_every: int = 100
    eval_size: int | None = 128
    seed: int = 0
    amp: AMP = "none"
    device: str = "auto"
    deterministic: bool = False
    checkpoint_every: float = 30.0
    run_dir: str | None = None

    def __post_init__(self) -> None:
        """Check every field, so that a wrong one stops the run before it starts."""
        for name, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            object.__setattr__(self, name, _typed(name, value, hint))
        variant(self.variant)
        if self.dataset not in DATASETS:
            raise KAError(f"dataset={self.dataset!r} is unknown; choose one of {', '.join(DATASETS)}")
        if self.dataset != "indian_pines" and self.data_root is None:
            raise KAError(f"dataset={self.dataset!r} needs data_root, the folder (or HDF5 file) that holds it")
        if self.dataset == "indian_pines" and self.data_root is not None:
            raise KAError("data_root is given, but the embedded scene needs none; add dataset='cave' (or 'h5')")
        if (self.iterations is None) == (self.epochs is None):
            raise KAError("a run is so many iterations or so many epochs long; give one of the two, not both")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise KAError(f"{name}={value} is out of range; allowed: {low} to {high}")
        if self.dim % 8:
            raise KAError(f"dim={self.dim} does not split into 8 heads; choose a multiple of 8")
        if self.patch % self.ratio or self.stride % self.ratio:
            raise KAError(f"patch={self.patch} and stride={self.stride} must be multiples of ratio={self.ratio}")
        if self.loss == "l1+ssim" and self.patch < 11:
            raise KAError(f"patch={self.patch} is smaller than the SSIM window; choose at least 12, or loss='l1'")
        kind, _, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
            raise KAError(f"device={self.device!r} is unknown; choose auto, cpu, cuda or cuda:N")

    @classmethod
    def preset(cls, name: str = "demo", **changes: Any) -> Self:
        """A named preset with some fields changed.

        Changing `iterations` replaces `epochs` and the other way round.

        Raises:
            KAError: unknown preset or field, wrong type, impossible value; what is allowed is listed.
        """
        if name not in PRESETS:
            raise KAError(f"preset={name!r} is unknown; choose one of {', '.join(PRESETS)}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise KAError(f"unknown parameter {', '.join(unknown)}; allowed are preset, {', '.join(known)}")
        values = dict(PRESETS[name])
        for one, other in (("iterations", "epochs"), ("epochs", "iterations")):
            if changes.get(one) is not None and other not in changes:
                values[other] = None
        return cls(**(values | changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def scene_names(self) -> list[str] | None:
        """`train_scenes` as a list."""
        names = self.train_scenes
        return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


_RANGES: dict[str, tuple[float, float]] = {
    "ratio": (2, 32), "dim": (8, 4096), "patch": (8, 4096), "stride": (1, 4096), "batch": (1, 65536),
    "iterations": (1, 10**9), "epochs": (1, 10**7), "lr": (1e-12, 10), "ends_lr": (1e-6, 100), "scale": (1e-6, 1e6),
    "msi_gain": (1e-6, 1e6), "warmup": (0, 10**7), "weight_decay": (0, 10), "clip": (1e-6, 1e9), "ema": (0, 1 - 1e-9),
    "eval_every": (1, 10**9),
    "eval_size": (16, 10**6), "seed": (0, 2**31 - 1), "checkpoint_every": (0, 10**6),
}  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The protocol of the study's reported rows (no validation: the last weights count).
    "study": {
        "dataset": "cave",
        "dim": 48,
        "patch": 64,
        "stride": 32,
        "batch": 32,
        "iterations": None,
        "epochs": 2000,
        "lr": 1e-4,
        "ends_lr": 1.0,
        "scale": 1.0,
        "msi_gain": 1.0,
        "schedule": "constant",
        "warmup": 0,
        "weight_decay": 1e-4,
        "clip": 5.0,
        "loss": "l1+ssim",
        "zero_tail": False,
        "ema": 0.999,
        "hold_out": False,
        "eval_every": 1225,
        "seed": 10,
        "checkpoint_every": 300.0,
    },
    # CAVE without a GPU: a quarter of an hour on one core for every variant. Small patches: at equal time 16 pixels
    # end 3.5 dB above 32.
    "laptop": {"dataset": "cave", "stride": 16, "batch": 8, "iterations": 3000, "eval_every": 250, "seed": 10},
    # The embedded scene in minutes on two cores: the defaults above.
    "demo": {},
    # Seconds, for tests: it shows that everything runs, not that it learns.
    "smoke": {"dim": 8, "patch": 16, "stride": 16, "batch": 2, "iterations": 6, "eval_every": 3, "warmup": 2},
    # Every row at the study's size on a GPU, for `python -m workbook.sweeps.campaign record`: CAVE at dim 48, all 20
    # training scenes
    # (so nothing to validate on: the last weights count, after a rate that decays to zero; the average is measured
    # too). Rates, starting scales and average are those of `laptop`, the defaults above, as they serve a short run.
    # Patches are as large as the study's and twice as dense each way: 15,680.
    "record": {
        "dataset": "cave",
        "dim": 48,
        "patch": 64,
        "stride": 16,
        "batch": 32,
        "iterations": 20000,
        "hold_out": False,
        "eval_every": 1000,
        "seed": 10,
        "checkpoint_every": 60.0,
    },
}


def parse_fields(given: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """`field=value` as a mapping; a value is what Python would make of it, else text.

    Raises:
        KAError: a part without `=`, or a field given twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key or key in found:
            raise KAError(
                f"{option} {text!r} is not of the form name=value, each name once; write {option} name=value …"
            )
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the type `hint`; whole numbers pass for floats, nothing else is converted."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in options:
            raise KAError(f"{name}={value!r} is unknown; choose one of {', '.join(map(str, options))}")
        return value
    kinds = options if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join({"NoneType": "None"}.get(kind.__name__, kind.__name__) for kind in kinds)
        raise KAError(f"{name}={reprlib.repr(value)} is of type {type(value).__name__}; {wanted} is expected")
    if isinstance(value, float) and math.isnan(value):
        raise KAError(f"{name} is NaN; give a number")
    return value
