"""One model on several processes: the run of one process, whoever begins and whoever ends it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slurm as throwaway
import torch
from conftest import ROOT
from stopping import before_call, saved_step, stop, weights

from ka.errors import KAError
from workbook.training import distributed, ranks
from workbook.training.config import Config
from workbook.training.ranks import Ranks
from workbook.training.run import Run
from workbook.training.step import Step
from workbook.training.train import train

Smoke = Callable[..., Config]


def difference(one: Path, other: Path) -> float:
    """Largest difference of a weight; they are of the order of 1, and many start at 0."""
    a, b = weights(one), weights(other)
    return max((a[key] - b[key]).abs().max().item() for key in a)


@pytest.fixture(scope="module")
def straight(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distributed") / "straight"
    train(smoke(path), bar=False)
    return path


@pytest.mark.slow
def test_two_processes_are_as_one(straight: Path, smoke: Smoke, tmp_path: Path) -> None:
    """Same batches, same losses, weights to 1e-5; the folder holds what it always does."""
    shown: list[int] = []
    run = distributed.train_on(2, smoke(tmp_path / "two"), watch=lambda history: shown.append(len(history)))
    assert difference(straight, run.path) < 1e-5
    alone, both = (Run(path).history() for path in (straight, run.path))
    assert [note["step"] for note in alone] == [note["step"] for note in both]
    for one, other in zip(alone, both, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["psnr_average"] == pytest.approx(one["psnr_average"], abs=1e-3)
    assert {path.name for path in run.path.iterdir()} == {path.name for path in straight.iterdir()}
    assert len(json.loads((run.path / "environment.json").read_text())["starts"]) == 1
    assert distributed.train_on(1, smoke(tmp_path / "two")).finished  # finished is finished, for one process too
    assert set(shown) <= {1, 2}


@pytest.mark.slow
def test_the_number_of_processes_may_change_on_the_way(
    straight: Path, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by one and ended by two; begun by two, killed, and ended by one."""
    with monkeypatch.context() as patch:
        before_call(patch, Step, "__call__", 5, stop)
        with pytest.raises(KeyboardInterrupt):
            train(smoke(tmp_path / "one", checkpoint_every=0.0), bar=False)
    distributed.train_on(2, smoke(tmp_path / "one", checkpoint_every=0.0))
    assert difference(straight, tmp_path / "one") < 1e-5
    config = smoke(tmp_path / "two", iterations=300, eval_every=30)
    checkpoint = tmp_path / "two" / "checkpoint.pt"  # the history comes first, by a moment in which all may end
    with pytest.raises(KeyboardInterrupt):
        distributed.train_on(2, config, watch=lambda history: stop() if checkpoint.exists() else None)
    assert 30 <= saved_step(tmp_path / "two") < 300
    train(config, bar=False)
    assert [note["step"] for note in Run(tmp_path / "two").history()] == list(range(30, 301, 30))


@pytest.mark.slow
def test_what_stops_the_processes_is_the_error_of_the_notebook(straight: Path, smoke: Smoke, tmp_path: Path) -> None:
    with pytest.raises(KAError, match=r"^batch=2 does not divide by 3 processes; change one of the two$"):
        distributed.train_on(3, smoke(tmp_path / "three"))
    with pytest.raises(KAError, match=r"holds another run \(seed"):
        distributed.train_on(2, smoke(straight, seed=5))


