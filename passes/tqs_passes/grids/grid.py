"""Uniform grids: the integers and scales that represent a weight, and the values they decode to.

A weight is treated as rows of values that share one scale: ``[channels, values]`` along a channel axis, or one row for
the whole tensor. With b bits a value v of a row is ::

    signed     v = s · q,   q ∈ {-2^(b-1), …, 2^(b-1) - 1}
    midrise    v = s · q,   q ∈ {±1, ±3, …, ±(2^b - 1)}        (b ≤ 4; b = 1 is sign · mean|w|)

The integers q are called *levels*; *codes* are their unsigned indices 0 … 2^b - 1. `tqs_passes.grids.scales` chooses
the scales. NumPy only; deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

F32 = np.float32
#: As they are stored.
Scales = NDArray[np.float16] | NDArray[np.float32]
G = TypeVar("G", bound=np.generic)
MIDRISE_MAX_BITS = 4


class Grid(StrEnum):
    """The set of levels that codes represent (see module docstring)."""

    SIGNED = "signed"
    MIDRISE = "midrise"


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Integer levels and scales of one weight.

    Parameters
    ----------
    levels : int8 array, shape of the weight
        Integer levels q.
    scales : float16 or float32 array
        One scale per channel, in a shape that broadcasts against `levels` (all axes 1 but the channel axis).
    bits : int
        Width b of a code, 1 to 8; with row tiers, the width of the widest channel.
    grid : Grid
    axis : int or None
        Channel axis; None when the whole tensor has one scale.
    rows : str
        Row tiers: the width of every channel, one digit each; empty when all have `bits` (see `row_tiers`).
    group : int
        Number of values of a matrix channel that share a scale; 0: all. With groups, scales have the shape that
        multiplies `grouped_shape`.
    """

    levels: NDArray[np.int8]
    scales: Scales
    bits: int
    grid: Grid
    axis: int | None
    rows: str = ""
    group: int = 0

    def decode(self) -> NDArray[np.float32]:
        """Return float32(levels) · float32(scales): exactly what the emitted graph computes, bit for bit."""
        return self.levels.astype(F32) * self.wide_scales()

    def wide_scales(self) -> NDArray[np.float32]:
        """Return the scale of every value: float32, in the shape of the weight."""
        scales, shape = self.scales.astype(F32), self.levels.shape
        if self.group and self.axis is not None:
            return np.broadcast_to(scales, grouped_shape(shape, self.axis, self.group)).reshape(shape)
        return np.broadcast_to(scales, shape)

    @property
    def is_blank(self) -> bool:
        """Whether the levels are one value broadcast without storage: a placeholder used to measure encoded bytes."""
        return self.levels.size > 1 and not any(self.levels.strides)

    def unsigned(self) -> NDArray[np.uint8]:
        """Return the codes 0 … 2^b - 1, uint8, flat in C order."""
        flat = self.levels.reshape(-1).astype(np.int16)
        if self.grid is Grid.MIDRISE:
            return ((flat + ((1 << self.bits) - 1)) >> 1).astype(np.uint8)
        return (flat + (1 << (self.bits - 1))).astype(np.uint8)


def grids_for(bits: int) -> tuple[Grid, ...]:
    """Return the grids worth trying at a width: mid-rise has less error only at few bits."""
    if bits == 1:
        return (Grid.MIDRISE,)
    return (Grid.SIGNED, Grid.MIDRISE) if bits <= MIDRISE_MAX_BITS else (Grid.SIGNED,)


def round_levels(x: NDArray[np.float32], bits: int, grid: Grid) -> NDArray[np.float32]:
    """Return the level nearest to each x (already divided by its scale); ties go to the even level index."""
    return round_in_place(x.copy(), bits, grid)


def round_in_place(x: NDArray[np.float32], bits: int, grid: Grid) -> NDArray[np.float32]:
    """Round as `round_levels` does, and return the array itself: another one takes as long as the rounding."""
    if grid is Grid.MIDRISE:
        top = F32((1 << bits) - 1)
        x *= F32(0.5)
        np.floor(x, out=x)
        x *= F32(2.0)
        x += F32(1.0)
        return _between(x, -top, top)
    half = 1 << (bits - 1)
    return _between(np.rint(x, out=x), F32(-half), F32(half - 1))


