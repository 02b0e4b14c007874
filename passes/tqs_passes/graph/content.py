"""Inspect a stored tensor's values without loading them: samples first, whole tensors in blocks when needed.

This module handles arrays only, no ONNX graph; of a memory-mapped array it reads only the parts it inspects.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SAMPLE = 4096
_BLOCK = 1 << 20
_ROWS = 4

Array = NDArray[np.generic]


def as_float(array: Array) -> NDArray[np.float64]:
    """Return values of any float type as float64."""
    with np.errstate(all="ignore"):
        return np.asarray(array, dtype=np.float64)


def few_values(array: Array, most: int = 2) -> tuple[float, ...] | None:
    """Return the distinct values in ascending order; None when there are more than `most`, or a NaN.

    The first and last 4096 values decide almost every case; only the remaining tensors are read completely.
    """
    flat = array.reshape(-1)
    seen: set[float] = set()
    for block in (flat[:_SAMPLE], flat[-_SAMPLE:]):
        seen.update(np.unique(as_float(block)).tolist())
        if len(seen) > most or any(np.isnan(v) for v in seen):
            return None
    for start in range(_SAMPLE, flat.size - _SAMPLE, _BLOCK):
        seen.update(np.unique(as_float(flat[start : start + _BLOCK])).tolist())
        if len(seen) > most or any(np.isnan(v) for v in seen):
            return None
    return tuple(sorted(seen))


def wide_axes(shape: tuple[int, ...]) -> int:
    """Return the number of axes longer than one."""
    return sum(dim > 1 for dim in shape)


def is_timescale(array: Array) -> bool:
    """Return whether values lie along one axis, are positive, and strictly rise or fall, as in RoPE."""
    if wide_axes(array.shape) != 1 or array.size < 2 or array.size > _SAMPLE:
        return False
    values = as_float(array.reshape(-1))
    with np.errstate(all="ignore"):
        rises = np.diff(values)
    return bool(
        np.all(values > 0) and (np.all(rises > 0) or np.all(rises < 0)) and np.all(np.isfinite(values))
    )


def is_sinusoid(array: Array) -> bool:
    """Return whether a table [position, channel] holds sines and cosines of position times a frequency.

    The test uses rows 0 to 3: row 0 is 0 or 1 exactly, and cos 2a = 2 cos² a − 1, sin 2a = 2 sin a cos a,
    sin 3a = 3 sin a − 4 sin³ a, cos 3a = 4 cos³ a − 3 cos a hold in every channel to the type's precision.
    """
    wide = tuple(dim for dim in array.shape if dim > 1)
    if len(wide) != 2 or wide[0] < _ROWS:
        return False
    rows = as_float(array.reshape(wide)[:_ROWS])
    if not np.all(np.isfinite(rows)) or np.max(np.abs(rows)) > 1.01 or np.all(rows == rows[0]):
        return False
    tolerance = 1e-3 if array.dtype.itemsize >= 4 else 3e-2
    cosine = rows[0] == 1.0
    if not np.all(cosine | (rows[0] == 0.0)):
        return False
    one, two, three = rows[1], rows[2], rows[3]
    twice = np.where(cosine, two - (2 * one**2 - 1), two**2 - 4 * one**2 * (1 - one**2))
    thrice = np.where(cosine, three - (4 * one**3 - 3 * one), three - (3 * one - 4 * one**3))
    return bool(np.max(np.abs(twice)) <= tolerance and np.max(np.abs(thrice)) <= tolerance)


def is_unit_pairs(array: Array, least: int = 4) -> bool:
    """Return whether the last axis holds sines and cosines of the same angles, at least `least` of each.

    The layout may be halves (all sines, then all cosines), halves of each half or quarter, or alternating pairs;
    sin² + cos² = 1 must hold in every pair to the type's precision.
    """
    length = array.shape[-1] if array.ndim else 0
    if length < 2 * least or length % 2 or array.size < length:
        return False
    rows = as_float(array.reshape(-1, length)[:_ROWS])
    tolerance = 1e-4 if array.dtype.itemsize >= 4 else 3e-2
    inside = np.abs(rows) <= 1 + tolerance
    if not inside.all() or np.isin(rows, (-1.0, 0.0, 1.0)).all():  # NaN is not inside
        return False
    for n in (1, 2, 4, length // 2):
        if length % (2 * n) == 0:
            pairs = rows.reshape(len(rows), n, 2, length // (2 * n))
            if np.all(np.abs((pairs**2).sum(axis=2) - 1) <= tolerance):
                return True
    return False


def head(array: Array) -> bytes:
    """Return a digest of the first and last values: equal tensors have equal heads."""
    flat = array.reshape(-1)
    return hashlib.sha256(_raw(flat[:_SAMPLE]) + _raw(flat[-_SAMPLE:])).digest()


def digest(array: Array) -> bytes:
    """Return the SHA-256 of a tensor's values, read in blocks."""
    flat, sha = array.reshape(-1), hashlib.sha256()
    for start in range(0, flat.size, _BLOCK):
        sha.update(_raw(flat[start : start + _BLOCK]))
    return sha.digest()


def _raw(block: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(block).tobytes()
