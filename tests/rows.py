"""Rows that the table of variants does not hold but would accept: what is true of every variant is tried on them."""

import itertools
from dataclasses import replace
from functools import cache

from ka.errors import KAError
from ka.models.variants import Variant

PARTS = {
    "kernels": ("learned", "reweighted", "pooled", "regressed"),
    "sa": ("", "windows", "windows+global", "global+windows", "scrambled"),
    "se": ("", "shared", "per window"),
    "widen": ("", "linear", "repeat", "repeat+affine", "outer", "depthwise"),
    "global_from": ("", "raw", "attended"),
    "global_se": ("", "shared", "own"),
    "second": ("image", "windows", "windows+image", "global"),
    "activation": (False, True),
}
"""Every value of the parts that decide what a KA layer with four window kernels computes."""


@cache
def rows_that_could_be() -> tuple[Variant, ...]:
    """Every combination of `PARTS`, and of what SA attends among, that `Variant` accepts."""
    rows = []
    for setting in itertools.product(*PARTS.values()):
        try:
            row = Variant("mine", **dict(zip(PARTS, setting, strict=True)))  # type: ignore[arg-type]
        except KAError:
            continue
        rows += [row, *(replace(row, sa_among=among) for among in ("channels", "both") if row.sa)]
    return tuple(rows)
