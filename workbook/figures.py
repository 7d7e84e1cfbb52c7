"""All files of figures/, and the tables of README and docs/, from what is committed: `make figures`.

SVG, CSV, Markdown and LaTeX files are the same bytes whenever they are drawn; PNG and PDF files are on one machine.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

from matplotlib.figure import Figure

from ka.data import datasets as data
from ka.data.simulate import Degradation
from ka.errors import KAError
from ka.evaluation import LinearInjection, Method, Network, upsampled
from ka.files import write_bytes
from ka.models.checkpoints import load_checkpoint
from workbook.audit import figures as audit_figures
from workbook.diagrams.overview import all_diagrams
from workbook.documents import BASELINE, DOCUMENTS, document
from workbook.explorer.catalog import shipped
from workbook.paths import ROOT
from workbook.results import questions, report, speed, speed_figures
from workbook.results import stored as results
from workbook.results.costs import Costs
from workbook.style import encoded, png
from workbook.views import plots

FOLDER = ROOT / "figures"
STABLE = (".svg", ".csv", ".md", ".tex")
"""Kinds of files whose bytes do not depend on the machine."""

Encode = Callable[[], bytes]


def files() -> dict[str, Encode]:
    """Every file of figures/: name → what makes its bytes."""
    return dict([*_diagrams(), *_results(), *_speed(), *_audit(), ("demo_errors.png", lambda: png(demo_errors()))])


def _diagrams() -> Iterator[tuple[str, Encode]]:
    for language, kinds in (("en", ("svg", "pdf", "png")), ("zh", ("svg",))):
        for name, draw in all_diagrams(language).items():
            yield from _kinds(f"diagrams/{name}", draw, kinds)


def _results() -> Iterator[tuple[str, Encode]]:
    folder = results.results_folder()
    for protocol in results.protocols(folder):
        found = results.read(folder, protocol)
        if BASELINE not in {run.config.variant for run in found}:
            continue  # runs that are there for one question have nothing to be compared with
        table = cache(partial(_table, protocol))
        for kind, text in (("csv", report.to_csv), ("md", report.to_markdown), ("tex", report.to_latex)):
            yield f"results/{protocol}.{kind}", partial(lambda text, table: text(table()).encode(), text, table)
        for name, draw in (("differences", report.forest), ("quality_cost", report.quality_against_cost)):
            drawn = partial(lambda draw, table: draw(table()), draw, table)
            yield from _kinds(f"results/{protocol}_{name}", drawn, ("svg", "pdf", "png"))
        if protocol in questions.PROTOCOLS:
            chart = partial(questions.chart, found)
            yield from _kinds(f"results/{protocol}_questions", chart, ("svg", "pdf", "png"))


def _table(protocol: str) -> results.Table:
    folder = results.results_folder()
    return results.table(results.read(folder, protocol), BASELINE, costs=Costs.read(folder / "bench.json"))


def _speed() -> Iterator[tuple[str, Encode]]:
    for device, found in speed.read(results.results_folder() / "bench.json").items():
        yield from _kinds(f"speed/{device}_ratios", partial(speed_figures.ratios, found), ("svg", "pdf", "png"))
        if found.scenes:
            yield from _kinds(f"speed/{device}_scenes", partial(speed_figures.scenes, found), ("svg", "pdf", "png"))


def _audit() -> Iterator[tuple[str, Encode]]:
    for name, draw in audit_figures.figures().items():
        yield f"audit/{name}.png", partial(lambda draw: png(draw()), draw)


def _kinds(name: str, draw: Callable[[], Figure], kinds: Sequence[str]) -> Iterator[tuple[str, Encode]]:
    figure = cache(draw)
    for kind in kinds:
        yield f"{name}.{kind}", partial(lambda figure, kind: encoded(figure(), kind), figure, kind)


def demo_errors() -> Figure:
    """Absolute error of bicubic upsampling, linear injection and the KAv11 that comes with the workbook."""
    degradation = Degradation()
    scene = data.load("indian_pines", "test")[0].load()
    methods: dict[str, Method] = {
        "bicubic": upsampled,
        "linear injection": LinearInjection.fit(data.load("indian_pines", "train"), degradation),
        "KAv11": Network(load_checkpoint(shipped()["kav11"])),
    }
    return plots.error_maps(scene, {name: method(scene).numpy() for name, method in methods.items()})


def main() -> int:
    """Draw all files anew and remove those that are no longer drawn; exit code 2 for an error."""
    try:
        wanted = files()
        for name, encode in wanted.items():
            write_bytes(FOLDER / name, encode())
        for path in FOLDER.rglob("*"):
            if path.is_file() and path.relative_to(FOLDER).as_posix() not in wanted:
                path.unlink()
        for name in DOCUMENTS:
            write_bytes(ROOT / name, document(name).encode())
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(wanted)} files in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
