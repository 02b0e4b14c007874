"""Build a folder out of sight, and put it in its place at once: a server that watches never sees half of it.

    <parent of the root>/.tqs/…/new  ──rename──▶  <root>/<target>

A folder that exists already changes places with the new one in one step where the system can do that (Linux), otherwise
in two. Files in it that the package does not write are kept. Only if nothing can be renamed from outside the root (it
is a mount point, or its parent is read-only) is the folder built inside it; and only if the root itself is such a
target are files moved one by one, the one that makes the package complete last.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

from tqs_passes.errors import InputError, not_written
from tqs_passes.files.temporary import FOLDER_NAME, claimed, temporary_folder

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def placed(target: Path, root: Path, last: str, *, force: bool) -> Generator[Path]:
    """Yield an empty folder; what it holds afterwards is `target`. If the body raises, nothing has changed.

    Parameters
    ----------
    target : Path
        The folder to write.
    root : Path
        `target`, or a folder around it that a server may watch; created if missing.
    last : str
        The file without which a package is not complete.
    force : bool
        Replace a package that is already there.

    Raises
    ------
    InputError
        The target is in use, another process writes it, or it cannot be written.
    """
    root, target = root.absolute(), target.absolute()
    made = _made(root)
    try:
        home = root.parent if _is_renamed_into(root) else root
        with claimed(target, at=home):
            _require_free(target, last, force=force)
            with temporary_folder(home) as folder:
                new = folder / "new"
                new.mkdir()
                yield new
                _place(new, target, last, folder / "old")
    except OSError as error:
        raise not_written(error, target) from error
    except InputError as error:
        if isinstance(error.__cause__, OSError) and FOLDER_NAME in Path(error.where).parts:
            raise not_written(error.__cause__, target) from error  # not the unfinished file, which is gone
        raise
    finally:
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


def _made(root: Path) -> list[Path]:
    """Create the root; return the folders that this took, innermost first."""
    try:
        missing = [p for p in (root, *root.parents) if not p.exists()]
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(error, root, "the folder cannot be created") from error
    return missing


def _is_renamed_into(root: Path) -> bool:
    """Return whether folders can be renamed from the parent of the root into it."""
    same = root.stat().st_dev == root.parent.stat().st_dev and not root.is_mount()
    return same and os.access(root.parent, os.W_OK)


def _require_free(target: Path, last: str, *, force: bool) -> None:
    """Refuse a folder in use; what was moved into a mount point without the last file was interrupted."""
    if target.is_dir():
        held = [p for p in target.iterdir() if p.name != FOLDER_NAME]
        free = force or not held or (target.is_mount() and not (target / last).exists())
    else:
        free = not target.exists() and not target.is_symlink()
    if not free:
        raise InputError("exists already", where=str(target), todo="Choose another `out`, or give `force`")


def _place(new: Path, target: Path, last: str, old: Path) -> None:
    if target.is_dir() and (target.is_mount() or target in new.parents):
        for path in sorted(new.iterdir(), key=lambda p: p.name == last):
            path.replace(target / path.name)
        return
    if not target.is_dir() or not any(target.iterdir()):
        if sys.platform == "win32" and target.is_dir():
            target.rmdir()
        new.rename(target)
        return
    _keep_others(target, new)
    if not _exchanged(new, target):
        target.rename(old)
        new.rename(target)


def _keep_others(target: Path, new: Path) -> None:
    """Give the new folder the files of the old one that it does not replace."""
    written = {p.relative_to(new) for p in new.rglob("*") if p.is_file()}
    folders = {folder for path in written for folder in path.parents}
    stale = {path.with_name(f"{path.name}.data") for path in written}  # of a model that had external data
    for path in _files(target):
        inside = path.relative_to(target)
        if inside in folders | stale or not written.isdisjoint((inside, *inside.parents)):
            continue
        (new / inside).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, new / inside, follow_symlinks=False)
        except OSError:  # no hard links on this file system
            shutil.copy2(path, new / inside, follow_symlinks=False)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name != FOLDER_NAME:
                yield from _files(path)
        else:
            yield path


def _exchanged(a: Path, b: Path) -> bool:
    """Let two folders change places; return False, with nothing changed, where that is not one step."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    result: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return result == 0
