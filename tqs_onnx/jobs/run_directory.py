"""Run directories: created late, never overwritten, resumable after an interruption.

While a job writes its files, `.unfinished` lists them; it is removed when the job is done. The listed files may be
overwritten, so the same command resumes after a stop, a crash or a full disk. Other files belong to an earlier run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from tqs_onnx.emission import names_file
from tqs_passes.errors import InputError, not_written
from tqs_passes.files.atomic import write_text
from tqs_passes.files.temporary import claimed
from tqs_passes.files.text import read_text

#: The rollout spec that a job drafted.
ROLLOUT_NAME = "rollout.toml"
#: Lists the files of an unfinished job, as JSON.
UNFINISHED_NAME = ".unfinished"
_MOST_BYTES = 1 << 20


@contextmanager
def run_directory(out: Path, names: list[str], *, force: bool) -> Generator[Callable[[], None]]:
    """Create and claim a run directory for a job that writes these files; on failure remove it if it is still empty.

    Refuse a directory that already holds one of them, unless an unfinished job left it or `force` is set, and one that
    another job is writing. Yields a function that the job calls before it writes its first file; it removes the files
    of an earlier run.

    Raises
    ------
    InputError
        The directory holds an earlier run, is in use, is a file, or cannot be created or written to.
    """
    with created(out):
        if not force:  # a read-only directory of an earlier run is called what it is
            _require_free(out, names, force=force)
        _require_writable(out)
        with claimed(out, at=out):
            _require_free(out, names, force=force)
            with _begun(out, names) as begin:
                yield begin


@contextmanager
def created(out: Path) -> Generator[None]:
    """Create a folder, and on failure remove it, and those around it that this took, if they are empty.

    Raises
    ------
    InputError
        It is a file, or cannot be created.
    """
    resolved(out)
    made = [p for p in (out, *out.parents) if not p.exists()]
    if out.exists() and not out.is_dir():
        raise InputError("is a file, not a run directory", where=str(out), todo="Choose another `out`")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(error, out, "cannot be created") from error
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # not empty: it holds what may be resumed
                folder.rmdir()
        raise


@contextmanager
def output_file(out: Path, *, force: bool, option: str = "out") -> Generator[None]:
    """Claim a file that a job writes while the body runs.

    Parameters
    ----------
    out : Path
    force : bool
        Replace a file that exists.
    option : str
        The option that named it.

    Raises
    ------
    InputError
        It exists, it is a folder, another job writes it, or its folder cannot be written to.
    """
    what = resolved(out)
    with claimed(what):
        if what.is_dir():
            raise InputError("is a folder", where=str(out), todo=f"Choose another `{option}`")
        if what.exists() and not force:
            todo = f"Choose another `{option}`, or give `force`"
            raise InputError("already exists", where=str(out), todo=todo)
        yield


@contextmanager
def _begun(out: Path, names: list[str]) -> Generator[Callable[[], None]]:
    others = [name for name in _unfinished(out) if name not in names]

    def begin() -> None:
        _mark(out, [*names, *others])
        for name in names:
            _unlinked(out / name)

    try:
        yield begin
        _mark(out, others)
    except BaseException:
        if not any((out / name).exists() for name in (*names, *others)):
            _mark(out, [])
        raise


def _unlinked(path: Path) -> None:
    """Remove a file, if it is there.

    Raises
    ------
    InputError
        It is a folder, or cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        why = "is a folder" if path.is_dir() else error.strerror
        raise InputError(
            f"cannot be replaced ({why})", where=str(path), todo="Remove it, or choose another `out`"
        ) from error


def _mark(out: Path, names: list[str]) -> None:
    """Record which files belong to an unfinished job."""
    if names:
        write_text(out / UNFINISHED_NAME, json.dumps(names))
    elif (out / UNFINISHED_NAME).exists():
        (out / UNFINISHED_NAME).unlink()


def _require_free(out: Path, names: list[str], *, force: bool) -> None:
    unfinished = _unfinished(out)
    taken = [name for name in names if (out / name).exists() and name not in unfinished]
    if taken and not force:
        raise InputError(
            f"already holds {taken[0]}",
            where=str(out),
            todo="Choose another `out`, or give `force`, which keeps and reuses measurements",
        )


def _unfinished(out: Path) -> list[str]:
    """Return the files that an unfinished job listed; empty if there is none."""
    try:
        found = json.loads(_start(out / UNFINISHED_NAME))
    except (OSError, ValueError, RecursionError):  # RecursionError: brackets in brackets
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _start(path: Path) -> str:
    """Return the text of a small file; a device or a large file cannot be such a list."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return ""
    return path.read_text(encoding="utf-8")


def _require_writable(out: Path) -> None:
    """Refuse a read-only directory now, not after the measurements."""
    try:
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise not_written(error, out, "cannot be written to") from error


@contextmanager
def removed_on_failure(emitted: Path, *others: Path) -> Generator[None]:
    """Remove an emitted file, its external data, its map of names and other files if the body raises."""
    try:
        yield
    except BaseException:
        for file in (*with_data(emitted), *others):
            file.unlink(missing_ok=True)
        raise


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that are also inputs, whatever their names.

    Raises
    ------
    InputError
        An output is also an input, or a path cannot be resolved; `where` names it.
    """
    read = {resolved(path) for path in inputs}
    for path in outputs:
        if resolved(path) in read:
            raise InputError(
                "the output would overwrite an input", where=str(path), todo="Choose another `out`"
            )


def require_unedited(rollout: Path, drafted: str) -> None:
    """Refuse to replace a rollout.toml that somebody edited after it was drafted.

    Raises
    ------
    InputError
        The file exists and differs from the draft.
    """
    try:
        same = read_text(rollout) == drafted
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        raise InputError(
            "differs from the draft that would replace it",
            where=str(rollout),
            todo="Give it as `rollout`, or remove it",
        )


def resolved(path: Path) -> Path:
    """Return a path without links.

    Raises
    ------
    InputError
        The links form a loop, a name is too long, or a folder cannot be searched.
    """
    try:
        whole = path.resolve()
        whole.exists()  # asks the system, as `resolve` may not
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: a loop of links; ValueError: a null byte
        why = error.strerror if isinstance(error, OSError) else "a loop of links, or an impossible name"
        raise InputError(
            f"the path cannot be resolved ({why})", where=str(path), todo="Give another"
        ) from error
    return whole


def with_data(model: Path) -> tuple[Path, ...]:
    """Return a model file and the paths of its external data and of its map of names, which need not exist."""
    return model, model.with_name(model.name + ".data"), names_file(model)


def emitted_name(model: Path) -> str:
    """Return the default name of the file emitted for a model: `<model>.tqs.onnx`."""
    return f"{model.stem}.tqs.onnx"
