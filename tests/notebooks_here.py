"""Notebooks run in the tests' own process, cell by cell, without a kernel: seconds instead of half a minute."""

import ast
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
from conftest import ROOT
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def code(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def run_here(name: str, **parameters: object) -> tuple[str, list[object]]:
    """Run a notebook with parameters injected as papermill does: what it printed, and the values of its cells."""
    notebook = load_notebook_node(str(NOTEBOOKS[name]))
    if parameters:
        notebook = parameterize_notebook(notebook, parameters)
    namespace: dict[str, object] = {"In": (executed := [])}
    printed, values = StringIO(), []
    with redirect_stdout(printed):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                executed.append(cell.source)
                body = ast.parse(cell.source).body
                value = body.pop() if isinstance(body[-1], ast.Expr) else None
                exec(compile(ast.Module(body, []), name, "exec"), namespace)
                if value is not None:
                    values.append(eval(compile(ast.Expression(value.value), name, "eval"), namespace))
    return printed.getvalue(), values
