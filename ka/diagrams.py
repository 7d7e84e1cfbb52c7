"""Diagrams of the architecture, drawn from the variant table: the backbone, every variant's KA layer, all side by side.

Nothing here knows a variant by name: `chain` turns a row of `ka.variants` into parts on one fixed grid of slots, and
the figures draw what it says. A part that a row lacks keeps its place as a dashed outline, so that diagrams of two
variants differ exactly where the variants do. Shapes follow from `dim`; parameters are counted on the real modules.

Sizes are for print: a KA layer is one column wide (88 mm), backbone and overview are two; no text is below 6 pt.
"""

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Polygon

from ka.files import KAError
from ka.kernel_attention import KernelAttention, KernelSA
from ka.plots import STYLE
from ka.psrt import N_BLOCKS, PSRT, WINDOWS, count_parameters
from ka.variants import KERNEL_SIZE, N_WINDOWS, VARIANTS, Variant, variant

Lane = Literal["windows", "global", "both"]
State = Literal["present", "absent"]

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

#: The study's eleven.
STUDY = tuple(f"kav{i}" for i in range(1, 12))

ONE_COLUMN, TWO_COLUMNS = 3.46, 7.16  # inches

#: Families with Chinese glyphs, as Debian and others install them, where zhplot of PyPI is not.
CHINESE_FONTS = (
    "Noto Sans SC",
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Sans CJK JP",  # the face of Debian's Noto collection that matplotlib finds; it has these characters too
)

_TITLE, _TEXT = 6.8, 6.2  # pt
_LINE = 0.132  # inches from one line of a box to the next
_GREY = "#6E6E6E"  # 5:1 on white
_WHITE = "#FFFFFF"
_MAP, _KERNEL = "#0072B2", "#000000"

_ZH = {
    "{name}: Kernel Attention layer, c = {c}": "{name}：卷积核注意力（KA）层，c = {c}",
    "live parameters: {layer:,} in this layer, {model:,} in the model": "有效参数：本层 {layer:,}，全模型 {model:,}",
    "its kernels are the same for every image": "卷积核与输入图像无关",
    "its kernels differ from image to image (axis b)": "卷积核随输入图像而变（有 b 维）",
    "as run, it returns its input": "实际运行：直接返回输入",
    "no KA branch: window attention on all {dim} channels": "无 KA 分支：全部 {dim} 个通道做窗口注意力",
    "input, after LN1": "输入（LN1 之后）",
    "output": "输出",
    "part of this variant": "该变体有的部分",
    "part it lacks": "该变体没有的部分",
    "feature map": "特征图",
    "kernels": "卷积核",
    "right: live parameters": "框内右侧：有效参数",
    "window kernels": "窗口卷积核",
    "no window kernels": "无窗口卷积核",
    "learned, default start": "可学习，默认初始化",
    "learned, start N(0, 1)": "可学习，初始化 N(0, 1)",
    "each window pooled to {k}×{k}": "每个窗口池化为 {k}×{k}",
    "reweighting": "重加权",
    "no reweighting": "无重加权",
    "1st conv → mean → MLP → b × {n}": "首次卷积→均值→MLP→b × {n}",
    "global kernel": "全局卷积核",
    "no global kernel": "无全局卷积核",
    "before SA": "自注意力之前",
    "after SA": "自注意力之后",
    "1×1, {wide} → {c}, bias": "1×1，{wide} → {c}，有偏置",
    "1×1, {wide} → {c}, no bias": "1×1，{wide} → {c}，无偏置",
    "kernel SA, {heads} heads": "卷积核自注意力，{heads} 头",
    "no kernel SA": "无自注意力",
    "{taps} taps × {c}, per filter": "每个滤波器 {taps} 个点 × {c}",
    "{taps} taps × {c}, per sample": "每个样本 {taps} 个点 × {c}",
    "{taps} taps × {c}, per filter, over [windows, global]": "每个滤波器 {taps} 个点 × {c}，[窗口核, 全局核]",
    "{taps} taps × {c}, per filter, over [global, windows]": "每个滤波器 {taps} 个点 × {c}，[全局核, 窗口核]",
    "{taps} taps × {c}; filters and windows trade places": "{taps} 个点 × {c}；滤波器与窗口两维被调换",
    "SE, shared": "SE，参数共享",
    "SE, one per window": "SE，每窗口一个",
    "SE, shared by windows and global": "SE，窗口核与全局核共享参数",
    "SE of its own": "单独的 SE",
    "no SE": "无 SE",
    "mean → {c} → {c} → σ": "均值 → {c} → {c} → σ",
    "widening": "升维",
    "no widening": "无升维",
    "linear per tap, {c} → {c} × {c}": "逐点线性，{c} → {c} × {c}",
    "repeated {c}×": "重复 {c} 次",
    "repeated {c}×, scale and shift": "重复 {c} 次，再缩放、平移",
    "2nd conv on windows": "第二次卷积：卷窗口",
    "no 2nd conv on windows": "不卷窗口",
    "each window by its own kernel": "每个窗口用自己的卷积核",
    "2nd conv on image": "第二次卷积：卷全图",
    "no 2nd conv on image": "不卷全图",
    "no 2nd conv": "无第二次卷积",
    "by window kernels": "用窗口卷积核",
    "by each of {n} window kernels": "用 {n} 个窗口卷积核分别卷",
    "by the global kernel": "用全局卷积核",
    "fusion": "融合",
    "no fusion": "无融合",
    "concatenate, 1×1, {wide} → {c}, bias": "通道拼接，1×1，{wide} → {c}，有偏置",
    "no GELU": "无 GELU",
    # The overview's heads and cells.
    "window\nkernels": "窗口\n卷积核",
    "global,\nraw": "全局核\nSA 前",
    "global,\nafter SA": "全局核\nSA 后",
    "widen": "升维",
    "2nd conv\non": "第二次\n卷积",
    "re-\nweight": "重加权",
    "kernel\nSA": "自注意力",
    "SE": "SE",
    "GELU": "GELU",
    "live\nparameters": "有效\n参数",
    "shuffle": "shuffle",
    "aligned": "对齐",
    "misaligned": "错位",
    "mis-\naligned": "错位",
    "learned": "可学习",
    "learned\nN(0, 1)": "可学习\nN(0, 1)",
    "pooled": "池化",
    "gate per\nsample": "逐样本\n加权",
    "bias": "有偏置",
    "no bias": "无偏置",
    "windows": "窗口核",
    "windows,\nglobal": "窗口核\n全局核",
    "global,\nwindows": "全局核\n窗口核",
    "axes\ntraded": "维度\n调换",
    "shared": "共享",
    "shared,\nall {m}": "共享\n{m} 个核",
    "shared,\nwindows": "共享\n仅窗口核",
    "per\nwindow": "每窗口\n一个",
    "per win.,\nown glob.": "每窗口,\n全局另有",
    "shared,\nown glob.": "共享,\n全局另有",
    "own, for\nglobal": "仅\n全局核",
    "linear\nc → c²": "线性\nc → c²",
    "repeat": "重复",
    "repeat,\naffine": "重复,\n仿射",
    "image,\n{m} kernels": "卷全图\n{m} 个核",
    "windows\nonly": "卷窗口",
    "windows,\nimage": "卷窗口,\n卷全图",
    "image,\nby global": "卷全图\n全局核",
    "identity": "恒等",
    "no KA": "无 KA",
    # The backbone.
    "(a) PSRT": "(a) PSRT",
    "(b) SaR block, w = {windows}": "(b) SaR 块，w = {windows}",
    "(c) layer: L1, L2 and L3": "(c) 层：L1、L2、L3",
    "PSRT, no KA, shuffle: {shuffle}": "PSRT，无 KA，shuffle：{shuffle}",
    "PSRT with KA ({name}), shuffle: {shuffle}": "带 KA 的 PSRT（{name}），shuffle：{shuffle}",
    "{model:,} live parameters; of each part at its right": "有效参数 {model:,}；各部分的写在其右侧",
    "none": "无",
    "up: LR-HSI": "up：低分辨率高光谱",
    "msi: HR-MSI": "msi：高分辨率 MSI",
    "concatenate": "通道拼接",
    "no concatenation": "无拼接",
    "head: conv 3×3": "头部：3×3 卷积",
    "tail: conv 3×3": "尾部：3×3 卷积",
    "PSRT block {i}": "PSRT 块 {i}",
    "SaR": "SaR",
    "sharp image": "输出图像",
    "layer L{i}": "层 L{i}",
    "window attention, KA, MLP": "窗口注意力、KA、MLP",
    "window attention, MLP": "窗口注意力、MLP",
    "shuffle is inside, see (c)": "shuffle 在层内，见 (c)",
    "unshuffle": "还原 shuffle",
    "no shuffle": "无 shuffle",
    "no unshuffle": "无还原",
    "cells of w/2": "单元边长 w/2",
    "pixels move": "像素移位",
    "pixels do not move here": "此处像素不移位",
    "shuffle in L2, unshuffle in L3": "L2 内 shuffle，L3 内还原",
    "added to pixels that did not move": "加到未移位的像素上",
    "input": "输入",
    "split channels": "通道对半分",
    "no split": "不分通道",
    "window attention": "窗口注意力",
    "w × w tokens": "w × w 个词元",
    "{heads} heads × {d}": "{heads} 头 × {d}",
}


