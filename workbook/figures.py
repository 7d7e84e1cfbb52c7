"""All files of figures/, and the tables of README and docs/, from what is committed: `make figures`.

SVG, CSV, Markdown and LaTeX files are the same bytes whenever they are drawn; PNG and PDF files are on one machine.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from matplotlib.figure import Figure

from ka import data
from ka.data.datasets import PROTOCOL
from ka.errors import KAError
from ka.files import write_bytes
from ka.inference import Network
from ka.methods import Method
from ka.methods.injection import LocalInjection
from ka.models.checkpoints import load_checkpoint
from workbook import robustness
from workbook.audit import audit_figures
from workbook.diagrams.overview import all_diagrams
from workbook.documents import DOCUMENTS, document
from workbook.explorer.catalog import shipped
from workbook.paths import ROOT, results_folder
from workbook.results import questions, report, result_figures, speed
from workbook.results import stored as results
from workbook.results.study import baseline_of
from workbook.results.table import table
from workbook.style import encoded, png
from workbook.training.config import Config
from workbook.training.scenes import load_data
from workbook.views import plots
from workbook.views.kernel_field import field_figure, kernel_field

FOLDER = ROOT / "figures"
PARTS = {part for parts in results.CROSSWISE.values() for part in parts[1:]}  # of protocols, judged with these alone
STABLE = (".svg", ".csv", ".md", ".tex")  # kinds of files whose bytes do not depend on the machine

Encode = Callable[[], bytes]


def files() -> dict[str, Encode]:
    """Every file of figures/ but those of the benchmark: name → what makes its bytes."""
    audit = {f"audit/{name}.png": _made(draw, png) for name, draw in audit_figures.figures().items()}
    mine = {"demo_errors.png": _made(demo_errors, png), "kernel_field.png": _made(demo_field, png)}
    return dict(_drawn()) | audit | mine


def _drawn() -> Iterator[tuple[str, Encode]]:
    for language, kinds in (("en", ("svg", "pdf", "png")), ("zh", ("svg",))):
        for name, draw in all_diagrams(language).items():
            yield from kinds_of(f"diagrams/{name}", draw, kinds)
    folder = results_folder()
    for protocol in results.protocols(folder):
        runs = results.beside(folder, protocol)
        baseline = baseline_of({run.config.variant for run in runs})
        if baseline is None or protocol in PARTS:
            continue  # runs that are there for one question have nothing to be compared with, or not alone
        measured = speed.read(folder / "bench.json").get("cpu")
        protocol_table = cache(partial(table, runs, baseline, measurement=measured))
        for kind, text in (("csv", report.to_csv), ("md", report.to_markdown), ("tex", report.to_latex)):
            yield f"results/{protocol}.{kind}", _made(_made(protocol_table, text), str.encode)
        for name, figure_of in report.FIGURES.items():
            yield from kinds_of(f"results/{protocol}_{name}", _made(protocol_table, figure_of))
        if protocol in questions.PROTOCOLS:
            yield from kinds_of(
                f"results/{protocol}_questions", partial(result_figures.chart, runs, questions.asked(runs))
            )
    for name in results.CROSSWISE:
        if every := results.crosswise(folder, name):
            yield from kinds_of(
                f"results/{name}_questions", partial(result_figures.chart, every, questions.asked(every))
            )
    yield from kinds_of("results/robustness", lambda: robustness.chart(robustness.read()))


def kinds_of(
    name: str, draw: Callable[[], Figure], kinds: Sequence[str] = ("svg", "pdf", "png")
) -> Iterator[tuple[str, Encode]]:
    """A figure, drawn once, as files of several kinds."""
    figure = cache(draw)
    yield from ((f"{name}.{kind}", _made(figure, partial(encoded, kind=kind))) for kind in kinds)


def _made(make: Callable[[], Any], use: Callable[[Any], Any]) -> Callable[[], Any]:
    """`use(make())`, when it is called."""
    return lambda: use(make())


def demo_errors() -> Figure:
    """Absolute error of the methods without training and of the KAv11 that comes with the workbook."""
    scene = data.load("indian_pines", "test")[0].load()
    methods: dict[str, Method] = dict(load_data(Config.preset("demo")).untrained)
    methods["KAv11"] = Network(load_checkpoint(shipped()["kav11"]))
    return plots.error_maps(scene, {name: method(scene).numpy() for name, method in methods.items()})


def demo_field() -> Figure:
    """How the kernels of attentive injection change over the embedded scene, with the matrix of the shipped KAv11."""
    scenes, model = data.load("indian_pines", "train"), load_checkpoint(shipped()["kav11"])
    model.start = LocalInjection(PROTOCOL, model.start.matrix, roots=True, attend=True)
    field = kernel_field(model, scenes[0].load(), scenes.msi_names)
    row, col = (n // 2 for n in field.detail.shape[1:])
    return field_figure(field, row, col, title="attentive injection, embedded scene")


def write_all(files: Mapping[str, Encode], folders: Iterable[str]) -> None:
    """Draw files of figures/ anew, and remove from these folders of it what is no longer drawn."""
    for name, encode in files.items():
        write_bytes(FOLDER / name, encode())
    for folder in folders:
        for path in (FOLDER / folder).glob("*"):
            if path.is_file() and path.relative_to(FOLDER).as_posix() not in files:
                path.unlink()


def main() -> int:
    """Draw everything but `speed/` (`python -m benchmarks --figures`); exit code 2 for an error."""
    try:
        wanted = files()
        write_all(wanted, (".", "audit", "diagrams", "results"))
        for name in DOCUMENTS:
            write_bytes(ROOT / name, document(name).encode())
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(wanted)} files in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
