"""Results: files that come back equal or are refused, intervals that keep their promise, text that cannot inject."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

import ka
from ka.models.variants import VARIANTS
from workbook.results import report
from workbook.results import stored as results
from workbook.results.compare import Difference, SeedNoise, difference, seed_noise
from workbook.results.costs import Cost, Costs
from workbook.results.stored import Row, Stat, Table
from workbook.results.study import REPORTED, printed_for
from workbook.style import png
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.train import train

COSTS = Costs({"cpu": "none"}, "cpu", 1, 48, 128, 31, 3, 1, 512, {name: Cost(9, 9, 1, 1, 1) for name in VARIANTS})
Fake = Callable[..., Run]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of six iterations."""
    path = tmp_path_factory.mktemp("real") / "run"
    return train(Config.preset("smoke", run_dir=str(path), device="cpu"), bar=False)


@pytest.fixture
def fake(real: Run, tmp_path: Path) -> Fake:
    """Copies of the real run whose variant, seed and per-scene PSNR are changed."""

    def make(name: str = "kav11", seed: int = 0, psnr: Any = (40.0,) * 3, **changes: Any) -> Run:
        run = Run(tmp_path / "runs" / f"{name}-{seed}-{len(list(tmp_path.glob('runs/*')))}")
        shutil.copytree(real.path, run.path, ignore=shutil.ignore_patterns("*.pt", "*.safetensors", ".lock"))
        config = json.loads((run.path / "config.json").read_text())
        config |= {"variant": name, "seed": seed, "run_dir": str(run.path)} | changes
        (run.path / "config.json").write_text(json.dumps(config))
        metrics = run.metrics()
        for method, found in metrics["methods"].items():
            (values,) = found["scenes"].values()
            trained = method in results.WEIGHTS
            found["scenes"] = {
                f"scene {i}": values | ({"psnr": float(x), "sam": (100 - float(x)) / 40} if trained else {})
                for i, x in enumerate(psnr)
            }
        (run.path / "metrics.json").write_text(json.dumps(metrics))
        return run

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2023)


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
    for row in REPORTED.values():
        if row.params is not None:
            assert round(ka.parameter_count(row.ran).reported / 1e6, 3) == row.params
    assert printed_for("psrt") is None
    assert printed_for("kav5_as_run") is REPORTED["kav5"]


# Files


def test_export_read_round_trip(real: Run, tmp_path: Path) -> None:
    path = results.export(real, tmp_path, "demo")
    assert path == tmp_path / "demo" / "kav11-seed0.json"
    (result,) = results.read(tmp_path, "demo")
    assert [result] == results.from_runs(real.path.parent)
    metrics = real.metrics()
    for method, found in metrics["methods"].items():
        assert result.methods[method].to_dict() == found
    assert result.parameters == metrics["parameters"]
    assert result.environment["packages"]["torch"]
    assert result.environment["commit"]
    assert results.protocols(tmp_path) == ["demo"]
    assert results.export(real, tmp_path, "demo").read_bytes() == path.read_bytes()
    assert str(real.path) not in path.read_text()  # no paths of this machine


def test_history_is_kept_and_older_files_have_none(real: Run, tmp_path: Path) -> None:
    path = results.export(real, tmp_path, "demo")
    (result,) = results.read(tmp_path, "demo")
    assert [note["step"] for note in result.history] == [note["step"] for note in real.history()] == [3, 6]
    assert [note["psnr"] for note in result.history] == [note["psnr"] for note in real.history()]
    value = json.loads(path.read_text())
    del value["history"]
    path.write_text(json.dumps(value))
    assert results.read(tmp_path, "demo")[0].history == []
    path.write_text(json.dumps(value | {"history": [{"step": "x"}]}))
    with pytest.raises(ka.KAError, match="is no number"):
        results.read(tmp_path, "demo")


def test_a_file_of_eleven_scenes_is_small(fake: Fake, tmp_path: Path) -> None:
    path = results.export(fake(psnr=[40.123456789012345] * 11), tmp_path, "laptop")
    assert path.stat().st_size < 40_000


@pytest.mark.parametrize("protocol", ["", "..", "../x", "a/b", "a\\b", ".hidden", "x" * 65, "a b", "a\n", None, 3])
def test_protocol_names_stay_in_the_folder(real: Run, tmp_path: Path, protocol: Any) -> None:
    with pytest.raises(ka.KAError, match="is no plain name"):
        results.export(real, tmp_path / "results", protocol)
    with pytest.raises(ka.KAError, match="is no plain name"):
        results.read(tmp_path / "results", protocol)
    assert not list(tmp_path.iterdir())


