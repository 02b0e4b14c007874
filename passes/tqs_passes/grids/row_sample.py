"""A sample of long rows of values that keeps their outliers, and what each sampled value stands for.

A row is cut into strata of neighbouring values. Of each stratum two values are taken: the largest, which stands for
itself, and another one, which stands for the rest; values behind the last stratum are all taken. Rare large values,
which decide how a grid should be clipped, are so in the sample with their true weight, and sums over the row are
estimated without bias. Which other value is taken moves through the strata by the golden section: evenly, without a
period. Deterministic. NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = (5**0.5 - 1) / 2
#: Smaller strata are not worth it: two values of each are taken anyway.
_LEAST_STRATUM = 4


def sampled(rows: NDArray[Any], strata: int) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return a sample of each row, and how many values each of its columns stands for.

    Parameters
    ----------
    rows : array ``[channels, values]``
        Of a float type.
    strata : int
        About so many a row.

    Returns
    -------
    sample : array ``[channels, columns]``
    weights : float32 array ``[columns]`` or None
        None when the sample is the rows themselves, which are not long enough.
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
    # Mixed, so that a search that strides through the columns meets both kinds.
    order = np.argsort(np.arange(len(weights)) * _GOLDEN % 1.0, kind="stable")
    return np.concatenate([*taken, behind], axis=1)[:, order], weights[order]
