"""The study's printed table (`study.json`), and which of our models each of its rows ran.

Sources: 基于PSRT的窗口自适应改进 (2023) for psrt … kav11; the same authors' later report for kav12 … kav19. Every
row is embed_dim 48 on CAVE ×4, one seed, the mean over the 11 test scenes, whole (512×512).

Metric convention: the study's PSNR is the mean over bands of each band's PSNR with peak 1, which is ours
(`ka.metrics.psnr`). The published PSRT code prints another number, one PSNR of the MSE over all bands with peak
max(GT) (`ka.metrics.psnr_published`); it cannot be compared with this table. SAM is in degrees. One model moved by
0.17 dB between neighbouring epochs and five runs of the baseline span 0.33 dB, so differences of 0.2 dB in this
table show nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True)
class Reported:
    """One printed row; None where nothing was printed."""

    psnr: float | None  # mean over scenes, dB
    sam: float | None  # mean over scenes, degrees
    ergas: float | None  # mean over scenes
    params: float | None  # millions of parameters, the dead ones included
    note: str  # what the report, or an audit of its code, says of the row
    ran: str  # the key of `ka.VARIANTS` that computes what the row's code computed


BASELINE = "psrt_noshuffle"  # what variants are compared with: PSRT without its shuffle
CONTROL = "conv3x3"  # … and where that was not run, PSRT with one ordinary convolution
KAV6_EPOCHS = {1500: 50.24, 1998: 50.43, 1999: 50.26, 2000: 40.02}  # printed PSNR of KAv6, dB; the row is the last
BASELINE_RANGE = 0.33  # of the PSNR of five runs of the baseline, dB
OTHER_WIDTHS = {32: 0.248, 64: 0.939}  # counts that the study prints for PSRT at other widths, in millions

#: The study's name of a row (without PSRT_ and _noshuffle) → what it printed, in its order.
REPORTED: Mapping[str, Reported] = msgspec.json.decode(
    Path(__file__).with_name("study.json").read_bytes(), type=dict[str, Reported]
)


def baseline_of(variants: Collection[str]) -> str | None:
    """What rows are compared with where these were run; None where there is nothing."""
    return next((name for name in (BASELINE, CONTROL) if name in variants), None)


def printed_for(variant: str) -> Reported | None:
    """The printed row that ran this variant of ours (a key of `ka.VARIANTS`), None if no row did."""
    return next((row for row in REPORTED.values() if row.ran == variant), None)
