"""Read arrays from an `.npz` or a folder of `.npy` files: the headers first, so that nothing is read in vain.

An array may be larger than its file: a header can promise any shape, and zeros pack a thousandfold. So the bytes that
the headers state must be those that are stored, and must fit the memory that is free. Pickled objects are refused.
Arrays beyond a limit go from their file into temporary ones, which are mapped (`rollout.contexts.shelf`).
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.shelf import mapped, room_on_disk
from tqs_passes.errors import InputError

#: Bytes that are copied from file to file at a time.
_PART_BYTES = 1 << 24
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
    in_files : bool
        Whether the arrays are to lie in temporary files.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    in_files: bool = False

    def read(self) -> dict[str, NDArray[Any]]:
        """Return all arrays.

        Raises
        ------
        InputError
            The file is damaged, or a temporary one cannot be written.
        """
        arrays: dict[str, NDArray[Any]] = {}
        with _explained(self.path):
            if self.path.is_dir():
                for name in self.shapes:
                    with (self.path / f"{name}.npy").open("rb") as stream:
                        arrays[name] = self._array(stream)
                return arrays
            # As numpy.load does, which would leave a damaged file open.
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as stream:
                        name = member.removesuffix(".npy")
                        arrays[name] = self._array(stream)
            return arrays

    def _array(self, stream: IO[bytes]) -> NDArray[Any]:
        if self.in_files:
            start = stream.tell()
            shape, dtype, in_columns = _layout(stream)
            if not in_columns:
                return mapped(_parts(stream), shape, dtype, "the contexts")
            stream.seek(start)
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def open_archive(path: Path, most_bytes: int | None = None) -> Archive:
    """Read the headers of an archive.

    Parameters
    ----------
    path : Path
    most_bytes : int or None
        Bytes that its arrays may take in memory before they go to temporary files; None: they stay in memory.

    Raises
    ------
    InputError
        The file is not an archive, is damaged, holds pickled objects, or does not fit in free memory or on the disk.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    total = in_columns = 0
    is_packed = False  # zeros pack a thousandfold: such a file must not fill a disk either
    with _explained(path):
        if path.is_dir():
            for file in sorted(path.rglob("*.npy")):
                name = file.relative_to(path).with_suffix("").as_posix()
                with file.open("rb") as stream:
                    shapes[name], n_bytes, turned = _header(stream, file.stat().st_size)
                total += n_bytes
                in_columns += n_bytes * turned
        else:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    with archive.open(member) as stream:
                        shape, n_bytes, turned = _header(stream, member.file_size)
                    is_packed = is_packed or member.compress_type != zipfile.ZIP_STORED
                    shapes[member.filename.removesuffix(".npy")] = shape
                    total += n_bytes
                    in_columns += n_bytes * turned
    free = free_bytes()
    is_big = free is not None and total > free
    # Arrays whose first axis is the fastest are read before they go to a file.
    is_held = is_big and (is_packed or (free is not None and in_columns > free))
    in_files = most_bytes is not None and (total > most_bytes or is_big) and not is_held
    if in_files:
        free = room_on_disk("the contexts")
    if free is not None and total > free:
        raise InputError(
            f"its arrays take {total} bytes, but {free} are free"
            + (" for temporary files" if in_files else ""),
            where=str(path),
            todo="Store fewer contexts" + (", or point TMPDIR to another disk" if in_files else ""),
        )
    return Archive(path, shapes, in_files)


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


def _header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], int, bool]:
    """Return the shape, the bytes, and whether the first axis is the fastest.

    Refuse a header that promises other bytes than are stored.
    """
    shape, dtype, in_columns = _layout(stream)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes != size - stream.tell():
        raise ValueError(f"the header states {n_bytes} bytes, the file holds {size - stream.tell()}")
    return shape, n_bytes, in_columns


def _layout(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read a header: return the shape, the dtype, and whether the first axis is the fastest."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, in_columns, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"arrays of version {version} are not read")
    if dtype.hasobject:
        raise ValueError("pickled objects are not read")
    return shape, dtype, in_columns


def _parts(stream: IO[bytes]) -> Iterator[NDArray[Any]]:
    """Yield the rest of a stream, some bytes at a time."""
    while part := stream.read(_PART_BYTES):
        yield np.frombuffer(part, np.uint8)


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
