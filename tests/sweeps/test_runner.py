"""What jobs do: every run once, failures alone, what is done left alone; places, GPUs, Slurm's queue."""

import json
import math
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import submitit
from safetensors import safe_open
from swept import TWO, main_here, prepared, same_weights, smoke, tiny

from ka import load_checkpoint
from ka.errors import KAError
from workbook.results import stored
from workbook.sweeps import command, runner, status, work
from workbook.sweeps.work import Work
from workbook.training.config import PRESETS
from workbook.training.run import Run
from workbook.training.step import State, Step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_h5: Path) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "finished"
    assert main_here(tiny(folder, tiny_h5)) == 0
    return folder


def test_a_sweep_leaves_results_and_weights(finished: Path) -> None:
    kept = {result.name: result for result in stored.read(finished / "results", "smoke")}
    assert set(kept) == {f"{name}-seed0" for name in TWO}
    for name, result in kept.items():
        path = finished / "weights" / f"{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            notes = file.metadata()
            dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
        assert float(notes["psnr"]) == pytest.approx(result.methods["best"].mean("psnr"), abs=1e-3)
        assert [str(dtype) for dtype in dtypes] == ["torch.float16"]
        assert load_checkpoint(path).row.name == name.removesuffix("-seed0")
    assert not (finished / "failed").exists()
    assert not list((finished / "jobs").glob("*.pkl"))


