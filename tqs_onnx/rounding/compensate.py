"""Round a matrix column by column and let the columns to come make good the error: the core of GPTQ and GPTAQ.

W is [out, in], X its inputs [in, n] as seen in the rounded model, Xf the same in the FP32 model, H = X Xᵀ,
D = (Xf - X) Xᵀ (both up to one common factor), U the upper Cholesky factor of (H + damping)⁻¹ = Uᵀ U. For column j ::

    e_j = (w_j - q_j) / U_jj
    w_k ← w_k - e_j U_jk            k > j                   (GPTQ: the exact minimum of ‖(W - Q) X‖² given q_j)
    w_k ← w_k + w_j P_jk            k > j                   (GPTAQ), P = α · triu₁(D Uᵀ) U

Columns go in blocks: within one the sums are applied at once, to the columns behind it together afterwards. For GPTAQ
these later sums use q_j in place of w_j, as the published results do, so they depend on the block size; GPTQ's do not.

Sources: Frantar et al. 2023 (GPTQ), Li et al. 2025 (GPTAQ); written from the formulas. NumPy only; deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_passes.errors import InputError

Matrix = NDArray[np.float64]

#: (column, its values [out], the matrix as corrected up to its block [out, in]) → (codes [out], decoded values [out]).
ColumnRounder = Callable[[int, Matrix, Matrix], tuple[Matrix, Matrix]]

_MOST_DAMP = 1.0
_LEAST_RETRY = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """The upper Cholesky factor U of the damped inverse.

    Parameters
    ----------
    upper : float64 array [in, in]
    damp : float
        Damping that made it positive definite, a share of the mean of diag H.
    """

    upper: Matrix
    damp: float


def checked_matrix(W: Matrix) -> Matrix:
    """Return a fresh float64 copy of a weight [out, in].

    Raises
    ------
    InputError
        It is no matrix, empty, or not finite.
    """
    w = np.array(W, np.float64)
    if w.ndim != 2 or 0 in w.shape:
        raise InputError(f"the weight must be a matrix [out, in], not {list(w.shape)}")
    if not np.isfinite(w).all():
        raise InputError("the weight holds NaN or infinite values")
    return w


def checked_statistic(statistic: Matrix, n_in: int) -> Matrix:
    """Return a fresh float64 copy of H or D, [in, in].

    Raises
    ------
    InputError
        Its shape does not fit the weight's.
    """
    if statistic.shape != (n_in, n_in):
        raise InputError(f"H and D must be {[n_in, n_in]} for this weight, not {list(statistic.shape)}")
    return np.array(statistic, np.float64)


def factor(H: Matrix, damp: float) -> Factor | None:
    """Return U of H + damp · mean(diag H) · I; the damping is raised tenfold up to 1 while that has none.

    None when there is none at 1 either, or H is not finite.
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
    try:
        lower = np.linalg.cholesky(A)
        half = np.linalg.inv(lower)
        upper = np.asarray(np.linalg.cholesky(half.T @ half).T, np.float64)
    except np.linalg.LinAlgError:
        return None
    return upper if np.isfinite(upper).all() else None


def drift_correction(D: Matrix, upper: Matrix, alpha: float) -> Matrix:
    """Return P = α · triu₁(D Uᵀ) U, strictly upper triangular [in, in]."""
    corrected: Matrix = alpha * (np.triu(D @ upper.T, 1) @ upper)
    return corrected


def compensate(
    W: Matrix, upper: Matrix, P: Matrix | None, rounder: ColumnRounder, block_size: int
) -> tuple[Matrix, Matrix]:
    """Return (codes, decoded values), float64 [out, in]; `W` is used up.

    Parameters
    ----------
    W : float64 array [out, in]
        Columns in the order they are rounded.
    upper, P : float64 array [in, in]
        See the module docstring; P None for GPTQ.
    rounder : callable
    block_size : int
        At least 1.
    """
    n_in = W.shape[1]
    codes, decoded = np.empty_like(W), np.empty_like(W)
    for start in range(0, n_in, block_size):
        stop = min(start + block_size, n_in)
        block = W[:, start:stop].copy()
        errors = np.empty_like(block)
        U = upper[start:stop, start:stop]
        for j in range(stop - start):
            w = block[:, j].copy()
            codes[:, start + j], q = rounder(start + j, w, W)
            decoded[:, start + j] = q
            errors[:, j] = (w - q) / U[j, j]
            block[:, j + 1 :] -= np.outer(errors[:, j], U[j, j + 1 :])
            if P is not None:
                block[:, j + 1 :] += np.outer(w, P[start + j, start + j + 1 : stop])
        W[:, stop:] -= errors @ upper[start:stop, stop:]
        if P is not None:
            W[:, stop:] += decoded[:, start:stop] @ P[start:stop, stop:]
    return codes, decoded