def test_variant_names_stay_in_the_folder(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ka.KAError, match=r"variant .* is unknown"):
        results.export(fake("../../kav1"), tmp_path / "results", "demo")
    assert not (tmp_path / "results").exists()


def test_only_finished_runs(fake: Fake, tmp_path: Path) -> None:
    run = fake()
    assert len(results.from_runs(tmp_path / "runs")) == 1
    (run.path / "metrics.json").unlink()
    with pytest.raises(ka.KAError, match="is not a finished run"):
        results.export(run, tmp_path, "demo")
    assert results.from_runs(tmp_path / "runs") == []
    with pytest.raises(ka.KAError, match="is not a folder"):
        results.from_runs(tmp_path / "nothing")
    assert results.read(tmp_path, "demo") == []


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[:-30], lambda text: "", lambda text: "[]", lambda text: "null", lambda text: "{}",
        lambda text: text.replace('"psnr": ', '"psnr": "high", "x": ', 1), lambda text: text.replace("40.0", "NaN"),
        lambda text: text.replace("40.0", "true", 1), lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"kav11"', '"kav99"'), lambda text: text.replace('"dim"', '"width"'),
        lambda text: text.replace('"scene 1"', '"scene 9"', 1), lambda text: text.replace('"bicubic"', '"bilinear"'),
        lambda text: text.replace('"test"', '"train"'), lambda text: text.replace('"live": ', '"live": null, "x": '),
        lambda text: text.replace('"config": {', '"config": {"data_root": "/x", '),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_are_named(fake: Fake, tmp_path: Path, harm: Callable[[str], str]) -> None:
    path = results.export(fake(), tmp_path, "demo")
    harmed = harm(path.read_text())
    assert harmed != path.read_text()
    path.write_text(harmed)
    with pytest.raises(ka.KAError, match=re.escape(str(path))) as error:
        results.read(tmp_path, "demo")
    assert "\n" not in str(error.value)


def test_a_damaged_run_is_named(fake: Fake, tmp_path: Path) -> None:
    run = fake()
    (run.path / "environment.json").write_text("{}")
    with pytest.raises(ka.KAError, match=re.escape(str(run.path))):
        results.from_runs(tmp_path / "runs")


def test_a_file_under_another_name_is_refused(fake: Fake, tmp_path: Path) -> None:
    path = results.export(fake(), tmp_path, "demo")
    path.rename(path.with_name("kav11-seed1.json"))
    with pytest.raises(ka.KAError, match=r"kav11-seed1\.json holds kav11-seed0"):
        results.read(tmp_path, "demo")


def test_protocols_do_not_mix(fake: Fake, tmp_path: Path) -> None:
    results.export(fake(), tmp_path, "demo")
    with pytest.raises(ka.KAError, match=r"different protocols \(dim: 16 and 8; lr: 0.001 and 0.003\)"):
        results.export(fake("kav1", dim=16, lr=1e-3), tmp_path, "demo")
    assert len(results.read(tmp_path, "demo")) == 1  # nothing was written
    results.export(fake("kav1", seed=3, device="auto", checkpoint_every=1.0), tmp_path, "demo")
    with pytest.raises(ka.KAError, match="different protocols"):
        results.from_runs(tmp_path / "runs")


def test_other_data_does_not_mix(fake: Fake) -> None:
    one, other = (results._parse(results._record(run), run.path) for run in (fake(), fake("kav1", psnr=[40.0] * 2)))
    with pytest.raises(ka.KAError, match=r"different data \(bicubic"):
        results.check([one, other])


def test_the_same_seed_twice_is_refused(fake: Fake, tmp_path: Path) -> None:
    first = fake(psnr=[40.0] * 3)
    results.export(first, tmp_path, "demo")
    exported = results.read(tmp_path, "demo")
    assert results.merge(exported, results.from_runs(tmp_path / "runs")) == exported  # exported before: counts once
    fake(psnr=[41.0] * 3)
    with pytest.raises(ka.KAError, match="kav11-seed0 is there twice"):
        results.from_runs(tmp_path / "runs")
    shutil.rmtree(first.path)
    with pytest.raises(ka.KAError, match="kav11-seed0 is there twice"):
        results.merge(exported, results.from_runs(tmp_path / "runs"))


