"""The predicted drift of a plan's file, and how sure one plan is to drift less than another, over contexts.

Intervals hold 90 % of the values of bootstrap samples, drawn over the starts of contexts: series of a table that start
at one row stay together, unless there is only one. They say how much the choice of contexts matters, not what other
data would do. NumPy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_passes.plan.plan import Basis, Prediction

_DRAWS = 1000
#: Bounds of an interval, in percent.
_INTERVAL = (5, 95)


def prediction_of(contexts: Contexts, energies: NDArray[np.float64], basis: Basis) -> Prediction:
    """Return the prediction from the squared drift of every context.

    Parameters
    ----------
    contexts : Contexts
    energies : float64 array [context]
        Infinite for a context whose rollout is not finite.
    basis : {"scoring", "held-out", "cross-fit"}
    """
    total = float(energies.sum())
    low, high = (float("inf"),) * 2
    if np.isfinite(energies).all():
        sums, counts = _samples(contexts, energies)
        low, high = (float(v) for v in np.percentile(np.sqrt(sums / counts), _INTERVAL))
    return Prediction(
        drift=float(np.sqrt(energies.mean())),
        low=low,
        high=high,
        n_contexts=len(energies),
        n_starts=len(np.unique(_starts(contexts))),
        largest_share=float(energies.max() / total) if 0 < total < np.inf else 0.0,
        basis=basis,
    )


def ratio_interval(
    contexts: Contexts, ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the interval of the ratio of two drifts, from the squared drifts of the same contexts.

    Parameters
    ----------
    contexts : Contexts
    ours, theirs : float64 array [context]

    Returns
    -------
    (low, high)
        Both sides drawn together; (0, inf) if one of them is not finite, (1, 1) if neither drifts at all.
    """
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return 0.0, float("inf")
    if not ours.any() and not theirs.any():
        return 1.0, 1.0
    (top, _), (low, _) = (_samples(contexts, e) for e in (ours, theirs))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(np.sqrt(top / low), nan=1.0, posinf=np.inf)
    a, b = np.quantile(ratios, [p / 100 for p in _INTERVAL], method="nearest")
    return float(a), float(b)


def _starts(contexts: Contexts) -> NDArray[np.int64]:
    return np.arange(contexts.n_contexts) if contexts.rows is None else contexts.rows[:, 0]


def _samples(
    contexts: Contexts, energies: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum and the number of the energies of every bootstrap sample; contexts of one start stay together."""
    starts = _starts(contexts)
    starts = starts if len(np.unique(starts)) > 1 else np.arange(len(energies))
    _, group = np.unique(starts, return_inverse=True)
    sums, counts = np.bincount(group, energies), np.bincount(group)
    drawn = np.random.default_rng(0).integers(len(sums), size=(_DRAWS, len(sums)))
    return sums[drawn].sum(axis=1), counts[drawn].sum(axis=1).astype(np.float64)
