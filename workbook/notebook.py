"""What the notebooks share: parameters that are checked, tables, and curves drawn while training."""

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import DisplayHandle, Image, Markdown, display
from matplotlib.figure import Figure

from ka.errors import KAError, unknown
from ka.evaluation import in_text
from ka.files import user_path
from ka.metrics import METRICS
from workbook.style import png
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.scenes import Data, load_data
from workbook.training.train import run_folder
from workbook.views.plots import curves


class HasRow(Protocol):
    """Something that is a row of a table."""

    def row(self) -> Mapping[str, object]: ...


# How the parameters cell of every notebook begins: the names assigned in it are the ones that count.
FIRST_LINE = "# Parameters of this notebook: change them here, or give them to papermill with -p."


def parameters(namespace: Mapping[str, Any], *own: str) -> tuple[Config, dict[str, Any]]:
    """The configuration that a notebook's parameters cell and papermill's `-p` ask for, and its `own` parameters.

    Every field of `Config` may be set in the parameters cell or with `-p`; None leaves what the preset says. An unknown
    name, a wrong type (`-p augment false` is the text "false": write False) and an impossible value are a `KAError`.
    Where only a finished run's `run_dir` (and where its data lie here) is given, the configuration is that run's.
    `namespace` is the notebook's `globals()`.
    """
    fields = [field.name for field in dataclasses.fields(Config)]
    given = check_names(namespace, "preset", *own, *fields)
    changes = {name: given[name] for name in fields if given.get(name) is not None}
    preset, of_own = given.get("preset", "demo"), {name: given[name] for name in own}
    if preset == "demo" and changes.keys() <= {"run_dir", "data_root"} and given.get("restart") is not True:
        run = Run(user_path(str(changes.get("run_dir", ""))))
        if "run_dir" in changes and run.finished and (config := run.config()) is not None:
            return dataclasses.replace(config, **changes), of_own
    return Config.preset(preset, **changes), of_own


def data_of(config: Config, restart: bool = False) -> Data | None:
    """The data of a run; None, and a line that says what is missing, where it is finished and they are not here."""
    try:
        return load_data(config)
    except KAError as error:
        if restart or not Run(run_folder(config)).finished:
            raise
        print(f"this finished run is shown without its data, and without pictures: {error}")
        return None


def check_names(namespace: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The parameters of a notebook, by name: what its parameters cell assigns, or `-p` in its place.

    Nothing else in the notebook is taken for a parameter, whatever it is called. A name that is assigned there or given
    with `-p` (of which papermill only warns), and is none of `names`, is a `KAError`.
    """
    history = namespace.get("In", [])
    if not any(history):  # a kernel that keeps none (nbval) cannot tell what its cells said, only what there is
        return {name: namespace[name] for name in names if name in namespace}
    assigned = _assigned(history)
    for name in assigned:
        if name not in names:
            raise unknown("parameter", name, names)
    return {name: namespace[name] for name in assigned}


def _assigned(executed: Sequence[str]) -> list[str]:
    """Names assigned in the parameters cell, as it was run last, and in the cell that papermill put behind it."""
    cells = {"own": "", "injected": ""}
    for cell in executed:
        if cell.startswith(FIRST_LINE):
            cells = {"own": cell, "injected": ""}
        elif cell.startswith("# Parameters\n"):
            cells["injected"] = cell
    if not cells["own"]:
        raise KAError(f"no parameters cell was run: it begins with the line {FIRST_LINE!r}; run it first")
    code = TransformerManager().transform_cell("\n".join(cells.values()))  # magics are no Python
    targets: list[ast.expr] = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Assign):
            targets += statement.targets
        elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
            targets.append(statement.target)
    nodes = [node for target in targets for node in ast.walk(target)]
    names = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return list(dict.fromkeys(names))


def flag(name: str, value: Any) -> bool:
    """`value` if it is True or False; all else, such as the text "false" of `-p restart false`, is a `KAError`."""
    if not isinstance(value, bool):
        raise KAError(f"{name}={value!r} is of type {type(value).__name__}; write True or False")
    return value


def show(figure: Figure) -> Image:
    """A figure as a picture. (Jupyter draws figures by itself only where pyplot made them.)"""
    return Image(png(figure))


class Live:
    """An output that is redrawn in place, `draw` of what it is called with; of an empty list at first."""

    def __init__(self, draw: Callable[[Sequence[Any]], object]) -> None:
        self.draw = draw
        self.handle: DisplayHandle | None = display(draw([]), display_id=True)

    def __call__(self, items: Sequence[Any]) -> None:
        if self.handle is not None:
            self.handle.update(self.draw(items))


class LiveCurves(Live):
    """Loss and validation curves; call it with the history."""

    def __init__(self) -> None:
        super().__init__(lambda history: show(curves(history)))


class LiveTable(Live):
    """A table; call it with things that have a `row()`."""

    def __init__(self) -> None:
        super().__init__(rows_of)


def table(rows: Sequence[Mapping[str, object]]) -> Markdown:
    """Rows as a Markdown table, with the keys of the first as its head; says so where there is none. Cells show their
    text as it is: names and messages may come from files.
    """
    if not rows:
        return Markdown("*nothing to show yet*")
    head: list[object] = list(rows[0])
    lines = [head, *([row.get(str(key), "") for key in head] for row in rows)]
    texts = ["| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines]
    texts.insert(1, "| " + " | ".join(["---"] * len(head)) + " |")
    return Markdown("\n".join(texts))


def rows_of(items: Iterable[HasRow]) -> Markdown:
    """A table of things that have a `row()`."""
    return table([item.row() for item in items])


_ESCAPED = {letter: f"\\{letter}" for letter in "\\`*|$~"}
_ESCAPED |= {"&": "&amp;", "<": "&lt;", "](": "]\\("}  # brackets alone are intervals


def _cell(text: str) -> str:
    """Text in one line that starts no Markdown, HTML or mathematics."""
    return re.sub(r"\]\(|[\\`*|$~&<]", lambda match: _ESCAPED[match[0]], " ".join(text.split()))


def results(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows for `table` from a run's `metrics()`: a method each, mean over scenes (± sample std) of every metric.

    Scenes where a metric is undefined are left out of its mean, which says of how many it is then.
    """
    rows = []
    for method, evaluation in metrics["methods"].items():
        row = {"method": method}
        scenes = evaluation["scenes"].values()
        for name, mean in evaluation["mean"].items():
            left = sum(scene[name] is not None for scene in scenes)
            text = in_text(mean, evaluation["std"][name] if left > 1 else None)
            whole = mean is None or left == len(scenes)
            row[METRICS[name].heading] = text if whole else f"{text} ({left} of {len(scenes)} scenes)"
        rows.append(row)
    return rows


def memory(metrics: Mapping[str, Any]) -> str:
    """Peak memory from a run's `metrics()`, in words; runs of former versions did not note it."""
    if (peak := metrics.get("memory")) is None:
        return "not noted"
    return f"{peak['training_mib']:,} MiB in training, {peak['test_mib']:,} MiB on whole test scenes"
