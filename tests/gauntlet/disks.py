"""Run a command on disks that are too small, then again with room: the second run writes what it would have written.

    unshare --user --map-root-user --mount python -m tests.gauntlet.disks FOLDER N COMMAND…

mounts a tmpfs on FOLDER, runs `tqs COMMAND…` on it once with room, then on disks of 1/N, 2/N, … of the size of what it
wrote until it fits, and prints a JSON object. In COMMAND, {} stands for FOLDER, where the command writes
everything. The namespace makes the tmpfs private to this process; where users may open one, no privilege is needed.

On a disk that is too small a command ends with code 2 and one line that says so.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.gauntlet.kills import beside, cleared, contents

#: Mounts of this size hold every output.
ROOM = 64 << 20
_PAGE = 4096
#: A command needs less room than this many times what it leaves: a log, and the old file beside the new one.
_MOST = 8


@dataclass
class Filled:
    """What became of the runs: what the command wrote, in bytes, how many disks were too small, and what it said."""

    used: int = 0
    full: int = 0
    lines: set[str] = field(default_factory=set)
    bad: list[str] = field(default_factory=list)


def mounted(folder: Path, size: int, *, again: bool = False) -> None:
    """Mount a tmpfs of a size on a folder, or change the size of the one there."""
    options = f"remount,size={size}" if again else f"size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def ran(command: list[str]) -> tuple[int, str]:
    """Run a command in a fork; return its status and what it says on stderr."""
    from tqs_onnx.cli.main import main

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(write, 2)
        os.close(write)
        code = 70
        try:
            code = main(command)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def filled(folder: Path, n: int, command: list[str]) -> Filled:
    """Return what becomes of a command on disks too small for it.

    Parameters
    ----------
    folder : Path
        Where the tmpfs is mounted; inputs lie elsewhere, and everything is written into it.
    n : int
        Disks of a multiple of 1/n of what the command writes.
    command : list of str
        Arguments of `tqs`.
    """
    importlib.import_module(f"tqs_onnx.cli.{command[0]}")  # once, here, and not in every fork
    mounted(folder, ROOM)
    status, said = ran(command)
    if status:
        return Filled(bad=[f"with room it ends with {status}: {said}"])
    expected, everything = contents(folder), beside(folder)
    result = Filled(used=ROOM - shutil.disk_usage(folder).free)
    for i in range(1, _MOST * n + 1):
        for path in folder.iterdir():
            cleared(path)
        size = max(1, result.used * i // n // _PAGE) * _PAGE
        mounted(folder, size, again=True)
        status, said = ran(command)
        mounted(folder, ROOM, again=True)
        errors = [line for line in said.splitlines() if line.startswith("tqs: error:")]
        if status == 0 and contents(folder) == expected:
            return result
        if status == 2 and len(errors) == 1 and ": the disk is full" in errors[0]:
            result.full += 1
            result.lines |= set(errors)
        else:
            result.bad.append(f"{size} bytes: it ends with {status}: {said[-400:]}")
        status, said = ran(command)
        if status == 2 and contents(folder) == expected:
            continue  # complete already: to say so is right
        if status or contents(folder) != expected:
            result.bad.append(f"{size} bytes: run again it ends with {status}: {said[-400:]}")
        if left := beside(folder) ^ everything:
            result.bad.append(f"{size} bytes: {sorted(left)} are left or lacking")
    result.bad.append(f"it does not fit into {_MOST} times what it writes")
    return result


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = filled(place, int(sys.argv[2]), [word.replace("{}", str(place)) for word in sys.argv[3:]])
    print(json.dumps(asdict(found), default=sorted))
