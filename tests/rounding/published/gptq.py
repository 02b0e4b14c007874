"""The published methods on their own grids, as an oracle: rtn, GPTQ and GPTAQ.

The order of the published programs is kept: row parameters are computed from the given weight; then inputs that are
always zero (dead: H_dd = 0) get H_dd = 1 and W_d = 0; then static groups, the order by activation, damping (its mean
includes those ones), and the columns (see `compensate`). Groups that are not static get their parameters at their first
column, from the matrix as corrected up to the previous block; use ``block_size <= group_size`` to include every
correction.

If (H + damping)⁻¹ has no Cholesky factor, the damping is raised tenfold, up to 1. If that does not help, or all inputs
are dead, or H or D is not finite, the matrix is rounded to nearest and `Rounded.fallback` holds the reason.

Sources: GPTQ (Frantar et al. 2023), GPTAQ (Li et al. 2025). NumPy only, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.rounding.published.uniform import GridName, Parameters, Rounded, UniformGrid
from tqs_onnx.rounding.compensate import (
    Matrix,
    checked_matrix,
    checked_statistic,
    compensate,
    drift_correction,
    factor,
)
from tqs_onnx.rounding.qep import PUBLISHED_BLOCK
from tqs_passes.errors import InputError


def rtn(
    W: ArrayLike,
    *,
    bits: int,
    group_size: int = -1,
    symmetric: bool = True,
    grid: GridName = "signed",
    mse: bool = False,
) -> Rounded:
    """Round to nearest, with the parameters of each row or of each group of `group_size` columns.

    Parameters
    ----------
    W : float array [out, in]
    bits : int
        1 to 8.
    group_size : int
        Number of columns that share a scale; -1: the whole row.
    symmetric : bool
    grid : {"signed", "unsigned"}
        See `uniform`.
    mse : bool
        Clip for the least error.

    Raises
    ------
    InputError
        W is not a finite matrix, or an option is out of range.
    """
    w = checked_matrix(np.asarray(W, np.float64))
    return _nearest(w, UniformGrid(bits, symmetric, grid, mse), _group_size(group_size, w.shape[1]))


def gptq(
    W: ArrayLike,
    H: ArrayLike,
    *,
    bits: int,
    group_size: int = -1,
    symmetric: bool = True,
    grid: GridName = "signed",
    damp: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    mse: bool = False,
    block_size: int = PUBLISHED_BLOCK,
) -> Rounded:
    """Round a matrix with the least change of its output on the calibration inputs.

    Parameters
    ----------
    W : float array [out, in]
    H : float array [in, in]
        X Xᵀ up to a factor.
    bits, group_size, symmetric, grid, mse
        See `rtn`.
    damp : float
        Share of mean(diag H) added to the diagonal.
    act_order : bool
        Round columns in order of decreasing diag H.
    static_groups : bool
        Fix the parameters of groups of columns, in stored order, before rounding; with `act_order` only such groups can
        be stored in an ONNX file.
    block_size : int

    Returns
    -------
    Rounded

    Raises
    ------
    InputError
        Shapes do not fit, W is not finite, or an option is out of range.
    """
    options = _Options(
        UniformGrid(bits, symmetric, grid, mse), group_size, damp, act_order, static_groups, block_size
    )
    return _rounded(np.asarray(W, np.float64), np.asarray(H, np.float64), None, 0.0, options)


def gptaq(
    W: ArrayLike,
    H: ArrayLike,
    D: ArrayLike,
    *,
    alpha: float = 0.25,
    bits: int,
    group_size: int = -1,
    symmetric: bool = True,
    grid: GridName = "signed",
    damp: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    mse: bool = False,
    block_size: int = PUBLISHED_BLOCK,
) -> Rounded:
    """Round a matrix so that its output on the rounded model's inputs stays close to that on the FP32 model's inputs.

    Parameters
    ----------
    D : float array [in, in]
        (Xf - X) Xᵀ up to the factor of H.
    alpha : float
        Strength of the correction; 0 is GPTQ.
    W, H, bits, group_size, symmetric, grid, damp, act_order, static_groups, mse, block_size
        See `gptq`. The result depends on `block_size`; the published value is 128.

    Raises
    ------
    InputError
        See `gptq`.
    """
    options = _Options(
        UniformGrid(bits, symmetric, grid, mse), group_size, damp, act_order, static_groups, block_size
    )
    return _rounded(
        np.asarray(W, np.float64), np.asarray(H, np.float64), np.asarray(D, np.float64), alpha, options
    )


@dataclass(frozen=True, slots=True)
class _Options:
    grid: UniformGrid
    group_size: int
    damp: float
    act_order: bool
    static_groups: bool
    block_size: int

    def __post_init__(self) -> None:
        """Validate the sizes and the damping."""
        if self.block_size < 1:
            raise InputError(f"block_size must be at least 1, not {self.block_size}")
        if not self.damp >= 0:
            raise InputError(f"damp must not be negative: {self.damp}")


def _group_size(given: int, n_in: int) -> int:
    if given != -1 and given < 1:
        raise InputError(f"group_size must be -1 or at least 1, not {given}")
    return n_in if given == -1 else min(given, n_in)


def _rounded(W: Matrix, H: Matrix, D: Matrix | None, alpha: float, options: _Options) -> Rounded:
    w = checked_matrix(W)
    h = checked_statistic(H, w.shape[1])
    d = None if D is None else checked_statistic(D, w.shape[1])
    grid, size = options.grid, _group_size(options.group_size, w.shape[1])
    why = _unusable(h, d)
    if why:
        return _nearest(w, grid, size, why)
    original = w.copy()
    whole = [grid.fit(w)] if options.group_size == -1 else []
    dead = _clear_dead(w, h)
    if d is not None:
        d[:, dead] = 0.0
    static = whole or (_fitted(w, grid, size) if options.static_groups else [])
    order = np.argsort(-np.diag(h), kind="stable") if options.act_order else np.arange(len(h))
    w, h = w[:, order], h[np.ix_(order, order)]
    found = factor(h, options.damp)
    if found is None:
        return _nearest(original, grid, size, "H has no Cholesky factor at any damping up to 1")
    P = None if d is None else drift_correction(d[np.ix_(order, order)], found.upper, alpha)
    groups = order // size if static else np.arange(len(h)) // size
    parameters = list(static)

    def column(j: int, values: Matrix, lazy: Matrix) -> tuple[Matrix, Matrix]:
        if not static and j % size == 0:
            parameters.append(grid.fit(lazy[:, j : j + size]))
        p = parameters[groups[j]]
        q = grid.nearest(values, p.scale, p.zero)
        return q, p.scale * (q - p.zero)

    codes, decoded = compensate(w, found.upper, P, column, options.block_size)
    back = np.argsort(order, kind="stable")
    return _result(codes[:, back], decoded[:, back], parameters, groups[back], found.damp)


def _unusable(h: Matrix, d: Matrix | None) -> str:
    if not np.isfinite(h).all():
        return "H is not finite"
    if d is not None and not np.isfinite(d).all():
        return "D is not finite"
    return "all inputs are zero" if not np.diag(h).any() else ""


def _clear_dead(w: Matrix, h: Matrix) -> NDArray[np.bool_]:
    """Set H_dd = 1 and W_d = 0 for dead inputs, in place; return the mask of dead inputs."""
    dead: NDArray[np.bool_] = np.diag(h) == 0
    h[dead, dead] = 1.0
    w[:, dead] = 0.0
    return dead


def _fitted(w: Matrix, grid: UniformGrid, size: int) -> list[Parameters]:
    return [grid.fit(w[:, start : start + size]) for start in range(0, w.shape[1], size)]


def _nearest(w: Matrix, grid: UniformGrid, size: int, fallback: str = "") -> Rounded:
    parameters = _fitted(w, grid, size)
    groups = np.arange(w.shape[1]) // size
    scale = np.stack([p.scale for p in parameters], axis=1)[:, groups]
    zero = np.stack([p.zero for p in parameters], axis=1)[:, groups]
    codes = grid.nearest(w, scale, zero)
    return _result(codes, scale * (codes - zero), parameters, groups, None, fallback)


def _result(
    codes: Matrix,
    decoded: Matrix,
    parameters: list[Parameters],
    groups: NDArray[np.int64],
    damp: float | None,
    fallback: str = "",
) -> Rounded:
    return Rounded(
        weights=decoded,
        codes=codes.astype(np.int32),
        scales=np.stack([p.scale for p in parameters], axis=1),
        zero_points=np.stack([p.zero for p in parameters], axis=1).astype(np.int32),
        groups=groups,
        damp=damp,
        fallback=fallback,
    )
