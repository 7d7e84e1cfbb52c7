"""Every row that the table of variants accepts, not only those that are in it."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from ka.errors import KAError
from ka.models.variants import Variant, variant


def rows_that_could_be() -> Iterator[Variant]:
    """Rows named "mine": every combination of the main parts that means something."""
    fields = ("kernels", "sa", "se", "widen", "global_from", "global_se", "second", "activation")
    settings = itertools.product(
        ("learned", "reweighted", "pooled"), ("", "windows", "windows+global", "global+windows"),
        ("", "shared", "per window"), ("", "linear", "repeat"), ("", "raw", "attended"), ("", "shared", "own"),
        ("image", "windows", "windows+image", "global"), (False, True),
    )  # fmt: skip
    for setting in settings:
        try:
            row = replace(variant("kav19"), name="mine", **dict(zip(fields, setting, strict=True)))
        except KAError:
            continue
        # One SE per window has none for a global kernel, and a shared one of no SE is none.
        if row.global_se != "shared" or row.se == "shared":
            yield row
