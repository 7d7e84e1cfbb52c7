"""FLOPs against hand counts, and the committed measurement."""

import pytest
import torch

import ka
from ka.models import counts as costs
from ka.models.counts import flops
from workbook.paths import ROOT
from workbook.results import speed

SAME = [f"kav{number}" for number in (6, 7, 8, 10, 11, 12, 16, 19)]


def by_hand(dim: int, size: int, attended: int, conv: int) -> int:
    """2 per multiply-add: head and tail, 18 layers of projections and MLP, attention among w² pixels, convolutions.

    `attended` channels go through attention; `conv` is the multiply-adds per pixel of a KA branch.
    """
    ends = 9 * 34 * dim + 9 * dim * 31
    layer = attended * 3 * attended + attended * attended + dim * 4 * dim * 2 + conv
    scores = 6 * sum(2 * w * w * attended for w in (8, 4, 2))  # q·k and weights·v
    return 2 * size * size * (ends + 18 * layer + scores)


@pytest.mark.parametrize(
    ("name", "attended", "conv"),
    [
        ("psrt_noshuffle", 48, 0), ("psrt", 48, 0), ("kav5_as_run", 24, 0), ("kav11", 24, 9 * 24 * 24),
        ("kav3", 24, 9 * 24 * 24), ("kav4", 24, 2 * 9 * 24 * 24),
    ],
)  # fmt: skip
def test_deployed_flops_equal_the_hand_count(name: str, attended: int, conv: int) -> None:
    assert flops(name) == by_hand(48, 512, attended, conv)


def test_one_layer_of_attention_is_counted_whole() -> None:
    """Windows of 8×8 use fused attention, of 2×2 plain products: both are seen."""
    for window in (8, 2):
        with torch.device("meta"), torch.no_grad():
            layer = ka.models.psrt.WindowAttention(48, window, 8).requires_grad_(False)
            with costs.FlopCounterMode(display=False) as counter:
                layer(torch.empty(1, 16, 16, 48))
        assert counter.get_total_flops() == 2 * 256 * (48 * 144 + 48 * 48 + 2 * window**2 * 48)


def test_rows_of_our_own_deploy_to_one_convolution() -> None:
    names = ["kav11", "conv3x3", "kav11_no_ln", "kav11_no_global", "kav10_both_sa", "kav6_global_after", "kav7_se_each"]
    assert len({str(ka.build(name, dim=8).fold()) for name in names}) == 1


def test_larger_kernels_cost_what_they_should() -> None:
    assert flops("conv5x5") - flops("conv3x3") == 2 * 512**2 * 18 * (25 - 9) * 24 * 24


def test_eight_variants_deploy_to_the_same_computation() -> None:
    """As the notes of the results table say: the same modules, so the same cost."""
    texts = {str(ka.build(name, dim=8).fold()) for name in SAME}
    assert len(texts) == 1
    assert len({ka.parameter_count(name, dim=8).deployed for name in SAME}) == 1


def test_impossible_questions_are_refused() -> None:
    for arguments, message in (
        ({"name": "kav99"}, "variant 'kav99' is unknown"),
        ({"name": "kav1", "size": 4}, "at least 8"),
    ):
        with pytest.raises(ka.KAError, match=message):
            flops(**arguments)  # type: ignore[arg-type]


def test_the_committed_measurement_is_whole() -> None:
    """Every variant at full size, with FLOPs that today's code still counts."""
    path = ROOT / "results" / "bench.json"
    stored = speed.read(path)
    assert "cpu" in stored, f"{path} holds no measurement of a CPU: make bench"
    for measurement in stored.values():
        assert measurement.full
        assert set(measurement.unmeasured) <= {
            "kav24",
            "kav25",
            "kav25_near",
            "kav26",
            "kav26_box",
            "kav26_wide",
        }  # newer than the last full run
    measurement = stored["cpu"]
    assert (measurement.setting.dim, measurement.setting.n_bands, measurement.setting.counted) == (48, 31, 512)
    for name in ("psrt", "kav4", "kav17"):
        assert measurement.variants[name].gflops == round(flops(name) / 1e9, 3)
        assert measurement.variants[name].deployed == ka.parameter_count(name).deployed
