"""Points 7, 9 and 10: the printed table's parameters, its noise, and its PSNR."""

import math
from dataclasses import fields
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ka.metrics import psnr, psnr_published
from ka.models.counts import parameter_count
from ka.models.variants import Variant, variant
from workbook.audit.trials import seeded, yes
from workbook.results.study import BASELINE, BASELINE_RANGE, OTHER_WIDTHS, REPORTED

RANGE_OF_FIVE = 2.326  # expected range of five normal numbers, in standard deviations (the d₂ of control charts)
NOISE = 0.2  # differences below it say nothing, dB
#: Rows of the study's own table; the others are of the later report.
STUDY_ROWS = tuple(name for name, row in REPORTED.items() if row.params is not None)
_NO_PARTS = ("name", "linear", "dead", "global_bias", "ours")
_PARTS = tuple(field.name for field in fields(Variant) if field.name not in _NO_PARTS)


class Counted(NamedTuple):
    """The parameter column of one printed row, for the model that it ran: live, dead, and printed in millions."""

    name: str
    ran: str
    dim: int
    live: int
    dead: int
    printed: float

    @property
    def met(self) -> bool:
        """Whether live + dead, rounded as printed, is the printed number."""
        return f"{(self.live + self.dead) / 1e6:.3f}" == f"{self.printed:.3f}"

    def row(self) -> dict[str, object]:
        return {
            "printed row": self.name,
            "what ran": self.ran,
            "dim": self.dim,
            "live": f"{self.live:,}",
            "dead": f"{self.dead:,}",
            "live + dead (M)": f"{(self.live + self.dead) / 1e6:.3f}",
            "printed (M)": f"{self.printed:.3f}",
        }


def counted() -> list[Counted]:
    """Live and dead parameters of every row whose count the study prints."""
    rows = [(name, row.ran, 48, row.params) for name, row in REPORTED.items() if row.params is not None]
    rows += [("psrt", REPORTED["psrt"].ran, dim, printed) for dim, printed in OTHER_WIDTHS.items()]
    counts = [parameter_count(ran, dim=dim) for _, ran, dim, _ in rows]
    return [Counted(*row[:3], count.live, count.dead, row[3]) for row, count in zip(rows, counts, strict=True)]


def differences() -> dict[str, float]:
    """Printed PSNR of every row less the baseline's, dB."""
    base = REPORTED[BASELINE].psnr
    assert base is not None
    return {name: row.psnr - base for name, row in REPORTED.items() if row.psnr is not None and name != BASELINE}


class Noise(NamedTuple):
    """How far single runs lie apart by chance, in dB."""

    sigma: float  # standard deviation of one run, from the range of five
    pair: float  # of the difference of two runs
    two_sigma: float  # what such a difference exceeds by chance once in 20
    rows: int  # of the study's own table, beside the baseline
    luck: float  # how often the best of so many rows leads by as much as the study's best, if all were equal


def noise(draws: int = 100_000, seed: int = 0) -> Noise:
    """What the range of five baseline runs says of the table, taking runs as normal and all models as equal."""
    sigma = BASELINE_RANGE / RANGE_OF_FIVE
    gaps = [gap for name, gap in differences().items() if name in STUDY_ROWS]
    runs = np.random.default_rng(seed).normal(scale=sigma, size=(draws, len(gaps) + 1))
    luck = float((runs[:, 1:].max(1) - runs[:, 0] >= max(gaps)).mean())
    pair = sigma * math.sqrt(2)
    return Noise(sigma, pair, 1.96 * pair, len(gaps), luck)


def beyond(noise: Noise) -> list[dict[str, str]]:
    """Rows: the printed differences to the baseline, and whether they exceed noise."""
    rows = []
    for name, gap in differences().items():
        verdicts = {f"beyond {limit:.2g} dB": yes(abs(gap) > limit) for limit in (NOISE, noise.two_sigma)}
        rows.append({"row": name, "less the baseline (dB)": f"{gap:+.2f}", **verdicts})
    return rows


def parts_apart(first: str, second: str) -> list[str]:
    """Parts (fields of `Variant`) in which two variants differ, start values of mixes and dead parameters aside."""
    a, b = variant(first), variant(second)
    return [part for part in _PARTS if getattr(a, part) != getattr(b, part)]


class Pair(NamedTuple):
    """Two printed rows whose models, as they ran, differ in one part; PSNR of the second less the first's in dB."""

    first: str
    second: str
    part: str
    gap: float

    def row(self) -> dict[str, str]:
        rows = f"{self.first} → {self.second}"
        return {"rows": rows, "part that differs": self.part, "difference (dB)": f"{self.gap:+.2f}"}


def one_part_apart() -> list[Pair]:
    """All such pairs."""
    pairs = []
    for (first, a), (second, b) in combinations(REPORTED.items(), 2):
        parts = parts_apart(a.ran, b.ran)
        if len(parts) == 1 and a.psnr is not None and b.psnr is not None:
            pairs.append(Pair(first, second, parts[0], b.psnr - a.psnr))
    return pairs


class TwoPSNRs(NamedTuple):
    """One prediction in two conventions, dB."""

    name: str
    bands: Float[np.ndarray, " bands"]  # PSNR of every band, peak 1
    ours: float  # their mean, the study's PSNR
    pooled: float  # PSNR of the MSE over all bands, peak 1
    published: float  # the same with peak max(target), the published PSRT code's

    @property
    def gap(self) -> float:
        """Ours less the published one: mean over bands instead of mean over errors, plus the peak."""
        return self.ours - self.published

    def row(self) -> dict[str, str]:
        return {
            "prediction": self.name,
            "study (dB)": f"{self.ours:.2f}",
            "published (dB)": f"{self.published:.2f}",
            "gap (dB)": f"{self.gap:.2f}",
            "by the mean over bands": f"{self.ours - self.pooled:.2f}",
            "by the peak": f"{self.pooled - self.published:.2f}",
        }


def two_psnrs(name: str, prediction: Float[Tensor, "bands h w"], target: Float[Tensor, "bands h w"]) -> TwoPSNRs:
    """Measure one prediction in both conventions."""
    bands = psnr(prediction[:, None], target[:, None])
    everything = rearrange(prediction, "b h w -> 1 1 b (h w)"), rearrange(target, "b h w -> 1 1 b (h w)")
    pair = prediction[None], target[None]
    values = (metric.item() for metric in (psnr(*pair), psnr(*everything), psnr_published(*pair)))
    return TwoPSNRs(name, bands.numpy(), *values)


def uneven_pair(size: int = 32) -> tuple[Tensor, Tensor]:
    """A made-up prediction and target of 31 bands, `bands h w`: values up to 0.5, errors of 0.001 to 0.03 by band."""
    with seeded(0):
        target = 0.5 * torch.rand(31, size, size, dtype=torch.float64)
        error = torch.randn(31, size, size, dtype=torch.float64)
    return target + torch.logspace(-3, math.log10(0.03), 31, dtype=torch.float64)[:, None, None] * error, target
