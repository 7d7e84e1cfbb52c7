"""Sweeps: notebook runs side by side, here and on Slurm; a run that fails or is in use harms no other."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import slurm as throwaway
import submitit
from conftest import ROOT

import ka
from workbook import notebook
from workbook.paths import runs_folder
from workbook.sweeps import campaign as campaigns
from workbook.sweeps import sweep
from workbook.sweeps.plan import Planned
from workbook.sweeps.sweep import Sweep, Worker, claimed, states
from workbook.training.config import PRESETS, Config

TWO = ("psrt_noshuffle", "kav11")


def smoke(folder: Path, *more: str, variants: Sequence[str] = TWO) -> list[str]:
    fixed = ["--out", str(folder), "--device", "cpu", "--iterations", "3", "--variants", *variants]
    return ["smoke", *fixed, *more]


def plan(folder: Path, *more: str, variants: Sequence[str] = TWO) -> Sweep:
    return sweep.plan(smoke(folder, *more, variants=variants))


def printed(path: Path) -> str:
    """All that an executed notebook shows."""
    return json.dumps([cell.get("outputs") for cell in json.loads(path.read_text())["cells"]])


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep.os, "sched_getaffinity", lambda _: set(range(3, 11)))
    assert sweep.core_groups(3) == [(3, 4), (5, 6), (7, 8)]
    assert sweep.core_groups(1) == [tuple(range(3, 11))]
    assert len(sweep.core_groups(50)) == 8


def test_every_run_stands_as_its_folder_says(tmp_path: Path) -> None:
    variants = ("psrt", "kav1", "kav3", "kav7", "kav11", "conv3x3")
    found = plan(tmp_path / "sweep", variants=variants)
    done, running, failed, stopped, waiting, _ = found.campaign.plan.runs
    for path in (found.campaign.result(done), found.campaign.weights(done)):
        path.parent.mkdir(parents=True)
        path.touch()
    for planned in (running, stopped):
        run = found.campaign.run(planned)
        with run.lock():
            run.start(found.campaign.config(planned))
        run.note(step=1, seconds=30.0, lr=1e-3, loss=0.1, psnr=31.5, psnr_average=32.25)
    found.campaign.failure(failed).parent.mkdir()
    found.campaign.failure(failed).write_text("no more\n")
    (found.campaign.folder / "claims").mkdir()
    with sweep._claim(found.campaign, running).acquire():
        assert claimed(found.campaign, running)
        told = {state.name: state for state in states(found, {waiting.name, done.name, running.name})}
    assert not claimed(found.campaign, running)
    assert [state.state for state in told.values()] == ["done", "running", "failed", "stopped", "waiting", "missing"]
    assert told[running.name].row() == {
        "run": "kav1-seed0", "state": "running", "iteration": "1 of 3", "time left": "1.0 min",
        "validation PSNR (dB)": "32.25", "error": "",
    }  # fmt: skip
    assert told[failed.name].error == "no more"
    assert told[stopped.name].left is None


def test_workers_of_one_call_try_a_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = plan(tmp_path / "sweep"), list[str]()

    def execute(config: Config, preset: str, out: Path) -> None:
        assert (preset, out.stem) == ("smoke", f"{config.variant}-seed0")
        assert claimed(found.campaign, Planned(config.variant, config.seed))
        tried.append(config.variant)
        raise RuntimeError("of no use\nat all")

    monkeypatch.setattr(sweep, "execute", execute)
    runs = found.campaign.plan.runs
    one, other, later = (Worker(found.campaign, call) for call in ("first", "first", "second"))
    assert one(runs) == [f"{planned.name:24} failed: RuntimeError: of no use at all" for planned in runs]
    assert other(runs) == []
    assert tried == list(TWO)
    assert len(later(runs[:1])) == 1
    assert Worker(found.campaign)(runs[1:]) == Worker(found.campaign)(runs[1:])  # each has runs of its own: always
    assert tried == [*TWO, TWO[0], TWO[1], TWO[1]]
    assert found.campaign.failure(runs[0]).read_text() == "RuntimeError: of no use at all\n"


def test_a_run_that_another_process_works_at_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(tmp_path / "sweep")
    monkeypatch.setattr(sweep, "A_LOOK", 0.2)
    monkeypatch.setattr(sweep, "execute", lambda *_: pytest.fail("worked at it too"))
    first = found.campaign.plan.runs[:1]
    (found.campaign.folder / "claims").mkdir()
    with sweep._claim(found.campaign, first[0]).acquire():
        assert Worker(found.campaign)(first) == [f"{first[0].name:24} skipped, in use"]
    assert not found.campaign.failure(first[0]).exists()


def test_a_job_that_slurm_stops_is_queued_again_as_it_was(tmp_path: Path) -> None:
    found = plan(tmp_path / "sweep")
    worker, runs = Worker(found.campaign), found.campaign.plan.runs[:1]
    again = worker.checkpoint(runs)
    assert (again.function, again.args) == (worker, (runs,))


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_of_the_notebook_say_all_of_a_configuration(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(sweep.papermill, "execute_notebook", lambda _, out, values, **more: given.append(values))
    data = {"data_root": "/data"} if PRESETS[preset].get("dataset", "indian_pines") != "indian_pines" else {}
    config = Config.preset(preset, variant="kav3", seed=5, run_dir=str(tmp_path), **data)
    sweep.execute(config, preset, tmp_path / "out.ipynb")
    assert notebook.parameters(given[0])[0] == config


def test_what_parameters_cannot_say_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep.papermill, "execute_notebook", lambda *_, **__: pytest.fail("executed"))
    config = Config.preset("smoke", eval_size=None)
    with pytest.raises(ka.KAError, match="eval_size of smoke is set to None, which -p of a notebook cannot say"):
        sweep.execute(config, "smoke", tmp_path / "out.ipynb")


def test_one_that_fails_is_alone_and_only_what_is_missing_is_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes, two notebooks, one with a damaged checkpoint in its way."""
    folder = tmp_path / "sweep"
    damaged = folder / "runs" / "kav11-seed0" / "checkpoint.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no checkpoint")
    assert sweep.main(smoke(folder, "--jobs", "2")) == 1
    shown = capfd.readouterr().out
    assert "1 of 2 runs are done" in shown
    assert "kav11-seed0              failed · 0 of 3 · " in shown
    assert f"kav11-seed0: {damaged} is damaged; restore a copy, or start anew with restart=True" in shown
    good, bad = (folder / "notebooks" / f"{name}-seed0.ipynb" for name in TWO)
    assert "linear injection" in printed(good)
    assert "is damaged; restore a copy" in printed(bad)
    before = good.stat().st_mtime_ns
    damaged.unlink()
    assert sweep.main(smoke(folder, "--jobs", "2")) == 0
    assert good.stat().st_mtime_ns == before
    assert "linear injection" in printed(bad)
    assert "2 of 2 runs are done" in capfd.readouterr().out
    assert not (folder / "failed" / "kav11-seed0.txt").exists()
    assert not list(folder.rglob("*.part*"))
    rows = sweep.summary(plan(folder))
    assert [(row["variant"], row["seeds"]) for row in rows] == [(name, "1") for name in TWO]
    assert sweep.main(smoke(folder)) == 0  # nothing is missing: no job is started
    assert len(list((folder / "jobs").glob("*_submitted.pkl"))) == 3


