"""QEP's correction: changes a weight before rounding to compensate for upstream errors.

    W ← W + strength · W D (H + damp · mean(diag H) · I)⁻¹

with H and D accumulated by `calibrate`. Source: QEP (Arai and Ichikawa 2025). NumPy and LAPACK only, float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dposv

from tqs_onnx.rounding.compensate import Matrix, checked_matrix, checked_statistic
from tqs_passes.errors import InputError

#: Number of columns that the published programs of GPTQ and GPTAQ round before they correct the rest.
PUBLISHED_BLOCK = 128


def qep_correct(
    W: ArrayLike, H: ArrayLike, D: ArrayLike, *, damp: float = 1.0, strength: float = 0.5
) -> Matrix:
    """Return the weight corrected for upstream errors, float64 [out, in] (see the module docstring).

    Columns of dead inputs are set to zero before the correction.

    Raises
    ------
    InputError
        Shapes do not fit, a value is not finite, or the damped H is singular.
    """
    w = checked_matrix(np.asarray(W, np.float64))
    h = checked_statistic(np.asarray(H, np.float64), w.shape[1])
    d = checked_statistic(np.asarray(D, np.float64), w.shape[1])
    if not (np.isfinite(h).all() and np.isfinite(d).all()):
        raise InputError("H or D is not finite", todo="Calibrate on other contexts")
    _clear_dead(w, h)
    h += damp * np.mean(np.diag(h)) * np.eye(len(h))
    corrected: Matrix = w + strength * _solved(h, (w @ d).T).T if d.any() else w
    return corrected


def _solved(h: Matrix, right: Matrix) -> Matrix:
    """Return h⁻¹ · right; by Cholesky, which takes half the time, if rounding errors leave h positive definite."""
    _, found, failed = dposv(h, right)
    if not failed:
        return np.asarray(found, np.float64)
    try:
        return np.asarray(np.linalg.solve(h, right), np.float64)
    except np.linalg.LinAlgError as error:
        raise InputError("the damped H is singular", todo="Increase `qep_damp`") from error


def _clear_dead(w: Matrix, h: Matrix) -> NDArray[np.bool_]:
    """Set H_dd = 1 and W_d = 0 for dead inputs, in place; return the mask of dead inputs."""
    dead: NDArray[np.bool_] = np.diag(h) == 0
    h[dead, dead] = 1.0
    w[:, dead] = 0.0
    return dead
