"""Read an HDF5 file in a child process first: a damaged one can crash HDF5, or keep it in C for ever.

The child visits every object, reads its attributes, and the first and the last value of every dataset. A chunk between
them that is damaged is met only later, in this process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tqs_passes.errors import InputError

#: CPU time and wall time that visiting a file may take, in seconds; sound files take fractions of one.
CPU_S = 10
WALL_S = 120
LIMITS = """
import sys
if sys.platform != "win32":
    import resource
    seconds = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""
VISIT = """
import h5py
def visit(name, item):
    for key in item.attrs:
        item.attrs[key]
    if isinstance(item, h5py.Dataset) and item.shape is not None and item.size and not item.external:
        item[(0,) * item.ndim], item[(-1,) * item.ndim]
try:
    with h5py.File(sys.argv[1], "r") as file:
        for key in file.attrs:
            file.attrs[key]
        file.visititems(visit)
except Exception:
    pass  # whoever reads the file meets it again, and says it
"""


_DAMAGED = "Get the file again: it is damaged"


def require_readable(path: Path) -> None:
    """Refuse an HDF5 file that crashes HDF5 or that it reads without end; any other fault is left to the reader.

    Raises
    ------
    InputError
        The child process crashed, was ended, or did not end in time.
    """
    command = [sys.executable, "-c", LIMITS + VISIT, str(path.resolve()), str(CPU_S)]
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=WALL_S
        )
    except subprocess.TimeoutExpired as error:
        what = f"HDF5 waited for the disk for more than {WALL_S} s"
        raise InputError(what, where=str(path), todo="Copy it to a disk that answers") from error
    if done.returncode < 0:
        what, todo = _told(signal.Signals(-done.returncode))
        raise InputError(what, where=str(path), todo=todo)


def _told(ended: signal.Signals) -> tuple[str, str]:
    """Return what a signal that ended the child says of the file, and what to do."""
    if ended.name == "SIGXCPU":
        return "HDF5 does not come to an end of it", _DAMAGED
    if ended.name == "SIGKILL":
        return "the system ended the process that read it, as it does when memory is short", "Free memory"
    return f"crashes HDF5 ({ended.name})", _DAMAGED
