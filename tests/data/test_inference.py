"""A network on whole images: one pass, tiles, and which of them where memory is short."""

import pytest
import torch

import ka
from ka import data
from ka.inference import Network, reach, run_network
from ka.models.variants import VARIANTS

EXACT = [name for name, row in VARIANTS.items() if not row.position_bound(16, 176)]
FAST = (
    "psrt",
    "psrt_noshuffle",
    "conv5x5",
    "kav6",
    "kav10_5x5",
    "kav11",
    "kav20",
    "kav21",
    "kav22",
    "kav23",
    "kav26",
    "residual",
)
"""Every reach that there is: the others of EXACT differ from these in what does not look sideways."""


def strong(name: str) -> ka.PSRT:
    """A float64 model in which what lies far away is felt: fresh weights are too small for that."""
    model = ka.build(name, n_bands=4, n_msi=2, dim=8).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in EXACT])
def test_tiles_equal_one_pass(name: str) -> None:
    model = strong(name)
    up, msi, lr = (torch.rand(1, c, 16 // r, 240 // r).double() for c, r in ((4, 1), (2, 1), (4, 4)))
    whole, tiled = run_network(model, up, msi, 512, lr), run_network(model, up, msi, 32, lr)
    assert (whole - up).abs().max() > 1e-3
    assert (whole - tiled).abs().max() <= 1e-10 * whole.abs().max()


def test_every_reach_is_tested_in_the_first_tier() -> None:
    assert {reach(VARIANTS[name]) for name in FAST} == {reach(VARIANTS[name]) for name in EXACT}


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
    free, bound, shuffled = strong("psrt_noshuffle"), strong("kav3"), strong("psrt")
    whole = run_network(free, up, msi, 512)
    sizes = []
    free.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    monkeypatch.setattr("ka.inference.free_bytes", lambda _: 1000)
    assert (run_network(free, up, msi) - whole).abs().max() <= 1e-10 * whole.abs().max()
    assert len(sizes) == 2
    with pytest.raises(ka.KAError, match=r"with kav3 tiles give another result .*tile=256"):
        run_network(bound, up, msi)
    with pytest.raises(ka.KAError, match=r"with psrt tiles give another result .*wraps around.*tile=256"):
        run_network(shuffled, torch.rand(1, 4, 16, 408).double(), torch.rand(1, 2, 16, 408).double())


def test_tiles_of_odd_images() -> None:
    model = strong("kav11")
    up, msi = torch.rand(1, 4, 61, 75).double(), torch.rand(1, 2, 61, 75).double()
    whole = run_network(model, up, msi, 512)
    assert (whole - run_network(model, up, msi, 32)).abs().max() <= 1e-10 * whole.abs().max()


@pytest.mark.parametrize("name", ["psrt_misaligned", "kav3", "kav17", "kav24"])
def test_tiles_cannot_equal_one_pass_where_kernels_are_bound(name: str) -> None:
    model = strong(name)
    up, msi = torch.rand(1, 4, 16, 176).double(), torch.rand(1, 2, 16, 176).double()
    whole = run_network(model, up, msi, 512)
    assert (whole - run_network(model, up, msi, 16)).abs().max() > 1e-3 * whole.abs().max()
    assert VARIANTS[name].position_bound(16, 176)


def test_reach_grows_with_what_looks_sideways() -> None:
    reaches = [reach(VARIANTS[name]) for name in ("kav5_as_run", "psrt_noshuffle", "psrt", "kav11")]
    assert reaches[0] == reaches[1] < reaches[2] < reaches[3] <= 48


def test_a_tile_off_the_grid_is_refused() -> None:
    model = ka.build("kav11", n_bands=4, n_msi=2, dim=8)
    for tile in (0, -16, 20, 1.5, True):
        with pytest.raises(ka.KAError, match="positive multiple of 16"):
            run_network(model, torch.rand(1, 4, 32, 32), torch.rand(1, 2, 32, 32), tile)  # type: ignore[arg-type]


class Small(torch.nn.Module):
    """A model on a GPU whose memory holds images of so many pixels a side."""

    def __init__(self, name: str, side: int) -> None:
        super().__init__()
        self.model, self.side = ka.build(name, n_bands=4, n_msi=2, dim=8).eval(), side
        self.row, self.dim, self.n_bands, self.n_msi = self.model.row, 8, 4, 2
        self.seen: list[int] = []

    def forward(self, up: torch.Tensor, msi: torch.Tensor, lr: torch.Tensor | None) -> torch.Tensor:
        self.seen.append(up.shape[-1])
        if max(up.shape[-2:]) > self.side:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(up, msi)


def test_a_gpu_that_is_full_after_all_is_given_tiles(caplog: pytest.LogCaptureFixture) -> None:
    up, msi = torch.rand(1, 4, 48, 400), torch.rand(1, 2, 48, 400)
    small = Small("psrt_noshuffle", 260)
    torch.nn.init.normal_(small.model.tail.weight, std=0.1)
    tiled = run_network(small, up, msi)  # type: ignore[arg-type]
    assert "does not fit in the memory of cpu: in tiles of 256" in caplog.text
    assert "in tiles of 128" in caplog.text  # with their margins, those of 256 were too large
    with torch.no_grad():
        whole = small.model(up, msi)
    assert (tiled - whole).abs().max() <= 1e-5 * whole.abs().max()
    with pytest.raises(ka.KAError, match="not even tiles of 64 pixels fit"):
        run_network(Small("psrt_noshuffle", 20), up, msi)  # type: ignore[arg-type]
    with pytest.raises(ka.KAError, match="does not fit in the memory of cpu; with kav1 tiles give another result"):
        run_network(Small("kav1", 20), up, msi)  # type: ignore[arg-type]
    asked = Small("psrt_noshuffle", 20)
    with pytest.raises(torch.OutOfMemoryError):  # who asks for tiles gets these
        run_network(asked, up, msi, 128)  # type: ignore[arg-type]


def test_a_network_is_a_method() -> None:
    scenes = data.load("indian_pines", "val")
    model = ka.build("kav11", scenes.n_bands, scenes.n_msi, dim=8).eval()
    image = Network(model)(scenes[0].load())
    assert image.shape == scenes[0].gt.shape
    assert not image.requires_grad
