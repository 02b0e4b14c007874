"""Split contexts in two, so that what is chosen on the one part is judged on the other.

The last ones in time are held out. Windows of one table that share rows with these are left out of both parts: else
the judge would have been seen. Where every window overlaps, windows are parted by their start alone.
"""

from __future__ import annotations

import math

import numpy as np

from tqs_onnx.rollout.context_set import Contexts


def held_out(contexts: Contexts, share: float) -> tuple[Contexts, Contexts]:
    """Return (the others, those held out); both are all contexts where there is only one start.

    Parameters
    ----------
    contexts : Contexts
    share : float
        Of the starts, between 0 and 1; at least one is held out.
    """
    rows = contexts.rows
    starts = np.arange(contexts.n_contexts) if rows is None else rows[:, 0]
    distinct = np.unique(starts)
    if len(distinct) < 2:
        return contexts, contexts
    first = distinct[-min(len(distinct) - 1, math.ceil(share * len(distinct)))]
    held = starts >= first
    before = ~held if rows is None else rows[:, 1] <= first
    kept = before if before.any() else ~held
    return contexts.take(np.flatnonzero(kept).tolist()), contexts.take(np.flatnonzero(held).tolist())
