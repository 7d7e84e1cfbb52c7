"""What a variant costs: floating-point operations by counting, milliseconds by the clock.

One multiply-add is two operations (2 FLOPs). Counted are matrix products and convolutions, in attention too; not
counted is what touches every value a few times (LayerNorm, GELU, softmax, sums, gates), as is the custom. So FLOPs
compare variants, and the clock has the last word: on a CPU the memory traffic of small windows costs more than its
arithmetic.
"""

import copy
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ka.files import KAError, write_json
from ka.kernel_attention import KernelAttention, Map, convolve, convolve_windows
from ka.psrt import PSRT, build
from ka.runs import environment
from ka.variants import VARIANTS, variant

BASELINE = "psrt_noshuffle"
COUNTED = 512  # side of CAVE's images


class PlainKernelAttention(nn.Module):
    """A KA layer computed as the study's diagram draws it: one convolution per kernel, concatenated, fused.

    Same output as `KernelAttention`. Left out is the first convolution of kernels whose output is never used.
    """

    def __init__(self, layer: KernelAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Map) -> Map:
        layer, row = self.layer, self.layer.row
        if layer.window_kernels is None:
            return x
        windows, glob = layer.kernels(x)
        on_image = [] if glob is None else [convolve(x, glob[:, 0])]
        if row.second in ("windows", "windows+image"):
            results = [convolve_windows(x, windows[0]), *on_image]
        elif row.second == "global":
            results = on_image
        else:
            each = [convolve(x, windows[:, m]) for m in range(windows.shape[1])]
            results = [*on_image, *each] if row.global_first else [*each, *on_image]
        y = torch.cat(results, dim=1)
        if layer.fusion is not None:
            y = rearrange(layer.fusion(rearrange(y, "b c h w -> b h w c")), "b h w c -> b c h w")
        return F.gelu(y) if row.activation else y


def plain(model: PSRT) -> PSRT:
    """A copy of a model whose KA layers run n or n + 1 convolutions and the fusion. Same output."""
    copied = copy.deepcopy(model)
    for layer in copied.layers():
        if isinstance(layer.ka, KernelAttention):
            layer.ka = PlainKernelAttention(layer.ka)
    return copied


def deployed(model: PSRT) -> PSRT:
    """The form for inference: folded where the kernels do not depend on the image, else the model itself."""
    return model if model.row.adaptive else model.fold()


@cache
def flops(name: str, dim: int = 48, size: int = 512, n_bands: int = 31, n_msi: int = 3, form: str = "deployed") -> int:
    """FLOPs (2 per multiply-add) of sharpening one image of size×size pixels; nothing is computed or allocated.

    Args:
        name: a key of `ka.VARIANTS`.
        dim: embedding width, a multiple of 8.
        size: side of the image in pixels.
        n_bands, n_msi: bands of the two inputs.
        form: `deployed` (folded, see `deployed`), `plain` (as the study's diagram, kernels made on the way), or
            `training` (as `PSRT` runs in training: folded on the way).

    Raises:
        KAError: unknown variant or form, impossible size.
    """
    forms: dict[str, Callable[[PSRT], PSRT]] = {"deployed": deployed, "plain": plain, "training": lambda model: model}
    if form not in forms:
        raise KAError(f"form={form!r} is unknown; choose one of {', '.join(forms)}")
    if size < 8:
        raise KAError(f"size={size} is smaller than one window; choose at least 8")
    with torch.device("meta"), torch.no_grad():
        model = forms[form](build(name, n_bands, n_msi, dim)).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, n_bands, size, size), torch.empty(1, n_msi, size, size))
    return counter.get_total_flops()


