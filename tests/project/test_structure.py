"""The house: small rooms, and imports that run one way."""

import ast
import sys
from collections import Counter
from pathlib import Path

from conftest import ROOT

FLOORS = (
    *(
        "ka.errors",
        "ka.files",
        "ka.images",
        "ka.data",
        "ka.methods",
        "ka.models",
        "ka.metrics",
        "ka.evaluation",
        "ka.inference",
        "ka.pairs",
        "ka",
    ),
    *(
        "workbook",
        "workbook.paths",
        "workbook.environment",
        "workbook.style",
        "workbook.training",
        "workbook.results",
        "workbook.sweeps",
    ),
    *(
        "workbook.views",
        "workbook.sharpening",
        "workbook.explorer",
        "workbook.diagrams",
        "workbook.audit",
        "workbook.notebook",
    ),
    *(
        "workbook.robustness",
        "workbook.documents",
        "workbook.figures",
        "workbook.prepare_cave",
        "workbook.verify",
        "benchmarks",
    ),
)
"""Rooms from the ground up: each may import from those before it."""

PATHS = sorted(path for folder in ("ka", "workbook", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in PATHS]


def room(module: str) -> str:
    """The floor that a module belongs to: the longest that its name begins with."""
    return max((floor for floor in FLOORS if f"{module}.".startswith(f"{floor}.")), key=len)


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name for name in names if is_module(name)} or {node.module}
    return {module for module in modules if module.split(".")[0] in ("ka", "workbook", "benchmarks")}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def test_imports_run_one_way() -> None:
    for name, path in zip(NAMES, PATHS, strict=True):
        if not name.startswith("tests/"):
            here = room(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
            upwards = [module for module in imported(path) if FLOORS.index(room(module)) > FLOORS.index(here)]
            assert not upwards, f"{name} imports {upwards}, which lie above it"


def test_ka_imports_what_it_says() -> None:
    """Nothing of Jupyter, nothing of the workbook: what `pip install .` brings is enough."""
    allowed = {
        "torch",
        "numpy",
        "einops",
        "jaxtyping",
        "safetensors",
        "h5py",
        "PIL",
        "tensorly",
        "scipy",
        "rasterio",
        "ka",
    }
    for path in (ROOT / "ka").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        foreign = {name.split(".")[0] for name in modules} - allowed - sys.stdlib_module_names
        assert not foreign, f"{path} imports {foreign}"


def test_rooms_are_small() -> None:
    folders = Counter(path.parent for path in PATHS)
    assert {str(folder): n for folder, n in folders.items() if n > 10} == {}
    lengths = {name: path.read_text().count("\n") for name, path in zip(NAMES, PATHS, strict=True)}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_functions_are_short() -> None:
    long = {}
    for name, path in zip(NAMES, PATHS, strict=True):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 60:
                    long[f"{name}: {node.name}"] = lines
    assert long == {}


def test_the_training_step_is_in_one_place() -> None:
    """Batch, forward, loss, backward, clip, optimiser, average: at most 40 consecutive lines."""
    lines = (ROOT / "workbook" / "training" / "step.py").read_text().splitlines()
    parts = ("batch", "network(", "loss", "backward(", "clip_grad_norm_(", "optimizer.step()", "average")
    assert any(all(any(part in line for line in lines[i : i + 40]) for part in parts) for i in range(len(lines)))


def test_nothing_runs_code_from_a_file() -> None:
    """Every call of `torch.load` says `weights_only=True`."""
    calls = [
        (name, node.lineno, ast.unparse(node))
        for name, path in zip(NAMES, PATHS, strict=True)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    assert [call for call in calls if "weights_only=True" not in call[-1]] == []


def test_the_packages_name_no_reference_material() -> None:
    for name, path in zip(NAMES, PATHS, strict=True):
        assert name.startswith("tests/") or "shared/" not in path.read_text(), name
