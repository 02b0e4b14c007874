"""Move encoded tensors to disk as soon as they are made, so that writing a model keeps one weight in memory.

The file has no name. It lies on the same disk as the file to be written and disappears when the process ends for any
reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import onnx

from tqs_passes.errors import not_written
from tqs_passes.files.wire import Extent

#: The location of spilled tensors. No file can have this name, and `load_model` rejects it as a location.
SPILLED = "\0spill"
_LEAST_BYTES = 1 << 12


class Spill:
    """A temporary file that holds the values of tensors; use it as a context manager.

    Parameters
    ----------
    folder : Path
        Folder of the file.

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
            raise not_written(error, folder, "cannot write to this folder") from error
        self._end = 0

    def __enter__(self) -> Self:
        """Return the spill."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the file."""
        self._file.close()

    def take(self, tensors: Iterable[onnx.TensorProto]) -> None:
        """Move the raw data of these tensors to the file; small tensors are left unchanged.

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
                raise not_written(error, self._folder, "cannot write to this folder") from error
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", SPILLED), ("offset", str(self._end)), ("length", str(n_bytes))):
                tensor.external_data.add(key=key, value=value)
            self._end += n_bytes

    def extent(self, offset: int, n_bytes: int) -> Extent:
        """Return the current location of moved values."""
        return Extent(self._file, offset, n_bytes)
