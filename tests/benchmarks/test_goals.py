"""Targets and figures, from made-up measurements."""

import math
import re
from dataclasses import asdict, replace

import pytest
from measured import blank, pair, ratio

from benchmarks import figures, goals, report
from benchmarks.goals import Goal, verdicts
from ka.models.variants import PSRT_ROWS, variant
from workbook.results.speed import (
    Measurement,
    Pair,
    SceneCost,
    Setting,
    Spread,
    Startup,
    Throughput,
)

KA = [name for name, row in PSRT_ROWS.items() if row.has_ka]


def test_nothing_measured_is_nothing_judged() -> None:
    assert {verdict.reached for verdict in verdicts({})} == {None}
    assert {verdict.reached for verdict in verdicts({"cpu": blank(full=False)})} == {None}
    assert all(str(verdict).endswith(": not measured") for verdict in verdicts({}))


def test_ratios_are_judged_by_their_median() -> None:
    five, three, memory, step, inference, *cuda = verdicts({"cpu": blank()})[: len(goals.GOALS)]
    assert (five.reached, three.reached, memory.reached) == (False, True, True)
    assert (step.reached, inference.reached) == (True, True)
    assert five.measured == "0 of 3; kav6 4.00 [3.90 to 4.10], kav8 4.00 [3.90 to 4.10], kav11 4.00 [3.90 to 4.10]"
    assert {verdict.reached for verdict in cuda} == {None}
    speeds = dict(blank().variants)
    speeds["kav7"] = replace(speeds["kav7"], step=pair(1.49), layer=pair(3, smaller=2.99))
    measurement = verdicts({"cpu": blank(variants=speeds)})
    assert measurement[1].reached
    assert (measurement[2].reached, measurement[2].measured) == (False, "6 of 7; kav7 2.99")
    every = len(PSRT_ROWS)
    assert (measurement[3].reached, measurement[3].measured) == (
        False,
        f"{every - 1} of {every}; kav7 1.49 [1.39 to 1.59]",
    )


def newer_than_the_run() -> Measurement:
    """A full run from before rows of our own came to the table."""
    measurement = blank()
    return replace(
        measurement, variants={name: each for name, each in measurement.variants.items() if not variant(name).ours}
    )


def test_variants_without_a_measurement_are_said_not_to_have_one() -> None:
    old = newer_than_the_run()
    ours = [name for name, row in PSRT_ROWS.items() if row.ours]
    assert list(old.unmeasured) == ours
    assert blank().unmeasured == replace(old, full=False).unmeasured == ()
    *named, step, inference = verdicts({"cpu": old})[:5]
    assert all(verdict.measured.endswith(f"; {len(ours)} not measured") for verdict in (step, inference))
    assert not any("not measured" in verdict.measured for verdict in named)


def test_on_a_gpu_the_best_float32_mode_counts() -> None:
    def row(what: str, mode: str, faster: float | None) -> Throughput:
        return Throughput(what, "kav11", mode, 1, 32, 64, 48, 1.0, None if faster is None else ratio(faster))

    rows = (
        row("training", "plain", 1), row("training", "float32", 3), row("training", "float32, graph", 5.5),
        row("training", "bfloat16, graph", 9), row("training", "float32, compiled, graph", None),
        row("inference", "float32", 4.9), row("inference", "bfloat16", 9), row("inference", "tf32, graph", 8),
    )  # fmt: skip
    step, inference = verdicts({"cuda": blank("cuda", throughput=rows)})[len(goals.GOALS) - 2 : len(goals.GOALS)]
    assert (step.reached, step.measured) == (True, "kav11 (float32, graph) 5.50 [5.40 to 5.60]")
    assert (inference.reached, inference.measured) == (False, "0 of 1; kav11 (float32) 4.90 [4.80 to 5.00]")


def test_scenes_and_start_up_are_judged() -> None:
    def scene(size: int, tile: int, seconds: float, mib: float, process: float = 900) -> SceneCost:
        return SceneCost(size, tile, seconds, mib, 31 * 4 * size**2 / 2**20, process)

    whole = (scene(256, 0, 1, 100), scene(512, 0, 4, 400), scene(512, 256, 5, 131), scene(1024, 256, 20, 224))
    start = Startup(2, 3, 1.0, 0.9, 1.1)
    memory, bounded, linear, started = verdicts({"cpu": blank(scenes=whole, startup=start)})[len(goals.GOALS) :]
    assert (memory.reached, memory.measured) == (True, "0.94 GB")
    assert (bounded.reached, bounded.measured) == (True, "512²: 100 MiB, 1024²: 100 MiB, beside the result")
    assert (linear.reached, linear.measured) == (True, "1.00 and 1.00")
    assert (started.reached, started.measured) == (True, "1.00 s [0.90 to 1.10]")
    worse = (scene(256, 0, 1, 100), scene(512, 0, 8, 400, 2900), scene(512, 256, 5, 131), scene(1024, 256, 20, 300))
    measurement = verdicts({"cpu": blank(scenes=worse, startup=replace(start, more=1.6))})[len(goals.GOALS) :]
    assert [verdict.reached for verdict in measurement] == [False] * 4
    assert measurement[2].measured == "1.50 and 1.00"