def test_an_undefined_metric_is_no_number(fake: Fake, tmp_path: Path) -> None:
    run = fake("psrt_noshuffle")
    metrics = run.metrics()
    metrics["methods"]["best"]["scenes"]["scene 1"]["ergas"] = None
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    fake("kav1")
    results.export(run, tmp_path, "demo")
    assert results.read(tmp_path, "demo") == results.read(tmp_path, "demo")
    table = results.table(results.from_runs(tmp_path / "runs"), costs=COSTS)
    assert rows(table)["kav1"].differences["ergas"].low is None
    assert rows(table)["kav1"].differences["psnr"].low is not None
    assert "undefined" in report.to_markdown(table)
    png(report.forest(table))


# Statistics


def test_the_interval_of_many_scenes_is_the_paired_t_interval(rng: np.random.Generator) -> None:
    """For 200 normal differences a bootstrap-t and Student's t (1.972 at 199 degrees of freedom) are the same."""
    theirs = rng.normal(40, 5, (1, 200))
    gaps = rng.normal(1, 2, 200)
    found = difference(theirs + gaps, theirs, SeedNoise(), alpha=0.05)
    half = 1.972 * gaps.std(ddof=1) / 200**0.5
    assert (found.value, found.covers) == (pytest.approx(gaps.mean()), "scenes")
    assert (found.low, found.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.03 * half)


def test_the_interval_of_one_scene_is_students_t() -> None:
    """Seeds alone: 4.303 at 2 degrees of freedom, 2.228 at 10."""
    for freedom, t in ((2, 4.303), (10, 2.228)):
        found = difference(np.array([[3.0]]), np.array([[1.0]]), SeedNoise(0.25, freedom), alpha=0.05)
        assert (found.value, found.covers) == (2, "seeds")
        assert found.high == pytest.approx(2 + t * 0.5, rel=0.03)


def test_too_few_scenes_have_no_interval() -> None:
    """Two scenes: every other draw is one scene twice, and knows no spread."""
    assert difference(np.array([[3.0, 2.0]]), np.array([[1.0, 1.0]]), SeedNoise(), alpha=0.05).low is None


def test_its_error_is_that_of_a_bootstrap_over_scenes_and_seeds(rng: np.random.Generator) -> None:
    """Draw scenes and seeds with replacement, many times: the same standard error (with n - 1 in place of n)."""
    theirs = rng.normal(40, 5, (1, 11)) + rng.normal(0, 0.3, (6, 1))
    ours = theirs + rng.normal(0.5, 1, (1, 11)) + rng.normal(0, 0.5, (6, 1))
    values, seeds = {"a": ours, "b": theirs}, dict.fromkeys("ab", tuple(range(6)))
    gap = ours - theirs
    drawn = [gap[rng.integers(6, size=6)][:, rng.integers(11, size=11)].mean() for _ in range(20_000)]
    scenes, whole = gap.mean(0).var() / 11, np.var(drawn)
    noise = seed_noise({"a": 1, "b": -1}, values, seeds)
    assert noise.freedom == 5
    assert noise.variance == pytest.approx((whole - scenes) * 6 / 5, rel=0.05)


def test_seed_noise_by_hand() -> None:
    """Two paired seeds: the differences 1 and 3 have s² = 2, so SE² = 1. One seed: the pooled variance, twice."""
    values = {"a": np.array([[11.0], [15.0]]), "b": np.array([[10.0], [12.0]]), "c": np.array([[9.0]])}
    seeds = {"a": (0, 1), "b": (0, 1), "c": (0,)}
    assert seed_noise({"a": 1, "b": -1}, values, seeds) == SeedNoise(pytest.approx(1), 1)  # type: ignore[arg-type]
    within = ((11 - 13) ** 2 + (15 - 13) ** 2 + (10 - 11) ** 2 + (12 - 11) ** 2) / 2
    assert seed_noise({"c": 1, "b": -1}, values, seeds) == SeedNoise(pytest.approx(within * (1 + 1 / 2)), 2)  # type: ignore[arg-type]
    alone = {"a": np.array([[1.0, 2.0]]), "b": np.array([[1.0, 2.0]])}
    assert seed_noise({"a": 1, "b": -1}, alone, dict.fromkeys("ab", (0,))) == SeedNoise()