@dataclass(frozen=True)
class Words:
    """Text in one language; the English is its own key.

    Attributes:
        language: `en` or `zh` (terms of the study).

    Raises:
        KAError: another language.
    """

    language: str

    def __post_init__(self) -> None:
        if self.language not in ("en", "zh"):
            raise KAError(f"language {self.language!r} is unknown; choose 'en' or 'zh'")

    def __call__(self, english: str, **values: object) -> str:
        return (_ZH[english] if self.language == "zh" else english).format(**values)

    def font(self) -> dict[str, Any]:
        """Arguments of `FontProperties` that give this language its glyphs (in Chinese of one weight).

        Raises:
            KAError: no font with Chinese glyphs is installed.
        """
        if self.language == "en":
            return {}
        # The package's font first, so that files are the same everywhere; importing it would change matplotlib's
        # settings.
        with suppress(importlib.metadata.PackageNotFoundError):
            file = Path(
                str(importlib.metadata.distribution("zhplot").locate_file("zhplot/fonts/NotoSansSC-Regular.ttf"))
            )
            if file.exists():
                return {"fname": str(file), "weight": "normal"}
        installed = {entry.name for entry in fontManager.ttflist}
        for family in CHINESE_FONTS:
            if family in installed:
                return {"family": [family, "DejaVu Sans"], "weight": "normal"}
        raise KAError(
            "no font with Chinese glyphs is installed, and language='zh' needs one; "
            "pip install zhplot (or, on Debian, apt install fonts-wqy-microhei), or choose language='en'"
        )


@dataclass(frozen=True)
class Part:
    """One cell of the grid on which every KA layer is drawn.

    Attributes:
        slot: a key of `SLOTS`.
        lane: the tensors it works on: window kernels (or maps made with them), the global kernel, or both joined.
        present: whether the row has it.
        title, detail: what its box says; for an absent part, what is not there.
        short: its setting in a word or two, for the overview; "" where absent.
        parameters: live parameters, counted on the real module.
        shape: of what leaves it, as `axes = sizes`; a dict by lane, empty where absent.
    """

    slot: str
    lane: Lane
    present: bool
    title: str
    detail: str
    short: str
    parameters: int
    shape: dict[str, str]


