"""Damaged and hostile input: a reader gives what the file holds, or a KAError of one line. Nothing else; no code runs.

Hypothesis damages good files: cut short, bytes changed, other JSON in the place of a value. Examples are the same in
every run (`derandomize`).
"""

import http.client
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.display import Markdown
from PIL import Image

import ka
from ka import data
from ka.data.cave import CAVE_TEST
from ka.data.h5 import FIELDS
from ka.errors import KAError
from ka.models import checkpoints
from workbook import notebook
from workbook.paths import ROOT
from workbook.results import speed
from workbook.results import stored as results
from workbook.sweeps.plan import Plan, Planned
from workbook.training.config import PRESETS, Config
from workbook.training.run import Run
from workbook.training.train import train

few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refused(read: Callable[[], object]) -> bool:
    """Whether a reader refused its input, in one line that says something."""
    try:
        read()
    except KAError as error:
        text = str(error)
        assert len(text) > 20
        assert "\n" not in text
        return True
    return False


@st.composite
def damage(draw: st.DrawFn, good: bytes) -> bytes:
    """A file cut short, with some bytes changed, with a piece missing, or made of anything."""
    how = draw(st.sampled_from(("cut", "changed", "lost", "anything")))
    if how == "cut":
        return good[: draw(st.integers(0, len(good) - 1))]
    if how == "anything":
        return draw(st.binary(max_size=200))
    # what tells how to read a file stands at its beginning and its end
    near = st.one_of(st.integers(0, len(good) - 1), st.integers(0, min(400, len(good) - 1)))
    found = bytearray(good)
    if how == "lost":
        begin = draw(near)
        del found[begin : begin + draw(st.integers(1, 64))]
        return bytes(found)
    for _ in range(draw(st.integers(1, 8))):
        found[draw(near)] = draw(st.integers(0, 255))
    return bytes(found)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../outside", "/etc/passwd", "<script>", "NaN", "kav1", "a\nb", "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, good: Any) -> Any:
    """A JSON value with another one in some place, a key lost, or one too many."""
    value = json.loads(json.dumps(good))
    place, key = {"": value}, ""  # so that the whole can be replaced too
    while isinstance(place[key], dict | list) and len(place[key]) and draw(st.integers(0, 4)):
        place = place[key]  # type: ignore[assignment]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))  # type: ignore
    if isinstance(place, dict) and key and draw(st.booleans()):
        del place[key]
    elif isinstance(place, dict) and key and not draw(st.integers(0, 5)):
        place[draw(st.text(max_size=6))] = draw(JSON)
    else:
        place[key] = draw(JSON)
    return place[""] if "" in place and len(place) == 1 and key == "" else value


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "run"
    train(Config.preset("smoke", run_dir=str(path), device="cpu", iterations=3), bar=False)
    return path


# JSON