@pytest.mark.slurm
def test_two_tasks_of_slurm_are_as_one(straight: Path, smoke: Smoke, tmp_path: Path) -> None:
    fields = [f"{name}={value!r}" for name, value in smoke(tmp_path / "two").to_dict().items()]
    command = [sys.executable, "-m", "workbook.training.distributed", "smoke", *fields]
    with throwaway.slurm() as environment:
        ended = subprocess.run(
            ["srun", "--ntasks-per-node=2", "--kill-on-bad-exit=1", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert difference(straight, tmp_path / "two") < 1e-5


class Two:
    """What `Ranks` asks of Fabric, as the second of two processes."""

    world_size, global_rank, is_global_zero = 2, 1, False
    told: str | None = None

    def broadcast(self, error: str | None) -> str | None:
        return self.told


def test_a_batch_is_shared_out() -> None:
    batch = {"up": torch.arange(6.0)}
    assert Ranks().share(batch)["up"].tolist() == [0, 1, 2, 3, 4, 5]
    assert Ranks(Two()).share(batch)["up"].tolist() == [1, 3, 5]
    Ranks(Two()).check(4)
    with pytest.raises(KAError, match="batch=3 does not divide by 2 processes"):
        Ranks(Two()).check(3)


def test_what_the_first_could_not_do_is_the_error_of_all(smoke: Smoke, tmp_path: Path) -> None:
    fabric = Two()
    Ranks(fabric).agree()
    fabric.told = "no data"
    with pytest.raises(KAError, match="no data"):
        train(smoke(tmp_path / "run"), bar=False, ranks=Ranks(fabric))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "places"),
    [
        ({}, (1, 1)), ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, (4, 2)), ({"LOCAL_WORLD_SIZE": "2"}, (2, 1)),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_NNODES": "8"}, (2, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}, (1, 1)),  # in a batch script, before srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, (1, 1)),
    ],
)  # fmt: skip
def test_processes_know_how_many_they_are(environment: dict[str, str], places: tuple[int, int]) -> None:
    assert ranks._places(environment) == places


def test_machines_with_different_numbers_of_processes_are_refused() -> None:
    with pytest.raises(KAError, match="5 tasks on 2 machines are not as many on each; give srun --ntasks-per-node"):
        ranks._places({"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NUM_NODES": "2"})


def test_alone_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "LOCAL_WORLD", "WORLD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert ranks.launched() is ranks.ALONE
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(KAError, match="pip install lightning-fabric"):
        ranks.launched()


def test_a_process_trains_and_tells(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its result or its error is one line; the error is also left where `train_on` reads it."""
    monkeypatch.setenv(distributed.ERRORS, str(tmp_path))
    fields = [f"{name}={value!r}" for name, value in smoke(tmp_path / "run").to_dict().items()]
    assert distributed.main(["smoke", *fields]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'run'}: PSNR")
    assert distributed.main(["smoke", "variant=kav99"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "kav99" in line
    assert (tmp_path / "rank00000.txt").read_text() == line.removeprefix("error: ")


def test_the_notebook_reads_what_the_processes_left(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of theirs, of the lowest rank; without one the last that they printed. What they print is no error."""
    begun = subprocess.Popen
    write = "import os, pathlib; pathlib.Path(os.environ['KA_ERRORS'], 'rank{}.txt').write_text('{}'); "
    for code, message in (
        (write.format("00001", "second") + write.format("00000", "no data"), "^no data$"),
        ("print('error: no error'); print('a b')", "^2 processes ended early: error: no error a b$"),
    ):
        ended = [sys.executable, "-c", code + "\nraise SystemExit(2)"]
        monkeypatch.setattr(subprocess, "Popen", lambda _, command=ended, **values: begun(command, **values))
        with pytest.raises(KAError, match=message):
            distributed.train_on(2, smoke(tmp_path / "run"))


def test_relative_paths_are_those_of_the_notebook(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a response, and of each file of a list; the packages are found from there."""
    begun, here = subprocess.Popen, tmp_path / "here"
    here.mkdir()
    for name in ("curves.csv", "a.mat", "b.mat"):
        (here / name).touch()
    look = """
import ast, importlib.util, pathlib, sys
fields = {name: ast.literal_eval(text) for name, _, text in (field.partition("=") for field in sys.argv[1:])}
paths = [*fields["data_root"].split(","), fields["srf"]]
assert all(pathlib.Path(path).is_file() for path in paths), paths
assert pathlib.Path(fields["run_dir"]).is_absolute()
assert importlib.util.find_spec("workbook.training")
"""

    def start(command: list[str], **values: Any) -> "subprocess.Popen[bytes]":
        return begun([sys.executable, "-c", look, *command[command.index("demo") + 1 :]], **values)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.chdir(here)
    distributed.train_on(2, smoke(Path("run"), dataset="files", data_root="a.mat,b.mat", srf="curves.csv"))


def test_mistakes_of_the_call(smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for devices in (0, 1.5, True, "2"):
        with pytest.raises(KAError, match="is not a whole number of at least 1"):
            distributed.train_on(devices, smoke(tmp_path / "run"))  # type: ignore[arg-type]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(KAError, match=r"device='cuda:1' is one GPU, and every process has its own"):
        ranks.launched("cuda:1")
    assert not (tmp_path / "run").exists()
