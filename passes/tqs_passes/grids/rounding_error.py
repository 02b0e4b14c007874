"""Compute the squared error of rounding a weight to a grid, or of casting it, without storing codes.

The error of a weight with up to `SAMPLED_ABOVE` values is exact. For a larger weight it is estimated: scales are
fitted to a sample of each channel that includes its outliers, and errors are measured on it
(`tqs_passes.grids.row_sample`). On normal and on heavy-tailed weights the estimate is within a few percent
(tests/passes/test_rounding_error.py). Deterministic. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tqs_passes.grids.grid import F32, Grid, as_groups, round_in_place
from tqs_passes.grids.row_sample import sampled
from tqs_passes.grids.scales import FreeRounding, scales_of, stored_scales

#: The errors of larger weights are estimated from a sample.
SAMPLED_ABOVE = 1 << 19
_STRATA = 1 << 17


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A weight rounded with one scale per channel, or with a single scale.

    Parameters
    ----------
    energies : float64 array ``[channels]``
        Squared error of each channel.
    scales : float16 or float32 array ``[channels]``
        Scales in their stored type.
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
        Number of values that each column represents; None: one each.
    """

    exact: NDArray[np.float64]
    single: NDArray[np.float32]
    weights: NDArray[np.float32] | None


@dataclass(slots=True, eq=False)
class Pricer:
    """Computes rounding errors of one weight.

    Parameters
    ----------
    values : array
        The weight, of a float type.
    dtype : numpy dtype
        Type that readers expect: decoded values are rounded to it.
    rounding : {"rtn", "mse", "unbiased"}
        Rule that chooses the scales.
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
        """Return the error and the scales of `quantize` with these arguments, for values decoded to `dtype`.

        An error is infinite when a level exceeds the largest float16. Results are cached. With `group`, errors and
        scales are per group and never estimated from a sample.
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
        levels = round_in_place(channels.single / step, bits, grid)
        with np.errstate(over="ignore"):
            decoded = (levels * step).astype(self.dtype)
            return Rounded(_energies(decoded, channels), stored)

    def error_of(self, change: Callable[[NDArray[np.generic]], NDArray[np.generic]]) -> float:
        """Return the squared error of a change to each value; infinite when a value leaves the type's range."""
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
