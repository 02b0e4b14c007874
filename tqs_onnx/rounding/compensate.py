"""Rounds a matrix column by column and compensates the error in the remaining columns: the core of GPTQ and GPTAQ.

W is [out, in], X its inputs [in, n] in the rounded model, Xf the same inputs in the FP32 model, H = X Xᵀ,
D = (Xf - X) Xᵀ (both up to one common factor), U the upper Cholesky factor of (H + damping)⁻¹ = Uᵀ U. For column j ::

    e_j = (w_j - q_j) / U_jj
    w_k ← w_k - e_j U_jk            k > j                   (GPTQ: the exact minimum of ‖(W - Q) X‖² given q_j)
    w_k ← w_k + w_j P_jk            k > j                   (GPTAQ), P = α · triu₁(D Uᵀ) U

Columns are processed in blocks. Within a block the sums are applied before a column is rounded; to the columns after it
they are applied together at its end. For GPTAQ these later sums use q_j in place of w_j, as in the published results,
so its results depend on the block size; GPTQ's do not.

Sources: Frantar et al. 2023 (GPTQ), Li et al. 2025 (GPTAQ); implemented from the formulas. NumPy and LAPACK only;
deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dtrtri

from tqs_passes.errors import InputError

Matrix = NDArray[np.float64]

#: (column, its values [out], the matrix as corrected up to its block [out, in]) → (codes [out], decoded values [out]).
ColumnRounder = Callable[[int, Matrix, Matrix], tuple[Matrix, Matrix]]

#: Columns of a block that are corrected one by one; those after them by one product, which is several times faster.
_STRIP = 32
_MOST_DAMP = 1.0
_LEAST_RETRY = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """The upper Cholesky factor U of the damped inverse.

    Parameters
    ----------
    upper : float64 array [in, in]
    damp : float
        Damping that made the matrix positive definite, as a share of the mean of diag H.
    """

    upper: Matrix
    damp: float


def checked_matrix(W: Matrix) -> Matrix:
    """Return a float64 copy of a weight [out, in].

    Raises
    ------
    InputError
        The weight is not a matrix, is empty, or is not finite.
    """
    w = np.array(W, np.float64)
    if w.ndim != 2 or 0 in w.shape:
        raise InputError(f"the weight must be a matrix [out, in], not {list(w.shape)}")
    if not np.isfinite(w).all():
        raise InputError("the weight holds NaN or infinite values")
    return w


def checked_statistic(statistic: Matrix, n_in: int) -> Matrix:
    """Return a float64 copy of H or D, [in, in].

    Raises
    ------
    InputError
        Its shape does not fit the weight.
    """
    if statistic.shape != (n_in, n_in):
        raise InputError(f"H and D must be {[n_in, n_in]} for this weight, not {list(statistic.shape)}")
    return np.array(statistic, np.float64)


def factor(H: Matrix, damp: float) -> Factor | None:
    """Return U of H + damp · mean(diag H) · I; raise the damping tenfold, up to 1, while no factor exists.

    None if no factor exists at 1 either, or if H is not finite.
    """
    if not np.isfinite(H).all():
        return None
    mean = float(np.mean(np.diag(H)))
    tried = damp
    while True:
        upper = _upper(H + tried * mean * np.eye(len(H)))
        if upper is not None:
            return Factor(upper, tried)
        if tried >= _MOST_DAMP:
            return None
        tried = min(_MOST_DAMP, max(10 * tried, _LEAST_RETRY))


def _upper(A: Matrix) -> Matrix | None:
    """Return U with A⁻¹ = Uᵀ U; None if A is not positive definite.

    With J the reversal of rows, J A J = L Lᵀ gives A = (J L J) (J L J)ᵀ, so U = J L⁻¹ J.
    """
    lower, failed = dpotrf(A[::-1, ::-1], lower=1, clean=1)
    if failed:
        return None
    inverse, failed = dtrtri(lower, lower=1)
    upper = np.ascontiguousarray(inverse[::-1, ::-1])
    return None if failed or not np.isfinite(upper).all() else upper


def drift_correction(D: Matrix, upper: Matrix, alpha: float) -> Matrix:
    """Return P = α · triu₁(D Uᵀ) U, strictly upper triangular [in, in]."""
    corrected: Matrix = alpha * (np.triu(D @ upper.T, 1) @ upper)
    return corrected


def compensate(
    W: Matrix, upper: Matrix, P: Matrix | None, rounder: ColumnRounder, block_size: int
) -> tuple[Matrix, Matrix]:
    """Return (codes, decoded values), float64 [out, in].

    Parameters
    ----------
    W : float64 array [out, in]
        Columns in the order in which they are rounded.
    upper, P : float64 array [in, in]
        See the module docstring; P is None for GPTQ.
    rounder : callable
    block_size : int
        At least 1.
    """
    n_in = W.shape[1]
    lazy = np.array(W.T, order="C")  # a column of W is a row here: contiguous
    codes, decoded, errors = np.empty_like(lazy), np.empty_like(lazy), np.empty_like(lazy)
    for start in range(0, n_in, block_size):
        stop = min(start + block_size, n_in)
        block = lazy[start:stop].copy()
        for first in range(start, stop, _STRIP):
            last = min(first + _STRIP, stop)
            for j in range(first, last):
                w, e = block[j - start], errors[j]
                codes[j], decoded[j] = rounder(j, w, lazy.T)
                np.subtract(w, decoded[j], out=e)
                e /= upper[j, j]
                rest = block[j + 1 - start : last - start]
                rest -= upper[j, j + 1 : last, None] * e
                if P is not None:
                    rest += P[j, j + 1 : last, None] * w
            rest = block[last - start :]
            rest -= upper[first:last, last:stop].T @ errors[first:last]
            if P is not None:
                rest += P[first:last, last:stop].T @ block[first - start : last - start]
        lazy[stop:] -= upper[start:stop, stop:].T @ errors[start:stop]
        if P is not None:
            lazy[stop:] += P[start:stop, stop:].T @ decoded[start:stop]
    return codes.T, decoded.T
