"""Round a weight to nearest: choose scales from its values alone (`tqs_passes.grids.scales`), then nearest levels.

NumPy only; deterministic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqs_passes.grids.grid import (
    F32,
    Codes,
    Grid,
    Scales,
    as_groups,
    broadcast_shape,
    from_groups,
    grids_for,
    round_in_place,
)
from tqs_passes.grids.scales import BLOCK_VALUES, FreeRounding, blocks, scales_of, stored_scales


def quantize(
    w: NDArray[np.float32],
    bits: int,
    axis: int | None,
    grid: Grid,
    *,
    half_scales: bool = False,
    rounding: FreeRounding = "mse",
    group: int = 0,
    scales: Scales | None = None,
) -> Codes:
    """Round a weight to the nearest b-bit levels, with scales chosen from its values alone.

    Parameters
    ----------
    w : float32 array
        Finite values.
    bits : int
        1 to 8.
    axis : int or None
        Channel axis; None for one scale.
    grid : Grid
    half_scales : bool
        Store scales as float16 (levels are chosen for the stored scale).
    rounding : {"rtn", "mse", "unbiased"}
        Rule that chooses the scales (see `tqs_passes.grids.scales`).
    group : int
        Number of values of a matrix channel that share a scale; 0: all.
    scales : float16 or float32 array, optional
        The scales of codes that this function made with the same arguments: finding them takes most of its time.

    Raises
    ------
    ValueError
        `bits` is out of range, or the grid is mid-rise above 4 bits.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, not {bits}")
    if grid not in grids_for(bits):
        raise ValueError(f"there is no {grid} grid at {bits} bits")
    if group and axis is not None:
        parts = as_groups(w, axis, group)
        held = scales
        if held is None:
            held = stored_scales(parts, scales_of(parts, bits, grid, rounding), half=half_scales)
        held = held.reshape(-1)
        found = from_groups(scaled_levels(parts, held, bits, grid), w.shape, axis, group)
        shaped = held.reshape(broadcast_shape(w.shape, axis, group))
        return Codes(found, shaped, bits, grid, axis, group=group)
    rows = w.reshape(1, -1) if axis is None else np.moveaxis(w, axis, 0)
    stored = scales
    if stored is None:
        stored = stored_scales(rows, scales_of(rows, bits, grid, rounding), half=half_scales)
    stored = stored.reshape(-1)
    levels = np.empty(w.shape, np.int8)
    scaled_levels(
        rows, stored, bits, grid, levels.reshape(1, -1) if axis is None else np.moveaxis(levels, axis, 0)
    )
    return Codes(levels, stored.reshape(broadcast_shape(w.shape, axis)), bits, grid, axis)


def scaled_levels(
    rows: NDArray[np.float32],
    scales: Scales,
    bits: int,
    grid: Grid,
    out: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Return the levels nearest to rows ``[channels, ...]`` at these scales; write them into `out` when given."""
    levels = np.empty(rows.shape, np.int8) if out is None else out
    for block, values in blocks(rows):
        step = scales[block].astype(F32)[:, None]
        target = levels[block]
        if len(values) > 1:
            target[...] = round_in_place(values / step, bits, grid).reshape(target.shape)
            continue
        found = np.empty(values.shape, np.int8)
        for start in range(0, values.shape[1], BLOCK_VALUES):
            part = slice(start, start + BLOCK_VALUES)
            found[:, part] = round_in_place(values[:, part] / step, bits, grid)
        target[...] = found.reshape(target.shape)
    return levels
