"""Configurations: presets, types, ranges, and messages that help."""

from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from ka.errors import KAError
from workbook import notebook
from workbook.training.config import PRESETS, Config, parse_fields


def test_the_study_preset_is_its_protocol() -> None:
    c = Config.preset("study", data_root="/cave")
    assert (c.lr, c.schedule, c.weight_decay, c.batch, c.patch, c.epochs) == (1e-4, "constant", 1e-4, 32, 64, 2000)
    assert (c.clip, c.loss, c.seed, c.augment, c.amp, c.dim) == (5.0, "l1+ssim", 10, False, "none", 48)
    assert (c.scale, c.ends_lr, c.msi_gain, c.zero_tail, c.hold_out) == (1.0, 1.0, 1.0, False, False)


def test_presets_build_and_are_read_back() -> None:
    for name in PRESETS:
        config = Config.preset(name, dataset="cave", data_root="/somewhere")
        assert Config(**config.to_dict()) == config, name


def test_iterations_replace_epochs_and_back() -> None:
    assert Config.preset("study", data_root="x", iterations=7).epochs is None
    assert Config.preset("demo", epochs=2).iterations is None
    with pytest.raises(KAError, match="one of the two, not both"):
        Config.preset("demo", epochs=2, iterations=2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variant", "kav99", "kav99.*choose one of psrt, .*kav19"),
        ("dataset", "CAVE", "dataset 'CAVE' is unknown; did you mean 'cave'[?] choose one of indian_pines, cave, h5"),
        ("dataset", "cave", "needs data_root"),
        ("data_root", "/cave", "embedded scene needs none; add dataset='cave'"),
        ("augment", "false", "augment='false' is of the wrong type: expected bool, got str"),
        ("lr", "1e-3", "lr='1e-3' is of the wrong type: expected float, got str"),
        ("lr", -1.0, "lr=-1.0 is out of range: expected float >= 1e-12"),
        ("lr", float("nan"), "lr=nan is out of range"),
        ("seed", 1.5, "seed=1.5 is of the wrong type: expected int, got float"),
        ("seed", True, "seed=True is of the wrong type: expected int, got bool"),
        ("eval_size", "all", "eval_size='all' is of the wrong type: expected int | None, got str"),
        ("dim", 20, "dim=20 does not split into 8 heads"),
        ("patch", 30, "must be multiples of ratio=4"),
        ("batch", 0, "batch=0 is out of range: expected int >= 1"),
        ("batch", 65537, "batch=65537 is out of range: expected int <= 65536"),
        ("schedule", "cosin", "schedule 'cosin' is unknown; did you mean 'cosine'[?] choose one of constant, cosine"),
        ("loss", 3, "loss=3 is of the wrong type: expected str, got int"),
        ("device", "tpu", "device='tpu' is unknown; choose auto, cpu, cuda or cuda:N"),
        ("device", "cuda:²", "device='cuda:²' is unknown"),
        ("device", "cuda:", "device='cuda:' is unknown"),
        ("learning_rat", 1.0, "parameter 'learning_rat' is unknown; choose one of preset, variant, .*lr"),
        ("warm_up", 1.0, "parameter 'warm_up' is unknown; did you mean 'warmup'[?]"),
    ],
)
def test_a_wrong_field_is_explained(field: str, value: object, message: str) -> None:
    with pytest.raises(KAError, match=message.replace("|", r"\|")) as error:
        Config.preset("demo", **{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dataset", ["indian_pines", "cave"])
def test_what_only_own_files_are_read_by(dataset: str) -> None:
    root = None if dataset == "indian_pines" else "here"
    given = {"key": "x", "axes": "h w c", "max": 255.0, "wavelengths": "400,700", "val_share": 0.2, "test_share": 0.1}
    for name, value in given.items():
        says = (
            rf"^{name} would be ignored with dataset='{dataset}', which says this itself; leave out .* dataset='files'$"
        )
        with pytest.raises(KAError, match=says):
            Config(dataset=dataset, data_root=root, **{name: value})
    with pytest.raises(KAError, match="srf would be ignored with dataset='h5'"):
        Config(dataset="h5", data_root="here", srf="ikonos")
    with pytest.raises(KAError, match=r"^key, axes, max, wavelengths, val_share, test_share would be ignored"):
        Config(dataset=dataset, data_root=root, **given)
    assert Config(dataset="files", data_root="here", **given).max == 255.0
    assert Config(dataset=dataset, data_root=root, val_share=0.1, max=None).max is None


def test_every_number_has_its_range() -> None:
    """The limits themselves pass, what lies beyond them does not."""
    plain = {"ratio": 4, "dim": 8, "patch": 16, "stride": 4}
    own = {"dataset": "files", "data_root": "here"}
    ranges = 0
    for name, hint in get_type_hints(Config, include_extras=True).items():
        (limits,) = [h.__metadata__[0] for h in (hint, *get_args(hint)) if get_origin(h) is Annotated] or [None]
        if limits is None:
            continue
        ranges += 1
        length = {"iterations": None} if name == "epochs" else {"patch": 4096} if name == "margin" else {}
        if name not in plain:
            for value in (limits.ge, limits.le):
                assert getattr(Config(**{name: value} | length | own), name) == value
        for value in (limits.ge - 1, limits.le + 1):
            with pytest.raises(KAError, match=f"{name}={value} is out of range"):
                Config(**{name: value} | length)
    assert ranges == 30


def test_a_misspelt_preset() -> None:
    with pytest.raises(
        KAError, match=r"preset 'lapto' is unknown; did you mean 'laptop'\? choose one of study, laptop"
    ):
        Config.preset("lapto")


def test_whole_numbers_pass_for_floats() -> None:
    assert Config.preset("demo", clip=5).clip == 5.0
    assert isinstance(Config.preset("demo", clip=5).clip, float)


def test_fields_of_a_command_line() -> None:
    values = parse_fields(["lr=1e-3", "augment=True", "variant=kav1", "data_root=/a=b", "epochs=None"])
    assert values == {"lr": 1e-3, "augment": True, "variant": "kav1", "data_root": "/a=b", "epochs": None}
    assert parse_fields(["key={[]:1}"]) == {"key": "{[]:1}"}
    for wrong in (["lr"], ["=3"], ["lr=1", "lr=2"]):
        with pytest.raises(KAError, match=r"--set .* is not of the form name=value, each name once"):
            parse_fields(wrong)


def test_a_flag_is_no_text() -> None:
    assert notebook.flag("restart", value=True)
    with pytest.raises(KAError, match="restart='false' is of type str; write True or False"):
        notebook.flag("restart", "false")
