"""`pip install .` in a fresh environment: the models are usable, and Jupyter is not brought along."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

import ka
from workbook.training.config import Config

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


WINDOWS = """
import json, os, signal, sys
import filelock, h5py, psutil, torch, tqdm.auto  # they know Windows by themselves
for module in ("resource", "fcntl", "termios", "pwd", "grp"):
    sys.modules[module] = None
gone = "fchmod fchown sysconf sched_getaffinity fork getuid geteuid kill killpg setsid mkfifo statvfs getloadavg"
for owner, names in ((os, gone), (signal, "SIGKILL SIGHUP SIGALRM SIGSTOP SIGUSR1")):
    for name in names.split():
        delattr(owner, name)
real = os.fsync
os.fsync = lambda number: (os.write(number, b""), real(number))  # refused where only read
import ka
from workbook.training import devices
from workbook.training.config import Config
from workbook.training.train import train
exists = devices.Path.exists
devices.Path.exists = lambda path: path.parts[:2] != ("/", "proc") and exists(path)
ka.save_weights("weights.safetensors", ka.build("kav11", 4, 3, 8))
print(train(Config(**json.loads(sys.argv[1])), bar=False).metrics()["memory"]["training_mib"])
"""


@pytest.mark.slow
def test_what_windows_lacks_is_not_needed(smoke: Callable[..., Config], tmp_path: Path) -> None:
    """Weights are saved and a run is trained without the modules and calls that are not there."""
    config = json.dumps(smoke(tmp_path / "run").to_dict())
    command = [sys.executable, "-W", "error", "-c", WINDOWS, config]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0
    assert ka.load_checkpoint(tmp_path / "weights.safetensors").row.name == "kav11"


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
