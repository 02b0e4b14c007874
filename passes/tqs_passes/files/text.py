"""Read a small text file within a bound: `/dev/zero` and a file that grew by accident have no end.

Works for pipes, whose size is not known beforehand.
"""

from __future__ import annotations

import errno
from pathlib import Path

#: Bytes of a file that people write by hand: TOML, a marker.
SMALL = 16 << 20
#: Bytes of a file that a job writes: scores, plans, manifests.
LARGE = 512 << 20


def read_text(path: Path, most: int = SMALL) -> str:
    """Return the text of a UTF-8 file of at most `most` bytes.

    Raises
    ------
    OSError
        The file cannot be read, or holds more.
    UnicodeDecodeError
        It is not UTF-8.
    """
    with path.open("rb") as stream:
        raw = stream.read(most + 1)
    if len(raw) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes, which no such file has", str(path))
    return raw.decode("utf-8")
