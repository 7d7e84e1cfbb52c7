"""Runs: what a folder holds, the same bits after every interruption, and what cannot work."""

import errno
import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stopping
import torch
from stopping import before_call, history, same, saved_step, stop, weights

import ka
from ka.errors import KAError
from ka.evaluation import evaluate
from ka.inference import Network
from workbook.results.stored import UNTRAINED
from workbook.training import finish
from workbook.training import step as stepping
from workbook.training import train as training
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.scenes import load_data
from workbook.training.step import LOSSES, Step, initial_state
from workbook.training.train import train

Smoke = Callable[..., Config]


def test_a_run_folder_holds_everything(finished: Path, smoke: Smoke) -> None:
    run = Run(finished)
    assert run.finished
    assert run.config() == smoke(finished)
    (begun,) = json.loads((finished / "environment.json").read_text())["starts"]
    assert begun["packages"]["torch"] == torch.__version__
    assert re.fullmatch(r"[0-9a-f]{40}\+?", begun["commit"] or "0" * 40)
    assert [note["step"] for note in run.history()] == [3, 6]
    assert {"loss", "lr", "psnr", "psnr_average", "sam", "ergas_average"} <= set(run.history()[0])
    metrics = run.metrics()
    assert list(metrics["methods"]) == [
        "bicubic",
        "linear injection",
        "local injection",
        "attentive injection",
        "best",
        metrics["best"]["weights"],
    ]
    for values in metrics["methods"]["best"]["scenes"].values():
        assert set(values) == {"psnr", "sam", "ergas", "ssim", "rmse", "cc", "uiqi", "psnr_published"}
    assert (metrics["variant"], metrics["dataset"], metrics["split"], metrics["ratio"]) == ("kav11", "h5", "test", 4)
    assert metrics["iterations"] == 6
    counted = ka.parameter_count("kav11", 4, 3, 8)
    assert metrics["parameters"] == {
        "live": counted.live, "reported": counted.reported, "deployed": counted.deployed
    }  # fmt: skip
    assert metrics["memory"]["training_mib"] > 0
    assert ka.load_checkpoint(finished).row.name == "kav11"


def test_the_best_weights_are_those_that_validation_saw(finished: Path, smoke: Smoke) -> None:
    run, scenes = Run(finished), load_data(smoke(finished))
    notes = [(note[key], note["step"], key) for note in run.history() for key in ("psnr", "psnr_average")]
    best, step, key = max(notes)
    assert run.metrics()["best"] == {"step": step, "weights": "average" if key == "psnr_average" else "last"}
    assert evaluate(Network(run.model("best")), scenes.val, ["psnr"]).mean("psnr") == pytest.approx(best, abs=1e-4)
    measured = evaluate(Network(run.model("best")), scenes.test).mean("psnr")
    assert run.metrics()["methods"]["best"]["mean"]["psnr"] == pytest.approx(measured, abs=1e-4)


def test_the_same_seed_gives_the_same_bits(finished: Path, smoke: Smoke, tmp_path: Path) -> None:
    torch.manual_seed(123)  # the global state must not matter
    train(smoke(tmp_path / "again"), bar=False)
    assert same(finished, tmp_path / "again")
    train(smoke(tmp_path / "other", seed=1), bar=False)
    assert not same(finished, tmp_path / "other")


def test_a_finished_run_is_not_trained_twice(finished: Path, smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step, "__call__", lambda *_: pytest.fail("trained again"))
    assert train(smoke(finished), bar=False).finished


def test_restart_trains_anew(smoke: Smoke, tmp_path: Path) -> None:
    run = train(smoke(tmp_path / "run"), bar=False)
    (run.path / "notes.txt").write_text("mine")
    before = (run.path / "metrics.json").stat().st_mtime_ns
    train(smoke(run.path, seed=5), bar=False, restart=True)
    assert (run.path / "metrics.json").stat().st_mtime_ns > before
    assert run.config() == smoke(run.path, seed=5)
    assert (run.path / "notes.txt").read_text() == "mine"
    with pytest.raises(KAError, match="nowhere"):  # a restart that cannot work keeps the old run
        train(smoke(run.path, dataset="cave", data_root="/nowhere"), bar=False, restart=True)
    assert run.finished
    assert run.config() == smoke(run.path, seed=5)


