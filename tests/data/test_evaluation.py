"""Whole-scene evaluation: tiles, tables, baselines, and the proofs of the pipeline."""

from mmap import PAGESIZE, mmap
from pathlib import Path

import numpy as np
import pytest
import torch

import ka
from ka import data
from ka.evaluation import Evaluation, LinearInjection, detail, evaluate, upsampled
from ka.inference import Network, reach, sharpen
from ka.models.variants import VARIANTS
from workbook import verify
from workbook.training.devices import forget_peak, peak_bytes

EXACT = [name for name, row in VARIANTS.items() if not row.position_bound(16, 176)]


def strong(name: str) -> ka.PSRT:
    """A float64 model in which what lies far away is felt: fresh weights are too small for that."""
    model = ka.build(name, n_bands=4, n_msi=2, dim=8).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", EXACT)
def test_tiles_equal_one_pass(name: str) -> None:
    model = strong(name)
    up, msi = torch.rand(1, 4, 16, 176).double(), torch.rand(1, 2, 16, 176).double()
    whole, tiled = sharpen(model, up, msi, tile=512), sharpen(model, up, msi, tile=32)
    assert (whole - tiled).abs().max() <= 1e-10 * whole.abs().max()


@pytest.mark.parametrize("name", ["psrt", "psrt_noshuffle", "kav11"])
def test_reach_is_how_far_the_output_looks(name: str) -> None:
    """From a pixel at the edge of a tile, the gradient dies exactly at `reach`."""
    model = strong(name)
    up = torch.rand(1, 4, 16, 128, dtype=torch.float64, requires_grad=True)
    (seen,) = torch.autograd.grad(model(up, torch.rand(1, 2, 16, 128).double())[..., :64].sum(), up)
    columns = seen.abs().amax((0, 1, 2)).nonzero().flatten()
    assert columns.max() == 63 + reach(VARIANTS[name])


def test_memory_decides_on_tiles_only_where_they_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    up, msi = torch.rand(1, 4, 272, 16).double(), torch.rand(1, 2, 272, 16).double()
    free, bound = strong("psrt_noshuffle"), strong("kav3")
    whole = sharpen(free, up, msi, 512)
    sizes = []
    free.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    monkeypatch.setattr("ka.inference.free_bytes", lambda _: 1000)
    assert (sharpen(free, up, msi) - whole).abs().max() <= 1e-10 * whole.abs().max()
    assert len(sizes) == 2
    with pytest.raises(ka.KAError, match=r"with kav3 tiles give another result .*tile=256"):
        sharpen(bound, up, msi)


def test_undefined_and_infinite_metrics_are_none_in_json() -> None:
    scenes = data.load("indian_pines", "val")
    scene = scenes[0]
    scene.gt[3], scene.up[3] = 0, 0  # a black band: no ERGAS; without error there: infinite PSNR
    found = evaluate(upsampled, scenes).to_dict()
    (values,) = found["scenes"].values()  # type: ignore[attr-defined]
    assert (values["ergas"], values["psnr"], found["mean"]["psnr"]) == (None, None, None)  # type: ignore[index]
    assert values["rmse"] > 0


@pytest.mark.parametrize("name", ["kav11"])
def test_tiles_of_odd_images(name: str) -> None:
    model = strong(name)
    up, msi = torch.rand(1, 4, 61, 75).double(), torch.rand(1, 2, 61, 75).double()
    whole = sharpen(model, up, msi, 512)
    assert (whole - sharpen(model, up, msi, 16)).abs().max() <= 1e-10 * whole.abs().max()


@pytest.mark.parametrize("name", ["psrt_misaligned", "kav1", "kav3", "kav17"])
def test_tiles_cannot_equal_one_pass_where_kernels_are_bound(name: str) -> None:
    model = strong(name)
    up, msi = torch.rand(1, 4, 16, 176).double(), torch.rand(1, 2, 16, 176).double()
    whole = sharpen(model, up, msi, 512)
    assert (whole - sharpen(model, up, msi, 16)).abs().max() > 1e-3 * whole.abs().max()
    assert VARIANTS[name].position_bound(16, 176)


def test_reach_grows_with_what_looks_sideways() -> None:
    reaches = [reach(VARIANTS[name]) for name in ("kav5_as_run", "psrt_noshuffle", "psrt", "kav11")]
    assert reaches[0] == reaches[1] < reaches[2] < reaches[3] <= 48


@pytest.mark.parametrize("tile", [0, -16, 20, 1.5, True])
def test_a_tile_off_the_grid_is_refused(tile: object) -> None:
    model = ka.build("kav11", n_bands=4, n_msi=2, dim=8)
    with pytest.raises(ka.KAError, match="positive multiple of 16"):
        sharpen(model, torch.rand(1, 4, 32, 32), torch.rand(1, 2, 32, 32), tile)  # type: ignore[arg-type]


