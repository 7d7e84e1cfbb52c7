"""Configurations: presets, types, ranges, and the notebook's parameters."""

import pytest

import ka
from workbook import notebook
from workbook.training.config import PRESETS, Config


def test_the_study_preset_is_its_protocol() -> None:
    c = Config.preset("study", data_root="/cave")
    assert (c.lr, c.schedule, c.weight_decay, c.batch, c.patch, c.epochs) == (1e-4, "constant", 1e-4, 32, 64, 2000)
    assert (c.clip, c.loss, c.seed, c.augment, c.amp, c.dim) == (5.0, "l1+ssim", 10, False, "none", 48)
    assert (c.scale, c.ends_lr, c.msi_gain, c.zero_tail, c.hold_out) == (1.0, 1.0, 1.0, False, False)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name: str) -> None:
    config = Config.preset(name, dataset="cave", data_root="/somewhere")
    assert Config(**config.to_dict()) == config


def test_iterations_replace_epochs_and_back() -> None:
    assert Config.preset("study", data_root="x", iterations=7).epochs is None
    assert Config.preset("demo", epochs=2).iterations is None
    with pytest.raises(ka.KAError, match="one of the two, not both"):
        Config.preset("demo", epochs=2, iterations=2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variant", "kav99", "variant 'kav99' is unknown; .*choose one of psrt, .*kav19"),
        ("dataset", "harvard", "dataset='harvard' is unknown; choose one of indian_pines, cave, h5"),
        ("dataset", "cave", "needs data_root"),
        ("data_root", "/cave", "embedded scene needs none; add dataset='cave'"),
        ("augment", "false", "augment='false' is of type str; bool is expected"),
        ("lr", "1e-3", "lr='1e-3' is of type str; float is expected"),
        ("lr", -1.0, "lr=-1.0 is out of range"),
        ("lr", float("nan"), "lr is NaN"),
        ("seed", 1.5, "seed=1.5 is of type float; int is expected"),
        ("seed", True, "seed=True is of type bool; int is expected"),
        ("dim", 20, "dim=20 does not split into 8 heads"),
        ("dim", 0, "dim=0 is out of range"),
        ("patch", 30, "must be multiples of ratio=4"),
        ("batch", 0, "batch=0 is out of range; allowed: 1 to"),
        ("schedule", "linear", "schedule='linear' is unknown; choose one of constant, cosine"),
        ("loss", "l2", "loss='l2' is unknown; choose one of l1, l1"),
        ("device", "tpu", "device='tpu' is unknown; choose auto, cpu, cuda or cuda:N"),
        ("iterations", 0, "iterations=0 is out of range"),
        ("ema", 1.0, "ema=1.0 is out of range"),
        ("learning_rate", 1.0, "unknown parameter learning_rate; allowed are preset, variant, .*lr"),
    ],
)
def test_a_wrong_field_is_explained(field: str, value: object, message: str) -> None:
    with pytest.raises(ka.KAError, match=message) as error:
        Config.preset("demo", **{field: value})
    assert "\n" not in str(error.value)


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ka.KAError, match="preset='quick' is unknown; choose one of study, laptop, demo, smoke"):
        Config.preset("quick")


def test_whole_numbers_pass_for_floats() -> None:
    assert Config.preset("demo", clip=5).clip == 5.0
    assert isinstance(Config.preset("demo", clip=5).clip, float)


def test_a_notebooks_parameters() -> None:
    cells = ["preset = 'demo'", "# Parameters\nvariant = 'kav1'\nlr = 0.001\n", "lurking = 3"]
    names = {"In": cells, "preset": "demo", "variant": "kav1", "lr": 0.001, "seed": None, "restart": False, "x": 1}
    config, own = notebook.parameters(names, "restart")
    assert (config.variant, config.lr, config.seed, own) == (
        "kav1",
        0.001,
        PRESETS["demo"].get("seed", 0),
        {"restart": False},
    )


def test_an_injected_name_that_means_nothing_is_an_error() -> None:
    names = {"In": ["# Parameters\nvarient = 'kav1'\n"], "varient": "kav1", "preset": "demo"}
    with pytest.raises(ka.KAError, match=r"unknown parameter varient; allowed are preset, restart, .*variant"):
        notebook.parameters({**names, "restart": False}, "restart")


def test_a_flag_is_no_text() -> None:
    assert notebook.flag("restart", value=True)
    with pytest.raises(ka.KAError, match="restart='false' is of type str; write True or False"):
        notebook.flag("restart", "false")