# Interruptions


@pytest.mark.parametrize(
    ("variant", "owner", "name"),
    [("kav1", stepping, "get_ema_multi_avg_fn"), ("kav11", Step, "__call__"), ("psrt", torch.optim.AdamW, "step")],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    variant: str, owner: Any, name: str, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before an iteration, or in its middle: before the weights move, or the average does."""
    straight, broken = (smoke(tmp_path / name, variant=variant, checkpoint_every=0.0) for name in ("a", "b"))
    train(straight, bar=False)
    with monkeypatch.context() as patch:
        before_call(patch, owner, name, 5, stop)
        with pytest.raises(KeyboardInterrupt):
            train(broken, bar=False)
    assert saved_step(tmp_path / "b") == 4
    train(broken, bar=False)
    assert same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("after", ["note", "save", "save_model"])
def test_killed_between_two_writes(
    after: str, finished: Path, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Best weights, history and checkpoint are three writes; a run cut off after any of them loses nothing."""
    inner = getattr(Run, after)

    def then_die(*arguments: Any, **values: Any) -> Any:
        inner(*arguments, **values)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Run, after, then_die)
        with pytest.raises(SystemExit):
            train(smoke(tmp_path / "run"), bar=False)
    train(smoke(tmp_path / "run"), bar=False)
    assert same(finished, tmp_path / "run")


