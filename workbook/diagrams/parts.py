"""What a diagram of a KA layer says: a row of the variant table as parts on one fixed grid of slots."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from ka.models.counts import count_parameters
from ka.models.kernel_attention import KernelAttention
from ka.models.kernel_parts import KernelSA
from ka.models.psrt import PSRT
from ka.models.variants import KERNEL_SIZE, N_WINDOWS, Variant
from workbook.diagrams.words import Words

Lane = Literal["windows", "global", "both"]

#: The slots of a KA layer in the order in which a layer applies them, and their Okabe-Ito colours.
SLOTS = {
    "window kernels": "#E69F00",
    "reweighting": "#56B4E9",
    "global kernel, raw": "#D55E00",
    "SA": "#0072B2",
    "global kernel, attended": "#D55E00",
    "SE": "#009E73",
    "widening": "#CC79A7",
    "second convolution": "#F0E442",
    "fusion": "#000000",
    "GELU": "#000000",
}


@dataclass(frozen=True)
class Part:
    """One cell of the grid on which every KA layer is drawn."""

    slot: str  # a key of `SLOTS`
    lane: Lane  # what it works on: window kernels (or maps made with them), the global kernel, or both joined
    present: bool  # whether the row has it
    title: str  # what its box says; for an absent part, what is not there
    detail: str
    short: str  # its setting in a word or two, for the overview; "" where absent
    parameters: int  # live ones, counted on the real module
    shape: dict[str, str]  # of what leaves it, as `axes = sizes`, by lane; empty where absent


def shape(
    axes: str, dim: int, n_bands: int = 31, n_msi: int = 3, n_windows: int = N_WINDOWS, size: int = KERNEL_SIZE
) -> str:
    """A shape as `axes = sizes`: shape("n c c k k", 48) is "n c c k k = 4·24·24·3·3".

    Letters: b samples, n windows, c = dim/2 channels of the KA branch, C = dim, k taps a side, s bands of the LR-HSI,
    m bands of the HR-MSI, h and w pixels; "n·c" multiplies, "s+m" adds. b, h and w stay letters: they are the image's.
    """
    letters = {"n": n_windows, "c": dim // 2, "C": dim, "k": size, "s": n_bands, "m": n_msi}

    def extent(axis: str) -> str:
        if axis in "bhw":
            return axis
        return str(sum(math.prod(letters[letter] for letter in term.split("·")) for term in axis.split("+")))

    return f"{axes} = {'·'.join(extent(axis) for axis in axes.split())}"


ABSENT = {slot: f"no {slot.split(',')[0]}" for slot in SLOTS} | {"SA": "no kernel SA"}
"""What stands in the place of a part that a row lacks; second convolutions have texts of their own."""


def chain(row: Variant, dim: int = 48, language: str = "en") -> tuple[Part, ...]:
    """The KA layer of a row as parts, present and absent, in the order in which the layer applies them.

    Every row gives the same slots and, but for SA and SE of both lanes joined, the same cells.

    `dim` is the embedding width C, the layer has C/2 channels; `language` is `en` or `zh`. An unknown language, or a
    `dim` that cannot be built, is a `KAError`.
    """
    layer = _Layer(row, dim, Words(language))
    raw = _global_kernel(layer, "global kernel, raw", "raw", "before SA")
    attended = _global_kernel(layer, "global kernel, attended", "attended", "after SA")
    kernels = (_window_kernels(layer), _reweighting(layer), raw, *_kernel_sa(layer), attended, *_se(layer))
    return (*kernels, _widening(layer), *_second_convolutions(layer), _fusion(layer), _gelu(layer))


@dataclass(frozen=True)
class _Layer:
    """A row at one width, and what several slots ask of it."""

    row: Variant
    dim: int
    say: Words

    @property
    def c(self) -> int:
        return self.dim // 2

    @property
    def runs(self) -> bool:
        return self.row.kernels not in ("", "identity")

    @property
    def has_global(self) -> bool:
        return self.runs and bool(self.row.global_from)

    @cached_property
    def module(self) -> KernelAttention | None:
        """The real layer, whose parts are counted; the caller's random numbers are left as they were."""
        if not self.runs:
            return None
        with torch.random.fork_rng(devices=[]):
            return KernelAttention(self.c, self.row)

    def sizes(self, axes: str) -> str:
        return shape(axes, self.dim, n_windows=self.row.n_windows, size=self.row.size)

    def kernels(self, which: str) -> str:
        """The shape of kernels: `first`, as they are made; `set`, as SA and SE see them; `wide`, widened; `global`."""
        row = self.row
        if row.kernels == "pooled" and which in ("first", "set"):
            return self.sizes("b n c k k")
        batch = "b " if row.adaptive and which != "first" else ""
        return self.sizes(batch + ("c c k k" if row.n_windows == 1 or which == "global" else "n c c k k"))

    def part(
        self, slot: str, lane: Lane, title: str, detail: str, short: str, made_by: str, shapes: dict[str, str]
    ) -> Part:
        """A part that the row has; `made_by` names the layer's module whose parameters it shows."""
        made = getattr(self.module, made_by) if made_by else None
        count = made.numel() if isinstance(made, torch.Tensor) else count_parameters(made) if made else 0
        return Part(slot, lane, True, title, detail, short, count, shapes)

    def absent(self, slot: str, lane: Lane, title: str = "", why: str = "") -> Part:
        """A part that it lacks."""
        say = self.say
        return Part(slot, lane, False, say(title or ABSENT[slot]), say(why) if why else "", "", 0, {})


