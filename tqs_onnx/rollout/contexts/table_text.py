"""Read the text of a table line by line, plain or gzipped, within bounds.

A file may be larger than it looks: a gzip of zeros grows a thousandfold, `/dev/zero` has no end, and a line without a
newline is as long as its file. All three are refused after a bounded number of bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import IO

from tqs_passes.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"
#: Bytes of text that a table may have.
MOST_BYTES = 2 << 30
#: Characters of one line.
MOST_LINE = 16 << 20
#: A gzip beyond this many bytes may not expand by more than `MOST_RATIO`: tables of numbers expand 3 to 20 times.
_FREE_BYTES = 64 << 20
MOST_RATIO = 200
_BLOCK = 1 << 20
_HEAD = 1 << 16
_HEAD_LINES = 32


class _Bounded(io.RawIOBase):
    """The bytes of a table, unpacked, hashed and counted."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        packed = self._file.read(2) == _GZIP_MAGIC
        if self._file.seekable():
            self._file.seek(0)
        self._stream: IO[bytes] = gzip.GzipFile(fileobj=self._file) if packed else self._file  # type: ignore[assignment]
        self._packed = packed
        self._path = path
        self._n = 0
        self.sha = hashlib.sha256()

    @property
    def packed(self) -> bool:
        """Whether the file is gzipped."""
        return self._packed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        block = self._stream.read(len(buffer))
        self._n += len(block)
        self.sha.update(block)
        grown = self._packed and self._n > _FREE_BYTES and self._n > MOST_RATIO * self._file.tell()
        if self._n > MOST_BYTES or grown:
            how = f"expands more than {MOST_RATIO} times" if grown else f"holds more than {MOST_BYTES} bytes"
            raise InputError(
                f"{how}, which no table of numbers does" if grown else how,
                where=str(self._path),
                todo="Give a table of numbers, or cut it into smaller ones",
            )
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()


class TableText:
    """The lines of a table; once all are read, `digest` is the SHA-256 of the unpacked bytes.

    Raises
    ------
    InputError
        From the constructor and from `lines`: the file cannot be read, or is beyond the bounds above.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._raw = _Bounded(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        buffered = io.BufferedReader(self._raw, _BLOCK)
        # utf-8-sig: spreadsheets write a byte order mark. newline "": the csv module joins quoted lines itself.
        self._text = io.TextIOWrapper(buffered, "utf-8-sig", errors="replace", newline="")

    @property
    def digest(self) -> str:
        """SHA-256 of what was read."""
        return self._raw.sha.hexdigest()

    def lines(self) -> Generator[str]:
        """Yield every line with its end, then close the file."""
        try:
            with self._text:
                while line := self._text.readline(MOST_LINE):
                    if len(line) == MOST_LINE:
                        raise InputError(
                            f"has a line of more than {MOST_LINE} characters",
                            where=str(self._path),
                            todo="Give a table of numbers",
                        )
                    yield line
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(self._path, error) from error

    def unpack(self) -> None:
        """Read a gzip to its end, so that a bomb is found before any of it is parsed; then close the file."""
        try:
            with self._text:
                while self._raw.packed and self._raw.read(_BLOCK):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(self._path, error) from error


def head_lines(path: Path) -> list[str]:
    """Return the first lines of a table that are not blank."""
    TableText(path).unpack()
    lines: list[str] = []
    size = 0
    with contextlib.closing(TableText(path).lines()) as found:
        for line in found:
            size += len(line)
            if line.strip():
                lines.append(line)
            if size > _HEAD or len(lines) >= _HEAD_LINES:
                break
    return lines


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot be read ({reason})", where=str(path), todo="Check the path and the file")