@given(st.data())
@few
def test_a_run_folders_files(finished: Path, tmp_path: Path, draws: st.DataObject) -> None:
    """Configuration, metrics, environment and history of a run, as results take them."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    path = folder / draws.draw(st.sampled_from(["config.json", "metrics.json", "environment.json", "history.jsonl"]))
    if draws.draw(st.booleans()) or path.suffix == ".jsonl":
        path.write_bytes(draws.draw(damage(path.read_bytes())))
    else:
        path.write_text(json.dumps(draws.draw(changed(json.loads(path.read_text())))), encoding="utf-8")
    run = Run(folder)
    for read in (run.config, run.metrics, run.history, lambda: results.from_runs(tmp_path)):
        refused(read)
    refused(lambda: results.export(run, tmp_path / "results", "hostile"))
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "results"}


@given(st.data())
@few
def test_exported_results(finished: Path, tmp_path: Path, draws: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
    path = results.export(Run(finished), tmp_path / "results", "hostile")
    good = json.loads(path.read_text())
    value = draws.draw(changed(good))
    path.write_text(json.dumps(value), encoding="utf-8")
    if not refused(lambda: results.read(tmp_path / "results", "hostile")):
        (found,) = results.read(tmp_path / "results", "hostile")
        assert found.name == path.stem
        for name, method in found.methods.items():  # what is read is what stands there
            for scene, values in method.scenes.items():
                for metric, number in values.items():
                    told = value["methods"][name][scene][metric]
                    assert np.isnan(number) if told is None else number == told


@given(st.data())
@few
def test_plans_and_benchmarks(tmp_path: Path, draws: st.DataObject) -> None:
    plan = Plan.new("smoke", ["kav1"], [0])
    plan.write(tmp_path / "plan.json")
    stored = ROOT / "results" / "bench.json"
    for path, good, read in (
        (tmp_path / "plan.json", json.loads((tmp_path / "plan.json").read_text()), Plan.read),
        (tmp_path / "bench.json", json.loads(stored.read_text()), speed.read),
    ):
        path.write_text(json.dumps(draws.draw(changed(good))), encoding="utf-8")
        if not refused(lambda path=path, read=read: read(path)) and path.name == "plan.json":
            found = Plan.read(path)
            assert found is not None
            assert all(run.name == Planned(run.variant, run.seed).name for run in found.runs)
            assert not any({"/", "\\", "\x00"} & set(run.name) for run in found.runs)


@given(
    st.dictionaries(st.sampled_from(sorted(Config.__dataclass_fields__)), JSON, max_size=3),
    st.sampled_from(sorted(PRESETS)),
)
@few
def test_configurations(fields: dict[str, Any], preset: str) -> None:
    if not refused(lambda: Config.preset(preset, **fields)):
        config = Config.preset(preset, **fields)
        assert all(getattr(config, key) == value for key, value in fields.items())


# Checkpoints


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    model = ka.build("kav11", 4, 2, 8)
    checkpoints.save_weights(folder / "good.safetensors", model)
    torch.save({"state_dict": model.state_dict()}, folder / "good.pth.tar")
    return folder


@given(st.data())
@few
def test_checkpoints(weights: Path, tmp_path: Path, draws: st.DataObject) -> None:
    name = draws.draw(st.sampled_from(["good.safetensors", "good.pth.tar"]))
    path = tmp_path / name
    good = (weights / name).read_bytes()
    bad = draws.draw(damage(good))
    path.write_bytes(bad)
    if not refused(lambda: ka.load_checkpoint(path, "kav11")):
        model = ka.load_checkpoint(path, "kav11")  # bytes of a weight were changed: a file that holds other numbers
        assert len(bad) == len(good)
        assert model.row.name == "kav11"


@given(st.data())
@few
def test_resumable_checkpoints(finished: Path, tmp_path: Path, draws: st.DataObject) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(draws.draw(damage((finished / "checkpoint.pt").read_bytes())))
    refused(Run(tmp_path).resume)


class Payload:
    """What runs code when it is unpickled: it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["checkpoint.pt", "evil.pth.tar", "evil.pt", "evil.safetensors"])
def test_a_payload_is_refused_and_does_not_run(name: str, tmp_path: Path) -> None:
    created, path = tmp_path / "created", tmp_path / name
    for write in (
        lambda: torch.save({"step": 1, "model": Payload(created)}, path),
        lambda: path.write_bytes(pickle.dumps(Payload(created))),
        lambda: torch.save({"step": Payload(created)}, path, _use_new_zipfile_serialization=False),
    ):
        write()
        assert refused(lambda: ka.load_checkpoint(path, "kav11"))
        if name == "checkpoint.pt":
            assert refused(Run(tmp_path).resume)
        assert not created.exists()
    pickle.loads(pickle.dumps(Payload(created)))  # it would have
    assert created.exists()


# Data


