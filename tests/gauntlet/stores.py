"""Damage to a store of measurements: flipped bytes, and edits by hand."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

EDITS = (
    "UPDATE measurement SET steps = steps - 1",
    "UPDATE measurement SET delta_sq = delta_sq * 2",
    "UPDATE measurement SET delta_sq = 'much'",
    "UPDATE measurement SET finite = 0",
    "UPDATE measurement SET contexts = 1",
    "UPDATE measurement SET variables = energy",
    "UPDATE measurement SET energy = x'00'",
    "UPDATE measurement SET energy = NULL WHERE 0",
    "UPDATE measurement SET id = 'x' WHERE id = (SELECT max(id) FROM measurement)",
    "UPDATE session SET noise = 1e9",
    "UPDATE session SET at = x'00'",
    "UPDATE session SET rounding = 'none'",
    "UPDATE job SET frame = replace(frame, '1', '2')",
    "UPDATE job SET frame = '{}'",
    "UPDATE job SET frame = cast(x'ff' AS TEXT)",
    "DELETE FROM measurement WHERE id > '8'",
    "DELETE FROM session",
    "DELETE FROM job",
)


def edited(store: Path, statement: str) -> None:
    """Change a store by hand."""
    database = sqlite3.connect(store)
    with database:
        database.execute(statement)
    database.close()


def flipped(store: Path, rng: random.Random) -> None:
    """Flip one to four bits of a store."""
    raw = bytearray(store.read_bytes())
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    store.write_bytes(raw)


def truncated(store: Path, rng: random.Random) -> None:
    """Cut a store somewhere."""
    raw = store.read_bytes()
    store.write_bytes(raw[: rng.randrange(len(raw))])


def blanked(store: Path, rng: random.Random) -> None:
    """Fill a page of a store with zeros, as a lost write does."""
    raw = bytearray(store.read_bytes())
    at = rng.randrange(0, len(raw), 4096)
    raw[at : at + 4096] = bytes(len(raw[at : at + 4096]))
    store.write_bytes(raw)
