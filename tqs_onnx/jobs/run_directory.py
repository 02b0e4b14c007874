"""Run directories: created late, never overwritten, resumable after an interruption.

While a job writes its files, `.unfinished` lists them; it is removed when the job is done. The listed files may be
overwritten, so the same command resumes after a stop, a crash or a full disk. Other files belong to an earlier run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text

#: Lists the files of an unfinished job, as JSON.
#: The rollout spec that a job drafted.
ROLLOUT_NAME = "rollout.toml"
UNFINISHED_NAME = ".unfinished"


@contextmanager
def run_directory(out: Path, names: list[str], *, force: bool) -> Generator[Callable[[], None]]:
    """Create a run directory for a job that writes these files; on failure remove it if it is still empty.

    Refuse a directory that already holds one of them, unless an unfinished job left it or `force` is set. Yields a
    function that the job calls before it writes its first file; it removes the files of an earlier run.

    Raises
    ------
    InputError
        The directory holds an earlier run, is a file, or cannot be created or written to.
    """
    _require_free(out, names, force=force)
    made = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be created ({error.strerror})", where=str(out), todo="Choose another `out`"
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
    """Record which files belong to an unfinished job."""
    if names:
        write_text(out / UNFINISHED_NAME, json.dumps(names))
    elif (out / UNFINISHED_NAME).exists():
        (out / UNFINISHED_NAME).unlink()


def _require_free(out: Path, names: list[str], *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("is a file, not a run directory", where=str(out), todo="Choose another `out`")
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
        found = json.loads((out / UNFINISHED_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _require_writable(out: Path) -> None:
    """Refuse a read-only directory now, not after the measurements."""
    try:
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(
            f"cannot be written to ({error.strerror})", where=str(out), todo="Choose another `out`"
        ) from error


@contextmanager
def removed_on_failure(emitted: Path) -> Generator[None]:
    """Remove an emitted file and its external data if the body raises."""
    try:
        yield
    except BaseException:
        for file in with_data(emitted):
            file.unlink(missing_ok=True)
        raise


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that are also inputs, whatever their names.

    Raises
    ------
    InputError
        An output is also an input; `where` names it.
    """
    read = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in read:
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
        same = rollout.read_text(encoding="utf-8") == drafted
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


def with_data(model: Path) -> tuple[Path, Path]:
    """Return a model file and the path of its external data, which need not exist."""
    return model, model.with_name(model.name + ".data")


def emitted_name(model: Path) -> str:
    """Return the default name of the file emitted for a model: `<model>.tqs.onnx`."""
    return f"{model.stem}.tqs.onnx"
