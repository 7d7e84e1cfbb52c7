"""What an audit of the study's code and table found, derived anew: each point as values that our own layers give.

Numbers come from running the real parts (`ka.models.psrt`, `ka.models.kernel_attention`, `ka.models.variants`,
`ka.metrics`) or from what
the study printed (`workbook.results.study`). Figures: `workbook.audit.figures`. The
notebook `audit.ipynb` says what each point means.

Layers are filled with random weights in float64 where a statement is about every possible weight (`random_layer`):
at the published start, kernel SA's small weights would make the four window kernels nearly alike.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ka.data.scenes import Scene
from ka.errors import KAError
from ka.evaluation import Network, evaluate, upsampled
from ka.metrics import psnr, psnr_published
from ka.models.checkpoints import load_checkpoint
from ka.models.counts import count_parameters, parameter_count
from ka.models.kernel_attention import SE, KernelAttention, KernelSA, convolve
from ka.models.psrt import (
    LAYERS,
    WINDOWS,
    Layer,
    SaRBlock,
    build,
    shuffle,
    unshuffle,
)
from ka.models.variants import KERNEL_SIZE, N_WINDOWS, VARIANTS, Variant, dead_parameters, variant
from workbook.results.study import BASELINE_RANGE, OTHER_WIDTHS, REPORTED
from workbook.training.config import Config
from workbook.training.devices import pick_device
from workbook.training.scenes import Data
from workbook.training.step import Step, start

TAPS = KERNEL_SIZE**2
EXACT = 1e-12  # relative differences below it are rounding, in float64


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's random numbers from `seed` inside the block; its global state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def random_layer(name: str, c: int = 24, seed: int = 0, std: float = 0.3) -> KernelAttention:
    """A KA layer in float64 with every parameter drawn from N(0, std²)."""
    with seeded(seed):
        layer = KernelAttention(c, variant(name)).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=std)
    return layer.eval()


def random_maps(c: int, size: int, n: int = 1, seed: int = 0) -> Float[Tensor, "n c size size"]:
    """White noise in float64."""
    with seeded(seed):
        return torch.randn(n, c, size, size, dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest |a - b| over the largest |b|."""
    return ((a - b).abs().max() / b.abs().max()).item()


# 1. The misaligned shuffle


@dataclass(frozen=True, eq=False)
class Placement:
    """Where one layer adds its attention's outputs.

    Attributes:
        window: window size of the layer.
        layer: L1, L2 or L3.
        shift: rows and columns from the pixel that an output belongs to (whose query made it) to the one that it is
            added to; read at the latter, in the layer's own map.
    """

    window: int
    layer: str
    shift: Int[np.ndarray, "2 h w"]

    @property
    def distance(self) -> Float[np.ndarray, "h w"]:
        """Pixels between where an output lands and where it belongs."""
        return np.hypot(*self.shift)

    @property
    def share(self) -> float:
        """Share of pixels that get another pixel's output."""
        return float((self.distance > 0).mean())


@torch.no_grad()
def placements(name: str, size: int = 64, dim: int = 8, seed: int = 0) -> list[Placement]:
    """Watch the three SaR blocks of a variant at work, and see which pixel's query each attention output answers.

    Hooks take every layer's LN1 output and its attention's input; both hold the same vectors, moved or not, so equal
    vectors give the position map. Nothing about the shuffle is assumed.

    Args:
        name: the variant.
        size: height and width of the map, a multiple of 16.
        dim: channels; the map does not depend on them.
        seed: of the input.
    """
    found = []
    with seeded(seed):
        x = torch.randn(1, size, size, dim)
        blocks = [SaRBlock(dim, window, variant(name)) for window in WINDOWS]
    for window, block in zip(WINDOWS, blocks, strict=True):
        caught: dict[nn.Module, Tensor] = {}

        def after(module: nn.Module, inputs: Any, output: Tensor, into: dict[nn.Module, Tensor] = caught) -> None:
            into[module] = output

        def before(module: nn.Module, inputs: Any, into: dict[nn.Module, Tensor] = caught) -> None:
            into[module] = inputs[0]

        layers = [cast(Layer, layer) for layer in block.layers]
        for layer in layers:
            layer.norm1.register_forward_hook(after)
            layer.attn.register_forward_pre_hook(before)
        block(x)
        for i, layer in enumerate(layers):
            asks = caught[layer.attn][0]
            normed = caught[layer.norm1][0, ..., : asks.shape[-1]]
            found.append(Placement(window, f"L{i + 1}", _shift(_match(asks, normed))))
    return found


