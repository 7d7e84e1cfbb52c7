"""What a training run is: one frozen configuration, with named presets."""

import ast
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

import msgspec
from msgspec import Meta

from ka.data import DATASETS
from ka.errors import KAError, unknown
from ka.files import user_path
from ka.models.variants import variant

Schedule = Literal["constant", "cosine"]
Loss = Literal["l1", "l1+ssim"]
AMP = Literal["none", "bfloat16"]
Start = Literal["bicubic", "linear", "local"]
Consistency = Literal["none", "spectral", "spatial", "both"]
Factor = Annotated[float, Meta(ge=1e-6, le=1e6)]
OF_FILES = ("key", "axes", "max", "wavelengths", "val_share", "test_share")  # what says how own files are read
OF_H5 = ("srf", "key", "axes", "val_share", "test_share", "val_scenes", "test_scenes")  # what HDF5 files say
IGNORED = {"indian_pines": OF_FILES, "cave": OF_FILES, "h5": OF_H5}


@dataclass(frozen=True)
class Config:
    """Everything that decides the outcome of a run; equal configurations give equal weights on one machine."""

    variant: str = "kav11"  # the model, a key of `ka.VARIANTS`; the own network's name where there is one
    model: str | None = None  # a network of one's own in its place, as `package.module:Class` (docs/own-model.md)
    init: str | None = None  # begin with the weights of this run folder, checkpoint or published file
    dataset: str = "indian_pines"  # one of `ka.data.DATASETS`
    data_root: str | None = None  # folder or file of cave and h5
    ratio: Annotated[int, Meta(ge=2, le=32)] = 4  # between HR-MSI and LR-HSI
    # The Gaussian blur of the LR-HSI and the first pixel kept (`ka.Degradation`). None: as prepared files say, else 3×3
    # of σ 0.5, and half the ratio.
    blur_size: Annotated[int, Meta(ge=1, le=99)] | None = None
    blur_sigma: Annotated[float, Meta(ge=1e-3, le=100)] | None = None
    offset: Annotated[int, Meta(ge=0, le=31)] | None = None
    srf: str | None = None  # the response that makes the HR-MSI: a built-in sensor or a file (docs/own-images.md)
    # How own files are read and split (`ka.data.own.files.Reading`): what does not show in them.
    key: str | None = None
    axes: str | None = None
    max: Annotated[float, Meta(ge=1e-9, le=1e12)] | None = None
    wavelengths: str | None = None
    val_share: Annotated[float, Meta(ge=0.01, le=0.9)] = 0.1
    test_share: Annotated[float, Meta(ge=0.01, le=0.9)] = 0.2
    start: Start = "bicubic"  # the image that the network adds to (`ka.methods`): the study's, or a closed form
    radius: Annotated[int, Meta(ge=1, le=64)] = 4  # of local injection's windows, in low-resolution pixels
    ridge: Annotated[float, Meta(ge=1e-12, le=1e6)] = 1e-5  # of local injection's regression
    roots: bool = False  # local injection sees the channels' square roots too
    # What the sharpened image is made to agree with, as a last step: the HR-MSI (spectral), the LR-HSI (spatial). The
    # network is trained through the first, which works on patches.
    consistency: Consistency = "none"
    train_scenes: str | None = None  # train on these alone, comma-separated; None for all of the split
    val_scenes: str | None = None  # validate on these, of CAVE or own files …
    test_scenes: str | None = None  # … and test on these; None for the usual ones, or a share
    dim: Annotated[int, Meta(ge=8, le=4096)] = 24  # embedding width, a multiple of 8
    patch: Annotated[int, Meta(ge=8, le=4096)] = 16  # side of a training patch, in pixels of the ground truth
    margin: Annotated[int, Meta(ge=0, le=2047)] = 0  # pixels at a patch's border that the loss leaves out
    stride: Annotated[int, Meta(ge=1, le=4096)] = 4  # from one training patch to the next
    batch: Annotated[int, Meta(ge=1, le=65536)] = 4  # patches per iteration
    iterations: Annotated[int, Meta(ge=1, le=10**9)] | None = 1200  # length of the run, in these …
    epochs: Annotated[int, Meta(ge=1, le=10**7)] | None = None  # … or in these
    lr: Annotated[float, Meta(ge=1e-12, le=10)] = 3e-3  # peak learning rate of AdamW
    # Factor on it for the first and last convolution, whose many inputs (all bands, 3×3) add up.
    ends_lr: Annotated[float, Meta(ge=1e-6, le=100)] = 0.05
    front_lr: Annotated[float, Meta(ge=1e-6, le=100)] = 0.67  # … for kernels regressed on features (`kav20` and on) …
    body_lr: Annotated[float, Meta(ge=1e-6, le=100)] = 0.33  # … and for a residual body
    # The network sees the data multiplied by it. Nothing is left of it after training: head and tail start and learn
    # that much larger and smaller, which is the same (all between them and `up` is scale-free).
    scale: Factor = 100.0
    msi_gain: Factor = 10.0  # the head's weights on the HR-MSI start larger, so that its few channels are heard
    schedule: Schedule = "cosine"  # decays to zero over the run; "constant" does not
    warmup: Annotated[int, Meta(ge=0, le=10**7)] = 100  # iterations of linear warm-up, fewer than the run has
    weight_decay: Annotated[float, Meta(ge=0, le=10)] = 1e-4  # of AdamW
    clip: Annotated[float, Meta(ge=1e-6, le=1e9)] = 5.0  # largest norm of the gradient
    loss: Loss = "l1"  # or the study's L1 + 0.1 · (1 − SSIM)
    # Random flips and 90° rotations. `lr` is simulated anew; `up` is turned, and a bicubic one lies half a pixel to the
    # other side of the truth then: more variety, at the price of registration.
    augment: bool = False
    zero_tail: bool = True  # begin with a tail of zeros, that is with the start image
    ema: Annotated[float, Meta(ge=0, le=1 - 1e-9)] = 0.99  # decay of the averaged weights per iteration
    hold_out: bool = True  # keep validation scenes out of training; without them the last weights count
    eval_every: Annotated[int, Meta(ge=1, le=10**9)] = 100  # iterations between validations
    eval_size: Annotated[int, Meta(ge=16, le=10**6)] | None = 128  # side of the validated centre; None for all of it
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0  # of initial weights, order of patches and augmentation
    amp: AMP = "none"  # or automatic mixed precision
    device: str = "auto"  # cpu, cuda, cuda:N, or auto: CUDA where there is one
    deterministic: bool = False  # reproducible kernels on CUDA too, slower (on the CPU runs always are)
    checkpoint_every: Annotated[float, Meta(ge=0, le=10**6)] = 30.0  # seconds, besides after each validation
    run_dir: str | None = None  # None for a name made of dataset, variant, dim and seed under `runs/`

    def __post_init__(self) -> None:
        """Check every field, so that a wrong one stops the run before it starts."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint))
        for name in ("data_root", "run_dir", "init", "srf"):
            if (path := getattr(self, name)) is not None and path.startswith("~"):
                object.__setattr__(self, name, str(user_path(path)))
        if self.model is None:
            variant(self.variant)
        else:
            object.__setattr__(self, "variant", self.model)
        self._check_data()
        if (self.iterations is None) == (self.epochs is None):
            raise KAError("a run is so many iterations or so many epochs long; give one of the two, not both")
        if self.dim % 8:
            raise KAError(f"dim={self.dim} does not split into 8 heads; choose a multiple of 8")
        if 2 * self.margin >= self.patch:
            raise KAError(f"margin={self.margin} leaves nothing of patches of {self.patch} pixels; choose less")
        if self.patch % self.ratio or self.stride % self.ratio:
            raise KAError(f"patch={self.patch} and stride={self.stride} must be multiples of ratio={self.ratio}")
        if self.loss == "l1+ssim" and self.patch < 11:
            raise KAError(f"patch={self.patch} is smaller than the SSIM window; choose at least 12, or loss='l1'")
        kind, colon, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (
            colon and not (kind == "cuda" and number.isdecimal() and number.isascii())
        ):
            raise KAError(f"device={self.device!r} is unknown; choose auto, cpu, cuda or cuda:N")

    def _check_data(self) -> None:
        if self.dataset not in DATASETS:
            raise unknown("dataset", self.dataset, DATASETS)
        if self.dataset != "indian_pines" and self.data_root is None:
            raise KAError(f"dataset={self.dataset!r} needs data_root, the folder (or file) that holds it")
        if self.dataset == "indian_pines" and self.data_root is not None:
            raise KAError("data_root is given, but the embedded scene needs none; add dataset='cave', 'h5' or 'files'")
        usual = {field.name: field.default for field in fields(self)}
        ignored = [name for name in IGNORED.get(self.dataset, ()) if getattr(self, name) != usual[name]]
        if ignored:
            what = f"{', '.join(ignored)} would be ignored with dataset={self.dataset!r}, which says this itself"
            raise KAError(f"{what}; leave out what is not for it, or add dataset='files'")

    @classmethod
    def preset(cls, name: str = "demo", **changes: Any) -> Self:
        """A named preset with some fields changed; changing `iterations` replaces `epochs` and the other way round."""
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
        known = [field.name for field in fields(cls)]
        for field in changes:
            if field not in known:
                raise unknown("parameter", field, ("preset", *known))
        values = dict(PRESETS[name])
        for length, other in (("iterations", "epochs"), ("epochs", "iterations")):
            if changes.get(length) is not None and other not in changes:
                values[other] = None
        return cls(**(values | changes))

    @property
    def name(self) -> str:
        """The model's, as part of a file's name."""
        return self.variant.replace(":", ".")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` if it is what a field's type says; whole numbers pass for floats, nothing else is converted."""
    if isinstance(value, str) and get_args(hint) and all(isinstance(choice, str) for choice in get_args(hint)):
        if value not in get_args(hint):
            raise unknown(name, value, get_args(hint))
        return value
    try:
        return msgspec.convert(value, hint, strict=True)
    except msgspec.ValidationError as error:
        expected = str(error).replace("`", "").replace("null", "None").replace("E", "e", 1)
        fault = "is out of range" if "=" in expected else "is of the wrong type"
        raise KAError(f"{name}={reprlib.repr(value)} {fault}: {expected}") from None


