"""Networks from outside: what they are given, what is refused before training, and their files."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ka
from ka.data import Degradation, Scene, bicubic
from ka.inference import run_network
from ka.models.checkpoints import load_checkpoint, load_weights, save_weights
from ka.models.counts import parameters_of
from ka.models.own.adapter import OwnModel, find_network, own_model
from ka.models.own.trial import try_out


class Plain(nn.Module):
    """What state dicts may hold: a tied weight, running means, a mask that is not finite; and odd names."""

    def __init__(self, n_bands: int, n_msi: int, depth: int = 1) -> None:
        super().__init__()
        self.model = nn.Conv2d(n_bands + n_msi, n_bands, 3, padding=1)
        self.norm = nn.BatchNorm2d(n_bands)
        self.tied = self.model
        self.register_buffer("mask", torch.full((1,), -torch.inf))

    def forward(self, up: Tensor, msi: Tensor) -> Tensor:
        return up + self.norm(self.model(torch.cat([up, msi], 1)))


class Looking(nn.Module):
    """Wants the LR-HSI, and every size there is."""

    reach = 5

    def __init__(self, n_bands: int, n_msi: int, ratio: int, dim: int) -> None:
        super().__init__()
        self.sizes, self.ratio = (n_bands, n_msi, ratio, dim), ratio
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, up: Tensor, msi: Tensor, lr: Tensor) -> Tensor:
        return self.gain * (up + nn.functional.interpolate(lr, scale_factor=self.ratio))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.LazyConv2d(4, 1)

    def forward(self, up: Tensor, msi: Tensor) -> Tensor:
        return up + self.mix(msi)


class Wrong(nn.Module):
    """Fails in a way that `how` names."""

    how = "fine"

    def __init__(self, n_bands: int = 4) -> None:
        super().__init__()
        self.mix = nn.Conv2d(n_bands, n_bands, 1).requires_grad_(self.how != "frozen")

    def forward(self, up: Tensor, msi: Tensor) -> Tensor | list[Tensor]:
        image: Tensor = up + self.mix(up)
        ways: dict[str, Tensor | list[Tensor]] = {
            "band": image[:, :1],
            "list": [image],
            "nan": image / 0 * 0,
            "odd": nn.functional.max_pool2d(image, 8).repeat_interleave(8, -1).repeat_interleave(8, -2),
            "apart": up + 1,
            "fails": up,
        }
        if self.how == "fails":
            raise RuntimeError("first line\nsecond line")
        return ways.get(self.how, image)


def tried(network: type[nn.Module], size: int = 16) -> OwnModel:
    model = own_model(network, 4, 3)
    try_out(model, [(size, size)])
    return model


def test_a_network_is_given_what_it_asks_for() -> None:
    model = own_model(Looking, 4, 3, 2, 24)
    assert model.network.sizes == (4, 3, 2, 24)
    up, msi, lr = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 8, 8), torch.rand(1, 4, 4, 4)
    torch.testing.assert_close(model(up, msi, lr), up + nn.functional.interpolate(lr, scale_factor=2))
    with pytest.raises(ka.KAError, match="looks at the LR-HSI itself; give it too"):
        model(up, msi)
    assert own_model(Plain, 4, 3)(up, msi, lr).shape == up.shape
    assert tried(Lazy).network.mix.weight.shape == (4, 3, 1, 1)
    assert parameters_of(tried(Lazy)).live == 16


def test_a_trial_changes_nothing() -> None:
    torch.manual_seed(1)
    model, before = own_model(Plain, 4, 3), torch.get_rng_state()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    try_out(model, [(16, 16), (13, 9)])
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("band", r"gives shape \(2, 1, 20, 20\) for up \(2, 4, 20, 20\)"),
        ("list", r"gives type list for up"),
        ("nan", "gives values that are not finite for images in .0, 1. of 20×20"),
        ("odd", r"gives shape \(2, 4, 16, 16\) for up \(2, 4, 20, 20\)"),
        ("apart", "fails in training"),
        ("fails", r"fails on images of 20×20 \(RuntimeError: first line\)"),
        ("frozen", "has no weights to train"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(how: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "how", how)
    with pytest.raises(ka.KAError, match=says) as error:
        tried(Wrong, 20)
    assert "\n" not in str(error.value)


def test_what_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_broken.py").write_text("import torch\nraise SystemExit('usage: …')\n")
    (tmp_path / "own_syntax.py").write_text("class\n")
    (tmp_path / "own_fine.py").write_text("class Plain: ...\nsize = 3\n")
    for path, says in {
        "mynet": "is not of the form package.module:Class",
        "a b:C": "is not of the form package.module:Class",
        "no_such_module_here:Net": "cannot be imported .ModuleNotFoundError: .*put that folder on PYTHONPATH",
        "own_broken:Net": "own_broken cannot be imported .SystemExit: usage",
        "own_syntax:Net": "own_syntax cannot be imported .SyntaxError: .*mend it",
        "own_fine:Net": "own_fine has no class Net of torch.nn.Module",
        "own_fine:Plain": "own_fine has no class Plain of torch.nn.Module",
        "own_fine:size": "own_fine has no class size of torch.nn.Module",
    }.items():
        with pytest.raises(ka.KAError, match=says) as error:
            find_network(path)
        assert "\n" not in str(error.value)
    assert find_network("torch.nn:Conv2d") is nn.Conv2d
    with pytest.raises(ka.KAError, match=r"Conv2d could not be constructed .*missing 3 .*all others need defaults"):
        own_model(nn.Conv2d, 4, 3)
    with pytest.raises(ka.KAError, match=r"is no class of torch\.nn\.Module"):
        own_model(nn.Conv2d(1, 1, 1), 4, 3)  # type: ignore[arg-type]
    monkeypatch.setattr(Looking, "reach", 2.5)
    with pytest.raises(ka.KAError, match=r"reach=2\.5 is not a number of pixels"):
        own_model(Looking, 4, 3)


@pytest.mark.parametrize("half", [False, True])
def test_files(half: bool, tmp_path: Path) -> None:
    """Under the network's own names; loaded by whoever has the class, and by nobody else."""
    model, path = own_model(Plain, 4, 3, 2).eval(), tmp_path / "best.safetensors"
    model.network.norm.num_batches_tracked += 70000  # more than float16 holds
    save_weights(path, model, half=half, step=3)
    assert load_file(path).keys() == model.network.state_dict().keys()
    loaded = load_checkpoint(tmp_path, model=Plain)
    assert (loaded.row.name, loaded.n_bands, loaded.n_msi, loaded.ratio) == (f"{__name__}:Plain", 4, 3, 2)
    given = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(loaded(*given), model(*given), atol=1e-2 if half else 0, rtol=0)
    assert loaded.network.norm.num_batches_tracked == 70000
    assert loaded.network.tied is loaded.network.model
    with pytest.raises(ka.KAError, match=r"holds weights of .*:Plain, a network from outside .*has its class"):
        load_checkpoint(path)
    with pytest.raises(ka.KAError, match=r"does not fit .*:Plain .*Missing key"):
        load_checkpoint(path, model=Looking)
    row = tmp_path / "row.safetensors"
    save_weights(row, ka.build("kav11", 4, 3, 8))
    with pytest.raises(ka.KAError, match="is not of a network from outside this workbook"):
        load_checkpoint(row, model=Plain)
    save_file(load_file(path), tmp_path / "bare.safetensors", {"model": "x:Plain"})
    with pytest.raises(ka.KAError, match="its header is damaged"):
        load_checkpoint(tmp_path / "bare.safetensors", model=Plain)


