"""A finished run of six iterations, and copies of it with other numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbook.results import stored as results
from workbook.training.config import Config
from workbook.training.run import Run
from workbook.training.train import train

Fake = Callable[..., Run]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of six iterations."""
    path = tmp_path_factory.mktemp("real") / "run"
    return train(Config.preset("smoke", run_dir=str(path), device="cpu"), bar=False)


@pytest.fixture
def fake(real: Run, tmp_path: Path) -> Fake:
    """Copies of the real run whose variant, seed and per-scene PSNR are changed."""

    def make(name: str = "kav11", seed: int = 0, psnr: Any = (40.0,) * 3, **changes: Any) -> Run:
        run = Run(tmp_path / "runs" / f"{name}-{seed}-{len(list(tmp_path.glob('runs/*')))}")
        shutil.copytree(real.path, run.path, ignore=shutil.ignore_patterns("*.pt", "*.safetensors", ".lock"))
        config = json.loads((run.path / "config.json").read_text())
        config |= {"variant": name, "seed": seed, "run_dir": str(run.path)} | changes
        (run.path / "config.json").write_text(json.dumps(config))
        metrics = run.metrics()
        for method, found in metrics["methods"].items():
            (values,) = found["scenes"].values()
            trained = method in results.WEIGHTS
            found["scenes"] = {
                f"scene {i}": values | ({"psnr": float(x), "sam": (100 - float(x)) / 40} if trained else {})
                for i, x in enumerate(psnr)
            }
        (run.path / "metrics.json").write_text(json.dumps(metrics))
        return run

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2023)
