"""Finished runs as files: they come back equal or are refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import ka
from workbook.results import __main__ as command
from workbook.results import stored as results
from workbook.results.stored import ship
from workbook.results.table import table
from workbook.training.run import Run

Fake = Callable[..., Run]


def test_export_read_round_trip(real: Run, tmp_path: Path) -> None:
    path = results.export(real, tmp_path, "demo")
    assert path == tmp_path / "demo" / "kav11-seed0.json"
    (result,) = results.read(tmp_path, "demo")
    assert [result] == results.from_runs(real.path.parent)
    metrics = real.metrics()
    for method, found in metrics["methods"].items():
        assert result.methods[method].to_dict() == found
    assert asdict(result.record.parameters) == metrics["parameters"]
    assert result.record.environment["packages"]["torch"]
    assert result.record.environment["commit"]
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
    with pytest.raises(ka.KAError, match=re.escape("Expected `float | null`, got `str`")):
        results.read(tmp_path, "demo")


def test_a_file_of_eleven_scenes_is_small(fake: Fake, tmp_path: Path) -> None:
    path = results.export(fake(psnr=[40.123456789012345] * 11), tmp_path, "laptop")
    assert path.stat().st_size < 40_000


def test_a_mistyped_folder_is_not_an_empty_one(tmp_path: Path) -> None:
    assert results.read(tmp_path, "demo") == []
    with pytest.raises(ka.KAError, match="nowhere is not a folder; give the one that holds the folders of protocols"):
        results.read(tmp_path / "nowhere", "demo")


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
    one, other = (
        results.Result.of(results.Record.of(run), run.path) for run in (fake(), fake("kav1", psnr=[40.0] * 2))
    )
    with pytest.raises(ka.KAError, match=r"different data \(bicubic"):
        results.check([one, other])


def test_what_the_first_run_lacks_is_held_against_the_others(fake: Fake, tmp_path: Path) -> None:
    """Older runs lack a method; and 0.05 dB are no rounding."""
    older, *newer = (fake(name) for name in ("kav1", "kav2", "kav3"))
    metrics = older.metrics()
    del metrics["methods"]["local injection"]
    (older.path / "metrics.json").write_text(json.dumps(metrics))
    assert len(results.from_runs(tmp_path / "runs")) == 3
    metrics = newer[1].metrics()
    metrics["methods"]["local injection"]["scenes"]["scene 1"]["psnr"] += 0.05
    (newer[1].path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(
        ka.KAError, match=r"kav2-seed0 and kav3-seed0 were measured on different data \(local injection"
    ):
        results.from_runs(tmp_path / "runs")


def test_the_same_seed_twice_is_refused(fake: Fake, tmp_path: Path) -> None:
    first = fake(psnr=[40.0] * 3)
    results.export(first, tmp_path, "demo")
    fake(psnr=[41.0] * 3)
    with pytest.raises(ka.KAError, match="kav11-seed0 is there twice"):
        results.from_runs(tmp_path / "runs")
    shutil.rmtree(first.path)


def test_own_runs_stand_beside_the_kept_ones(fake: Fake, tmp_path: Path) -> None:
    """One that is kept itself counts once; of another protocol, twice there, or damaged: left out, with its path."""
    kept = [fake(psnr=[40.0] * 3), fake("kav1", psnr=[39.0] * 3)]
    for run in kept:
        results.export(run, tmp_path, "demo")
    fake(psnr=[41.0] * 3)
    twice, wide = fake(psnr=[42.0] * 3), fake("kav2", dim=16)
    (damaged := fake("kav3")).path.joinpath("environment.json").write_text("{")
    both, lines = results.with_yours(results.read(tmp_path, "demo"), tmp_path / "runs")
    assert [result.row for result in both] == ["kav1", "kav11", "kav11 (yours)"]
    assert len(lines) == 5
    assert f"{kept[0].path} is kav11-seed0 of these results itself" in lines
    assert any(line.startswith(f"{twice.path} is left out: kav11 (yours)-seed0 is there twice, ") for line in lines)
    assert any(line.startswith(f"{wide.path} is left out: ") and "dim: 8 and 16" in line for line in lines)
    assert any(line.startswith(f"{damaged.path} is left out: {damaged.path}: environment.json") for line in lines)
    rows = {row.name: row for row in table(both, "kav1").rows}
    assert rows["kav11 (yours)"].stats["psnr"].mean == 41
    assert rows["kav11 (yours)"].differences["psnr"].value == 2
    assert rows["kav11"].stats["psnr"].mean == 40


def test_own_runs_do_not_move_what_is_said_of_the_kept_ones(fake: Fake, tmp_path: Path) -> None:
    """A kept run that was trained again, to the rounding of another machine, is no news; another seed is a row."""
    for seed in (0, 1, 2):
        for name, level in (("kav1", 39.0), ("kav11", 40.0)):
            results.export(fake(name, seed, [level + 0.1 * (seed % 2), level, level + 0.2]), tmp_path, "demo")
    shutil.rmtree(tmp_path / "runs")
    fake("kav1", 0, [39.0000001, 39.0, 39.2])
    fake("kav11", 7, [45.0, 30.0, 20.0])
    kept = results.read(tmp_path, "demo")
    both, lines = results.with_yours(kept, tmp_path / "runs")
    assert [result.name for result in both if result.yours] == ["kav11 (yours)-seed7"]
    assert [line.partition(" is ")[2] for line in lines] == ["kav1-seed0 of these results itself"]
    assert any("Your own rows are judged beside each other" in note for note in table(both, "kav1").notes)
    before, after = ({row.name: row.differences for row in table(rows, "kav1").rows} for rows in (kept, both))
    assert before["kav11"] == after["kav11"]


def test_the_command_line_exports(real: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "results_folder", lambda: tmp_path)
    assert command.main(["demo", str(real.path)]) == 0
    assert (tmp_path / "demo" / "kav11-seed0.json").exists()
    assert command.main(["demo", str(tmp_path)]) == 2
    with pytest.raises(SystemExit):
        command.main(["demo"])


def test_weights_are_shipped_where_psnr_is_infinite(real: Run, tmp_path: Path) -> None:
    """A black band has an infinite PSNR, which JSON cannot hold."""
    run = Run(tmp_path / "run")
    shutil.copytree(real.path, run.path)
    metrics = run.metrics()
    metrics["methods"]["best"]["mean"]["psnr"] = None
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    path = ship(run, tmp_path / "checkpoints")
    content = path.read_bytes()
    path.write_bytes(content[:20])
    with pytest.raises(ka.KAError, match=r"kav11\.safetensors is damaged .*restore it, or remove it"):
        ship(run, tmp_path / "checkpoints")
    path.write_bytes(content)
    assert ka.load_checkpoint(path).row.name == "kav11"
    assert path.stat().st_size < (run.path / "best.safetensors").stat().st_size


def test_parts_of_a_data_set_are_read_together_or_refused(fake: Fake, tmp_path: Path) -> None:
    """Each scene tested by one part, with seeds of its own, and nothing else different."""

    def part(name: str, first: int, seed: int, **changes: Any) -> None:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        run = fake("kav1", seed, [40.0] * 3, **changes)
        text = (run.path / "metrics.json").read_text()
        (run.path / "metrics.json").write_text(re.sub(r"scene (\d)", lambda m: f"scene {int(m[1]) + first}", text))
        results.export(run, tmp_path, name)

    usual, second, third = results.CROSSWISE["laptop-crosswise"]
    part(usual, 0, 10)
    part(second, 3, 20, dataset="cave", data_root="here", test_scenes="beads")
    assert results.crosswise(tmp_path, "laptop-crosswise") == []  # the third part is not there
    part(usual, 0, 10, dataset="cave", data_root="here")
    part(third, 6, 30, dataset="cave", data_root="here", test_scenes="cloth")
    every = results.crosswise(tmp_path, "laptop-crosswise")
    assert [len(of_part[0].methods["best"].scenes) for of_part in results.by_test(every)] == [3, 3, 3]
    for changed, refusal in (
        ({"first": 5}, "kav1-seed20 and kav1-seed30 are of two parts and both test scene 5; give each scene to one"),
        ({"seed": 10}, "two parts both have runs of seed 10 (kav1-seed10 and kav1-seed10); train each part with other"),
        ({"dim": 16}, "kav1-seed10 and kav1-seed30 differ in dim; of two parts, only train_scenes, val_scenes, test_"),
    ):
        part(
            third, **{"first": 6, "seed": 30, "dataset": "cave", "data_root": "here", "test_scenes": "cloth"} | changed
        )
        with pytest.raises(ka.KAError, match=re.escape(refusal)):
            results.crosswise(tmp_path, "laptop-crosswise")
    with pytest.raises(ka.KAError, match="crosswise protocol 'laptop' is unknown"):
        results.crosswise(tmp_path, "laptop")
