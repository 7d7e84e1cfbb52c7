"""Campaigns: plans that go on anywhere, runs that fail alone, hours that are kept, machines with little installed."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from ka import VARIANTS, load_checkpoint
from ka.data.cave import CAVE_TEST, CAVE_TRAIN
from ka.errors import KAError
from workbook.results import stored as results
from workbook.sweeps import campaign, plan
from workbook.sweeps.plan import STUDY, Pace, Plan, Planned, default_variants
from workbook.training.run import Run
from workbook.training.step import State, Step

THREE = ("psrt_noshuffle", "kav11", "kav1")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def smoke(folder: Path, *more: str, variants: tuple[str, ...] = THREE, iterations: int = 3) -> list[str]:
    fixed = ["--out", str(folder), "--device", "cpu", "--variants", *variants, "--iterations", str(iterations)]
    return ["smoke", *fixed, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("campaigns") / "finished"
    assert campaign.main(smoke(folder)) == 0
    return folder


def same_weights(one: Path, other: Path) -> bool:
    names = [path.name for path in sorted((one / "weights").iterdir())]
    assert names == [path.name for path in sorted((other / "weights").iterdir())]
    found = [[load_file(folder / "weights" / name) for name in names] for folder in (one, other)]
    return all(torch.equal(a[key], b[key]) for a, b in zip(*found, strict=True) for key in a)


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a call that is refused."""
    capsys.readouterr()
    assert campaign.main(arguments) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.startswith("error: ")
    return text


def test_a_campaign_leaves_results_and_weights(finished: Path) -> None:
    names = [f"{name}-seed0" for name in THREE]
    written = json.loads((finished / "plan.json").read_text())
    assert [Planned(**run).name for run in written["runs"]] == names
    assert (written["protocol"], written["shared"]["iterations"], written["shared"]["dim"]) == ("smoke", 3, 8)
    assert str(finished) not in json.dumps(written)
    read = {result.name: result for result in results.read(finished / "results", "smoke")}
    assert set(read) == set(names)
    for name in names:
        path = finished / "weights" / f"{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            notes = file.metadata()
        assert float(notes["psnr"]) == pytest.approx(read[name].methods["best"].mean("psnr"), abs=1e-3)
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}
        assert load_checkpoint(path).row.name == name.removesuffix("-seed0")
    assert not (finished / "failed").exists()