def _between(q: NDArray[np.float32], low: np.float32, high: np.float32) -> NDArray[np.float32]:
    """Clip in place; `np.clip` takes several times as long for a column of a matrix."""
    np.maximum(q, low, out=q)
    return np.minimum(q, high, out=q)


def as_rows(w: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """Return `w` as float32 ``[channels, values]``, one row per scale."""
    if axis is None:
        return w.reshape(1, -1)
    return np.ascontiguousarray(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1))


def grouped_shape(shape: tuple[int, ...], axis: int, group: int) -> tuple[int, ...]:
    """Return the shape of a weight whose channels are split into groups along an axis of their own.

    With channels along axis 1 a weight may have further axes, which the groups do not split.

    >>> grouped_shape((64, 10), 1, 32), grouped_shape((10, 64), 0, 32), grouped_shape((64, 10, 3), 1, 32)
    ((2, 32, 10), (10, 2, 32), (2, 32, 10, 3))
    """
    if axis == 0:
        rows, columns = shape
        return (rows, columns // group, group)
    return (shape[0] // group, group, *shape[1:])


def as_groups(w: NDArray[G], axis: int, group: int) -> NDArray[G]:
    """Return a weight as ``[groups, values]``, one row per scale, in the order of the scales."""
    seen = w.reshape(grouped_shape(w.shape, axis, group))
    n_scales = math.prod(broadcast_shape(w.shape, axis, group))
    return np.ascontiguousarray(seen if axis == 0 else np.moveaxis(seen, 1, 2)).reshape(n_scales, -1)


def from_groups(levels: NDArray[np.int8], shape: tuple[int, ...], axis: int, group: int) -> NDArray[np.int8]:
    """Return levels ``[groups, values]`` in the shape of the weight: the inverse of `as_groups`."""
    split = grouped_shape(shape, axis, group)
    if axis == 0:
        return np.ascontiguousarray(levels).reshape(shape)
    seen = np.moveaxis(levels.reshape(split[0], split[2], group, *split[3:]), 2, 1)
    return np.ascontiguousarray(seen).reshape(shape)


def broadcast_shape(shape: tuple[int, ...], axis: int | None, group: int = 0) -> tuple[int, ...]:
    """Return the shape of scales that multiply a weight of `shape`, or its `grouped_shape` when it has groups."""
    if axis is None:
        return ()
    if group:
        split = grouped_shape(shape, axis, group)
        return (*split[:2], 1) if axis == 0 else (split[0], 1, split[2], *(1 for _ in split[3:]))
    return tuple(d if i == axis else 1 for i, d in enumerate(shape))


def from_rows(levels: NDArray[np.int8], shape: tuple[int, ...], axis: int) -> NDArray[np.int8]:
    """Return levels ``[channels, values]`` in the shape of the weight: the inverse of `as_rows`."""
    moved = (shape[axis], *(d for i, d in enumerate(shape) if i != axis))
    return np.ascontiguousarray(np.moveaxis(levels.reshape(moved), 0, axis))


def rtn(w: NDArray[np.float32], bits: int, axis: int | None) -> NDArray[np.float32]:
    """Return plain symmetric b-bit round-to-nearest without clipping: the paper's Q_b (A.4), float32.

    Scale = max|row| / (2^(b-1) - 1); at b = 1 sign · mean|row|.
    """
    rows = as_rows(w, axis)
    if bits == 1:
        sizes: NDArray[np.float32] = np.abs(rows).mean(axis=1, dtype=F32, keepdims=True)
        out: NDArray[np.float32] = np.where(rows >= 0, sizes, -sizes)
    else:
        scale = np.max(np.abs(rows), axis=1, keepdims=True) / F32((1 << (bits - 1)) - 1)
        scale = np.where(scale > 0, scale, F32(1)).astype(F32)
        out = round_in_place(rows / scale, bits, Grid.SIGNED) * scale
    if axis is None:
        return out.reshape(w.shape)
    moved = (w.shape[axis], *(d for i, d in enumerate(w.shape) if i != axis))
    return np.ascontiguousarray(np.moveaxis(out.reshape(moved), 0, axis))
