"""Training: determinism, resuming, locks, and what a full disk or a diverging loss leaves behind."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import ka
from ka.data.scenes import Patches
from ka.evaluation import Network, evaluate
from ka.metrics import ssim
from workbook.training import train as training
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.train import (
    batch_indices,
    learning_rate,
    load_data,
    loss_of,
    one_step,
    placed,
    run_folder,
    some_steps,
    start,
    train,
    untrained,
)

WEIGHTS = ("best", "last", "average")


def smoke(path: Path, **changes: Any) -> Config:
    return Config.preset("smoke", run_dir=str(path), device="cpu", **changes)


def weights(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(path / f"{name}.safetensors") for name in WEIGHTS}


def same_weights(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return all(torch.equal(one[name][key], other[name][key]) for name in WEIGHTS for key in one[name])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(smoke(path), bar=False)
    return path


def test_a_run_folder_holds_everything(finished: Path) -> None:
    run = Run(finished)
    assert run.finished
    assert run.config() == smoke(finished)
    (begun,) = json.loads((finished / "environment.json").read_text())["starts"]
    assert begun["packages"]["torch"] == torch.__version__
    assert [note["step"] for note in run.history()] == [3, 6]
    assert {"loss", "lr", "psnr", "psnr_average", "sam", "ergas_average"} <= set(run.history()[0])
    metrics = run.metrics()
    assert set(metrics["methods"]) == {"bicubic", "linear injection", "last", "average", "best"}
    (values,) = metrics["methods"]["best"]["scenes"].values()
    assert set(values) == {"psnr", "sam", "ergas", "ssim", "rmse", "cc", "uiqi", "psnr_published"}
    best = max((note[key], key) for note in run.history() for key in ("psnr", "psnr_average"))
    assert metrics["best"]["weights"] == ("average" if best[1] == "psnr_average" else "last")
    assert isinstance(run.model("best"), ka.PSRT)
    assert ka.load_checkpoint(finished).row.name == "kav11"


def test_the_same_seed_gives_the_same_bits(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # the global state must not matter
    train(smoke(tmp_path / "again"), bar=False)
    assert same_weights(finished, tmp_path / "again")
    train(smoke(tmp_path / "other", seed=1), bar=False)
    assert not same_weights(finished, tmp_path / "other")


def test_a_finished_run_is_not_trained_twice(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "one_step", lambda *_: pytest.fail("trained again"))
    assert train(smoke(finished), bar=False).finished


def test_restart_trains_anew(tmp_path: Path) -> None:
    run = train(smoke(tmp_path / "run"), bar=False)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = run.metrics()["seconds"], (tmp_path / "run" / "metrics.json").stat().st_mtime_ns
    train(smoke(tmp_path / "run", seed=5), bar=False, restart=True)
    assert (tmp_path / "run" / "metrics.json").stat().st_mtime_ns > before[1]
    assert run.config() == smoke(tmp_path / "run", seed=5)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_another_configuration_in_the_folder_is_an_error(finished: Path) -> None:
    with pytest.raises(ka.KAError, match=r"holds another run \(variant: 'kav11' there, 'kav1' asked; lr: .*\); choose"):
        train(smoke(finished, variant="kav1", lr=1e-3), bar=False)
    assert Run(finished).finished


@pytest.mark.parametrize(("variant", "place"), [("kav1", "average"), ("kav11", "step")])
def test_an_interrupted_run_ends_with_the_same_bits(
    variant: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before an iteration, or in its middle, after the weights moved and before the average did."""
    train(smoke(tmp_path / "straight", variant=variant), bar=False)
    owner, name = (training, "one_step") if place == "step" else (torch, "_foreach_lerp_")
    inner, calls = getattr(owner, name), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return inner(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(smoke(tmp_path / "broken", variant=variant, checkpoint_every=0.0), bar=False)
    saved = Run(tmp_path / "broken").resume()
    assert saved is not None
    assert 3 <= saved["step"] <= 4
    train(smoke(tmp_path / "broken", variant=variant, checkpoint_every=0.0), bar=False)
    assert same_weights(tmp_path / "straight", tmp_path / "broken")
    straight, broken = (
        [{k: v for k, v in note.items() if k != "seconds"} for note in Run(tmp_path / name).history()]
        for name in ("straight", "broken")
    )
    assert straight == broken


@pytest.mark.parametrize("after", ["note", "save", "validate"])
def test_killed_between_two_writes(after: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation, history and checkpoint are three writes; a run cut off after any of them loses nothing."""
    owner: Any = training if after == "validate" else Run
    inner = getattr(owner, after)

    def then_die(*arguments: Any, **values: Any) -> Any:
        inner(*arguments, **values)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(owner, after, then_die)
        with pytest.raises(SystemExit):
            train(smoke(tmp_path / "run"), bar=False)
    train(smoke(tmp_path / "run"), bar=False)
    assert same_weights(finished, tmp_path / "run")
    assert [note["step"] for note in Run(tmp_path / "run").history()] == [3, 6]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from workbook.training.config import Config
from workbook.training.train import train
train(Config.preset("smoke", run_dir=sys.argv[1], iterations=8, device="cpu", checkpoint_every=0.0), bar=False)
"""


def start_script(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], stderr=subprocess.DEVNULL)


def test_killed_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL at an unannounced moment, checkpoints after every iteration; test_faults.py has twenty."""
    assert start_script(tmp_path / "straight").wait() == 0
    path = tmp_path / "killed"
    process = start_script(path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (path / "checkpoint.pt").exists() and (Run(path).resume() or {"step": 0})["step"] >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not Run(path).finished
    assert start_script(path).wait() == 0
    assert same_weights(tmp_path / "straight", path)
    straight, killed = (Run(p).history() for p in (tmp_path / "straight", path))
    assert [note["step"] for note in killed] == [note["step"] for note in straight]
    assert [note["loss"] for note in killed] == [note["loss"] for note in straight]
    assert not list(path.glob(".*.part"))


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    with Run(tmp_path / "run").lock(), pytest.raises(ka.KAError, match="is in use: another process trains here"):
        train(smoke(tmp_path / "run"), bar=False)
    process = start_script(tmp_path / "busy")
    try:
        while not (tmp_path / "busy" / "config.json").exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(ka.KAError, match="busy is in use"):
            train(smoke(tmp_path / "busy", iterations=8, checkpoint_every=0.0), bar=False)
    finally:
        process.kill()
        process.wait()


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import ka, workbook.training.train as training
from workbook.training.config import Config
from workbook.training.run import Run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
step, calls = training.one_step, 0
def one_step(*arguments):
    global calls
    calls += 1
    if calls == 5:  # after the first validation and its checkpoint: no file may grow over 20 kB any more
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return step(*arguments)
training.one_step = one_step
config = Config.preset("smoke", run_dir=sys.argv[1], device="cpu")
try:
    training.train(config, bar=False)
except ka.KAError as error:
    print(error)
    sys.exit(3)
"""


def test_a_disk_that_fills_during_a_checkpoint(tmp_path: Path, finished: Path) -> None:
    path = tmp_path / "full"
    process = subprocess.run([sys.executable, "-c", DISK_FULL, str(path)], capture_output=True, text=True, check=False)
    assert process.returncode == 3, process.stderr
    assert "could not be written (File too large); free some space" in process.stdout
    assert process.stdout.count("\n") == 1
    assert not list(path.glob(".*.part"))
    saved = Run(path).resume()
    assert saved is not None
    assert saved["step"] == 3  # the previous checkpoint still loads
    train(smoke(path), bar=False)
    assert same_weights(path, finished)


def test_a_diverging_loss_stops_with_the_last_checkpoint_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of, calls = training.loss_of, 0

    def nan_later(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss_of(*arguments) * (float("nan") if calls == 5 else 1)

    monkeypatch.setattr(training, "loss_of", nan_later)
    with pytest.raises(ka.KAError, match="iteration 5: training diverged; lower lr"):
        train(smoke(tmp_path / "run"), bar=False)
    saved = Run(tmp_path / "run").resume()
    assert saved is not None
    assert saved["step"] == 3
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_iteration_that_diverges_leaves_the_weights(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smoke(tmp_path)
    data, state = load_data(config), start(config, 200, 4, torch.device("cpu"))
    one_step(config, data.patches, state, 6)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    spoil(monkeypatch, what, 1)
    with pytest.raises(ka.KAError, match="not finite at iteration 2: training diverged"):
        one_step(config, data.patches, state, 6)
    assert all(torch.equal(value, before[key]) for key, value in state.model.state_dict().items())
    assert state.step == 1


def spoil(monkeypatch: pytest.MonkeyPatch, what: str, call: int) -> None:
    """Make the loss NaN at a call of `loss_of`, or its gradient alone (that of √x² at 0, times x)."""
    inner, calls = training.loss_of, 0

    def loss_of(config: Config, prediction: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = inner(config, prediction, gt)
        if calls != call:
            return loss
        return loss * float("nan") if what == "loss" else loss + (0 * prediction).square().sum().sqrt()

    monkeypatch.setattr(training, "loss_of", loss_of)


# As on a GPU: scenes on the device, several iterations between two looks at the loss. The CPU takes the same path here.


def as_on_cuda(monkeypatch: pytest.MonkeyPatch, look: int) -> None:
    monkeypatch.setattr(training, "look", lambda _: look)
    monkeypatch.setattr(training, "placed", lambda patches, device: patches.to(device))


@pytest.mark.parametrize("held", [True, False])
def test_many_iterations_at_once_are_single_ones(held: bool, tmp_path: Path) -> None:
    config = smoke(tmp_path, augment=True, schedule="cosine", iterations=20)
    patches, cpu = load_data(config).patches, torch.device("cpu")
    single, many = (start(config, 200, 4, cpu) for _ in range(2))
    losses = [one_step(config, patches, single, 20) for _ in range(7)]
    source = patches.to(cpu) if held else patches
    assert [some_steps(config, source, many, 20, count) for count in (3, 4)] == [losses[2], losses[6]]
    assert (many.step, many.loss_count, many.loss_sum) == (7, 7, sum(losses)) == (7, 7, single.loss_sum)
    for one, other in ((single.model, many.model), (single.average, many.average)):
        for (key, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), key


class Dispatched(TorchDispatchMode):
    """Every operation that PyTorch runs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["psrt", "kav1", "kav4", "kav11", "kav17"])
def test_iterations_wait_for_nothing(variant: str, tmp_path: Path) -> None:
    """No value is read, and nothing is moved but the plan: on CUDA each would wait until the device has run dry."""
    config = smoke(tmp_path, variant=variant, augment=True, loss="l1+ssim")
    state = start(config, 200, 4, torch.device("cpu"))
    for group in state.optimizer.param_groups:
        group["fused"] = True  # as on CUDA
    held = load_data(config).patches.to(torch.device("cpu"))
    with Dispatched() as seen:
        some_steps(config, held, state, 20, 2)
    waits = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero")
    assert not set(waits) & set(seen.names)
    assert seen.names.count("aten.lift_fresh") == 1  # host values made a tensor
    assert seen.names.count("aten._fused_adamw_") == 2 * len(state.optimizer.param_groups)


def test_a_run_with_few_looks_ends_with_the_same_bits(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_cuda(monkeypatch, 2)
    inner, saved = Run.save, []

    def save(run: Run, state: Any) -> None:
        saved.append((state["step"], state["loss_count"]))
        inner(run, state)

    monkeypatch.setattr(Run, "save", save)
    train(smoke(tmp_path / "run", checkpoint_every=0.0), bar=False)
    assert saved == [(2, 2), (3, 0), (5, 2), (6, 0)]
    assert same_weights(finished, tmp_path / "run")
    few, all_ = ([note["loss"] for note in Run(path).history()] for path in (tmp_path / "run", finished))
    assert few == all_


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [4, 5, 6])
def test_few_looks_find_the_iteration_that_diverged(
    bad: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_cuda(monkeypatch, 20)
    spoil(monkeypatch, what, bad)
    with pytest.raises(ka.KAError, match=f"not finite at iteration {bad}: training diverged"):
        train(smoke(tmp_path / "run"), bar=False)
    saved = Run(tmp_path / "run").resume()
    assert saved is not None
    assert saved["step"] == 3
    assert all(value.isfinite().all() for key in ("model", "average") for value in saved[key].values())
    assert [note["step"] for note in Run(tmp_path / "run").history()] == [3]


def test_scenes_stay_on_the_host_where_the_device_lacks_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patches, cuda = load_data(Config.preset("smoke")).patches, torch.device("cuda")
    assert placed(patches, torch.device("cpu")) is patches
    assert not caplog.messages
    monkeypatch.setattr(Patches, "to", lambda *_: "held")
    for free, expected in ((2 * patches.nbytes - 1, patches), (2 * patches.nbytes, "held")):
        monkeypatch.setattr(training, "free_bytes", lambda _, free=free: free)
        with caplog.at_level(logging.WARNING, "ka"):
            assert placed(patches, cuda) is expected

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Patches, "to", full)
    with caplog.at_level(logging.WARNING, "ka"):
        assert placed(patches, cuda) is patches
    assert len(caplog.messages) == 2
    assert "(0.0 GiB) do not fit on cuda: patches are cut by the host, which is slower" in caplog.messages[0]


# Methods without training are measured once


def test_untrained_methods_are_measured_once(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, measured = training.evaluate, []

    def evaluate_counted(method: Any, scenes: Any, ratio: int, names: Any = None) -> Any:
        if names is None:
            measured.append(method)
        return inner(method, scenes, ratio, names)

    monkeypatch.setattr(training, "evaluate", evaluate_counted)
    found = {}
    for name, variant in (("one", "kav11"), ("other", "kav1")):
        measured.clear()
        found[name] = train(smoke(tmp_path / name, variant=variant), bar=False).metrics()["methods"]
        assert sum(not isinstance(method, Network) for method in measured) == (2 if name == "one" else 0)
    assert list(found["one"]) == ["bicubic", "linear injection", "last", "average", "best"] == list(found["other"])
    there = Run(finished).metrics()["methods"]
    for method in ("bicubic", "linear injection"):
        assert found["one"][method] == found["other"][method] == there[method]
    assert len(list((tmp_path / ".baselines").iterdir())) == 1


class Count:
    """In place of a progress bar: how many scenes were counted."""

    n = 0

    def update(self, n: int = 1) -> None:
        self.n += n


def test_other_values_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of one pixel, another matrix, another number: nothing else may be found."""
    data = load_data(Config.preset("smoke"))
    crop = data.test[0].crop(0, 0, 32, 32, 4)
    inner, calls = training.evaluate, 0

    def evaluate_counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return inner(*arguments)

    monkeypatch.setattr(training, "evaluate", evaluate_counted)

    def measure(part: str = "", change: float = 0.0, ratio: int = 4, scale: float = 1.0) -> int:
        nonlocal calls
        scene = replace(crop, **({part: getattr(crop, part).copy()} if part else {}))
        if part:
            getattr(scene, part)[1, 2, 3] += change
        test = replace(data.test, scenes=[scene])
        fresh = replace(data, test=test)
        fresh.__dict__["injection"] = replace(data.injection, weight=data.injection.weight * scale)
        calls, count = 0, Count()
        found = untrained(fresh, ratio, tmp_path, count)
        assert count.n == 2
        plain = inner(lambda scene: torch.from_numpy(scene.up), test, ratio)
        assert found["bicubic"].scenes == plain.scenes
        return calls

    assert measure() == 2
    assert measure() == 0
    for part in ("gt", "up", "msi"):
        assert measure(part, 1e-4) == 2
        assert measure(part, 1e-4) == 0
    assert measure(ratio=8) == 2
    assert measure(scale=1 + 1e-12) == 2
    monkeypatch.setattr(training, "_CODE", "another")
    assert measure() == 2
    assert measure() == 0


def test_kept_measurements_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    data = load_data(Config.preset("smoke"))
    data = replace(data, test=replace(data.test, scenes=[data.test[0].crop(0, 0, 32, 32, 4)]))
    first = untrained(data, 4, tmp_path / "kept", Count())
    (path,) = (tmp_path / "kept").iterdir()
    whole = path.read_text()
    for damaged in (whole[:100], "[]", "{}", whole.replace('"psnr"', '"snr"'), whole.replace("bicubic", "cubic")):
        path.write_text(damaged)
        assert untrained(data, 4, tmp_path / "kept", Count()) == first
        assert path.read_text() == whole
    (tmp_path / "file").write_text("")
    assert untrained(data, 4, tmp_path / "file", Count()) == first


def test_what_is_undefined_stays_so(tmp_path: Path) -> None:
    """A black band has no ERGAS, and a perfect one no PSNR: neither is a number in JSON."""
    data = load_data(Config.preset("smoke"))
    scene = data.test[0].crop(0, 0, 32, 32, 4)
    scene.gt[3] = 0
    scene.up[7] = scene.gt[7]
    data = replace(data, test=replace(data.test, scenes=[scene]))
    first, again = (untrained(data, 4, tmp_path, Count()) for _ in range(2))
    (values,) = again["bicubic"].scenes.values()
    assert math.isnan(values["ergas"])
    assert np.isfinite(values["sam"])
    for name, found in first.items():
        assert found.to_dict() == again[name].to_dict()
    assert first["bicubic"].to_dict()["mean"]["psnr"] is None


def test_a_damaged_checkpoint_is_explained(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(smoke(run.path), bar=False)
    (run.path / "metrics.json").unlink()
    data = (run.path / "checkpoint.pt").read_bytes()
    (run.path / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ka.KAError, match=r"checkpoint\.pt is damaged; restore a copy, or start anew with restart=True"):
        train(smoke(run.path), bar=False)


def test_what_cannot_work_leaves_no_run_behind(tmp_path: Path) -> None:
    for changes, message in (
        ({"batch": 1000}, "batch=1000 is more than the .* training patches"),
        ({"patch": 160}, "patch size: 160 does not fit"),
        ({"dataset": "cave", "data_root": str(tmp_path / "nowhere")}, "nowhere"),
        ({"train_scenes": "atlantis"}, "atlantis"),
    ):
        with pytest.raises(ka.KAError, match=message):
            train(smoke(tmp_path / "run", **changes), bar=False)
        assert [path.name for path in (tmp_path / "run").iterdir()] in ([], [".lock"])


def test_restart_that_cannot_work_keeps_the_old_run(tmp_path: Path) -> None:
    train(smoke(tmp_path / "run"), bar=False)
    with pytest.raises(ka.KAError, match="nowhere"):
        train(smoke(tmp_path / "run", dataset="cave", data_root="/nowhere"), bar=False, restart=True)
    assert Run(tmp_path / "run").finished
    assert ka.load_checkpoint(tmp_path / "run").row.name == "kav11"


def test_another_file_is_another_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.start(smoke(run.path, dataset="h5", data_root="/a"))
    with pytest.raises(ka.KAError, match="data_root: '/a' there, '/b' asked"):
        run.check(smoke(run.path, dataset="h5", data_root="/b"))
    run.start(smoke(run.path, dataset="cave", data_root="/a"))
    run.check(smoke(run.path, dataset="cave", data_root="/moved"))


def test_damaged_run_files_are_explained(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "config.json").write_text('{"colour": "red"}')
    with pytest.raises(ka.KAError, match=r"config\.json is of another version"):
        run.check(smoke(tmp_path))
    for text in ('{"variant": ', "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ka.KAError, match=r"config\.json (is damaged|does not hold)"):
            run.check(smoke(tmp_path))
    with pytest.raises(ka.KAError, match=r"metrics\.json does not exist; is the run finished"):
        run.metrics()


def test_one_file_cannot_train_and_test(tmp_path: Path) -> None:
    (tmp_path / "all.h5").write_bytes(b"")
    with pytest.raises(ka.KAError, match=r"all\.h5 is one file.*give the folder"):
        load_data(smoke(tmp_path, dataset="h5", data_root=str(tmp_path / "all.h5")))


def test_an_iteration_is_what_the_configuration_says(tmp_path: Path) -> None:
    """Two iterations against AdamW, clipping, rates and averaging written out by hand."""
    config = smoke(tmp_path, lr=1e-2, warmup=2, weight_decay=0.1, clip=0.01, schedule="constant", ema=0.5, ends_lr=0.3)
    data, cpu = load_data(config), torch.device("cpu")
    state = start(config, 200, 4, cpu)
    mine = {key: value.detach().clone() for key, value in state.model.named_parameters()}
    average = {key: value.clone() for key, value in mine.items()}
    m, v = ({key: torch.zeros_like(value) for key, value in mine.items()} for _ in range(2))
    factor = dict.fromkeys(mine, 1.0) | {"head.weight": 0.3 * 100, "tail.weight": 0.3 / 100, "tail.bias": 0.3 / 100}
    reference = start(config, 200, 4, cpu).model
    for t in (1, 2):
        batch = data.patches.batch(batch_indices(len(data.patches), config.batch, config.seed, t - 1))
        reference.load_state_dict(mine)
        loss = (reference(batch["up"], batch["msi"]) - batch["gt"]).abs().mean()
        grads = dict(zip(mine, torch.autograd.grad(loss, list(reference.parameters())), strict=True))
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        assert norm > config.clip
        decay = min(0.5, t / (10 + t))
        for key, g in grads.items():
            rate, g = 1e-2 * t / 2 * factor[key], g * config.clip / norm  # noqa: PLW2901
            m[key], v[key] = 0.9 * m[key] + 0.1 * g, 0.999 * v[key] + 0.001 * g**2
            step = m[key] / (1 - 0.9**t) / ((v[key] / (1 - 0.999**t)).sqrt() + 1e-8)
            mine[key] = mine[key] * (1 - rate * 0.1) - rate * step
            average[key] = decay * average[key] + (1 - decay) * mine[key]
        assert one_step(config, data.patches, state, 10) == pytest.approx(loss.item(), rel=1e-6)
        for key, value in state.model.named_parameters():
            torch.testing.assert_close(value, mine[key], rtol=1e-3, atol=1e-5, msg=key)
        for key, value in state.average.named_parameters():
            torch.testing.assert_close(value, average[key], rtol=1e-3, atol=1e-5, msg=key)


def test_the_studys_loss() -> None:
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    l1, similar = (x - y).abs().mean(), ssim(x, y).mean().float()
    torch.testing.assert_close(loss_of(Config.preset("smoke", loss="l1"), x, y), l1)
    torch.testing.assert_close(loss_of(Config.preset("smoke", loss="l1+ssim"), x, y), l1 + 0.1 * (1 - similar))


def test_the_best_weights_are_those_that_validation_saw(finished: Path) -> None:
    run = Run(finished)
    val = load_data(smoke(finished)).val
    best = max(note[key] for note in run.history() for key in ("psnr", "psnr_average"))
    assert evaluate(Network(run.model("best")), val, 4, ["psnr"]).mean("psnr") == pytest.approx(best, abs=1e-4)


def test_cuda_that_is_not_there(tmp_path: Path) -> None:
    n = torch.cuda.device_count()
    with pytest.raises(ka.KAError, match=rf"device='cuda:{n}' is not here \({n} CUDA devices are\)"):
        train(Config.preset("smoke", run_dir=str(tmp_path / "run"), device=f"cuda:{n}"), bar=False)


def test_without_validation_the_last_weights_count(tmp_path: Path) -> None:
    run = train(smoke(tmp_path / "run", hold_out=False), bar=False)
    assert run.metrics()["best"] == {"step": 6, "weights": "last"}
    assert same(run, "best", "last")
    assert "psnr" not in run.history()[0]


def same(run: Run, one: str, other: str) -> bool:
    loaded = weights(run.path)
    return all(torch.equal(loaded[one][key], loaded[other][key]) for key in loaded[one])


def test_batches_are_permutations_of_each_epoch() -> None:
    n, batch = 11, 3
    for epoch in range(3):
        seen = [i for k in range(3) for i in batch_indices(n, batch, 0, 3 * epoch + k)]
        assert len(set(seen)) == 9
        assert set(seen) <= set(range(n))
    assert batch_indices(n, batch, 0, 0) != batch_indices(n, batch, 0, 3) != batch_indices(n, batch, 1, 3)


def test_learning_rates(tmp_path: Path) -> None:
    c = smoke(tmp_path, lr=1.0, warmup=4, iterations=100)
    assert learning_rate(c, 0, 100) == pytest.approx(0.25, abs=1e-3)
    assert learning_rate(c, 50, 100) == pytest.approx(0.5)
    assert learning_rate(c, 99, 100) < 1e-3
    constant = smoke(tmp_path, lr=0.5, warmup=0, schedule="constant")
    assert [learning_rate(constant, k, 10) for k in (0, 5, 9)] == [0.5] * 3


def test_scale_is_the_same_as_scaling_the_data(tmp_path: Path) -> None:
    """Head and tail absorb `scale`: the scaled start on raw data is the plain start on scaled data."""
    plain, scaled = (
        start(smoke(tmp_path, zero_tail=False, scale=s, msi_gain=1.0), 200, 4, torch.device("cpu")).model.double()
        for s in (1.0, 8.0)
    )
    up, msi = torch.rand(1, 200, 8, 8).double(), torch.rand(1, 4, 8, 8).double()
    torch.testing.assert_close(scaled(up, msi), plain(8 * up, 8 * msi) / 8, rtol=0, atol=1e-9)


def test_zero_tail_starts_from_bicubic(tmp_path: Path) -> None:
    model = start(smoke(tmp_path), 200, 4, torch.device("cpu")).model
    up = torch.rand(1, 200, 8, 8)
    assert torch.equal(model(up, torch.rand(1, 4, 8, 8)), up)


def test_bfloat16_trains(tmp_path: Path) -> None:
    run = train(smoke(tmp_path / "run", amp="bfloat16", loss="l1+ssim"), bar=False)
    assert run.finished


def test_splits_share_nothing() -> None:
    data = load_data(Config.preset("smoke"))
    assert [scene.gt.shape for scene in data.val] == [(200, 32, 96)]
    assert data.train[0].gt.shape == (200, 112, 96)
    assert data.test[0].gt.shape == (200, 144, 48)


def test_default_folders_tell_runs_apart() -> None:
    one, other = Config.preset("smoke"), Config.preset("smoke", seed=1)
    assert run_folder(one) != run_folder(other)
    assert run_folder(one).parent.name == "runs"
