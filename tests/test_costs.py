"""Costs: the counter against hand counts, the plain form against the folded one, the clock's file."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import ka
from ka import costs
from ka.costs import Cost, Costs, deployed, flops, measure, plain
from ka.files import write_json
from ka.variants import VARIANTS

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
            layer = ka.psrt.WindowAttention(48, window, 8).requires_grad_(False)
            with costs.FlopCounterMode(display=False) as counter:
                layer(torch.empty(1, 16, 16, 48))
        assert counter.get_total_flops() == 2 * 256 * (48 * 144 + 48 * 48 + 2 * window**2 * 48)


def test_plain_form_pays_for_every_kernel() -> None:
    """kav19: four convolutions and a fusion instead of one convolution."""
    extra = 2 * 512 * 512 * 18 * (3 * 9 * 24 * 24 + 4 * 24 * 24)
    assert flops("kav19", form="plain") - flops("kav19") == extra
    assert flops("kav11", form="plain") > flops("kav11", form="training") > flops("kav11")


def test_eight_variants_deploy_to_the_same_computation() -> None:
    """As the notes of the results table say: the same modules, so the same cost."""
    texts = {str(ka.build(name, dim=8).fold()) for name in SAME}
    assert len(texts) == 1
    assert len({ka.parameter_count(name, dim=8).deployed for name in SAME}) == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_plain_and_deployed_give_the_same_output(name: str) -> None:
    model = ka.build(name, n_bands=4, n_msi=2, dim=8).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    up, msi = torch.rand(2, 4, 16, 16).double(), torch.rand(2, 2, 16, 16).double()
    wanted = model(up, msi)
    for form in (plain, deployed):
        assert (form(model)(up, msi) - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def test_impossible_questions_are_refused() -> None:
    for arguments, message in (
        ({"name": "kav99"}, "unknown variant"),
        ({"name": "kav1", "form": "fast"}, "choose one of deployed, plain, training"),
        ({"name": "kav1", "size": 4}, "at least 8"),
    ):
        with pytest.raises(ka.KAError, match=message):
            flops(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ka.KAError, match="repeats=0"):
        measure(["kav11"], dim=8, size=16, repeats=0)


def test_ratios_are_of_the_same_round() -> None:
    """A machine that is ten times slower in one round leaves the ratio as it is."""
    ms, ratio, low, high = costs._timing([20.0, 200.0, 22.0], [10.0, 100.0, 11.0])
    assert (ms, ratio, low, high) == (22.0, 2.0, 2.0, 2.0)


def test_measure_write_read(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    found = measure(["kav11"], dim=8, size=16, repeats=2)
    assert torch.rand(1) == wanted
    assert torch.get_num_threads() == threads
    assert set(found.variants) == {"psrt_noshuffle", "kav11"}
    assert found.variants["psrt_noshuffle"].ratio == 1
    assert found.variants["kav11"].ms > 0
    assert found.variants["kav11"].gflops == round(flops("kav11", dim=8) / 1e9, 3)
    assert "16×16×31 image, dim 8, cpu, 1 thread, " in found.label
    write_json(tmp_path / "costs.json", asdict(found))
    assert Costs.read(tmp_path / "costs.json") == found


def test_no_file_is_none_and_a_bad_one_an_error(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    assert Costs.read(path) is None
    good = asdict(Costs({}, "cpu", 1, 48, 128, 31, 3, 1, 512, {"kav1": Cost(1, 1, 1, 1, 1, 1)}))
    bad = [
        "", "[]", "{}", '{"variants": {}}', json.dumps(good | {"more": 1}),
        json.dumps(good | {"variants": {"kav1": {"ms": 1}}}),
        json.dumps(good | {"variants": {"kav1": asdict(Cost(1, 1, "<b>", 1, 1, 1))}}),  # type: ignore[arg-type]
    ]  # fmt: skip
    for text in bad:
        path.write_text(text)
        with pytest.raises(ka.KAError, match=r"costs\.json is damaged"):
            Costs.read(path)


def test_the_committed_measurement_is_whole() -> None:
    """Every variant of the table, with FLOPs that today's code still counts."""
    path = ka.runs.ROOT / "results" / "costs.json"
    found = Costs.read(path)
    assert found is not None, f"{path} is missing; python -m ka.costs {path}"
    assert set(found.variants) == set(VARIANTS)
    for name in ("psrt", "kav4", "kav17"):
        assert found.variants[name].gflops == round(flops(name, found.dim) / 1e9, 3)


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert costs.main([]) == 2
    assert costs.main([str(tmp_path / "a.json"), "big"]) == 2
    assert costs.main([str(tmp_path / "a.json"), "0"]) == 2
    assert "usage: python -m ka.costs" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()
