"""The audit's points: each claim, and controls where its effect must be absent."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ka import data
from ka.errors import KAError
from ka.models.variants import variant
from workbook.audit import adaptivity, kept_weights, layers, shuffle, table, trials
from workbook.audit import audit_figures as draw
from workbook.audit.kept_weights import called_best, running_mean
from workbook.audit.trials import EXACT
from workbook.results.study import KAV6_EPOCHS, REPORTED
from workbook.style import png
from workbook.training.config import Config
from workbook.training.scenes import load_data

# 1. Shuffle


def by_hand(size: int, window: int, row: int) -> int:
    """The row that `shuffle` brings to `row`: even rows of cells (half a window high) first, then the odd ones."""
    d = window // 2
    cells = list(range(0, size // d, 2)) + list(range(1, size // d, 2))
    return cells[row // d] * d + row % d


@pytest.mark.parametrize("name", ["psrt", "psrt_noshuffle", "kav11"])
def test_outputs_of_other_models_stay_in_place(name: str) -> None:
    found = shuffle.placements(name, size=16)
    assert [(one.window, one.layer) for one in found] == [(w, f"L{i}") for w in (8, 4, 2) for i in (1, 2, 3)]
    assert all(one.share == 0 and (one.distance == 0).all() for one in found)


def test_misaligned_outputs_land_where_the_shuffle_puts_them() -> None:
    for one in shuffle.placements("psrt_misaligned", size=32):
        rows, columns = one.shift
        if one.layer == "L1":
            assert one.share == 0
            continue
        np.testing.assert_array_equal(one.shift, shuffle.map_shift(one.window, 32, back=one.layer == "L3"))
        if one.layer == "L2":
            for r, c in ((0, 0), (5, 17), (16, 30), (31, 31)):
                assert (rows[r, c], columns[r, c]) == (r - by_hand(32, one.window, r), c - by_hand(32, one.window, c))


@pytest.mark.parametrize("window", [8, 4, 2])
def test_only_four_cells_stay_and_the_shift_grows_with_the_image(window: int) -> None:
    for size in (64, 256):
        one = shuffle.Placement("", window, "L2", shuffle.map_shift(window, size))
        cells = (size // (window // 2)) ** 2
        assert one.share == pytest.approx(1 - 4 / cells)
        # Cell i of a half comes from cell 2i (or 2i + 1): it moves by 0, 1, … cells, up to half the map but one.
        assert np.abs(one.shift).mean() == pytest.approx((size / 2 - window / 2) / 2)


def test_a_touched_pixel_is_answered_elsewhere() -> None:
    aligned, misaligned, plain = shuffle.responses(["psrt", "psrt_misaligned", "psrt_noshuffle"], 4, 32, (9, 22))
    assert (aligned.itself, misaligned.itself, plain.itself) == (True, False, True)
    assert aligned.changed == misaligned.changed == plain.changed == 16  # the pixels of one window
    off = []  # the pixel asks from where the shuffle brings it; the answers are added to that place's window
    for place in (9, 22):
        first = [by_hand(32, 4, row) for row in range(32)].index(place) // 4 * 4
        off.append(min(abs(place - row) for row in range(first, first + 4)))
    assert misaligned.nearest == pytest.approx(math.hypot(*off))
    assert aligned.nearest == plain.nearest == 0


def test_what_is_added_matches_the_shortcut_unless_misaligned() -> None:
    """Four small copies are added: in psrt to four small copies, in psrt_misaligned to one image."""
    scene = data.load("indian_pines", "val")[0].load()
    copies = {}
    for name in ("psrt", "psrt_misaligned", "psrt_noshuffle"):
        for which, found in zip(("shortcut", "added"), shuffle.added(name, scene, dim=8), strict=True):
            w = found.shape[1]
            left, right = found[2:-2, 2 : w // 2 - 2].ravel(), found[2:-2, w // 2 + 2 : -2].ravel()
            copies[name, which] = np.corrcoef(left, right)[0, 1]
    alike = {key: value > 0.8 for key, value in copies.items()}
    assert alike == {
        ("psrt", "shortcut"): True,
        ("psrt", "added"): True,
        ("psrt_misaligned", "shortcut"): False,
        ("psrt_misaligned", "added"): True,
        ("psrt_noshuffle", "shortcut"): False,
        ("psrt_noshuffle", "added"): False,
    }


# 2. KAv2


@pytest.mark.parametrize("seed", [0, 1])
def test_kav2_is_kav3_with_one_se(seed: int) -> None:
    found = layers.kav2_is_kav3(c=8, size=16, seed=seed)
    assert found.reshapes < EXACT
    assert found.tied < EXACT
    assert found.untied > 1e-2


# 3. KAv5


def test_kav5_as_it_ran_trains_nothing() -> None:
    (described, study, ours), difference = layers.kav5_gradients()
    assert (described.unreached, ours.unreached) == (0, 0)
    assert study.per_layer == 32_784
    assert study.unreached == 18 * 32_784 == study.parameters - ours.parameters
    assert study.parameters + 1_152 == 1_002_175  # and the spare norms of the SaR blocks
    assert difference == 0


# 4. KAv8


def test_the_traded_axes_followed_by_a_loop() -> None:
    c, m = 8, 5
    filters = [(k, o) for o in range(c) for k in range(m)]  # joined per output channel, then read the other way round
    expected = [[[*filters[slot * c + s], tap] for slot in range(m) for tap in range(9)] for s in range(c)]
    np.testing.assert_array_equal(layers.token_sets("kav8_as_run", c), expected)


@pytest.mark.parametrize("name", ["kav8", "kav6"])
def test_described_sets_hold_one_output_each(name: str) -> None:
    found = layers.mixing(name, layers.token_sets(name))
    assert found.foreign == 0
    assert found.whole


def test_the_global_filter_never_meets_its_own() -> None:
    described, ran = (layers.mixing(name, layers.token_sets(name)) for name in ("kav8", "kav8_as_run"))
    assert (described.together, ran.together) == (1, 0)
    own = sum((slot * 24 + s) // 5 == s for s in range(24) for slot in range(5))
    assert ran.foreign == pytest.approx(1 - own / 120)
    assert ran.whole


def test_without_sa_there_are_no_sets() -> None:
    with pytest.raises(KAError, match="kav11 has no self-attention"):
        layers.token_sets("kav11")


@pytest.mark.parametrize("seed", [0, 1])
def test_kav8_differs_by_its_global_kernel_alone(seed: int) -> None:
    found = layers.kav8_differs(c=8, size=16, seed=seed)
    assert found.same_weights > 1e-2
    assert found.renamed > 1e-2
    assert found.renamed_without_global < EXACT


# 5. KAv9


def test_kav9_has_rank_4() -> None:
    kav1, kav9, ran = layers.branches(["kav1", "kav9", "kav9_as_run"])
    assert (kav1.rank, kav9.rank, ran.rank) == (96, 4, 4)
    assert kav9.spread < EXACT < kav1.spread
    assert f"{kav9.params / 1e6:.3f} {ran.params / 1e6:.3f}" == "0.520 0.519"
    assert REPORTED["kav9"].params == 0.519


# 6. Adaptivity, seam


def test_what_adapts() -> None:
    found = {one.variant: one for one in adaptivity.adaptivity(adaptivity.ka_variants(), c=8)}
    assert {name for name, one in found.items() if one.adaptive} == {"kav1", "kav9", "kav9_as_run", "kav17", "kav18"}
    fixed = {f"kav{i}" for i in (2, 3, 4, 5, 6, 7, 8, 10, 11)}
    assert fixed <= {name for name, one in found.items() if one.additive and one.moves == 0}
    assert not found["kav13"].adaptive  # fixed kernels,
    assert not found["kav13"].additive  # but a GELU
    assert not any(one.additive for one in found.values() if one.adaptive)
    assert len(found) == 19


def test_the_audit_is_of_the_study() -> None:
    assert not any(variant(name).ours for name in adaptivity.ka_variants())
    assert table.parts_apart("kav6", "kav6_global_apart") == ["sa"]
    assert table.parts_apart("kav11", "kav11_no_ln") == ["layernorm"]
    assert layers.token_sets("kav10_5x5", 8).shape == (8, 100, 3)
    with pytest.raises(KAError, match="kav10_channel_sa has no self-attention over kernel taps"):
        layers.token_sets("kav10_channel_sa", 8)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seam_is_where_kernels_belong_to_quadrants(seed: int) -> None:
    names = ["kav2", "kav3", "kav4", "kav7", "kav11"]
    found, finer = ({one.variant: one for one in adaptivity.seams(names, size=size, seed=seed)} for size in (32, 64))
    for name in ("kav2", "kav3"):  # the finer the image, the flatter, but not at the seam
        assert finer[name].ratio > max(4, 1.7 * found[name].ratio)
    assert max(finer[name].ratio for name in ("kav7", "kav11")) < 2
    for name, one in found.items():  # a constant image: flat within a quadrant, and flat as a whole without a seam
        inner = one.constant[1:-1, 1:-1]
        assert np.ptp(one.constant[2:14, 2:14]) < 1e-9
        assert (np.ptp(inner) < 1e-9) == (name in ("kav7", "kav11"))


def test_a_quadrant_is_another_at_test() -> None:
    found = {one.variant: one for one in adaptivity.patch_and_whole(["kav2", "kav3", "kav7", "kav11"], patch=16, c=8)}
    assert [found[name].share for name in ("kav2", "kav3", "kav7", "kav11")] == [0.25, 0.25, 1, 1]
    assert found["kav11"].difference[15, 5] > 1e-3  # next to a patch's border they differ: zero padding


def test_every_kernel_meets_the_same_content() -> None:
    met = adaptivity.kernels_met(size=128, patch=64, stride=32)
    plain = np.zeros((4, 128, 128), dtype=int)
    for top in (0, 32):
        for left in (0, 32):
            for m in range(4):
                y, x = top + 32 * (m // 2), left + 32 * (m % 2)
                plain[m, y : y + 32, x : x + 32] += 1
    np.testing.assert_array_equal(met, plain)
    assert (met[:, 32:64, 32:64] == 1).all()
    assert (adaptivity.kernels_met() == 1).all(0).mean() == pytest.approx((416 / 512) ** 2)


# 7. Dead parameters


def test_every_printed_count_is_met() -> None:
    counts = {(one.name, one.dim): one for one in table.counted()}
    assert all(one.met for one in counts.values())
    assert len(counts) == 13 + 2
    assert counts["kav5", 48].dead == 591_264
    assert counts["kav10", 48].dead == 24_480
    assert not table.Counted("kav11", "kav11", 48, 878_335, 0, 0.881).met  # without the dead ones it is not


# 8. Selection


def test_running_mean_and_the_rule() -> None:
    losses = [4.0, 2.0, 3.0, 1.0, 2.5, 2.4]
    np.testing.assert_allclose(running_mean(losses), [4, 3, 3, 2.5, 2.5, 14.9 / 6])
    np.testing.assert_allclose(running_mean(losses, 3), [4, 3, 3, 1, 1.75, 5.9 / 3])
    assert called_best(losses).tolist() == [True, True, False, True, False, True]


def test_a_spike_below_the_mean_is_best() -> None:
    """Losses fall to a tenth, then one is five times as large: still "best", though validation fell by 8 dB."""
    losses = [1.0] * 10 + [0.1] * 9 + [0.5]
    history = [{"step": i, "loss": loss, "psnr": 40.0, "psnr_average": 41.0} for i, loss in enumerate(losses)]
    history[-1]["psnr"] = 32.0
    found = kept_weights.selection(history)
    assert found.called_best == 1
    assert (found.below, found.fall, found.fall_average) == (8, 8, 0)
    assert found.tolerance == pytest.approx(np.mean(losses) / np.mean(losses[-5:]))
    history[-1]["loss"] = 0.7  # above the mean of all: no longer
    assert kept_weights.selection(history).below == 0


def test_rules_that_keep_weights() -> None:
    """Losses fall all the time, so the rule calls the last weights best, though validation fell."""
    psnr = [30.0, 40.0, 41.0, 43.0, 42.0, 35.0]
    history = [{"loss": 1 / (i + 1), "psnr": p, "psnr_average": 40 + i / 10, "step": i} for i, p in enumerate(psnr)]
    found = kept_weights.kept(history)
    assert (found.last, found.running_mean, found.validated, found.average) == (35.0, 35.0, 43.0, 40.5)
    assert found.step == pytest.approx(np.sqrt((1 + 49) / 2))
    assert found.step_average == pytest.approx(0.1)
    with pytest.raises(KAError, match="at least 4"):
        kept_weights.kept(history[:3])


def test_a_small_training_is_measured() -> None:
    config = Config.preset("smoke", variant="kav6", iterations=4, eval_size=16, device="cpu")
    scenes = load_data(config)
    history = kept_weights.constant_rate(config, scenes, every=2)
    assert [note["step"] for note in history] == [2, 4]
    assert all(math.isfinite(note[key]) for note in history for key in ("loss", "psnr", "psnr_average"))
    assert history == kept_weights.constant_rate(config, scenes, every=2)
    assert len(png(draw.selection(history))) > 1000
    with pytest.raises(KAError, match="give iterations"):
        kept_weights.constant_rate(Config.preset("smoke", epochs=1), scenes)


def test_weights_that_do_not_fit_are_refused() -> None:
    said = kept_weights.refusals()
    assert list(said) == ["no file", "a weight is missing", "weights of another variant"]
    assert "does not exist" in said["no file"]
    assert "missing blocks.0.0.layers.0.ka.fusion.weight" in said["a weight is missing"]


def test_random_weights_score_below_bicubic() -> None:
    bicubic, network = kept_weights.untrained(data.load("indian_pines", "val"), dim=8)
    assert network < bicubic - 1


# 9. Noise


def test_differences_and_noise() -> None:
    gaps = table.differences()
    assert gaps["kav11"] == pytest.approx(50.8749442 - 50.4692293)
    assert not {"psrt_noshuffle", "kav10"} & set(gaps)
    found = table.noise(draws=20_000)
    assert found.sigma == pytest.approx(0.142, abs=1e-3)
    assert found.two_sigma == pytest.approx(1.96 * 2**0.5 * found.sigma)
    assert found.rows == 11
    phi = torch.distributions.Normal(0, found.sigma)  # the same chance by integration over the baseline's error
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    exact = torch.trapezoid(phi.log_prob(x).exp() * (1 - phi.cdf(x + gaps["kav11"]) ** 11), x).item()
    assert found.luck == pytest.approx(exact, abs=0.01)


def test_the_range_of_five_normal_numbers() -> None:
    ranges = np.ptp(np.random.default_rng(0).normal(size=(200_000, 5)), axis=1)
    assert ranges.mean() == pytest.approx(table.RANGE_OF_FIVE, abs=0.01)


def test_epochs_are_the_rows() -> None:
    assert REPORTED["kav6"].psnr == pytest.approx(KAV6_EPOCHS[2000], abs=0.005)


def test_pairs_that_differ_in_one_part() -> None:
    pairs = {(one, other): part for one, other, part, _ in table.one_part_apart()}
    assert pairs["kav2", "kav3"] == "se"
    assert pairs["kav2", "kav7"] == "second"
    assert pairs["kav17", "kav18"] == "global_from"
    assert ("kav7", "kav11") not in pairs  # SA, SE and the global kernel
    assert table.parts_apart("kav7", "kav11") == ["sa", "se", "global_from"]
    study = {pair: part for pair, part in pairs.items() if set(pair) <= set(table.STUDY_ROWS)}
    assert "global_from" not in study.values()


# 10. PSNR


def test_two_psnrs_by_hand() -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.float64)
    target[0, 0, 0] = 0.5
    prediction = target + torch.tensor([0.1, 0.01], dtype=torch.float64)[:, None, None]
    found = table.two_psnrs("", prediction, target)
    np.testing.assert_allclose(found.bands, [20, 40])
    assert found.ours == pytest.approx(30)
    assert found.pooled == pytest.approx(10 * math.log10(1 / 0.00505))
    assert found.published == pytest.approx(10 * math.log10(0.25 / 0.00505))
    assert found.gap == pytest.approx(found.ours - found.published)


def test_equal_bands_and_peak_1_leave_no_gap() -> None:
    target = torch.zeros(3, 4, 4, dtype=torch.float64)
    target[0, 0, 0] = 1.0
    assert table.two_psnrs("", target + 0.1, target).gap == pytest.approx(0)


# All


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    shuffle.placements("psrt", size=16)
    layers.kav2_is_kav3(c=8, size=8)
    layers.branches(["kav9"], c=8, size=8)
    table.uneven_pair(size=8)
    layers.token_sets("kav8", 8)
    kept_weights.refusals()
    assert torch.equal(torch.get_rng_state(), before)


def test_random_layers_differ_by_seed_only() -> None:
    one, same, other = (trials.random_layer("kav11", 8, seed) for seed in (0, 0, 1))
    x = trials.random_maps(8, 8)
    assert torch.equal(one(x), same(x))
    assert not torch.equal(one(x), other(x))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: draw.placements(shuffle.placements("psrt_misaligned", 16)[1::3]),
        lambda: draw.added({"psrt": (np.eye(16), np.ones((16, 16)))}),
        lambda: draw.token_sets({name: layers.token_sets(name, 8) for name in ("kav8", "kav8_as_run")}),
        lambda: draw.singular(layers.branches(["kav1", "kav9"], c=8, size=16)),
        lambda: draw.adaptivity(adaptivity.adaptivity(["kav1", "kav11"], c=8)),
        lambda: draw.seams(adaptivity.seams(["kav3", "kav11"], c=8, size=32), ["kav3"]),
        lambda: draw.agreement(
            adaptivity.patch_and_whole(["kav3"], patch=16, patches=2, c=8), adaptivity.kernels_met(128)
        ),
        lambda: draw.differences(table.differences(), table.noise(100)),
        lambda: draw.two_psnrs([table.two_psnrs("made up", *table.uneven_pair(size=8))]),
    ],
)
def test_figures_are_drawn(draw: Callable[[], Figure]) -> None:
    assert len(png(draw())) > 1000
