"""Whether two probes rank weights alike: Spearman's rank correlation (paper, A.10). NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.score.store import Scores

_FEWEST = 3


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 0, ties sharing their mean.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: NDArray[np.float64] = (last - (counts + 1) / 2)[inverse]
    return shared


def spearman(a: Scores, b: Scores) -> float | None:
    """Return the rank correlation of γ_task over the targets that are alive under both probes; a block counts once.

    None with fewer than three, or where all tie.
    """
    theirs = {s.weight: s.gamma_task for s in b.weights if s.gamma_task is not None}
    pairs: dict[str, tuple[float, float]] = {}
    for score in a.weights:
        other = theirs.get(score.weight)
        if score.gamma_task is not None and other is not None:
            pairs.setdefault(score.block or f"\0{score.weight}", (score.gamma_task, other))
    if len(pairs) < _FEWEST:
        return None
    x, y = (ranks(np.array(side)) for side in zip(*pairs.values(), strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
