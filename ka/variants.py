"""The one table of models: every variant is a row of parts.

The rows are the study's PSRT_KAv1 … KAv11 with the PSRT baselines, what the study really ran where that differs
(`…_as_run`, `psrt_misaligned`), and the variants the same authors reported later (kav12 … kav19). A new idea is a new
row; name = key of `VARIANTS` = `variant` of the notebooks = label in figures.

Parameter counts: *live* parameters are those the output depends on, and the only ones our models have. The study's
modules also held *dead* ones, which inflate its parameter column; `reported_parameters` adds them by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_origin

from ka.files import KAError

Shuffle = Literal["none", "aligned", "misaligned"]
Kernels = Literal["", "identity", "learned", "reweighted", "pooled"]
KernelSet = Literal["", "windows", "windows+global", "global+windows", "scrambled"]
SE = Literal["", "shared", "per window"]
GlobalSE = Literal["", "shared", "own"]
Global = Literal["", "raw", "attended"]
Second = Literal["image", "windows", "windows+image", "global"]
Widen = Literal["", "linear", "repeat", "repeat+affine"]

N_WINDOWS = 4  # a 2×2 grid of quadrants, row-major
KERNEL_SIZE = 3


@dataclass(frozen=True)
class Variant:
    """One model of the study as parts, in the order in which a KA layer applies them.

    Attributes:
        name: key of the table.
        shuffle: PSRT's spatial shuffle around L2 (only `psrt`, `psrt_misaligned`).
        kernels: where window kernels come from. `""`: no KA branch, window attention on all channels. `identity`:
            the branch returns its input. `learned`: weights. `reweighted`: weights times a gate per sample and
            window. `pooled`: each window of the input, pooled to k×k, per sample.
        normal_init: learned kernels start from N(0, 1) instead of PyTorch's convolution init.
        sa: self-attention over kernel taps, and over which set: the window kernels, or these joined with the global
            kernel (in that order). `scrambled`: as global+windows, with the axes traded that KAv8 traded.
        se: squeeze-and-excitation of the window kernels, one module for all windows or one each.
        widen: how pooled kernels (no output axis) get one, after SA and SE.
        global_from: global kernel made from the raw (or reweighted) window kernels, or from those after SA.
        global_bias: bias of the 1×1 convolution that makes the global kernel.
        global_se: SE of the global kernel: the shared one, or its own.
        second: what the second convolution runs on: the image with every kernel; each window with its own kernel;
            windows with theirs and the image with the global kernel; the image with the global kernel alone.
        activation: GELU after the fusion.
        linear: 1×1 mixes that the study built as Linear (they start from N(0, 0.01²)), not as a convolution.
        dead: parts of the study's layer that no output depended on (`DEAD_PARTS`).
    """

    name: str
    shuffle: Shuffle = "none"
    kernels: Kernels = ""
    normal_init: bool = False
    sa: KernelSet = ""
    se: SE = ""
    widen: Widen = ""
    global_from: Global = ""
    global_bias: bool = True
    global_se: GlobalSE = ""
    second: Second = "image"
    activation: bool = False
    linear: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse combinations that mean nothing, so that a new row fails here and not in training."""
        for field in fields(self):
            allowed = get_args(field.type) if get_origin(field.type) is Literal else ()
            if allowed and getattr(self, field.name) not in allowed:
                raise KAError(
                    f"variant {self.name}: {field.name}={getattr(self, field.name)!r} is unknown; "
                    f"choose one of {', '.join(map(repr, allowed))}"
                )
        nonsense = {
            "pooled kernels need `widen`, and only they": (self.kernels == "pooled") != bool(self.widen),
            "SA or SE of a global kernel needs `global_from`": (
                not self.global_from and (self.sa not in ("", "windows") or bool(self.global_se))
            ),
            "the second convolution uses a global kernel that `global_from` does not make": (
                self.second in ("windows+image", "global") and not self.global_from
            ),
            "a global kernel of pooled kernels is not defined": (self.kernels == "pooled" and bool(self.global_from)),
            "a global kernel made after SA cannot take part in SA": (
                self.global_from == "attended" and self.sa != "windows"
            ),
            "a second convolution on windows alone would throw the global kernel away": (
                self.second == "windows" and bool(self.global_from)
            ),
        }
        for why, wrong in nonsense.items():
            if wrong:
                raise KAError(f"variant {self.name}: {why}; mend its row in ka/variants.py")

    @property
    def has_ka(self) -> bool:
        """Whether half of the channels go through a KA branch."""
        return self.kernels != ""

    @property
    def adaptive(self) -> bool:
        """Whether the kernels depend on the image (pooled or reweighted): only then does KA not fold."""
        return self.kernels in ("pooled", "reweighted")

    @property
    def position_bound(self) -> str:
        """Why the output at a pixel depends on where the image's borders are, or "" if it does not.

        Whole-image evaluation in tiles is exact only where this is empty (and, for `psrt`, where H and W rounded up
        to 8 are multiples of 16).
        """
        if self.shuffle == "misaligned":
            return "its shuffle moves attention outputs across the whole image"
        if self.adaptive:
            return "its kernels are pooled from quadrants of the image"
        if self.has_ka and self.second in ("windows", "windows+image"):
            return "its kernels belong to quadrants of the image"
        return ""

    @property
    def global_first(self) -> bool:
        """Whether the global kernel stands before the window kernels in the set."""
        return self.sa in ("global+windows", "scrambled")

    @property
    def n_second(self) -> int:
        """Number of kernels the image is convolved with before the fusion."""
        return N_WINDOWS + bool(self.global_from)

    @property
    def has_fusion(self) -> bool:
        """Whether results of several second convolutions are fused by a 1×1 convolution."""
        return self.second in ("image", "windows+image") and self.kernels != "identity"