@dataclass(frozen=True)
class Cost:
    """What one variant costs, deployed.

    Attributes:
        gflops: 10⁹ FLOPs for an image of `Costs.counted` pixels a side.
        gflops_plain: the same for the plain form.
        ms: median milliseconds for an image of `Costs.size` pixels a side.
        ratio: median over rounds of its time by the baseline's in the same round, which a busy machine disturbs less.
        low, high: lower and upper quartile of this ratio.
    """

    gflops: float
    gflops_plain: float
    ms: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Costs:
    """A measurement by the clock, as `results/costs.json` holds it.

    Attributes:
        hardware: processor, cores, versions.
        device, threads, dim, size, n_bands, n_msi, repeats: what was run.
        counted: side of the image that FLOPs are counted for, in pixels.
        variants: variant → its cost.
    """

    hardware: Mapping[str, Any]
    device: str
    threads: int
    dim: int
    size: int
    n_bands: int
    n_msi: int
    repeats: int
    counted: int
    variants: Mapping[str, Cost]

    @property
    def label(self) -> str:
        """What the milliseconds are of, in a few words."""
        return (
            f"{self.size}×{self.size}×{self.n_bands} image, dim {self.dim}, {self.device}, "
            f"{self.threads} thread{'s' * (self.threads != 1)}, {self.hardware.get('cpu')}"
        )

    @classmethod
    def read(cls, path: str | Path) -> Self | None:
        """The measurement in a file, None if there is no file.

        Raises:
            KAError: the file is damaged or of another kind.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            variants = {str(name): Cost(**cost) for name, cost in value.pop("variants").items()}
            numbers = [number for cost in variants.values() for number in asdict(cost).values()]
            if not all(isinstance(number, int | float) for number in numbers) or not isinstance(
                value["hardware"], dict
            ):
                raise TypeError("numbers are expected")
            return cls(**value, variants=variants)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise KAError(
                f"{path} is damaged or of another kind ({error}); restore it, or measure again with "
                "python -m ka.costs FILE"
            ) from error


def measure(
    names: Sequence[str] = tuple(VARIANTS),
    dim: int = 48,
    size: int = 128,
    repeats: int = 9,
    threads: int = 1,
    n_bands: int = 31,
    n_msi: int = 3,
) -> Costs:
    """Count, and time on the CPU, the deployed form of variants, in alternation.

    Every round runs each of them once, in an order of its own. A machine that slows down for a while then slows all of
    them, so the ratio to the baseline of the same round holds where milliseconds do not. One round to warm up is not
    counted. With one thread the processor's time is taken, which does not run while other programs do; with more, the
    time on the wall.

    Args:
        names: variants; the baseline `psrt_noshuffle` is always among them.
        dim, size, n_bands, n_msi: as `flops`.
        repeats: rounds.
        threads: of PyTorch, for the time of the measurement.

    Raises:
        KAError: unknown variant, or a number that is not positive.
    """
    for label, number in (("size", size), ("repeats", repeats), ("threads", threads)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise KAError(f"{label}={number!r} is not a positive whole number")
    chosen = list(dict.fromkeys([BASELINE, *(variant(name).name for name in names)]))
    times: dict[str, list[float]] = {name: [] for name in chosen}
    clock = time.process_time if threads == 1 else time.perf_counter
    with torch.random.fork_rng(), torch.inference_mode(), _threads(threads):
        torch.manual_seed(0)
        models = {name: deployed(build(name, n_bands, n_msi, dim)).eval() for name in chosen}
        up, msi = torch.rand(1, n_bands, size, size), torch.rand(1, n_msi, size, size)
        shuffled = random.Random(0)
        for turn in range(repeats + 1):
            for name in shuffled.sample(chosen, len(chosen)):  # the same place in every round would have its own speed
                begun = clock()
                models[name](up, msi)
                if turn:
                    times[name].append(1e3 * (clock() - begun))
    variants = {}
    for name in chosen:
        counts = [round(flops(name, dim, COUNTED, n_bands, n_msi, form) / 1e9, 3) for form in ("deployed", "plain")]
        ms, ratio, low, high = _timing(times[name], times[BASELINE])
        variants[name] = Cost(counts[0], counts[1], ms, ratio, low, high)
    return Costs(_hardware(), "cpu", threads, dim, size, n_bands, n_msi, repeats, COUNTED, variants)


def _timing(times: list[float], baseline: list[float]) -> tuple[float, float, float, float]:
    """Milliseconds, ratio to the baseline, and the quartiles of the ratio."""
    ratios = sorted(mine / its for mine, its in zip(times, baseline, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return round(statistics.median(times), 2), round(statistics.median(ratios), 4), round(low, 4), round(high, 4)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _hardware() -> dict[str, Any]:
    found = environment()
    kept = {key: found[key] for key in ("time", "python", "system", "cores", "memory_gib", "commit")}
    return {"cpu": _cpu(), "torch": torch.__version__, **kept}


def _cpu() -> str:
    """The processor's name; Python alone often knows only its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: Sequence[str]) -> int:
    """`python -m ka.costs FILE [SIZE [REPEATS]]`: measure every variant and write FILE; exit code 2 for an error."""
    if not 1 <= len(arguments) <= 3 or not all(number.isdigit() for number in arguments[1:]):
        print("usage: python -m ka.costs results/costs.json [SIZE [REPEATS]]", file=sys.stderr)
        return 2
    try:
        size, repeats = map(int, [*arguments[1:], *("128", "9")[len(arguments) - 1 :]])
        found = measure(size=size, repeats=repeats)
        write_json(arguments[0], asdict(found))
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, cost in found.variants.items():
        print(f"{name:16} {cost.gflops:8.1f} GFLOPs {cost.ms:9.1f} ms   {cost.ratio:6.3f} × {BASELINE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
