"""Points 2 to 5: what the study's layers of KAv2, KAv5, KAv8 and KAv9 computed, beside what it describes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ka.errors import KAError
from ka.models.counts import count_parameters, parameter_count
from ka.models.kernel_attention import KernelAttention, convolve
from ka.models.kernel_parts import SE, KernelSA
from ka.models.psrt import build
from ka.models.variants import N_WINDOWS, variant
from workbook.audit.trials import EXACT, TAPS, random_layer, random_maps, relative, seeded, yes


class Kav2(NamedTuple):
    """Relative differences (largest, float64)."""

    reshapes: float  # Linear of taps grouped as (n, -1, c), and as (c, -1, c)
    tied: float  # KAv2 and KAv3 whose four SE modules hold KAv2's weights
    untied: float  # the same, with SE weights of their own

    def rows(self) -> list[dict[str, str]]:
        compared = {"the two groupings": self.reshapes, "KAv2 and KAv3, SE tied": self.tied}
        compared["KAv2 and KAv3, SE not tied"] = self.untied
        return [{"compared": what, "differ": yes(difference > EXACT)} for what, difference in compared.items()]


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
        for module in part:
            module.load_state_dict(of.state_dict())
    return Kav2(relative(as_run, meant), relative(kav3(x), kav2(x)), untied)


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


class Gradients(NamedTuple):
    """Parameters of a model, and those that a loss on its output does not reach: in all, and in one KA layer."""

    model: str
    parameters: int
    unreached: int
    per_layer: int

    def row(self) -> dict[str, str]:
        return {
            "model": self.model,
            "parameters": f"{self.parameters:,}",
            "without gradient": f"{self.unreached:,}",
            "of these in one KA layer": f"{self.per_layer:,}",
        }


def kav5_gradients() -> tuple[list[Gradients], float]:
    """Gradients of KAv5 as described, as the study's module, and of our `kav5_as_run`; and the largest difference
    between the outputs of the last two with the same weights.
    """
    with seeded(0):
        up, msi = torch.rand(1, 31, 16, 16), torch.rand(1, 3, 16, 16)
        described, study, ours = (build(name) for name in ("kav5", "kav5", "kav5_as_run"))
        for layer in study.layers():
            layer.ka = StudyKAv5(study.dim // 2)
    ours.load_state_dict({key: value for key, value in study.state_dict().items() if ".ka." not in key})
    models = {"kav5, as described": described, "kav5, the study's module": study, "kav5_as_run, ours": ours}
    rows = []
    for name, model in models.items():
        model(up, msi).abs().mean().backward()
        in_layer = _unreached(cast(nn.Module, model.layers()[0].ka))
        rows.append(Gradients(name, count_parameters(model), _unreached(model), in_layer))
    with torch.no_grad():
        difference = (study(up, msi) - ours(up, msi)).abs().max().item()
    return rows, difference


def _unreached(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.grad is None)


@torch.no_grad()
def token_sets(name: str, c: int = 24) -> Int[np.ndarray, "sets taps three"]:
    """Which taps attend to each other in a variant's kernel SA (without one among taps: a `KAError`).

    Every kernel entry carries a tag through the layer's own reshapes to the SA's first Linear, where a hook reads it.
    Gives, for every set of tokens and every token in it: kernel of the set (0 is the global one in kav8), output
    channel, tap.
    """
    row = variant(name)
    if not row.sa or row.sa_among == "channels":
        cure = "choose a variant with SA (kav8, kav8_as_run, kav7 …)"
        raise KAError(f"{name} has no self-attention over kernel taps; {cure}")
    m, k = N_WINDOWS + (row.sa != "windows"), row.size
    with seeded(0):  # the weights do not matter
        sa = KernelSA(c, row)
    tags = torch.arange(m * c * k * k, dtype=torch.float32).reshape(1, m, c, 1, k, k)
    caught: list[Tensor] = []
    sa.qkv.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    sa(tags.expand(-1, -1, -1, c, -1, -1))
    seen = caught[0][0, ..., 0].long().numpy()
    return np.stack(np.unravel_index(seen, (m, c, k * k)), axis=-1)


class Mixing(NamedTuple):
    """What the sets of kernel SA hold."""

    variant: str
    foreign: float  # share of a set's taps that belong to another output filter, mean over sets
    together: float  # share of output channels whose global filter attends to the filters that it was made from
    whole: bool  # whether the taps of a filter stay together

    def row(self) -> dict[str, str]:
        return {
            "variant": self.variant,
            "taps in a set that are of another output": f"{self.foreign:.1%}",
            "the nine taps of a filter stay together": yes(self.whole),
            "G attends to the filters it was made from": f"{self.together:.0%}",
        }


def mixing(name: str, sets: Int[np.ndarray, "sets taps three"]) -> Mixing:
    """Sum up `token_sets` of a variant with a global kernel in its SA."""
    kernel, output, tap = np.moveaxis(sets, -1, 0)
    foreign = float((output != np.arange(len(sets))[:, None]).mean())
    meets = [bool(np.isin(o[k == 0], o[k > 0]).all()) for k, o in zip(kernel, output, strict=True) if (k == 0).any()]
    filters = rearrange(sets, "s (m t) three -> (s m) t three", t=TAPS)
    whole = bool((filters[..., :2] == filters[:, :1, :2]).all() and (tap.reshape(-1, TAPS) == np.arange(TAPS)).all())
    return Mixing(name, foreign, sum(meets) / len(sets), whole)


class Kav8(NamedTuple):
    """Relative differences (largest, float64) between kav8 and kav8_as_run."""

    same_weights: float  # both with the same weights
    renamed: float  # kav8 with window kernels and fusion columns renamed as the reshape does
    renamed_without_global: float  # the same, with a global kernel of zeros in both


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


class Branch(NamedTuple):
    """A pooled-kernel branch before its fusion, for one image."""

    variant: str
    params: int  # as the study counts, at dim 48
    singular: Float[np.ndarray, " nc"]  # singular values of its n·c outputs (as rows), the first is 1
    spread: float  # largest difference between two outputs of one kernel, over the largest output

    @property
    def rank(self) -> int:
        return int((self.singular > 1e-10).sum())

    def row(self) -> dict[str, object]:
        return {
            "variant": self.variant,
            "parameters (M)": f"{self.params / 1e6:.3f}",
            "outputs of a kernel are equal": yes(self.spread < EXACT),
            "outputs": len(self.singular),
            "rank": self.rank,
        }


@torch.no_grad()
def branches(names: Sequence[str], c: int = 24, size: int = 32) -> list[Branch]:
    """The outputs of all n kernels on one image (white noise, so that the image limits no rank)."""
    measured, x = [], random_maps(c, size)
    for name in names:
        kernels, _ = random_layer(name, c).kernels(x)
        outputs = torch.cat([convolve(x, kernel) for kernel in kernels.unbind(1)])
        singular = torch.linalg.svdvals(outputs.flatten(0, 1).flatten(1)).numpy()
        spread = (outputs.amax(1) - outputs.amin(1)).max() / outputs.abs().max()
        with seeded(0):
            params = parameter_count(name).reported
        measured.append(Branch(name, params, singular / singular[0], spread.item()))
    return measured