@pytest.mark.parametrize(
    ("scenes", "seeds", "of_scenes", "of_seeds"),
    [(11, 1, 1.0, 0.0), (11, 3, 1.0, 0.3), (11, 3, 0.1, 1.0), (1, 3, 0.0, 1.0)],
)
def test_null_tables_show_a_difference_in_one_of_twenty(
    rng: np.random.Generator, scenes: int, seeds: int, of_scenes: float, of_seeds: float
) -> None:
    """Six models without a true difference, 400 tables: 5 % (and chance: 3 sigma) have an interval off zero."""
    names, repeats, false = "abcdef", 400, 0
    for _ in range(repeats):
        scene, block = rng.normal(40, 5, (1, scenes)), rng.normal(0, 0.2, (seeds, 1))
        values = {
            name: scene
            + block
            + rng.normal(0, of_scenes, (1, scenes))
            + rng.normal(0, of_seeds, (seeds, 1))
            + rng.normal(0, 0.1 if of_scenes else 0, (seeds, scenes))
            for name in names
        }
        held = dict.fromkeys(names, tuple(range(seeds)))
        false += any(
            difference(
                values[name], values["a"], seed_noise({name: 1, "a": -1}, values, held), 0.05 / 5, 4000
            ).excludes_zero
            for name in names[1:]
        )
    assert 0.005 < false / repeats < 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5


def test_percentiles_of_a_bootstrap_would_not_keep_the_promise(rng: np.random.Generator) -> None:
    """The docstring's 11 %: the plain percentile interval of 11 scenes misses too often, ours does not."""
    missed = np.zeros(2)
    for _ in range(400):
        gap = rng.normal(0, 1, 11)
        low, high = np.quantile(gap[rng.integers(11, size=(1000, 11))].mean(1), (0.025, 0.975))
        ours = difference(gap[None], np.zeros((1, 11)), SeedNoise(), 0.05, 4000)
        missed += [low > 0 or high < 0, ours.excludes_zero]
    assert missed[0] > 34 > missed[1]


def measured(fake: Fake, root: Path, **shifts: tuple[float, ...]) -> Table:
    """A table of 11 scenes: every variant is the baseline plus its shifts (one a seed) plus 0.1 dB of scene noise."""
    rng = np.random.default_rng(5)
    scene = rng.normal(60, 5, 11)  # above the methods without training
    for name, each in shifts.items():
        own = rng.normal(0, 0.1, 11)
        for seed, shift in enumerate(each):
            fake(name, seed, scene + own + shift)
    return results.table(results.from_runs(root / "runs"), costs=COSTS)


def test_a_constant_shift_is_found_and_bold(fake: Fake, tmp_path: Path) -> None:
    table = measured(fake, tmp_path, psrt_noshuffle=(0, 0.02), kav11=(0.5, 0.53), kav3=(-0.5, -0.5))
    found = rows(table)
    assert found["kav11"].differences["psnr"].value == pytest.approx(0.5, abs=0.1)
    assert found["kav11"].differences["psnr"].excludes_zero
    assert found["kav11"].bold == {"psnr", "sam"}
    assert found["kav3"].differences["psnr"].excludes_zero
    assert found["kav3"].bold == frozenset()  # surely worse
    assert found["psrt_noshuffle"].differences == {}
    text = report.to_markdown(table)
    assert f"| kav11 | 2 | **{found['kav11'].stats['psnr'].mean:.3f} ± 0.021** |" in text
    assert "95 % for all 2 variants at once (Bonferroni: 97.50% each)" in text


def test_no_difference_is_not_bold(fake: Fake, tmp_path: Path) -> None:
    table = measured(fake, tmp_path, psrt_noshuffle=(0.0,), kav11=(0.02,), kav3=(0.03,))
    assert all(row.bold == frozenset() for row in table.rows)
    assert "| **" not in report.to_markdown(table)
    assert any("no model has a second seed" in note for note in table.notes)
    assert rows(table)["kav11"].differences["psnr"].covers == "scenes"


def test_intervals_are_corrected_for_the_number_of_variants(fake: Fake, tmp_path: Path) -> None:
    """With two compared, each has level 1 - 0.05/2 in place of 1 - 0.05."""
    both = rows(measured(fake, tmp_path, psrt_noshuffle=(0.0,), kav11=(0.02,), kav3=(0.03,)))
    found = [run for run in results.from_runs(tmp_path / "runs") if run.config.variant != "kav3"]
    ours, theirs = (
        next(run.methods["best"].values("psnr")[None] for run in found if run.config.variant == name)
        for name in ("kav11", "psrt_noshuffle")
    )
    one, two = (each["kav11"].differences["psnr"] for each in (rows(results.table(found, costs=COSTS)), both))
    assert one == difference(ours, theirs, SeedNoise(), 0.05)
    assert two == difference(ours, theirs, SeedNoise(), 0.025)
    assert one.low is not None
    assert two.low is not None
    assert two.low < one.low


