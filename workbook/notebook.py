"""What the notebooks share: parameters that are checked, tables, and curves drawn while training."""

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import DisplayHandle, Image, Markdown, display
from matplotlib.figure import Figure
from tabulate import tabulate

from ka.data import Scene
from ka.errors import KAError, unknown
from ka.evaluation import in_text
from ka.files import user_path
from ka.inference import Network
from ka.metrics import METRICS
from workbook.style import png
from workbook.training.config import Config
from workbook.training.run import Run, begun_runs
from workbook.training.scenes import Data, load_data
from workbook.training.train import run_folder
from workbook.views.plots import curves


class HasRow(Protocol):
    """Something that is a row of a table."""

    def row(self) -> Mapping[str, object]: ...


# How the parameters cell of every notebook begins: the names assigned in it are the ones that count.
FIRST_LINE = "# Parameters of this notebook: change them here, or give them to papermill with -p."


def parameters(namespace: Mapping[str, Any], *own: str) -> tuple[Config, dict[str, Any]]:
    """The configuration that a notebook's parameters cell and papermill's `-p` ask for, and its `own` parameters.

    Every field of `Config` may be set in the parameters cell or with `-p`; None leaves what the preset says. An unknown
    name, a wrong type (`-p augment false` is the text "false": write False) and an impossible value are a `KAError`.
    Where only a finished run's `run_dir` (and where its data lie here) is given, the configuration is that run's.
    `namespace` is the notebook's `globals()`.
    """
    fields = [field.name for field in dataclasses.fields(Config)]
    given = check_names(namespace, "preset", *own, *fields)
    changes = {name: given[name] for name in fields if given.get(name) is not None}
    preset, of_own = given.get("preset", "demo"), {name: given[name] for name in own}
    if preset == "demo" and changes.keys() <= {"run_dir", "data_root"} and given.get("restart") is not True:
        run = Run(user_path(str(changes.get("run_dir", ""))))
        if "run_dir" in changes and run.finished and (config := run.config()) is not None:
            return dataclasses.replace(config, **changes), of_own
    return Config.preset(preset, **changes), of_own


def data_of(config: Config, restart: bool = False) -> Data | None:
    """The data of a run; None, and a line that says what is missing, where it is finished and they are not here."""
    try:
        return load_data(config)
    except KAError as error:
        if restart or not Run(run_folder(config)).finished:
            raise
        print(f"this finished run is shown without its data, and without pictures: {error}")
        return None


