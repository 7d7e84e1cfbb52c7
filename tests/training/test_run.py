"""Run folders and devices: what cannot work, what is damaged or in use."""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import before_call, stop

from ka.data import Patches
from ka.errors import KAError
from workbook.training import devices
from workbook.training.config import Config
from workbook.training.devices import pick_device, placed
from workbook.training.run import Run
from workbook.training.scenes import load_data
from workbook.training.step import Step
from workbook.training.train import run_folder, train

Smoke = Callable[..., Config]


# What cannot work


def test_a_warmup_as_long_as_the_run_is_refused(smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    for length in ({"iterations": 48}, {"epochs": 3}):  # of 16 iterations each
        with pytest.raises(
            KAError, match=r"warmup=48 leaves nothing of a run of 48 iterations.*at most 47 \(-p warmup 4\)"
        ):
            train(smoke(path, warmup=48, **length), bar=False)
        assert not (path / "config.json").exists()
    config = smoke(path, warmup=6)  # a run that was begun before this was refused goes on
    Run(path).start(config)
    with monkeypatch.context() as patch:
        before_call(patch, Step, "__call__", 4, stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, bar=False)
    assert train(config, bar=False).finished
    assert Run(path).history()[0]["lr"] == pytest.approx(3e-3 * 3 / 6 * 0.5 * (1 + math.cos(math.pi * 2 / 6)))
    with pytest.raises(KAError, match="warmup=6"):
        train(config, bar=False, restart=True)
    assert Run(path).finished


def test_what_cannot_work_leaves_no_run_behind(smoke: Smoke, tmp_path: Path) -> None:
    (tmp_path / "all.h5").write_bytes(b"")
    n = torch.cuda.device_count()
    for changes, message in (
        ({"batch": 1000}, "batch=1000 is more than the 32 training patches"),
        ({"patch": 64}, "patch size: 64 does not fit"),
        ({"dataset": "cave", "data_root": str(tmp_path / "nowhere")}, "nowhere"),
        ({"train_scenes": "atlantis"}, "atlantis"),
        ({"data_root": str(tmp_path / "all.h5")}, r"all\.h5 is one file.*give the folder"),
        ({"device": f"cuda:{n}"}, rf"device='cuda:{n}' is not here \({n} CUDA devices are\); choose auto or cpu"),
    ):
        with pytest.raises(KAError, match=message):
            train(smoke(tmp_path / "run", **changes), bar=False)
        assert [path.name for path in (tmp_path / "run").iterdir()] in ([], [".lock"]), changes


def test_chosen_scenes_are_trained_on(smoke: Smoke, tmp_path: Path) -> None:
    assert [scene.name for scene in load_data(smoke(tmp_path)).train] == ["train_0", "train_1"]
    assert [scene.name for scene in load_data(smoke(tmp_path, train_scenes=" train_1,")).train] == ["train_1"]


def test_another_configuration_in_the_folder_is_an_error(finished: Path, smoke: Smoke, tmp_path: Path) -> None:
    with pytest.raises(KAError, match=r"holds another run \(variant: 'kav11' there, 'kav1' asked; lr: .*\); choose"):
        train(smoke(finished, variant="kav1", lr=1e-3), bar=False)
    assert Run(finished).finished
    run = Run(tmp_path / "run")
    run.start(smoke(run.path, data_root="/a"))
    run.check(smoke(run.path, data_root="/moved", checkpoint_every=7.0))


def test_damaged_run_files_are_explained(finished: Path, smoke: Smoke, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.start(smoke(run.path))
    with pytest.raises(KAError, match=r"metrics\.json does not exist; is the run finished"):
        run.metrics()
    whole = (finished / "checkpoint.pt").read_bytes()
    (run.path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KAError, match=r"checkpoint\.pt is damaged; restore a copy, or start anew with restart=True"):
        train(smoke(run.path), bar=False)
    other = Run(tmp_path / "other")
    other.start(smoke(other.path, dim=16))
    (other.path / "checkpoint.pt").write_bytes(whole)
    with pytest.raises(KAError, match=r"checkpoint\.pt does not fit this run; start it anew with restart=True"):
        train(smoke(other.path, dim=16), bar=False)
    for text, message in (
        ('{"colour": "red"}', "is of another version"),
        ('{"variant": ', "is damaged"),
        ("[1]", "hold"),
    ):
        (run.path / "config.json").write_text(text)
        with pytest.raises(KAError, match=rf"config\.json.*{message}"):
            run.check(smoke(run.path))
    (run.path / "history.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(KAError, match=r"history\.jsonl, line 2 is damaged"):
        run.history()
    (run.path / "history.jsonl").write_text('{"step": 1}\n{"step": 3}\n{"ste')
    assert run.cut_history(2) == [{"step": 1}]
    assert (run.path / "history.jsonl").read_text() == '{"step": 1}\n'


def test_a_folder_in_use(smoke: Smoke, tmp_path: Path) -> None:
    with Run(tmp_path / "run").lock(), pytest.raises(KAError, match="is in use: another process trains here"):
        train(smoke(tmp_path / "run"), bar=False)
    train(smoke(tmp_path / "run"), bar=False)


# Devices


def test_scenes_stay_on_the_host_where_the_device_lacks_memory(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patches, cuda = load_data(smoke(tmp_path)).patches, torch.device("cuda")
    assert placed(patches, torch.device("cpu")) is patches
    assert not caplog.messages
    monkeypatch.setattr(Patches, "to", lambda *_: "held")
    for free, expected in ((2 * patches.nbytes - 1, patches), (2 * patches.nbytes, "held")):
        monkeypatch.setattr(devices, "free_bytes", lambda _, free=free: free)
        with caplog.at_level(logging.WARNING, "ka"):
            assert placed(patches, cuda) is expected

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Patches, "to", full)
    with caplog.at_level(logging.WARNING, "ka"):
        assert placed(patches, cuda) is patches
    assert len(caplog.messages) == 2
    assert "(0.0 GiB) do not fit on cuda: patches are cut by the host, which is slower" in caplog.messages[0]


@pytest.fixture
def _kept_mode() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("_kept_mode")
def test_reproducible_kernels_inside_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    for on in (False, True):
        with devices.deterministic(on):
            assert torch.are_deterministic_algorithms_enabled() == on
        assert not torch.are_deterministic_algorithms_enabled()


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for here in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=here: here)
        assert pick_device("auto").type == ("cuda" if here else "cpu")
    assert pick_device("cpu").type == "cpu"


def test_default_folders_tell_runs_apart() -> None:
    base = Config.preset("smoke")
    others = [
        Config.preset("smoke", **{name: value}) for name, value in (("seed", 1), ("variant", "psrt"), ("dim", 16))
    ]
    assert len({run_folder(config) for config in (base, *others)}) == 4
    assert run_folder(base).parent.name == "runs"
