"""Package an emitted file for a server, in any of the supported formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tqs_onnx.packaging.olive import RUN, write_olive
from tqs_onnx.packaging.placing import placed
from tqs_onnx.packaging.tensorrt import SCRIPT, write_engine_build
from tqs_onnx.packaging.triton import CONFIG, require_name, write_repository
from tqs_passes.errors import InputError

Format = Literal["triton", "tensorrt", "olive"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class PackageOptions:
    """Options for packaging a file.

    Parameters
    ----------
    format : {"triton", "tensorrt", "olive"}
        A Triton model repository, a folder with a trtexec script, or the files that an Olive run needs.
    name : str or None
        Triton: name of the model; None: the file's name without its extensions.
    max_batch : int
        Triton: largest batch that it may form; 0: no batching.
    limits : tuple of str
        TensorRT: minimum, usual and maximum size of a free dimension, e.g. ``batch=1:8:32``.

    Raises
    ------
    InputError
        `max_batch` is negative.
    """

    format: Format
    name: str | None = None
    max_batch: int = 0
    limits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a negative `max_batch`."""
        if self.max_batch < 0:
            raise InputError(f"`max_batch` must be at least 0, not {self.max_batch}")


def package(emitted: Path, out: Path, options: PackageOptions, *, force: bool = False) -> tuple[Path, ...]:
    """Package a file for a server; return the files written. They appear all at once, or not at all.

    Parameters
    ----------
    emitted : Path
        The `.onnx` file.
    out : Path
        Folder to write to; created if missing.
    options : PackageOptions
    force : bool
        Allow a folder that already contains the files.

    Raises
    ------
    InputError
        The folder is in use, the name or a limit is invalid, or nothing can be written.
    """
    if options.format == "triton":
        title = options.name or emitted.name.removesuffix(".onnx").removesuffix(".tqs")
        require_name(title)
        with placed(out / title, out, CONFIG, force=force) as folder:
            names = write_repository(emitted, folder, title, options.max_batch)
        return tuple(out / title / name for name in names)
    if options.format == "tensorrt":
        limits = parse_limits(options.limits)
        with placed(out, out, SCRIPT, force=force) as folder:
            names = write_engine_build(emitted, folder, limits)
    else:
        with placed(out, out, RUN, force=force) as folder:
            names = write_olive(emitted, folder)
    return tuple(out / name for name in names)


def parse_limits(texts: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """Return the sizes of each dimension.

    Raises
    ------
    InputError
        A text is not NAME=LEAST:USUAL:LARGEST with increasing sizes.

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
                f"`limit` {text!r}: the sizes must increase from 1 or more", todo="Write batch=1:8:32"
            )
        found[name] = (least, usual, largest)
    return found
