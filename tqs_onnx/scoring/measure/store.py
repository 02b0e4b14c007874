"""Stores measurements as they arrive, in an SQLite file in the run directory: none is lost or computed twice.

Each measurement is one row, keyed by the digest of everything that affects it (see `scoring.plan.fingerprint`), and
committed before the next rollout starts. SQLite's write-ahead log makes this cheap, and safe if the process is killed
at any time. Network file systems do not support that log; there a rollback journal is used, and `note` says so.

Floats are stored as their eight bytes, so that they are read back bit for bit. Every row has a checksum of its values
and its key. A row that does not match it counts as absent: it is measured again, and `n_damaged` counts it. This finds
damage and edits by hand, not forgery.
"""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import struct
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.floors import SessionFloors
from tqs_onnx.scoring.measure.meter import Measurement
from tqs_onnx.scoring.measure.mounts import mounts, network_filesystem
from tqs_passes.errors import InputError, TqsError

#: Name of the file in a run directory.
RESULTS_NAME = "sweep.sqlite"
_FORMAT = 3
_TABLES = """
CREATE TABLE IF NOT EXISTS job (
  id TEXT PRIMARY KEY, facts TEXT NOT NULL, frame TEXT, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS measurement (
  id TEXT PRIMARY KEY, job TEXT NOT NULL, contexts INTEGER NOT NULL, energy BLOB NOT NULL, variables BLOB NOT NULL,
  delta_sq REAL NOT NULL, steps INTEGER NOT NULL, finite INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS session (
  job TEXT NOT NULL, session INTEGER NOT NULL, noise REAL NOT NULL, rounding REAL NOT NULL, at BLOB NOT NULL,
  checksum INTEGER NOT NULL, PRIMARY KEY (job, session)) WITHOUT ROWID;
"""
#: Everything that a store holds, by its type and name.
_HELD = {"tablejob", "tablemeasurement", "tablesession"}
_SELECT = "SELECT id, contexts, energy, variables, delta_sq, steps, finite, checksum FROM measurement"
#: Endings of the files that SQLite keeps beside its own.
_BESIDE = ("-wal", "-shm", "-journal")
#: Rows fetched at once; SQLite allows this many parameters everywhere.
_AT_ONCE = 500
_FLOAT_BYTES = 8
#: With less room on its disk, SQLite cannot write: a page of the log, and of its index.
_LEAST_ROOM = 1 << 16
#: Numbers of a measurement and of floors, as they enter the checksum.
_MEASURED, _FLOORS = struct.Struct("<qdqq"), struct.Struct("<qdd")


class StoppedError(TqsError):
    """The user stopped scoring; the measurements so far are kept."""

    exit_code = 130