def test_nothing_is_bold_where_a_method_without_training_is_best(fake: Fake, tmp_path: Path) -> None:
    low = np.linspace(1, 2, 11)  # below bicubic, by far
    fake("psrt_noshuffle", 0, low)
    fake("kav11", 0, low + np.linspace(7, 9, 11))
    table = results.table(results.from_runs(tmp_path / "runs"), costs=COSTS)
    assert rows(table)["kav11"].differences["psnr"].excludes_zero
    assert "psnr" not in rows(table)["kav11"].bold


def test_one_scene_needs_seeds(fake: Fake, tmp_path: Path) -> None:
    for seed, (ours, theirs) in enumerate(((41.0, 40.0), (41.1, 40.2), (41.3, 40.1))):
        fake("kav11", seed, [ours])
        fake("psrt_noshuffle", seed, [theirs])
        found = rows(results.table(results.from_runs(tmp_path / "runs"), costs=COSTS))["kav11"].differences["psnr"]
        assert (found.low is not None) == (seed == 2)
    assert found.covers == "seeds"
    gaps = np.array([1.0, 0.9, 1.2])  # a paired t interval of three seeds
    half = 4.3027 * gaps.std(ddof=1) / 3**0.5
    assert (found.low, found.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.02 * half)


# The table


def test_every_variant_has_a_row_and_none_an_invented_number(fake: Fake, tmp_path: Path) -> None:
    fake("kav11")
    for found in (results.from_runs(tmp_path / "runs"), []):
        table = results.table(found, costs=COSTS)
        assert [row.name for row in table.rows] == ["bicubic", "linear injection", *VARIANTS]
        run = [row.name for row in table.rows if row.stats]
        assert run == (["bicubic", "linear injection", "kav11"] if found else [])
        missing = re.findall(r"^\| \S+( injection)? \| – \| not run \| – \| – \|", report.to_markdown(table), re.M)
        assert len(missing) == len(table.rows) - len(run)
        assert report.to_latex(table).count("not run") == len(table.rows) - len(run)
        lines = list(csv.DictReader(io.StringIO(report.to_csv(table))))
        for line in lines:
            assert (line["status"] == "not run") == (line["model"] not in run)
            assert bool(line["psnr"]) == (line["model"] in run)
            assert not line["psnr_difference"]  # the baseline was not run
        assert png(report.forest(table)).startswith(b"\x89PNG")
        assert png(report.quality_against_cost(table)).startswith(b"\x89PNG")


def test_the_table_has_the_studys_numbers_and_costs() -> None:
    found = rows(results.table([], costs=COSTS))
    assert found["kav11"].printed is REPORTED["kav11"]
    assert found["kav5"].printed is None
    assert (found["kav5_as_run"].reported, found["kav5_as_run"].deployed) == (410_911 + 591_264, 410_911)
    assert (found["kav11"].gflops, found["kav11"].ms) == (9, 9)
    assert "study: PSNR" in report.to_markdown(results.table([], costs=COSTS))


def test_costs_of_another_width_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "flops", lambda name: 123e9)
    for costs in (None, replace(COSTS, dim=24)):
        table = results.table([], costs=costs)
        row = rows(table)["kav11"]
        assert (row.gflops, row.ms) == (123, None)
        assert report.to_markdown(table).count("not measured") >= 2 * len(VARIANTS)


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(ka.KAError, match="variant 'psrt_shuffle' is unknown"):
        results.table([], baseline="psrt_shuffle", costs=COSTS)
    with pytest.raises(ka.KAError, match="choose one of best, last, average"):
        results.table([], which="first", costs=COSTS)


# Text and figures


def hostile(name: str) -> Table:
    stats = {metric: Stat(1.5) for metric in results.SHOWN}
    changes = {metric: Difference(0.1, -0.1, 0.3, "scenes") for metric in results.SHOWN}
    return Table([Row(name, (0,), stats, changes, reported=1)], name, [name])


