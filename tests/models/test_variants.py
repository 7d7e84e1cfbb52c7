"""The table of variants against the counts of the study and of its audit."""

from dataclasses import replace

import pytest

import ka
from ka.models.variants import VARIANTS, variant

BACKBONE = 410_911
LIVE = {
    "psrt": 537_055, "psrt_misaligned": 537_055, "psrt_noshuffle": 537_055,
    "kav1": 776_815, "kav2": 848_959, "kav3": 913_759, "kav4": 998_431, "kav5": 847_663, "kav6": 943_135,
    "kav7": 890_863, "kav8": 942_703, "kav9": 518_479, "kav10": 869_263, "kav11": 878_335,
    "kav5_as_run": BACKBONE, "kav8_as_run": 942_703, "kav9_as_run": 518_479 - 18 * 48,
    "kav12": BACKBONE + 18 * 28_368, "kav13": BACKBONE + 18 * 26_664, "kav16": BACKBONE + 18 * 27_168,
    "kav17": BACKBONE + 18 * 26_216, "kav18": BACKBONE + 18 * 23_312, "kav19": BACKBONE + 18 * 23_064,
}  # fmt: skip
C = 24
KERNEL, LARGE = C * C * 9, C * C * 25  # one kernel of 3×3, of 5×5
GLOBAL, SA, SE = 4 * C * C + C, 4 * C * C + 4 * C, 2 * (C * C + C)
OF_FOUR, OF_FIVE = 4 * C * C + C, 5 * C * C + C  # fusions
OURS = {
    "conv3x3": KERNEL + C, "conv5x5": LARGE + C, "kav11_no_ln": 4 * KERNEL + GLOBAL + OF_FIVE,
    "kav11_no_global": 4 * KERNEL + OF_FOUR, "kav6_global_apart": 4 * KERNEL + GLOBAL + SA + SE + OF_FIVE,
    "kav6_global_after": 4 * KERNEL + GLOBAL + SA + SE + OF_FIVE, "kav1_outer": SA + SE + 2 * (C * C + C) + OF_FOUR,
    "kav1_depthwise": SA + SE + OF_FOUR, "kav10_channel_sa": 4 * KERNEL + SA + OF_FOUR,
    "kav10_both_sa": 4 * KERNEL + SA + OF_FOUR, "kav10_5x5": 4 * LARGE + SA + OF_FOUR,
    "kav7_se_each": 4 * KERNEL + SA + 4 * SE + OF_FOUR, "kav6_no_global_se": 4 * KERNEL + GLOBAL + SA + SE + OF_FIVE,
}  # fmt: skip
LIVE |= {name: BACKBONE + 18 * layer for name, layer in OURS.items()}
DEAD = {
    "psrt": 1_152, "kav1": 2_016, "kav2": 4_608, "kav3": 3_744, "kav4": 3_744, "kav5_as_run": 591_264,
    "kav6": 110_880, "kav7": 2_880, "kav8": 2_880, "kav9": 1_152, "kav10": 24_480, "kav11": 2_880,
}  # fmt: skip
REPORTED_MILLIONS = {
    "psrt_misaligned": 0.538, "psrt_noshuffle": 0.538, "kav1": 0.779, "kav2": 0.854, "kav3": 0.918, "kav4": 1.002,
    "kav5": 1.002, "kav5_as_run": 1.002, "kav6": 1.054, "kav7": 0.894, "kav8": 0.946, "kav9": 0.520,
    "kav9_as_run": 0.519, "kav10": 0.894, "kav11": 0.881,
}  # fmt: skip
IMAGE = 24 * 24 * 9  # one folded 3×3 kernel


def test_the_table_holds_every_model() -> None:
    assert set(VARIANTS) == set(LIVE)


