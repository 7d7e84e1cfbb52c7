"""What the notebooks share: parameters that are checked, tables, and curves drawn while training."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from IPython.display import DisplayHandle, Image, Markdown, display
from matplotlib.figure import Figure

from ka.errors import KAError
from ka.metrics import METRICS
from workbook.training.config import Config
from workbook.views.plots import curves, png


class HasRow(Protocol):
    """Something that is a row of a table."""

    def row(self) -> Mapping[str, object]: ...


def parameters(namespace: Mapping[str, Any], *own: str) -> tuple[Config, dict[str, Any]]:
    """The configuration that a notebook's parameters cell and papermill's `-p` ask for.

    Every field of `Config` may be set, by the parameters cell or with `-p`; None leaves what the preset says. A name
    that papermill injected and that means nothing is an error (papermill only warns of it).

    Args:
        namespace: the notebook's `globals()`.
        own: further parameters of this notebook.

    Returns:
        The configuration, and the notebook's own parameters.

    Raises:
        KAError: unknown name, wrong type (`-p augment false` is the text "false": write False), impossible value.
    """
    known = {field.name for field in fields(Config)}
    check_names(namespace, "preset", *own, *sorted(known))
    given = {name: namespace[name] for name in known if namespace.get(name) is not None}
    config = Config.preset(namespace.get("preset", "demo"), **given)
    return config, {name: namespace[name] for name in own}


def check_names(namespace: Mapping[str, Any], *names: str) -> None:
    """Refuse a parameter that means nothing to a notebook (papermill only warns of it).

    Args:
        namespace: the notebook's `globals()`.
        names: its parameters.

    Raises:
        KAError: papermill injected another name.
    """
    unknown = sorted(_injected(namespace) - set(names))
    if unknown:
        raise KAError(f"unknown parameter {', '.join(unknown)}; allowed are {', '.join(names)}")


def _injected(namespace: Mapping[str, Any]) -> set[str]:
    """Names assigned in the cell that papermill injected; it starts with the comment `# Parameters`."""
    names = set()
    for cell in namespace.get("In", []):
        if cell.startswith("# Parameters\n"):
            for node in ast.walk(ast.parse(cell)):
                if isinstance(node, ast.Assign):
                    names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def flag(name: str, value: Any) -> bool:
    """`value` if it is True or False.

    Raises:
        KAError: it is something else, such as the text "false" of `-p restart false`.
    """
    if not isinstance(value, bool):
        raise KAError(f"{name}={value!r} is of type {type(value).__name__}; write True or False")
    return value


def show(figure: Figure) -> Image:
    """A figure as a picture. (Jupyter draws figures by itself only where pyplot made them.)"""
    return Image(png(figure))


class LiveCurves:
    """Loss and validation curves that are redrawn in place; call it with the history."""

    def __init__(self) -> None:
        self.handle: DisplayHandle | None = display(show(curves([])), display_id=True)

    def __call__(self, history: Sequence[Mapping[str, Any]]) -> None:
        if self.handle is not None:
            self.handle.update(show(curves(history)))


class LiveTable:
    """A table that is redrawn in place; call it with things that have a `row()`."""

    def __init__(self) -> None:
        self.handle: DisplayHandle | None = display(table([]), display_id=True)

    def __call__(self, found: Sequence[HasRow]) -> None:
        if self.handle is not None:
            self.handle.update(table([one.row() for one in found]))


def table(rows: Sequence[Mapping[str, object]]) -> Markdown:
    """Rows as a Markdown table, with the keys of the first as its head; says so where there is none.

    Cells show their text as it is: names and messages may come from files.
    """
    if not rows:
        return Markdown("*nothing to show yet*")
    head: list[object] = list(rows[0])
    lines = [head, *([row.get(str(key), "") for key in head] for row in rows)]
    found = ["| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines]
    found.insert(1, "| " + " | ".join(["---"] * len(head)) + " |")
    return Markdown("\n".join(found))


_ESCAPED = {
    **{letter: f"\\{letter}" for letter in "\\`*|$~"},
    "&": "&amp;",
    "<": "&lt;",
    "](": "]\\(",  # brackets alone are intervals
}


def _cell(text: str) -> str:
    """Text in one line that starts no Markdown, HTML or mathematics."""
    return re.sub(r"\]\(|[\\`*|$~&<]", lambda found: _ESCAPED[found[0]], " ".join(text.split()))


def results(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows for `table` from a run's `metrics()`: a method each, mean over scenes (± sample std) of every metric."""
    rows = []
    for method, found in metrics["methods"].items():
        several = len(found["scenes"]) > 1
        cells = {
            METRICS[name].heading: (f"{mean:.3f}" + (f" ± {found['std'][name]:.3f}" if several else ""))
            for name, mean in found["mean"].items()
        }
        rows.append({"method": method, **cells})
    return rows


def memory(metrics: Mapping[str, Any]) -> str:
    """Peak memory from a run's `metrics()`, in words; runs of former versions did not note it."""
    found = metrics.get("memory")
    if found is None:
        return "not noted"
    return f"{found['training_mib']:,} MiB in training, {found['test_mib']:,} MiB on whole test scenes"
