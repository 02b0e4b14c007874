"""Messages of the library name parameters in backticks; on the command line they become flags: `batch` → --batch."""

from __future__ import annotations

import re

from tqs_passes.errors import TqsError


def in_flags(error: TqsError) -> str:
    """Return an error as one line, with parameter names replaced by flags."""
    known = _flags()
    where = next((known[path] for path in _heads(error.where) if path in known), error.where)
    return text_in_flags(str(TqsError(error.what, where=where, todo=error.todo)))


def text_in_flags(text: str) -> str:
    """Return a text with the parameter names in backticks replaced by flags; other names stay as they are."""
    if "`" not in text:
        return text
    known = _flags()
    return re.sub(r"`(\w+)`", lambda m: known.get(m.group(1), m.group(0)), text)


def _flags() -> dict[str, str]:
    from tqs_onnx.cli.flags import flags_by_parameter  # imported late: it imports every option class

    return flags_by_parameter()


def _heads(path: str) -> list[str]:
    """Return a dotted path and its dotted prefixes, longest first."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 1, -1)]
