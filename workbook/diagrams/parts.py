"""What a diagram of a KA layer says: a row of the variant table as parts on one fixed grid of slots, in two languages.

Nothing here knows a variant by name, and nothing draws: `workbook.diagrams.diagrams` does.
"""

import importlib.metadata
import math
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.font_manager import fontManager

from ka.errors import KAError
from ka.models.counts import count_parameters
from ka.models.kernel_attention import KernelAttention, KernelSA
from ka.models.psrt import PSRT
from ka.models.variants import KERNEL_SIZE, N_WINDOWS, Variant

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

_ZH = {
    "{name}: Kernel Attention layer, c = {c}": "{name}：卷积核注意力（KA）层，c = {c}",
    "live parameters: {layer:,} in this layer, {model:,} in the model": "有效参数：本层 {layer:,}，全模型 {model:,}",
    "its kernels are the same for every image": "卷积核与输入图像无关",
    "its kernels differ from image to image (axis b)": "卷积核随输入图像而变（有 b 维）",
    "as run, it returns its input": "实际运行：直接返回输入",
    "no KA branch: window attention on all {dim} channels": "无 KA 分支：全部 {dim} 个通道做窗口注意力",
    "its kernel is the same for every image": "卷积核与输入图像无关",
    "input, after LN1": "输入（LN1 之后）",
    "input, without LN1": "输入（不经 LN1）",
    "output": "输出",
    "part of this variant": "该变体有的部分",
    "part it lacks": "该变体没有的部分",
    "feature map": "特征图",
    "kernels": "卷积核",
    "right: live parameters": "框内右侧：有效参数",
    "window kernels": "窗口卷积核",
    "kernel": "卷积核",
    "no window kernels": "无窗口卷积核",
    "learned, default start": "可学习，默认初始化",
    "learned, start N(0, 1)": "可学习，初始化 N(0, 1)",
    "{k}×{k}, learned, default start": "{k}×{k}，可学习，默认初始化",
    "{k}×{k}, learned, start N(0, 1)": "{k}×{k}，可学习，初始化 N(0, 1)",
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
    "{taps} taps × {c}": "{taps} 个点 × {c}",
    "{d} channels × {taps}": "{d} 个通道 × {taps}",
    "{taps} taps × {c} + {d} channels × {taps}": "{taps} 个点 × {c} + {d} 个通道 × {taps}",
    "{tokens}, per filter": "每个滤波器 {tokens}",
    "{tokens}, per sample": "每个样本 {tokens}",
    "{tokens}, per filter, over [windows, global]": "每个滤波器 {tokens}，[窗口核, 全局核]",
    "{tokens}, per filter, over [global, windows]": "每个滤波器 {tokens}，[全局核, 窗口核]",
    "{tokens}; filters and windows trade places": "{tokens}；滤波器与窗口两维被调换",
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
    "outer product, 2 × ({c} → {c})": "外积，2 × ({c} → {c})",
    "output i sees input i alone": "输出 i 只看输入 i",
    "2nd conv on windows": "第二次卷积：卷窗口",
    "no 2nd conv on windows": "不卷窗口",
    "each window by its own kernel": "每个窗口用自己的卷积核",
    "2nd conv on image": "第二次卷积：卷全图",
    "no 2nd conv on image": "不卷全图",
    "no 2nd conv": "无第二次卷积",
    "by window kernels": "用窗口卷积核",
    "by each of {n} window kernels": "用 {n} 个窗口卷积核分别卷",
    "by the global kernel": "用全局卷积核",
    "conv on image": "卷积：卷全图",
    "bias": "有偏置",
    "no bias": "无偏置",
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
    "learned,\n{k}×{k}": "可学习\n{k}×{k}",
    "N(0, 1),\n{k}×{k}": "N(0, 1)\n{k}×{k}",
    "pooled,\n{k}×{k}": "池化\n{k}×{k}",
    "learned,\none {k}×{k}": "可学习\n1 个 {k}×{k}",
    "N(0, 1),\none {k}×{k}": "N(0, 1)\n1 个 {k}×{k}",
    "pooled": "池化",
    "gate per\nsample": "逐样本\n加权",
    "windows": "窗口核",
    "windows,\nglobal": "窗口核\n全局核",
    "global,\nwindows": "全局核\n窗口核",
    "axes\ntraded": "维度\n调换",
    "{kernels},\nchannels": "{kernels}\n通道",
    "{kernels},\ntaps+ch.": "{kernels}\n点+通道",
    "all": "全部核",
    "traded": "调换",
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
    "outer\nproduct": "外积",
    "depth-\nwise": "逐通道",
    "image,\n{m} kernels": "卷全图\n{m} 个核",
    "windows\nonly": "卷窗口",
    "windows,\nimage": "卷窗口,\n卷全图",
    "image,\nby global": "卷全图\n全局核",
    "image,\nbias": "卷全图\n有偏置",
    "image,\nno bias": "卷全图\n无偏置",
    "no LN1,\n{m} kernels": "不经 LN1\n{m} 个核",
    "no LN1,\nwindows": "不经 LN1\n卷窗口",
    "no LN1,\nwin., im.": "不经 LN1\n窗口, 全图",
    "no LN1,\nby global": "不经 LN1\n全局核",
    "no LN1,\nbias": "不经 LN1\n有偏置",
    "no LN1,\nno bias": "不经 LN1\n无偏置",
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
    c, n, k = dim // 2, row.n_windows, row.size
    single = n == 1
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

    sizes = partial(shape, dim=dim, n_windows=n, size=k)
    batch = "b " if row.adaptive else ""
    all_kernels = "c c k k" if single else "n c c k k"
    raw = sizes("b n c k k" if row.kernels == "pooled" else batch + all_kernels)
    first = sizes("b n c k k" if row.kernels == "pooled" else all_kernels)
    wide = sizes(batch + all_kernels)
    glob = sizes(batch + "c c k k")
    image = sizes("b c h w")

    parts = [
        part(
            "window kernels",
            "windows",
            runs,
            say("kernel" if single else "window kernels"),
            say(_start(row), k=k),
            say(_start_short(row), k=k),
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

    tokens = {
        "taps": "{taps} taps × {c}",
        "channels": "{d} channels × {taps}",
        "both": "{taps} taps × {c} + {d} channels × {taps}",
    }[row.sa_among]
    per_set = {
        "windows": "{tokens}, per sample" if row.kernels == "pooled" else "{tokens}, per filter",
        "windows+global": "{tokens}, per filter, over [windows, global]",
        "global+windows": "{tokens}, per filter, over [global, windows]",
        "scrambled": "{tokens}; filters and windows trade places",
    }[row.sa or "windows"]
    if row.sa_among == "both" and not joint_sa:
        per_set = "{tokens}"  # there is no room for more in one lane
    in_set = say(tokens, taps=(n + joint_sa) * k * k, c=c, d=c // KernelSA.n_heads)
    no_sa = say("no kernel SA")
    parts += [
        global_kernel("global kernel, raw", "raw", "before SA"),
        part(
            "SA",
            "both" if joint_sa else "windows",
            has_sa,
            say("kernel SA, {heads} heads", heads=KernelSA.n_heads),
            per_set.format(tokens=in_set) if per_set == "{tokens}" else say(per_set, tokens=in_set),
            _sa_short(row, say),
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
        "outer": ("outer product, 2 × ({c} → {c})", "outer\nproduct"),
        "depthwise": ("output i sees input i alone", "depth-\nwise"),
    }
    detail, short_width = widths[row.widen or "linear"]
    has_bias = "bias" if row.bias else "no bias"
    seconds = {
        "windows": ("windows\nonly", "no LN1,\nwindows"),
        "windows+image": ("windows,\nimage", "no LN1,\nwin., im."),
        "global": ("image,\nby global", "no LN1,\nby global"),
        "image": (f"image,\n{has_bias}", f"no LN1,\n{has_bias}")
        if single
        else ("image,\n{m} kernels", "no LN1,\n{m} kernels"),
    }
    second = say(seconds[row.second][not row.layernorm], m=row.n_second)
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
            second,
            say("no 2nd conv on windows"),
            shapes={"windows": image},
        ),
        part(
            "second convolution",
            "windows",
            on_image,
            say("conv on image" if single else "2nd conv on image"),
            say(has_bias) if single else say("by each of {n} window kernels", n=n),
            second,
            say("no 2nd conv on image"),
            say("by window kernels"),
            made_by="bias",
            shapes={"windows": image if single else sizes("b n·c h w")},
        ),
        part(
            "second convolution",
            "global",
            has_global,
            say("2nd conv on image"),
            say("by the global kernel"),
            second if row.second == "global" else "",
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


def _start(row: Variant) -> str:
    """Where kernels come from, and their size where a reader would not guess it."""
    if row.kernels == "pooled":
        return "each window pooled to {k}×{k}"
    start = "learned, start N(0, 1)" if row.normal_init else "learned, default start"
    return "{k}×{k}, " + start if _unusual(row) else start


def _start_short(row: Variant) -> str:
    """The same for the overview."""
    if not _unusual(row):
        return "pooled" if row.kernels == "pooled" else "learned\nN(0, 1)" if row.normal_init else "learned"
    start = "pooled" if row.kernels == "pooled" else "N(0, 1)" if row.normal_init else "learned"
    return start + (",\none {k}×{k}" if row.n_windows == 1 else ",\n{k}×{k}")


def _unusual(row: Variant) -> bool:
    return (row.n_windows, row.size) != (N_WINDOWS, KERNEL_SIZE)


def _sa_short(row: Variant, say: Words) -> str:
    """The set of kernels, and what attends to what if that is not the taps alone."""
    if row.sa_among == "taps":
        shorts = {
            "windows+global": "windows,\nglobal",
            "global+windows": "global,\nwindows",
            "scrambled": "axes\ntraded",
        }
        return say(shorts.get(row.sa, "windows"))
    kernels = say({"windows": "windows", "scrambled": "traded"}.get(row.sa, "all"))
    return say("{kernels},\nchannels" if row.sa_among == "channels" else "{kernels},\ntaps+ch.", kernels=kernels)


def _layer_module(row: Variant, dim: int) -> KernelAttention:
    """The real layer, whose parts are counted; the caller's random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        return KernelAttention(dim // 2, row)


def fresh_model(row: Variant, dim: int, n_bands: int = 31, n_msi: int = 3) -> PSRT:
    """The real network, likewise. Raises KAError for a size that cannot be built."""
    with torch.random.fork_rng(devices=[]):
        return PSRT(row, n_bands, n_msi, dim)


def _parameters(module: torch.nn.Module | None, name: str) -> int:
    part = getattr(module, name) if name else None
    if isinstance(part, torch.Tensor):
        return part.numel()
    return 0 if part is None else count_parameters(part)