def test_a_second_call_trains_nothing(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    monkeypatch.setattr(campaign, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(campaign, "load_data", lambda *_: pytest.fail("read data"))
    assert campaign.main(["--out", str(finished)]) == 0
    assert campaign.main([*smoke(finished), "--dry-run"]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    printed = capsys.readouterr().out
    assert "3 of 3 runs are done" in printed
    assert f"bring home {finished / 'results'} and {finished / 'weights'} (" in printed
    assert printed.count("PSNR") == 3
    assert "nothing is missing" in printed


def test_what_is_kept_is_enough_to_be_done(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders may be removed; a run that ended but was not kept is kept without training."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(folder / "runs" / "kav1-seed0")
    (folder / "weights" / "kav11-seed0.safetensors").unlink()
    (folder / "results" / "smoke" / "psrt_noshuffle-seed0.json").unlink()
    monkeypatch.setattr(Step, "__call__", lambda *_: pytest.fail("trained again"))
    assert campaign.main(["--out", str(folder)]) == 0
    assert same_weights(finished, folder)
    assert len(results.read(folder / "results", "smoke")) == 3


def test_killed_and_moved_it_ends_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    folder, moved = tmp_path / "killed", tmp_path / "elsewhere" / "moved"
    command = [sys.executable, "-m", "workbook.sweeps.campaign", *smoke(folder, "--set", "checkpoint_every=0.0")]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(folder / "runs" / "kav11-seed0" / "checkpoint.pt", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "results" / "smoke" / "kav11-seed0.json").exists()
    moved.parent.mkdir()
    folder.rename(moved)
    assert campaign.main(["--out", str(moved)]) == 0  # another device, too: it is auto now
    assert same_weights(finished, moved)
    starts = json.loads((moved / "runs" / "kav11-seed0" / "environment.json").read_text())["starts"]
    assert len(starts) == 2
    config = Run(moved / "runs" / "kav11-seed0").config()
    assert config is not None
    assert config.device == "auto"
    assert not list(moved.rglob("*.part"))


def wait_for(path: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 240
    while not path.exists() and time.monotonic() < deadline:
        assert process is None or process.poll() is None
        time.sleep(0.02)


def test_a_run_that_fails_is_alone_and_tried_again(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = Step.__call__

    def spoiled(step: Step, state: State, count: int = 1) -> float:
        if state.model.row.name == "psrt_noshuffle":
            raise RuntimeError("something\nunforeseen")
        if state.model.row.name == "kav11":
            step.loss = lambda prediction, gt: (prediction - gt).sum() * math.nan
        return inner(step, state, count)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", spoiled)
        assert campaign.main(smoke(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "1 of 3 runs are done\n2 failed" in printed
    notes = {path.stem: path.read_text() for path in (tmp_path / "failed").iterdir()}
    assert notes["psrt_noshuffle-seed0"] == "RuntimeError: something unforeseen\n"
    assert notes["kav11-seed0"].startswith("the loss or its gradient is not finite at iteration 1")
    assert all(f"  {name}: {note}" in printed for name, note in notes.items())
    assert campaign.main(["--out", str(tmp_path), "--dry-run"]) == 0
    assert "psrt_noshuffle-seed0     failed: RuntimeError: something unforeseen" in capsys.readouterr().out
    assert campaign.main(["--out", str(tmp_path)]) == 0
    assert not list((tmp_path / "failed").iterdir())
    assert same_weights(tmp_path, finished)


def test_a_run_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = smoke(tmp_path, variants=("kav11", "psrt"))
    with Run(tmp_path / "runs" / "kav11-seed0").lock():
        assert campaign.main(arguments) == 0
        printed = capsys.readouterr().out
        assert "kav11-seed0              skipped, in use by another process" in printed
        assert "not done, in use by another process or stopped: kav11-seed0" in printed
    assert campaign.main(arguments) == 0
    assert "2 of 2 runs are done" in capsys.readouterr().out
    assert not (tmp_path / "failed").exists()


def test_a_plan_is_added_to_and_never_contradicted(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    written = (folder / "plan.json").read_bytes()
    for arguments, message in (
        (["laptop"], r"protocol: 'smoke' there, 'laptop' asked"),
        (["--iterations", "4"], r"iterations: 3 there, 4 asked"),
        (["--hours", "2"], r"hours: None there, 2.0 asked"),
        (["--set", "dim=16", "batch=2", "loss=l1+ssim"], r"dim: 8 there, 16 asked; loss: 'l1' there, 'l1+ssim' asked"),
        (["--set", "colour=3"], r"colour cannot be set for all runs of a plan; allowed are dataset, "),
    ):
        assert message in error(capsys, "--out", str(folder), *arguments)
        assert (folder / "plan.json").read_bytes() == written
    same = ["smoke", "--iterations", "3", "--set", "dim=8", "lr=0.003"]
    assert campaign.main(["--out", str(folder), *same]) == 0
    assert (folder / "plan.json").read_bytes() == written

    trained = []
    monkeypatch.setattr(campaign, "attempt", lambda _, planned, *__: trained.append(planned.name) or "done")
    assert campaign.main(["--out", str(folder), "--seeds", "0", "7"]) == 0
    assert campaign.main(["--out", str(folder), "--variants", "kav1", "kav6"]) == 0
    added = [*(f"{name}-seed7" for name in THREE), "kav6-seed0", "kav6-seed7"]
    assert trained == [*added[:3], *added]
    found = Plan.read(folder / "plan.json")
    assert found is not None
    assert [run.name for run in found.runs] == [*(f"{name}-seed0" for name in THREE), *added]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "plan.json does not exist; say what to train: one of study, laptop"),
        (["quick"], "protocol='quick' is unknown; choose one of study, laptop"),
        (["smoke", "--variants", "../../kav11"], "variant '../../kav11' is unknown; .*choose one of psrt"),
        (["smoke", "--seeds", "-1"], "seed=-1 is out of range"),
        (["smoke", "--seeds", "../1"], "argument --seeds: invalid int value: '../1'"),
        (["smoke", "--set", "dim=20"], "dim=20 does not split into 8 heads"),
        (["smoke", "--set", "dim"], "--set 'dim' is not of the form name=value"),
        (["smoke", "--set", "run_dir=/tmp"], "run_dir cannot be set for all runs of a plan"),
        (["smoke", "--iterations", "3", "--set", "iterations=3"], "iterations are given twice"),
        (["smoke", "--iterations", "3", "--hours", "1"], "--hours decides on the number of iterations"),
        (["smoke", "--hours", "nan"], "--hours nan is no number of hours"),
        (["smoke", "--jobs", "0"], "--jobs 0 is not at least 1"),
        (["smoke", "--device", "cuda:99"], "device='cuda:99' is not here"),
        (["smoke", "--data", "/cave"], "the embedded scene needs none"),
        (["record"], "record trains on cave; give its folder with --data"),
        (["record", "--data", "/nowhere"], "/nowhere: no such folder"),
        (["smoke", "--colour", "3"], "unrecognized arguments: --colour 3"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_no_plan(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error(capsys, *arguments, "--out", str(tmp_path / "new"))
    assert not (tmp_path / "new" / "plan.json").exists()


def test_a_damaged_plan_is_explained(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    whole = (finished / "plan.json").read_text()
    for text in (whole[:100], "[]", whole.replace("kav11", "../kav11"), whole.replace('"dim"', '"width"')):
        path.write_text(text)
        assert f"{path} is damaged or of another version" in error(capsys, "--out", str(tmp_path))


def test_the_default_plan_is_every_row_of_the_study_first() -> None:
    made = Plan.new("record")
    names = [run.variant for run in made.runs]
    assert names == list(default_variants())
    assert names[:5] == ["psrt", "psrt_misaligned", "psrt_noshuffle", "conv3x3", "kav1"]
    assert set(STUDY) <= set(VARIANTS)
    assert set(names[len(STUDY) :]) == {name for name, row in VARIANTS.items() if row.ours} - set(STUDY)
    assert {run.seed for run in made.runs} == {10} == {run.seed for run in Plan.new("laptop").runs}
    config = made.config(made.runs[0], "/cave", folder=Path("out"))
    assert (config.dim, config.hold_out, config.train_scenes, config.run_dir) == (
        48,
        False,
        None,
        "out/runs/psrt-seed10",
    )
    seeds = [run.name for run in Plan.new("record", ["kav1", "psrt"], [10, 11, 10]).runs]
    assert seeds == ["kav1-seed10", "psrt-seed10", "kav1-seed11", "psrt-seed11"]


class Clock:
    """Time that passes only where work is pretended."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def steps(self, config: Any, _total: int, _patches: Any) -> Callable[[State, int], None]:
        def step(_state: State, count: int) -> None:
            self.now += count * {"kav1": 0.2, "kav11": 0.1}[config.variant]

        return step

    def evaluate(self, *_: Any) -> None:
        self.now += 5


def test_hours_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    for name, value in (("clock", clock), ("Step", clock.steps), ("evaluate", clock.evaluate)):
        monkeypatch.setattr(plan, name, value)
    trained: list[str] = []
    monkeypatch.setattr(campaign, "attempt", lambda _, planned, *__: trained.append(planned.name) or "done")
    arguments = ["smoke", "--out", str(tmp_path), "--variants", "kav11", "kav1", "--seeds", "1", "2"]
    assert "hours=0.1 is too short for 4 runs on this CPU: " in (short := error(capsys, *arguments, "--hours", "0.1"))
    assert "give at least 0.5, or fewer variants" in short
    assert not (tmp_path / "plan.json").exists()
    arguments += ["--set", "eval_every=100"]
    assert campaign.main([*arguments, "--hours", "2"]) == 0
    made = Plan.read(tmp_path / "plan.json")
    assert made is not None
    assert made.pace is not None
    assert made.pace.iteration == pytest.approx({"kav11": 0.1, "kav1": 0.2})
    assert made.pace.validation == 2 * 5  # both kinds of weights, one validation scene
    iterations = made.shared["iterations"]
    assert 4 * iterations * (0.2 + 0.1) < 0.9 * 7200 < 4 * (iterations + 100) * (0.2 + 0.1)
    assert len(trained) == 4
    monkeypatch.setattr(campaign, "measure", lambda *_: pytest.fail("measured again"))
    assert campaign.main(["--out", str(tmp_path)]) == 0
    assert campaign.main([*arguments, "--hours", "2"]) == 0
    assert Plan.read(tmp_path / "plan.json") == made
    capsys.readouterr()
    assert campaign.main(["--out", str(tmp_path), "--dry-run"]) == 0
    assert "about 1.8 h for what is missing, as measured on this CPU with 1 side by side" in capsys.readouterr().out
    assert "hours: 2.0 there, 3.0 asked" in error(capsys, "--out", str(tmp_path), "--hours", "3")


def test_hours_side_by_side() -> None:
    pace = Pace("GPU", 3, {"a": 0.1, "b": 0.3}, 0.0, 60.0, 100.0)
    count = pace.iterations(1.0, 7, 1000)  # three turns of 3240 - 100 seconds in all
    assert count == int((3140 / 3 - 60) / 0.3) // 10 * 10
    assert pace.seconds(7, count, 1000) < 3240
    with pytest.raises(
        KAError, match=r"is too short for 7 runs on this GPU: 0 iterations each, .* give at least 0\.2,"
    ):
        pace.iterations(0.05, 7, 1000)
    assert pace.iterations(0.2, 7, 1000) >= 100


def test_a_dry_run_measures_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign.main([*smoke(tmp_path / "new", variants=("kav11",)), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert (
        "smoke: 1 runs of 3 iterations (dim 8, batch 2), 0 done, 1 missing\n  kav11-seed0              missing"
        in printed
    )
    assert "about 0.0 h for what is missing, as measured on this CPU" in printed
    assert campaign.main(["record", "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert "no estimate without data: give --data" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_side_by_side_every_run_is_taken_once_and_ctrl_c_stops_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = smoke(tmp_path, "--set", "checkpoint_every=0.0", iterations=12)

    def press() -> None:
        wait_for(tmp_path / "runs" / "kav1-seed0" / "checkpoint.pt")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    assert campaign.main([*arguments, "--jobs", "2"]) == 130
    thread.join()
    printed = capfd.readouterr()
    assert printed.err == "stopped; the same command goes on\n"
    assert "kav1-seed0" not in printed.out
    assert max(printed.out.count(f"{name}-seed0 ") for name in THREE) == 1
    assert not (tmp_path / "failed").exists()
    for name in THREE:
        (start,) = json.loads((tmp_path / "runs" / f"{name}-seed0" / "environment.json").read_text())["starts"]
        assert start["threads"] == 1
    assert campaign.main(arguments) == 0
    assert len(results.read(tmp_path / "results", "smoke")) == 3


BARE = """
import sys
for name in ("IPython", "ipykernel", "ipywidgets", "ipyevents", "jupyterlab", "matplotlib", "nbformat", "papermill",
             "pandas", "scipy", "tensorly", "voila", "zhplot"):
    sys.modules[name] = None
import workbook.training.train
from ka import campaign
sys.exit(campaign.main(sys.argv[1:]))
"""


def test_the_record_where_little_is_installed(tmp_path: Path) -> None:
    """From scenes as CAVE's to files to bring home, on with another copy of the data, without Jupyter or matplotlib."""
    for name in (*CAVE_TRAIN, *CAVE_TEST):
        folder = tmp_path / "CAVE" / f"{name}_ms" / f"{name}_ms"
        folder.mkdir(parents=True)
        cube = np.random.default_rng([*name.encode()]).integers(0, 65536, (31, 32, 32), dtype=np.uint16)
        for band, image in enumerate(cube, 1):
            Image.fromarray(image).save(folder / f"{name}_ms_{band:02d}.png")

    place = ["--out", str(tmp_path / "record"), "--device", "cpu", "--data"]
    first = ["--variants", "psrt_noshuffle", "--iterations", "2", "--set", "dim=8", "batch=2", "patch=16", "warmup=1"]
    command = [sys.executable, "-c", BARE, "record", *place, str(tmp_path / "CAVE"), *first]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs are done" in done.stdout
    (tmp_path / "CAVE").rename(tmp_path / "cave")
    assert campaign.main([*place, str(tmp_path / "cave"), "--variants", "kav11"]) == 0
    found = results.read(tmp_path / "record" / "results", "record")
    assert [result.name for result in found] == ["psrt_noshuffle-seed10", "kav11-seed10"]
    assert list(found[0].methods["best"].scenes) == list(CAVE_TEST)
    assert found[0].best == {"step": 2, "weights": "last"}
    assert load_checkpoint(tmp_path / "record" / "weights" / "kav11-seed10.safetensors").n_bands == 31
