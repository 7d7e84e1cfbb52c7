"""The models, fast and plain, against what the study's own code computed; and the published weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ka
from benchmarks.reference import reference, reference_layer
from ka.models.kernel_attention import KernelAttention
from ka.models.study_names import study_layer_keys
from ka.models.variants import variant

LAYERS = ["kav1", "kav3", "kav5_as_run", "kav6", "kav8_as_run", "kav11", "kav16"]
NETWORKS = ["net_kav3", "psrt_misaligned", "psrt_noshuffle"]


def golden(shared: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs, and weights under the study's names."""
    with np.load(shared / "golden" / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    weights = {key.removeprefix("w."): value for key, value in arrays.items() if key.startswith("w.")}
    return {key: value for key, value in arrays.items() if not key.startswith("w.")}, weights


def golden_layer(shared: Path, name: str, row: str) -> tuple[KernelAttention, Tensor, Tensor]:
    """A layer of `row` with the weights of golden layer `name`; its input and output (b c h w)."""
    arrays, weights = golden(shared, name)
    layer = KernelAttention(24, variant(row)).double()
    layer.load_state_dict(study_layer_keys(weights, variant(row)))
    x, y = (arrays[key].permute(0, 3, 1, 2) for key in "xy")
    return layer, x, y


def test_all_files_are_met(shared: Path) -> None:
    """`start.npz` is of the methods without training, and met elsewhere."""
    assert {path.stem for path in (shared / "golden").glob("*.npz")} == {*LAYERS, *NETWORKS, "start"}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(shared: Path, name: str) -> None:
    layer, x, y = golden_layer(shared, name, name)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=1e-10)
    torch.testing.assert_close(reference_layer(layer, 24).double()(x), y, rtol=0, atol=1e-10)


def test_layers_tell_variants_apart(shared: Path) -> None:
    """The described KAv8 is not the one that ran: their weights fit each other, their outputs do not."""
    layer, x, y = golden_layer(shared, "kav8_as_run", "kav8")
    assert (layer(x) - y).abs().max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(shared: Path, name: str) -> None:
    arrays, weights = golden(shared, name)
    model = ka.load_checkpoint(weights, variant=name.removeprefix("net_"))
    assert (model.dim, model.n_bands, model.head.weight.dtype) == (16, 31, torch.float64)
    with torch.no_grad():
        for form in (model, reference(model)):
            torch.testing.assert_close(form(arrays["up"], arrays["rgb"]), arrays["out"], rtol=0, atol=1e-10)
    prefixed = ka.load_checkpoint({f"model.{key}": value for key, value in weights.items()}, model.row.name)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), prefixed.parameters(), strict=True))


def test_published_weights_load(shared: Path) -> None:
    model = ka.load_checkpoint(shared / "weights" / "psrt_cave_x4.pth.tar")
    assert (model.row.name, model.dim, model.n_bands, model.n_msi) == ("psrt", 32, 31, 3)
    assert not model.training
