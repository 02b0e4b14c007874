"""Temporary files and folders, and locks: the one place that makes them, and removes what a killed process left.

    <folder>/.tqs/<process>-<n>.lock     locked by the process that writes
    <folder>/.tqs/<process>-<n>.tmp      the unfinished file or folder
    <folder>/.tqs/<digest>.claim         locked by the process that writes a file or folder; names it (see `claimed`)

They lie in the folder they are written for, because only inside one file system can a file be renamed. A lock ends
with its process, even a killed one. So a file without a lock is left over: the next write to the folder removes it.
`.tqs` is removed when it is empty. Where files cannot be locked (Windows, some network file systems), nothing is
taken for left over and nothing is claimed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import platform
import shutil
import sys
from collections.abc import Callable, Generator
from contextvars import ContextVar
from pathlib import Path

from tqs_passes.errors import InputError, not_written

if sys.platform != "win32":
    import fcntl

#: The folder of temporary files, in the folder that they are written for.
FOLDER_NAME = ".tqs"
#: Opens a lock file without following a link, because locks are written to; 0 on systems without this flag.
_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_NUMBERS = itertools.count()
#: Claims of this thread: a job may claim again what the job that it belongs to holds.
_HELD: ContextVar[frozenset[Path]] = ContextVar("claims", default=frozenset())


@contextlib.contextmanager
def temporary_file(folder: Path) -> Generator[Path]:
    """Yield the path of a new, empty file in `folder`; it is removed afterwards unless it was renamed.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written to, or the disk is full.
    """
    with _temporary(folder, lambda path: path.touch(exist_ok=False)) as path:
        yield path


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Generator[Path]:
    """Yield the path of a new, empty folder in `folder`; it is removed afterwards unless it was renamed.

    Raises
    ------
    InputError
        See `temporary_file`.
    """
    with _temporary(folder, Path.mkdir) as path:
        yield path


@contextlib.contextmanager
def claimed(path: Path, who: str = "", *, at: Path | None = None) -> Generator[None]:
    """Hold an output: no other process, and no other thread, can claim it meanwhile.

    Parameters
    ----------
    path : Path
        A file or folder to be written.
    who : str
        Names the holder to others; default: the process and its machine.
    at : Path, optional
        The folder that keeps the claim; default: the folder of `path`.

    Raises
    ------
    InputError
        Another process holds it, or its folder cannot be written to.
    """
    with _explained(path):
        whole = path.resolve()
    if whole in _HELD.get() or sys.platform == "win32":
        yield
        return
    home = whole.parent if at is None else at
    name = f"{hashlib.sha256(str(whole).encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.claim"
    with _explained(home):
        handle = _locked(home, name)
    if handle is None:
        raise InputError(
            f"is being written by {_holder(home / FOLDER_NAME / name)}",
            where=str(path),
            todo="Wait for it, or choose another `out`",
        )
    token = _HELD.set(_HELD.get() | {whole})
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock itself holds
            os.ftruncate(handle, 0)
            os.write(handle, (who or f"process {os.getpid()} on {platform.node()}").encode())
        yield
    finally:
        _HELD.reset(token)
        _released(home, name, handle)


def sweep(folder: Path) -> None:
    """Remove the temporary files in a folder whose processes have ended.

    Claims are left to their next holder: one that is removed while another process is about to lock it would look held.
    """
    inside = folder / FOLDER_NAME
    if sys.platform == "win32" or inside.is_symlink():
        return
    try:
        locks = sorted(p for p in inside.iterdir() if p.suffix == ".lock")
    except OSError:  # there is none
        return
    for lock in locks:
        with contextlib.suppress(OSError):  # held, removed meanwhile, or not ours to remove
            handle = os.open(lock, os.O_RDWR | _NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock.with_suffix(".tmp"))
                lock.unlink()
            finally:
                os.close(handle)
    with contextlib.suppress(OSError):
        inside.rmdir()


@contextlib.contextmanager
def _temporary(folder: Path, make: Callable[[Path], None]) -> Generator[Path]:
    sweep(folder)
    with _explained(folder):
        handle, name = None, ""
        while handle is None:
            name = f"{os.getpid()}-{next(_NUMBERS)}.lock"
            handle = _locked(folder, name, new=True)
        path = folder / FOLDER_NAME / name.replace(".lock", ".tmp")
        try:
            make(path)
        except BaseException:
            _released(folder, name, handle)
            raise
    try:
        yield path
    finally:
        _remove(path)
        _released(folder, name, handle)


@contextlib.contextmanager
def _explained(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise not_written(error, folder, "cannot write to this folder") from error
    except RuntimeError as error:
        raise InputError(
            "cannot write to this folder (a loop of links)", where=str(folder), todo="Choose another `out`"
        ) from error


def _locked(folder: Path, name: str, *, new: bool = False) -> int | None:
    """Return a handle of a lock file that this process now holds; None if another holds it, or if `new` and it exists.

    Another process may remove the folder or the file at any moment before it is locked: then it is made again.
    """
    path = folder / FOLDER_NAME / name
    while True:
        try:
            path.parent.mkdir()
        except FileExistsError:  # a link could lead out of the folder, or nowhere
            if path.parent.is_symlink() or path.parent.is_file():
                raise NotADirectoryError(errno.ENOTDIR, f"{FOLDER_NAME} in it is not a folder") from None
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _NOFOLLOW | (os.O_EXCL if new else 0), 0o666)
        except FileExistsError:
            return None
        except FileNotFoundError:
            if not folder.is_dir():
                raise
            continue
        if sys.platform == "win32":
            return handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if new:  # swept just now
                continue
            return None
        except OSError:  # no locks on this file system
            return handle
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)


def _released(folder: Path, name: str, handle: int) -> None:
    if sys.platform == "win32":  # an open file cannot be removed there
        os.close(handle)
    with contextlib.suppress(OSError):
        (folder / FOLDER_NAME / name).unlink()
    if sys.platform != "win32":  # removed while it is locked: who locks it next sees that it is gone
        os.close(handle)
    with contextlib.suppress(OSError):  # others still use it
        (folder / FOLDER_NAME).rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _holder(lock: Path) -> str:
    try:
        with lock.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(200).strip() or "another process"
    except OSError:
        return "another process"
