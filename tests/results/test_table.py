"""The results table: every variant has a row, none an invented number; its text and figures."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.text import Text

import ka
from ka.models.variants import VARIANTS
from workbook.results import report, result_figures, speed
from workbook.results import stored as results
from workbook.results import table as tables
from workbook.results.compare import Fit, judge
from workbook.results.stored import UNTRAINED
from workbook.results.study import REPORTED, printed_for
from workbook.results.table import Row, Stat, Table
from workbook.style import png
from workbook.training.run import Run

COSTS = speed.read(ROOT / "results" / "bench.json")["cpu"]
Fake = Callable[..., Run]


def rows(table: Table) -> dict[str, Row]:
    return {row.name: row for row in table.rows}


# The study's numbers


def test_the_printed_table_is_the_studys(shared: Path) -> None:
    lines = list(csv.DictReader((shared / "design" / "reported.csv").read_text().splitlines()))
    printed = {line["variant"]: line for line in lines if line["embed_dim"] == "48"}
    assert list(printed) == [name for name in REPORTED if int(name.strip("kavpsrt_nohufle") or 0) < 12]
    for name, line in printed.items():
        row = REPORTED[name]
        columns = (line[key] for key in ("psnr_db", "sam_deg", "ergas", "params_m"))
        assert (row.psnr, row.sam, row.ergas, row.params) == tuple(float(x) if x else None for x in columns)


def test_the_later_report_is_as_described(shared: Path) -> None:
    text = (shared / "design" / "variants.md").read_text()
    (line,) = re.findall(r"Reported by their authors.*", text)
    found = re.findall(r"(kav\d+) ([\d.]+) / ([\d.]+) / ([\d.]+)[;.]", line)
    assert len(found) == 6
    for name, psnr, sam, ergas in found:
        row = REPORTED[name]
        assert (row.psnr, row.sam, row.ergas, row.params) == (float(psnr), float(sam), float(ergas), None)


def test_printed_rows_stand_beside_what_ran() -> None:
    """What a row ran has the parameters that the row prints, and it is told where that is not its name."""
    moved = {name: row.ran for name, row in REPORTED.items() if row.ran != name}
    assert moved == {
        "psrt": "psrt_misaligned", "kav5": "kav5_as_run", "kav8": "kav8_as_run", "kav9": "kav9_as_run"
    }  # fmt: skip
    for name in ("psrt", "kav5", "kav9", "kav11"):  # the audit counts them all
        row = REPORTED[name]
        assert round(ka.parameter_count(row.ran).reported / 1e6, 3) == row.params
    assert printed_for("psrt") is None
    assert printed_for("kav5_as_run") is REPORTED["kav5"]


def test_an_undefined_metric_is_no_number(fake: Fake, tmp_path: Path) -> None:
    run = fake("psrt_noshuffle")
    metrics = run.metrics()
    metrics["methods"]["best"]["scenes"]["scene 1"]["ergas"] = None
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    fake("kav1")
    results.export(run, tmp_path, "demo")
    assert results.read(tmp_path, "demo") == results.read(tmp_path, "demo")
    table = tables.table(results.from_runs(tmp_path / "runs"), measurement=COSTS)
    assert rows(table)["kav1"].differences["ergas"].low is None
    assert rows(table)["kav1"].differences["psnr"].low is not None
    assert "undefined" in report.to_markdown(table)
    png(result_figures.forest(table))


def measured(fake: Fake, root: Path, **shifts: tuple[float, ...]) -> Table:
    """A table of 11 scenes: every variant is the baseline plus its shifts (one a seed) plus 0.1 dB of scene noise."""
    rng = np.random.default_rng(5)
    scene = rng.normal(60, 5, 11)  # above the methods without training
    for name, each in shifts.items():
        own = rng.normal(0, 0.1, 11)
        for seed, shift in enumerate(each):
            fake(name, seed, scene + own + shift)
    return tables.table(results.from_runs(root / "runs"), measurement=COSTS)


def test_a_constant_shift_is_found_and_bold(fake: Fake, tmp_path: Path) -> None:
    table = measured(fake, tmp_path, psrt_noshuffle=(0, 0.02), kav11=(0.5, 0.53), kav3=(-0.5, -0.5))
    found = rows(table)
    assert found["kav11"].differences["psnr"].value == pytest.approx(0.5, abs=0.1)
    assert found["kav11"].differences["psnr"].excludes_zero
    assert found["kav11"].bold == {"psnr", "sam"}
    assert found["kav3"].differences["psnr"].excludes_zero
    assert found["kav3"].bold == frozenset()  # surely worse
    assert found["psrt_noshuffle"].differences == {}
    text = re.sub(" +", " ", report.to_markdown(table))
    assert f"| kav11 | 2 | **{found['kav11'].stats['psnr'].mean:.3f} ± 0.021** |" in text
    assert "tests it among 2 variants" in text


def test_no_difference_is_not_bold(fake: Fake, tmp_path: Path) -> None:
    table = measured(fake, tmp_path, psrt_noshuffle=(0.0,), kav11=(0.02,), kav3=(0.03,))
    assert all(row.bold == frozenset() for row in table.rows)
    assert "| **" not in report.to_markdown(table)
    assert any("no model has a second seed" in note for note in table.notes)
    assert rows(table)["kav11"].differences["psnr"].covers == "scenes"


def test_intervals_are_corrected_for_the_number_of_variants(fake: Fake, tmp_path: Path) -> None:
    """With two compared and none decided, each has level 1 - 0.05/2 in place of 1 - 0.05."""
    both = rows(measured(fake, tmp_path, psrt_noshuffle=(0.0,), kav11=(0.02,), kav3=(0.03,)))
    found = [run for run in results.from_runs(tmp_path / "runs") if run.config.variant != "kav3"]
    ours, theirs = (
        next(run.methods["best"].values("psnr")[None] for run in found if run.config.variant == name)
        for name in ("kav11", "psrt_noshuffle")
    )
    one, two = (each["kav11"].differences["psnr"] for each in (rows(tables.table(found, measurement=COSTS)), both))
    contrast = Fit.of({"a": ours, "b": theirs}, {"a": (0,), "b": (0,)}).contrast({"a": 1, "b": -1})
    for difference, alpha in ((one, 0.05), (two, 0.025)):
        (expected,) = judge([contrast], alpha)
        assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert one.low is not None
    assert two.low is not None
    assert two.low < one.low


def test_nothing_is_bold_where_a_method_without_training_is_best(fake: Fake, tmp_path: Path) -> None:
    low = np.linspace(1, 2, 11)  # below bicubic, by far
    fake("psrt_noshuffle", 0, low)
    fake("kav11", 0, low + np.linspace(7, 9, 11))
    table = tables.table(results.from_runs(tmp_path / "runs"), measurement=COSTS)
    assert rows(table)["kav11"].differences["psnr"].excludes_zero
    assert "psnr" not in rows(table)["kav11"].bold


def test_one_scene_needs_seeds(fake: Fake, tmp_path: Path) -> None:
    for seed, (ours, theirs) in enumerate(((41.0, 40.0), (41.1, 40.2), (41.3, 40.1))):
        fake("kav11", seed, [ours])
        fake("psrt_noshuffle", seed, [theirs])
        found = rows(tables.table(results.from_runs(tmp_path / "runs"), measurement=COSTS))["kav11"].differences["psnr"]
        assert (found.low is not None) == (seed > 0)
    assert found.covers == "seeds"
    gaps = np.array([1.0, 0.9, 1.2])  # a paired t interval of three seeds
    half = 4.3027 * gaps.std(ddof=1) / 3**0.5
    assert (found.low, found.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.02 * half)


# The table


def test_every_variant_has_a_row_and_none_an_invented_number(fake: Fake, tmp_path: Path) -> None:
    fake("kav11")
    for found in (results.from_runs(tmp_path / "runs"), []):
        table = tables.table(found, measurement=COSTS)
        assert [row.name for row in table.rows] == [*UNTRAINED, *VARIANTS]
        run = [row.name for row in table.rows if row.stats]
        assert run == ([*UNTRAINED, "kav11"] if found else [])
        text = re.sub(" +", " ", report.to_markdown(table))
        missing = re.findall(r"^\| \S+( injection)? \| – \| not run \| – \| – \|", text, re.M)
        assert len(missing) == len(table.rows) - len(run)
        assert report.to_latex(table).count("not run") == len(table.rows) - len(run)
        lines = list(csv.DictReader(io.StringIO(report.to_csv(table))))
        for line in lines:
            assert (line["status"] == "not run") == (line["model"] not in run)
            assert bool(line["psnr"]) == (line["model"] in run)
            assert not line["psnr_difference"]  # the baseline was not run
        assert all(png(draw(table)).startswith(b"\x89PNG") for draw in report.FIGURES.values())


def test_the_table_has_the_studys_numbers_and_costs() -> None:
    found = rows(tables.table([], measurement=COSTS))
    assert found["kav11"].printed is REPORTED["kav11"]
    assert found["kav5"].printed is None
    assert (found["kav5_as_run"].reported, found["kav5_as_run"].deployed) == (410_911 + 591_264, 410_911)
    measured = COSTS.variants["kav11"]
    assert (found["kav11"].gflops, found["kav11"].ms) == (measured.gflops, measured.inference.ms)
    assert "study: PSNR" in report.to_markdown(tables.table([], measurement=COSTS))


def test_costs_of_another_width_are_not_taken() -> None:
    for measurement in (None, replace(COSTS, setting=replace(COSTS.setting, dim=24))):
        table = tables.table([], measurement=measurement)
        row = rows(table)["kav11"]
        assert (row.gflops, row.ms, row.deployed) == (None, None, None)
        assert report.to_markdown(table).count("not measured") >= 2 * len(VARIANTS)


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(ka.KAError, match="variant 'psrt_shuffle' is unknown"):
        tables.table([], baseline="psrt_shuffle", measurement=COSTS)
    with pytest.raises(ka.KAError, match="choose one of best, last, average"):
        tables.table([], which="first", measurement=COSTS)


# Text and figures


def test_latex_is_escaped_and_whole() -> None:
    text = report.to_latex(tables.table([], measurement=COSTS))
    assert r"kav5\_as\_run" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert not re.search(r"(?<!\\)[%#]|(?<!\\)_", text)
    assert text.count("{") == text.count("}")
    assert not set(text) & set("±−×Δ°⁹–“”")  # as commands, for LaTeX engines without Unicode


def test_text_and_figures_are_the_same_bytes_each_time(fake: Fake, tmp_path: Path) -> None:
    one, other = (
        measured(fake, tmp_path, psrt_noshuffle=(0.0,), kav11=(0.02,)) if turn == 0
        else tables.table(results.from_runs(tmp_path / "runs")[::-1], measurement=COSTS)
        for turn in range(2)
    )  # fmt: skip
    for write in (report.to_csv, report.to_markdown, report.to_latex):
        assert write(one) == write(other)
    assert png(result_figures.forest(one)) == png(result_figures.forest(other))


def test_everything_is_written_whole(tmp_path: Path) -> None:
    table = tables.table([], measurement=COSTS)
    paths = report.write(table, tmp_path / "paper")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "paper").iterdir()}
    before = [path.read_bytes() for path in paths]
    assert before[0].decode() == report.to_csv(table)
    assert [path.read_bytes() for path in report.write(table, tmp_path / "paper")] == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ka.KAError, match="could not be written"):
        report.write(table, tmp_path / "file")


def test_labels_lie_apart_and_inside(rng: np.random.Generator) -> None:
    """All variants at one cost: at most twelve are named, no two names overlap, none leaves the frame."""
    stats = {name: {"psnr": Stat(44 + rng.normal(0, 0.4), 0.1)} for name in VARIANTS}
    table = Table([Row(name, (0,), stats[name], deployed=5 * 10**5, gflops=272.0) for name in VARIANTS], "psrt", [])
    figure = result_figures.quality_against_cost(table)
    figure.draw_without_rendering()
    for axis in figure.axes:
        frame = axis.get_window_extent()
        boxes = [Text.get_window_extent(text) for text in axis.texts]
        assert 4 < len(boxes) <= 12
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
        assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_forest_shows_what_was_run(fake: Fake, tmp_path: Path) -> None:
    table = measured(fake, tmp_path, psrt_noshuffle=(0.0,), kav11=(0.5,), kav3=(-0.5,))
    axes = result_figures.forest(table).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["kav11", "kav3"]
    low, high = axes[0].get_xlim()
    assert low == -high


def test_scene_by_scene_says_which_scenes_gain(fake: Fake, tmp_path: Path) -> None:
    """Dots are a row less the baseline, means over seeds: the scenes that gain most on top, the mean at the bottom."""
    scene, gains = np.arange(50.0, 61.0), np.roll(np.arange(11) / 10, 4)
    for seed in (0, 1):
        fake("psrt_noshuffle", seed, scene + seed)
        fake("kav11", seed, scene + seed + gains + (0.1 if seed else -0.1))
        fake("kav4", seed, scene + seed)
    table = tables.table(results.from_runs(tmp_path / "runs"), measurement=COSTS)
    (axis,) = result_figures.scene_by_scene(table).axes
    (dots,) = (line for line in axis.lines if line.get_label() in VARIANTS)
    assert dots.get_label() == "kav11"
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["mean of all", *(table.scenes[i] for i in np.argsort(gains))]
    assert np.asarray(dots.get_xdata()) == pytest.approx([gains.mean(), *np.sort(gains)])


def test_what_is_committed_can_be_read() -> None:
    """Every protocol under results/ is whole and makes a table."""
    for protocol in results.protocols(ROOT / "results"):
        runs = results.read(ROOT / "results", protocol)
        table = tables.table(runs, measurement=COSTS)
        assert sum(bool(row.seeds) for row in table.rows) == len({run.config.variant for run in runs})


def test_ranked_rows_begin_with_the_best(fake: Fake, tmp_path: Path) -> None:
    names = [row.name for row in tables.ranked(measured(fake, tmp_path, psrt=(0,), kav11=(2,), kav3=(1,))).rows]
    assert names[:3] == ["kav11", "kav3", "psrt"]
    assert set(names[3:]) == set(UNTRAINED)