def check_names(namespace: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The parameters of a notebook, by name: what its parameters cell assigns, or `-p` in its place.

    Nothing else in the notebook is taken for a parameter, whatever it is called. A name that is assigned there or given
    with `-p` (of which papermill only warns), and is none of `names`, is a `KAError`.
    """
    history = namespace.get("In", [])
    if not any(history):  # a kernel that keeps none (nbval) cannot tell what its cells said, only what there is
        return {name: namespace[name] for name in names if name in namespace}
    assigned = _assigned(history)
    for name in assigned:
        if name not in names:
            raise unknown("parameter", name, names)
    return {name: namespace[name] for name in assigned}


def _assigned(executed: Sequence[str]) -> list[str]:
    """Names assigned in the parameters cell, as it was run last, and in the cell that papermill put behind it."""
    cells = {"own": "", "injected": ""}
    for cell in executed:
        if cell.startswith(FIRST_LINE):
            cells = {"own": cell, "injected": ""}
        elif cell.startswith("# Parameters\n"):
            cells["injected"] = cell
    if not cells["own"]:
        raise KAError(f"no parameters cell was run: it begins with the line {FIRST_LINE!r}; run it first")
    code = TransformerManager().transform_cell("\n".join(cells.values()))  # magics are no Python
    targets: list[ast.expr] = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Assign):
            targets += statement.targets
        elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
            targets.append(statement.target)
    nodes = [node for target in targets for node in ast.walk(target)]
    names = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return list(dict.fromkeys(names))


def flag(name: str, value: Any) -> bool:
    """`value` if it is True or False; all else, such as the text "false" of `-p restart false`, is a `KAError`."""
    if not isinstance(value, bool):
        raise KAError(f"{name}={value!r} is of type {type(value).__name__}; write True or False")
    return value


def show(figure: Figure) -> Image:
    """A figure as a picture. (Jupyter draws figures by itself only where pyplot made them.)"""
    return Image(png(figure))


class Live:
    """An output that is redrawn in place, `draw` of what it is called with; of an empty list at first."""

    def __init__(self, draw: Callable[[Sequence[Any]], object]) -> None:
        self.draw = draw
        self.handle: DisplayHandle | None = display(draw([]), display_id=True)

    def __call__(self, items: Sequence[Any]) -> None:
        if self.handle is not None:
            self.handle.update(self.draw(items))


class LiveCurves(Live):
    """Loss and validation curves; call it with the history."""

    def __init__(self) -> None:
        super().__init__(lambda history: show(curves(history)))


class Training(LiveCurves):
    """The same, and a line for every validation, which `make train` shows in the terminal.

    `total` is how many iterations the run has.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total, self.told = total, 0

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> None:
        super().__call__(items)
        for note in items[self.told :]:
            print(progress(note, self.total), flush=True)
        self.told = len(items)


def progress(note: Mapping[str, Any], total: int) -> str:
    """How training stands after a validation, in a line; the time left does not count what validations take."""
    step = note["step"]
    left = round(note["seconds"] / step * (total - step))
    parts = [f"iteration {step:>{len(str(total))}}/{total}", f"loss {note['loss']:.5f}"]
    if (psnr := note.get("psnr_average")) is not None:  # infinite, or nothing held out
        parts.append(f"validation PSNR {psnr:.2f} dB")
    ahead = f"{left // 60} min {left % 60:02} s left" if step < total else "now the test scenes"
    return "  ".join([*parts, ahead])


class LiveTable(Live):
    """A table; call it with things that have a `row()`."""

    def __init__(self) -> None:
        super().__init__(rows_of)


def table(rows: Sequence[Mapping[str, object]], folded: str = "") -> Markdown:
    """Rows as a Markdown table, with the keys of the first as its head; says so where there is none. Cells show their
    text as it is: names and messages may come from files. With a title in `folded` it is shown on a click on that.
    """
    if not rows:
        return Markdown("*nothing to show yet*")
    head: list[object] = list(rows[0])
    lines = [head, *([row.get(str(key), "") for key in head] for row in rows)]
    texts = ["| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines]
    texts.insert(1, "| " + " | ".join(["---"] * len(head)) + " |")
    text = "\n".join(texts)
    return Markdown(f"<details><summary>{folded}</summary>\n\n{text}\n\n</details>" if folded else text)


def rows_of(items: Iterable[HasRow]) -> Markdown:
    """A table of things that have a `row()`."""
    return table([item.row() for item in items])


_ESCAPED = {letter: f"\\{letter}" for letter in "\\`*|$~"}
_ESCAPED |= {"&": "&amp;", "<": "&lt;", "](": "]\\("}  # brackets alone are intervals


def _cell(text: str) -> str:
    """Text in one line that starts no Markdown, HTML or mathematics."""
    return re.sub(r"\]\(|[\\`*|$~&<]", lambda match: _ESCAPED[match[0]], " ".join(text.split()))


def results(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows for `table` from a run's `metrics()`: a method each, mean over scenes (± sample std) of every metric.

    Scenes where a metric is undefined are left out of its mean, which says of how many it is then.
    """
    rows = []
    for method, evaluation in metrics["methods"].items():
        row = {"method": method}
        scenes = evaluation["scenes"].values()
        for name, mean in evaluation["mean"].items():
            left = sum(scene[name] is not None for scene in scenes)
            text = in_text(mean, evaluation["std"][name] if left > 1 else None)
            whole = mean is None or left == len(scenes)
            row[METRICS[name].heading] = text if whole else f"{text} ({left} of {len(scenes)} scenes)"
        rows.append(row)
    return rows


def summary(run: Run, before: bool) -> str:
    """What a finished run reached, as text for a terminal; `before`: it was finished already, nothing was trained."""
    metrics, heads = run.metrics(), [METRICS[name].heading for name in ("psnr", "sam", "ergas")]
    told = "was finished before (restart=True trains it again)" if before else "is finished"
    best = f"best weights: {metrics['best']['weights']}, of iteration {metrics['best']['step']:,}"
    rows = []
    for method, evaluation in metrics["methods"].items():
        if method not in ("last", "average"):
            means = [evaluation["mean"].get(name) for name in ("psnr", "sam", "ergas")]
            name = metrics["variant"] if method == "best" else method
            rows.append([name, *map(in_text, means)])
    text = tabulate(
        rows, ["test scenes", *heads], tablefmt="plain", disable_numparse=True, colalign=("left", *["right"] * 3)
    )
    course = f"{metrics['iterations']:,} iterations in {metrics['seconds'] / 60:.1f} min, {best}"
    return f"{run.path.name} {told}: {course}\n\n{text}\n\nrun folder: {run.path.resolve()}"


def runs_beside(folders: object) -> dict[str, Run]:
    """Finished runs by name, from their folders, comma-separated; none for None. One that is not finished, and runs
    that were measured on different test scenes, are a `KAError`.
    """
    if folders is None:
        return {}
    paths = [user_path(folder.strip()) for folder in str(folders).split(",") if folder.strip()]
    if len(paths) < 2:
        raise KAError(f"compare={folders!r} names no two runs; give their folders: -p compare runs/one,runs/other")
    runs = [run for run, _ in begun_runs(paths)]
    names = [path.resolve().name for path in paths]
    digests = {run.metrics().get("test_digest") for run in runs}
    if len(digests) > 1:
        raise KAError(f"{' and '.join(map(str, paths))} were measured on different test scenes; compare like with like")
    unique = len(set(names)) == len(names)
    return dict(zip(names if unique else map(str, paths), runs, strict=True))


def beside(runs: Mapping[str, Run]) -> list[dict[str, str]]:
    """Rows for `table`: what runs reached, one beside the other, and in what their configurations differ."""
    metrics = {name: folder.metrics() for name, folder in runs.items()}
    rows = []
    for metric in ("psnr", "sam", "ergas"):
        means = {name: in_text(run["methods"]["best"]["mean"][metric]) for name, run in metrics.items()}
        rows.append({"": METRICS[metric].heading} | means)
    rows.append({"": "training (min)"} | {name: f"{run['seconds'] / 60:.1f}" for name, run in metrics.items()})
    rows.append({"": "parameters"} | {name: f"{run['parameters']['live']:,}" for name, run in metrics.items()})
    configs = {name: config.to_dict() for name, folder in runs.items() if (config := folder.config()) is not None}
    for key in next(iter(configs.values())):
        if key != "run_dir" and len({str(config[key]) for config in configs.values()}) > 1:
            rows.append({"": key} | {name: str(config[key]) for name, config in configs.items()})
    return rows


def images_beside(runs: Mapping[str, Run]) -> tuple[Scene, dict[str, np.ndarray]]:
    """The first test scene, which the runs have in common, and what each makes of it, `bands h w`."""
    config = next(iter(runs.values())).config()
    assert config is not None
    scene = load_data(config).test[0].load()
    made = {name: Network(run.model())(scene).numpy() for name, run in runs.items()}
    return scene, made


def memory(metrics: Mapping[str, Any]) -> str:
    """Peak memory from a run's `metrics()`, in words; runs of former versions did not note it."""
    if (peak := metrics.get("memory")) is None:
        return "not noted"
    return f"{peak['training_mib']:,} MiB in training, {peak['test_mib']:,} MiB on whole test scenes"