def _window_kernels(layer: _Layer) -> Part:
    row, say, k = layer.row, layer.say, layer.row.size
    if not layer.runs:
        return layer.absent("window kernels", "windows")
    unusual = (row.n_windows, k) != (N_WINDOWS, KERNEL_SIZE)  # said where a reader would not guess it
    start = "learned, start N(0, 1)" if row.normal_init else "learned, default start"
    short = "N(0, 1)" if row.normal_init else "learned"
    if row.kernels == "pooled":
        start, short = "each window pooled to {k}×{k}", "pooled"
    elif unusual:
        start = "{k}×{k}, " + start
    elif row.normal_init:
        short = "learned\nN(0, 1)"
    if unusual:
        short += ",\none {k}×{k}" if row.n_windows == 1 else ",\n{k}×{k}"
    text = say("kernel" if row.n_windows == 1 else "window kernels"), say(start, k=k), say(short, k=k)
    return layer.part("window kernels", "windows", *text, "window_kernels", {"windows": layer.kernels("first")})


def _reweighting(layer: _Layer) -> Part:
    say = layer.say
    if layer.row.kernels != "reweighted":
        return layer.absent("reweighting", "windows")
    detail = say("1st conv → mean → MLP → b × {n}", n=layer.row.n_windows)
    text = say("reweighting"), detail, say("gate per\nsample")
    return layer.part("reweighting", "windows", *text, "reweight", {"windows": layer.kernels("set")})


def _global_kernel(layer: _Layer, slot: str, source: str, when: str) -> Part:
    row, say = layer.row, layer.say
    if not layer.has_global or row.global_from != source:
        return layer.absent(slot, "global", why=when)
    bias = "bias" if row.global_bias else "no bias"
    detail = say("1×1, {wide} → {c}, " + bias, wide=row.n_windows * layer.c, c=layer.c)
    text = say("global kernel"), detail, say(bias)
    return layer.part(slot, "global", *text, "global_kernel", {"global": layer.kernels("global")})


