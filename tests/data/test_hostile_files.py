"""Hostile run folders, results, plans, configurations and checkpoints (see tests/hostile.py)."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import JSON, changed, damage, few, refused, tiers
from hypothesis import given
from hypothesis import strategies as st
from IPython.display import Markdown

import ka
from ka.models import checkpoints
from workbook import notebook
from workbook.paths import ROOT
from workbook.results import speed
from workbook.results import stored as results
from workbook.sweeps.plan import Plan, Planned
from workbook.training.config import PRESETS, Config
from workbook.training.run import Run
from workbook.training.train import train


@pytest.fixture(scope="module")
def finished(smoke: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(smoke(tmp_path_factory.mktemp("hostile") / "run", iterations=3), bar=False).path


@tiers
def test_a_run_folders_files(examples: int, finished: Path, tmp_path: Path) -> None:
    """Configuration, metrics, environment and history of a run, as results take them."""
    names = ["config.json", "metrics.json", "environment.json", "history.jsonl"]

    @given(st.data())
    @few(examples)
    def check(draws: st.DataObject) -> None:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished, folder)
        path = folder / draws.draw(st.sampled_from(names))
        if draws.draw(st.booleans()) or path.suffix == ".jsonl":
            path.write_bytes(draws.draw(damage(path.read_bytes())))
        else:
            path.write_text(json.dumps(draws.draw(changed(json.loads(path.read_text())))), encoding="utf-8")
        run = Run(folder)
        for read in (run.config, run.metrics, run.history, lambda: results.from_runs(tmp_path)):
            refused(read)
        refused(lambda: results.export(run, tmp_path / "results", "hostile"))
        assert {path.name for path in tmp_path.iterdir()} <= {"run", "results"}

    check()


@tiers
def test_exported_results(examples: int, finished: Path, tmp_path: Path) -> None:
    @given(st.data())
    @few(examples)
    def check(draws: st.DataObject) -> None:
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        path = results.export(Run(finished), tmp_path / "results", "hostile")
        good = json.loads(path.read_text())
        value = draws.draw(changed(good))
        path.write_text(json.dumps(value), encoding="utf-8")
        if not refused(lambda: results.read(tmp_path / "results", "hostile")):
            (result,) = results.read(tmp_path / "results", "hostile")
            assert result.name == path.stem
            for name, method in result.methods.items():  # what is read is what stands there
                for scene, values in method.scenes.items():
                    for metric, number in values.items():
                        stored = value["methods"][name][scene][metric]
                        assert np.isnan(number) if stored is None else number == stored

    check()


@tiers
def test_plans_and_benchmarks(examples: int, tmp_path: Path) -> None:
    @given(st.data())
    @few(examples)
    def check(draws: st.DataObject) -> None:
        plan = Plan.new("smoke", ["kav1"], [0])
        plan.write(tmp_path / "plan.json")
        stored = ROOT / "results" / "bench.json"
        for path, good, read in (
            (tmp_path / "plan.json", json.loads((tmp_path / "plan.json").read_text()), Plan.read),
            (tmp_path / "bench.json", json.loads(stored.read_text()), speed.read),
        ):
            path.write_text(json.dumps(draws.draw(changed(good))), encoding="utf-8")
            if not refused(lambda path=path, read=read: read(path)) and path.name == "plan.json":
                kept = Plan.read(path)
                assert kept is not None
                assert all(run.name == Planned(run.variant, run.seed).name for run in kept.runs)
                assert not any({"/", "\\", "\x00"} & set(run.name) for run in kept.runs)

    check()


@tiers
def test_configurations(examples: int) -> None:
    names = st.sampled_from(sorted(Config.__dataclass_fields__))

    @given(st.dictionaries(names, JSON, max_size=3), st.sampled_from(sorted(PRESETS)))
    @few(examples)
    def check(fields: dict[str, Any], preset: str) -> None:
        if not refused(lambda: Config.preset(preset, **fields)):
            config = Config.preset(preset, **fields)
            assert all(getattr(config, key) == value for key, value in fields.items())

    check()


# Checkpoints


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    model = ka.build("kav11", 4, 2, 8)
    checkpoints.save_weights(folder / "good.safetensors", model)
    torch.save({"state_dict": model.state_dict()}, folder / "good.pth.tar")
    return folder


@tiers
def test_checkpoints(examples: int, weights: Path, tmp_path: Path) -> None:
    @given(st.data())
    @few(examples)
    def check(draws: st.DataObject) -> None:
        name = draws.draw(st.sampled_from(["good.safetensors", "good.pth.tar"]))
        path = tmp_path / name
        good = (weights / name).read_bytes()
        bad = draws.draw(damage(good))
        path.write_bytes(bad)
        if not refused(lambda: ka.load_checkpoint(path, "kav11")):
            model = ka.load_checkpoint(path, "kav11")  # bytes of a weight were changed: a file that holds other numbers
            assert len(bad) == len(good)
            assert model.row.name == "kav11"

    check()


@tiers
def test_resumable_checkpoints(examples: int, finished: Path, tmp_path: Path) -> None:
    @given(st.data())
    @few(examples)
    def check(draws: st.DataObject) -> None:
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(draws.draw(damage((finished / "checkpoint.pt").read_bytes())))
        refused(Run(tmp_path).resume)

    check()


class Payload:
    """What runs code when it is unpickled: it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["checkpoint.pt", "evil.pth.tar", "evil.pt", "evil.safetensors"])
