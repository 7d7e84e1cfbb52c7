"""The project's own files: one source of dependencies, documents that are up to date, nothing foreign committed."""

import json
import re
import subprocess
import tomllib
from importlib.metadata import version

import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbook import documents

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = [
    Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
]
FOREIGN = [requirement for requirement in REQUIRED if requirement.name != PROJECT["name"]]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_conda_users_get_the_same_environment() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-c constraints.txt", '-e ".[dev]"']}
    assert Requirement(EXTRAS["dev"][0]).extras == {"workbook", "cluster"}


def test_pinned_versions_are_in_their_ranges_and_installed() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    for requirement in FOREIGN:
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), requirement
        assert version(requirement.name).split("+")[0] == pin, requirement
    (torch,) = [requirement for requirement in FOREIGN if requirement.name == "torch"]
    assert any(specifier.operator == "<" for specifier in torch.specifier)


def test_a_model_needs_no_jupyter() -> None:
    """What `pip install .` brings is what `ka` imports, and no more."""
    names = {Requirement(line).name for line in PROJECT["dependencies"]}
    readers = {"h5py", "pillow", "rasterio", "scipy", "tensorly"}
    assert names == {"torch", "numpy", "einops", "jaxtyping", "safetensors"} | readers


def test_the_commands_of_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pages = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for path in [*pages, *(ROOT / "notebooks").glob("*.ipynb")]:
        text = path.read_text()
        for target in re.findall(r"(?:^|[`(])make ([a-z]+)(?=[ `\n])", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path.name}: make {target}"
        for module in re.findall(r"python -m ((?:workbook|benchmarks)[\w.]*)", text):
            place = ROOT.joinpath(*module.split("."))
            file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
            assert "main(" in file.read_text(), f"{path.name}: {module}"
        for link in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", text):
            assert (path.parent / (link[0] or link[1])).exists(), f"{path.name}: {link}"
    assert {"make test", "make slow"} <= set((ROOT / ".ci" / "run").read_text().splitlines())


def test_documents_hold_what_runs_and_models_say() -> None:
    for name in documents.DOCUMENTS:
        assert (ROOT / name).read_text() == documents.document(name), f"{name} is stale: make figures"
    assert (ROOT / "README.md").read_text().count("\n") <= 120


def test_notebooks_are_thin_and_whole() -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1, path
        assert all(len(cell["source"]) <= 25 for cell in code), path
        assert all(cell["execution_count"] for cell in code), f"{path}: a cell that was not run is not compared"
        assert any(cell["outputs"] for cell in code), path
        assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"]), path
        assert notebook["metadata"]["kernelspec"]["name"] == "python3", path


def test_nothing_big_or_foreign_is_committed() -> None:
    for name in tracked():
        path = ROOT / name
        assert not path.exists() or path.stat().st_size < 4_000_000, name
        assert path.suffix not in {".pyc", ".pth", ".tar", ".h5", ".npz"}, name
