"""The one table of models: every variant is a row of parts.

The rows are the study's PSRT_KAv1 … KAv11 with the PSRT baselines, what the study really ran where that differs
(`…_as_run`, `psrt_misaligned`), the variants the same authors reported later (kav12 … kav19), and rows of our own that
change one part of another row, so that two runs can answer a question. A new idea is a new row; name = key of
`VARIANTS` = `variant` of the notebooks = label in figures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

from ka.errors import KAError, is_whole, unknown

DeadPart = Literal[
    "conv_bias", "norm", "layernorm", "kernels", "sa", "shared_se", "window_se", "global_se", "global", "fusion2",
    "reweight",
]  # fmt: skip

N_WINDOWS = 4  # a 2×2 grid of quadrants, row-major
KERNEL_SIZE = 3  # of every row that does not say otherwise

_FRONT = {"front", "attends", "bank", "mixes", "features", "hidden"}
_NO_KA = {"name", "kernels", "shuffle", "ours", "body", "blocks"} | _FRONT
_USED = {"": _NO_KA, "identity": _NO_KA | {"layernorm", "dead"}}  # the few fields that matter to these kernels


@dataclass(frozen=True)
class Variant:
    """One model of the study as parts, in the order in which a KA layer applies them.

    A value that is unknown, or that would be ignored, is a KAError: a new row fails here and not in training.
    """

    name: str  # key of the table
    shuffle: Literal["none", "aligned", "misaligned"] = "none"  # PSRT's spatial shuffle around L2, in no KA row
    # Where window kernels come from. "": no KA branch, attention on all channels. identity: KA returns its input.
    # learned: weights. reweighted: weights times a gate per sample and window. pooled: each window of the input to k×k.
    # regressed: each window's ridge regression of values on keys, applied to queries, a k×k convolution.
    kernels: Literal["", "identity", "learned", "reweighted", "pooled", "regressed"] = ""
    n_windows: int = N_WINDOWS  # kernels of the window set: one per quadrant, or a single one (ordinary convolution)
    size: int = KERNEL_SIZE  # taps k a side, odd
    layernorm: bool = True  # the KA branch sees LN1's output, as window attention does; else the layer's input as it is
    normal_init: bool = False  # learned kernels start from N(0, 1) instead of PyTorch's convolution init
    # Self-attention over kernel taps, and over which set: the window kernels, or these joined with the global kernel
    # (in that order). scrambled: as global+windows, with the axes traded that KAv8 traded.
    sa: Literal["", "windows", "windows+global", "global+windows", "scrambled"] = ""
    sa_among: Literal["taps", "channels", "both"] = "taps"  # a filter's taps, a head's input channels, or both
    se: Literal["", "shared", "per window"] = ""  # squeeze-and-excitation of window kernels: one module, or one each
    # How pooled kernels (no output axis) get one, after SA and SE
    widen: Literal["", "linear", "repeat", "repeat+affine", "outer", "depthwise"] = ""
    global_from: Literal["", "raw", "attended"] = ""  # window kernels it is made of: raw (or reweighted), or after SA
    global_bias: bool = True  # of the 1×1 convolution that makes the global kernel
    global_se: Literal["", "shared", "own"] = ""  # SE of the global kernel: the one of `se="shared"`, or its own
    # What the second convolution runs on: the image with every kernel; each window with its own kernel; windows with
    # theirs and the image with the global kernel; the image with the global kernel alone
    second: Literal["image", "windows", "windows+image", "global"] = "image"
    bias: bool = False  # of the second convolution, where it is a single one on the image (the study has none)
    activation: bool = False  # GELU after the second convolution and its fusion, where there is one
    linear: tuple[Literal["fusion", "global"], ...] = ()  # 1×1 mixes that start as Linear, N(0, 0.01²), in the study
    dead: tuple[DeadPart, ...] = ()  # what no output depended on in the study's layer: `study_names.DEAD_PARTS`
    ours: bool = False  # a row that neither report has, to be compared with the row that it changes
    # Kernels on learned features in front of the body (`ka.models.adaptive`), and what each of them looks at: a pixel,
    # the window of a low-resolution pixel, a quadrant, the whole image, or nothing (then it is a weight). "": none.
    front: Literal["", "pixel", "window", "quadrant", "image", "nothing"] = ""
    # What counts in a window that kernels are regressed in. "": its 9×9 pixels, all alike. near: the nearer, the more
    # (Gaussian, of learned width). alike: the nearer and the more like the centre (attention).
    attends: Literal["", "near", "alike"] = ""
    bank: int = 0  # learned kernels, mixed by weights made of the features; 0: none
    mixes: bool = False  # the bank's mixture is the kernel; else what a window's regression falls back on
    features: int = 8  # learned ones, beside the HR-MSI's channels and their roots
    hidden: int = 32  # channels of the convolutions that make them
    body: Literal["PSRT", "residual", ""] = "PSRT"  # what follows; residual: plain 3×3 convolutions with shortcuts
    blocks: int = 4  # of a residual body

    def __post_init__(self) -> None:
        for name, choices in _choices().items():
            value = getattr(self, name)
            for given in value if name in ("linear", "dead") else [value]:
                if given not in choices:
                    raise unknown(f"variant {self.name}: {name}", given, choices)
        for why, wrong in self._nonsense().items():
            if wrong:
                raise KAError(f"variant {self.name}: {why}; mend its row in ka/models/variants.py")

    def _nonsense(self) -> dict[str, bool]:
        """What a row must not say, and whether this one does."""
        kept = _USED.get(self.kernels)
        idle = [f.name for f in fields(self) if kept and f.name not in kept and getattr(self, f.name) != f.default]
        of_global = self.sa not in ("", "windows") or self.global_se or not self.global_bias or "global" in self.linear
        unmixed = self.kernels == "learned" and self.second == "image" and not (self.sa or self.se or self.global_from)
        return {
            f"kernels={self.kernels!r} leaves nothing for {', '.join(idle)} to change": bool(idle),
            "there are as many windows as quadrants (4), or one": self.n_windows not in (1, N_WINDOWS),
            "`size` is an odd number of taps a side": not (is_whole(self.size) and self.size > 0 and self.size % 2),
            "a single window kernel is learned, on the image, and not mixed": self.n_windows == 1 and not unmixed,
            "only a single convolution has a bias (else the fusion's serves all)": self.bias and self.n_windows != 1,
            "only learned kernels start from `normal_init`": self.normal_init
            and self.kernels in ("pooled", "regressed"),
            "there is no SA for `sa_among` to speak of": self.sa_among != "taps" and not self.sa,
            "pooled kernels need `widen`, and only they": (self.kernels == "pooled") != bool(self.widen),
            "SA, SE, bias or start of a global kernel need `global_from`": not self.global_from and bool(of_global),
            '`global_se` can share `se="shared"` alone': self.global_se == "shared" and self.se != "shared",
            "`second` needs `global_from`": self.second in ("windows+image", "global") and not self.global_from,
            "a global kernel of pooled kernels is not defined": self.kernels == "pooled" and bool(self.global_from),
            "a global kernel made after SA needs `sa=windows`": self.global_from == "attended" and self.sa != "windows",
            "`second` would throw the global kernel away": self.second == "windows" and bool(self.global_from),
            "`second` by the global kernel alone throws SE or SA of window kernels away": self.second == "global"
            and bool(self.se or (self.sa == "windows" and self.global_from == "raw")),
            "there is no fusion to be `linear`": "fusion" in self.linear and not self.has_fusion,
            "rows of our own hold nothing dead": self.ours and bool(self.dead),
            "kernels and shuffle are parts of PSRT's body": self.body != "PSRT"
            and (self.has_ka or self.shuffle != "none"),
            "there is neither a front nor a body": not (self.front or self.body),
            "only a front has `features` and `hidden`": not self.front and (self.features, self.hidden) != (8, 32),
            "kernels of a pixel or a quadrant come from a bank that it `mixes`": self.front in ("pixel", "quadrant")
            and not self.mixes,
            "a front that sees nothing cannot weigh a `bank`": self.front in ("", "nothing") and self.bank != 0,
            "there is no `bank` that it `mixes`": self.mixes and not self.bank,
            "only kernels regressed in windows attend": bool(self.attends) and (self.front != "window" or self.mixes),
            "`bank` is a whole number, 0 or more": not (is_whole(self.bank) and self.bank >= 0),
            "only a residual body has `blocks`": self.body != "residual" and self.blocks != 4,
            "`features`, `hidden` and `blocks` are whole numbers of 1 or more": not all(
                is_whole(n) and n > 0 for n in (self.features, self.hidden, self.blocks)
            ),
        }

    @property
    def has_ka(self) -> bool:
        """Whether half of the channels go through a KA branch."""
        return self.kernels != ""

    @property
    def needs_lr(self) -> bool:
        """Whether the network looks at the LR-HSI itself."""
        return bool(self.front) or self.body == "residual"

    @property
    def adaptive(self) -> bool:
        """Whether kernels of KA layers depend on the image: only then does KA not fold.

        Kernels of a front always do; they stand beside the layers, and nothing of them is folded.
        """
        return self.kernels in ("pooled", "reweighted", "regressed")

    def position_bound(self, h: int, w: int) -> str:
        """Why the output at a pixel depends on where the borders of an image of h×w pixels are, or "" if it does not.

        Whole-image evaluation in tiles is exact only where this is empty.
        """
        if self.shuffle == "misaligned":
            return "its shuffle moves attention outputs across the whole image"
        if self.shuffle == "aligned" and any(-(-n // 8) % 2 for n in (h, w)):  # an odd number of 8×8 windows
            return "its shuffle wraps around where a side, rounded up to 8, is no multiple of 16"
        if self.adaptive:
            how = "regressed on" if self.kernels == "regressed" else "pooled from"
            return f"its kernels are {how} quadrants of the image"
        if self.front in ("quadrant", "image"):
            seen = "quadrants of the image" if self.front == "quadrant" else "the whole image"
            return f"its kernels are {'weighed by' if self.mixes else 'regressed on'} {seen}"
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
        return self.n_windows + bool(self.global_from)

    @property
    def has_fusion(self) -> bool:
        """Whether results of several second convolutions are fused by a 1×1 convolution."""
        several = self.second == "windows+image" or (self.second == "image" and self.n_second > 1)
        return several and self.kernels != "identity"


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    """What may be said in each field that is a choice, or a tuple of choices."""
    kinds = {field.name: field.type for field in fields(Variant)}
    kinds |= {name: get_args(kind)[0] for name, kind in kinds.items() if get_origin(kind) is tuple}
    return {name: get_args(kind) for name, kind in kinds.items() if get_origin(kind) is Literal}


def _rows() -> Iterator[Variant]:
    yield Variant("psrt", shuffle="aligned")
    yield Variant("psrt_misaligned", shuffle="misaligned")
    yield Variant("psrt_noshuffle")

    # Pooled kernels.
    kav1 = Variant("kav1", kernels="pooled", sa="windows", se="shared", widen="linear", linear=("fusion",),
                   dead=("norm",))  # fmt: skip
    kav9 = replace(kav1, name="kav9", widen="repeat+affine", dead=())
    # Second convolution on windows.
    kav3 = Variant("kav3", kernels="learned", sa="windows", se="per window", second="windows",
                   dead=("conv_bias", "norm"))  # fmt: skip
    kav2 = replace(kav3, name="kav2", se="shared", dead=("conv_bias", "norm", "layernorm"))
    kav4 = replace(kav3, name="kav4", global_from="attended", global_se="own", second="windows+image",
                   linear=("fusion",))  # fmt: skip
    # Global kernel alone on the image.
    kav5 = Variant("kav5", kernels="learned", global_from="raw", global_se="own", second="global",
                   dead=("conv_bias", "norm", "window_se", "sa", "fusion2"))  # fmt: skip
    # Every kernel on the image.
    kav6 = Variant("kav6", kernels="learned", sa="windows+global", se="shared", global_from="raw", global_se="shared",
                   dead=("conv_bias", "window_se", "global_se"))  # fmt: skip
    kav8 = replace(kav6, name="kav8", sa="global+windows", global_bias=False, linear=("global",), dead=("conv_bias",))
    kav7 = Variant("kav7", kernels="learned", sa="windows", se="shared", dead=("conv_bias",))
    kav10 = replace(kav7, name="kav10", se="", dead=("conv_bias", "shared_se"))
    kav11 = Variant("kav11", kernels="learned", global_from="raw", dead=("conv_bias",))
    yield from (kav1, kav2, kav3, kav4, kav5, kav6, kav7, kav8, kav9, kav10, kav11)

    # What the study ran where that is not what it describes.
    yield Variant("kav5_as_run", kernels="identity", dead=(*kav5.dead, "kernels", "global", "global_se"))
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

    yield from _ours(kav1, kav6, kav7, kav10, kav11)


def _ours(kav1: Variant, kav6: Variant, kav7: Variant, kav10: Variant, kav11: Variant) -> Iterator[Variant]:
    """Rows of our own: each is another row with one part changed."""

    def but(row: Variant, name: str, **part: Any) -> Variant:
        return replace(row, name=name, dead=(), ours=True, **part)

    # What a folded KA layer is: the control for all of them.
    conv3x3 = Variant("conv3x3", kernels="learned", n_windows=1, bias=True, ours=True)
    yield conv3x3
    yield but(conv3x3, "conv5x5", size=5)
    # LayerNorm before KA, and the global kernel.
    yield but(kav11, "kav11_no_ln", layernorm=False)
    yield but(kav11, "kav11_no_global", global_from="")
    yield but(kav6, "kav6_global_apart", sa="windows")
    yield but(kav6, "kav6_global_after", sa="windows", global_from="attended")
    # The output axis that pooled kernels lack.
    yield but(kav1, "kav1_outer", widen="outer")
    yield but(kav1, "kav1_depthwise", widen="depthwise")
    # Kernel SA among channels, and of larger kernels.
    yield but(kav10, "kav10_channel_sa", sa_among="channels")
    yield but(kav10, "kav10_both_sa", sa_among="both")
    yield but(kav10, "kav10_5x5", size=5)
    # SE of each window, and of the global kernel.
    yield but(kav7, "kav7_se_each", se="per window")
    yield but(kav6, "kav6_no_global_se", global_se="")

    # Kernels that adapt: regressed in front of a lean body, of PSRT's, of none; and the controls, where a kernel looks
    # at the whole image, at nothing, or there is none.
    kav20 = Variant("kav20", front="window", body="residual", ours=True)
    yield kav20
    yield but(kav20, "kav20_wide", features=16, hidden=64)
    yield but(kav20, "kav20_image", front="image")
    yield but(kav20, "kav20_fixed", front="nothing")
    yield but(kav20, "residual", front="", blocks=5)
    yield but(kav20, "kav21", body="")
    yield but(conv3x3, "kav22", front="window")
    # Kernels mixed from a bank, by weights of a pixel, a window, a quadrant, the image.
    kav23 = but(kav20, "kav23", front="pixel", bank=8, mixes=True)
    yield kav23
    yield but(kav23, "kav23_window", front="window")
    yield but(kav23, "kav23_quadrant", front="quadrant")
    yield but(kav23, "kav23_image", front="image")
    # The regression in the KA layer itself.
    yield Variant("kav24", kernels="regressed", second="windows", ours=True)
    # Attention says what counts in a window; alone, and with a bank that windows fall back on.
    kav25 = but(kav20, "kav25", body="", attends="alike")
    yield kav25
    yield but(kav25, "kav25_near", attends="near")
    kav26 = but(kav25, "kav26", bank=6)
    yield kav26
    yield but(kav26, "kav26_wide", features=16, hidden=64)
    yield but(kav26, "kav26_box", attends="")


VARIANTS: dict[str, Variant] = {row.name: row for row in _rows()}

#: Those whose network is PSRT's alone, which the study's plain form and its pictures of layers can be compared with.
PSRT_ROWS: dict[str, Variant] = {name: row for name, row in VARIANTS.items() if not row.needs_lr}


def variant(name: str) -> Variant:
    """The row of a variant; a KAError that names the nearest and lists all where there is none of that name."""
    try:
        return VARIANTS[name]
    except (KeyError, TypeError):
        raise unknown("variant", name, VARIANTS) from None
