"""Row tiers: channels of one weight at different widths.

Row tiers are written as a string of digits, the width of every channel in order, e.g. ``"33332444"``. Channels of one
width form a *part*, which is packed by itself; scales, one per channel, keep the order of the weight. A weight has one
grid. Widths without that grid (mid-rise above 4 bits, signed at 1) use the one they have.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_passes.grids.grid import (
    Codes,
    Grid,
    Scales,
    as_rows,
    broadcast_shape,
    from_rows,
    grids_for,
)
from tqs_passes.grids.nearest import scaled_levels
from tqs_passes.grids.scales import FreeRounding, scales_of, stored_scales
from tqs_passes.tier import Tier

#: Largest number of parts of a weight.
MOST_WIDTHS = 4


@dataclass(frozen=True, slots=True, eq=False)
class RowPart:
    """The channels of one width.

    Parameters
    ----------
    bits : int
    grid : Grid
        Grid on which they are rounded.
    channels : int array
        Indices of the channels, ascending.
    """

    bits: int
    grid: Grid
    channels: NDArray[np.intp]


def widths_of(rows: str) -> NDArray[np.uint8]:
    """Return the width of every channel, uint8 ``[channels]``."""
    return np.frombuffer(rows.encode("ascii"), np.uint8) - np.uint8(ord("0"))


def written(widths: NDArray[np.integer]) -> str:
    """Return widths as digits: the inverse of `widths_of`."""
    return (widths.astype(np.uint8) + np.uint8(ord("0"))).tobytes().decode("ascii")


@functools.lru_cache(maxsize=1 << 14)
def distinct_widths(rows: str) -> tuple[int, ...]:
    """Return the distinct widths, ascending."""
    return tuple(sorted(int(digit) for digit in set(rows)))


def nearest_tier(rows: str) -> Tier:
    """Return the integer tier nearest to the mean width, halves rounded up; a weight with row tiers is listed as it."""
    n = len(rows)
    total = sum(int(width) * count for width, count in Counter(rows).items())
    return Tier(f"INT{(2 * total + n) // (2 * n)}")


def part_grid(grid: Grid, bits: int) -> Grid:
    """Return the grid of a part: the weight's grid if this width has it, else the one it has."""
    return grid if grid in grids_for(bits) else grids_for(bits)[0]


def parts_of(rows: str, grid: Grid) -> tuple[RowPart, ...]:
    """Return the parts of a weight, narrowest first."""
    widths = widths_of(rows)
    return tuple(
        RowPart(int(bits), part_grid(grid, int(bits)), np.flatnonzero(widths == bits))
        for bits in np.unique(widths)
    )


def order_of(parts: tuple[RowPart, ...]) -> NDArray[np.unsignedinteger]:
    """Return the position of each channel in the concatenated parts, in the smallest unsigned type."""
    behind = np.concatenate([part.channels for part in parts])
    order = np.argsort(behind, kind="stable")
    return order.astype(np.min_scalar_type(len(behind) - 1))


def codes_of_part(codes: Codes, part: RowPart) -> Codes:
    """Return the codes of one part, its channels in order."""
    axis = codes.axis
    assert axis is not None
    if codes.is_blank:
        shape = (*codes.levels.shape[:axis], len(part.channels), *codes.levels.shape[axis + 1 :])
        levels = np.broadcast_to(np.int8(0), shape)
    else:
        levels = np.take(codes.levels, part.channels, axis)
    scales = codes.scales.take(part.channels, axis)
    return Codes(levels, scales, part.bits, part.grid, axis)


def quantize_rows(
    w: NDArray[np.float32],
    rows: str,
    axis: int,
    grid: Grid,
    *,
    half_scales: bool = False,
    rounding: FreeRounding = "mse",
    known: Scales | None = None,
) -> Codes:
    """Round every channel to the nearest levels of its own width.

    Parameters
    ----------
    w : float32 array
        Finite values.
    rows : str
        Width of each channel along `axis`.
    axis : int
    grid : Grid
    half_scales : bool
        Store scales as float16 (levels are chosen for the stored scale).
    rounding : {"rtn", "mse", "unbiased"}
        Rule that chooses the scales (see `tqs_passes.grids.scales`).
    known : float16 or float32 array, optional
        The scales of codes that this function made with the same arguments.
    """
    values = as_rows(w, axis)
    parts = parts_of(rows, grid)
    if known is None:
        scales = np.empty(len(values), np.float32)
        for part in parts:
            scales[part.channels] = scales_of(values[part.channels], part.bits, part.grid, rounding)
        known = stored_scales(values, scales, half=half_scales)
    stored = known.reshape(-1)
    levels = np.empty(values.shape, np.int8)
    for part in parts:
        levels[part.channels] = scaled_levels(
            values[part.channels], stored[part.channels], part.bits, part.grid
        )
    shaped = stored.reshape(broadcast_shape(w.shape, axis))
    return Codes(from_rows(levels, w.shape, axis), shaped, parts[-1].bits, grid, axis, rows)


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """The level ranges of values with different widths.

    Parameters
    ----------
    low, high : float32 array
        Smallest and largest level of each value; they broadcast against the rounded values.
    midrise : bool array
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    midrise: NDArray[np.bool_]

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the level nearest to each x (already divided by its scale), as `round_levels` does."""
        odd = np.floor(x * np.float32(0.5)) * np.float32(2) + np.float32(1)
        levels: NDArray[np.float32] = np.clip(np.where(self.midrise, odd, np.rint(x)), self.low, self.high)
        return levels


def limits_of(rows: str, grid: Grid) -> Limits:
    """Return the limits of every channel, arrays ``[channels]``."""
    widths = widths_of(rows)
    n = len(widths)
    low, high, midrise = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.bool_)
    for part in parts_of(rows, grid):
        odd = part.grid is Grid.MIDRISE
        top = (1 << part.bits) - 1 if odd else (1 << (part.bits - 1)) - 1
        low[part.channels] = -top if odd else -top - 1
        high[part.channels] = top
        midrise[part.channels] = odd
    return Limits(low, high, midrise)
