"""What `make train` prints: a line a validation, the scores, the run's folder; a mistake in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from notebooks_here import NOTEBOOKS

from workbook.notebook import Training, progress, summary
from workbook.sweeps import terminal
from workbook.training.run import Run


def test_a_line_says_how_training_stands() -> None:
    note = {"step": 250, "seconds": 100.0, "loss": 0.0123456, "psnr": 40.0, "psnr_average": 41.239}
    line = "iteration  250/2000  loss 0.01235  validation PSNR 41.24 dB  11 min 40 s left"
    assert progress(note, 2000) == line
    assert progress({"step": 9, "seconds": 1.0, "loss": 1, "psnr_average": None}, 9) == (
        "iteration 9/9  loss 1.00000  now the test scenes"
    )


def test_every_validation_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Training(30)
    capsys.readouterr()
    history = [{"step": step, "seconds": step / 10, "loss": 0.1} for step in (10, 20, 30)]
    for seen in (1, 3, 3):
        watch(history[:seen])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration")]
    assert [line.split()[1] for line in told] == ["10/30", "20/30", "30/30"]


def test_the_summary_names_methods_scores_and_folder(finished: Path) -> None:
    lines = summary(Run(finished), before=False).splitlines()
    assert lines[0].startswith("finished is finished: 6 iterations in 0.")
    assert [line.split("  ")[0] for line in lines[3:-2]] == [
        *("bicubic", "linear injection", "local injection", "attentive injection"),
        Run(finished).metrics()["variant"],
    ]
    assert len({len(line) for line in lines[2:-2]}) == 1  # aligned
    assert lines[-1] == f"run folder: {finished}"
    assert summary(Run(finished), before=True).startswith("finished was finished before (restart=True trains it again)")


def test_a_mistake_in_the_arguments_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.main(["--no-such-option"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: No such option")


def command(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "workbook.sweeps.terminal",
        str(NOTEBOOKS["train"]),
        *arguments,
        "-p",
        "preset",
        "smoke",
    ]


@pytest.mark.slow
def test_training_from_the_terminal(tmp_path: Path) -> None:
    """Trained, asked for again, and asked for wrongly."""
    given = command(str(tmp_path / "out.ipynb"), "-p", "run_dir", str(tmp_path / "run"))
    first, again, wrong = (
        subprocess.run([*given, "-p", "variant", name], capture_output=True, text=True, check=False, cwd=tmp_path)
        for name in ("kav1", "kav1", "kav2")
    )
    assert (first.returncode, first.stderr) == (0, "")
    told = [line.split()[:2] for line in first.stdout.splitlines()]
    assert told[0] == ["kav1", "on"]
    assert told[1:3] == [["iteration", "3/6"], ["iteration", "6/6"]]
    assert "run was finished before" in again.stdout
    assert again.stdout.splitlines()[-3:] == first.stdout.splitlines()[-3:]
    assert first.stdout.splitlines()[-1] == f"run folder: {tmp_path / 'run'}"
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr
    assert wrong.stderr.startswith(f"error: {tmp_path / 'run'} holds another run (variant")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "killed"])
def test_a_stopped_training_is_told_in_a_line(how: str, tmp_path: Path) -> None:
    given = command(str(tmp_path / "out.ipynb"), "-p", "run_dir", str(tmp_path / "run"), "-p", "iterations", "100000")
    process = subprocess.Popen(
        given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        time.sleep(0.1)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    expected = {"Ctrl-C": (130, "stopped; the same command goes on"), "killed": (1, f"error: {terminal.KILLED}")}
    assert (process.returncode, errors.removesuffix("\n")) == expected[how]


@pytest.mark.slow
def test_what_kernels_say_beside_an_error_is_not_told(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    cell = "import os; from ka.errors import KAError; os.write(2, b'of the kernel\\n'); raise KAError('of the user')"
    notebook.cells.append(nbformat.v4.new_code_cell(cell))
    nbformat.write(notebook, tmp_path / "wrong.ipynb")
    given = [sys.executable, "-m", "workbook.sweeps.terminal", "wrong.ipynb", "out.ipynb", "-k", "python3"]
    ended = subprocess.run(given, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (2, "error: of the user\n")
