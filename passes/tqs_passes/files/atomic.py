"""Write files atomically: a reader sees either the old content or the new content, never part of it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

from tqs_passes.errors import not_written
from tqs_passes.files.temporary import temporary_file


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path in the folder of `path`; on success it is renamed to `path`, on failure it is removed.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written to, or the disk is full.
    """
    with temporary_file(path.parent) as tmp:
        try:
            yield tmp
            tmp.replace(path)
        except OSError as error:
            raise not_written(error, path) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (see `atomic_file`)."""
    with atomic_file(path) as tmp:
        tmp.write_text(text, encoding="utf-8")
