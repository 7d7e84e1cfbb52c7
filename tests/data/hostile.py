"""Damaged and hostile input: a reader gives what the file holds, or a KAError of one line. Nothing else; no code runs.

Hypothesis damages good files: cut short, bytes changed, other JSON in the place of a value. Examples are the same in
every run (`derandomize`): 8 of each in the first tier, 200 in the second.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ka.errors import KAError

tiers = pytest.mark.parametrize("examples", [8, pytest.param(200, marks=pytest.mark.slow)])


def few(examples: int) -> settings:
    """So many examples, the same in every run."""
    unimportant = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=unimportant
    )


def refused(read: Callable[[], object]) -> bool:
    """Whether a reader refused its input, in one line that says something."""
    try:
        read()
    except KAError as error:
        text = str(error)
        assert len(text) > 20
        assert "\n" not in text
        return True
    return False


@st.composite
def damage(draw: st.DrawFn, good: bytes) -> bytes:
    """A file cut short, with some bytes changed, with a piece missing, or made of anything."""
    how = draw(st.sampled_from(("cut", "changed", "lost", "anything")))
    if how == "cut":
        return good[: draw(st.integers(0, len(good) - 1))]
    if how == "anything":
        return draw(st.binary(max_size=200))
    # what tells how to read a file stands at its beginning and its end
    near = st.one_of(st.integers(0, len(good) - 1), st.integers(0, min(400, len(good) - 1)))
    bad = bytearray(good)
    if how == "lost":
        begin = draw(near)
        del bad[begin : begin + draw(st.integers(1, 64))]
        return bytes(bad)
    for _ in range(draw(st.integers(1, 8))):
        bad[draw(near)] = draw(st.integers(0, 255))
    return bytes(bad)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../outside", "/etc/passwd", "<script>", "NaN", "kav1", "a\nb", "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, good: Any) -> Any:
    """A JSON value with another one in some place, a key lost, or one too many."""
    value = json.loads(json.dumps(good))
    place, key = {"": value}, ""  # so that the whole can be replaced too
    while isinstance(place[key], dict | list) and len(place[key]) and draw(st.integers(0, 4)):
        place = place[key]  # type: ignore[assignment]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))  # type: ignore
    if isinstance(place, dict) and key and draw(st.booleans()):
        del place[key]
    elif isinstance(place, dict) and key and not draw(st.integers(0, 5)):
        place[draw(st.text(max_size=6))] = draw(JSON)
    else:
        place[key] = draw(JSON)
    return place[""] if "" in place and len(place) == 1 and key == "" else value