def _match(moved: Float[Tensor, "h w c"], original: Float[Tensor, "h w c"]) -> Int[np.ndarray, "h w"]:
    """For each vector of `moved` the pixel (row · W + column) of `original` that holds the same bits."""
    places = {vector.tobytes(): p for p, vector in enumerate(original.flatten(0, 1).contiguous().numpy())}
    found = [places[vector.tobytes()] for vector in moved.flatten(0, 1).contiguous().numpy()]
    return np.array(found).reshape(moved.shape[:2])


def _shift(source: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "2 h w"]:
    here = np.indices(source.shape)
    return here - np.stack(np.divmod(source, source.shape[1]))


def map_shift(window: int, size: int, back: bool = False) -> Int[np.ndarray, "2 size size"]:
    """The shift that `ka.models.psrt.shuffle` (or `unshuffle`) makes where nothing undoes it."""
    pixels = torch.arange(size * size).reshape(1, size, size, 1)
    return _shift((unshuffle if back else shuffle)(pixels, window)[0, ..., 0].numpy())


@dataclass(frozen=True)
class Answer:
    """Where the attention of L2 changes when one pixel of its layer's input does.

    Attributes:
        variant: the model.
        changed: pixels whose attention output changed.
        itself: whether the touched pixel is one of them.
        nearest: pixels from the touched one to the nearest of them.
    """

    variant: str
    changed: int
    itself: bool
    nearest: float


@torch.no_grad()
def answers(
    names: Sequence[str], window: int = 8, size: int = 64, pixel: tuple[int, int] = (20, 43), seed: int = 0
) -> list[Answer]:
    """Touch one pixel of L2's input and see where the attention's output, as it is added, changes."""
    found = []
    for name in names:
        with seeded(seed):
            block = SaRBlock(8, window, variant(name)).double()
            x = torch.randn(1, size, size, 8, dtype=torch.float64)
        touched = x.clone()
        touched[0, *pixel, 0] += 1.0
        outputs: list[Tensor] = []
        l2 = cast(Layer, block.layers[1])
        l2.attn.register_forward_hook(lambda _module, _inputs, y, into=outputs: into.append(y[0]))
        for image in (x, touched):
            l2(image)
        rows, cols = (outputs[0] != outputs[1]).any(-1).nonzero(as_tuple=True)
        distance = torch.hypot((rows - pixel[0]).double(), (cols - pixel[1]).double())
        found.append(Answer(name, len(rows), bool((distance == 0).any()), distance.min().item()))
    return found


