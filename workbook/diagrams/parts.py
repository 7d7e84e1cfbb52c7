"""What a diagram of a KA layer says: a row of the variant table as parts on one fixed grid of slots."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

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


class Part(NamedTuple):
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


# What stands in the place of a part that a row lacks; second convolutions have texts of their own.
ABSENT = {slot: f"no {slot.split(',')[0]}" for slot in SLOTS} | {"SA": "no kernel SA"}


def chain(row: Variant, dim: int = 48, language: str = "en") -> tuple[Part, ...]:
    """The KA layer of a row as parts, present and absent, in the order in which the layer applies them.

    Every row gives the same slots and, but for SA and SE of both lanes joined, the same cells. `dim` is the embedding
    width C, the layer has C/2 channels; `language` is `en` or `zh`. An unknown language, or a `dim` that cannot be
    built, is a `KAError`.
    """
    layer = _Layer(row, dim, Words(language))
    raw = layer.global_kernel("global kernel, raw", "raw", "before SA")
    attended = layer.global_kernel("global kernel, attended", "attended", "after SA")
    kernels = (layer.window_kernels(), layer.reweighting(), raw, *layer.kernel_sa(), attended, *layer.se())
    return (*kernels, layer.widening(), *layer.second_convolutions(), layer.fusion(), layer.gelu())


class _Layer:
    """A row at one width, and what it has in each slot."""

    def __init__(self, row: Variant, dim: int, words: Words) -> None:
        self.row, self.dim, self.c = row, dim, dim // 2
        self.runs = row.kernels not in ("", "identity")
        self.has_global = self.runs and bool(row.global_from)
        heads = KernelSA.n_heads
        self.say = partial(words, n=row.n_windows, c=self.c, k=row.size, heads=heads, d=self.c // heads)
        self.module: KernelAttention | None = None  # the real layer, whose parts are counted
        if self.runs:
            with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left as they were
                self.module = KernelAttention(self.c, row)

    def sizes(self, axes: str) -> str:
        return shape(axes, self.dim, n_windows=self.row.n_windows, size=self.row.size)

    def kernels(self, which: str) -> str:
        """The shape of kernels: `first`, as they are made; `set`, as SA and SE see them; `wide`, widened; `global`."""
        row = self.row
        if row.kernels == "pooled" and which in ("first", "set"):
            return self.sizes("b n c k k")
        batch = "b " if row.kernels == "regressed" or (row.adaptive and which != "first") else ""
        return self.sizes(batch + ("c c k k" if row.n_windows == 1 or which == "global" else "n c c k k"))

    def part(self, slot: str, lane: Lane, text: Sequence[str], made_by: str, shapes: dict[str, str]) -> Part:
        """A part that the row has: its title, detail and setting in short; the layer's module that makes it."""
        made = getattr(self.module, made_by) if made_by else None
        count = made.numel() if isinstance(made, torch.Tensor) else count_parameters(made) if made else 0
        title, detail, short = text
        return Part(slot, lane, True, title, detail, short, count, shapes)

    def absent(self, slot: str, lane: Lane, title: str = "", why: str = "") -> Part:
        return Part(slot, lane, False, self.say(title or ABSENT[slot]), self.say(why) if why else "", "", 0, {})

    def window_kernels(self) -> Part:
        row, single = self.row, self.row.n_windows == 1
        if not self.runs:
            return self.absent("window kernels", "windows")
        unusual = (row.n_windows, row.size) != (N_WINDOWS, KERNEL_SIZE)  # said where a reader would not guess it
        start = "learned, start N(0, 1)" if row.normal_init else "learned, default start"
        short = "N(0, 1)" if row.normal_init else "learned"
        if row.kernels == "pooled":
            start, short = "each window pooled to {k}×{k}", "pooled"
        elif row.kernels == "regressed":
            start, short = "ridge: values on keys, of queries", "ridge"
        elif unusual:
            start = "{k}×{k}, " + start
        elif row.normal_init:
            short = "learned\nN(0, 1)"
        if unusual:
            short += ",\none {k}×{k}" if single else ",\n{k}×{k}"
        text = [self.say(english) for english in ("kernel" if single else "window kernels", start, short)]
        return self.part("window kernels", "windows", text, "window_kernels", {"windows": self.kernels("first")})

    def reweighting(self) -> Part:
        if self.row.kernels != "reweighted":
            return self.absent("reweighting", "windows")
        text = self.say("reweighting"), self.say("1st conv → mean → MLP → b × {n}"), self.say("gate per\nsample")
        return self.part("reweighting", "windows", text, "reweight", {"windows": self.kernels("set")})

    def global_kernel(self, slot: str, source: str, when: str) -> Part:
        if not self.has_global or self.row.global_from != source:
            return self.absent(slot, "global", why=when)
        bias = "bias" if self.row.global_bias else "no bias"
        detail = self.say("1×1, {wide} → {c}, " + bias, wide=self.row.n_windows * self.c)
        text = self.say("global kernel"), detail, self.say(bias)
        return self.part(slot, "global", text, "global_kernel", {"global": self.kernels("global")})

    def kernel_sa(self) -> list[Part]:
        row = self.row
        joint = self.runs and row.sa not in ("", "windows")
        beside = [] if joint else [self.absent("SA", "global")]
        if not (self.runs and row.sa):
            return [self.absent("SA", "windows"), *beside]
        taps, channels = "{taps} taps × {c}", "{d} channels × {taps}"
        tokens = {"taps": taps, "channels": channels, "both": f"{taps} + {channels}"}[row.sa_among]
        per_set = {
            "windows": "{tokens}, per sample" if row.kernels == "pooled" else "{tokens}, per filter",
            "windows+global": "{tokens}, per filter, over [windows, global]",
            "global+windows": "{tokens}, per filter, over [global, windows]",
            "scrambled": "{tokens}; filters and windows trade places",
        }[row.sa]
        detail = self.say(tokens, taps=(row.n_windows + joint) * row.size**2)
        if joint or row.sa_among != "both":  # else there is no room for more in one lane
            detail = self.say(per_set, tokens=detail)
        shapes = {"windows": self.kernels("set")} | ({"global": self.kernels("global")} if joint else {})
        text = self.say("kernel SA, {heads} heads"), detail, self.sa_short()
        return [self.part("SA", "both" if joint else "windows", text, "sa", shapes), *beside]

    def sa_short(self) -> str:
        """The set of kernels, and what attends to what if that is not the taps alone."""
        sa, among = self.row.sa, self.row.sa_among
        if among == "taps":
            joint = {"windows+global": "windows,\nglobal", "global+windows": "global,\nwindows"}
            return self.say((joint | {"scrambled": "axes\ntraded"}).get(sa, "windows"))
        kernels = self.say({"windows": "windows", "scrambled": "traded"}.get(sa, "all"))
        return self.say("{kernels},\nchannels" if among == "channels" else "{kernels},\ntaps+ch.", kernels=kernels)

    def se(self) -> list[Part]:
        row, say = self.row, self.say
        has, own = self.runs and bool(row.se), self.has_global and row.global_se == "own"
        squeeze = say("mean → {c} → {c} → σ")
        of_windows, of_global = {"windows": self.kernels("set")}, {"global": self.kernels("global")}
        if has and row.global_se == "shared":
            text = say("SE, shared by windows and global"), squeeze, say("shared,\nall {m}", m=row.n_windows + 1)
            return [self.part("SE", "both", text, "se", of_windows | of_global)]
        if row.se == "per window":
            title, short = "SE, one per window", "per win.,\nown glob." if own else "per\nwindow"
        else:  # a global kernel that this SE leaves out is worth a word
            title = "SE, shared"
            short = "shared,\nown glob." if own else "shared,\nwindows" if self.has_global else "shared"
        windows, glob = self.absent("SE", "windows"), self.absent("SE", "global")
        if has:
            windows = self.part("SE", "windows", (say(title), squeeze, say(short)), "se", of_windows)
        if own:
            text = say("SE of its own"), squeeze, "" if has else say("own, for\nglobal")
            glob = self.part("SE", "global", text, "global_se", of_global)
        return [windows, glob]

    def widening(self) -> Part:
        if not (self.runs and self.row.widen):
            return self.absent("widening", "windows")
        detail, short = {
            "linear": ("linear per tap, {c} → {c} × {c}", "linear\nc → c²"),
            "repeat": ("repeated {c}×", "repeat"),
            "repeat+affine": ("repeated {c}×, scale and shift", "repeat,\naffine"),
            "outer": ("outer product, 2 × ({c} → {c})", "outer\nproduct"),
            "depthwise": ("output i sees input i alone", "depth-\nwise"),
        }[self.row.widen]
        text = self.say("widening"), self.say(detail), self.say(short)
        return self.part("widening", "windows", text, "widen", {"windows": self.kernels("wide")})

    def second_convolutions(self) -> list[Part]:
        """On windows, on the image by window kernels, on the image by the global kernel."""
        row, say, slot = self.row, self.say, "second convolution"
        single, image = row.n_windows == 1, self.sizes("b c h w")
        bias = "bias" if row.bias else "no bias"
        on_image = bias if single else "{m} kernels"
        short = {
            "windows": ("windows\nonly", "no LN1,\nwindows"),
            "windows+image": ("windows,\nimage", "no LN1,\nwin., im."),
            "global": ("image,\nby global", "no LN1,\nby global"),
            "image": (f"image,\n{on_image}", f"no LN1,\n{on_image}"),
        }[row.second][not row.layernorm]
        short, by_global = say(short, m=row.n_second), "by the global kernel"
        windows = self.absent(slot, "windows", "no 2nd conv on windows")
        whole = self.absent(slot, "windows", "no 2nd conv on image", "by window kernels")
        glob = self.absent(slot, "global", "no 2nd conv", by_global)
        if self.runs and row.second in ("windows", "windows+image"):
            text = say("2nd conv on windows"), say("each window by its own kernel"), short
            windows = self.part(slot, "windows", text, "", {"windows": image})
        if self.runs and row.second == "image":
            detail = say(bias if single else "by each of {n} window kernels")
            text = say("conv on image" if single else "2nd conv on image"), detail, short
            whole = self.part(slot, "windows", text, "bias", {"windows": image if single else self.sizes("b n·c h w")})
        if self.has_global:
            text = say("2nd conv on image"), say(by_global), short if row.second == "global" else ""
            glob = self.part(slot, "global", text, "", {"global": image})
        return [windows, whole, glob]

    def fusion(self) -> Part:
        if self.module is None or self.module.fusion is None:
            return self.absent("fusion", "both")
        wide = self.module.fusion.in_features
        text = self.say("fusion"), self.say("concatenate, 1×1, {wide} → {c}, bias", wide=wide), f"{wide} → {self.c}"
        return self.part("fusion", "both", text, "fusion", {"windows": self.sizes("b c h w")})

    def gelu(self) -> Part:
        if not (self.runs and self.row.activation):
            return self.absent("GELU", "both")
        return self.part("GELU", "both", ("GELU", "", "GELU"), "", {"windows": self.sizes("b c h w")})


def fresh_model(row: Variant, dim: int, n_bands: int = 31, n_msi: int = 3) -> PSRT:
    """The real network, whose parts are counted; a size that cannot be built is a `KAError`."""
    with torch.random.fork_rng(devices=[]):
        return PSRT(row, n_bands, n_msi, dim)