NAMES = [
    "</td><script>alert(1)</script>",
    "a | b\n| c",
    "**x** `y` [z](http://w) $E=1$ \\\\ # ! ~~s~~",
    "=1+1",
    "@x",
    "-2",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_cannot_inject_markdown_or_html(name: str) -> None:
    text = report.to_markdown(hostile(name))
    assert "<" not in text
    (line,) = [line for line in text.splitlines() if "1.500" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 9  # eight cells
    cell = re.split(r"(?<!\\)\|", line)[1]
    assert not re.search(r"(?<!\\)(\\\\)*[*`\[\]$~_#]", cell)


@pytest.mark.parametrize(
    "name",
    [r"\input{/etc/passwd}", r"}\end{tabular}", "50% & $x_1^2$ # ~", "a\n\n\\def", r"\write18{rm}", "[1cm]x", "*x"],
)
def test_names_cannot_inject_latex(name: str) -> None:
    text = report.to_latex(hostile(name))
    known = {
        "begin", "end", "centering", "footnotesize", "setlength", "tabcolsep", "caption", "toprule", "midrule",
        "bottomrule", "par", "smallskip", "parbox", "textwidth", "textbackslash", "textasciitilde",
        "textasciicircum", "Delta", "circ", "times",
    }  # fmt: skip
    assert set(re.findall(r"\\([A-Za-z]+)", text)) <= known
    plain = re.sub(r"\\[{}$&#_%\\]", "", text)
    assert plain.count("{") == plain.count("}")
    assert "%" not in plain
    assert "#" not in plain
    assert plain.count("&") == 7 * 2 + 4 * 2 + 7 * 2
    assert not re.search(r"\\\\\s*[\[*]", text)  # no argument to the end of a row


@pytest.mark.parametrize("name", NAMES)
def test_csv_is_read_back_and_is_no_formula(name: str) -> None:
    (line,) = csv.DictReader(io.StringIO(report.to_csv(hostile(name)), newline=""))
    assert line["model"][0] not in "=+-@"
    assert line["model"].removeprefix("'") == " ".join(name.split())
    assert float(line["psnr_low"]) == -0.1


def test_text_and_figures_are_the_same_bytes_each_time(fake: Fake, tmp_path: Path) -> None:
    one, other = (
        measured(fake, tmp_path, psrt_noshuffle=(0.0,), kav11=(0.02,)) if turn == 0
        else results.table(results.from_runs(tmp_path / "runs")[::-1], costs=COSTS)
        for turn in range(2)
    )  # fmt: skip
    for write in (report.to_csv, report.to_markdown, report.to_latex):
        assert write(one) == write(other)
    assert png(report.forest(one)) == png(report.forest(other))


def test_everything_is_written_whole(tmp_path: Path) -> None:
    table = results.table([], costs=COSTS)
    paths = report.write(table, tmp_path / "paper")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "paper").iterdir()}
    before = [path.read_bytes() for path in paths]
    assert before[0].decode() == report.to_csv(table)
    assert [path.read_bytes() for path in report.write(table, tmp_path / "paper")] == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ka.KAError, match="could not be written"):
        report.write(table, tmp_path / "file")


def test_labels_lie_apart_and_inside(rng: np.random.Generator) -> None:
    """23 points of a few costs, as they are: no two labels overlap, none leaves the frame."""
    table = Table(
        [
            Row(name, (0,), {"psnr": Stat(44 + rng.normal(0, 0.4), 0.1)}, reported=1, deployed=5 * 10**5, gflops=272.0)
            for name in VARIANTS
        ],
        "psrt_noshuffle",
        [],
    )
    figure = report.quality_against_cost(table)
    figure.draw_without_rendering()
    for axis in figure.axes:
        frame = axis.get_window_extent()
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # of the text without its line
        assert len(boxes) == len(VARIANTS)
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
        assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_forest_shows_what_was_run(fake: Fake, tmp_path: Path) -> None:
    table = measured(fake, tmp_path, psrt_noshuffle=(0.0,), kav11=(0.5,), kav3=(-0.5,))
    axes = report.forest(table).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["kav11", "kav3"]
    low, high = axes[0].get_xlim()
    assert low == -high


def test_the_command_line_exports(real: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path)
    assert results.main(["demo", str(real.path)]) == 0
    assert (tmp_path / "demo" / "kav11-seed0.json").exists()
    assert results.main(["demo", str(tmp_path)]) == 2
    assert results.main(["demo"]) == 2


def test_what_is_committed_can_be_read() -> None:
    """Every protocol under results/ is whole and makes a table."""
    for protocol in results.protocols(results.results_folder()):
        found = results.read(results.results_folder(), protocol)
        assert sum(bool(row.seeds) for row in results.table(found, costs=COSTS).rows) == len(
            {result.config.variant for result in found}
        )
