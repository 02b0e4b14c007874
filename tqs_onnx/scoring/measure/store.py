"""Stores measurements as they arrive, in an SQLite file in the run directory: none is lost or computed twice.

Each measurement is one row, keyed by the digest of everything that affects it (see `scoring.plan.fingerprint`), and
committed before the next rollout starts. SQLite's write-ahead log makes this cheap, and safe if the process is killed
at any time. Network file systems do not support that log; there a rollback journal is used, and `note` says so.

Floats are stored as their eight bytes, so that they are read back bit for bit.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.floors import SessionFloors
from tqs_onnx.scoring.measure.meter import Measurement
from tqs_onnx.scoring.measure.mounts import mounts, network_filesystem
from tqs_passes.errors import InputError, TqsError

#: Name of the file in a run directory.
RESULTS_NAME = "sweep.sqlite"
_FORMAT = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS job (id TEXT PRIMARY KEY, facts TEXT NOT NULL, frame TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS measurement (
  id TEXT PRIMARY KEY, job TEXT NOT NULL, contexts INTEGER NOT NULL, energy BLOB NOT NULL, variables BLOB NOT NULL,
  delta_sq REAL NOT NULL, steps INTEGER NOT NULL, finite INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS session (
  job TEXT NOT NULL, session INTEGER NOT NULL, noise REAL NOT NULL, rounding REAL NOT NULL, at BLOB NOT NULL,
  PRIMARY KEY (job, session)) WITHOUT ROWID;
"""


class StoppedError(TqsError):
    """The user stopped scoring; the measurements so far are kept."""

    exit_code = 130


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
        self._written = False
        self._new = path is not None and not path.exists()
        copied = path is not None and path.exists() and not os.access(path.parent, os.W_OK)
        with self._explained():
            # autocommit: every statement is its own transaction
            place = ":memory:" if path is None or copied else path
            self._db = sqlite3.connect(place, isolation_level=None, timeout=10.0)
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
        if self.path is not None:
            self._choose_journal(network_filesystem(self.path.parent, mounts()))
        with self._explained():
            self._db.executescript(_TABLES)
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    def _choose_journal(self, network: str | None) -> None:
        mode = "none"
        if network is None:
            with suppress(sqlite3.OperationalError):
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
            row = self._db.execute("SELECT frame FROM job WHERE id = ?", (job,)).fetchone()
        return None if row is None else row[0]

    def put_frame(self, job: str, facts: str, frame: str) -> None:
        """Store a job: its settings, for readers of the file, and the facts about its nominal rollout."""
        with self._explained():
            self._db.execute("INSERT OR REPLACE INTO job VALUES (?, ?, ?)", (job, facts, frame))

    def floors(self, job: str) -> dict[int, Floors]:
        """Return the stored floors of a job's sessions."""
        with self._explained():
            rows = self._db.execute("SELECT session, noise, rounding, at FROM session WHERE job = ?", (job,))
            return {
                session: Floors(noise=noise, rounding=rounding, rounding_at=tuple(_floats(at).tolist()))
                for session, noise, rounding, at in rows
            }

    def put_floors(self, job: str, found: SessionFloors) -> None:
        """Store the floors of a session, unless they are stored already."""
        f = found.floors
        row = (job, found.session, f.noise, f.rounding, _bytes(np.array(f.rounding_at)))
        with self._explained():
            self._db.execute("INSERT OR IGNORE INTO session VALUES (?, ?, ?, ?, ?)", row)

    def get(self, key: str) -> Measurement | None:
        """Return a measurement, or None."""
        with self._explained():
            row = self._db.execute(
                "SELECT contexts, energy, variables, delta_sq, steps, finite FROM measurement WHERE id = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        energy = _floats(row[1]).reshape(row[0], -1)
        return Measurement(energy, _floats(row[2]), row[3], row[4], bool(row[5]))

    def known(self, keys: Iterable[str]) -> set[str]:
        """Return those of `keys` that are stored."""
        with self._explained():
            kept = {row[0] for row in self._db.execute("SELECT id FROM measurement")}
        return kept.intersection(keys)

    def put(self, job: str, found: Iterable[tuple[str, Measurement]]) -> None:
        """Store measurements in one transaction; it is written to the file when this returns."""
        rows = [
            (
                *(key, job, len(m.energy), _bytes(m.energy), _bytes(m.variables)),
                *(m.delta_sq, m.steps, int(m.finite)),
            )
            for key, m in found
        ]
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")
        self._written = True

    def __enter__(self) -> Results:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; remove it if this run created it and it holds no measurement."""
        self._db.close()
        if self._new and not self._written and self.path is not None:
            for suffix in ("", "-wal", "-shm", "-journal"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Generator[None]:
        """Turn SQLite's errors into one line; committed measurements are unaffected."""
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            what, todo = f"cannot be used ({text})", "Choose another `out`"
            if "full" in text:
                what = "the disk is full; the measurements so far are kept"
                todo = "Free disk space and run the same command again"
            elif "readonly" in text or "unable to open" in text or "disk I/O" in text:
                what = f"cannot be written ({text})"
            elif isinstance(error, sqlite3.DatabaseError) and "not a database" in text:
                what, todo = "is not a store of measurements", "Remove it, or choose another `out`"
            elif "locked" in text:
                what, todo = "is in use by another run", "Wait for it, or choose another `out`"
            raise InputError(what, where=str(self.path), todo=todo) from error


def _bytes(array: NDArray[np.float64]) -> bytes:
    return np.ascontiguousarray(array, "<f8").tobytes()


def _floats(blob: bytes) -> NDArray[np.float64]:
    return np.frombuffer(blob, "<f8").astype(np.float64)
