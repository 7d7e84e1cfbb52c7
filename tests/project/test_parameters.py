"""What a notebook takes for its parameters: names assigned in the parameters cell, and what papermill injects."""

from typing import Any

import pytest

from ka.errors import KAError
from workbook import notebook


def namespace(own: str, injected: str = "", elsewhere: str = "", first: str = notebook.FIRST_LINE) -> dict[str, Any]:
    """A notebook's globals after its cells ran."""
    cells = [f"{first}\n{own}", *([f"# Parameters\n{injected}"] if injected else []), elsewhere]
    names: dict[str, Any] = {"In": ["", *cells]}
    for cell in cells:
        exec(cell, names)
    return names


def test_names_assigned_in_the_parameters_cell_count() -> None:
    config, own = notebook.parameters(
        namespace('preset = "smoke"\nlr: float = 1e-4\nbatch, stride = 2, 16\nrestart = True'), "restart"
    )
    assert (config.lr, config.batch, config.stride, config.dim) == (1e-4, 2, 16, 8)
    assert own == {"restart": True}


def test_papermills_values_come_second() -> None:
    config, _ = notebook.parameters(namespace('preset = "smoke"\nseed = 1\nvariant = "kav1"', "seed = 2"))
    assert (config.seed, config.variant) == (2, "kav1")


def test_none_leaves_what_the_preset_says() -> None:
    assert notebook.parameters(namespace('preset = "smoke"\ndim = None'))[0].dim == 8


def test_other_names_of_the_notebook_are_no_parameters() -> None:
    config, _ = notebook.parameters(namespace('preset = "smoke"', elsewhere="scale = 3\nloss = 0.5\nclip = 'a'"))
    assert (config.scale, config.loss, config.clip) == (100.0, "l1", 5.0)


def test_the_cell_counts_as_it_was_run_last() -> None:
    again = namespace('preset = "smoke"\nlearning_rate = 1', "sed = 1")
    exec(cell := f'{notebook.FIRST_LINE}\npreset = "smoke"\nlr = 1e-4', again)
    again["In"].append(cell)
    assert notebook.parameters(again)[0].lr == 1e-4


@pytest.mark.parametrize(
    ("own", "injected", "message"),
    [
        ("learning_rate = 1e-4", "", "parameter 'learning_rate' is unknown; choose one of preset, restart, variant"),
        ("iteration = 10", "", "'iteration' is unknown; did you mean 'iterations'"),
        ("", "sed = 3", "'sed' is unknown; did you mean 'seed'"),
        ("", 'variant = "KAv1"', "did you mean 'kav1'"),
        ("", 'dataset = "CAVE"', "did you mean 'cave'"),
        ("", 'augment = "false"', "augment"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(own: str, injected: str, message: str) -> None:
    with pytest.raises(KAError, match=message) as caught:
        notebook.parameters(namespace(f'preset = "smoke"\nrestart = False\n{own}', injected), "restart")
    (line,) = caught.value._render_traceback_()
    assert line == f"KAError: {caught.value}"
    assert "\n" not in line


def test_a_kernel_that_keeps_no_history() -> None:
    """As nbval's: what is there counts, by name."""
    assert notebook.check_names({"In": [""], "seed": 1, "other": 2}, "seed", "runs") == {"seed": 1}


def test_without_its_first_line_the_cell_is_not_found() -> None:
    with pytest.raises(KAError, match="no parameters cell was run: it begins with the line"):
        notebook.check_names(namespace("seed = 1", first="# my parameters"), "seed")


def test_magics_are_no_hindrance() -> None:
    names = {"seed": 1, "In": [f"{notebook.FIRST_LINE}\n%matplotlib inline\nseed = 1"]}
    assert notebook.check_names(names, "seed") == {"seed": 1}
