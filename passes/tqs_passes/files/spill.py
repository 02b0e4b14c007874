"""Put encoded tensors on disk as they are made, so that writing a model holds one weight at a time.

The file has no name: it lies on the disk of the file to be written, and is gone with the process, however that ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import onnx

from tqs_passes.errors import InputError
from tqs_passes.files.wire import Extent

#: The location of tensors in a spill; no file can be called so, and `load_model` lets no such location in.
SPILLED = "\0spill"
_LEAST_BYTES = 1 << 12


class Spill:
    """A file that tensors' values are moved to; use it as a context.

    Parameters
    ----------
    folder : Path
        Where the file lies.

    Raises
    ------
    InputError
        The folder cannot be written to, or its disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by __exit__)
        except OSError as error:
            raise InputError(f"cannot write here ({error.strerror})", where=str(folder)) from error
        self._end = 0

    def __enter__(self) -> Self:
        """Return the spill."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the file."""
        self._file.close()

    def take(self, tensors: Iterable[onnx.TensorProto]) -> None:
        """Move the raw data of these tensors to the file; small ones stay as they are.

        Raises
        ------
        InputError
            The disk is full.
        """
        for tensor in tensors:
            n_bytes = len(tensor.raw_data)
            if n_bytes < _LEAST_BYTES:
                continue
            try:
                self._file.seek(self._end)
                self._file.write(tensor.raw_data)
            except OSError as error:
                raise InputError(
                    f"cannot be written to ({error.strerror})", where=str(self._folder)
                ) from error
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", SPILLED), ("offset", str(self._end)), ("length", str(n_bytes))):
                tensor.external_data.add(key=key, value=value)
            self._end += n_bytes

    def extent(self, offset: int, n_bytes: int) -> Extent:
        """Return where values that were moved lie now."""
        return Extent(self._file, offset, n_bytes)