@torch.no_grad()
def added(
    name: str, scene: Scene, seed: int = 0, dim: int = 48
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """What the first L2 with 2×2 windows of an untrained model adds on a scene: (shortcut, attention added to it).

    Both as the length of each pixel's vector, its mean over the map taken off. In `psrt` both are shuffled alike.
    """
    bands, m = len(scene.gt), len(scene.msi)
    with seeded(seed):
        model = build(name, bands, m, dim).eval()
    layer = model.layers()[LAYERS.index("block 1, 2×2, L2")]
    caught: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    layer.attn.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    model(torch.from_numpy(scene.up)[None], torch.from_numpy(scene.msi)[None])
    shortcut, output = ((x[0] - x[0].mean((0, 1))).norm(dim=-1).numpy() for x in caught)
    return shortcut, output


# 2. KAv2 without an error


@dataclass(frozen=True)
class Kav2:
    """Relative differences (largest, float64).

    Attributes:
        reshapes: Linear of taps grouped as (n, -1, c), and as (c, -1, c).
        tied: KAv2 and KAv3 whose four SE modules hold KAv2's weights.
        untied: the same, with SE weights of their own.
    """

    reshapes: float
    tied: float
    untied: float


@torch.no_grad()
def kav2_is_kav3(c: int = 24, size: int = 32, seed: int = 0) -> Kav2:
    """KAv2's reshape beside the one that was meant, and KAv2 beside KAv3."""
    with seeded(seed):
        taps = torch.randn(c, N_WINDOWS * TAPS, c, dtype=torch.float64)
        linear = nn.Linear(c, c).double()
    meant = linear(taps.reshape(c, -1, c)).reshape(taps.shape)
    as_run = linear(taps.reshape(N_WINDOWS, -1, c)).reshape(taps.shape)

    kav2, kav3 = random_layer("kav2", c, seed), random_layer("kav3", c, seed + 1)
    state = kav3.state_dict()
    x = random_maps(c, size, seed=seed)
    kav3.load_state_dict(state | {k: v for k, v in kav2.state_dict().items() if not k.startswith("se.")})
    untied = relative(kav3(x), kav2(x))
    assert isinstance(kav2.se, SE)
    assert isinstance(kav3.se, SE)
    for part, of in ((kav3.se.squeeze, kav2.se.squeeze[0]), (kav3.se.excite, kav2.se.excite[0])):
        for each in part:
            each.load_state_dict(of.state_dict())
    return Kav2(relative(as_run, meant), relative(kav3(x), kav2(x)), untied)


# 3. KAv5 as it ran


class StudyKAv5(nn.Module):
    """The study's KAv5 layer, with all that its module held: it computes the global kernel's convolution, and then
    returns its input."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.described = KernelAttention(c, variant("kav5"))
        # What the module held besides, and no forward used.
        self.conv_bias = nn.Parameter(torch.zeros(N_WINDOWS * c))
        self.norm = nn.LayerNorm(c)
        self.window_se = SE(c, N_WINDOWS)
        self.sa = KernelSA(c, variant("kav7"))
        self.fusion = nn.Linear(2 * c, c)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        self.described(x)
        return x


@dataclass(frozen=True)
class Gradients:
    """Parameters of a model, and those that a loss on its output does not reach.

    Attributes:
        model: which.
        parameters: all.
        unreached: those without a gradient.
        per_layer: those without a gradient in one KA layer.
    """

    model: str
    parameters: int
    unreached: int
    per_layer: int


def kav5_gradients(dim: int = 48, size: int = 16, seed: int = 0) -> tuple[list[Gradients], float]:
    """Gradients of KAv5 as described, as the study's module, and of our `kav5_as_run`.

    Returns:
        A row per model, and the largest difference between the outputs of the last two with the same weights.
    """
    with seeded(seed):
        up, msi = torch.rand(1, 31, size, size), torch.rand(1, 3, size, size)
        described, study, ours = build("kav5", dim=dim), build("kav5", dim=dim), build("kav5_as_run", dim=dim)
        for layer in study.layers():
            layer.ka = StudyKAv5(dim // 2)
    ours.load_state_dict({key: value for key, value in study.state_dict().items() if ".ka." not in key})
    models = {"kav5, as described": described, "kav5, the study's module": study, "kav5_as_run, ours": ours}
    rows = []
    for name, model in models.items():
        model(up, msi).abs().mean().backward()
        rows.append(
            Gradients(
                name, count_parameters(model), _unreached(model), _unreached(cast(nn.Module, model.layers()[0].ka))
            )
        )
    with torch.no_grad():
        difference = (study(up, msi) - ours(up, msi)).abs().max().item()
    return rows, difference


def _unreached(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.grad is None)


# 4. KAv8's traded axes


@torch.no_grad()
def token_sets(name: str, c: int = 24) -> Int[np.ndarray, "sets taps three"]:
    """Which taps attend to each other in a variant's kernel SA.

    Every kernel entry carries a tag through the layer's own reshapes to the SA's first Linear, where a hook reads it.

    Args:
        name: a variant with SA.
        c: channels.

    Returns:
        For every set of tokens and every token in it: kernel of the set (0 is the global one in kav8), output
        channel, tap.

    Raises:
        KAError: the variant has no SA among taps.
    """
    row = variant(name)
    if not row.sa or row.sa_among == "channels":
        raise KAError(
            f"{name} has no self-attention over kernel taps; choose a variant with SA (kav8, kav8_as_run, kav7 …)"
        )
    m, k = N_WINDOWS + (row.sa != "windows"), row.size
    with seeded(0):  # the weights do not matter
        sa = KernelSA(c, row)
    tags = torch.arange(m * c * k * k, dtype=torch.float32).reshape(1, m, c, 1, k, k)
    caught: list[Tensor] = []
    sa.qkv.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    sa(tags.expand(-1, -1, -1, c, -1, -1))
    seen = caught[0][0, ..., 0].long().numpy()
    return np.stack(np.unravel_index(seen, (m, c, k * k)), axis=-1)


@dataclass(frozen=True)
class Mixing:
    """What the sets of kernel SA hold.

    Attributes:
        foreign: share of a set's taps that belong to another output filter, mean over sets.
        together: share of output channels whose global filter attends to the window filters that it was made from.
        whole: whether the taps of a filter stay together.
    """

    foreign: float
    together: float
    whole: bool


def mixing(sets: Int[np.ndarray, "sets taps three"]) -> Mixing:
    """Sum up `token_sets` of kav8 or kav8_as_run."""
    kernel, output, tap = np.moveaxis(sets, -1, 0)
    foreign = float((output != np.arange(len(sets))[:, None]).mean())
    meets = [bool(np.isin(o[k == 0], o[k > 0]).all()) for k, o in zip(kernel, output, strict=True) if (k == 0).any()]
    filters = rearrange(sets, "s (m t) three -> (s m) t three", t=TAPS)
    whole = bool((filters[..., :2] == filters[:, :1, :2]).all() and (tap.reshape(-1, TAPS) == np.arange(TAPS)).all())
    return Mixing(foreign, sum(meets) / len(sets), whole)


@dataclass(frozen=True)
class Kav8:
    """Relative differences (largest, float64) between kav8 and kav8_as_run.

    Attributes:
        same_weights: both with the same weights.
        renamed: kav8 with window kernels and fusion columns renamed as the reshape does.
        renamed_without_global: the same, with a global kernel of zeros in both.
    """

    same_weights: float
    renamed: float
    renamed_without_global: float


@torch.no_grad()
def kav8_differs(c: int = 24, size: int = 32, seed: int = 0) -> Kav8:
    """Whether the traded axes can be undone by renaming what is learned.

    The window kernels are free weights, so trading them among themselves only renames them. The global filter of an
    output channel is made from the window filters of that channel: it is what the trade really parts.
    """
    x = random_maps(c, size, seed=seed)
    ran, described = random_layer("kav8_as_run", c, seed), random_layer("kav8", c, seed)
    same = relative(described(x), ran(x))
    state = ran.state_dict()
    described.load_state_dict(state | _renamed(state, c))
    renamed = relative(described(x), ran(x))
    for layer in (ran, described):
        assert layer.global_kernel is not None
        layer.global_kernel.mix.weight.zero_()
    return Kav8(same, renamed, relative(described(x), ran(x)))


def _renamed(state: Mapping[str, Tensor], c: int) -> dict[str, Tensor]:
    """kav8_as_run's window kernels and fusion columns, in the order in which kav8 has the same sets."""
    kernels, columns = state["window_kernels.weight"], rearrange(state["fusion.weight"], "i (m o) -> m o i", o=c)
    new_kernels, new_columns = torch.empty_like(kernels), torch.empty_like(columns)
    for s, tokens in enumerate(token_sets("kav8_as_run", c)):
        for slot, (m, o, _) in enumerate(tokens[::TAPS]):
            new_columns[m, s] = columns[slot, s]
            if m > 0:
                new_kernels[m - 1, s] = kernels[m - 1, o]
    return {"window_kernels.weight": new_kernels, "fusion.weight": rearrange(new_columns, "m o i -> i (m o)")}


# 5. KAv9's rank


@dataclass(frozen=True, eq=False)
class Branch:
    """A pooled-kernel branch before its fusion, for one image.

    Attributes:
        variant: the model.
        params: parameters as the study counts, dim 48.
        singular: singular values of its n·c outputs (as rows), the first is 1.
        spread: largest difference between two outputs of one kernel, over the largest output.
    """

    variant: str
    params: int
    singular: Float[np.ndarray, " nc"]
    spread: float

    @property
    def rank(self) -> int:
        """Singular values above 1e-10."""
        return int((self.singular > 1e-10).sum())


@torch.no_grad()
def branches(names: Sequence[str], c: int = 24, size: int = 32, seed: int = 0) -> list[Branch]:
    """The outputs of all n kernels on one image (white noise, so that the image limits no rank)."""
    found = []
    x = random_maps(c, size, seed=seed)
    for name in names:
        kernels, _ = random_layer(name, c, seed).kernels(x)
        outputs = torch.cat([convolve(x, kernel) for kernel in kernels.unbind(1)])
        singular = torch.linalg.svdvals(outputs.flatten(0, 1).flatten(1)).numpy()
        spread = (outputs.amax(1) - outputs.amin(1)).max() / outputs.abs().max()
        with seeded(seed):
            params = parameter_count(name).reported
        found.append(Branch(name, params, singular / singular[0], spread.item()))
    return found


# 6. Not adaptive, and the seam


@dataclass(frozen=True)
class Adaptivity:
    """Whether a KA layer looks at the image.

    Attributes:
        variant: the model.
        moves: relative change of its kernels from one image to another.
        error: of f(x + y) = f(x) + f(y) - f(0), relative.
    """

    variant: str
    moves: float
    error: float

    @property
    def adaptive(self) -> bool:
        """Whether the kernels depend on the image."""
        return self.moves > EXACT

    @property
    def additive(self) -> bool:
        """Whether the layer is a fixed linear map plus a constant."""
        return self.error < EXACT


def ka_variants() -> list[str]:
    """Variants of the study and of the second report with kernels."""
    return [name for name, row in VARIANTS.items() if row.has_ka and row.kernels != "identity" and not row.ours]


@torch.no_grad()
def adaptivity(names: Sequence[str], c: int = 24, size: int = 16, seed: int = 0) -> list[Adaptivity]:
    """Give each layer two images, their sum, and nothing."""
    found = []
    x, y = random_maps(c, size, 2, seed).split(1)
    for name in names:
        layer = random_layer(name, c, seed)
        here, there = (torch.cat([k.flatten() for k in layer.kernels(image) if k is not None]) for image in (x, y))
        additive = layer(x) + layer(y) - layer(torch.zeros_like(x))
        found.append(Adaptivity(name, relative(here, there), relative(layer(x + y), additive)))
    return found


@dataclass(frozen=True, eq=False)
class Seam:
    """What a layer makes of smooth input.

    Attributes:
        variant: the model.
        constant: one output channel for a constant image.
        smooth: one output channel for a smooth image.
        step: mean |difference| between neighbouring rows of the smooth image's output, over all channels; the outer
            border's are left out (NaN).
    """

    variant: str
    constant: Float[np.ndarray, "h w"]
    smooth: Float[np.ndarray, "h w"]
    step: Float[np.ndarray, " h-1"]

    @property
    def ratio(self) -> float:
        """The largest of the three steps at the middle (zero padding acts on either side), over the median step."""
        middle = len(self.step) // 2
        return float(self.step[middle - 1 : middle + 2].max() / np.nanmedian(self.step))


@torch.no_grad()
def seams(names: Sequence[str], c: int = 24, size: int = 64, channel: int = 0, seed: int = 0) -> list[Seam]:
    """Show layers a constant image, and one of slow waves (two periods at most over the image)."""
    with seeded(seed):
        level = torch.randn(c, dtype=torch.float64)
        amplitude = torch.randn(c, 2, 2, dtype=torch.float64)
    t = torch.arange(size, dtype=torch.float64) / size
    waves = torch.stack([torch.cos(2 * math.pi * t), torch.cos(4 * math.pi * t + 1)])
    constant = level[None, :, None, None].expand(1, c, size, size)
    smooth = constant + 0.3 * torch.einsum("cij,iy,jx->cyx", amplitude, waves, waves)
    found = []
    for name in names:
        layer = random_layer(name, c, seed)
        flat, y = layer(constant)[0], layer(smooth)[0]
        step = (y[:, 1:] - y[:, :-1])[..., 2:-2].abs().mean((0, 2)).numpy()
        step[:2] = step[-2:] = np.nan
        found.append(Seam(name, flat[channel].numpy(), y[channel].numpy(), step))
    return found


@dataclass(frozen=True, eq=False)
class Agreement:
    """A layer on training patches against the same layer on the whole image they were cut from.

    Attributes:
        variant: the model.
        difference: per pixel, the length of the difference over the mean length of the output.
        inside: pixels that no border of a patch or a quadrant is next to.
    """

    variant: str
    difference: Float[np.ndarray, "h w"]
    inside: Bool[np.ndarray, "h w"]

    @property
    def share(self) -> float:
        """Share of the inner pixels where both agree."""
        return float((self.difference[self.inside] < EXACT).mean())


@torch.no_grad()
def patch_and_whole(
    names: Sequence[str], patch: int = 64, patches: int = 4, c: int = 24, seed: int = 0
) -> list[Agreement]:
    """Run a layer patch by patch (as in training) and on the whole image (as at test)."""
    size = patch * patches
    x = random_maps(c, size, seed=seed)
    cut = rearrange(x, "1 c (p y) (q x) -> (p q) c y x", p=patches, q=patches)
    inner = np.isin(np.arange(size) % (patch // 2), (0, patch // 2 - 1), invert=True)
    found = []
    for name in names:
        layer = random_layer(name, c, seed)
        whole = layer(x)[0]
        joined = rearrange(layer(cut), "(p q) c y x -> c (p y) (q x)", p=patches)
        difference = (joined - whole).norm(dim=0) / whole.norm(dim=0).mean()
        found.append(Agreement(name, difference.numpy(), np.outer(inner, inner)))
    return found


def kernels_met(size: int = 512, patch: int = 64, stride: int = 32) -> Int[np.ndarray, "n size size"]:
    """How many training patches show a pixel to each window kernel (the study's patches of a scene, see `Patches`)."""
    starts = range(0, size - patch, stride)
    half = np.zeros((2, size), dtype=int)
    for first in starts:
        half[0, first : first + patch // 2] += 1
        half[1, first + patch // 2 : first + patch] += 1
    return np.einsum("py,qx->pqyx", half, half).reshape(N_WINDOWS, size, size)


# 7. Dead parameters


@dataclass(frozen=True)
class Counted:
    """The parameter column of one printed row.

    Attributes:
        name: the study's name.
        dim: embedding width.
        live, dead: parameters the output depends on, and those it does not.
        printed: millions, as printed.
    """

    name: str
    dim: int
    live: int
    dead: int
    printed: float

    @property
    def met(self) -> bool:
        """Whether live + dead, rounded as printed, is the printed number."""
        return f"{(self.live + self.dead) / 1e6:.3f}" == f"{self.printed:.3f}"


def counted() -> list[Counted]:
    """Live and dead parameters of every row whose count the study prints."""
    rows = [(name, row.ran, 48, row.params) for name, row in REPORTED.items() if row.params is not None]
    rows += [("psrt", REPORTED["psrt"].ran, dim, printed) for dim, printed in OTHER_WIDTHS.items()]
    with seeded(0):
        return [
            Counted(name, dim, count_parameters(build(ran, dim=dim)), dead_parameters(ran, dim), printed)
            for name, ran, dim, printed in rows
        ]


# 8. Which weights are kept


def constant_rate(config: Config, scenes: Data, every: int = 5) -> list[dict[str, float]]:
    """Train in memory, without a run folder; every so many iterations, measure raw and averaged weights.

    Args:
        config: the run, so many `iterations` long; nothing of it is written.
        scenes: `load_data(config)`, with validation scenes.
        every: iterations between measurements.

    Returns:
        Per measurement: step, mean training loss since the last, validation PSNR (dB) of the raw weights (psnr) and of
        the averaged ones (psnr_average).

    Raises:
        KAError: the configuration's length is in epochs, or it holds no validation scene out.
    """
    if config.iterations is None or not scenes.val:
        raise KAError("this small training wants iterations and validation scenes; give iterations, not epochs")
    state = start(config, scenes.train.n_bands, scenes.train.n_msi, pick_device(config.device))
    one_step = Step(config, config.iterations, scenes.patches)
    history = []
    for step in range(every, config.iterations + 1, every):
        losses = [one_step(state) for _ in range(every)]
        raw, average = (
            evaluate(Network(model.eval()), scenes.val, config.ratio, ["psnr"]).mean("psnr")
            for model in (state.model, state.average)
        )
        history.append({"step": step, "loss": float(np.mean(losses)), "psnr": raw, "psnr_average": average})
    return history


def running_mean(losses: Sequence[float], resumed: int = 0) -> Float[np.ndarray, " n"]:
    """Mean of all losses of the process so far; a process that is resumed after `resumed` of them begins anew."""
    spans = [np.asarray(losses[:resumed]), np.asarray(losses[resumed:])]
    return np.concatenate([np.cumsum(span) / np.arange(1, len(span) + 1) for span in spans])


def called_best(losses: Sequence[float]) -> Bool[np.ndarray, " n"]:
    """The study's rule: an epoch is "best" when the running mean of the training loss is the lowest so far."""
    mean = running_mean(losses)
    return mean < np.concatenate([[np.inf], np.minimum.accumulate(mean)[:-1]])


@dataclass(frozen=True)
class Selection:
    """What the study's rule makes of the second half of a history.

    Attributes:
        called_best: share of the measurements that it calls "best".
        below: how far the worst of these lies below the best raw weights so far, dB.
        tolerance: how many times the late losses (last quarter) a loss can be and still be called "best".
        fall, fall_average: largest fall of validation PSNR from one measurement to the next, dB, of raw and of
            averaged weights.
    """

    called_best: float
    below: float
    tolerance: float
    fall: float
    fall_average: float


def selection(history: Sequence[Mapping[str, float]]) -> Selection:
    """Judge a history of `constant_rate`.

    A new loss lowers the mean of all losses if, and only if, it lies below that mean: this is all that the rule asks.
    """
    losses = [note["loss"] for note in history]
    half = len(history) // 2
    raw, average = (np.array([note[key] for note in history]) for key in ("psnr", "psnr_average"))
    best = called_best(losses)[half:]
    below = (np.maximum.accumulate(raw) - raw)[half:][best]
    return Selection(
        called_best=float(best.mean()),
        below=float(below.max(initial=0.0)),
        tolerance=float(running_mean(losses)[-1] / np.mean(losses[len(losses) * 3 // 4 :])),
        fall=float(-np.diff(raw[half:]).min(initial=0.0)),
        fall_average=float(-np.diff(average[half:]).min(initial=0.0)),
    )


def refusals() -> dict[str, str]:
    """What our loader says of checkpoints that do not fit; the study's code only logged them."""
    with seeded(0):
        kav6, kav7 = (build(name, dim=8).state_dict() for name in ("kav6", "kav7"))
    lacking = {key: value for key, value in kav6.items() if key != "blocks.0.0.layers.0.ka.fusion.weight"}
    sources: dict[str, tuple[Any, str]] = {
        "no file": ("results/PSRT_KAv6/2000.pth.tar", "kav6"),
        "a weight is missing": (lacking, "kav6"),
        "weights of another variant": (kav7, "kav6"),
    }
    said = {}
    for what, (source, name) in sources.items():
        try:
            load_checkpoint(source, name)
        except KAError as error:
            said[what] = str(error)
    return said


def untrained(scene: Scene, ratio: int = 4, name: str = "kav6", dim: int = 48, seed: int = 0) -> tuple[float, float]:
    """PSNR in dB of (bicubic upsampling, a network with random weights as published) on a scene."""
    with seeded(seed):
        model = build(name, len(scene.gt), len(scene.msi), dim).eval()
    bicubic, network = (
        evaluate(method, [scene], ratio, ["psnr"]).mean("psnr") for method in (upsampled, Network(model))
    )
    return bicubic, network


# 9. Noise

#: Expected range of five normal numbers, in standard deviations (the d₂ of control charts).
RANGE_OF_FIVE = 2.326
#: Differences below it say nothing, dB.
NOISE = 0.2
BASELINE = "psrt_noshuffle"


def differences() -> dict[str, float]:
    """Printed PSNR of every row less the baseline's, dB."""
    base = REPORTED[BASELINE].psnr
    assert base is not None
    return {name: row.psnr - base for name, row in REPORTED.items() if row.psnr is not None and name != BASELINE}


@dataclass(frozen=True)
class Noise:
    """How far single runs lie apart by chance.

    Attributes:
        sigma: standard deviation of one run, from the range of five, dB.
        pair: standard deviation of the difference of two runs, dB.
        two_sigma: a difference of two runs that chance exceeds once in 20, dB.
        rows: rows of the study's own table that are compared with the baseline.
        luck: how often the best of so many rows beats the baseline by as much as the study's best, if all were equal.
    """

    sigma: float
    pair: float
    two_sigma: float
    rows: int
    luck: float


def noise(draws: int = 100_000, seed: int = 0) -> Noise:
    """What the range of five baseline runs says of the table, taking runs as normal and all models as equal."""
    sigma = BASELINE_RANGE / RANGE_OF_FIVE
    gaps = [gap for name, gap in differences().items() if name in STUDY_ROWS]
    runs = np.random.default_rng(seed).normal(scale=sigma, size=(draws, len(gaps) + 1))
    luck = float((runs[:, 1:].max(1) - runs[:, 0] >= max(gaps)).mean())
    pair = sigma * math.sqrt(2)
    return Noise(sigma, pair, 1.96 * pair, len(gaps), luck)


#: Rows of the study's own table; the others are of the later report.
STUDY_ROWS = tuple(name for name, row in REPORTED.items() if row.params is not None)
_NO_PARTS = ("name", "linear", "dead", "global_bias", "ours")
_PARTS = tuple(field.name for field in fields(Variant) if field.name not in _NO_PARTS)


def parts_apart(one: str, other: str) -> list[str]:
    """Parts (fields of `Variant`) in which two variants differ, start values of mixes and dead parameters aside."""
    a, b = variant(one), variant(other)
    return [part for part in _PARTS if getattr(a, part) != getattr(b, part)]


def one_part_apart() -> list[tuple[str, str, str, float]]:
    """Pairs of printed rows whose models, as they ran, differ in a single part.

    Returns:
        One row, the other, the part, PSNR of the second less that of the first in dB.
    """
    pairs = []
    for (one, a), (other, b) in combinations(REPORTED.items(), 2):
        parts = parts_apart(a.ran, b.ran)
        if len(parts) == 1 and a.psnr is not None and b.psnr is not None:
            pairs.append((one, other, parts[0], b.psnr - a.psnr))
    return pairs


# 10. Two PSNRs


@dataclass(frozen=True, eq=False)
class TwoPSNRs:
    """One prediction in two conventions, dB.

    Attributes:
        bands: PSNR of every band, peak 1.
        ours: their mean: the study's PSNR.
        pooled: PSNR of the MSE over all bands, peak 1.
        published: the same with peak max(target): the published PSRT code's.
    """

    bands: Float[np.ndarray, " bands"]
    ours: float
    pooled: float
    published: float

    @property
    def gap(self) -> float:
        """Ours less the published one: mean over bands instead of mean over errors, plus the peak."""
        return self.ours - self.published


def two_psnrs(prediction: Float[Tensor, "bands h w"], target: Float[Tensor, "bands h w"]) -> TwoPSNRs:
    """Measure one prediction in both conventions."""
    bands = psnr(prediction[:, None], target[:, None])
    everything = rearrange(prediction, "b h w -> 1 1 b (h w)"), rearrange(target, "b h w -> 1 1 b (h w)")
    ours, pooled, published = (
        metric.item()
        for metric in (
            psnr(prediction[None], target[None]),
            psnr(*everything),
            psnr_published(prediction[None], target[None]),
        )
    )
    return TwoPSNRs(bands.numpy(), ours, pooled, published)


def uneven_pair(bands: int = 31, size: int = 32, brightest: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A made-up prediction and target, `bands h w`: values up to `brightest`; errors of 0.001 to 0.03 over bands."""
    with seeded(seed):
        target = brightest * torch.rand(bands, size, size, dtype=torch.float64)
        error = torch.randn(bands, size, size, dtype=torch.float64)
    return target + torch.logspace(-3, math.log10(0.03), bands, dtype=torch.float64)[:, None, None] * error, target
