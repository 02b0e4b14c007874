"""Choose the scale of each channel from its values alone: one function for each rounding that needs no data.

    rtn        s = max|w| / largest level                        nothing is clipped
    mse        s = argmin ‖s·q − w‖²                             clip ratios, then refits s ← ⟨w, q⟩ / ⟨q, q⟩
    unbiased   s of mse, raised by s ← s · ⟨w, w⟩ / ⟨Q(w), w⟩     four times: towards ⟨Q(w), w⟩ = ⟨w, w⟩

The least-squares scale shrinks values: it makes ⟨Q(w), w⟩ = ‖Q(w)‖² = ‖w‖² − ‖residual‖², so every output of a channel
is too small by the relative error of its rounding, some 10 % at two bits. Such errors have the same sign everywhere and
at every step. They add up along a rollout, whereas errors of single values average out. The clipped values are also the
largest ones. `unbiased` removes most of both effects at the cost of some squared error. On models of the zoo it has
less drift, both alone and as the scales for GPTQ, GPTAQ and QEP (models/zoo/BASELINES.md). Raising the scale without
rounding again helps less, and so does iterating to the fixed point. It can be worse on a chaotic rollout with coarse
tiers everywhere.

Error of 2 bits on N(0, 1), relative energy, of `mse`: signed 0.150, mid-rise 0.119. NumPy only; deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tqs_passes.grids.grid import F32, Grid, round_in_place
from tqs_passes.grids.row_sample import sampled

#: Roundings that use the weight only: the emitter computes their integers itself.
FreeRounding = Literal["rtn", "mse", "unbiased"]
FREE_ROUNDINGS: tuple[FreeRounding, ...] = ("rtn", "mse", "unbiased")
DEFAULT_ROUNDING: FreeRounding = "unbiased"
_NAMED: Mapping[str, FreeRounding] = MappingProxyType(dict(zip(FREE_ROUNDINGS, FREE_ROUNDINGS, strict=True)))

_RATIOS = np.concatenate([np.linspace(1.0, 0.30, 15), np.linspace(0.26, 0.10, 5)]).astype(F32)
_REFITS = 3
_RAISES = 4
_MOST_ERROR = 1.5
_SAMPLE_VALUES = 4096
BLOCK_VALUES = 1 << 17
#: For channels longer than this, the scale is fitted to a sample.
_LONG_VALUES = 1 << 18
Rows = NDArray[np.float32]
#: (rows ``[channels, values]``, column weights or None, bits, grid) → float32 scales ``[channels]``.
_Fit = Callable[[Rows, "Rows | None", int, Grid], Rows]


def free_rounding(name: str) -> FreeRounding | None:
    """Return the rounding of this name; None when it needs data or does not exist.

    >>> free_rounding("mse"), free_rounding("gptq")
    ('mse', None)
    """
    return _NAMED.get(name)


def blocks(rows: Rows) -> Iterator[tuple[slice, Rows]]:
    """Yield slices of the channels of ``[channels, ...]``, and their values ``[channels, values]``.

    Channels are independent of one another: a block that fits the cache takes half the time and little memory.
    """
    n_each = rows.size // max(1, len(rows))
    step = max(1, BLOCK_VALUES // max(1, n_each))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        yield slice(start, start + step), np.ascontiguousarray(block.reshape(len(block), -1))


def scales_of(rows: Rows, bits: int, grid: Grid, rounding: FreeRounding, weights: Rows | None = None) -> Rows:
    """Return the scale of each channel, float32 ``[channels]``, normal numbers > 0.

    Parameters
    ----------
    rows : float32 array ``[channels, ...]``
        Long channels are sampled (see `tqs_passes.grids.row_sample`), except by `rtn`.
    bits : int
        At 1 bit every rounding uses the mean size, which is the least-squares scale.
    grid : Grid
    rounding : {"rtn", "mse", "unbiased"}
    weights : float32 array, optional
        Number of values that each column of ``[channels, values]`` represents [default: one].
    """
    rule = _RULES[rounding] if bits > 1 else _mean_size
    scales: list[Rows] = []
    for _, block in blocks(rows):
        values, columns = block, weights
        if rule is not _peak_scale and weights is None and block.shape[1] > _LONG_VALUES:
            values, columns = sampled(block, _LONG_VALUES // 2)
        scales.append(_in_range(values, columns, bits, grid, rule))
    return np.concatenate(scales)


def stored_scales(rows: Rows, scales: Rows, *, half: bool) -> NDArray[np.float16] | Rows:
    """Return scales in their stored type; float16 only if the scale of every row that is not all zeros fits.

    A row of zeros gets the smallest normal scale, because mid-rise levels cannot store 0 exactly.
    """
    flat = np.concatenate([~block.any(axis=1) for _, block in blocks(rows)])
    if half and scales_fit_half(scales[~flat]):
        return np.where(flat, np.finfo(np.float16).tiny, scales).astype(np.float16)
    return np.where(flat, np.finfo(F32).tiny, scales).astype(F32)


def scales_fit_half(scales: Rows) -> bool:
    """Whether every scale lies in the normal range of float16 (6.1e-5 … 65504)."""
    return bool(np.all((scales >= np.finfo(np.float16).tiny) & (scales <= np.finfo(np.float16).max)))


def _in_range(rows: Rows, weights: Rows | None, bits: int, grid: Grid, rule: _Fit) -> Rows:
    """Return the scales that a rule computes.

    Rows are first scaled by powers of two to peaks of 0.5 … 1, which is exact, so that no square under- or overflows.
    """
    peak, exponent = np.frexp(np.max(np.abs(rows), axis=1))
    unit = np.ldexp(rows, -exponent[:, None])
    unit[peak == 0, :1] = 1.0  # an all-zero row: any scale works
    largest = np.finfo(F32).max / F32(1 << bits)  # keeps level · scale finite
    fitted = rule(unit, weights, bits, grid)
    scales: Rows = np.clip(np.ldexp(fitted, exponent), np.finfo(F32).tiny, largest)
    return scales


def _mean_size(rows: Rows, weights: Rows | None, bits: int, grid: Grid) -> Rows:
    """Return mean|w| of each row: the least-squares scale for levels ±1."""
    sizes = np.abs(rows)
    if weights is not None:
        mean: NDArray[np.float64] = sizes.astype(np.float64) @ weights / np.sum(weights, dtype=np.float64)
        return mean.astype(F32)
    plain: Rows = sizes.mean(axis=1, dtype=np.float64).astype(F32)
    return plain


def _top(bits: int, grid: Grid) -> np.float32:
    """Return the largest level."""
    return F32((1 << bits) - 1) if grid is Grid.MIDRISE else F32((1 << (bits - 1)) - 1)


def _peak_scale(rows: Rows, weights: Rows | None, bits: int, grid: Grid) -> Rows:
    """Return the scales that map the largest value of a row to the largest level."""
    peaks: Rows = np.max(np.abs(rows), axis=1) / _top(bits, grid)
    return peaks


def _unbiased(rows: Rows, weights: Rows | None, bits: int, grid: Grid) -> Rows:
    """Return least-squares scales, raised so that the product of a row and its rounding approaches the row's square.

    A row whose error would exceed `_MOST_ERROR` times the least-squares error keeps its previous scale: otherwise, in a
    row with few large values among many small ones, the small values would round to nothing.
    """
    scales = _least_squares(rows, weights, bits, grid)
    square = _dot(rows, rows, weights)
    most = _MOST_ERROR * _row_error(rows, scales, bits, grid, weights)
    for _ in range(_RAISES):
        q = round_in_place(rows / scales[:, None], bits, grid)
        q *= scales[:, None]
        product = _dot(q, rows, weights)
        raised = np.where(product > 0, scales * square / np.where(product > 0, product, 1), scales).astype(
            F32
        )
        within = _row_error(rows, raised, bits, grid, weights) <= most
        scales = np.where(within, raised, scales).astype(F32)
    return scales


def _least_squares(rows: Rows, weights: Rows | None, bits: int, grid: Grid) -> Rows:
    """Return the scales of least squared error: clip ratios, then least-squares refits."""
    top = _top(bits, grid)
    peak = np.max(np.abs(rows), axis=1)
    if bits == 8:
        ratios = _RATIOS[:4]
    elif bits >= 6:
        ratios = _RATIOS[:8]
    else:
        ratios = _RATIOS
    # Columns with weights are already a sample; a stride would miss its outliers.
    stride = max(1, rows.shape[1] // _SAMPLE_VALUES) if weights is None else 1
    sample = rows[:, ::stride] if stride > 1 else rows
    best = np.full(rows.shape[0], np.inf, F32)
    scales = peak / top
    for ratio in ratios:
        trial = peak * ratio / top
        error = _row_error(sample, trial, bits, grid, weights)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better, trial, scales)
    if stride > 1:  # a sample may miss the few values that clipping affects most
        worse = _row_error(rows, scales, bits, grid, weights) > _row_error(
            rows, peak / top, bits, grid, weights
        )
        scales = np.where(worse, peak / top, scales)
    return _refit(rows, scales.astype(F32), bits, grid, weights)


def _refit(
    rows: Rows,
    scales: Rows,
    bits: int,
    grid: Grid,
    weights: Rows | None,
) -> Rows:
    best = _row_error(rows, scales, bits, grid, weights)
    for _ in range(_REFITS):
        q = round_in_place(rows / scales[:, None], bits, grid)
        power, dot = _dot(q, q, weights), _dot(q, rows, weights)
        trial = np.where((power > 0) & (dot > 0), dot / np.where(power > 0, power, 1), scales).astype(F32)
        error = _row_error(rows, trial, bits, grid, weights)
        better = error < best
        if not better.any():
            break
        best = np.where(better, error, best)
        scales = np.where(better, trial, scales)
    return scales


def _row_error(
    rows: Rows,
    scales: Rows,
    bits: int,
    grid: Grid,
    weights: Rows | None,
) -> Rows:
    residual = round_in_place(rows / scales[:, None], bits, grid)
    residual *= scales[:, None]
    residual -= rows
    return _dot(residual, residual, weights)


def _dot(a: Rows, b: Rows, weights: Rows | None) -> Rows:
    """Return the weighted products of rows ``[channels]``."""
    products: Rows
    products = np.einsum("ij,ij->i", a, b) if weights is None else np.einsum("ij,ij,j->i", a, b, weights)
    return products


_RULES: Mapping[FreeRounding, _Fit] = MappingProxyType(
    {"rtn": _peak_scale, "mse": _least_squares, "unbiased": _unbiased}
)