def test_spread_by_hand() -> None:
    assert Spread.of([20.0, 200.0, 33.0], [10.0, 100.0, 11.0]) == Spread(median=2, low=2, high=2.5, shortest=2)
    assert Spread.of([3.0], [2.0]) == Spread(1.5, 1.5, 1.5, 1.5)


def test_no_memory_is_infinitely_smaller() -> None:
    assert Pair(1, 1, ratio(1), 0, 5).smaller == math.inf


def test_the_price_of_a_layer_is_that_of_convolutions() -> None:
    speeds = dict(blank().variants)
    speeds["kav6"] = replace(speeds["kav6"], layer=replace(pair(4), ms=25))
    measurement = blank(variants=speeds)
    assert measurement.to_convolution("kav6") == 2.5
    assert measurement.to_convolution("conv3x3") == 1
    assert measurement.to_convolution("psrt") is None
    assert newer_than_the_run().to_convolution("kav6") is None
    assert any(line.startswith("kav6 ") and line.endswith("2.50") for line in report.lines(measurement, {}))


def test_every_target_of_the_table_can_be_met() -> None:
    assert all(name in PSRT_ROWS for goal in goals.GOALS for name in goal.variants)
    assert all(set(asdict(goal)) == set(Goal.__dataclass_fields__) for goal in goals.GOALS)


def test_runs_are_put_side_by_side() -> None:
    speeds = dict(blank().variants)
    speeds["kav6"] = replace(speeds["kav6"], layer=pair(5.25, smaller=2), step=pair(1.25))
    runs = [{"cpu": blank()}, {"cpu": blank(variants=speeds)}, {"cpu": blank(), "cuda": blank("cuda")}]
    lines = list(report.ranges(runs))
    (row,) = [line for line in lines if line.startswith("kav6 ")]
    measurement = re.findall(r"[\d.]+ to [\d.]+", row)
    assert measurement == ["4.00 to 5.25", "1.25 to 4.00", "4.00 to 4.00", "2.00 to 4.00", "1.00 to 1.00"]
    assert "3 runs" in lines[0]
    assert not any("some" in line for line in lines)  # the GPU is in one run only
    assert any(line.startswith("CPU: training step") and line.endswith(": reached in 2 of 3") for line in lines)
    assert any(line.startswith("CPU: 512×512") and line.endswith(": not measured") for line in lines)


def test_the_figure_of_ratios_shows_what_was_measured() -> None:
    figure = figures.ratios(blank())
    layer = figure.axes[0]
    dots = [line for line in layer.lines if line.get_marker() == "o"]
    assert len(dots) == sum(row.has_ka for row in PSRT_ROWS.values())
    assert all(line.get_xdata()[0] == 4 for line in dots)
    names = [label.get_text() for label in layer.get_yticklabels()]
    assert names == list(PSRT_ROWS)[::-1]
    guides = [line for axis in figure.axes for line in axis.lines if line.get_color() == "black"]
    assert [line.get_xdata()[0] for line in guides] == [1, 1, 1]


def test_the_figure_of_ratios_keeps_a_line_for_what_was_not_measured() -> None:
    old = newer_than_the_run()
    axes = figures.ratios(old).axes
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert set(names) == set(PSRT_ROWS)
    for axis in axes:
        assert {names[round(text.get_position()[1])] for text in axis.texts} == set(old.unmeasured)
        assert {text.get_text() for text in axis.texts} == {"not measured"}


def test_the_figure_of_scenes_shows_what_was_measured() -> None:
    whole = tuple(SceneCost(size, tile, size / 9, size, 1, 1) for size, tile in Setting().scenes)
    seconds, memory = figures.scenes(blank(scenes=whole)).axes
    passes, tiles, guide = seconds.lines
    assert list(passes.get_xdata()) == [256**2, 512**2, 1024**2]
    assert list(tiles.get_xdata()) == [512**2, 1024**2, 2048**2]
    assert guide.get_ydata()[1] == pytest.approx(256 / 9 * 64)
    assert list(memory.lines[1].get_ydata()) == [512, 1024, 2048]
    empty = figures.scenes(blank())
    assert [text.get_text() for axis in empty.axes for text in axis.texts] == ["not measured"] * 2
