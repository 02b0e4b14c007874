"""Finds the ranges of activations along the nominal rollout, all steps and contexts together, in three ways.

    min-max      everything that occurred
    percentile   all but the outermost 0.01 % on each side
    error        the share of min-max that rounds with the least squared error

A range that is too wide rounds coarsely, one that is too narrow clips what drives the forecast; which of them costs
less is for a rollout to say (`tqs_onnx.scoring.activations`). Two walks: the first finds the extremes, the second fills
a histogram between them; percentiles and errors are those of its bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.testbed import Testbed
from tqs_passes.encode.static import Kind, Range, range_between
from tqs_passes.errors import InputError

#: Ways to choose a range, in the order in which they are tried.
WAYS = ("min-max", "percentile", "error")
_BINS = 4096
_OUTERMOST = 1e-4
_SHARES = np.linspace(1.0, 0.3, 36)


def ranges_of(bed: Testbed, tensors: tuple[str, ...], kind: Kind) -> dict[str, tuple[Range, ...]]:
    """Return the range of each tensor by each way, in the order of `WAYS`.

    Parameters
    ----------
    bed : Testbed
        Holds the scoring contexts.
    tensors : tuple of str
        Tensors of the lifted model's main graph.
    kind : {"uint8", "int8"}

    Raises
    ------
    InputError
        The model does not load or run, or a tensor holds infinite values.
    """
    seen = bed.capturing(tensors)
    outputs = list(seen.outputs.values())
    low = dict.fromkeys(tensors, 0.0)
    high = dict.fromkeys(tensors, 0.0)
    for _, made in seen.engine.walk(seen.nominal, outputs):
        for t in tensors:
            x = made[seen.outputs[t]].numpy()
            low[t], high[t] = min(low[t], float(x.min(initial=0.0))), max(high[t], float(x.max(initial=0.0)))
    endless = next((t for t in tensors if not np.isfinite((low[t], high[t])).all()), None)
    if endless is not None:
        raise InputError(
            f"tensor {endless!r} holds infinite values along the rollout: it has no range",
            todo="Choose a profile without fixed ranges",
        )
    counts = {t: np.zeros(_BINS, np.int64) for t in tensors}
    for _, made in seen.engine.walk(seen.nominal, outputs):
        for t in tensors:
            if low[t] < high[t]:
                x = made[seen.outputs[t]].numpy().astype(np.float64)
                counts[t] += np.histogram(x, _BINS, (low[t], high[t]))[0]
    return {t: _ways(low[t], high[t], counts[t], kind) for t in tensors}


def _ways(low: float, high: float, counts: NDArray[np.int64], kind: Kind) -> tuple[Range, ...]:
    whole = range_between(low, high, kind)
    if not counts.any():
        return (whole,) * len(WAYS)
    edges = np.linspace(low, high, _BINS + 1)
    below = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    # The widest range that leaves out no more than the outermost share on each side.
    first = int(np.searchsorted(below, _OUTERMOST, side="right")) - 1
    last = int(np.searchsorted(below, 1 - _OUTERMOST, side="left"))
    percentile = range_between(float(edges[max(first, 0)]), float(edges[min(last, _BINS)]), kind)
    middles = ((edges[:-1] + edges[1:]) / 2).astype(np.float32)
    tried = [range_between(low * share, high * share, kind) for share in _SHARES]
    errors = [float(np.sum(counts * (r.rounded(middles).astype(np.float64) - middles) ** 2)) for r in tried]
    return whole, percentile, tried[int(np.argmin(errors))]
