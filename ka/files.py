"""Files that are whole or absent."""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ka.errors import KAError


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user wrote: a leading `~` or `~name` is that home; as it is where there is no such user."""
    return Path(os.path.expanduser(path))


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it to `path` when the block ends well, remove it otherwise.

    A reader sees the old file or the new one, never half of one, also across a power cut (fsync before rename).
    KAError if the disk is full, or the folder cannot be written; the old file is untouched.
    """
    path = user_path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the rights that open() gives
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        with open(temporary, "rb+") as written:  # Windows flushes only what may be written
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all; NaN and infinity are refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _cannot_write(path: Path, error: OSError) -> KAError:
    text = (error.strerror or str(error)).splitlines()[0]
    full = error.errno in _FULL or any(f"errno = {number}" in str(error) for number in _FULL)  # as HDF5 says it
    cure = "free some space" if full else "check the folder and its permissions"
    again = "run the same command again (what was saved before is untouched)"
    return KAError(f"{path}: could not be written ({text}); {cure} and {again}")
