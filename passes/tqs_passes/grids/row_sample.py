"""Sample long rows of values so that outliers are kept, and weight each sampled value.

A row is cut into strata of neighbouring values. Two values of each stratum are taken: the largest, with weight one, and
another one, which represents the rest; all values after the last stratum are taken. Rare large values decide where a
grid should clip. They are therefore in the sample with their true weight, and sums over the row are estimated without
bias. The position of the other value moves through the strata by the golden section: evenly and without a period.
Deterministic. NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = (5**0.5 - 1) / 2
#: Smaller strata save too little: two values of each are taken anyway.
_LEAST_STRATUM = 4


def sampled(rows: NDArray[Any], strata: int) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return a sample of each row, and the number of values that each of its columns represents.

    Parameters
    ----------
    rows : array ``[channels, values]``
        Values of a float type.
    strata : int
        Approximate number of strata per row.

    Returns
    -------
    sample : array ``[channels, columns]``
    weights : float32 array ``[columns]`` or None
        None when the rows are too short to sample and are returned unchanged.
    """
    n_each = rows.shape[1]
    size = n_each // max(1, strata)
    if size < _LEAST_STRATUM:
        return rows, None
    strata = n_each // size
    cut = rows[:, : strata * size].reshape(len(rows), strata, size)
    largest = np.where(cut.max(axis=2) >= -cut.min(axis=2), cut.argmax(axis=2), cut.argmin(axis=2))
    step = (np.arange(strata) * _GOLDEN % 1.0 * (size - 1)).astype(np.intp)
    other = (largest + 1 + step) % size
    taken = [np.take_along_axis(cut, place[..., None], 2)[..., 0] for place in (largest, other)]
    behind = rows[:, strata * size :]
    weights = np.repeat(np.array([1, size - 1, 1], np.float32), [strata, strata, behind.shape[1]])
    # Interleave the two kinds, so that a search that strides through the columns meets both.
    order = np.argsort(np.arange(len(weights)) * _GOLDEN % 1.0, kind="stable")
    return np.concatenate([*taken, behind], axis=1)[:, order], weights[order]
