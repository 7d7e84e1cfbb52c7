"""`python -m benchmarks`: measure, print, and store in results/bench.json; `make bench` runs it."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import bench, figures, report
from benchmarks.measure import Place
from ka.errors import KAError
from ka.models.variants import PSRT_ROWS
from workbook.figures import Encode, kinds_of, write_all
from workbook.paths import ROOT
from workbook.results import speed
from workbook.results.speed import Measurement

STORED = ROOT / "results" / "bench.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 for an error."""
    asked = parse(arguments)
    try:
        if asked.figures:
            write_all(figure_files(), ["speed"])
            return 0
        if asked.compare:
            print("\n".join(report.ranges([speed.read(path) for path in asked.compare])))
            return 0
        place = Place.of(asked.device, asked.threads)
        setting = bench.QUICK if asked.quick else bench.GPU if place.cuda else bench.FULL
        names = asked.variants or (bench.FEW if asked.quick else list(PSRT_ROWS))
        path = asked.out or (None if asked.quick or asked.variants else STORED)
        before = {} if path is None else speed.read(path)
        measurement = bench.run(setting, names, place, say, lambda part: store(path, before, part))
    except KAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report.lines(measurement, {**before, measurement.device: measurement})))
    print("" if path is None else f"stored in {path}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few variants: shows that all runs")
    parser.add_argument("--out", type=Path, help="JSON file; without it only full runs are stored (results/bench.json)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="these only")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of PyTorch (default: 2)")
    parser.add_argument("--figures", action="store_true", help="measure nothing: draw figures/speed/ anew")
    parser.add_argument("--compare", nargs="+", type=Path, metavar="FILE", help="measure nothing: ranges over runs")
    return parser.parse_args(arguments)


def store(path: Path | None, before: dict[str, Measurement], measurement: Measurement) -> None:
    """Write a measurement beside those of other devices; without a path, nothing."""
    if path is not None:
        speed.write(path, {**before, measurement.device: measurement})


def figure_files() -> dict[str, Encode]:
    """Every file of figures/speed/, from what is stored: name → what makes its bytes."""
    wanted: dict[str, Encode] = {}
    for device, measurement in speed.read(STORED).items():
        wanted |= dict(kinds_of(f"speed/{device}_ratios", partial(figures.ratios, measurement)))
        if measurement.scenes:
            wanted |= dict(kinds_of(f"speed/{device}_scenes", partial(figures.scenes, measurement)))
    return wanted


def say(line: str) -> None:
    """Tell on standard error what is being done."""
    print(f"… {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
