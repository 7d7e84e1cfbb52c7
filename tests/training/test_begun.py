"""Runs of a user's own network, and runs that begin with weights."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import ka
from workbook.results import stored
from workbook.results.table import table
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.step import initial_state
from workbook.training.train import train

Smoke = Callable[..., Config]
CPU = torch.device("cpu")
SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n_bands, n_msi, ratio):
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(n_bands + n_msi, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout2d(0.3))
        self.tail = nn.Conv2d(8, n_bands, 1)
        self.pad = nn.Identity()

    def forward(self, up, msi, lr):
        return self.pad(up + 0.1 * self.tail(self.mix(torch.cat([up, msi], 1))))
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a network with running means and dropout, of a module that can be imported."""
    (tmp_path / "own_net.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_net:Net"
    sys.modules.pop("own_net", None)


def stopped(config: Config, iterations: int) -> None:
    """Train, and fail at the validation of an iteration after its checkpoint was written."""

    def watch(history: list[dict[str, Any]]) -> None:
        if history[-1]["step"] == iterations:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, bar=False, watch=watch)


def test_an_own_network_goes_the_whole_way(own: str, smoke: Smoke, finished: Path, tmp_path: Path) -> None:
    """Trained, stopped and resumed to the same bits, evaluated, kept, in the table."""
    whole = train(smoke(tmp_path / "whole", model=own), bar=False)
    config = smoke(tmp_path / "stopped", model=own)
    stopped(config, 3)
    again = train(config, bar=False)
    for file in ("best", "last", "average"):
        one, other = (load_file(run.path / f"{file}.safetensors") for run in (whole, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
    last, average = (whole.model(which) for which in ("last", "average"))
    means = [dict(model.network.named_buffers())["mix.1.running_mean"] for model in (last, average)]
    assert torch.equal(*means)
    assert means[0].abs().max() > 0
    metrics = whole.metrics()
    assert (metrics["variant"], metrics["parameters"]["live"]) == (own, sum(p.numel() for p in last.parameters()))
    kept = [stored.export(Run(path), tmp_path / "results", "mine") for path in (whole.path, finished)]
    assert [path.name for path in kept] == ["own_net.Net-seed0.json", "kav11-seed0.json"]
    results = stored.read(tmp_path / "results", "mine")
    assert [result.config.variant for result in results] == ["kav11", own]
    for baseline, other in (("kav11", own), (own, "kav11")):
        rows = {row.name: row for row in table(results, baseline).rows}
        assert rows[own].stats["psnr"].mean == pytest.approx(metrics["methods"]["best"]["mean"]["psnr"])
        assert set(rows[other].differences) == set(stored.SHOWN)
    assert rows[own].here == metrics["parameters"]["live"]
    assert stored.ship(whole, tmp_path).name == "own_net.Net.safetensors"


def test_a_network_that_cannot_work_leaves_no_run(own: str, smoke: Smoke, tmp_path: Path) -> None:
    """Also one that takes patches, and not the sides of test scenes."""
    run_dir = tmp_path / "run"
    with pytest.raises(ka.KAError, match="own_net has no class Nett"):
        train(smoke(run_dir, model="own_net:Nett"), bar=False)
    (tmp_path / "own_pool.py").write_text(
        SOURCE.replace("nn.Identity()", "nn.Sequential(nn.MaxPool2d(5), nn.Upsample(scale_factor=5))")
    )
    says = r"own_pool:Net gives shape \(2, 4, 30, 30\) for up \(2, 4, 32, 32\)"
    with pytest.raises(ka.KAError, match=says):
        train(smoke(run_dir, model="own_pool:Net", patch=20), bar=False)
    assert not (run_dir / "config.json").exists()
    train(smoke(run_dir, model=own), bar=False)


def test_the_name_of_an_own_network_is_that_of_its_variant(own: str) -> None:
    config = Config.preset("smoke", model=own, variant="kav1")
    assert (config.variant, config.name) == (own, "own_net.Net")
    assert Config(**config.to_dict()) == config


@pytest.mark.parametrize("which", ["run", "file"])
def test_a_run_begins_with_weights(which: str, smoke: Smoke, finished: Path, tmp_path: Path) -> None:
    """Of a row, all of them: scale and zero tail of a fresh start do not touch them."""
    source = finished if which == "run" else finished / "last.safetensors"
    config = smoke(tmp_path / "new", init=str(source), lr=1e-12, warmup=0)
    run = train(config, bar=False)
    before = ka.load_checkpoint(source).state_dict()
    for key, value in run.model("last").state_dict().items():
        torch.testing.assert_close(value, before[key], atol=1e-9, rtol=0)
    noted = json.loads((run.path / "environment.json").read_text())["init"]
    assert Path(noted["path"]) == (finished / "best.safetensors" if which == "run" else source).resolve()
    assert len(noted["sha256"]) == 64


def test_an_own_network_begins_with_weights(own: str, smoke: Smoke, tmp_path: Path) -> None:
    old = train(smoke(tmp_path / "old", model=own), bar=False)
    new = train(smoke(tmp_path / "new", model=own, init=str(old.path), lr=1e-12, warmup=0), bar=False)
    for one, other in zip(old.model().parameters(), new.model("last").parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_weights_that_do_not_fit(own: str, smoke: Smoke, finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "new"
    published = tmp_path / "published.pth.tar"
    torch.save({"state_dict": ka.build("psrt", 4, 3, 8).state_dict()}, published)
    for says, changes in {
        r"holds weights of kav11, not kav1; ask for variant='kav11'": {"variant": "kav1"},
        r"holds kav11 for 4 \+ 3 bands at dim 8, and it is wanted for 4 \+ 3 bands at dim 16; give one": {"dim": 16},
        r"does not fit own_net:Net .*give weights of this network": {"model": own},
        r"nowhere does not exist; give a run folder": {"init": "nowhere"},
        r"is no checkpoint of kav11": {"init": str(published)},
    }.items():
        with pytest.raises(ka.KAError, match=says) as error:
            train(smoke(run_dir, **{"init": str(finished)} | changes), bar=False)
        assert "\n" not in str(error.value)
    assert not (run_dir / "config.json").exists()
    run = train(smoke(run_dir, init=str(published), variant="psrt"), bar=False)
    with pytest.raises(ka.KAError, match="is of this run itself; choose another run_dir"):
        train(smoke(run_dir, init=str(run_dir), variant="psrt"), bar=False, restart=True)
    assert run.finished


def test_weights_that_changed_since(smoke: Smoke, finished: Path, tmp_path: Path) -> None:
    """The same under another path are the same."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (first, second):
        path.write_bytes((finished / "best.safetensors").read_bytes())
    config = smoke(tmp_path / "new", init=str(first))
    stopped(config, 3)
    ka.save_weights(first, ka.build("kav11", 4, 3, 8))
    with pytest.raises(ka.KAError, match=r"a\.safetensors holds other weights than those that .*new began with"):
        train(config, bar=False)
    first.unlink()
    train(smoke(tmp_path / "new", init=str(second)), bar=False)
    assert Run(tmp_path / "new").finished
    second.unlink()
    train(smoke(tmp_path / "new", init=str(second)), bar=False)  # shown, though its weights are gone
    with pytest.raises(ka.KAError, match="elsewhere does not exist"):  # but not as what began with others
        train(smoke(tmp_path / "new", init="elsewhere"), bar=False)
    ka.save_weights(first, ka.build("kav11", 4, 3, 8))
    with pytest.raises(ka.KAError, match=r"a\.safetensors holds other weights than those that .*new began with"):
        train(config, bar=False)


def test_gone_weights_are_in_the_checkpoint(smoke: Smoke, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((finished / "best.safetensors").read_bytes())
    config = smoke(tmp_path / "new", init=str(path))
    stopped(config, 3)
    path.unlink()
    assert train(config, bar=False).finished


def test_a_finished_run_asked_for_longer_says_how(smoke: Smoke, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ka.KAError) as error:
        train(smoke(finished, iterations=9), bar=False)
    way = re.search(
        r"begin a new run with its weights: -p init (\S+) -p run_dir NEW -p iterations N$", str(error.value)
    )
    assert way is not None
    assert way[1] == str(finished)
    longer = train(smoke(tmp_path / "longer", init=way[1], iterations=3), bar=False)
    assert longer.metrics()["iterations"] == 3
    with pytest.raises(ka.KAError, match="restart=True to train it anew"):
        train(smoke(finished, iterations=9, seed=1), bar=False)


def test_runs_that_began_otherwise_are_of_another_protocol(smoke: Smoke, finished: Path, tmp_path: Path) -> None:
    """Which weights a run began with is its own matter, as its variant and seed are; its path is nobody's."""
    begun = [train(smoke(tmp_path / name, init=str(finished), seed=i), bar=False) for i, name in enumerate("ab")]
    for run in begun:
        path = stored.export(run, tmp_path / "results", "mine")
        assert json.loads(path.read_text())["config"]["init"] == finished.name
    with pytest.raises(ka.KAError, match=r"are of different protocols .init: "):
        stored.export(Run(finished), tmp_path / "results", "mine")


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its network is fifteen lines, and gives the start image at first."""
    (source, _) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-model.md").read_text(), re.S)
    assert len([line for line in source.splitlines() if line]) <= 15
    (tmp_path / "mynet.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    state = initial_state(Config.preset("smoke", model="mynet:SmallNet"), 5, 3, CPU)
    up, msi = torch.rand(1, 5, 8, 8), torch.rand(1, 3, 8, 8)
    assert torch.equal(state.model(up, msi), up)
    sys.modules.pop("mynet")
