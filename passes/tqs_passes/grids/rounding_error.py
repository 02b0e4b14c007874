"""What rounding a weight to a grid, or casting it, does to its values: squared errors, without keeping any codes.

Of a weight of up to `SAMPLED_ABOVE` values the error is exact. Of a larger one it is estimated: scales are fitted to,
and errors measured on, a sample of each channel that holds its outliers (see `tqs_passes.grids.row_sample`). On
normal and on heavy-tailed weights the estimate is within a few percent (tests/passes/test_rounding_error.py).
Deterministic. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tqs_passes.grids.grid import F32, Grid, as_groups, round_levels
from tqs_passes.grids.row_sample import sampled
from tqs_passes.grids.scales import FreeRounding, scales_of, stored_scales

#: Larger weights are priced by a sample.
SAMPLED_ABOVE = 1 << 19
_STRATA = 1 << 17


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A weight rounded with one scale per channel (or one in all).

    Parameters
    ----------
    energies : float64 array ``[channels]``
        Squared error of each channel.
    scales : float16 or float32 array ``[channels]``
        As they would be stored.
    """

    energies: NDArray[np.float64]
    scales: NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Channels:
    """Values of each channel, or a sample of them.

    Parameters
    ----------
    exact : float64 array ``[channels, values]``
    single : float32 array, same shape
    weights : float32 array ``[values]`` or None
        How many values each column stands for; None: one.
    """

    exact: NDArray[np.float64]
    single: NDArray[np.float32]
    weights: NDArray[np.float32] | None


@dataclass(slots=True, eq=False)
class Pricer:
    """Prices one weight.

    Parameters
    ----------
    values : array
        Of a float type.
    dtype : numpy dtype
        What readers expect: decoded values are rounded to it.
    rounding : {"rtn", "mse", "unbiased"}
        How scales are chosen.
    """

    values: NDArray[np.generic]
    dtype: np.dtype[np.generic]
    rounding: FreeRounding = "mse"
    _channels: dict[int | None, _Channels] = field(default_factory=dict[int | None, _Channels])
    _rounded: dict[tuple[int, int | None, Grid, bool, int], Rounded] = field(
        default_factory=dict[tuple[int, "int | None", Grid, bool, int], Rounded]
    )

    @property
    def in_range(self) -> bool:
        """Whether every value is finite as a float32."""
        return bool(np.isfinite(self._of(None).single).all())

    def rounded(
        self, bits: int, axis: int | None, grid: Grid, *, half_scales: bool, group: int = 0
    ) -> Rounded:
        """Return what `quantize` with these arguments does to the values, decoded to `dtype`.

        An error may come out as infinite: a level above the largest float16. Asked again, the answer is remembered.
        With a group its errors and scales are those of the groups, and never of a sample.
        """
        key = (bits, axis, grid, half_scales, group)
        if key not in self._rounded:
            self._rounded[key] = self._round(*key)
        return self._rounded[key]

    def _round(self, bits: int, axis: int | None, grid: Grid, half_scales: bool, group: int) -> Rounded:
        channels = self._of(axis) if axis is None or not group else self._groups_of(axis, group)
        scales = scales_of(channels.single, bits, grid, self.rounding, channels.weights)
        stored = stored_scales(channels.single, scales, half=half_scales)
        step = stored.astype(F32)[:, None]
        levels = round_levels(channels.single / step, bits, grid)
        with np.errstate(over="ignore"):
            decoded = (levels * step).astype(self.dtype)
            return Rounded(_energies(decoded, channels), stored)

    def error_of(self, change: Callable[[NDArray[np.generic]], NDArray[np.generic]]) -> float:
        """Return the squared error of a change to each value; infinite where it takes one out of range."""
        channels = self._of(None)
        with np.errstate(over="ignore"):
            changed = change(channels.exact.astype(self.values.dtype))
            energy = float(np.sum(_energies(changed, channels)))
        return energy if np.isfinite(energy) else np.inf

    def _groups_of(self, axis: int, group: int) -> _Channels:
        exact = self.values.astype(np.float64)
        single = as_groups(exact.astype(F32), axis, group)
        return _Channels(as_groups(exact, axis, group), single, None)

    def _of(self, axis: int | None) -> _Channels:
        if axis not in self._channels:
            self._channels[axis] = _channels_of(self.values, axis)
        return self._channels[axis]


def _channels_of(values: NDArray[np.generic], axis: int | None) -> _Channels:
    rows = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0)
    rows = rows.reshape(len(rows), -1)
    weights = None
    if values.size > SAMPLED_ABOVE:
        rows, weights = sampled(rows, -(-_STRATA // len(rows)))
    exact = rows.astype(np.float64)
    with np.errstate(over="ignore"):
        return _Channels(exact, exact.astype(F32), weights)


def _energies(decoded: NDArray[np.generic], channels: _Channels) -> NDArray[np.float64]:
    residual = decoded.astype(np.float64) - channels.exact
    energies: NDArray[np.float64]
    if channels.weights is None:
        energies = np.einsum("ij,ij->i", residual, residual)
    else:
        energies = np.einsum("ij,ij,j->i", residual, residual, channels.weights)
    return energies
