"""Keeps stdout free for the one JSON object of `--json`, whatever libraries print."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TextIO

_OUT: ContextVar[TextIO | None] = ContextVar("json_out", default=None)


@contextmanager
def only_json() -> Generator[None]:
    """Send to stderr whatever is printed meanwhile; what is written to `json_out` still goes to stdout."""
    token = _OUT.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _OUT.reset(token)


def json_out() -> TextIO:
    """Return the stream for JSON: stdout."""
    return _OUT.get() or sys.stdout
