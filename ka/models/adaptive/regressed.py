"""Kernels regressed on learned features, in every window.

Local injection (`ka.methods.local`) makes a kernel for every low-resolution pixel from its own neighbourhood; here the
channels that it sees, its ridge, what counts in a window and what one without detail falls back on are learned, through
the solve. Differentiating a ridge regression as a layer: Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with
differentiable closed-form solvers", ICLR 2019.
"""

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ka.data.simulate import Degradation
from ka.methods.local import RADIUS
from ka.models.adaptive.attention import WindowAttention
from ka.models.adaptive.fields import apply_kernels, box, degraded, upsample
from ka.models.adaptive.front import FLOOR, Front
from ka.models.variants import Variant

# Ridge beside a learned one, in parts of a feature's own energy in the window: of channels, roots, learned features. At
# an edge all features say the same; the channels, in which mixed pixels are linear, shall then explain it.
SHRINK = (0.01, 0.02, 1.0)


class RegressedKernels(Front):
    """bicubic(lr) + K(x, y)ᵀ · detail(features)(x, y), with kernels K regressed on `lr` at low resolution.

    `row.front` says on what: the window of a low-resolution pixel (where `row.attends` weighs its pixels), the whole
    image, or nothing (then K is a weight). The solve is in float64.
    """

    def __init__(self, n_bands: int, n_msi: int, row: Variant) -> None:
        super().__init__(n_bands, n_msi, row)
        k, counts = len(self.fallback), (n_msi, n_msi, row.features)
        self.shares = [share for share, n in zip(SHRINK, counts, strict=True) for _ in range(n)]
        self.log_ridge = nn.Parameter(torch.full((k,), -11.0)) if row.front != "nothing" else None
        if row.attends:
            self.attention = WindowAttention(n_msi, k, row.attends == "alike")

    def begin(self, degradation: Degradation, matrix: "Float[np.ndarray, 'bands m'] | None" = None) -> None:
        """What made `lr`, and a fitted matrix of the HR-MSI's channels (and their roots) to fall back on at first."""
        super().begin(degradation)
        if matrix is not None:
            with torch.no_grad():
                self.fallback[: matrix.shape[1]] = torch.from_numpy(matrix.T.copy())

    def forward(
        self, up: Float[Tensor, "b n h w"], msi: Float[Tensor, "b m h w"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b n h w"]:
        """The sharpened image; `up` is the image that the network starts from."""
        features = self.features(up, msi)
        with torch.autocast("cpu" if up.is_meta else up.device.type, enabled=False):  # the solve wants every digit
            low, ratio = degraded(features, self.degradation), self.degradation.ratio
            return apply_kernels(self.kernels(low, lr), features - upsample(low, ratio), upsample(lr, ratio))

    def kernels(
        self, low: Float[Tensor, "b k rows columns"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b k n rows columns"]:
        """The kernel of every low-resolution pixel: (C + R)⁻¹ (X + R · fallback), as `ka.methods.local_kernels`.

        C and X are means over the window of products of what `low` and `lr` have beyond their 3×3 means; the ridge R
        is diagonal: a learned part, and one in proportion to a feature's own energy, the diagonal of C (`SHRINK`). The
        fallback is one kernel, or the place's own mixture of a bank's.
        """
        if self.log_ridge is None:
            return self.fallback[None, :, :, None, None].expand(len(lr), -1, -1, *lr.shape[-2:])
        k = low.shape[1]
        means = rearrange(self.means(low, lr), "b i j y x -> b y x i j").double()
        squares, crosses = means[..., :k], means[..., k:]
        shrink = torch.tensor(self.shares, dtype=squares.dtype, device=squares.device)
        ridge = FLOOR + self.log_ridge.double().exp() + shrink * squares.diagonal(dim1=-2, dim2=-1)
        fallback: Tensor = self.fallback
        if self.bank is not None:
            weights = self.weights(self.look(4 * low))  # about as large as GELU bends
            fallback = rearrange(self.mixed(weights), "b k n y x -> b y x k n")
        towards = crosses + ridge[..., None] * fallback.double()
        solved = torch.linalg.solve(squares + torch.diag_embed(ridge), towards)
        return rearrange(solved, "b y x i j -> b i j y x").to(lr.dtype)

    def means(
        self, low: Float[Tensor, "b k rows columns"], lr: Float[Tensor, "b n rows columns"]
    ) -> Float[Tensor, "b k k+n rows columns"]:
        """C and X, side by side: of every window the mean products of features with features and with bands."""
        k, both = low.shape[1], torch.cat([low, lr], dim=1)
        high = both - box(both, 1)
        products = einsum(high[:, :k], high, "b i y x, b j y x -> b i j y x")
        if self.attention is not None:
            return self.attention(low, products.flatten(1, 2)).unflatten(1, products.shape[1:3])
        if self.sees == "image":
            return products.mean((-2, -1), keepdim=True).expand_as(products)
        return box(products, RADIUS)