def test_a_name_in_a_file_of_weights_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    save_weights(tmp_path / "best.safetensors", own_model(Plain, 4, 3, name="own_evil:Net"))
    with pytest.raises(ka.KAError, match="own_evil:Net, a network from outside"):
        load_checkpoint(tmp_path)
    load_checkpoint(tmp_path, model=Plain)
    assert "own_evil" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_weights_of_elsewhere_for_an_own_network(tmp_path: Path) -> None:
    """Its own names may begin with what wrappers put before."""
    model, other = own_model(Plain, 4, 3), own_model(Plain, 4, 3)
    state = other.network.state_dict()
    torch.save(
        {"net": {f"module.{key}": value for key, value in other.network.norm.state_dict().items()}}, tmp_path / "n.pth"
    )
    torch.save(state, tmp_path / "plain.pth")
    load_weights(model, tmp_path / "plain.pth")
    assert torch.equal(model.network.model.weight, other.network.model.weight)
    with pytest.raises(ka.KAError, match=re.escape(f"{tmp_path / 'n.pth'} does not fit")):
        load_weights(model, tmp_path / "n.pth")


def test_whole_scenes() -> None:
    """In tiles only where its reach is stated, or if asked."""
    up, msi = torch.rand(1, 4, 96, 80), torch.rand(1, 3, 96, 80)
    lr = torch.rand(1, 4, 24, 20)
    model = own_model(Looking, 4, 3).eval()
    assert not model.row.position_bound(96, 80)
    torch.testing.assert_close(run_network(model, up, msi, 32, lr), model(up, msi, lr))
    unknown = own_model(Plain, 4, 3).eval()
    assert "state it as `reach`" in unknown.row.position_bound(96, 80)
    torch.testing.assert_close(run_network(unknown, up, msi, 32, lr), unknown(up, msi, lr))
    small = lr[0].numpy()
    scene = Scene("one", up[0].numpy(), small, bicubic(small, Degradation().ratio), msi[0].numpy())
    torch.testing.assert_close(ka.Network(unknown)(scene), unknown(torch.from_numpy(scene.up)[None], msi)[0])
