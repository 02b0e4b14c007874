"""Kill a command at every file-system event, then run it again: what it leaves must be what it would have written.

    python -m tests.gauntlet.kills FOLDER STEP OUT COMMAND…

runs `tqs COMMAND…` once undisturbed, then for every STEP-th event under FOLDER once killed there and once again, each
in a fork of this process, and prints a JSON object. An event is what Python announces by its audit hooks: a file
opened, renamed, linked or removed, a folder made or removed, a database connected.

After a kill, nothing may stand under OUT that is torn; after the second run OUT must hold the bytes of the undisturbed
run, and no other file.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_EVENTS = {
    *("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "sqlite3.connect"),
    *("shutil.copyfile", "shutil.rmtree", "tqs.exchange"),
}
#: Files that depend on the way there, not on the job.
_PRIVATE = {"sweep.sqlite", "sweep.sqlite-wal", "sweep.sqlite-shm"}
#: Files that contain times.
_TIMED = {"pareto.json", "pareto.csv"}


@dataclass
class Killed:
    """What became of the runs: `bad` lists every kill point whose second run did not restore the outputs."""

    events: int = 0
    kills: int = 0
    bad: list[str] = field(default_factory=list)


def watch(folder: Path, kill_at: int | None) -> list[int]:
    """Count the events under a folder of this process, and kill it at one of them; return the counter."""
    root, count = str(folder), [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and any(root in str(a) for a in arguments[:2]):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def forked(folder: Path, command: list[str], kill_at: int | None = None) -> tuple[int, int]:
    """Run a command in a fork; return its status (negative: the signal that ended it), and the events seen."""
    from tqs_onnx.cli.main import main

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if os.environ.get("GAUNTLET_STDERR") is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        count = watch(folder, kill_at)
        code = 70
        try:
            code = main(command)
        finally:
            os.write(write, str(count[0]).encode())
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        seen = int(stream.read() or 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen


def contents(out: Path) -> dict[str, str]:
    """Return the digest of every file under an output, by its relative name; claims are no part of it."""
    if out.is_file():
        return {out.name: _digest(out)}
    return {name: _digest(out / name) for name in sorted(_names(out))}


def _digest(path: Path) -> str:
    return "" if path.name in _TIMED else hashlib.sha256(path.read_bytes()).hexdigest()


def _names(out: Path) -> Iterator[str]:
    for path in out.rglob("*"):
        if path.is_file() and path.name not in _PRIVATE and ".tqs" not in path.parts:
            yield path.relative_to(out).as_posix()


def beside(folder: Path) -> set[str]:
    """Return every path under a folder."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.name not in _PRIVATE}


def cleared(out: Path) -> None:
    """Remove an output."""
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)


def _prepared(out: Path, there: bool) -> None:
    cleared(out)
    if there:
        out.mkdir()


def killed_at_every_event(
    folder: Path,
    out: Path,
    command: list[str],
    *,
    step: int = 1,
    first: int = 1,
    whole: bool = False,
    there: bool = False,
) -> Killed:
    """Return what becomes of a command that is killed at its events.

    Parameters
    ----------
    folder : Path
        Holds everything that the command reads and writes.
    out : Path
        What it writes.
    command : list of str
        Arguments of `tqs`.
    step, first : int
        Kill at every `step`-th event from the `first`.
    whole : bool
        The output appears at once: after a kill it is absent or complete.
    there : bool
        `out` is a folder that is there before.
    """
    importlib.import_module(f"tqs_onnx.cli.{command[0]}")  # once, here, and not in every fork
    inputs = beside(folder)
    _prepared(out, there)
    code, events = forked(folder, command)
    if code:
        return Killed(bad=[f"the undisturbed run ended with {code}"])
    expected, everything = contents(out), beside(folder)
    result = Killed(events=events)
    for at in range(first, events + 1, step):
        _prepared(out, there)
        result.kills += 1
        status, _ = forked(folder, command, at)
        if whole and contents(out) not in ({}, expected):
            result.bad.append(f"event {at}: {sorted(contents(out))} after the kill")
        if status != -signal.SIGKILL:
            result.bad.append(f"event {at}: it ended with {status} before it was killed")
        if contents(out) == expected and beside(folder) == everything:
            continue
        status, _ = forked(folder, command)
        if status == 2 and contents(out) == expected:
            status, _ = forked(folder, [*command, "--force"])  # complete already: to say so is right
        if status or contents(out) != expected:
            result.bad.append(f"event {at}: run again it ends with {status} and {sorted(contents(out))}")
        if left := beside(folder) - everything:
            result.bad.append(f"event {at}: {sorted(left)} are left")
    cleared(out)
    if gone := inputs - beside(folder):
        result.bad.append(f"inputs {sorted(gone)} are gone")
    return result


if __name__ == "__main__":
    found = killed_at_every_event(
        Path(sys.argv[1]),
        Path(sys.argv[3]),
        sys.argv[4:],
        step=int(sys.argv[2]),
        whole=sys.argv[4] in ("package", "emit"),
    )
    print(json.dumps(asdict(found)))