def _kernel_sa(layer: _Layer) -> list[Part]:
    row, say, k = layer.row, layer.say, layer.row.size
    joint = layer.runs and row.sa not in ("", "windows")
    beside = [] if joint else [layer.absent("SA", "global")]
    if not (layer.runs and row.sa):
        return [layer.absent("SA", "windows"), *beside]
    taps, channels = "{taps} taps × {c}", "{d} channels × {taps}"
    tokens = {"taps": taps, "channels": channels, "both": f"{taps} + {channels}"}[row.sa_among]
    per_set = {
        "windows": "{tokens}, per sample" if row.kernels == "pooled" else "{tokens}, per filter",
        "windows+global": "{tokens}, per filter, over [windows, global]",
        "global+windows": "{tokens}, per filter, over [global, windows]",
        "scrambled": "{tokens}; filters and windows trade places",
    }[row.sa]
    detail = say(tokens, taps=(row.n_windows + joint) * k * k, c=layer.c, d=layer.c // KernelSA.n_heads)
    if joint or row.sa_among != "both":  # else there is no room for more in one lane
        detail = say(per_set, tokens=detail)
    shapes = {"windows": layer.kernels("set")} | ({"global": layer.kernels("global")} if joint else {})
    text = say("kernel SA, {heads} heads", heads=KernelSA.n_heads), detail, _sa_short(row, say)
    return [layer.part("SA", "both" if joint else "windows", *text, "sa", shapes), *beside]


def _sa_short(row: Variant, say: Words) -> str:
    """The set of kernels, and what attends to what if that is not the taps alone."""
    if row.sa_among == "taps":
        joint = {
            "windows+global": "windows,\nglobal",
            "global+windows": "global,\nwindows",
            "scrambled": "axes\ntraded",
        }
        return say(joint.get(row.sa, "windows"))
    kernels = say({"windows": "windows", "scrambled": "traded"}.get(row.sa, "all"))
    return say("{kernels},\nchannels" if row.sa_among == "channels" else "{kernels},\ntaps+ch.", kernels=kernels)


def _se(layer: _Layer) -> list[Part]:
    row, say = layer.row, layer.say
    has, own = layer.runs and bool(row.se), layer.has_global and row.global_se == "own"
    squeeze = say("mean → {c} → {c} → σ", c=layer.c)
    shapes = {"windows": layer.kernels("set"), "global": layer.kernels("global")}
    if has and row.global_se == "shared":
        title, short = say("SE, shared by windows and global"), say("shared,\nall {m}", m=row.n_windows + 1)
        return [layer.part("SE", "both", title, squeeze, short, "se", shapes)]
    if row.se == "per window":
        title, short = "SE, one per window", "per win.,\nown glob." if own else "per\nwindow"
    else:  # a global kernel that this SE leaves out is worth a word
        title = "SE, shared"
        short = "shared,\nown glob." if own else "shared,\nwindows" if layer.has_global else "shared"
    windows, glob = layer.absent("SE", "windows"), layer.absent("SE", "global")
    if has:
        text = say(title), squeeze, say(short)
        windows = layer.part("SE", "windows", *text, "se", {"windows": shapes["windows"]})
    if own:
        text = say("SE of its own"), squeeze, "" if has else say("own, for\nglobal")
        glob = layer.part("SE", "global", *text, "global_se", {"global": shapes["global"]})
    return [windows, glob]


def _widening(layer: _Layer) -> Part:
    say = layer.say
    if not (layer.runs and layer.row.widen):
        return layer.absent("widening", "windows")
    detail, short = {
        "linear": ("linear per tap, {c} → {c} × {c}", "linear\nc → c²"),
        "repeat": ("repeated {c}×", "repeat"),
        "repeat+affine": ("repeated {c}×, scale and shift", "repeat,\naffine"),
        "outer": ("outer product, 2 × ({c} → {c})", "outer\nproduct"),
        "depthwise": ("output i sees input i alone", "depth-\nwise"),
    }[layer.row.widen]
    text = say("widening"), say(detail, c=layer.c), say(short)
    return layer.part("widening", "windows", *text, "widen", {"windows": layer.kernels("wide")})


def _second_convolutions(layer: _Layer) -> list[Part]:
    """On windows, on the image by window kernels, on the image by the global kernel."""
    row, say, slot = layer.row, layer.say, "second convolution"
    single, image = row.n_windows == 1, layer.sizes("b c h w")
    bias = "bias" if row.bias else "no bias"
    on_image = bias if single else "{m} kernels"
    short = {
        "windows": ("windows\nonly", "no LN1,\nwindows"),
        "windows+image": ("windows,\nimage", "no LN1,\nwin., im."),
        "global": ("image,\nby global", "no LN1,\nby global"),
        "image": (f"image,\n{on_image}", f"no LN1,\n{on_image}"),
    }[row.second][not row.layernorm]
    short = say(short, m=row.n_second)
    by_global = "by the global kernel"
    windows = layer.absent(slot, "windows", "no 2nd conv on windows")
    whole = layer.absent(slot, "windows", "no 2nd conv on image", "by window kernels")
    glob = layer.absent(slot, "global", "no 2nd conv", by_global)
    if layer.runs and row.second in ("windows", "windows+image"):
        title, detail = say("2nd conv on windows"), say("each window by its own kernel")
        windows = layer.part(slot, "windows", title, detail, short, "", {"windows": image})
    if layer.runs and row.second == "image":
        title = say("conv on image" if single else "2nd conv on image")
        detail = say(bias) if single else say("by each of {n} window kernels", n=row.n_windows)
        maps = image if single else layer.sizes("b n·c h w")
        whole = layer.part(slot, "windows", title, detail, short, "bias", {"windows": maps})
    if layer.has_global:
        alone = short if row.second == "global" else ""
        glob = layer.part(slot, "global", say("2nd conv on image"), say(by_global), alone, "", {"global": image})
    return [windows, whole, glob]


def _fusion(layer: _Layer) -> Part:
    say = layer.say
    if layer.module is None or layer.module.fusion is None:
        return layer.absent("fusion", "both")
    wide = layer.module.fusion.in_features
    detail = say("concatenate, 1×1, {wide} → {c}, bias", wide=wide, c=layer.c)
    text = say("fusion"), detail, f"{wide} → {layer.c}"
    return layer.part("fusion", "both", *text, "fusion", {"windows": layer.sizes("b c h w")})


def _gelu(layer: _Layer) -> Part:
    if not (layer.runs and layer.row.activation):
        return layer.absent("GELU", "both")
    return layer.part("GELU", "both", "GELU", "", "GELU", "", {"windows": layer.sizes("b c h w")})


def fresh_model(row: Variant, dim: int, n_bands: int = 31, n_msi: int = 3) -> PSRT:
    """The real network, whose parts are counted. Raises KAError for a size that cannot be built."""
    with torch.random.fork_rng(devices=[]):
        return PSRT(row, n_bands, n_msi, dim)
