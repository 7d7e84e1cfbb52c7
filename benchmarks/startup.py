"""How long a fresh process takes to start: `import ka` against `import torch`, in pairs."""

import statistics
import subprocess
import sys
import time

from workbook.paths import ROOT
from workbook.results.speed import Startup, significant


def measure(pairs: int) -> Startup:
    """Start so many pairs of processes, after one that is not counted; the order within a pair alternates."""
    found: dict[str, list[float]] = {"torch": [], "ka": []}
    for turn in range(pairs + 1):
        for module in ("torch", "ka") if turn % 2 else ("ka", "torch"):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
            if turn:
                found[module].append(time.perf_counter() - begun)
    more = [ka - torch for ka, torch in zip(found["ka"], found["torch"], strict=True)]
    low, _, high = statistics.quantiles(more, n=4, method="inclusive") if pairs > 1 else more * 3
    values = (*(statistics.median(found[module]) for module in ("torch", "ka")), statistics.median(more), low, high)
    return Startup(*(significant(value) for value in values))
