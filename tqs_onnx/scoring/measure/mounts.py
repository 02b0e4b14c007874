"""Detects network file systems, on which SQLite's write-ahead log is not safe.

The log's index is shared memory in a mapped file, and machines that mount the same folder do not share it (SQLite's
documentation, "Write-Ahead Logging").
"""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
#: Names of file systems as Linux lists them; a FUSE file system is named after its program.
_NETWORK = frozenset(
    {
        *(
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "coda",
            "gfs2",
            "glusterfs",
            "gpfs",
            "lustre",
            "ncpfs",
            "nfs",
        ),
        *("nfs4", "ocfs2", "orangefs", "pvfs2", "s3fs", "smb3", "smbfs", "sshfs"),
    }
)


def mounts() -> str:
    """Return Linux's table of mounted file systems; empty on other systems."""
    try:
        return _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def network_filesystem(folder: Path, table: str) -> str | None:
    """Return the name of the network file system that contains a folder, or None.

    Parameters
    ----------
    folder : Path
    table : str
        In the format of ``/proc/self/mountinfo`` (proc(5)); if several are mounted in one place, the last is visible.
    """
    place, found = folder.resolve(), ("", "")
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(" "), right.split(" ")
        if len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        if place.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kinds[0])
    kind = found[1]
    return kind if kind.removeprefix("fuse.") in _NETWORK else None
