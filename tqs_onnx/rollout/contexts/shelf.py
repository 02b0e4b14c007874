"""Temporary files for arrays that memory has no room for. Never imports onnxruntime.

A file has no name, and disappears with its last reader and with the process. It lies in the folder for temporary files
(TMPDIR). Arrays are read back one at a time (`Shelf.get`), or mapped (`mapped`): the system then reads the parts that
are used, and may drop them from memory at any time, so that they count as none.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tqs_passes.errors import InputError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file holds an array."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Shelf:
    """A temporary file of arrays.

    Parameters
    ----------
    what : str
        What it holds, for error messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (closed when nothing refers to it)
        except OSError as error:
            raise _full(self._what, error) from error
        weakref.finalize(self, self._file.close)
        self._end = 0

    @property
    def file(self) -> IO[bytes]:
        """The open file."""
        return self._file

    def put(self, array: NDArray[Any]) -> Place:
        """Write an array behind the others.

        Raises
        ------
        InputError
            The disk is full.
        """
        return self.put_parts((array,), array.shape, array.dtype)

    def put_parts(self, parts: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Place:
        """Write an array that arrives in parts, each of which holds its next values in C order.

        Raises
        ------
        InputError
            The disk is full.
        """
        place = Place(self._end, shape, dtype)
        self._file.seek(self._end)
        for part in parts:
            raw = memoryview(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            try:
                while raw:
                    raw = raw[self._file.write(raw) :]
            except OSError as error:
                raise _full(self._what, error) from error
        self._end = self._file.tell()
        return place

    def get(self, place: Place) -> NDArray[Any]:
        """Read an array."""
        array: NDArray[Any] = np.empty(place.shape, place.dtype)
        raw = memoryview(array.reshape(-1).view(np.uint8).data)
        self._file.seek(place.offset)
        while raw:
            n = self._file.readinto(raw)
            if not n:
                raise InputError(f"the temporary file of {self._what} was cut off")
            raw = raw[n:]
        return array


def _full(what: str, error: OSError) -> InputError:
    return InputError(
        f"{what} cannot be written to a temporary file ({error.strerror})",
        where=tempfile.tempdir or "",  # None where no folder takes files
        todo="Free disk space there, point TMPDIR to another disk, or raise `max_memory`",
    )


def room_on_disk(what: str) -> int:
    """Return the bytes that are free where temporary files lie.

    Raises
    ------
    InputError
        No folder takes temporary files.
    """
    try:
        return shutil.disk_usage(tempfile.gettempdir()).free
    except OSError as error:
        raise _full(what, error) from error


def mapped(
    parts: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any], what: str
) -> NDArray[Any]:
    """Return an array that arrives in parts, mapped from a temporary file of its own; see `Shelf.put_parts`.

    An array without values is not mapped.
    """
    if 0 in shape or not dtype.itemsize:
        return np.zeros(shape, dtype)
    shelf = Shelf(what)
    shelf.put_parts(parts, shape, dtype)
    return np.memmap(shelf.file, dtype, "r", shape=shape)


def is_mapped(array: NDArray[Any]) -> bool:
    """Return whether an array, or the one that it is a part of, lies in a file; what was pickled does not."""
    return isinstance(array, np.memmap) and bool(array.mode)
