"""Read arrays from an `.npz` or a folder of `.npy` files: the headers first, so that nothing is read in vain.

An array may be larger than its file: a header can promise any shape, and zeros pack a thousandfold. So the bytes that
the headers state must be those that are stored, and must fit the memory that is free. Pickled objects are refused.
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tqs_passes.errors import InputError

_MEMORY = Path("/proc/meminfo")
#: What NumPy and zipfile raise for a damaged archive, and what comes of using its arrays unseen.
DAMAGE = (
    *(ValueError, KeyError, IndexError, EOFError, TypeError, AttributeError, OverflowError, MemoryError),
    *(NotImplementedError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile, lzma.LZMAError),
)


@dataclass(frozen=True, slots=True)
class Archive:
    """Named arrays in a file or folder, not read yet.

    Parameters
    ----------
    path : Path
    shapes : dict of str to tuple of int
        The shape of every array by name.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self) -> dict[str, NDArray[Any]]:
        """Return all arrays.

        Raises
        ------
        InputError
            The file is damaged.
        """
        with _explained(self.path):
            if self.path.is_dir():
                return {name: np.load(self.path / f"{name}.npy", allow_pickle=False) for name in self.shapes}
            arrays: dict[str, NDArray[Any]] = {}
            # As numpy.load does, which would leave a damaged file open.
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as stream:
                        name = member.removesuffix(".npy")
                        arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
            return arrays


def open_archive(path: Path) -> Archive:
    """Read the headers of an archive.

    Raises
    ------
    InputError
        It is no archive, is damaged, holds pickled objects, or more than fits the memory that is free.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    total = 0
    with _explained(path):
        if path.is_dir():
            for file in sorted(path.rglob("*.npy")):
                name = file.relative_to(path).with_suffix("").as_posix()
                with file.open("rb") as stream:
                    shapes[name], n_bytes = _header(stream, file.stat().st_size)
                total += n_bytes
        else:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    with archive.open(member) as stream:
                        shape, n_bytes = _header(stream, member.file_size)
                    shapes[member.filename.removesuffix(".npy")] = shape
                    total += n_bytes
    free = free_bytes()
    if free is not None and total > free:
        raise InputError(
            f"its arrays take {total} bytes, but {free} are free",
            where=str(path),
            todo="Store fewer contexts",
        )
    return Archive(path, shapes)


def read_named_arrays(path: Path, todo: str = "") -> dict[str, NDArray[Any]]:
    """Return all arrays of an `.npz`; see `open_archive` for the errors. `todo` replaces what they tell to do."""
    try:
        return open_archive(path).read()
    except InputError as error:
        if not todo:
            raise
        raise InputError(error.what, where=error.where, todo=todo) from error


def free_bytes() -> int | None:
    """Return the memory that programs may still take; None where the system does not say."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found[1]) * 1024


def _header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], int]:
    """Return the shape and the bytes of an array; refuse a header that promises other bytes than are stored."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"arrays of version {version} are not read")
    if dtype.hasobject:
        raise ValueError("pickled objects are not read")
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes != size - stream.tell():
        raise ValueError(f"the header states {n_bytes} bytes, the file holds {size - stream.tell()}")
    return shape, n_bytes


@contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except (*DAMAGE, OSError) as error:
        raise InputError(
            "cannot be read as NumPy arrays (damaged, or with pickled objects)",
            where=str(path),
            todo="Write it with numpy.savez, one plain array per model input",
        ) from error
