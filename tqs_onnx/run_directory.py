"""The run directory of a job: made late, refused when taken, never left with half a result."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from tqs_passes.errors import InputError


@contextmanager
def run_directory(out: Path, names: list[str], *, force: bool) -> Generator[None]:
    """Make a run directory, refusing one that holds these files unless forced; on failure remove it if still empty.

    Raises
    ------
    InputError
        It exists and holds an earlier run, is a file, or cannot be made or written to.
    """
    _require_free(out, names, force=force)
    made = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made ({error.strerror})", where=str(out), todo="Choose another --out"
        ) from error
    try:
        _require_writable(out)
        yield
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def _require_free(out: Path, names: list[str], *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("is a file, not a run directory", where=str(out), todo="Choose another --out")
    taken = [name for name in names if (out / name).exists()]
    if taken and not force:
        raise InputError(
            f"already holds {taken[0]}", where=str(out), todo="Choose another --out, or give --force"
        )


def _require_writable(out: Path) -> None:
    """Refuse a directory that cannot be written to now, not after the sweep."""
    try:
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(
            f"cannot be written to ({error.strerror})", where=str(out), todo="Choose another --out"
        ) from error


@contextmanager
def removed_on_failure(emitted: Path) -> Generator[None]:
    """Remove an emitted file, and its external data, when what follows does not come to its end."""
    try:
        yield
    except BaseException:
        for file in with_data(emitted):
            file.unlink(missing_ok=True)
        raise


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that are inputs too, whatever they are called.

    Raises
    ------
    InputError
        One is; it is named.
    """
    read = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in read:
            raise InputError(
                "the output would overwrite an input", where=str(path), todo="Choose another --out"
            )


def with_data(model: Path) -> tuple[Path, Path]:
    """Return a model file and the file that its external data goes to, where it has any."""
    return model, model.with_name(model.name + ".data")


def emitted_name(model: Path) -> str:
    """Return the default name of the file made from a model: `<model>.tqs.onnx`."""
    return f"{model.stem}.tqs.onnx"