def test_killed_in_the_middle_of_a_checkpoint(smoke: Smoke, tmp_path: Path) -> None:
    """SIGKILL with half of it written; test_faults.py has twenty more."""
    straight, killed = (smoke(tmp_path / name, checkpoint_every=0.0) for name in ("straight", "killed"))
    train(straight, bar=False)
    assert stopping.training(killed, kill_in_write=5).wait() == -signal.SIGKILL
    assert saved_step(tmp_path / "killed") == 4
    assert list((tmp_path / "killed").glob(".*.part"))
    train(killed, bar=False)
    assert same(tmp_path / "straight", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.part"))


def test_rare_readings_end_with_the_same_bits(
    finished: Path, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: scenes on the device, losses read every second iteration and before whatever is saved."""
    monkeypatch.setattr(training, "read_every", lambda _: 2)
    monkeypatch.setattr(training, "placed", lambda patches, device: patches.to(device))
    inner, saved = Run.save, []

    def save(run: Run, state: Any) -> None:
        saved.append((state["step"], state["loss_count"]))
        inner(run, state)

    monkeypatch.setattr(Run, "save", save)
    train(smoke(tmp_path / "run", checkpoint_every=0.0), bar=False)
    assert saved == [(2, 2), (3, 0), (5, 2), (6, 0)]
    assert same(finished, tmp_path / "run")


@pytest.mark.parametrize("every", [1, 2, 20])
def test_a_diverging_loss_stops_with_the_last_checkpoint_kept(
    every: int, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = LOSSES["l1"], iter(range(1, 100))
    monkeypatch.setitem(LOSSES, "l1", lambda *given: loss(*given) * (float("nan") if next(calls) == 5 else 1))
    monkeypatch.setattr(training, "read_every", lambda _: every)
    with pytest.raises(KAError, match="iteration 5: training diverged; lower lr"):
        train(smoke(tmp_path / "run"), bar=False)
    saved = Run(tmp_path / "run").resume()
    assert saved is not None
    assert saved["step"] == 3
    assert all(value.isfinite().all() for key in ("model", "average") for value in saved[key].values())
    assert [note["step"] for note in Run(tmp_path / "run").history()] == [3]


def test_a_disk_that_fills_during_a_checkpoint(
    finished: Path, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, path = Path.write_bytes, tmp_path / "run"

    def full(file: Path, data: bytes) -> int:
        if file.name.startswith(".checkpoint.pt.") and (path / "checkpoint.pt").exists():
            inner(file, data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return inner(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(KAError, match=r"could not be written \(No space left on device\); free some space"):
            train(smoke(path), bar=False)
    assert not list(path.glob(".*.part"))
    assert saved_step(path) == 3
    train(smoke(path), bar=False)
    assert same(path, finished)


# What is chosen, and measured


def test_where_nothing_was_chosen_the_last_weights_are_best(smoke: Smoke, tmp_path: Path) -> None:
    run = train(smoke(tmp_path / "run", hold_out=False), bar=False)
    assert run.metrics()["best"] == {"step": 6, "weights": "last"}
    assert run.metrics()["methods"]["best"] == run.metrics()["methods"]["last"]
    saved = weights(run.path)
    assert all(
        torch.equal(value, saved[key.replace("best:", "last:")])
        for key, value in saved.items()
        if "average:" not in key
    )
    assert run.history()[0].get("psnr") is None


def test_metrics_tell_of_the_best_weights_that_are_there(smoke: Smoke, tmp_path: Path) -> None:
    """A kill may leave best weights of which the checkpoint does not know; metrics.json names what the file holds."""
    run = train(smoke(tmp_path / "run"), bar=False)
    (run.path / "metrics.json").unlink()
    model = initial_state(smoke(run.path, seed=3), 4, 3, torch.device("cpu")).model
    run.save_model("best", model, 5, "average", ka.data.load("indian_pines", "test"))
    train(smoke(run.path), bar=False)
    assert run.metrics()["best"] == {"step": 5, "weights": "average"}
    bicubic = run.metrics()["methods"]["bicubic"]["mean"]["psnr"]  # where a network starts
    assert run.metrics()["methods"]["best"]["mean"]["psnr"] == pytest.approx(bicubic, abs=1e-6)
    (run.path / "metrics.json").unlink()
    (run.path / "best.safetensors").unlink()
    with pytest.raises(KAError, match=r"best\.safetensors is missing or damaged; restore it"):
        train(smoke(run.path), bar=False)


def test_the_digest_is_that_of_the_test_scenes(finished: Path, smoke: Smoke, tmp_path: Path) -> None:
    scenes = load_data(smoke(tmp_path))
    digest = Run(finished).metrics()["test_digest"]
    assert digest == scenes.test_digest
    loaded = [scene.load() for scene in scenes.test]
    assert replace(scenes, test=replace(scenes.test, scenes=loaded)).test_digest == digest
    for part in ("gt", "up", "msi"):
        values = getattr(loaded[1], part).copy()
        values[1, 2, 3] += 1e-4
        other = replace(scenes.test, scenes=[loaded[0], replace(loaded[1], **{part: values})])
        assert replace(scenes, test=other).test_digest != digest, part


def test_what_is_undefined_stays_so(smoke: Smoke, tmp_path: Path) -> None:
    """A perfect band has an infinite PSNR, which is no number in JSON."""
    scenes, run = load_data(smoke(tmp_path / "run")), Run(tmp_path / "run")
    scene = scenes.test[0].load()
    scene.up[2] = scene.gt[2]
    scenes = replace(scenes, test=replace(scenes.test, scenes=[scene]))
    train(smoke(run.path), scenes, bar=False)
    mean = run.metrics()["methods"]["bicubic"]["mean"]
    assert mean["psnr"] is None
    assert mean["ergas"] > 0
    assert mean["sam"] > 0


def test_pictures_of_every_method(finished: Path, smoke: Smoke) -> None:
    scenes = load_data(smoke(finished))
    scene = scenes.test[0].load()
    images = finish.images(Run(finished), scenes, scene)
    assert list(images) == [*UNTRAINED, "kav11"]
    assert (images["bicubic"] == scene.up).all()
    assert (images["linear injection"] == scenes.untrained["linear injection"](scene).numpy()).all()
    assert {image.shape for image in images.values()} == {(4, 32, 32)}


def test_a_history_is_shown_after_every_validation(smoke: Smoke, tmp_path: Path) -> None:
    shown: list[int] = []
    train(smoke(tmp_path / "run"), watch=lambda notes: shown.append(len(notes)), bar=True)
    assert shown == [1, 2]
    assert len(weights(tmp_path / "run")) > 100
    assert [note["step"] for note in history(tmp_path / "run")] == [3, 6]