@dataclass(frozen=True, slots=True)
class Expected:
    """The sizes and ranges of a job's measurements.

    Parameters
    ----------
    contexts, horizons : int
    variables : int or None
        None: not known yet.
    steps : int
        Model calls of a whole rollout.
    """

    contexts: int
    horizons: int
    variables: int | None
    steps: int

    def holds(
        self, contexts: int, energy: bytes, variables: bytes, delta_sq: float, steps: int, finite: int
    ) -> bool:
        """Return whether the values of a row are possible."""
        return (
            contexts == self.contexts
            and len(energy) == contexts * self.horizons * _FLOAT_BYTES
            and self.variables in (None, len(variables) // _FLOAT_BYTES)
            and 0 <= steps <= self.steps
            and 0.0 <= delta_sq < math.inf
            and finite in (0, 1)
        )


class Results:
    """The measurements of a run directory; a context manager.

    Parameters
    ----------
    path : Path or None
        The SQLite file, created if missing. None keeps everything in memory, as does a file in a read-only folder.

    Raises
    ------
    InputError
        The file cannot be created or read, or is not such a store.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.note = ""
        self.n_damaged = 0
        self._written = False
        self._new = path is not None and not path.exists()
        if path is not None:
            _require_own(path)
        copied = path is not None and path.exists() and not os.access(path.parent, os.W_OK)
        with self._explained():
            # autocommit: every statement is its own transaction
            place = ":memory:" if path is None or copied else path
            self._db = sqlite3.connect(place, isolation_level=None, timeout=10.0)
            self._db.text_factory = _text
        if path is not None and copied:
            self._copy(path)
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _copy(self, path: Path) -> None:
        """Copy the content of a read-only store into memory."""
        with (
            self._explained(),
            closing(sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)) as kept,
        ):
            kept.backup(self._db)
        self.path = None
        self.note = f"{path} cannot be written: its measurements are used, new measurements are not kept"

    def _open(self) -> None:
        with self._explained():
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _FORMAT):
                raise InputError(
                    f"is a store of format {found}, this version needs format {_FORMAT}",
                    where=str(self.path),
                    todo="Remove it, or choose another `out`",
                )
            held = {row[0] for row in self._db.execute("SELECT type || name FROM sqlite_master")}
            if not held <= _HELD:  # another program's, or one with triggers
                raise InputError(
                    "is not a store of measurements",
                    where=str(self.path),
                    todo="Remove it, or choose another `out`",
                )
        if self.path is not None:
            self._choose_journal(network_filesystem(self.path.parent, mounts()))
        with self._explained():
            self._db.executescript(_TABLES)
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    def _choose_journal(self, network: str | None) -> None:
        mode = "none"
        if network is None:
            with self._explained(), suppress(sqlite3.OperationalError):
                mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode == "wal":
            self._db.execute("PRAGMA synchronous = NORMAL")
            return
        what = "this file system" if network is None else f"{network}, a network file system,"
        self.note = f"{what} does not support a write-ahead log: a rollback journal is used instead"
        with self._explained():
            self._db.execute("PRAGMA journal_mode = DELETE")

    def frame(self, job: str) -> str | None:
        """Return the stored facts about the nominal rollout of a job, or None."""
        with self._explained():
            row = self._db.execute("SELECT frame, checksum FROM job WHERE id = ?", (job,)).fetchone()
        if row is None or self._is_damaged(row[1], lambda: crc32(f"{job}\0{row[0]}".encode())):
            return None
        frame: str = row[0]
        return frame

    def put_frame(self, job: str, facts: str, frame: str) -> None:
        """Store a job: its settings, for readers of the file, and the facts about its nominal rollout."""
        row = (job, facts, frame, crc32(f"{job}\0{frame}".encode()))
        with self._explained():
            self._db.execute("INSERT OR REPLACE INTO job VALUES (?, ?, ?, ?)", row)

    def floors(self, job: str) -> dict[int, Floors]:
        """Return the stored floors of a job's sessions."""
        with self._explained():
            rows = self._db.execute(
                "SELECT session, noise, rounding, at, checksum FROM session WHERE job = ?", (job,)
            ).fetchall()
        return {
            row[0]: Floors(noise=row[1], rounding=row[2], rounding_at=tuple(_floats(row[3]).tolist()))
            for row in rows
            if not self._is_damaged(row[4], partial(_floors_sum, job, *row[:4]))
        }

    def put_floors(self, job: str, found: SessionFloors) -> None:
        """Store the floors of a session, in the place of those stored already."""
        f = found.floors
        values = (found.session, f.noise, f.rounding, _bytes(np.array(f.rounding_at)))
        row = (job, *values, _floors_sum(job, *values))
        with self._explained():
            self._db.execute("INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?)", row)

    def get(self, key: str) -> Measurement | None:
        """Return a measurement; None if it is not stored, or does not match its checksum."""
        return self.read([key]).get(key)

    def read(self, keys: Iterable[str]) -> dict[str, Measurement]:
        """Return the measurements that are stored and match their checksums, by key."""
        return {
            row[0]: Measurement(
                _floats(row[2]).reshape(row[1], -1), _floats(row[3]), row[4], row[5], bool(row[6])
            )
            for row in self._sound_rows(keys)
        }

    def known(self, keys: Iterable[str], expected: Expected | None = None) -> set[str]:
        """Return those of `keys` that are stored, undamaged, and of the expected sizes."""
        found: set[str] = set()
        for row in self._sound_rows(keys):
            if expected is None or expected.holds(*row[1:7]):
                found.add(row[0])
            else:
                self.n_damaged += 1
        return found

    def _sound_rows(self, keys: Iterable[str]) -> Generator[tuple[Any, ...]]:
        """Yield the rows of these keys, as selected, that match their checksums."""
        wanted = list(keys)
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            with self._explained():
                rows = self._db.execute(
                    f"{_SELECT} WHERE id IN ({','.join('?' * len(some))})", some
                ).fetchall()
            for row in rows:
                if self._is_sound(row):
                    yield row

    def put(self, job: str, found: Iterable[tuple[str, Measurement]]) -> None:
        """Store measurements in one transaction; it is written to the file when this returns."""
        rows: list[tuple[object, ...]] = []
        for key, m in found:
            energy, variables = _bytes(m.energy), _bytes(m.variables)
            values = (len(m.energy), energy, variables, float(m.delta_sq), m.steps, int(m.finite))
            rows.append((key, job, *values, _checksum(key, *values)))
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
            self._db.execute("COMMIT")
        self._written = True

    def _is_damaged(self, stored: object, computed: Callable[[], int]) -> bool:
        """Whether a row does not match its checksum; damage also changes the types of values."""
        try:
            damaged = computed() != stored
        except (struct.error, TypeError, ValueError, OverflowError):
            damaged = True
        self.n_damaged += damaged
        return damaged

    def _is_sound(self, row: tuple[Any, ...]) -> bool:
        """Whether a measurement, as selected, matches its checksum; see `_is_damaged`."""
        try:
            sound = bool(_checksum(*row[:7]) == row[7])
        except (struct.error, TypeError, ValueError, OverflowError):
            sound = False
        self.n_damaged += not sound
        return sound

    def __enter__(self) -> Results:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; remove it if this run created it and it holds no measurement."""
        self._db.close()
        if self._new and not self._written and self.path is not None:
            for suffix in ("", *_BESIDE):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _has_no_room(self) -> bool:
        """Whether the disk is full: SQLite calls that an I/O error when it maps a file."""
        if self.path is None:
            return False
        with suppress(OSError):
            return shutil.disk_usage(self.path.parent).free < _LEAST_ROOM
        return False

    @contextmanager
    def _explained(self) -> Generator[None]:
        """Turn SQLite's errors into one line; committed measurements are unaffected."""
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            what, todo = f"cannot be used ({text})", "Choose another `out`"
            if "full" in text or ("disk I/O" in text and self._has_no_room()):
                what = "the disk is full; the measurements so far are kept"
                todo = "Free disk space and run the same command again"
            elif "readonly" in text or "unable to open" in text or "disk I/O" in text:
                what = f"cannot be written ({text})"
            elif "not a database" in text:
                what, todo = "is not a store of measurements", "Remove it, or choose another `out`"
            elif "malformed" in text or "corrupt" in text or "too big" in text or "no such" in text:
                what, todo = f"is damaged ({text})", "Remove it, or choose another `out`"
            elif "locked" in text:
                what, todo = "is in use by another run", "Wait for it, or choose another `out`"
            raise InputError(what, where=str(self.path), todo=todo) from error


def _require_own(path: Path) -> None:
    """Refuse links that would let SQLite create or write files elsewhere.

    Raises
    ------
    InputError
        The file is a link that leads nowhere, or a file that SQLite keeps beside it is a link.
    """
    beside = [path.with_name(f"{path.name}{suffix}") for suffix in _BESIDE]
    link = next(
        (p for p in beside if p.is_symlink()), path if path.is_symlink() and not path.exists() else None
    )
    if link is not None:
        raise InputError("is a link", where=str(link), todo="Remove it, or choose another `out`")


def _checksum(
    key: str, contexts: int, energy: bytes, variables: bytes, delta_sq: float, steps: int, finite: int
) -> int:
    """Return the checksum of a measurement.

    Raises
    ------
    struct.error, TypeError
        A value has another type.
    """
    numbers = _MEASURED.pack(contexts, delta_sq, steps, finite)
    return crc32(variables, crc32(energy, crc32(numbers, crc32(key.encode()))))


def _floors_sum(job: str, session: int, noise: float, rounding: float, at: bytes) -> int:
    return crc32(at, crc32(_FLOORS.pack(session, noise, rounding), crc32(job.encode())))


def _text(raw: bytes) -> str:
    """Return stored text; damage must not raise here, but fail the checksum."""
    return raw.decode("utf-8", "replace")


def _bytes(array: NDArray[np.float64]) -> bytes:
    return np.ascontiguousarray(array, "<f8").tobytes()


def _floats(blob: bytes) -> NDArray[np.float64]:
    return np.frombuffer(blob, "<f8").astype(np.float64)
