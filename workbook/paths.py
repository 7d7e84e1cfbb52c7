"""Where things lie: this checkout, or the current folder where the packages are installed elsewhere."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STYLE = Path(__file__).with_name("style.mplstyle")
CHECKPOINTS = (
    ROOT / "checkpoints"
)  # models that come with the project, float16: the demo's on the embedded scene, the best on CAVE


def _beside(name: str) -> Path:
    return (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()) / name


def runs_folder() -> Path:
    """Where runs go by default: `runs/`."""
    return _beside("runs")


def results_folder() -> Path:
    """Where finished results are kept: `results/`."""
    return _beside("results")
