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


def require_readable(path: Path) -> None:
    """Refuse an HDF5 file that crashes HDF5 or that it reads without end; any other fault is left to the reader.

    Raises
    ------
    InputError
        The child process crashed, or did not end in time.
    """
    command = [sys.executable, "-c", LIMITS + VISIT, str(path.resolve()), str(CPU_S)]
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=WALL_S
        )
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else ""
    except subprocess.TimeoutExpired:
        how = "SIGXCPU"
    if how:
        endless = how in ("SIGXCPU", "SIGKILL")
        raise InputError(
            "HDF5 does not come to an end of it" if endless else f"crashes HDF5 ({how})",
            where=str(path),
            todo="Get the file again: it is damaged",
        )