def test_mistakes_start_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for number, (more, message) in enumerate(
        (
            (["--cluster", "slurm"], "no jobs could be started on slurm (Could not detect"),
            (["--cluster", "moon"], "invalid choice: 'moon'"),
            (["--jobs", "-1"], "--jobs -1 and --minutes 1440 have to be at least 1"),
            (["--slurm", "gpu"], "--slurm 'gpu' is not of the form name=value"),
            (["--set", "lr=-1"], "lr=-1"),
        )
    ):
        assert sweep.main(smoke(tmp_path / str(number), *more)) == 2
        text = capsys.readouterr().err
        assert message in text
        assert text.startswith("error: ")
        assert not (tmp_path / str(number) / "runs").exists()


def test_every_worker_has_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, workers = plan(tmp_path / "sweep", "--jobs", "2"), list[Worker]()
    found = replace(found, campaign=replace(found.campaign, device="auto"))
    monkeypatch.setattr(sweep.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep.gpus("auto") == ["0", "1"]
    assert sweep.gpus("cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert sweep.gpus("cuda") == ["2", "3"]
    with pytest.raises(ka.KAError, match="device='cuda:1' is one GPU, and every run of a sweep has its own"):
        sweep.gpus("cuda:1")
    monkeypatch.setattr(submitit.AutoExecutor, "submit", lambda _, worker, runs: workers.append(worker))
    sweep.submit(found)
    assert [worker.gpu for worker in workers] == ["2", "3"][: len(workers)]
    monkeypatch.setattr(sweep, "keep_to", lambda cores, gpu: kept.append(gpu))
    kept: list[str | None] = []
    workers[0]([])
    assert kept == ["2"]


def test_a_damaged_folder_does_not_end_the_table(tmp_path: Path) -> None:
    found = plan(tmp_path / "sweep")
    path = found.campaign.run(found.campaign.plan.runs[0]).path
    path.mkdir(parents=True)
    (path / "history.jsonl").write_text('nonsense\n{"step": 1}\n')
    one, other = states(found)
    assert (one.state, other.state) == ("failed", "missing")
    assert "line 1 is damaged" in one.error


def test_the_queue_tells_when_jobs_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounting may be off, and a killed job leaves no result."""
    jobs = [submitit.SlurmJob(tmp_path, f"12_{k}") for k in range(2)]
    jobs[0].paths.result_pickle.touch()
    answers = [(0, "12_1\n", ""), (1, "", "slurm_load_jobs error: Unable to contact slurm controller"), (0, "", "")]
    answers += [(1, "", "slurm_load_jobs error: Invalid job id specified")]
    asked: list[list[str]] = []

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, *answers.pop(0))

    monkeypatch.setattr(sweep.subprocess, "run", run)
    assert [sweep.ended(jobs) for _ in range(4)] == [False, False, True, True]
    assert all(command[-1] == "--jobs=12_1" for command in asked)
    assert sweep.ended(jobs[:1])
    assert sweep.ended([])


def test_a_notebooks_parameters_are_the_command_line(tmp_path: Path) -> None:
    assert sweep.arguments_of("smoke", "kav1 kav11", 3, "local", None, "", None, tmp_path) == [
        *("smoke", "--out", str(tmp_path), "--variants", "kav1", "kav11", "--seeds", "3", "--cluster", "local")
    ]
    assert sweep.arguments_of("laptop", "kav1", "0 1", "slurm", 2, "gres=gpu:1", "/a b", None) == [
        *(
            "laptop",
            "--out",
            str(runs_folder() / "sweep-laptop"),
            "--variants",
            "kav1",
            "--seeds",
            "0",
            "1",
        ),
        *("--cluster", "slurm", "--jobs", "2", "--slurm", "gres=gpu:1", "--data", "/a b"),
    ]


@pytest.mark.slurm
def test_on_slurm(tmp_path: Path) -> None:
    """Four runs as an array, of which one fails; the table is left and looked at again. Then that one."""
    folder = tmp_path / "sweep"
    damaged = folder / "runs" / "kav11-seed1" / "checkpoint.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no checkpoint")
    command = [sys.executable, "-m", "workbook.sweeps.sweep", *smoke(folder, "--seeds", "0", "1", "--cluster", "slurm")]
    with throwaway.slurm() as environment:
        watching = subprocess.Popen([*command, "--jobs", "2"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (folder / "jobs" / "queued.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        watching.send_signal(signal.SIGINT)  # ends the table only
        assert watching.wait() == 130
        for code, done, jobs in ((1, "3 of 4 runs are done", 4), (0, "4 of 4 runs are done", 5)):
            found = subprocess.run(
                [*command, "--jobs", "2"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            assert found.returncode == code, found.stdout + found.stderr
            assert done in found.stdout
            assert len(list((folder / "jobs").glob("*_submitted.pkl"))) == jobs
            damaged.unlink(missing_ok=True)
    assert len(campaigns.results.read(folder / "results", "smoke")) == 4
