"""Wrap an emitted file for those who serve it, in any of the formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tqs_onnx.packaging.olive import write_olive
from tqs_onnx.packaging.tensorrt import write_engine_build
from tqs_onnx.packaging.triton import write_repository
from tqs_passes.errors import InputError

Format = Literal["triton", "tensorrt", "olive"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class PackageOptions:
    """How a file is wrapped.

    Parameters
    ----------
    format : {"triton", "tensorrt", "olive"}
        A Triton model repository, a folder with a trtexec script, or the files that an Olive run needs.
    name : str or None
        Triton: name of the model; None: that of the file, without its endings.
    max_batch : int
        Triton: largest batch that it may form; 0: none.
    limits : tuple of str
        TensorRT: least, usual and largest size of a free dimension, e.g. ``batch=1:8:32``.

    Raises
    ------
    InputError
        The largest batch is negative.
    """

    format: Format
    name: str | None = None
    max_batch: int = 0
    limits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be."""
        if self.max_batch < 0:
            raise InputError(f"`max_batch` must be at least 0, not {self.max_batch}")


def package(emitted: Path, out: Path, options: PackageOptions, *, force: bool = False) -> tuple[Path, ...]:
    """Wrap a file for a server; return the files written.

    Parameters
    ----------
    emitted : Path
        The `.onnx` file.
    out : Path
        Folder to write into; made when missing.
    options : PackageOptions
    force : bool
        Write into a folder that holds files.

    Raises
    ------
    InputError
        The folder is taken, the name or a limit cannot be used, or nothing can be written.
    """
    title = options.name or emitted.name.removesuffix(".onnx").removesuffix(".tqs")
    taken = out / title if options.format == "triton" else out
    if taken.is_file() or (taken.is_dir() and any(taken.iterdir()) and not force):
        raise InputError("exists", where=str(taken), todo="Choose another `out`, or give `force`")
    if options.format == "triton":
        return write_repository(emitted, out, title, options.max_batch)
    if options.format == "tensorrt":
        return write_engine_build(emitted, out, parse_limits(options.limits))
    return write_olive(emitted, out)


def parse_limits(texts: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """Return sizes by dimension.

    Raises
    ------
    InputError
        A text is not NAME=LEAST:USUAL:LARGEST with rising sizes.

    Examples
    --------
    >>> parse_limits(("batch=1:8:32",))
    {'batch': (1, 8, 32)}
    """
    found: dict[str, tuple[int, int, int]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.split(":")
        if not name or len(parts) != 3 or not all(p.isdecimal() for p in parts):
            raise InputError(f"`limit` {text!r} is not NAME=LEAST:USUAL:LARGEST", todo="Write batch=1:8:32")
        least, usual, largest = (int(p) for p in parts)
        if not 1 <= least <= usual <= largest:
            raise InputError(
                f"`limit` {text!r}: the sizes must rise from 1 or more", todo="Write batch=1:8:32"
            )
        found[name] = (least, usual, largest)
    return found