class Small(torch.nn.Module):
    """A model on a GPU whose memory holds images of so many pixels a side."""

    def __init__(self, name: str, side: int) -> None:
        super().__init__()
        self.model, self.side = ka.build(name, n_bands=4, n_msi=2, dim=8).eval(), side
        self.row, self.dim, self.n_bands, self.n_msi = self.model.row, 8, 4, 2
        self.seen: list[int] = []

    def forward(self, up: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        self.seen.append(up.shape[-1])
        if max(up.shape[-2:]) > self.side:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(up, msi)


def test_a_gpu_that_is_full_after_all_is_given_tiles(caplog: pytest.LogCaptureFixture) -> None:
    up, msi = torch.rand(1, 4, 48, 400), torch.rand(1, 2, 48, 400)
    small = Small("psrt_noshuffle", 260)
    torch.nn.init.normal_(small.model.tail.weight, std=0.1)
    found = sharpen(small, up, msi)  # type: ignore[arg-type]
    assert "does not fit in the memory of cpu: in tiles of 256" in caplog.text
    assert "in tiles of 128" in caplog.text  # with their margins, those of 256 were too large
    with torch.no_grad():
        whole = small.model(up, msi)
    assert (found - whole).abs().max() <= 1e-5 * whole.abs().max()
    with pytest.raises(ka.KAError, match="not even tiles of 64 pixels fit"):
        sharpen(Small("psrt_noshuffle", 20), up, msi)  # type: ignore[arg-type]
    with pytest.raises(ka.KAError, match="does not fit in the memory of cpu; with kav1 tiles give another result"):
        sharpen(Small("kav1", 20), up, msi)  # type: ignore[arg-type]
    asked = Small("psrt_noshuffle", 20)
    with pytest.raises(torch.OutOfMemoryError):  # who asks for tiles gets these
        sharpen(asked, up, msi, 128)  # type: ignore[arg-type]


def test_peak_memory_is_that_of_now() -> None:
    cpu = torch.device("cpu")
    forget_peak(cpu)
    before = peak_bytes(cpu)
    with mmap(-1, 2**28) as asked:  # from Linux itself: what tensors leave may be kept (see the Makefile)
        for page in range(0, len(asked), PAGESIZE):
            asked[page] = 1
        assert 0.9 * 2**28 <= peak_bytes(cpu) - before < 2**29
    assert peak_bytes(cpu) - before >= 0.9 * 2**28
    forget_peak(cpu)
    assert peak_bytes(cpu) - before < 0.5 * 2**28


def test_evaluation_gives_mean_and_sample_std() -> None:
    found = Evaluation({"a": {"psnr": 30.0}, "b": {"psnr": 34.0}, "c": {"psnr": 38.0}})
    assert (found.mean("psnr"), found.std("psnr")) == (34.0, 4.0)
    assert Evaluation({"a": {"psnr": 30.0}}).std("psnr") == 0.0


def test_a_prediction_with_nan_names_the_scene() -> None:
    scenes = data.load("indian_pines", "val")
    with pytest.raises(ka.KAError, match=r"scene .*(NaN|finite)"):
        evaluate(lambda scene: torch.full(scene.gt.shape, torch.nan), scenes, ["psnr"])


def test_linear_injection_is_the_least_squares_fit() -> None:
    scenes = data.load("indian_pines", "val")
    scene = scenes[0].load()
    fit = LinearInjection.fit(scenes)
    x = detail(scene.msi, scenes.degradation).reshape(scenes.n_msi, -1).astype(np.float64)
    residual = (scene.gt - scene.up).reshape(scenes.n_bands, -1)
    np.testing.assert_allclose(fit.weight, np.linalg.lstsq(x.T, residual.T, rcond=None)[0].T, atol=1e-5)
    names = ["psnr", "sam"]
    better, worse = evaluate(fit, scenes, names), evaluate(upsampled, scenes, names)
    assert better.mean("psnr") > worse.mean("psnr") + 3
    assert better.mean("sam") < worse.mean("sam")


def test_a_network_is_a_method() -> None:
    scenes = data.load("indian_pines", "val")
    model = ka.build("kav11", scenes.n_bands, scenes.n_msi, dim=8).eval()
    found = Network(model)(scenes[0].load())
    assert found.shape == scenes[0].gt.shape
    assert not found.requires_grad


def test_the_proofs_hold(cave_root: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bicubic and the published weights on the 11 real test scenes, within 0.02 dB / 0.01° / 0.01 (shared facts)."""
    scenes = data.load("cave", "test", cave_root)
    published = ka.load_checkpoint(shared / "weights" / "psrt_cave_x4.pth.tar")
    bicubic, agrees = verify.check(scenes, upsampled, "bicubic")
    assert agrees
    rows = np.stack([bicubic.values(name) for name in ("psnr", "sam", "ergas")])  # the first proof, without verify
    assert rows.shape == (3, 11)
    assert (np.abs(rows.mean(1) - [34.326, 4.450, 7.197]) <= [0.02, 0.01, 0.01]).all(), rows
    assert (np.abs(rows.std(1, ddof=1) - [3.882, 1.618, 4.869]) <= [0.02, 0.01, 0.01]).all(), rows
    assert verify.check(scenes, Network(published), "PSRT")[1]
    printed = capsys.readouterr().out
    assert printed.count("agrees") == 6
    assert printed.count("11 test scenes") == 2


def test_a_difference_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    _, agrees = verify.check(data.load("indian_pines", "val"), upsampled, "bicubic")
    assert not agrees
    assert capsys.readouterr().out.count("DIFFERS") == 3


def test_verify_explains_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert verify.main([""]) == 2
    assert "usage: make verify" in capsys.readouterr().err
