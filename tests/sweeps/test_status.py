"""The table of runs, and the time that is left."""

from pathlib import Path

import pytest
from swept import prepared, smoke

from workbook.sweeps.folder import Sweep
from workbook.sweeps.plan import Planned
from workbook.sweeps.status import Lines, Standing, estimate, standings

RESULT = """{"iterations": 3, "seconds": 90.0, "methods": {"best": {"a": {"psnr": 30.0}, "b": {"psnr": 31.0}}},
"history": [{"step": 3, "loss": 0.2, "psnr": 29.0, "psnr_average": null}]}"""


def begin(sweep: Sweep, planned: Planned) -> None:
    run = sweep.run(planned)
    with run.lock():
        run.start(sweep.config(planned))
    run.note(step=1, seconds=30.0, lr=1e-3, loss=0.1, psnr=31.5, psnr_average=32.25)


def test_every_run_stands_as_its_folder_says(tmp_path: Path) -> None:
    sweep = prepared(smoke(tmp_path, variants=("psrt", "kav1", "kav3", "kav7", "kav11", "conv3x3", "kav2")))
    done, running, failed, stopped, queued, _, damaged = sweep.plan.runs
    for path in (sweep.result(done), sweep.weights(done)):
        path.parent.mkdir(parents=True)
        path.write_text(RESULT)
    for planned in (running, stopped, damaged):
        begin(sweep, planned)
    (sweep.run(damaged).path / "history.jsonl").write_text('nonsense\n{"step": 1}\n')
    sweep.failure(failed).parent.mkdir()
    sweep.failure(failed).write_text("no more\n")
    (tmp_path / "claims").mkdir()
    with sweep.claim(running):
        runs = standings(sweep, {queued.name, done.name, running.name})
    states = ["done", "running", "failed", "stopped", "queued", "missing", "failed"]
    assert [run.state for run in runs] == states
    assert runs[1].row() == {
        "run": "kav1-seed0", "state": "running", "iteration": "1 of 3", "loss": "0.10000",
        "validation PSNR (dB)": "32.25", "time left": "1.0 min", "note": "",
    }  # fmt: skip
    assert (runs[0].loss, runs[0].psnr, runs[0].left) == (0.2, 29.0, None)
    assert runs[0].note == "test PSNR 30.50 dB, trained for 1.5 min"
    assert runs[2].note == "no more"
    assert runs[3].left is None
    assert "line 1 is damaged" in runs[6].note
    sweep.result(done).write_text("{")
    assert "is damaged" in standings(sweep)[0].note


def test_time_left_is_told_from_the_runs_so_far() -> None:
    done = Standing("a", "done", 100, 100, 1000.0)
    half = Standing("b", "running", 100, 50, 1500.0)
    new = Standing("c", "queued", 100)
    assert estimate([done, half, new], 1).startswith("about 1.0 h for what is missing, 1 at a time")  # 50·30 + 100·20
    assert estimate([done, half, new], 2).startswith("about 0.5 h for what is missing, 2 at a time")
    assert estimate([new], 2) == "how long it takes will be told after the first validation"
    assert estimate([done], 1) == "all 1 runs are done"
    assert "tries those that failed again" in estimate([done, Standing("d", "failed", 100)], 1)


def test_a_line_is_printed_when_a_run_moves(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(1)
    first = [Standing("a", "queued", 100), Standing("b", "queued", 100)]
    then = [Standing("a", "running", 100, 50, 60.0, 0.5, 30.0), first[1]]
    for runs in (first, first, then, then, [Standing("a", "done", 100, 100, 120.0, note="it went well"), first[1]]):
        lines(runs)
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        *("a queued · 0 of 100", "b queued · 0 of 100", "a running · 50 of 100 · 0.50000 · 30.00 · 1.0 min"),
        *("a done · 100 of 100 · it went well", "about 0.0 h for what is missing, 1 at a time"),
    ]