def _rows() -> Iterator[Variant]:
    # The baselines.
    yield Variant("psrt", shuffle="aligned")
    yield Variant("psrt_misaligned", shuffle="misaligned")
    yield Variant("psrt_noshuffle")

    # Pooled kernels.
    kav1 = Variant(
        "kav1",
        kernels="pooled",
        sa="windows",
        se="shared",
        widen="linear",
        linear=("fusion",),
        dead=("norm",),
    )
    kav9 = replace(kav1, name="kav9", widen="repeat+affine", dead=())
    # Second convolution on windows.
    kav3 = Variant(
        "kav3", kernels="learned", sa="windows", se="per window", second="windows", dead=("conv_bias", "norm")
    )
    kav2 = replace(kav3, name="kav2", se="shared", dead=("conv_bias", "norm", "layernorm"))
    kav4 = replace(
        kav3, name="kav4", global_from="attended", global_se="own", second="windows+image", linear=("fusion",)
    )
    # Global kernel alone on the image.
    kav5 = Variant(
        "kav5",
        kernels="learned",
        global_from="raw",
        global_se="own",
        second="global",
        dead=("conv_bias", "norm", "window_se", "sa", "fusion2"),
    )
    # Every kernel on the image.
    kav6 = Variant(
        "kav6",
        kernels="learned",
        sa="windows+global",
        se="shared",
        global_from="raw",
        global_se="shared",
        dead=("conv_bias", "window_se", "global_se"),
    )
    kav8 = replace(kav6, name="kav8", sa="global+windows", global_bias=False, linear=("global",), dead=("conv_bias",))
    kav7 = Variant("kav7", kernels="learned", sa="windows", se="shared", dead=("conv_bias",))
    kav10 = replace(kav7, name="kav10", se="", dead=("conv_bias", "shared_se"))
    kav11 = Variant("kav11", kernels="learned", global_from="raw", dead=("conv_bias",))
    yield from (kav1, kav2, kav3, kav4, kav5, kav6, kav7, kav8, kav9, kav10, kav11)

    # What the study ran where that is not what it describes.
    yield replace(
        kav5,
        name="kav5_as_run",
        kernels="identity",
        global_from="",
        global_se="",
        second="image",
        dead=(*kav5.dead, "kernels", "global", "global_se"),
    )
    yield replace(kav8, name="kav8_as_run", sa="scrambled")
    yield replace(kav9, name="kav9_as_run", widen="repeat")

    # The second report.
    kav19 = Variant("kav19", kernels="learned", normal_init=True, dead=("reweight",))
    yield replace(kav19, name="kav12", sa="windows", global_from="raw", dead=())
    yield Variant("kav13", kernels="learned", sa="windows", se="shared", activation=True)
    yield replace(kav19, name="kav16", se="shared", global_from="raw", dead=())
    kav18 = replace(kav19, name="kav18", kernels="reweighted", dead=())
    yield replace(kav18, name="kav17", global_from="raw")
    yield kav18
    yield kav19


VARIANTS: dict[str, Variant] = {row.name: row for row in _rows()}


def variant(name: str) -> Variant:
    """The row of a variant.

    Raises:
        KAError: no such variant; the message lists those there are.
    """
    try:
        return VARIANTS[name]
    except (KeyError, TypeError):
        raise KAError(f"unknown variant {name!r}; choose one of {', '.join(VARIANTS)}") from None


def _se(c: int) -> int:
    return 2 * (c * c + c)


#: Parameters of each part of the study's KA layer, for c channels and n window kernels of 3×3.
DEAD_PARTS = {
    "conv_bias": lambda c, n: n * c,
    "norm": lambda c, n: 2 * c,
    "layernorm": lambda c, n: 2 * c,
    "kernels": lambda c, n: n * c * c * KERNEL_SIZE**2,
    "sa": lambda c, n: 4 * c * c + 4 * c,
    "shared_se": lambda c, n: _se(c),
    "window_se": lambda c, n: n * _se(c),
    "global_se": lambda c, n: _se(c),
    "global": lambda c, n: n * c * c + c,
    "fusion2": lambda c, n: 2 * c * c + c,
    "reweight": lambda c, n: n * (c + 1) + 4 * n * n + 4 * n + 4 * n * n + n,
}


def dead_parameters(name: str, dim: int = 48, n_layers: int = 18) -> int:
    """Parameters of the study's module that no output depended on.

    Every SaR block (three layers) also constructed two LayerNorms that no forward used. For kav12 … kav19 the second
    report prints no counts, so their number here is what its modules are known to have held, not a match.
    """
    row = variant(name)
    unused_norms = (n_layers // 3) * 2 * 2 * dim
    return unused_norms + n_layers * sum(DEAD_PARTS[part](dim // 2, N_WINDOWS) for part in row.dead)
