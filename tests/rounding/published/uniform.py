"""Uniform grids of the published programs: the scale and zero point of a row, and the nearest code of a value.

With b bits, L = 2^b - 1, lo = min(row, 0), hi = max(row, 0) and codes rounded half to even ::

    unsigned (GPTQ, QEP)    value = s · (q - z),  q ∈ {0, …, L}
        asymmetric          s = (hi - lo) / L,            z = round(-lo / s)
        symmetric           hi = max(-lo, hi), lo = -hi only if the row has a negative value; z = 2^(b-1)
        all-zero row        lo = -1, hi = 1
    signed (GPTAQ, and the files written here)
        symmetric           s = max(max|row|, 1e-5) / (2^(b-1) - 1),  q ∈ {-2^(b-1), …, 2^(b-1) - 1},  z = 0
        asymmetric          as unsigned, with hi - lo at least 1e-5

A symmetric grid of one bit does not exist in this form; its value is s · q, q ∈ {-1, 1}, s = mean|row|, z = 0.

MSE clipping: lo and hi are multiplied by 1, 0.99, …, 0.21; the first with the least sum of |error|^2.4 is kept.
NumPy only; deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tqs_passes.errors import InputError

Matrix = NDArray[np.float64]
GridName = Literal["unsigned", "signed"]

_LEAST_PEAK = 1e-5
_SHRINKS = tuple(1 - i / 100 for i in range(80))
_NORM = 2.4


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A rounded matrix.

    Parameters
    ----------
    weights : float64 array [out, in]
        De-quantised: scales · (codes - zero points).
    codes : int32 array [out, in]
    scales : float64 array [out, groups]
        One group if the rows are not grouped.
    zero_points : int32 array [out, groups]
    groups : int64 array [in]
        Group of each column.
    damp : float or None
        The damping used; None if H was not used.
    fallback : str
        Why the matrix was rounded to nearest instead; empty if it was not.
    """

    weights: Matrix
    codes: NDArray[np.int32]
    scales: Matrix
    zero_points: NDArray[np.int32]
    groups: NDArray[np.int64]
    damp: float | None = None
    fallback: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Scale and zero point of every row, float64 [out]; zero points hold integers."""

    scale: Matrix
    zero: Matrix


@dataclass(frozen=True, slots=True)
class UniformGrid:
    """A grid (see the module docstring).

    Parameters
    ----------
    bits : int
        1 to 8.
    symmetric : bool
    name : {"unsigned", "signed"}
    mse : bool
        Clip for the least error.

    Raises
    ------
    InputError
        `bits` or `name` is not one of these.
    """

    bits: int
    symmetric: bool = True
    name: GridName = "signed"
    mse: bool = False

    def __post_init__(self) -> None:
        """Validate the width and the name."""
        if not 1 <= self.bits <= 8:
            raise InputError(f"bits must be 1 to 8, not {self.bits}")
        if self.name not in ("unsigned", "signed"):
            raise InputError(f"unknown grid {self.name!r}", todo="Choose unsigned or signed")

    @property
    def _is_sign(self) -> bool:
        return self.bits == 1 and self.symmetric

    @property
    def _is_signed(self) -> bool:
        return self.name == "signed" and self.symmetric

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        if self._is_sign:
            return -1, 1
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self._is_signed else (0, 2 * half - 1)

    def fit(self, rows: Matrix) -> Parameters:
        """Return the parameters of rows [out, values]."""
        if self._is_sign:
            size = np.abs(rows).mean(axis=1)
            return Parameters(np.where(size > 0, size, _LEAST_PEAK), np.zeros(len(rows)))
        lo = np.minimum(rows.min(axis=1), 0.0)
        hi = np.maximum(rows.max(axis=1), 0.0)
        if self._is_signed:
            hi = np.maximum(np.maximum(-lo, hi), _LEAST_PEAK)
        else:
            if self.symmetric:
                hi = np.maximum(-lo, hi)
                lo = np.where(lo < 0, -hi, lo)
            flat = (lo == 0) & (hi == 0)
            lo, hi = np.where(flat, -1.0, lo), np.where(flat, 1.0, hi)
        best = self._at(lo, hi, 1.0)
        if not self.mse:
            return best
        least = np.full(len(rows), np.inf)
        for shrink in _SHRINKS:
            trial = self._at(lo, hi, shrink)
            values = self.decode(self.nearest(rows, trial.scale[:, None], trial.zero[:, None]), trial)
            error = np.sum(np.abs(values - rows) ** _NORM, axis=1)
            better = error < least
            least = np.where(better, error, least)
            best = Parameters(
                np.where(better, trial.scale, best.scale), np.where(better, trial.zero, best.zero)
            )
        return best

    def _at(self, lo: Matrix, hi: Matrix, shrink: float) -> Parameters:
        half = 1 << (self.bits - 1)
        if self._is_signed:
            return Parameters(shrink * hi / (half - 1), np.zeros(len(hi)))
        span = shrink * hi - shrink * lo
        if self.name == "signed":
            span = np.maximum(span, _LEAST_PEAK)
        scale = span / (2 * half - 1)
        zero = np.full(len(hi), float(half)) if self.symmetric else np.rint(-shrink * lo / scale)
        return Parameters(scale, zero)

    def nearest(self, values: Matrix, scale: Matrix, zero: Matrix) -> Matrix:
        """Return the codes nearest to `values`, as integers in float64; the arguments broadcast."""
        if self._is_sign:
            return np.where(values >= 0, 1.0, -1.0)
        low, high = self.bounds
        return np.clip(np.rint(values / scale) + zero, low, high)

    @staticmethod
    def decode(codes: Matrix, parameters: Parameters) -> Matrix:
        """Return scale · (code - zero point) of codes [out, values]."""
        return parameters.scale[:, None] * (codes - parameters.zero[:, None])
