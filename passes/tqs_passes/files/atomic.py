"""Write files atomically: a reader sees either the old content or the new content, never part of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

from tqs_passes.errors import InputError


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on failure it is removed.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written to, or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
        os.close(handle)
        Path(name).unlink()
        Path(name).touch(exist_ok=False)  # with the permissions of the umask, not those of mkstemp
    except OSError as error:
        raise InputError(
            f"cannot write to this folder ({error.strerror})",
            where=str(path.parent),
            todo="Choose another `out`",
        ) from error
    tmp = Path(name)
    try:
        yield tmp
        tmp.replace(path)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(path)) from error
    finally:
        tmp.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (see `atomic_file`)."""
    with atomic_file(path) as tmp:
        tmp.write_text(text, encoding="utf-8")
