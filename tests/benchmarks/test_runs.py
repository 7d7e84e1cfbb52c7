"""A whole small run, its file, the command line, throughput."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from measured import CPU, TINY, blank, model_of
from torch import Tensor

import ka
from benchmarks import __main__ as command
from benchmarks import bench, processes, report, throughput
from benchmarks.goals import verdicts
from benchmarks.measure import Place
from ka.data.patches import DevicePatches
from ka.errors import KAError
from ka.models.variants import PSRT_ROWS
from workbook.results import speed
from workbook.results.speed import (
    Measurement,
    SceneCost,
    Setting,
    Spread,
    Startup,
)

KA = [name for name, row in PSRT_ROWS.items() if row.has_ka]


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    """A tiny run of three variants; processes of their own are tested apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "startup", lambda pairs: Startup(2.0, 2.5, 0.5, 0.4, 0.6))
        patch.setattr(processes, "scene", lambda setting, size, tile, place, repeats: SceneCost(size, tile, 1, 1, 1, 1))
        parts: list[Measurement] = []
        torch.manual_seed(7)
        wanted = torch.rand(1)
        torch.manual_seed(7)
        result = bench.run(TINY, ["kav17", "kav5_as_run"], CPU, save=parts.append)
        assert torch.rand(1) == wanted  # the random state outside is left alone
    assert [part.scenes is None for part in parts] == [True, True, False]
    assert parts[-1] == result
    return result


def test_a_run_measures_everything(measurement: Measurement) -> None:
    assert list(measurement.variants) == ["psrt_noshuffle", "kav17", "kav5_as_run"]
    assert (measurement.device, measurement.threads, measurement.full, measurement.throughput) == (
        "cpu",
        1,
        False,
        None,
    )
    base, gated, identity = measurement.variants.values()
    assert base.layer is None
    assert identity.layer is None  # it returns its input: there is nothing to time
    assert gated.layer is not None
    assert base.to_baseline == Spread(1, 1, 1, 1)
    assert all(speed.agreement < 1e-4 for speed in measurement.variants.values())
    assert gated.live == gated.deployed == ka.parameter_count("kav17", 4, 2, 8).live
    for name, each in measurement.variants.items():
        for pair in filter(None, (each.layer, each.step, each.inference)):
            assert min(pair.ms, pair.plain_ms, pair.mib, pair.plain_mib) > 0
            assert pair.faster.low <= pair.faster.median <= pair.faster.high
        assert measurement.of_gemm(name) > 0
        assert measurement.of_copy(name) > 0
    assert set(measurement.gemm) == {"float32"}
    assert measurement.hardware["torch"] == torch.__version__


def test_a_measurement_comes_back_equal_and_leaves_other_devices_alone(
    measurement: Measurement, tmp_path: Path
) -> None:
    path = tmp_path / "bench.json"
    other = replace(measurement, device="cuda", hardware={"gpu": "H200"})
    assert speed.read(path) == {}
    command.store(path, {}, other)
    command.store(path, speed.read(path), measurement)
    assert speed.read(path) == {"cuda": other, "cpu": measurement}
    command.store(None, {}, measurement)
    assert [each.name for each in tmp_path.iterdir()] == ["bench.json"]


def test_the_report_says_what_was_not_measured(measurement: Measurement) -> None:
    text = "\n".join(report.lines(measurement, {"cpu": measurement}))
    assert "kav17" in text
    assert "throughput on a GPU: not measured" in text
    assert "0.50 s more [0.40, 0.60]" in text
    assert text.count(": not measured") == 1 + len(verdicts({}))  # a run that is not full judges nothing


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(format=2), lambda value: value.pop("devices"),
        lambda value: value["devices"]["cpu"].pop("gemm"),
        lambda value: value["devices"]["cpu"].update(copy="9"),
        lambda value: value["devices"]["cpu"].update(copy=math.inf),
        lambda value: value["devices"]["cpu"].update(threads=True),
        lambda value: value["devices"]["cpu"].update(variants=[]),
        lambda value: value["devices"]["cpu"].update(scenes=[{}]),
        lambda value: value["devices"]["cpu"].update(device="cuda"),
        lambda value: value["devices"]["cpu"]["variants"]["kav17"]["step"].update(faster=None),
        lambda value: value["devices"]["cpu"]["setting"].update(scenes=[[1]]),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(measurement: Measurement, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    path = tmp_path / "bench.json"
    command.store(path, {}, measurement)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(KAError, match=r"bench\.json is damaged or of another kind .* make bench"):
        speed.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "devices": []}'])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(KAError, match="damaged or of another kind"):
        speed.read(tmp_path / "bench.json")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, measurement: Measurement) -> Iterator[list[tuple[Any, ...]]]:
    """The command line without measuring: what it asked for."""
    asked: list[tuple[Any, ...]] = []

    def run(setting: Setting, names: list[str], place: Place, say: object, save: Callable[..., object]) -> Measurement:
        asked.append((setting, list(names), place.threads))
        save(measurement)
        return measurement

    monkeypatch.setattr(bench, "run", run)
    return asked