def test_rows_of_our_own_are_those_that_no_report_has() -> None:
    assert {name for name, row in VARIANTS.items() if row.ours} == set(OURS)
    assert list(OURS.values()) == [
        5_208, 14_424, 25_968, 23_064, 29_568, 29_568, 7_128, 5_928, 25_464, 25_464, 62_328, 30_264, 29_568
    ]  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_rows_of_our_own_hold_nothing_dead(name: str) -> None:
    count = ka.parameter_count(name)
    assert (count.dead, count.reported) == (0, count.live)


@pytest.mark.parametrize("name", LIVE)
def test_live_parameters(name: str) -> None:
    assert ka.count_parameters(ka.build(name)) == LIVE[name]


@pytest.mark.parametrize(("dim", "live", "dead"), [(32, 247_455, 768), (48, 537_055, 1_152), (64, 937_247, 1_536)])
@pytest.mark.parametrize("name", ["psrt", "psrt_misaligned", "psrt_noshuffle"])
def test_psrt_widths(name: str, dim: int, live: int, dead: int) -> None:
    count = ka.parameter_count(name, dim=dim)
    assert (count.live, count.dead) == (live, dead)


@pytest.mark.parametrize("name", DEAD)
def test_dead_parameters(name: str) -> None:
    assert ka.parameter_count(name).dead == DEAD[name]


@pytest.mark.parametrize("name", REPORTED_MILLIONS)
def test_reported_parameters(name: str) -> None:
    assert round(ka.parameter_count(name).reported / 1e6, 3) == REPORTED_MILLIONS[name]


@pytest.mark.parametrize(
    ("name", "per_layer"),
    [
        ("kav5", IMAGE), ("kav6", IMAGE + 24), ("kav7", IMAGE + 24), ("kav8", IMAGE + 24), ("kav10", IMAGE + 24),
        ("kav11", IMAGE + 24), ("kav12", IMAGE + 24), ("kav13", IMAGE + 24), ("kav16", IMAGE + 24),
        ("kav19", IMAGE + 24), ("kav3", 4 * IMAGE), ("kav4", 5 * IMAGE + 24), ("kav5_as_run", 0), ("kav1", 20_328),
        ("conv3x3", IMAGE + 24), ("conv5x5", LARGE + 24), ("kav10_5x5", LARGE + 24), ("kav11_no_ln", IMAGE + 24),
        ("kav10_both_sa", IMAGE + 24), ("kav6_global_after", IMAGE + 24), ("kav1_outer", 7_128),
    ],
)  # fmt: skip
def test_deployed_parameters(name: str, per_layer: int) -> None:
    assert ka.parameter_count(name).deployed == BACKBONE + 18 * per_layer


@pytest.mark.parametrize("name", ["kav99", "", "../kav1", None, 7, ["kav1"]])
def test_unknown_variant_lists_the_known(name: object) -> None:
    with pytest.raises(ka.KAError, match=r"variant .* is unknown; .*kav1, kav2.*kav19"):
        ka.build(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"kernels": "learnt"}, {"widen": "linear"}, {"kernels": "pooled", "sa": "windows+global"},
        {"global_from": "attended"}, {"second": "global"}, {"global_se": "own"},
        {"second": "windows", "global_from": "raw"}, {"kernels": "pooled", "widen": "linear", "global_from": "raw"},
        {"n_windows": 2}, {"size": 4}, {"size": -3}, {"bias": True}, {"sa_among": "channels"}, {"sa_among": "rows"},
        {"widen": "outer"}, {"n_windows": 1, "sa": "windows"}, {"n_windows": 1, "se": "shared"},
        {"n_windows": 1, "global_from": "raw"}, {"n_windows": 1, "second": "windows"},
        {"n_windows": 1, "kernels": "pooled", "widen": "depthwise"}, {"n_windows": 1, "kernels": "reweighted"},
    ],
)  # fmt: skip
def test_a_row_that_means_nothing_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ka.KAError, match="variant mine"):
        replace(variant("kav19"), name="mine", **change)  # type: ignore[arg-type]
