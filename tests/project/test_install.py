"""`pip install .` in a fresh environment: the models are usable, and Jupyter is not brought along."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

USE = """
import ka, json, sys, numpy as np, torch
model = ka.build("kav11", n_bands=4, n_msi=2, dim=8)
ka.save_weights("weights.safetensors", model)
loaded = ka.load_checkpoint("weights.safetensors")
gt = np.random.default_rng(0).random((4, 32, 32), dtype=np.float32)
scene = ka.data.observe("noise", gt, np.full((2, 4), 0.25), ka.Degradation(4))
scenes = ka.data.SceneSet("mine", "test", ka.Degradation(4), None, (2, 1, 0), ("a", "b"), [scene])
psnr = [ka.evaluate(ka.Network(network.eval()), scenes).mean("psnr") for network in (model, loaded)]
print(json.dumps({"psnr": psnr, "modules": sorted(sys.modules)}))
"""


@pytest.mark.slow
def test_a_fresh_environment_has_the_models_alone(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    # A copy: setuptools leaves build/ and *.egg-info beside the sources.
    subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "ka"], check=True)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "-c",
        ROOT / "constraints.txt",
        tmp_path / "ka",
    ]
    subprocess.run(install, check=True, env=environment)
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    packages = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert not packages & {"jupyterlab", "ipykernel", "ipywidgets", "papermill", "voila", "matplotlib", "submitit"}
    command = [python, "-c", USE]
    used = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert used.returncode == 0, used.stderr
    shown = json.loads(used.stdout)
    before, after = shown["psnr"]
    assert before == after  # of noise, by random weights: any number will do
    assert not any(name.split(".")[0] in ("workbook", "IPython", "matplotlib") for name in shown["modules"])
