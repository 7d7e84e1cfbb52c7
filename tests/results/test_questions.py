"""The study's questions as comparisons: what they weigh, and verdicts that only the intervals give."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from ka.errors import KAError
from ka.evaluation import Evaluation
from ka.models.variants import VARIANTS
from workbook.results import questions, result_figures, speed, stored
from workbook.results.compare import Difference
from workbook.results.questions import QUESTIONS, Answer, Comparison, answers
from workbook.results.stored import Parameters, Record, Result
from workbook.results.table import table
from workbook.training.config import Config

PARTS = ("kernels", "n_windows", "size", "layernorm", "normal_init", "sa", "sa_among", "se", "widen", "global_from",
         "global_bias", "global_se", "second", "bias", "activation", "shuffle")  # fmt: skip
Make = Callable[..., Result]


@pytest.fixture
def make() -> Make:
    """A result of eleven scenes whose PSNR is `level` plus a scene's own part; `jitter` is the seed's."""

    def result(name: str, level: float, seed: int = 10, jitter: float = 0.0) -> Result:
        noise = np.random.default_rng((seed, list(VARIANTS).index(name))).normal(0, 0.02, 11)
        noise -= noise.mean()
        scenes = {
            f"scene {i}": {
                "psnr": 40 + i + level + jitter + noise[i],
                "sam": 3.0 - level / 10,
                "ergas": 2.0 - level / 10,
            }
            for i in range(11)
        }
        untrained = Evaluation({f"scene {i}": {"psnr": 30.0 + i, "sam": 4.0, "ergas": 3.0} for i in range(11)})
        methods = dict.fromkeys(("bicubic", "linear injection"), untrained)
        methods |= dict.fromkeys(("best", "last", "average"), Evaluation(scenes))
        config = Config.preset("laptop", variant=name, seed=seed, data_root="elsewhere")
        record = Record(1, {}, {}, "test", {}, 3000, 1.0, Parameters(1, 1, 1), {})
        return Result(record, config, methods)

    return result


def test_every_comparison_weighs_models_that_there_are() -> None:
    for comparisons in QUESTIONS.values():
        for one in comparisons:
            assert sum(one.weights.values()) == pytest.approx(0)
            assert sum(weight for weight in one.weights.values() if weight > 0) >= 1 - 1e-9
            assert set(one.weights) <= set(VARIANTS)


def test_pairs_of_one_question_differ_in_what_it_asks() -> None:
    """Of two models that are compared, the parts that differ are those that the question is about."""
    may_differ = {
        "1": {"shuffle"},
        "2": {"layernorm"},
        # A global kernel changes what SA and SE run over, and whether there is one at all.
        "3": {"global_from", "sa", "kernels", "second", "global_se"},
        "4": {"widen", "kernels", "sa", "se"},
        "5": {"sa", "sa_among", "size", "n_windows", "bias"},
        "6": {"se", "global_se"},
        "7": {"second", "se"},
    }
    for title, comparisons in QUESTIONS.items():
        if title.startswith("10"):  # in front of one body, or without; and whole bodies against each other
            continue
        if title[0] in "08":  # whole branches against each other
            continue
        for one in comparisons:
            rows = [VARIANTS[name] for name in one.weights]
            if len(rows) > 2:
                continue
            differ = {part for part in PARTS if getattr(rows[0], part) != getattr(rows[1], part)}
            assert differ, one.label
            assert differ <= may_differ[title[0]], (one.label, differ)


@pytest.mark.parametrize("weights", [{"kav1": 1.0}, {"kav1": 1.0, "kav2": -0.5}, {"kav99": 1.0, "kav1": -1.0}])
def test_a_comparison_that_means_nothing_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(KAError, match="add up to zero"):
        Comparison("mine", weights)


def test_verdicts_follow_the_interval(make: Make) -> None:
    """Three seeds each that agree: a gap of 1 dB is found, on either side of the claim."""
    title = "7. Windows or image"
    for gap, verdict in ((1.0, "supported"), (-1.0, "refuted"), (0.0, "equal within 0.1 dB")):
        runs = [
            make(name, level, seed, jitter)
            for name, level in (("kav2", 0.0), ("kav7", gap))
            for seed, jitter in ((10, 0.01), (11, -0.01), (12, 0.0))
        ]
        (one,) = answers(runs, title)
        assert one.differences["psnr"].value == pytest.approx(gap)
        assert one.differences["psnr"].covers == "scenes and seeds"
        assert one.verdict == verdict
        assert one.seeds == {"kav7": 3, "kav2": 3}


def test_one_seed_decides_nothing(make: Make) -> None:
    (one,) = answers([make("kav2", 0.0), make("kav7", 5.0)], "7. Windows or image")
    assert one.differences["psnr"].covers == "scenes"
    assert one.verdict == "not decided at this budget"
    (apart,) = answers([make("kav2", 0.0), make("kav7", 5.0, seed=11)], "7. Windows or image")
    assert apart.differences["psnr"].refused
    assert apart.verdict == "not decided at this budget"
    assert questions.rows([apart])[0]["Δ PSNR (dB)"] == "no seeds in common"


def test_seeds_of_other_models_tell_how_far_seeds_move_a_pair(make: Make) -> None:
    pair = [make("kav2", 0.0), make("kav7", 0.5)]
    blocks = ((10, 0.0), (11, 1.0), (12, -1.0))
    first = [make("kav11", 0.0, seed, block) for seed, block in blocks]
    alike = [make("kav12", 0.0, seed, block + own) for (seed, block), own in zip(blocks, (0, 0.02, -0.02), strict=True)]
    apart = [make("kav12", 0.0, seed, 0.0) for seed, _ in blocks]
    assert answers([*pair, *first, *alike], "7. Windows or image")[0].verdict == "supported"
    assert answers([*pair, *first, *apart], "7. Windows or image")[0].verdict == "not decided at this budget"
    assert answers([*pair, *first], "7. Windows or image")[0].differences["psnr"].covers == "scenes"


def test_a_model_without_a_run_leaves_its_comparison_open_and_the_others_alone(make: Make) -> None:
    found = answers([make("psrt", 0.0), make("psrt_noshuffle", 1.0)], "1. Shuffle")
    assert [one.verdict for one in found] == ["not run", "not decided at this budget", "not run"]
    assert questions.rows(found)[0]["Δ PSNR (dB)"] == "–"
    # One comparison was run, so its level is 5 %, not a third of it.
    alone = found[1].differences["psnr"]
    three = answers(
        [make(name, i) for i, name in enumerate(("psrt", "psrt_misaligned", "psrt_noshuffle"))], "1. Shuffle"
    )
    together = three[1].differences["psnr"]
    assert alone.low is not None
    assert alone.high is not None
    assert together.low is not None
    assert together.high is not None
    assert together.high - together.low > alone.high - alone.low


def test_interactions_take_off_what_both_gain(make: Make) -> None:
    levels = {"conv3x3": 0.0, "conv5x5": 0.3, "kav10": 1.0, "kav10_5x5": 1.8}
    found = answers([make(name, level) for name, level in levels.items()], "5. Kernel SA")
    assert found[-1].differences["psnr"].value == pytest.approx(0.5)


def test_what_cannot_be_answered_together_is_refused(make: Make) -> None:
    """Other weights than there are; runs of two recipes; scenes of two data sets, whose seeds are one."""
    one = make("kav2", 0.0)
    with pytest.raises(KAError, match="which = 'lats' is unknown"):
        answers([one, make("kav7", 1.0)], "7. Windows or image", "lats")
    lacking = replace(one, methods={name: found for name, found in one.methods.items() if name != "last"})
    with pytest.raises(KAError, match="kav2-seed10: last weights were not measured"):
        answers([lacking, make("kav7", 1.0)], "7. Windows or image", "last")
    longer = replace(make("kav7", 1.0), config=replace(one.config, variant="kav7", iterations=2000))
    with pytest.raises(KAError, match=r"are of different protocols \(iterations: 1000 and 2000"):
        answers([one, longer], "7. Windows or image")


def test_rows_that_seeds_move_more_than_others_may_be_judged_by_themselves(make: Make) -> None:
    """Four quiet rows and a pair of loud ones: the pair is not decided by its own runs, the quiet ones as before."""
    quiet = ("psrt", "psrt_noshuffle", "kav10", "kav11")
    runs = [make(name, 0.3 * i, seed, 0.002 * (seed % 3)) for i, name in enumerate(quiet) for seed in range(3)]
    runs += [
        make(name, gap, seed, loud * (seed % 3))
        for name, gap, loud in (("kav2", 0, 0.1), ("kav7", 0.5, -0.1))
        for seed in range(3)
    ]
    for title, verdict in (("7. Windows or image", "not decided at this budget"), ("1. Shuffle", "supported")):
        common, own = ([one for one in answers(runs, title, own=own) if one.differences] for own in (False, True))
        assert [one.verdict for one in common] == ["supported"]
        assert [one.verdict for one in own] == [verdict]
        assert own[0].differences["psnr"].value == common[0].differences["psnr"].value


def test_an_unknown_question_lists_the_known() -> None:
    with pytest.raises(KAError, match=r"choose one of 0\. Kernel Attention, 1\. Shuffle"):
        answers([], "10. Anything")


def test_a_question_and_the_table_judge_a_pair_alike(make: Make) -> None:
    """Seeds move both models alike: paired in the table, so in the answer too."""
    runs = [
        make(name, level, seed, 0.5 * seed + 0.01 * (seed * len(name) % 3))
        for name, level in (("psrt", 0.0), ("psrt_noshuffle", 0.3), ("kav11", 0.6))
        for seed in (0, 1, 2)
    ]
    asked = next(one for one in answers(runs, "1. Shuffle") if one.differences).differences["psnr"]
    costs = speed.read(ROOT / "results" / "bench.json")["cpu"]
    (row,) = [row for row in table(runs, "psrt_noshuffle", measurement=costs).rows if row.name == "psrt"]
    assert asked.value == pytest.approx(-row.differences["psnr"].value)
    assert asked.low is not None
    assert row.differences["psnr"].high is not None
    assert 0 < asked.low < 0.3
    assert asked.low >= -row.differences["psnr"].high  # the table compares more models at once


def test_all_parts_of_a_data_set_answer_together(make: Make) -> None:
    """What 11 scenes say and 11 others do: the mean of both, of the comparisons that were run on both."""
    others = {f"scene {i}": f"scene {i + 11}" for i in range(11)}

    def elsewhere(result: Result) -> Result:
        methods = {
            name: Evaluation({others[scene]: values for scene, values in found.scenes.items()})
            for name, found in result.methods.items()
        }
        return replace(result, methods=methods)

    levels = {"psrt": 0.0, "psrt_noshuffle": 1.0, "psrt_misaligned": 2.0}
    first = [make(name, level, seed) for name, level in levels.items() for seed in (10, 11)]
    second = [elsewhere(make(name, 3 * level, seed)) for name, level in list(levels.items())[:2] for seed in (20, 21)]
    found = answers([*first, *second], "1. Shuffle")
    assert [one.verdict for one in found] == ["not run", "supported", "not run"]
    assert found[1].differences["psnr"].value == pytest.approx(2.0)
    assert found[1].seeds == {"psrt_noshuffle": 4, "psrt": 4}
    assert len(found[1].differences["psnr"].by_scene) == 22
    assert questions.asked([*first, *second]) == ["1. Shuffle"]


def test_open_questions_are_better_or_worse_and_lower_is_not_mistaken() -> None:
    one = Answer(
        Comparison("mine", {"kav1": 1, "kav2": -1}), {}, {"psnr": Difference(-1.0, -2.0, -0.5, "scenes and seeds")}
    )
    assert one.verdict == "worse"
    claimed = replace(one, comparison=replace(one.comparison, claim="worse"))
    assert claimed.verdict == "supported"


def test_the_chart_draws_what_was_run_and_counts_what_was_not(make: Make) -> None:
    figure = result_figures.chart([make("psrt", 0.0), make("psrt_noshuffle", 1.0)], ["1. Shuffle"])
    (axis,) = figure.axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == 2
    assert labels[1] == "(2 not run)"
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == [pytest.approx(1.0)]


def test_the_summary_begins_with_what_is_decided() -> None:
    """Of the kept runs: verdicts, then what is equal, then what is open."""
    for protocol, there in (("laptop-bicubic", {0, 2}), ("demo-quarters", {0, 1, 2})):
        verdicts = [row["verdict"] for row in questions.summary(stored.read(ROOT / "results", protocol))]
        ranks = [("equal" in verdict) + 2 * verdict.startswith("not ") for verdict in verdicts]
        assert ranks == sorted(ranks)
        assert there <= set(ranks)


def test_verdicts_are_counted(make: Make) -> None:
    found = questions.tally([make("psrt", 0.0), make("psrt_noshuffle", 1.0), make("kav11", 0.0)])
    assert found == "2 not decided at this budget"
    assert questions.tally([make("psrt", 0.0), make("psrt_noshuffle", 1.0)], "zh") == "1 项此训练量下不能判定"
    pair = [make(name, level, seed) for name, level in (("kav2", 0.0), ("kav7", 1.0)) for seed in (10, 11)]
    assert questions.tally(pair) == "1 supported"
