"""The errors that a user of the workbook meets: one line each."""

import difflib
from collections.abc import Iterable


class KAError(ValueError):
    """A mistake that a user can mend: one line, which Jupyter shows without a traceback.

    It says what was wrong (naming the file), what was expected, what to do.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython prints in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class Undefined(KAError):
    """A metric that has no value for these images (ERGAS where a band is black)."""


def unknown(what: str, given: object, known: Iterable[str]) -> KAError:
    """The error for a name that is none of `known`; the nearest of them comes first, whatever its case."""
    names = list(known)
    lower = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(str(given).lower(), list(lower), n=1)
    meant = f"did you mean {lower[near[0]]!r}? " if near else ""
    listed = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    return KAError(f"{what} {given!r} is unknown; {meant}choose one of {listed}")


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number (True and False are none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def one_line(error: BaseException) -> str:
    """The first line of what an error says, its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
