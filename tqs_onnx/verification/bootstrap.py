"""Percentile bootstrap over contexts, in moving blocks where their windows overlap.

Contexts are drawn with replacement, 1,000 times; the interval of a figure reaches from the 2.5th to the 97.5th
percentile of its values (paper, A.1.4). Windows that share rows are not independent: then runs of consecutive contexts
are drawn, each as long as the overlap reaches (moving blocks, Künsch 1989). A single context leaves nothing to draw;
its time values are drawn instead, as in the paper: too narrow an interval, because they are correlated. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts

RESAMPLES = 1000
#: Percentiles of a 95 % interval.
_LOW, _HIGH = 2.5, 97.5
_SEED = 20240

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Resamples:
    """How often each of n items is drawn, float64 ``[resample, n]``; the rows sum to n.

    Parameters
    ----------
    counts : NDArray
    block : int
        Consecutive items that are drawn together.
    """

    counts: Floats
    block: int

    def means(self, values: Floats) -> Floats:
        """Return the mean of ``[n, …]`` over every resample, ``[resample, …]``."""
        n = len(values)
        flat = values.reshape(n, -1)
        return (self.counts @ flat / n).reshape(len(self.counts), *values.shape[1:])


def resamples(n: int, block: int = 1, *, number: int = RESAMPLES) -> Resamples | None:
    """Draw n items with replacement, in runs of `block`; None if there are not two runs to choose from.

    The draws depend on nothing but the arguments.
    """
    if n < 2 or n < 2 * block:
        return None
    generator = np.random.Generator(np.random.Philox(_SEED))
    starts = generator.integers(0, n - block + 1, (number, -(-n // block)))
    index = (starts[..., None] + np.arange(block)).reshape(number, -1)[:, :n]
    counts = np.zeros((number, n))
    np.add.at(counts, (np.arange(number)[:, None], index), 1.0)
    return Resamples(counts, block)


def block_length(contexts: Contexts, rows: NDArray[np.int64]) -> int:
    """Return how many consecutive contexts of a variable share rows of the table: 1 if their windows do not overlap."""
    if contexts.rows is None or len(rows) < 2:
        return 1
    windows = contexts.rows[rows]
    longest = 1
    for i, (_, stop) in enumerate(windows):
        later = windows[i + 1 :, 0] < stop
        longest = max(longest, 1 + int(np.argmin(later)) if not later.all() else 1 + len(later))
    return longest


def interval(values: Floats) -> Interval:
    """Return the percentile interval of a figure's resamples."""
    low, high = np.percentile(values, [_LOW, _HIGH])
    return float(low), float(high)


def intervals(values: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the ends of the percentile intervals of ``[resample, n]``, each of n figures."""
    low, high = np.percentile(values, [_LOW, _HIGH], axis=0)
    return tuple(low.tolist()), tuple(high.tolist())
