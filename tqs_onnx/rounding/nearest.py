"""Plain rounding to nearest ("rtn") on the grids of the files written here: the paper's Q_b, without clipping.

The largest value of a row gets the largest level; one bit is sign · mean size. NumPy only; deterministic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_passes.grid import (
    Codes,
    Grid,
    as_rows,
    broadcast_shape,
    fit_scales,
    quantize,
    round_levels,
    scales_fit_half,
)
from tqs_passes.plan import Assignment
from tqs_passes.row_grid import quantize_rows


def nearest_codes(values: NDArray[Any], a: Assignment) -> Codes:
    """Return plain rounding to nearest ("rtn"): the largest value of a row gets the largest level."""
    w = np.ascontiguousarray(values).astype(np.float32)
    assert a.grid is not None
    if a.rows and a.axis is not None:
        return quantize_rows(w, a.rows, a.axis, a.grid, half_scales=a.half_scales, rule=_peak_scales)
    bits = a.tier.bits
    if bits == 1:  # sign · mean size, as "mse" has it
        return quantize(w, bits, a.axis, a.grid, half_scales=a.half_scales)
    shaped = _peak_scales(as_rows(w, a.axis), bits, a.grid).reshape(broadcast_shape(w.shape, a.axis))
    stored = shaped.astype(np.float16) if a.half_scales and scales_fit_half(shaped) else shaped
    x: NDArray[np.float32] = np.divide(w, stored.astype(np.float32))
    levels = round_levels(x, bits, a.grid).astype(np.int8)
    return Codes(levels, stored, bits, a.grid, a.axis)


def _peak_scales(rows: NDArray[np.float32], bits: int, grid: Grid) -> NDArray[np.float32]:
    """Return scales ``[channels]`` that give the largest value of a row the largest level."""
    if bits == 1:  # sign · mean size, as "mse" has it
        return fit_scales(rows, bits, grid)
    top = (1 << bits) - 1 if grid is Grid.MIDRISE else (1 << (bits - 1)) - 1
    peak = np.max(np.abs(rows), axis=1)
    scales: NDArray[np.float32] = np.maximum(peak / np.float32(top), np.finfo(np.float16).tiny).astype(
        np.float32
    )
    return scales