def shape(axes: str, dim: int, n_bands: int = 31, n_msi: int = 3) -> str:
    """A shape as `axes = sizes`: shape("n c c k k", 48) is "n c c k k = 4·24·24·3·3".

    Letters: b samples, n windows, c = dim/2 channels of the KA branch, C = dim, k taps a side, s bands of the LR-HSI,
    m bands of the HR-MSI, h and w pixels; "n·c" multiplies, "s+m" adds. b, h and w stay letters: they are the image's.
    """
    letters = {"n": N_WINDOWS, "c": dim // 2, "C": dim, "k": KERNEL_SIZE, "s": n_bands, "m": n_msi}

    def size(axis: str) -> str:
        if axis in "bhw":
            return axis
        return str(sum(math.prod(letters[letter] for letter in term.split("·")) for term in axis.split("+")))

    return f"{axes} = {'·'.join(size(axis) for axis in axes.split())}"


def chain(row: Variant, dim: int = 48, language: str = "en") -> tuple[Part, ...]:
    """The KA layer of a row as parts, present and absent, in the order in which the layer applies them.

    Every row gives the same slots and, but for SA and SE of both lanes joined, the same cells.

    Args:
        row: the variant.
        dim: embedding width C; the layer has C/2 channels.
        language: `en` or `zh`.

    Raises:
        KAError: unknown language, or a `dim` that cannot be built.
    """
    say = Words(language)
    c, n, k = dim // 2, N_WINDOWS, KERNEL_SIZE
    runs = row.kernels not in ("", "identity")
    module = _layer_module(row, dim) if runs else None
    has_sa, has_global = runs and bool(row.sa), runs and bool(row.global_from)
    joint_sa = has_sa and row.sa != "windows"
    window_se = runs and bool(row.se)
    joint_se = window_se and row.global_se == "shared"
    on_windows = runs and row.second in ("windows", "windows+image")
    on_image = runs and row.second == "image"
    fuses = runs and row.has_fusion
    fused = module.fusion.in_features if module is not None and module.fusion is not None else 0

    def part(
        slot: str,
        lane: Lane,
        present: bool,
        title: str,
        detail: str,
        short: str,
        absent: str,
        why: str = "",
        made_by: str = "",
        shapes: dict[str, str] | None = None,
    ) -> Part:
        if not present:
            return Part(slot, lane, False, absent, why, "", 0, {})
        return Part(slot, lane, True, title, detail, short, _parameters(module, made_by), shapes or {})

    batch = "b " if row.adaptive else ""
    raw = shape("b n c k k" if row.kernels == "pooled" else batch + "n c c k k", dim)
    first = shape("b n c k k" if row.kernels == "pooled" else "n c c k k", dim)
    wide = shape(batch + "n c c k k", dim)
    glob = shape(batch + "c c k k", dim)
    image = shape("b c h w", dim)

    pooled = row.kernels == "pooled"
    start = "learned, start N(0, 1)" if row.normal_init else "learned, default start"
    parts = [
        part(
            "window kernels",
            "windows",
            runs,
            say("window kernels"),
            say("each window pooled to {k}×{k}", k=k) if pooled else say(start),
            say("pooled" if pooled else "learned\nN(0, 1)" if row.normal_init else "learned"),
            say("no window kernels"),
            made_by="window_kernels",
            shapes={"windows": first},
        ),
        part(
            "reweighting",
            "windows",
            row.kernels == "reweighted",
            say("reweighting"),
            say("1st conv → mean → MLP → b × {n}", n=n),
            say("gate per\nsample"),
            say("no reweighting"),
            made_by="reweight",
            shapes={"windows": raw},
        ),
    ]
    bias = "1×1, {wide} → {c}, bias" if row.global_bias else "1×1, {wide} → {c}, no bias"

    def global_kernel(slot: str, source: str, when: str) -> Part:
        return part(
            slot,
            "global",
            has_global and row.global_from == source,
            say("global kernel"),
            say(bias, wide=n * c, c=c),
            say("bias" if row.global_bias else "no bias"),
            say("no global kernel"),
            say(when),
            made_by="global_kernel",
            shapes={"global": glob},
        )

    sa_of = {
        "windows": ("{taps} taps × {c}, per sample" if pooled else "{taps} taps × {c}, per filter", "windows"),
        "windows+global": ("{taps} taps × {c}, per filter, over [windows, global]", "windows,\nglobal"),
        "global+windows": ("{taps} taps × {c}, per filter, over [global, windows]", "global,\nwindows"),
        "scrambled": ("{taps} taps × {c}; filters and windows trade places", "axes\ntraded"),
    }
    detail, short = sa_of[row.sa or "windows"]
    no_sa = say("no kernel SA")
    parts += [
        global_kernel("global kernel, raw", "raw", "before SA"),
        part(
            "SA",
            "both" if joint_sa else "windows",
            has_sa,
            say("kernel SA, {heads} heads", heads=KernelSA.n_heads),
            say(detail, taps=(n + joint_sa) * k * k, c=c),
            say(short),
            no_sa,
            made_by="sa",
            shapes={"windows": raw, "global": glob} if joint_sa else {"windows": raw},
        ),
        *([] if joint_sa else [part("SA", "global", False, "", "", "", no_sa)]),
        global_kernel("global kernel, attended", "attended", "after SA"),
    ]
    own = has_global and row.global_se == "own"
    if joint_se:
        title, short = "SE, shared by windows and global", "shared,\nall {m}"
    elif row.se == "per window":
        title, short = "SE, one per window", "per win.,\nown glob." if own else "per\nwindow"
    else:
        # A global kernel that this SE leaves out is worth a word.
        title, short = "SE, shared", "shared,\nown glob." if own else "shared,\nwindows" if has_global else "shared"
    squeeze = say("mean → {c} → {c} → σ", c=c)
    widths = {
        "linear": ("linear per tap, {c} → {c} × {c}", "linear\nc → c²"),
        "repeat": ("repeated {c}×", "repeat"),
        "repeat+affine": ("repeated {c}×, scale and shift", "repeat,\naffine"),
    }
    detail, short_width = widths[row.widen or "linear"]
    parts += [
        part(
            "SE",
            "both" if joint_se else "windows",
            window_se,
            say(title),
            squeeze,
            say(short, m=n + 1),
            say("no SE"),
            made_by="se",
            shapes={"windows": raw, "global": glob} if joint_se else {"windows": raw},
        ),
        *(
            []
            if joint_se
            else [
                part(
                    "SE",
                    "global",
                    own,
                    say("SE of its own"),
                    squeeze,
                    "" if window_se else say("own, for\nglobal"),
                    say("no SE"),
                    made_by="global_se",
                    shapes={"global": glob},
                )
            ]
        ),
        part(
            "widening",
            "windows",
            runs and bool(row.widen),
            say("widening"),
            say(detail, c=c),
            say(short_width),
            say("no widening"),
            made_by="widen",
            shapes={"windows": wide},
        ),
        part(
            "second convolution",
            "windows",
            on_windows,
            say("2nd conv on windows"),
            say("each window by its own kernel"),
            say("windows,\nimage" if row.second == "windows+image" else "windows\nonly"),
            say("no 2nd conv on windows"),
            shapes={"windows": image},
        ),
        part(
            "second convolution",
            "windows",
            on_image,
            say("2nd conv on image"),
            say("by each of {n} window kernels", n=n),
            say("image,\n{m} kernels", m=row.n_second),
            say("no 2nd conv on image"),
            say("by window kernels"),
            shapes={"windows": shape("b n·c h w", dim)},
        ),
        part(
            "second convolution",
            "global",
            has_global,
            say("2nd conv on image"),
            say("by the global kernel"),
            say("image,\nby global") if row.second == "global" else "",
            say("no 2nd conv"),
            say("by the global kernel"),
            shapes={"global": image},
        ),
        part(
            "fusion",
            "both",
            fuses,
            say("fusion"),
            say("concatenate, 1×1, {wide} → {c}, bias", wide=fused, c=c),
            f"{fused} → {c}",
            say("no fusion"),
            made_by="fusion",
            shapes={"windows": image},
        ),
        part("GELU", "both", runs and row.activation, "GELU", "", "GELU", say("no GELU"), shapes={"windows": image}),
    ]
    return tuple(parts)


def _layer_module(row: Variant, dim: int) -> KernelAttention:
    """The real layer, whose parts are counted; the caller's random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        return KernelAttention(dim // 2, row)


def _model(row: Variant, dim: int, n_bands: int = 31, n_msi: int = 3) -> PSRT:
    """The real network, likewise. Raises KAError for a size that cannot be built."""
    with torch.random.fork_rng(devices=[]):
        return PSRT(row, n_bands, n_msi, dim)


def _parameters(module: torch.nn.Module | None, name: str) -> int:
    part = getattr(module, name) if name else None
    return 0 if part is None else count_parameters(part)


class _Sheet:
    """A figure in inches from its top left corner, and the few shapes that diagrams are made of.

    What is drawn carries a gid, `state.diagram.part…`, so that a test can read the figure.
    """

    def __init__(self, width: float, height: float, language: str) -> None:
        self.say = Words(language)
        self._font = self.say.font()
        self.figure = Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def write(
        self, gid: str, x: float, y: float, text: str, size: float = _TEXT, weight: str = "normal", **style: Any
    ) -> None:
        self._text(gid, x, y, text, FontProperties(**({"weight": weight} | self._font), size=size), style)

    def number(self, gid: str, x: float, y: float, text: str, **style: Any) -> None:
        """A shape or a count: in the style's own font in every language (Chinese fonts have a wide "·")."""
        self._text(gid, x, y, text, FontProperties(size=_TEXT), style)

    def _text(self, gid: str, x: float, y: float, text: str, font: FontProperties, style: dict[str, Any]) -> None:
        plain: dict[str, Any] = {"va": "center", "ha": "left", "zorder": 5, "linespacing": 1.1}
        self.axes.text(x, y, text, fontproperties=font, gid=_gid(gid), **(plain | style))

    def box(
        self,
        gid: str,
        state: State,
        left: float,
        right: float,
        top: float,
        height: float,
        colour: str,
        title: str = "",
        detail: str = "",
        number: str = "",
        indent: float = 0.06,
        centred: bool = False,
        number_line: int = 0,
    ) -> None:
        """A part: filled where present, a dashed outline where absent. Title and lines of detail, and a count or
        shape at the right of one of these lines."""
        present = state == "present"
        gid = f"{state}.{gid}"
        self._outline(state, left, right, top, height, colour, gid)
        colour = "black" if present else _GREY
        x, align = ((left + right) / 2, "center") if centred else (left + indent, "left")
        lines = [title, *detail.splitlines()]
        heights = [top + height / 2 + _LINE * (i - (len(lines) - 1) / 2) for i in range(len(lines))]
        for i, (line, y) in enumerate(zip(lines, heights, strict=True)):
            bold = present and i == 0
            size = _TEXT if i else _TITLE
            if line:
                self.write(f"{gid}.{i}", x, y, line, size, "bold" if bold else "normal", color=colour, ha=align)
        if number:
            self.number(f"{gid}.number", right - 0.04, heights[number_line], number, color=colour, ha="right")

    def _outline(
        self, state: State, left: float, right: float, top: float, height: float, colour: str, gid: str
    ) -> None:
        present = state == "present"
        self.axes.add_patch(
            FancyBboxPatch(
                (left, top),
                right - left,
                height,
                boxstyle="round,pad=0,rounding_size=0.03",
                facecolor=_tint(colour) if present else "none",
                edgecolor=_dark(colour) if present else _GREY,
                linewidth=1.0 if present else 0.7,
                linestyle="-" if present else (0, (2.5, 2)),
                zorder=3 if present else 1,
                gid=_gid(gid),
            )
        )

    def cell(
        self, gid: str, state: State, left: float, right: float, top: float, height: float, colour: str, text: str
    ) -> None:
        """A part in a table: its setting in one or two lines, centred."""
        gid = f"{state}.{gid}"
        self._outline(state, left, right, top, height, colour, gid)
        if text:
            ink = "black" if state == "present" else _GREY
            middle = (left + right) / 2, top + height / 2
            self.write(f"{gid}.0", *middle, text, ha="center", linespacing=1.0, color=ink)

    def sample(self, state: State, x: float, y: float) -> None:
        """An empty box, for a legend."""
        self._outline(state, x, x + 0.2, y - 0.04, 0.08, "#000000", "legend")

    def wire(
        self, points: Sequence[tuple[float, float]], *, image: bool, arrow: bool = True, bridge: bool = False
    ) -> None:
        """A line through points: thick blue for feature maps, thin black for kernels.

        A bridge leaves a gap in the wires under it.
        """
        colour, width = (_MAP, 1.8) if image else (_KERNEL, 0.9)
        path = list(points)
        if arrow:
            (x0, y0), (x1, y1) = path[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            dx, dy = (x1 - x0) / length * 0.06, (y1 - y0) / length * 0.06
            head = [(x1, y1), (x1 - dx - dy / 2, y1 - dy + dx / 2), (x1 - dx + dy / 2, y1 - dy - dx / 2)]
            self.axes.add_patch(Polygon(head, facecolor=colour, edgecolor="none", zorder=4))
            path[-1] = (x1 - dx, y1 - dy)
        xs, ys = zip(*path, strict=True)
        if bridge:
            gap = Line2D(xs, ys, color="white", linewidth=width + 2.2, solid_capstyle="butt", zorder=2)
            self.axes.add_line(gap)
        self.axes.add_line(
            Line2D(
                xs,
                ys,
                color=colour,
                linewidth=width,
                solid_capstyle="butt",
                solid_joinstyle="miter",
                zorder=2,
                gid="wire",
            )
        )

    def dot(self, x: float, y: float, *, image: bool) -> None:
        """Where a wire branches."""
        self.axes.add_patch(Circle((x, y), 0.025, facecolor=_MAP if image else _KERNEL, edgecolor="none", zorder=4))

    def plus(self, gid: str, x: float, y: float, radius: float = 0.07) -> None:
        """A sum of the wires that meet in it."""
        ring = Circle((x, y), radius, facecolor="white", edgecolor="black", linewidth=0.9, zorder=3, gid=_gid(gid))
        self.axes.add_patch(ring)
        arm = radius * 0.6
        for xs, ys in (((x - arm, x + arm), (y, y)), ((x, x), (y - arm, y + arm))):
            self.axes.add_line(Line2D(xs, ys, color="black", linewidth=0.9, zorder=4))


def _gid(name: str) -> str:
    """A name as an SVG id."""
    return name.replace(", ", "-").replace(" ", "-")


def _tint(colour: str) -> tuple[float, ...]:
    """Light enough for black text."""
    strength = 0.5 if colour == "#F0E442" else 0.12 if colour == "#000000" else 0.28
    return tuple(1 - strength * (1 - value) for value in to_rgb(colour))


def _dark(colour: str) -> tuple[float, ...]:
    return (0.0, 0.0, 0.0) if colour == _WHITE else tuple(0.8 * value for value in to_rgb(colour))


# One KA layer, one column wide. Inches.
_IMAGE_X = 0.12
_LEFT, _RIGHT = (0.32, 2.04), (2.16, 3.42)
_WIRE = 0.09  # of a lane, from its left edge
_INDENT = 0.17
_SLOT, _GAP = 0.30, 0.165
_END = 0.2  # height of input and output
_LAYER_HEIGHT = 6.26


def layer(row: Variant, dim: int = 48, language: str = "en") -> Figure:
    """The KA layer of a variant, top to bottom, one column (88 mm) wide.

    Left lane: the window kernels; right lane: the global kernel; thick line: the feature map. Boxes in place of
    which a dashed outline stands are parts that the variant lacks.

    Args:
        row: the variant, of the table or not.
        dim: embedding width C; the layer has c = C/2 channels.
        language: `en` or `zh`.

    Raises:
        KAError: unknown language, no font for it, or a `dim` that cannot be built.
    """
    return layers([row], dim, language, columns=1)


def layers(rows: Sequence[Variant], dim: int = 48, language: str = "en", columns: int = 4) -> Figure:
    """The KA layers of several variants on one sheet, `columns` side by side, each as `layer` draws it.

    Raises:
        KAError: no rows; else as `layer`.
    """
    if not rows:
        raise KAError("no variant to draw; give at least one row of ka.VARIANTS")
    across = min(columns, len(rows))
    down = -(-len(rows) // across)
    with matplotlib.style.context(STYLE):
        sheet = _Sheet(across * ONE_COLUMN, down * _LAYER_HEIGHT, language)
        for i, row in enumerate(rows):
            _draw_layer(sheet, row, dim, (i % across) * ONE_COLUMN, (i // across) * _LAYER_HEIGHT)
    return sheet.figure


@dataclass(frozen=True)
class _Placed:
    """A part where it is drawn: a box from `top` to `bottom`."""

    part: Part
    left: float
    right: float
    top: float
    bottom: float

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def _place(parts: Sequence[Part], x: float, y: float) -> tuple[list[_Placed], float]:
    """Parts on the grid, the first slot's top at `y`; and where the last slot ends."""
    spans = {"windows": _LEFT, "global": _RIGHT, "both": (_LEFT[0], _RIGHT[1])}
    rows: list[list[Part]] = []
    for part in parts:
        # Second convolutions by window kernels stand one below the other; the global kernel's spans both rows.
        same = rows and rows[-1][-1].slot == part.slot and rows[-1][-1].lane != part.lane
        if same:
            rows[-1].append(part)
        else:
            rows.append([part])
    placed = []
    for i, row in enumerate(rows):
        top = y + i * (_SLOT + _GAP)
        for part in row:
            left, right = spans[part.lane]
            tall = part.slot == "second convolution" and part.lane == "global"
            start = top - _SLOT - _GAP if tall else top
            placed.append(_Placed(part, x + left, x + right, start, top + _SLOT))
    return placed, y + len(rows) * (_SLOT + _GAP) - _GAP


def _draw_layer(sheet: _Sheet, row: Variant, dim: int, x: float, y: float) -> None:
    say, c = sheet.say, dim // 2
    model = count_parameters(_model(row, dim))
    parts = chain(row, dim, say.language)
    own = sum(part.parameters for part in parts)
    if not row.has_ka:
        note = say("no KA branch: window attention on all {dim} channels", dim=dim)
    elif row.kernels == "identity":
        note = say("as run, it returns its input")
    elif row.adaptive:
        note = say("its kernels differ from image to image (axis b)")
    else:
        note = say("its kernels are the same for every image")
    head = say("{name}: Kernel Attention layer, c = {c}", name=row.name, c=c)
    counted = say("live parameters: {layer:,} in this layer, {model:,} in the model", layer=own, model=model)
    sheet.write(f"{row.name}.head", x + 0.04, y + 0.1, head, _TITLE + 1, weight="bold")
    sheet.write(f"{row.name}.counted", x + 0.04, y + 0.24, counted)
    sheet.write(f"{row.name}.note", x + 0.04, y + 0.36, note)

    top = y + 0.46
    state: State = "present" if row.has_ka else "absent"
    first = top + _END + _GAP
    placed, end = _place(parts, x, first)
    out = end + _GAP
    image = shape("b c h w", dim)
    for name, at in (("input, after LN1", top), ("output", out)):
        sheet.box(f"{row.name}.{name}", state, x + 0.04, x + _RIGHT[1], at, _END, _WHITE, say(name), number=image)
    _legend(sheet, row.name, x + _RIGHT[0] + 0.02, top + _END + 0.1)
    for spot in placed:
        part = spot.part
        sheet.box(
            f"{row.name}.{part.slot}.{part.lane}.{spot.top - y:.2f}",
            "present" if part.present else "absent",
            spot.left,
            spot.right,
            spot.top,
            spot.bottom - spot.top,
            SLOTS[part.slot],
            part.title,
            part.detail,
            f"{part.parameters:,}" if part.parameters else "",
            _INDENT,
        )
    if row.has_ka:
        wiring = _Wiring(sheet, row, dim, placed, x, top + _END, out)
        wiring.image()
        wiring.kernels()
        wiring.maps()


@dataclass(frozen=True)
class _Wiring:
    """A KA layer whose boxes are placed, and the arrows between them.

    Attributes:
        placed: its parts, present and absent.
        x: left edge of the layer.
        start, out: bottom of the input's box, top of the output's.
    """

    sheet: _Sheet
    row: Variant
    dim: int
    placed: Sequence[_Placed]
    x: float
    start: float
    out: float

    def present(self, *slots: str) -> list[_Placed]:
        return [at for at in self.placed if at.part.present and at.part.slot in slots]

    def lane_x(self, lane: str) -> float:
        return self.x + (_RIGHT if lane == "global" else _LEFT)[0] + _WIRE

    def label(self, at: _Placed, lane: str, bottom: float) -> None:
        """The shape of what leaves a part."""
        tag = f"{self.row.name}.shape.{at.part.slot}.{lane}"
        self.sheet.number(tag, self.lane_x(lane) + 0.07, bottom + _GAP / 2, at.part.shape[lane])

    def image(self) -> None:
        """The image, past every part that looks at it."""
        looks = self.present("reweighting", "second convolution")
        if self.row.kernels == "pooled":
            looks += self.present("window kernels")
        x = self.x + _IMAGE_X
        last = max((at.middle for at in looks), default=self.out)
        if not looks:
            self.sheet.wire([(x, self.start), (x, last)], image=True)
        for at in looks:
            if at.middle < last:
                self.sheet.wire([(x, at.middle), (at.left, at.middle)], image=True)
                self.sheet.dot(x, at.middle, image=True)
            else:
                self.sheet.wire([(x, self.start), (x, last), (at.left, last)], image=True)

    def kernels(self) -> None:
        """Kernels down their lanes; those of the windows feed the global kernel from the side."""
        x = self.lane_x("windows")
        feeds = self.present("global kernel, raw", "global kernel, attended")
        joined = shape("b c n·c k k" if self.row.adaptive else "c n·c k k", self.dim)
        for at in feeds:
            self.sheet.wire([(x, at.middle), (at.left, at.middle)], image=False)
            self.sheet.number(f"{self.row.name}.shape.{at.part.slot}.joined", x + 0.07, at.middle - 0.075, joined)
        self._lane("windows", feeds)
        self._lane("global", [])
        for at in feeds:
            self.sheet.dot(x, at.middle, image=False)

    def _lane(self, lane: str, feeds: Sequence[_Placed]) -> None:
        """Arrows from part to part; without a second convolution to go to, the last ends where it feeds."""
        before = [slot for slot in SLOTS if slot not in ("second convolution", "fusion", "GELU")]
        stops = [at for at in self.present(*before) if at.part.lane in (lane, "both")]
        ends = [(at.top, True) for at in self.present("second convolution") if at.part.lane == lane]
        targets = [(at.top, True) for at in stops[1:]] + (ends or [(at.middle, False) for at in feeds])[:1]
        x = self.lane_x(lane)
        for at, (y, arrow) in zip(stops, targets, strict=False):
            self.sheet.wire([(x, at.bottom), (x, y)], image=False, arrow=arrow, bridge=True)
        for at in stops:
            self.label(at, lane, at.bottom)

    def maps(self) -> None:
        """Feature maps from the second convolution to the output."""
        second = [at for at in self.placed if at.part.slot == "second convolution"]
        after = self.present("fusion", "GELU")
        tops = [*(at.top for at in after), self.out]
        for at in second:
            if at.part.present:
                x = self.lane_x(at.part.lane)
                self.sheet.wire([(x, at.bottom), (x, tops[0])], image=True, bridge=True)
                self.label(at, at.part.lane, max(other.bottom for other in second))
        x = self.lane_x("windows")
        for at, y in zip(after, tops[1:], strict=True):
            self.sheet.wire([(x, at.bottom), (x, y)], image=True)
            self.label(at, "windows", at.bottom)


def _legend(sheet: _Sheet, name: str, x: float, y: float) -> None:
    """In the right lane's free corner, above the first global kernel."""
    states: tuple[tuple[str, State], ...] = (("part of this variant", "present"), ("part it lacks", "absent"))
    for i, (text, state) in enumerate(states):
        at = y + i * 0.135
        sheet.sample(state, x, at)
        sheet.write(f"{name}.legend.{state}", x + 0.27, at, sheet.say(text))
    for i, (text, image) in enumerate((("feature map", True), ("kernels", False))):
        at = y + (i + 2) * 0.135
        sheet.wire([(x, at), (x + 0.2, at)], image=image)
        sheet.write(f"{name}.legend.{text}", x + 0.27, at, sheet.say(text))
    sheet.write(f"{name}.legend.count", x, y + 4 * 0.135, sheet.say("right: live parameters"))


# The backbone, two columns wide.


def backbone(row: Variant, dim: int = 48, language: str = "en", n_bands: int = 31, n_msi: int = 3) -> Figure:
    """The network of a variant, a SaR block in it, and a layer in that: two columns (182 mm) wide.

    Shuffle, KA branch and the split around it stand as dashed outlines where the row lacks them.

    Args:
        row: the variant, of the table or not.
        dim: embedding width C, a multiple of 8.
        language: `en` or `zh`.
        n_bands: bands of the LR-HSI.
        n_msi: bands of the HR-MSI.

    Raises:
        KAError: unknown language, no font for it, or a size that cannot be built.
    """
    model = _model(row, dim, n_bands, n_msi)
    with matplotlib.style.context(STYLE):
        sheet = _Sheet(TWO_COLUMNS, 5.5, language)
        say = sheet.say
        head = "PSRT with KA ({name}), shuffle: {shuffle}" if row.has_ka else "PSRT, no KA, shuffle: {shuffle}"
        title = say(head, name=row.name, shuffle=say(row.shuffle))
        sheet.write("head", 0.06, 0.1, title, _TITLE + 1, "bold")
        counted = say("{model:,} live parameters; of each part at its right", model=count_parameters(model))
        sheet.write("counted", 0.06, 0.24, counted)
        _draw_network(sheet, model, 0.06, 2.36)
        _draw_sar(sheet, model, 2.58, 4.36)
        _draw_inside(sheet, model, 4.58, 7.10)
    return sheet.figure


_TOP, _BOTTOM = 0.6, 5.44  # of the three panels
_LOW, _PLUS, _BLOCK = 0.2, 0.14, 0.62  # heights: a box with one line, a sum, a PSRT block
_SKIP = 0.22  # left margin of a panel, where the shortcut runs
_GREEN, _BLUE, _ORANGE, _PURPLE, _SKY, _VERMILLION = "#009E73", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00"
_BLACK = "#000000"


@dataclass(frozen=True)
class _Step:
    """A box on a panel's main wire.

    Attributes:
        leaves: shape of what leaves it.
        wide: whether it starts at the panel's left edge, over the shortcut's wire.
        right: where it ends, if not at the panel's right edge.
        line: the line of its text at whose right `number` stands.
    """

    name: str
    title: str
    leaves: str
    colour: str = _WHITE
    detail: str = ""
    number: str = ""
    present: bool = True
    height: float = _LOW
    wide: bool = False
    right: float | None = None
    line: int = 0


class _Panel:
    """Steps from top to bottom, joined by one wire that passes the absent ones."""

    def __init__(self, sheet: _Sheet, tag: str, title: str, left: float, right: float, steps: Sequence[_Step]) -> None:
        self.sheet, self.tag, self.left, self.right = sheet, tag, left, right
        self.edge, self.wire_x, self.skip_x = left + _SKIP, left + _SKIP + _WIRE, left + 0.1
        self.gap = (_BOTTOM - _TOP - sum(step.height for step in steps)) / (len(steps) - 1)
        self.top: dict[str, float] = {}
        self.bottom: dict[str, float] = {}
        sheet.write(f"{tag}.head", left, 0.46, title, _TITLE, "bold")
        y, before = _TOP, None
        for step in steps:
            self.top[step.name], self.bottom[step.name] = y, y + step.height
            self._box(step)
            if step.present:
                if before is not None:
                    self.arrow(before.name, step.name, before.leaves)
                before = step
            y += step.height + self.gap

    def _box(self, step: _Step) -> None:
        top = self.top[step.name]
        state: State = "present" if step.present else "absent"
        if step.name.startswith("sum"):
            self.sheet.plus(f"present.{self.tag}.{step.name}", self.wire_x, top + _PLUS / 2)
            return
        left = self.left if step.wide else self.edge
        right = step.right or self.right
        self.sheet.box(
            f"{self.tag}.{step.name}",
            state,
            left,
            right,
            top,
            step.height,
            step.colour,
            step.title,
            step.detail,
            step.number,
            0.06 if step.wide or step.right else _INDENT,
            number_line=step.line,
        )

    def arrow(self, source: str, target: str, label: str, x: float | None = None) -> None:
        """From the bottom of a step to the top of another, a shape beside its end."""
        x = self.wire_x if x is None else x
        self.sheet.wire([(x, self.bottom[source]), (x, self.top[target])], image=True)
        y = self.top[target] - self.gap / 2
        self.sheet.number(f"{self.tag}.shape.{source}.{target}.{x:.2f}", x + 0.07, y, label)

    def shortcut(self, start: float, end: str, fork: bool = False) -> None:
        """A residual connection, down the left margin to a sum; from the main wire if `fork`."""
        y = self.top[end] + _PLUS / 2
        path = [(self.skip_x, start), (self.skip_x, y), (self.wire_x - _PLUS / 2, y)]
        self.sheet.wire([(self.wire_x, start), *path] if fork else path, image=True)
        if fork:
            self.sheet.dot(self.wire_x, start, image=True)


def _draw_network(sheet: _Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (a): from `up` and `msi` to the sharp image."""
    say = sheet.say
    sizes = partial(shape, dim=model.dim, n_bands=model.n_bands, n_msi=model.n_msi)
    bands, body = sizes("b s h w"), sizes("b h w C")
    side = right - 0.98  # left edge of msi
    steps = [
        _Step("up", say("up: LR-HSI"), bands, wide=True, right=side - 0.08),
        _Step("concatenate", say("concatenate"), sizes("b s+m h w"), _BLACK),
        _Step("head", say("head: conv 3×3"), sizes("b C h w"), _VERMILLION, number=_count(model.head)),
        *(_Step(f"block{i}", "", body, height=_BLOCK) for i in range(N_BLOCKS)),
        _Step("tail", say("tail: conv 3×3"), bands, _VERMILLION, number=_count(model.tail)),
        _Step("LeakyReLU", "LeakyReLU(0.2)", bands, _BLACK),
        _Step("sum", "", bands, height=_PLUS),
        _Step("out", say("sharp image"), bands),
    ]
    panel = _Panel(sheet, "a", say("(a) PSRT"), left, right, steps)
    panel.shortcut(panel.bottom["up"], "sum")
    sheet.box("a.msi", "present", side, right, panel.top["up"], _LOW, _WHITE, say("msi: HR-MSI"))
    panel.arrow("up", "concatenate", sizes("b m h w"), side + _WIRE)
    pitch = (right - panel.edge) / len(WINDOWS)
    for i, block in enumerate(model.blocks):
        tag, top = f"a.block{i}", panel.top[f"block{i}"]
        title = say("PSRT block {i}", i=i + 1)
        sheet.write(f"present.{tag}.0", panel.edge + 0.06, top + 0.1, title, _TITLE, "bold")
        sheet.number(f"present.{tag}.number", right - 0.04, top + 0.1, _count(block), ha="right")
        for j, window in enumerate(WINDOWS):
            start, end = panel.edge + j * pitch + 0.06, panel.edge + (j + 1) * pitch - 0.06
            name = f"a.sar{i}-{j}"
            width = f"w = {window}"
            sheet.box(name, "present", start, end, top + 0.22, 0.32, _GREEN, say("SaR"), width, centred=True)
            if j:
                sheet.wire([(start - 0.12, top + 0.38), (start, top + 0.38)], image=True)


def _draw_sar(sheet: _Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (b): three layers and the shuffle around the second."""
    say, row = sheet.say, model.row
    image = shape("b h w C", model.dim)
    aligned = row.shuffle == "aligned"
    kind = say("window attention, KA, MLP" if row.has_ka else "window attention, MLP")
    moved = say("shuffle is inside, see (c)") if row.shuffle == "misaligned" else kind

    def a_layer(i: int, detail: str) -> _Step:
        name, count = say("layer L{i}", i=i), _count(model.layers()[i - 1])
        return _Step(f"L{i}", name, image, _GREEN, detail, count, height=_SLOT)

    def mover(name: str, absent: str) -> _Step:
        detail = say("cells of w/2") if aligned else ""
        return _Step(name, say(name if aligned else absent), image, _ORANGE, detail, present=aligned, height=_SLOT)

    steps = [
        _Step("in", say("input"), image, wide=True),
        a_layer(1, kind),
        mover("shuffle", "no shuffle"),
        a_layer(2, moved),
        mover("unshuffle", "no unshuffle"),
        a_layer(3, moved),
        _Step("sum", "", image, height=_PLUS),
        _Step("out", say("output"), image, wide=True),
    ]
    title = say("(b) SaR block, w = {windows}", windows=", ".join(map(str, WINDOWS)))
    panel = _Panel(sheet, "b", title, left, right, steps)
    panel.shortcut(panel.bottom["in"], "sum")


def _draw_inside(sheet: _Sheet, model: PSRT, left: float, right: float) -> None:
    """Panel (c): a layer, window attention beside KA, then the MLP."""
    say, row, dim, real = sheet.say, model.row, model.dim, model.layers()[0]
    moves, splits = row.shuffle == "misaligned", row.has_ka
    image, branch = shape("b h w C", dim), shape("b c h w", dim)
    half = shape("b h w c", dim) if splits else image
    middle = (left + _SKIP + right) / 2
    heads, width = real.attn.heads, real.attn.proj.in_features
    tokens = f"{say('{heads} heads × {d}', heads=heads, d=width // heads)}\n{say('w × w tokens')}"
    steps = [
        _Step("in", say("input"), image, wide=True),
        _Step("LN1", "LN1", image, _ORANGE, number=_count(real.norm1)),
        _Step(
            "move",
            say("pixels move" if moves else "pixels do not move here"),
            image,
            _VERMILLION,
            say("shuffle in L2, unshuffle in L3") if moves else "",
            present=moves,
            height=_SLOT,
        ),
        _Step("split", say("split channels" if splits else "no split"), half, _BLACK, present=splits),
        _Step(
            "attention",
            say("window attention"),
            half,
            _BLUE,
            tokens,
            _count(real.attn),
            height=0.46,
            right=middle - 0.04,
            line=2,
        ),
        _Step("concatenate", say("concatenate" if splits else "no concatenation"), image, _BLACK, present=splits),
        _Step("sum1", "", image, height=_PLUS),
        _Step("LN2", "LN2", image, _ORANGE, number=_count(real.norm2)),
        _Step(
            "MLP", "MLP", image, _SKY, f"{dim} → {real.mlp.fc1.out_features} → {dim}, GELU", _count(real.mlp),
            height=_SLOT,
        ),
        _Step("sum2", "", image, height=_PLUS),
        _Step("out", say("output"), image, wide=True),
    ]  # fmt: skip
    panel = _Panel(sheet, "c", say("(c) layer: L1, L2 and L3"), left, right, steps)
    panel.shortcut(panel.bottom["in"], "sum1")
    panel.shortcut(panel.bottom["sum1"] + panel.gap * 0.25, "sum2", fork=True)
    if moves:
        y = panel.top["sum1"] + _PLUS / 2
        sheet.write("c.misaligned", panel.wire_x + 0.14, y, say("added to pixels that did not move"))
    top, start = panel.top["attention"], middle + 0.04
    if real.ka is None:
        sheet.box("c.KA", "absent", start, right, top, 0.46, _PURPLE, say("no KA"), indent=_INDENT)
        return
    sheet.box("c.KA", "present", start, right, top, 0.46, _PURPLE, "KA", row.name, _count(real.ka))
    panel.arrow("split", "attention", branch, start + _WIRE)
    panel.arrow("attention", "concatenate", branch, start + _WIRE)


def _count(module: torch.nn.Module) -> str:
    return f"{count_parameters(module):,}"


_HEADS = {
    "window kernels": "window\nkernels",
    "reweighting": "re-\nweight",
    "global kernel, raw": "global,\nraw",
    "SA": "kernel\nSA",
    "global kernel, attended": "global,\nafter SA",
    "SE": "SE",
    "widening": "widen",
    "second convolution": "2nd conv\non",
    "fusion": "fusion",
    "GELU": "GELU",
}


def overview(names: Sequence[str], dim: int = 48, language: str = "en") -> Figure:
    """Variants side by side: a row each, a column per slot of the KA layer, and live parameters.

    A filled cell holds the part's setting; a dashed outline stands for a part that the variant lacks.

    Args:
        names: keys of `ka.VARIANTS`, top to bottom.
        dim: embedding width C.
        language: `en` or `zh`.

    Raises:
        KAError: no names, an unknown one, unknown language, no font for it, or a `dim` that cannot be built.
    """
    rows = [variant(name) for name in names]
    if not rows:
        raise KAError("no variant to draw; give at least one name of ka.VARIANTS")
    label, count, pitch, cell, head = 0.06 + 0.055 * max(map(len, names)), 0.62, 0.3, 0.25, 0.36
    columns = ["shuffle", *SLOTS]
    step = (TWO_COLUMNS - 0.08 - label - count) / len(columns)
    with matplotlib.style.context(STYLE):
        sheet = _Sheet(TWO_COLUMNS, head + pitch * len(rows) + 0.06, language)
        say = sheet.say
        for j, column in enumerate(columns):
            centre = 0.04 + label + (j + 0.5) * step
            text = say("shuffle") if column == "shuffle" else say(_HEADS[column])
            sheet.write(f"head.{column}", centre, head / 2, text, _TEXT, "bold", ha="center")
        end = TWO_COLUMNS - 0.04
        sheet.write("head.live", end, head / 2, say("live\nparameters"), _TEXT, "bold", ha="right")
        for i, row in enumerate(rows):
            top = head + i * pitch
            middle = top + cell / 2
            sheet.write(f"{row.name}.name", 0.04, middle, row.name, _TITLE, "bold")
            shuffled = {"none": "", "aligned": say("aligned"), "misaligned": say("mis-\naligned")}[row.shuffle]
            texts = {"shuffle": shuffled} | _settings(row, dim, language)
            whys = {"": say("no KA"), "identity": say("identity")}
            for j, column in enumerate(columns):
                start = 0.04 + label + j * step
                state: State = "present" if texts[column] else "absent"
                colour = SLOTS.get(column, "#000000")
                gid = f"{row.name}.{column}"
                sheet.cell(
                    gid,
                    state,
                    start + 0.02,
                    start + step - 0.02,
                    top,
                    cell,
                    colour,
                    texts[column] or (whys.get(row.kernels, "") if column == "window kernels" else ""),
                )
            live = count_parameters(_model(row, dim))
            sheet.number(f"{row.name}.live", end, middle, f"{live:,}", ha="right")
    return sheet.figure


def _settings(row: Variant, dim: int, language: str) -> dict[str, str]:
    """The setting of every slot in a word or two, "" where the row lacks it."""
    settings = dict.fromkeys(SLOTS, "")
    for part in chain(row, dim, language):
        settings[part.slot] = settings[part.slot] or part.short
    return settings


def all_diagrams(language: str = "en") -> dict[str, Callable[[], Figure]]:
    """Every diagram by name: what `make figures` draws and saves.

    Both overviews, a backbone for every way to shuffle, with KA and without (named after the first row that has it),
    and the KA layer of every row that has one. Names end in `_zh` for Chinese.

    Raises:
        KAError: unknown language.
    """
    end = "" if Words(language).language == "en" else f"_{language}"
    drawn: dict[str, Callable[[], Figure]] = {
        f"overview_study{end}": partial(overview, STUDY, language=language),
        f"overview_all{end}": partial(overview, list(VARIANTS), language=language),
    }
    bodies: dict[tuple[str, bool], Variant] = {}
    for row in VARIANTS.values():
        bodies.setdefault((row.shuffle, row.has_ka), row)
    for row in bodies.values():
        drawn[f"backbone_{row.name}{end}"] = partial(backbone, row, language=language)
    for row in VARIANTS.values():
        if row.has_ka:
            drawn[f"layer_{row.name}{end}"] = partial(layer, row, language=language)
    return drawn
