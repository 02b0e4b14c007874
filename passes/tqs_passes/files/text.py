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
_BLOCK = 1 << 20


def read_text(path: Path, most: int = SMALL) -> str:
    """Return the text of a UTF-8 file of at most `most` bytes.

    Raises
    ------
    OSError
        The file cannot be read, or holds more.
    UnicodeDecodeError
        It is not UTF-8, or holds a byte of zero, which no text does.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "no file has a zero byte in its name", str(path))
    blocks: list[bytes] = []
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            blocks.append(block)
            if (zero := block.find(b"\0")) >= 0:
                raise UnicodeDecodeError("utf-8", block, zero, zero + 1, "no text holds it")
            if len(blocks) * _BLOCK > most:
                raise OSError(errno.EFBIG, f"it holds more than {most} bytes", str(path))
    return b"".join(blocks).decode("utf-8")
