"""The run directory of a job: made late, refused when taken, and gone on with after a job that did not come to its end.

While a job writes its files, `.unfinished` names them; it goes when the job is done. What it names may be written
again, so that the same command goes on after a stop, a crash or a full disk. Anything else is an earlier run's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text

#: Lists the files of a job that has not come to its end, as JSON.
UNFINISHED_NAME = ".unfinished"


@contextmanager
def run_directory(out: Path, names: list[str], *, force: bool) -> Generator[Callable[[], None]]:
    """Make a run directory for a job that writes these files; on failure remove it if still empty.

    It is refused where it holds one of them, unless that is what an unfinished job left, or forced. Yields what the
    job calls before it writes the first of them: it removes those of an earlier run.

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
    others = [name for name in _unfinished(out) if name not in names]

    def begin() -> None:
        _mark(out, [*names, *others])
        for name in names:
            (out / name).unlink(missing_ok=True)

    try:
        _require_writable(out)
        yield begin
        _mark(out, others)
    except BaseException:
        if not any((out / name).exists() for name in (*names, *others)):
            _mark(out, [])
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def _mark(out: Path, names: list[str]) -> None:
    """Write down which files are those of an unfinished job."""
    if names:
        write_text(out / UNFINISHED_NAME, json.dumps(names))
    elif (out / UNFINISHED_NAME).exists():
        (out / UNFINISHED_NAME).unlink()


def _require_free(out: Path, names: list[str], *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("is a file, not a run directory", where=str(out), todo="Choose another --out")
    unfinished = _unfinished(out)
    taken = [name for name in names if (out / name).exists() and name not in unfinished]
    if taken and not force:
        raise InputError(
            f"already holds {taken[0]}",
            where=str(out),
            todo="Choose another --out, or give --force, which uses again what was measured",
        )


def _unfinished(out: Path) -> list[str]:
    """Return the files that an unfinished job writes, or none."""
    try:
        found = json.loads((out / UNFINISHED_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


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