LOCAL = {"start": "local", "roots": True, "consistency": "both"}
# Every row at the study's size on a GPU, minutes each: CAVE at dim 48, all 20 training scenes (so nothing to validate
# on: the last weights count, after a rate that decays to zero; the average is measured too). Rates, starting scales
# and average are the defaults, as they serve a short run. Patches are as large as the study's and twice as dense.
RECORD = {
    "dataset": "cave", **LOCAL, "radius": 5, "dim": 48, "patch": 64, "stride": 16, "batch": 32, "iterations": 1000,
    "hold_out": False, "eval_every": 100, "seed": 10, "checkpoint_every": 60.0,
}  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The protocol of the study's reported rows (no validation: the last weights count).
    "study": {
        "dataset": "cave", "dim": 48, "patch": 64, "stride": 32, "batch": 32, "iterations": None, "epochs": 2000,
        "lr": 1e-4, "ends_lr": 1.0, "scale": 1.0, "msi_gain": 1.0, "schedule": "constant", "warmup": 0,
        "weight_decay": 1e-4, "clip": 5.0, "loss": "l1+ssim", "zero_tail": False, "ema": 0.999, "hold_out": False,
        "eval_every": 1225, "seed": 10, "checkpoint_every": 300.0,
    },
    # CAVE without a GPU, in minutes on one core. What was tried on the validation scenes, and what it brought, is in
    # docs/recipe.md.
    "laptop": {
        "dataset": "cave", **LOCAL, "radius": 5, "stride": 16, "batch": 8, "iterations": 1000, "eval_every": 250,
        "seed": 10,
    },
    # For rows whose kernels adapt, and their controls: patches that hold whole windows, as many pixels for all of them.
    "adaptive": {
        "dataset": "cave", **LOCAL, "radius": 5, "patch": 96, "margin": 8, "stride": 16, "batch": 2, "iterations": 400,
        "warmup": 50, "clip": 1.0, "eval_every": 100, "eval_size": 256, "seed": 10,
    },
    # The best small model (88 thousand weights), minutes on one core: `record` with a quarter of its patches a step,
    # which the validation scenes prefer (docs/adaptive.md).
    "best": {**RECORD, "variant": "kav26_wide", "batch": 8},
    # The embedded scene in minutes on two cores: the defaults above, from a start chosen on its validation part.
    "demo": {**LOCAL, "ridge": 1e-4},
    # Seconds, for tests: it shows that everything runs, not that it learns.
    "smoke": {"dim": 8, "patch": 16, "stride": 16, "batch": 2, "iterations": 6, "eval_every": 3, "warmup": 2},
    "record": RECORD,
}  # fmt: skip


def parse_fields(given: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """`field=value`, each field once, as a mapping; a value is what Python would make of it, else text."""
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or name in values:
            raise KAError(f"{option} {text!r} is not of the form name=value, each name once; write it so")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[name] = value
    return values
