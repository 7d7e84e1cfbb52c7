"""The table of variants against the counts of the study and of its audit."""

import pytest
import torch

import ka
from ka.models.counts import deployed
from ka.models.variants import VARIANTS, Variant, variant

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
    "kav24": KERNEL + 2 * C * C + C * C + C,
}  # fmt: skip
LIVE |= {name: BACKBONE + 18 * layer for name, layer in OURS.items()}
FRONT = 34 * 32 * 9 + 32 + 32 * 32 * 9 + 32 + 32 * 8 * 9 + 8 + 14 * 31  # three convolutions, 14 kernels to fall back on
WIDE = 34 * 64 * 9 + 64 + 64 * 64 * 9 + 64 + 64 * 16 * 9 + 16 + 22 * 31
BANK = 8 * 14 * 31 + 14 * 32 * 9 + 32 + 32 * 32 + 32 + 32 * 8 + 8  # eight kernels, and what weighs them
ENDS, BLOCK = 65 * 96 * 9 + 96 + 96 * 31 * 9 + 31, 2 * (96 * 96 * 9 + 96)  # of a lean body, 96 channels wide
ADAPTIVE = {
    "kav20": FRONT + 14 + ENDS + 4 * BLOCK, "kav20_wide": WIDE + 22 + ENDS + 4 * BLOCK,
    "kav20_image": FRONT + 14 + ENDS + 4 * BLOCK, "kav20_fixed": FRONT + ENDS + 4 * BLOCK,
    "residual": ENDS + 5 * BLOCK, "kav21": FRONT + 14, "kav22": FRONT + 14 + BACKBONE + 18 * (KERNEL + C),
}  # fmt: skip
LADDER = ("kav23", "kav23_window", "kav23_quadrant", "kav23_image")
ADAPTIVE |= dict.fromkeys(LADDER, FRONT + BANK + ENDS + 4 * BLOCK)
LIKENESS = 8 * 14  # beside a width
MIX = 6 * 14 * 31 + (14 * 9 + 1) * 32 + (32 + 1) * 32 + (32 + 1) * 6  # six kernels, and their weights
ADAPTIVE |= {
    "kav25": FRONT + 14 + LIKENESS + 1, "kav25_near": FRONT + 14 + 1, "kav26": FRONT + 14 + LIKENESS + 1 + MIX,
    "kav26_box": FRONT + 14 + MIX,
    "kav26_wide": WIDE + 22 + 8 * 22 + 1 + 6 * 22 * 31 + (22 * 9 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 6,
}  # fmt: skip
LIVE |= ADAPTIVE
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
DEPLOYED = {
    "kav5": IMAGE, "kav6": IMAGE + 24, "kav7": IMAGE + 24, "kav8": IMAGE + 24, "kav10": IMAGE + 24,
    "kav11": IMAGE + 24, "kav12": IMAGE + 24, "kav13": IMAGE + 24, "kav16": IMAGE + 24, "kav19": IMAGE + 24,
    "kav3": 4 * IMAGE, "kav4": 5 * IMAGE + 24, "kav5_as_run": 0, "kav1": 20_328, "conv3x3": IMAGE + 24,
    "conv5x5": LARGE + 24, "kav10_5x5": LARGE + 24, "kav11_no_ln": IMAGE + 24, "kav10_both_sa": IMAGE + 24,
    "kav6_global_after": IMAGE + 24, "kav1_outer": 7_128,
}  # fmt: skip


def test_the_table_holds_every_model() -> None:
    assert set(VARIANTS) == set(LIVE)


def test_rows_of_our_own_are_those_that_no_report_has() -> None:
    assert {name for name, row in VARIANTS.items() if row.ours} == set(OURS) | set(ADAPTIVE)
    assert list(OURS.values()) == [
        5_208, 14_424, 25_968, 23_064, 29_568, 29_568, 7_128, 5_928, 25_464, 25_464, 62_328, 30_264, 29_568, 6_936
    ]  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters(name: str) -> None:
    """Live, as built and as counted; dead and reported, where the study prints them; deployed."""
    count = ka.parameter_count(name)
    assert count.live == LIVE[name]
    assert count.dead == (0 if VARIANTS[name].ours else DEAD.get(name, count.dead))
    assert count.reported == LIVE[name] + count.dead
    if name in REPORTED_MILLIONS:
        assert round(count.reported / 1e6, 3) == REPORTED_MILLIONS[name]
    assert count.deployed == BACKBONE + 18 * DEPLOYED[name] if name in DEPLOYED else count.deployed <= count.live


def test_a_count_is_of_the_model_that_is_built() -> None:
    for name in ("psrt", "kav1", "kav4", "kav17", "conv5x5"):
        model, count = ka.build(name, 4, 2, 16), ka.parameter_count(name, 4, 2, 16)
        assert count.live == ka.count_parameters(model), name
        assert count.deployed == ka.count_parameters(deployed(model)), name


def test_counting_draws_no_random_number() -> None:
    before = torch.random.get_rng_state()
    for name in ("kav1", "kav11", "kav17"):
        ka.parameter_count(name)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_psrt_widths() -> None:
    for dim, live, dead in ((32, 247_455, 768), (48, 537_055, 1_152), (64, 937_247, 1_536)):
        for name in ("psrt", "psrt_misaligned", "psrt_noshuffle"):
            count = ka.parameter_count(name, dim=dim)
            assert (count.live, count.dead) == (live, dead), (name, dim)


def test_where_tiles_are_not_exact() -> None:
    assert "multiple of 16" in variant("psrt").position_bound(16, 408)
    assert "multiple of 16" in variant("psrt").position_bound(24, 32)
    assert variant("psrt").position_bound(512, 512) == variant("psrt").position_bound(29, 48) == ""
    bound = {
        "psrt_misaligned": "whole image", "kav17": "pooled", "kav2": "quadrants", "kav24": "regressed on quadrants",
        "kav20_image": "regressed on the whole image", "kav23_quadrant": "weighed by quadrants",
        "kav23_image": "weighed by the whole image",
    }  # fmt: skip
    for name, why in bound.items():
        assert why in variant(name).position_bound(512, 512)
    for name in ("psrt_noshuffle", "kav5_as_run", "kav11", "conv3x3", "kav20", "kav23", "kav23_window", "kav26"):
        assert variant(name).position_bound(16, 408) == ""


def test_a_misspelt_variant_is_told_the_nearest() -> None:
    for name, near in (("KAv1", "kav1"), ("kav_11", "kav11"), ("PSRT", "psrt"), ("psrt_noshufle", "psrt_noshuffle")):
        with pytest.raises(ka.KAError, match=f"variant '{name}' is unknown; did you mean '{near}'\\? choose one of"):
            ka.build(name)
    for name in ("", "../kav1", None, 7, ["kav1"]):
        with pytest.raises(ka.KAError, match=r"variant .* is unknown; .*kav1, kav2.*kav19"):
            ka.build(name)  # type: ignore[arg-type]


LEARNED, POOLED, SINGLE = {"kernels": "learned"}, {"kernels": "pooled", "widen": "linear"}, {"n_windows": 1}
REFUSED = {
    "choose one of": [
        {"kernels": "learnt"}, {"sa_among": "rows", "sa": "windows"}, {"linear": ("fuson",)}, {"dead": ("typo",)},
        {"linear": "fusion"},
    ],
    "leaves nothing for": [
        {"kernels": "", **part} for part in (
            {"sa": "windows"}, {"se": "shared"}, {"activation": True}, {"second": "global"}, {"normal_init": True},
            {"size": 5}, {"layernorm": False}, {"n_windows": 1}, {"bias": True}, {"global_from": "raw"},
            {"global_bias": False}, {"widen": "linear"}, {"linear": ("fusion",)}, {"dead": ("norm",)},
        )
    ] + [{"kernels": "identity", **part} for part in ({"activation": True}, {"sa": "windows"}, {"size": 5})],
    "as many windows": [LEARNED | {"n_windows": 2}],
    "odd number": [LEARNED | {"size": size} for size in (4, 0, -3, 3.0, "3")],
    "a single window kernel": [
        LEARNED | SINGLE | part
        for part in ({"sa": "windows"}, {"se": "shared"}, {"global_from": "raw"}, {"second": "windows"})
    ] + [POOLED | SINGLE, {"kernels": "reweighted"} | SINGLE],
    "has a bias": [LEARNED | {"bias": True}],
    "start from `normal_init`": [POOLED | {"normal_init": True}, {"kernels": "regressed", "normal_init": True}],
    "`sa_among`": [LEARNED | {"sa_among": "channels"}],
    "need `widen`": [LEARNED | {"widen": "outer"}, {"kernels": "pooled"}],
    "need `global_from`": [
        LEARNED | part for part in (
            {"sa": "windows+global"}, {"sa": "scrambled"}, {"global_se": "own"}, {"global_bias": False},
            {"linear": ("global",)},
        )
    ],
    "share": [
        LEARNED | {"global_from": "raw", "global_se": "shared"} | part for part in ({}, {"se": "per window"})
    ],
    "`second` needs": [LEARNED | {"second": second} for second in ("global", "windows+image")],
    "is not defined": [POOLED | {"global_from": "raw"}],
    "made after SA": [LEARNED | {"global_from": "attended"}],
    "throw the global kernel away": [LEARNED | {"second": "windows", "global_from": "raw"}],
    "of window kernels away": [
        LEARNED | {"second": "global", "global_from": "raw"} | part for part in ({"se": "shared"}, {"sa": "windows"})
    ],
    "no fusion": [LEARNED | {"second": "windows", "linear": ("fusion",)}],
    "nothing dead": [LEARNED | {"ours": True, "dead": ("norm",)}],
    "parts of PSRT's body": [LEARNED | {"body": "residual"}, {"shuffle": "aligned", "body": "", "front": "window"}],
    "neither a front nor a body": [{"body": ""}],
    "only a front": [{"features": 4}, {"hidden": 64}, {"body": "residual", "features": 4}],
    "come from a bank": [{"front": "pixel"}, {"front": "quadrant"}, {"front": "pixel", "bank": 8}],
    "no `bank` that it `mixes`": [{"front": "window", "mixes": True}, {"mixes": True}],
    "only kernels regressed in windows attend": [
        {"front": "image", "attends": "near"}, {"attends": "alike"},
        {"front": "window", "attends": "alike", "bank": 8, "mixes": True},
    ],
    "cannot weigh a `bank`": [{"bank": 8}, {"front": "nothing", "bank": 8}],
    "`bank` is a whole number": [{"front": "pixel", "mixes": True, "bank": bank} for bank in (-1, 2.0, "8", True)],
    "only a residual body": [{"blocks": 5}, {"front": "window", "body": "", "blocks": 5}],
    "of 1 or more": [
        {"front": "window", name: value} for name in ("features", "hidden") for value in (0, -1, 2.0, "8")
    ] + [{"body": "residual", "blocks": 0}],
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_a_row_that_means_nothing_is_refused(why: str) -> None:
    for row in REFUSED[why]:
        with pytest.raises(ka.KAError, match=f"^variant mine: .*({why})") as error:
            Variant("mine", **row)  # type: ignore[arg-type]
        assert "\n" not in str(error.value), row
