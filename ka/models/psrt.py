"""PSRT, the backbone: a shallow window-attention transformer that sharpens `up` with the HR-MSI.

Deng, Deng, Wu, Ran, Hong, Vivone, "PSRT: Pyramid Shuffle-and-Reshuffle Transformer for Multispectral and
Hyperspectral Image Fusion", IEEE TGRS 61, 2023. Top to bottom: window attention, the layer (attention, KA branch,
MLP), the SaR block with its shuffle, the network. Maps inside the body are `b h w c`.

Departures from the published code: images of any size (padded inside), and only parameters that the output depends
on (its SaR blocks also held two LayerNorms that no forward used).
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ka.errors import KAError, is_whole
from ka.methods.consistency import Consistency
from ka.methods.injection import Bicubic, Start
from ka.models.adaptive.bank import KernelBank
from ka.models.adaptive.body import ResidualBody
from ka.models.adaptive.regressed import RegressedKernels
from ka.models.cpu_attention import in_bands, window_attention
from ka.models.kernel_attention import FoldedKernelAttention, KernelAttention
from ka.models.kernel_parts import Pointwise, normal_
from ka.models.variants import Variant
from ka.models.variants import variant as variant_row

WINDOWS = (8, 4, 2)  # window sizes of the three SaR blocks of a PSRT block
N_BLOCKS = 2
LAYERS = tuple(f"block {b + 1}, {w}×{w}, L{i + 1}" for b in range(N_BLOCKS) for w in WINDOWS for i in range(3))
Q_SCALE = 4.0  # not head_dim^-0.5: the published weights need it
Tokens = Float[Tensor, "b h w c"]
Heads = Float[Tensor, "windows heads tokens d"]


class WindowAttention(nn.Module):
    """Multi-head self-attention among the w² pixels of each window; no position bias, no dropout."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tokens) -> Tokens:
        return in_bands(self.on_cpu if x.is_cpu else self.formula, x)

    def formula(self, x: Tokens) -> Tokens:
        """softmax(4 q kᵀ) v in every window and head."""
        q, k, v = self.split(x)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=Q_SCALE)
        rows, columns = (n // self.window for n in x.shape[1:3])
        size = {"i": rows, "j": columns, "y": self.window, "x": self.window}
        return self.proj(rearrange(mixed, "(b i j) h (y x) d -> b (i y) (j x) (h d)", **size))

    def split(self, x: Tokens) -> Float[Tensor, "three windows heads tokens d"]:
        """Queries, keys and values of every window (row-major) and head."""
        size = {"three": 3, "h": self.heads, "y": self.window, "x": self.window}
        return rearrange(self.qkv(x), "b (i y) (j x) (three h d) -> three (b i j) h (y x) d", **size)

    def on_cpu(self, x: Tokens) -> Tokens:
        """The formula with less copying; a test holds the two equal."""
        return window_attention(x, self.qkv, self.proj, self.window, self.heads, Q_SCALE)


class MLP(nn.Module):
    """C → 4C → C with exact GELU, per pixel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tokens) -> Tokens:
        return in_bands(lambda band: self.fc2(F.gelu(self.fc1(band))), x)


def shuffle(x: Tokens, window: int) -> Tokens:
    """Cut the map into cells of half a window; even rows (columns) of cells to the top (left) half, odd to the other.

    H and W must be multiples of `window`.
    """
    d = window // 2
    return rearrange(x, "b (i p y) (j q x) c -> b (p i y) (q j x) c", p=2, q=2, y=d, x=d)


def unshuffle(x: Tokens, window: int) -> Tokens:
    """The inverse of `shuffle`."""
    d = window // 2
    return rearrange(x, "b (p i y) (q j x) c -> b (i p y) (j q x) c", p=2, q=2, y=d, x=d)


class Layer(nn.Module):
    """A window-attention layer: x = x + [attention, KA](LN1(x)), then x = x + MLP(LN2(x)).

    With a KA row, attention takes the first half of the channels and KA the second; else attention takes all. `move`
    shifts pixels after LN1 and is never undone: what made the study's PSRT misaligned.
    """

    def __init__(self, dim: int, window: int, row: Variant, move: Callable[[Tokens, int], Tokens] | None) -> None:
        super().__init__()
        self.window, self.move = window, move
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim // 2, window, 4) if row.has_ka else WindowAttention(dim, window, 8)
        self.ka: nn.Module | None = KernelAttention(dim // 2, row) if row.has_ka else None
        self.layernorm = row.layernorm
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, x: Tokens) -> Tokens:
        y = self.norm1(x)
        if self.move is not None:
            y = self.move(y, self.window)
        if self.ka is None:
            x = x + self.attn(y)
        else:
            for_attention, for_ka = y.chunk(2, dim=-1)[0], (y if self.layernorm else x).chunk(2, dim=-1)[1]
            ka = self.ka(rearrange(for_ka, "b h w c -> b c h w"))
            x = x + torch.cat([self.attn(for_attention), rearrange(ka, "b c h w -> b h w c")], dim=-1)
        return x + self.mlp(self.norm2(x))


class SaRBlock(nn.Module):
    """Shuffle-and-reshuffle block: three layers, x + L3(L2(L1(x))).

    `aligned` (as published): L2 works in shuffled space as a whole, so its residuals stay in place. `misaligned` (the
    study): only attention of L2 and L3 sees moved pixels; its output is added to the wrong ones. `none`: no shuffle.
    """

    def __init__(self, dim: int, window: int, row: Variant) -> None:
        super().__init__()
        self.window = window
        self.aligned = row.shuffle == "aligned"
        moves = (None, shuffle, unshuffle) if row.shuffle == "misaligned" else (None, None, None)
        self.layers = nn.ModuleList(Layer(dim, window, row, move) for move in moves)

    def forward(self, x: Tokens) -> Tokens:
        l1, l2, l3 = self.layers
        y = l1(x)
        y = unshuffle(l2(shuffle(y, self.window)), self.window) if self.aligned else l2(y)
        return x + l3(y)


class PSRT(nn.Module):
    """The network of one variant: concat(up, msi) → head → two PSRT blocks → tail → LeakyReLU(0.2) → + up.

    Rows with a front begin with `RegressedKernels` or a `KernelBank`, whose image stands for `up`; a residual body
    stands for PSRT's, or there is none.

    `n_bands` and `n_msi` are bands of the LR-HSI and of the HR-MSI; `dim`, the width C, is a multiple of 8 (8 heads, or
    4 + 4 in the halves of a KA layer). KAError, before anything is allocated, for a size that cannot be built.
    """

    def __init__(self, row: Variant, n_bands: int = 31, n_msi: int = 3, dim: int = 48) -> None:
        super().__init__()
        for name, value in (("n_bands", n_bands), ("n_msi", n_msi), ("dim", dim)):
            if not is_whole(value) or value < 1:
                raise KAError(f"{name}={value!r} is not a positive whole number")
        if dim % 8:
            raise KAError(f"dim={dim} does not split into 8 heads; choose a multiple of 8 (the study: 32, 48, 64)")
        self.row, self.n_bands, self.n_msi, self.dim = row, n_bands, n_msi, dim
        self.start: Start = Bicubic()  # what makes `up`, and what is done to the output, of whole scenes (`ka.Network`)
        self.consistency: Consistency | None = None
        self.ratio: int | None = None  # of the images that it was trained for, where its file says so …
        self.unit: float | None = None  # … and what their values were divided by
        front = KernelBank if row.mixes else RegressedKernels
        self.front = front(n_bands, n_msi, row) if row.front else None
        self.body = ResidualBody(n_bands, n_msi, dim, row) if row.body == "residual" else None
        if row.body == "PSRT":
            self.head = nn.Conv2d(n_bands + n_msi, dim, 3, padding=1)
            blocks = [nn.Sequential(*(SaRBlock(dim, window, row) for window in WINDOWS)) for _ in range(N_BLOCKS)]
            self.blocks = nn.Sequential(*blocks)
            self.tail = nn.Conv2d(dim, n_bands, 3, padding=1)
        init_weights(self)
        if self.body is not None:
            self.body.begin()

    def forward(
        self,
        up: Float[Tensor, "b n_bands h w"],
        msi: Float[Tensor, "b n_msi h w"],
        lr: Float[Tensor, "b n_bands h/ratio w/ratio"] | None = None,
    ) -> Float[Tensor, "b n_bands h w"]:
        """The sharpened image, in the units of `up` ([0, 1] in training; neither input nor output is clipped).

        `up` is the image that the network starts from (`self.start`), of the size of the HR-MSI `msi`; `lr`, the
        LR-HSI, is needed where `row.needs_lr`. H and W may be anything: edges are replicated to a multiple of 8
        inside, and cropped from the result. KAError if bands or sizes do not fit.
        """
        self._check(up, msi, lr)
        x = up if self.front is None else self.front(up, msi, lr)
        if self.body is not None:
            return x + self.body(x, msi, lr)
        return self.psrt_body(x, msi) if self.row.body else x

    def psrt_body(
        self, up: Float[Tensor, "b n_bands h w"], msi: Float[Tensor, "b n_msi h w"]
    ) -> Float[Tensor, "b n_bands h w"]:
        """Head, blocks, tail and shortcut of PSRT, around the image `up`."""
        h, w = up.shape[2:]
        x = torch.cat([up, msi], dim=1)
        if h % WINDOWS[0] or w % WINDOWS[0]:
            x = F.pad(x, (0, -w % WINDOWS[0], 0, -h % WINDOWS[0]), mode="replicate")
        x = rearrange(self.head(x), "b c h w -> b h w c").contiguous()  # once here, not in every layer
        x = self.tail(rearrange(self.blocks(x), "b h w c -> b c h w"))[..., :h, :w]
        return F.leaky_relu(x, 0.2) + up

    def _check(self, up: Tensor, msi: Tensor, lr: Tensor | None) -> None:
        given = f"up {tuple(up.shape)} and msi {tuple(msi.shape)}"
        if up.ndim != 4 or msi.ndim != 4 or (up.shape[1], msi.shape[1]) != (self.n_bands, self.n_msi):
            expected = f"(b, {self.n_bands}, h, w) and (b, {self.n_msi}, h, w) are expected"
            raise KAError(f"{given} do not fit this model: {expected}")
        if (up.shape[0], *up.shape[2:]) != (msi.shape[0], *msi.shape[2:]):
            cure = "upsample the LR-HSI to the size of the HR-MSI first (ka.data.bicubic)"
            raise KAError(f"{given} differ in batch or image size; {cure}")
        if not self.row.needs_lr:
            return
        if lr is None:
            raise KAError(f"{self.row.name} looks at the LR-HSI itself; give it too (lr=…)")
        ratio = max(1, up.shape[-1] // lr.shape[-1]) if self.front is None else self.front.degradation.ratio
        if tuple(up.shape) != (*lr.shape[:2], *(n * ratio for n in lr.shape[2:])):
            cure = "give one whose sides, times the ratio, are those of the HR-MSI"
            raise KAError(f"lr {tuple(lr.shape)} does not fit {given} at ratio {ratio}; {cure}")

    def layers(self) -> list[Layer]:
        """The 18 layers, in the order in which they run (`LAYERS` names them)."""
        return [module for module in self.modules() if isinstance(module, Layer)]

    def fold(self) -> "PSRT":
        """A copy for inference whose KA layers are plain 3×3 convolutions (one per quadrant for kav2–kav4).

        Same output, fewer parameters; without KA a plain copy. KAError where KA's kernels depend on the image.
        """
        folded = copy.deepcopy(self)
        for layer in folded.layers():
            if isinstance(layer.ka, KernelAttention):
                layer.ka = FoldedKernelAttention(layer.ka)
        return folded


def init_weights(model: nn.Module) -> None:
    """Start values as published: Linear weights N(0, 0.01²), convolution biases 0, all else PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not isinstance(module, Pointwise):  # Pointwise starts itself
            normal_(module.weight, std=0.01)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def build(variant: str, n_bands: int = 31, n_msi: int = 3, dim: int = 48) -> PSRT:
    """A freshly initialised model of a variant (a key of `ka.VARIANTS`); seed with `torch.manual_seed` before.

    Sizes and errors as `PSRT`; an unknown variant is a KAError too.
    """
    return PSRT(variant_row(variant), n_bands, n_msi, dim)