def test_only_full_runs_are_stored_unasked(
    quiet: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "STORED", tmp_path / "bench.json")
    assert command.main(["--quick"]) == 0
    assert command.main(["--variants", "kav1", "kav2", "--threads", "1"]) == 0
    assert not (tmp_path / "bench.json").exists()
    assert command.main(["--quick", "--out", str(tmp_path / "quick.json")]) == 0
    assert command.main([]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "quick.json"}
    assert [setting for setting, _, _ in quiet] == [bench.QUICK, bench.FULL, bench.QUICK, bench.FULL]
    assert [names for _, names, _ in quiet] == [list(bench.FEW), ["kav1", "kav2"], list(bench.FEW), list(PSRT_ROWS)]
    assert quiet[1][2] == 1
    assert "CPU: training step, at least 1.5× faster" in capsys.readouterr().out


def test_mistakes_are_told_in_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for arguments, message in (
        (["--variants", "kav99"], "variant 'kav99' is unknown"),
        (["--device", "tpu"], "choose cpu or cuda"),
        (["--threads", "0"], "threads=0"),
        (["--out", str(tmp_path / "bad.json")], "damaged"),
    ):
        assert command.main(["--quick", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert command.main(["--compare", str(tmp_path / "bad.json")]) == 2
    assert "damaged" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda"]) == 2
        assert "device='cuda' is not here" in capsys.readouterr().err


def test_the_benchmark_is_run_from_the_checkout() -> None:
    assert command.STORED == ROOT / "results" / "bench.json"


def noise() -> DevicePatches:
    plan = throughput.Plan(n_bands=4, n_msi=2, scenes=2, scene=20)
    return throughput.patches_of(plan, 8).to(CPU.device)


def test_a_step_takes_the_next_patches_without_being_told() -> None:
    patches, seen = noise(), list[Tensor]()
    model = model_of("psrt_noshuffle", torch.float32)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    work = throughput.training_work(model, patches, 2, throughput.Mode("float32"), CPU)
    before = model.head.weight.clone()
    for _ in range(3):
        work.clear()
        work.run()
    assert [each.shape for each in seen] == [(2, 4, 8, 8)] * 3
    assert len({each.sum().item() for each in seen}) == 3
    inside = patches.sharp.values[4:8].flatten()
    assert all(torch.isin(each, inside).all() for each in seen)
    assert not torch.equal(model.head.weight, before)


@pytest.mark.slow
def test_throughput_runs_on_a_cpu_but_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is left out here: it takes half a minute."""
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append(options))
    modes = (*throughput.MODES, throughput.Mode("float32, compiled", compiled=True))
    plan = throughput.Plan(
        variants=("psrt_noshuffle",), compiled=("psrt_noshuffle",), modes=modes, dim=8, n_bands=4, n_msi=2, batch=2,
        size=8, image=8, scenes=2, scene=16, rounds=2, together=(1, 2), small_dim=8, small_batch=1, small_size=8,
    )  # fmt: skip
    groups = list(throughput.measure(plan, CPU, {"float32": 10.0}, 5.0, lambda line: None))
    rows = [row for group in groups for row in group]
    assert (
        len(rows) == 2 * len(modes) - 2 + 2
    )  # workbook.training.train has no inference; two rows of models side by side
    for row in rows:
        assert ("graph" in row.mode) == (row.per_second is None) == (row.failed == "KAError: graphs need a GPU")
    by = {(row.what, row.mode): row for row in rows if (row.models == 1 and row.batch == 2) or row.what == "inference"}
    for what in ("training", "inference"):
        assert by[what, "plain"].faster == Spread(1, 1, 1, 1)
        assert by[what, "float32"].of_gemm > 0
        assert by[what, "float32"].of_copy > 0
        assert by[what, "bfloat16"].of_gemm is None  # no ceiling of this precision was given
        assert by[what, "float32, compiled"].per_second > 0
    assert by["training", "float32, workbook.training.train"].per_second > 0
    assert [row.models for row in groups[2]] == [1, 2]
    assert all("compiled" in row.mode for group in groups[3:] for row in group)  # what takes longest comes last
    assert compiled == [{"backend": "inductor"}] * 2 * 3
    measurement = blank(throughput=tuple(rows))
    assert sum("not measured (KAError: graphs need a GPU)" in line for line in report.lines(measurement, {})) == 10
