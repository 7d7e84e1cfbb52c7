"""The project's own files: one source of dependencies, no surprises in what is committed."""

import json
import re
import subprocess
import tomllib
from importlib.metadata import version

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ka import VARIANTS, parameter_count
from workbook.results import stored as results

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
PINNED = {
    canonicalize_name(name): pin
    for name, pin in (
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_conda_users_get_the_same_environment() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-c constraints.txt", '-e ".[dev]"']}


@pytest.mark.parametrize("requirement", REQUIRED, ids=lambda r: r.name)
def test_the_pinned_version_is_in_its_range_and_installed(requirement: Requirement) -> None:
    pin = PINNED[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)
    assert version(requirement.name).split("+")[0] == pin


def test_torch_has_an_upper_bound() -> None:
    (torch,) = [requirement for requirement in REQUIRED if requirement.name == "torch"]
    assert any(specifier.operator == "<" for specifier in torch.specifier)


def test_the_readmes_commands_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    used = set(re.findall(r"(?<=make )[a-z]+(?= |`|\n)", readme))
    assert {"train", "test", "verify"} <= used
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in used)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_table_is_the_variant_table() -> None:
    readme = (ROOT / "README.md").read_text()
    readme = readme[readme.index("## The models") : readme.index("## Data")]
    for name in VARIANTS:
        (row,) = re.findall(rf"^\| `{name}` \|.*\|$", readme, re.MULTILINE)
        count = parameter_count(name)
        assert f"{count.live:,}" in row
        assert f"{count.deployed:,}" in row


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_thin_and_whole(path: object) -> None:
    notebook = json.loads(path.read_text())  # type: ignore[attr-defined]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert all(len(cell["source"]) <= 25 for cell in code)
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_nothing_big_or_foreign_is_committed() -> None:
    for name in tracked():
        path = ROOT / name
        assert not path.exists() or path.stat().st_size < 4_000_000, name
        assert path.suffix not in {".pyc", ".pth", ".tar", ".h5", ".npz"}, name


def test_the_package_reads_no_reference_material_and_runs_no_code_from_files() -> None:
    for path in (ROOT / "ka").glob("*.py"):
        text = path.read_text()
        assert "shared/" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True") - text.count("`weights_only=True`"), path


def test_the_readmes_numbers_are_those_of_the_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    numbers = readme[readme.index("## Numbers") :]
    runs = {run.config.variant: run for run in results.read(results.results_folder(), "demo")}
    methods = {name: run.methods["best"] for name, run in runs.items()}
    untrained = next(iter(runs.values())).methods
    methods["bicubic upsampling"] = untrained["bicubic"]
    methods["linear detail injection (one matrix)"] = untrained["linear injection"]
    for name, found in methods.items():
        cells = [f"{found.mean(metric):.3f}" for metric in ("psnr", "sam", "ergas")]
        assert f"| {' | '.join([name, *cells])} |" in numbers


def test_what_the_readme_says_of_kernel_sa_is_so() -> None:
    """Of the rows that were run: below those without it, “most of them below the baseline”."""
    means: dict[str, list[float]] = {}
    for run in results.read(results.results_folder(), "laptop"):
        means.setdefault(run.config.variant, []).append(run.methods["best"].mean("psnr"))
    mean = {name: sum(found) / len(found) for name, found in means.items()}
    with_sa = [value for name, value in mean.items() if VARIANTS[name].sa]
    assert len(with_sa) >= 8
    assert max(with_sa) < min(mean[name] for name in ("kav5", "kav11", "conv3x3"))
    assert sum(value < mean["psrt_noshuffle"] for value in with_sa) > len(with_sa) / 2
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "ends below those that convolve without it (KAv5, KAv11, `conv3x3`), most of them below the base" in readme


def test_the_readmes_entropies_are_those_of_the_notebook() -> None:
    readme = (ROOT / "README.md").read_text().replace("\n", " ")
    shown = (ROOT / "notebooks" / "attention.ipynb").read_text()
    found = re.findall(r"(kav\d+): entropy of kernel SA ([\d.]+) in the mean", shown)
    assert len(found) == 3
    assert all(f"{value} in {name}" in readme for name, value in found)
