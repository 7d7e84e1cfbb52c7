"""The study's printed table as data, and which of our models each of its rows ran.

Sources: 基于PSRT的窗口自适应改进 (2023) for psrt … kav11; the same authors' later report for kav12 … kav19. Every
row is embed_dim 48 on CAVE ×4, one seed, the mean over the 11 test scenes, whole (512×512).

Metric convention: the study's PSNR is the mean over bands of each band's PSNR with peak 1, which is ours
(`ka.metrics.psnr`). The published PSRT code prints another number, one PSNR of the MSE over all bands with peak
max(GT) (`ka.metrics.psnr_published`); it cannot be compared with this table. SAM is in degrees. One model moved by
0.17 dB between neighbouring epochs and five runs of the baseline span 0.33 dB, so differences of 0.2 dB in this
table show nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """One printed row; None where nothing was printed.

    Attributes:
        psnr: mean over scenes, dB.
        sam: mean over scenes, degrees.
        ergas: mean over scenes.
        params: millions of parameters, the dead ones included.
        note: what the report, or an audit of its code, says of the row.
        ran: the key of `ka.VARIANTS` that computes what the row's code computed.
    """

    psnr: float | None
    sam: float | None
    ergas: float | None
    params: float | None
    note: str
    ran: str


#: Printed PSNR of KAv6 by epoch, dB. The table's row is the last.
KAV6_EPOCHS = {1500: 50.24, 1998: 50.43, 1999: 50.26, 2000: 40.02}
#: Range of the PSNR of five runs of the baseline, dB.
BASELINE_RANGE = 0.33
#: Counts that the study prints for PSRT at other widths, in millions.
OTHER_WIDTHS = {32: 0.248, 64: 0.939}

#: The study's name of a row (without PSRT_ and _noshuffle) → what it printed, in its order.
REPORTED: Mapping[str, Reported] = {
    "psrt": Reported(50.0313946, 2.2407495, 2.4452974, 0.538, "its shuffle was misaligned", "psrt_misaligned"),
    "psrt_noshuffle": Reported(50.4692293, 2.1245276, 2.2309420, 0.538, "baseline", "psrt_noshuffle"),
    "kav1": Reported(50.7237681, 2.2294778, 1.3029419, 0.779, "pooled kernels", "kav1"),
    "kav2": Reported(49.6950313, 2.2752936, 2.0677896, 0.854, "called a code error, which it is not", "kav2"),
    "kav3": Reported(50.1445174, 2.2756061, 1.7408064, 0.918, "second convolution on windows", "kav3"),
    "kav4": Reported(50.2209833, 2.1899021, 2.3440072, 1.002, "second convolution on windows", "kav4"),
    "kav5": Reported(50.5076604, 2.1078129, 2.2032974, 1.002, "its KA layer returned its input", "kav5_as_run"),
    "kav6": Reported(
        40.0239899, 4.7182505, 3.9199647, 1.054, "epoch 2000; 50.26 dB at 1999, 50.43 at 1998, 50.24 at 1500", "kav6"
    ),
    "kav7": Reported(50.4642246, 2.1232879, 2.1154806, 0.894, "no global kernel", "kav7"),
    "kav8": Reported(50.3579216, 2.1751094, 2.4212308, 0.946, "its code traded two axes before SA", "kav8_as_run"),
    "kav9": Reported(50.0673282, 2.2132997, 3.2366958, 0.519, "ran without its per-channel linear", "kav9_as_run"),
    "kav10": Reported(None, None, None, 0.894, "no result printed", "kav10"),
    "kav11": Reported(50.8749442, 2.1693590, 1.4011621, 0.881, "the study's best", "kav11"),
    "kav12": Reported(50.651, 2.374, 1.247, None, "later report", "kav12"),
    "kav13": Reported(50.161, 2.194, 2.434, None, "later report", "kav13"),
    "kav16": Reported(50.451, 2.327, 1.245, None, "later report", "kav16"),
    "kav17": Reported(51.014, 2.185, 1.266, None, "later report; its best PSRT variant", "kav17"),
    "kav18": Reported(50.272, 2.383, 1.360, None, "later report", "kav18"),
    "kav19": Reported(49.679, 2.544, 1.327, None, "later report", "kav19"),
}


def printed_for(variant: str) -> Reported | None:
    """The printed row that ran this variant of ours (a key of `ka.VARIANTS`), None if no row did."""
    return next((row for row in REPORTED.values() if row.ran == variant), None)