@pytest.fixture(scope="module")
def h5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("h5") / "good.h5"
    rng = np.random.default_rng(0)
    shapes = {"gt": (2, 4, 16, 16), "up": (2, 4, 16, 16), "lr": (2, 4, 4, 4), "msi": (2, 3, 16, 16)}
    with h5py.File(path, "w") as file:
        for key, name in FIELDS.items():
            file[name] = rng.random(shapes[key], dtype=np.float32)
        file.attrs["source_sha256"] = "0" * 64
        file.attrs["scenes"] = '["one", "two"]'
        file.attrs["msi_names"] = '["R", "G", "B"]'
        file.attrs["wavelengths"] = np.linspace(400.0, 700, 4)
    return path


def every_value(path: Path) -> list[np.ndarray]:
    scenes = data.load("h5", "test", path)
    return [values for scene in scenes for values in (scene.load().gt, scene.load().msi)]


@given(st.data())
@few
def test_damaged_hdf5(h5: Path, tmp_path: Path, draws: st.DataObject) -> None:
    path = tmp_path / "bad.h5"
    path.unlink(missing_ok=True)
    path.write_bytes(draws.draw(damage(h5.read_bytes())))
    if not refused(lambda: every_value(path)):
        assert all(np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1 for values in every_value(path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scenes", "[1, 2]"), ("scenes", "{"), ("scenes", b"\xff\xfe"), ("scenes", 3), ("scenes", '["../x", "../x"]'),
        ("msi_names", "[[], {}, 1]"), ("msi_names", "nonsense"), ("wavelengths", "blue"), ("wavelengths", 3.0),
        ("wavelengths", np.linspace(400, 700, 9)), ("wavelengths", np.full(4, np.nan)), ("blur_sigma", "wide"),
        ("blur_size", np.zeros(3)), ("srf", "none"), ("srf", np.zeros((2, 2))),
    ],
)  # fmt: skip
def test_hdf5_with_other_attributes_than_ours(h5: Path, tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "bad.h5"
    shutil.copy(h5, path)
    with h5py.File(path, "a") as file:
        file.attrs[name] = value
    assert refused(lambda: every_value(path))


@pytest.mark.parametrize("kind", ["group", "link", "external", "text", "complex", "compound", "empty"])
def test_hdf5_with_other_fields_than_ours(h5: Path, tmp_path: Path, kind: str) -> None:
    path, field = tmp_path / "bad.h5", FIELDS["gt"]
    shutil.copy(h5, path)
    with h5py.File(path, "a") as file:
        shape = file[field].shape
        del file[field]
        if kind == "group":
            file.create_group(field)
        elif kind == "link":
            file[field] = h5py.SoftLink("/nothing")
        elif kind == "external":
            file[field] = h5py.ExternalLink("/etc/passwd", "/x")
        elif kind == "text":
            file.create_dataset(field, shape, dtype=h5py.string_dtype())
        elif kind == "complex":
            file[field] = np.full(shape, 0.5 + 0.5j)
        elif kind == "compound":
            file.create_dataset(field, shape, dtype=[("a", "f4"), ("b", "i4")])
        else:
            file[field] = h5py.Empty("f4")
    assert refused(lambda: every_value(path))


def test_an_hdf5_that_claims_to_be_huge_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        side = 2**20
        for key, name in FIELDS.items():
            n = side // 4 if key == "lr" else side
            file.create_dataset(name, (1, 31 if key != "msi" else 3, n, n), "f4", chunks=(1, 1, 64, 64))
    assert path.stat().st_size < 100_000
    assert refused(lambda: every_value(path))


@pytest.fixture(scope="module")
def png_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as one test scene of CAVE, 32 pixels wide."""
    root = tmp_path_factory.mktemp("cave")
    name = CAVE_TEST[0]
    folder = root / f"{name}_ms" / f"{name}_ms"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for band in range(1, 32):
        values = rng.integers(0, 65536, (32, 32), dtype=np.uint16)
        Image.fromarray(values).save(folder / f"{name}_ms_{band:02}.png")
    return root


def read_pngs(root: Path) -> np.ndarray:
    return data.load("cave", "test", root, ka.Degradation(4), scenes=[CAVE_TEST[0]])[0].load().gt[:]


@given(st.data())
@few
def test_damaged_pngs(png_folder: Path, tmp_path: Path, draws: st.DataObject) -> None:
    root = tmp_path / "cave"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(png_folder, root)
    path = sorted(root.rglob("*.png"))[7]
    path.write_bytes(draws.draw(damage(path.read_bytes())))
    if not refused(lambda: read_pngs(root)):
        assert np.array_equal(read_pngs(root)[8:], read_pngs(png_folder)[8:])


def test_a_png_that_claims_to_be_huge_is_refused(png_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "cave"
    shutil.copytree(png_folder, root)
    for path in root.rglob("*.png"):
        header = bytearray(path.read_bytes())
        header[16:24] = (2**20).to_bytes(4, "big") * 2
        path.write_bytes(header)
    assert refused(lambda: read_pngs(root))


# Names


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/b", "..", "", "kav1\n", "kav1\x00", "<b>kav1</b>"])
def test_no_name_leads_outside(name: str, finished: Path, tmp_path: Path) -> None:
    assert refused(lambda: Config.preset("smoke", variant=name))
    assert refused(lambda: Plan.new("smoke", [name], [0]).config(Planned(name, 0)))
    assert refused(lambda: results.export(Run(finished), tmp_path / "results", name))
    assert not list(tmp_path.rglob("*"))


@given(
    st.text(max_size=60) | st.sampled_from(["<img src=x onerror=alert(1)>", "a | b\n| c", "[x](javascript:y)", "`$x$`"])
)
@few
def test_no_cell_breaks_out_of_a_table(text: str) -> None:
    """What a table shows may come from files: names of runs, messages of errors."""
    found = notebook.table([{"run": text, "other": "x"}])
    assert isinstance(found, Markdown)
    head, rule, *rows = found.data.split("\n")
    assert (head, rule) == ("| run | other |", "| --- | --- |")
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", rows[0])) == 3
    assert "<" not in rows[0]
    assert not re.search(r"(?<!\\)(?:\\\\)*[*`$~]", rows[0])
    assert "](" not in rows[0]


def test_examples_that_are_good_are_read(h5: Path, png_folder: Path, weights: Path) -> None:
    """Else the tests above would prove nothing."""
    assert len(every_value(h5)) == 4
    assert read_pngs(png_folder).shape == (31, 32, 32)
    for path in weights.iterdir():
        assert ka.load_checkpoint(path, "kav11").row.name == "kav11"


# Servers


@pytest.mark.parametrize(("target", "program", "page"), [("lab", "jupyter", "api/contents"), ("explore", "voila", "")])
def test_servers_listen_on_loopback_only_and_want_a_token(
    target: str, program: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the Makefile starts them."""
    recipe = (ROOT / "Makefile").read_text().partition(f"\n{target}:")[2].partition("\n\n")[0]
    (line,) = [line for line in recipe.splitlines() if line.startswith(f"\t$(BIN)/{program} ")]
    command = shlex.split(line.replace("$(BIN)", str(Path(sys.executable).parent)))
    for part in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{part}_DIR", str(tmp_path / part))
    (tmp_path / "runs").mkdir()
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "explore.ipynb", tmp_path / "runs")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = ["--no-browser", f"--port={port}", *(["--allow-root"] if program == "jupyter" else [])]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([*command, *more], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (listening := listens(server.pid, port)):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert listening == {"127.0.0.1"}
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        asked.request("GET", f"/{page}")
        answer = asked.getresponse()
        assert answer.status == 403 or (answer.status == 302 and answer.headers["Location"].startswith("/login"))
        asked.close()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def listens(pid: int, port: int) -> set[str]:
    """Addresses at which a process listens at a port."""
    found = psutil.Process(pid).net_connections("inet")
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN and each.laddr.port == port}
