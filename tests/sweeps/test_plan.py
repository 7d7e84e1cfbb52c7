"""Plans and the command line: what is to be trained, what is refused, what may be added."""

import json
import shutil
from pathlib import Path

import pytest
from swept import main_here, prepared, smoke, tiny

from ka import VARIANTS
from ka.errors import KAError
from workbook.sweeps import command, work
from workbook.sweeps.plan import Plan, all_rows

THREE = ("psrt_noshuffle", "kav11", "kav1")


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    """A folder whose plan is made, and nothing trained."""
    prepared(smoke(tmp_path / "planned", variants=THREE))
    return tmp_path / "planned"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a call that is refused."""
    capsys.readouterr()
    assert command.main(arguments) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.startswith("error: ")
    return text


def test_the_default_plan_is_every_row_the_studys_first() -> None:
    made = Plan.new("record")
    names = [run.variant for run in made.runs]
    assert names == list(all_rows())
    assert set(names) == set(VARIANTS)
    assert len(names) == len(VARIANTS)
    own = [VARIANTS[name].ours for name in names]
    assert own == sorted(own)
    assert {run.seed for run in made.runs} == {10} == {run.seed for run in Plan.new("laptop").runs}
    config = made.config(made.runs[0], "/cave", run_dir="out/runs/psrt-seed10")
    assert (config.dim, config.hold_out, config.train_scenes, config.data_root) == (48, False, None, "/cave")
    assert {run.variant for run in Plan.new("best").runs} == {"kav26_wide"}  # which names its row
    seeds = [run.name for run in Plan.new("record", ["kav1", "psrt"], [10, 11, 10]).runs]
    assert seeds == ["kav1-seed10", "psrt-seed10", "kav1-seed11", "psrt-seed11"]


def test_a_plan_is_a_file_without_paths(planned: Path) -> None:
    written = json.loads((planned / "plan.json").read_text())
    assert [run["variant"] for run in written["runs"]] == list(THREE)
    assert (written["format"], written["protocol"], written["shared"]["iterations"]) == (1, "smoke", 3)
    assert str(planned) not in json.dumps(written)
    assert Plan.read(planned / "plan.json") == prepared(["--out", str(planned)]).plan


def test_a_plan_of_a_former_version_is_taken_over(planned: Path) -> None:
    """They said to how many hours runs were fitted, and how fast the machine was."""
    path = planned / "plan.json"
    before = Plan.read(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hours": 2.0, "pace": {"device": "CPU", "jobs": 1}}))
    assert Plan.read(path) == before
    plan = json.loads(path.read_text())
    del plan["shared"]["msi_gain"]  # a field that was added since has its default
    path.write_text(json.dumps(plan))
    with pytest.raises(KAError, match=r"the plan is another \(msi_gain: .* there, 3.0 asked\)"):
        prepared(["--out", str(planned), "--set", "msi_gain=3.0"])


def test_a_plan_is_added_to_and_never_contradicted(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = (planned / "plan.json").read_bytes()
    for arguments, message in (
        (["laptop"], r"protocol: 'smoke' there, 'laptop' asked"),
        (["--iterations", "4"], r"iterations: 3 there, 4 asked"),
        (["--set", "dim=16", "batch=2", "loss=l1+ssim"], r"dim: 8 there, 16 asked; loss: 'l1' there, 'l1+ssim' asked"),
        (["--set", "colour=3"], r"colour cannot be set for all runs of a plan; allowed are dataset, "),
    ):
        assert message in refusal(capsys, "--out", str(planned), *arguments)
        assert (planned / "plan.json").read_bytes() == written
    prepared(["smoke", "--out", str(planned), "--iterations", "3", "--set", "dim=8", "lr=0.003"])
    assert (planned / "plan.json").read_bytes() == written
    prepared(["--out", str(planned), "--seeds", "0", "7"])
    assert [run.name for run in prepared(["--out", str(planned), "--variants", "kav1", "kav6"]).plan.runs] == [
        *(f"{name}-seed0" for name in THREE),
        *(f"{name}-seed7" for name in THREE),
        *("kav6-seed0", "kav6-seed7"),
    ]
    assert len(Plan.read(planned / "plan.json").runs) == 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "plan.json does not exist; say what to train: one of study, laptop"),
        (["quick"], "protocol 'quick' is unknown; "),
        (["smoke", "--variants", "../../kav11"], "variant '../../kav11' is unknown; "),
        (["smoke", "--seeds", "-1"], "seed=-1 is out of range"),
        (["smoke", "--seeds", "../1"], "argument --seeds: invalid int value: '../1'"),
        (["smoke", "--set", "dim=20"], "dim=20 does not split into 8 heads"),
        (["smoke", "--set", "dim"], "--set 'dim' is not of the form name=value"),
        (["smoke", "--set", "run_dir=/tmp"], "run_dir cannot be set for all runs of a plan"),
        (["smoke", "--iterations", "3", "--set", "iterations=3"], "iterations are given twice"),
        (["smoke", "--jobs", "-1"], "--jobs -1 and --minutes 1440 have to be at least 1"),
        (["smoke", "--cluster", "moon"], "invalid choice: 'moon'"),
        (["smoke", "--slurm", "gpu"], "--slurm 'gpu' is not of the form name=value"),
        (["smoke", "--device", "cuda:99"], "device='cuda:99' is not here"),
        (["smoke", "--data", "/cave"], "the embedded scene needs none"),
        (["record"], "record trains on cave; give its folder with --data"),
        (["record", "--data", "/nowhere"], "/nowhere: no such folder"),
        (["smoke", "--colour", "3"], "unrecognized arguments: --colour 3"),
        (["smoke", "--out", "/proc/new"], "/proc/new cannot be written ("),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_no_plan(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "--out", str(tmp_path / "new"), *arguments)
    assert not (tmp_path / "new" / "plan.json").exists()


def test_a_damaged_plan_is_explained(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = planned / "plan.json"
    whole = path.read_text()
    for text in (
        *(whole[:100], "[]", whole.replace("kav11", "../kav11"), whole.replace('"dim"', '"width"')),
        *(whole.replace('"smoke"', '"../smoke"'), whole.replace('"format": 1', '"format": 2')),
    ):
        assert text != whole
        path.write_text(text)
        assert f"{path} is damaged or of another version" in refusal(capsys, "--out", str(planned))


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*smoke(tmp_path / "new"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("smoke: 2 runs of 3 iterations (dim 8, batch 2), 0 done, 2 missing\n")
    assert "\nkav11-seed0           missing  0 of 3" in shown
    assert command.main(["record", "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert "told after the first validation" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_begun_runs_go_on_with_other_data_and_device(
    tmp_path: Path, tiny_h5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be carried to another machine."""
    copy = shutil.copytree(tiny_h5, tmp_path / "data")
    seen: list[tuple[str | None, str]] = []

    def train(config: work.Config, **_: object) -> None:
        seen.append((config.data_root, config.device))
        run = work.Run(Path(str(config.run_dir)))
        run.check(config)
        with run.lock():
            run.start(config)

    monkeypatch.setattr(work, "train", train)
    for data, device in ((tiny_h5, "cpu"), (copy, "auto")):
        assert main_here([*tiny(tmp_path / "sweep", data, variants=["kav1"]), "--device", device]) == 1
    assert seen == [(str(tiny_h5), "cpu"), (str(copy), "auto")]