def test_a_second_call_trains_nothing(
    finished: Path, tiny_h5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    monkeypatch.setattr(work, "attempt", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("workbook.sweeps.folder.load_data", lambda *_: pytest.fail("read data"))
    assert command.main(["--out", str(finished)]) == 0
    assert command.main([*tiny(finished, tiny_h5), "--dry-run"]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    shown = capsys.readouterr().out
    assert shown.count("all 2 runs are done\n") == 2
    assert f"bring home {finished}/results and {finished}/weights (" in shown
    rows = status.summary(prepared(["--out", str(finished)]))
    assert [(row["variant"], row["seeds"]) for row in rows] == [(name, "1") for name in TWO]


def test_what_is_kept_is_enough_to_be_done(
    finished: Path, tiny_h5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run folders may be removed; a run that ended but was not kept is kept without training, also elsewhere."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(folder / "runs" / "kav11-seed0")
    (folder / "results" / "smoke" / "psrt_noshuffle-seed0.json").unlink()
    monkeypatch.setattr(Step, "__call__", lambda *_: pytest.fail("trained again"))
    assert main_here(["--out", str(folder), "--data", str(tiny_h5)]) == 0
    assert same_weights(finished, folder)
    assert len(stored.read(folder / "results", "smoke")) == 2


def test_a_run_that_fails_is_alone_and_tried_again(
    tmp_path: Path, tiny_h5: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner, three = Step.__call__, ("psrt_noshuffle", "kav11", "kav1")

    def spoiled(step: Step, state: State, count: int = 1) -> float:
        if state.model.row.name == "psrt_noshuffle":
            raise RuntimeError("something\nunforeseen")
        if state.model.row.name == "kav11":
            step.loss = lambda prediction, gt: (prediction - gt).sum() * math.nan
        return inner(step, state, count)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", spoiled)
        assert main_here(tiny(tmp_path, tiny_h5, variants=three)) == 1
    shown = capsys.readouterr().out
    assert "3 runs of 3 iterations (dim 8, batch 2), 1 done, 2 missing" in shown
    assert "the same command tries those that failed again" in shown
    notes = {path.stem: path.read_text() for path in (tmp_path / "failed").iterdir()}
    assert notes["psrt_noshuffle-seed0"] == "RuntimeError: something unforeseen\n"
    assert notes["kav11-seed0"].startswith("the loss or its gradient is not finite at iteration 1")
    assert all(note.strip() in shown for note in notes.values())
    assert main_here(["--out", str(tmp_path), "--data", str(tiny_h5)]) == 0
    assert not list((tmp_path / "failed").iterdir())
    (tmp_path / "weights" / "kav1-seed0.safetensors").unlink()
    assert same_weights(tmp_path, finished)


def test_a_run_in_use_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is trained by another sweep, or by itself."""
    monkeypatch.setattr(work, "PATIENCE", 0.1)
    sweep = prepared(smoke(tmp_path))
    first, second = sweep.plan.runs
    (tmp_path / "claims").mkdir()
    with sweep.claim(first), sweep.run(second).lock(), monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", lambda *_: pytest.fail("worked at it too"))
        assert sweep.claimed(first)
        assert [Work(sweep)(planned) for planned in (first, second)] == ["left to another process"] * 2
    assert not sweep.claimed(first)
    assert not (tmp_path / "failed").exists()


def test_a_job_that_ends_without_a_word_has_failed(tmp_path: Path) -> None:
    class Killed(submitit.Job[str]):
        def exception(self) -> Any:
            return submitit.core.utils.UncompletedJobError("no output")

    sweep = prepared(smoke(tmp_path))
    runner._clear_up(sweep, sweep.plan.runs[0], Killed(tmp_path / "jobs", "1"))
    (failed, _) = status.standings(sweep)
    assert failed.state == "failed"
    assert "killed, or out of memory?" in failed.note


def test_a_job_that_slurm_stops_is_queued_again_as_it_was(tmp_path: Path) -> None:
    sweep = prepared(smoke(tmp_path))
    job, planned = Work(sweep), sweep.plan.runs[0]
    again = job.checkpoint(planned)
    assert (again.function, again.args) == (job, (planned,))


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread each side by side, all of them alone; a GPU each where there are GPUs."""
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: set(range(3, 11)), raising=False)
    monkeypatch.setattr(runner.torch.cuda, "is_available", lambda: False)
    assert runner.places("auto", 0) == [{"threads": 1}] * 4
    assert runner.places("auto", 1) == [{"threads": 0}]
    assert runner.places("auto", 50) == [{"threads": 1}] * 8
    monkeypatch.setattr(runner.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert runner.places("auto", 0) == [{"gpu": "0"}, {"gpu": "1"}]
    assert runner.places("cpu", 2) == [{"threads": 1}] * 2
    assert runner.places("cuda:1", 0) == [{"gpu": "0,1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert runner.places("cuda", 3) == [{"gpu": "2"}, {"gpu": "3"}, {"gpu": "2"}]


def test_every_run_has_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places, three runs: never more than two at a time, and the third takes the place that became free."""
    sweep = replace(prepared(smoke(tmp_path, variants=("psrt", "kav1", "kav11"))), cluster="local")
    monkeypatch.setattr(runner, "EVERY", 0)
    monkeypatch.setattr(runner, "places", lambda *_: [{"gpu": "0"}, {"gpu": "1"}])
    alive: list[Work] = []
    seen: list[tuple[str | None, int, int]] = []

    class Pretended(submitit.Job[str]):
        def __init__(self, job: Work) -> None:
            super().__init__(tmp_path / "jobs", str(len(seen)))
            self.job = job
            alive.append(job)
            seen.append((job.gpu, job.caller, len(alive)))

        def done(self, force_check: bool = False) -> bool:
            if self.job in alive:
                alive.remove(self.job)
            return True

        def exception(self) -> None:
            return None

    monkeypatch.setattr(submitit.AutoExecutor, "submit", lambda _, job, planned: Pretended(job))
    runner.run(sweep, lambda runs: None)
    assert seen == [("0", os.getpid(), 1), ("1", os.getpid(), 2), ("0", os.getpid(), 1)]


def test_no_slurm_is_said_and_mistakes_of_ours_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert command.main(smoke(tmp_path, "--cluster", "slurm")) == 2
    assert "no jobs could be started on slurm (Could not detect" in capsys.readouterr().err
    assert command.main(smoke(tmp_path, "--cluster", "slurm", "--slurm", "time=3")) == 2
    assert "--slurm time=… is set by --minutes; give that instead" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    for error in (NameError, TypeError, AssertionError):

        def mistaken(*_: object, error: type[Exception] = error) -> None:
            raise error("of ours")

        monkeypatch.setattr(runner, "_submitted", mistaken)
        with pytest.raises(error, match="of ours"):
            command.main(smoke(tmp_path, "--cluster", "slurm"))


def test_the_queue_tells_when_jobs_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounting may be off, and a killed job leaves no result."""
    jobs = [submitit.SlurmJob[str](tmp_path, f"12_{number}") for number in range(2)]
    jobs[0].paths.result_pickle.touch()
    answers = [(0, "12_1\n", ""), (1, "", "slurm_load_jobs error: Unable to contact slurm controller"), (0, "", "")]
    answers += [(1, "", "slurm_load_jobs error: Invalid job id specified")]
    asked: list[list[str]] = []

    def run(line: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(line)
        return subprocess.CompletedProcess(line, *answers.pop(0))

    monkeypatch.setattr(runner.subprocess, "run", run)
    assert [runner.ended(jobs) for _ in range(4)] == [False, False, True, True]
    assert all(line[-1] == "--jobs=12_1" for line in asked)
    assert runner.ended(jobs[:1])
    assert runner.ended([])


def test_parameters_of_the_notebook_say_all_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(work.papermill, "execute_notebook", lambda _, out, values, **more: given.append(values))
    for preset, values in PRESETS.items():
        data = {"data_root": "/data"} if values.get("dataset", "indian_pines") != "indian_pines" else {}
        config = work.Config.preset(preset, variant="kav3", seed=5, run_dir=str(tmp_path), **data)
        work.execute(config, preset, tmp_path / "out.ipynb")
        said = {key: value for key, value in given[-1].items() if key != "preset"}
        assert (given[-1]["preset"], work.Config.preset(preset, **said)) == (preset, config)
    with pytest.raises(KAError, match="eval_size of smoke is set to None, which -p of a notebook cannot say"):
        work.execute(work.Config.preset("smoke", eval_size=None), "smoke", tmp_path / "out.ipynb")
    assert len(given) == len(PRESETS)


def test_a_run_folder_is_that_of_a_run(finished: Path) -> None:
    """Nothing of the sweep is in it: it may be looked at, or gone on with, by itself."""
    run = Run(finished / "runs" / "kav11-seed0")
    config = run.config()
    assert config is not None
    assert (config.variant, config.run_dir, run.finished) == ("kav11", str(run.path), True)
    starts = json.loads((run.path / "environment.json").read_text())["starts"]
    assert len(starts) == 1
