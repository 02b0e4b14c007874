"""The errors that a user can cause; each says what happened, where, and what to do.

The library raises; only the command line turns an error into one line and an exit code.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import ClassVar

_FULL = (errno.ENOSPC, errno.EDQUOT)


def one_line(text: str, limit: int = 300) -> str:
    """Return `text` on one printable line, shortened to `limit` characters.

    Names come from untrusted files: newlines and control characters are escaped.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


class TqsError(Exception):
    """Base of every error a user can cause.

    Parameters
    ----------
    what : str
        What is wrong, in a few words.
    where : str
        File, tensor, node or option with the error; may be empty.
    todo : str
        What to do about it; may be empty.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what = what
        self.where = where
        self.todo = todo
        super().__init__(what)

    def __str__(self) -> str:
        """Return the error as one line: ``where: what. todo``."""
        parts = f"{one_line(self.where)}: " if self.where else ""
        tail = f". {one_line(self.todo)}" if self.todo else ""
        return f"{parts}{one_line(self.what, 600)}{tail}"


class InputError(TqsError):
    """Bad input or usage: exit code 2."""


def not_written(error: OSError, where: Path, what: str = "cannot be written") -> InputError:
    """Return the error of a file or folder that the system does not let us write; a full disk is called that."""
    if error.errno in _FULL:
        what, todo = "the disk is full", "Free disk space and run the same command again"
    else:
        what, todo = f"{what} ({error.strerror})", "Choose another `out`"
    return InputError(what, where=str(where), todo=todo)


class GateError(TqsError):
    """A gate failed: exit code 3."""

    exit_code: ClassVar[int] = 3


class PassError(TqsError):
    """A graph pass returned an invalid model: a bug in tqs-onnx, exit code 1.

    Parameters
    ----------
    name : str
        Name of the pass.
    before : tuple of str
        Names of the passes that ran before it, in order.
    complaint : str
        What is wrong with the returned model.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, name: str, before: tuple[str, ...], complaint: str) -> None:
        earlier = f"after {', '.join(before)}" if before else "which ran first"
        super().__init__(
            f"the pass {name}, {earlier}, returned an invalid model: {complaint}",
            todo="This is a bug in tqs-onnx: report it with the model",
        )
        self.name = name
        self.before = before
        self.complaint = complaint


class InfeasibleError(TqsError):
    """The byte budget cannot be met: exit code 4.

    Parameters
    ----------
    smallest_bytes : int
        Size in bytes of the smallest file that could be written.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, what: str, *, smallest_bytes: int, where: str = "", todo: str = "") -> None:
        super().__init__(what, where=where, todo=todo)
        self.smallest_bytes = smallest_bytes
