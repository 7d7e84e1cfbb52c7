"""What a diagram of a KA layer says: a row of the variant table as parts on one fixed grid of slots, in two languages.

Nothing here knows a variant by name, and nothing draws: `ka.diagrams` does.
"""

import importlib.metadata
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.font_manager import fontManager

from ka.files import KAError
from ka.kernel_attention import KernelAttention, KernelSA
from ka.psrt import PSRT, count_parameters
from ka.variants import KERNEL_SIZE, N_WINDOWS, Variant

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


def fresh_model(row: Variant, dim: int, n_bands: int = 31, n_msi: int = 3) -> PSRT:
    """The real network, likewise. Raises KAError for a size that cannot be built."""
    with torch.random.fork_rng(devices=[]):
        return PSRT(row, n_bands, n_msi, dim)


def _parameters(module: torch.nn.Module | None, name: str) -> int:
    part = getattr(module, name) if name else None
    return 0 if part is None else count_parameters(part)
