"""One model on several processes: the run of one process, whoever begins and whoever ends it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import slurm as throwaway
import torch
from conftest import ROOT
from safetensors.torch import load_file

import ka
from workbook.training import distributed, ranks
from workbook.training import train as training
from workbook.training.config import Config
from workbook.training.ranks import Ranks
from workbook.training.run import Run
from workbook.training.train import train

WEIGHTS = ("best", "last", "average")


def smoke(path: Path, **changes: Any) -> Config:
    return Config.preset("smoke", run_dir=str(path), device="cpu", **changes)


def difference(one: Path, other: Path) -> float:
    """Largest difference of a weight; they are of the order of 1, and many start at 0."""
    found = [{name: load_file(path / f"{name}.safetensors") for name in WEIGHTS} for path in (one, other)]
    return max(
        (found[0][name][key] - found[1][name][key]).abs().max().item() for name in WEIGHTS for key in found[0][name]
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distributed") / "straight"
    train(smoke(path), bar=False)
    return path


def test_two_processes_are_as_one(straight: Path, tmp_path: Path) -> None:
    """Same batches, same losses, weights to 1e-5; the folder holds what it always does."""
    seen: list[int] = []
    run = distributed.train_on(2, smoke(tmp_path / "two"), watch=lambda history: seen.append(len(history)))
    assert difference(straight, run.path) < 1e-5
    alone, both = (Run(path).history() for path in (straight, run.path))
    assert [note["step"] for note in alone] == [note["step"] for note in both]
    for one, other in zip(alone, both, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["psnr_average"] == pytest.approx(one["psnr_average"], abs=1e-3)
    assert {path.name for path in run.path.iterdir()} == {path.name for path in straight.iterdir()}
    assert len(json.loads((run.path / "environment.json").read_text())["starts"]) == 1
    assert distributed.train_on(1, smoke(tmp_path / "two")).finished  # finished is finished, for one process too
    assert set(seen) <= {1, 2}


@pytest.mark.slow
def test_the_number_of_processes_may_change_on_the_way(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by one and ended by two; begun by two, killed, and ended by one."""
    inner, calls = training.one_step, 0

    def one_step(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return inner(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "one_step", one_step)
        with pytest.raises(KeyboardInterrupt):
            train(smoke(tmp_path / "one", checkpoint_every=0.0), bar=False)
    distributed.train_on(2, smoke(tmp_path / "one", checkpoint_every=0.0))
    assert difference(straight, tmp_path / "one") < 1e-5

    def stop(history: object) -> None:
        raise KeyboardInterrupt

    config = smoke(tmp_path / "two", iterations=60, eval_every=30)
    with pytest.raises(KeyboardInterrupt):
        distributed.train_on(2, config, watch=stop)
    saved = Run(tmp_path / "two").resume()
    assert saved is not None
    assert 30 <= saved["step"] < 60
    train(config, bar=False)
    train(smoke(tmp_path / "sixty", iterations=60, eval_every=30), bar=False)
    assert (
        difference(tmp_path / "sixty", tmp_path / "two") < 1e-3
    )  # the rounding of 60 iterations grows from one to the next


@pytest.mark.slow
def test_what_stops_one_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(ka.KAError, match=r"^batch=2 does not divide by 3 processes; change one of the two$"):
        distributed.train_on(3, smoke(tmp_path / "three"))
    train(smoke(tmp_path / "run"), bar=False)
    with pytest.raises(ka.KAError, match="holds another run"):
        distributed.train_on(2, smoke(tmp_path / "run", seed=5))


@pytest.mark.slurm
def test_two_tasks_of_slurm_are_as_one(straight: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "workbook.training.distributed",
        "smoke",
        f"run_dir={tmp_path / 'two'}",
        "device=cpu",
    ]
    with throwaway.slurm() as environment:
        found = subprocess.run(
            ["srun", "--ntasks-per-node=2", "--kill-on-bad-exit=1", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert found.returncode == 0, found.stderr
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
    with pytest.raises(ka.KAError, match="batch=3 does not divide by 2 processes"):
        Ranks(Two()).check(3)


def test_what_the_first_could_not_do_is_the_error_of_all(tmp_path: Path) -> None:
    fabric = Two()
    Ranks(fabric).agree()
    fabric.told = "no data"
    with pytest.raises(ka.KAError, match="no data"):
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
    with pytest.raises(ka.KAError, match="5 tasks on 2 machines are not as many on each; give srun --ntasks-per-node"):
        ranks._places({"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NUM_NODES": "2"})


def test_alone_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "LOCAL_WORLD", "WORLD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert ranks.launched() is ranks.ALONE
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ka.KAError, match="pip install lightning-fabric"):
        ranks.launched()


def test_mistakes_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distributed.main(["smoke", "variant=kav99"]) == 2
    assert capsys.readouterr().err.startswith("error: variant 'kav99' is unknown")
    for devices in (0, 1.5, True, "2"):
        with pytest.raises(ka.KAError, match="is not a whole number of at least 1"):
            distributed.train_on(devices, smoke(tmp_path / "run"))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