def test_a_payload_is_refused_and_does_not_run(name: str, tmp_path: Path) -> None:
    created, path = tmp_path / "created", tmp_path / name
    for write in (
        lambda: torch.save({"step": 1, "model": Payload(created)}, path),
        lambda: path.write_bytes(pickle.dumps(Payload(created))),
        lambda: torch.save({"step": Payload(created)}, path, _use_new_zipfile_serialization=False),
    ):
        write()
        assert refused(lambda: ka.load_checkpoint(path, "kav11"))
        if name == "checkpoint.pt":
            assert refused(Run(tmp_path).resume)
        assert not created.exists()
    pickle.loads(pickle.dumps(Payload(created)))  # it would have
    assert created.exists()


# Names


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/b", "..", "", "kav1\n", "kav1\x00", "<b>kav1</b>"])
def test_no_name_leads_outside(name: str, finished: Path, tmp_path: Path) -> None:
    assert refused(lambda: Config.preset("smoke", variant=name))
    assert refused(lambda: Plan.new("smoke", [name], [0]).config(Planned(name, 0)))
    assert refused(lambda: results.export(Run(finished), tmp_path / "results", name))
    assert not list(tmp_path.rglob("*"))


@tiers
def test_no_cell_breaks_out_of_a_table(examples: int) -> None:
    """What a table shows may come from files: names of runs, messages of errors."""
    hostile = ["<img src=x onerror=alert(1)>", "a | b\n| c", "[x](javascript:y)", "`$x$`"]

    @given(st.text(max_size=60) | st.sampled_from(hostile))
    @few(examples)
    def check(text: str) -> None:
        table = notebook.table([{"run": text, "other": "x"}])
        assert isinstance(table, Markdown)
        head, rule, *rows = table.data.split("\n")
        assert (head, rule) == ("| run | other |", "| --- | --- |")
        assert len(rows) == 1
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", rows[0])) == 3
        assert "<" not in rows[0]
        assert not re.search(r"(?<!\\)(?:\\\\)*[*`$~]", rows[0])
        assert "](" not in rows[0]

    check()


def test_weights_that_are_good_are_read(weights: Path) -> None:
    """Else the tests above would prove nothing."""
    for path in weights.iterdir():
        assert ka.load_checkpoint(path, "kav11").row.name == "kav11"
