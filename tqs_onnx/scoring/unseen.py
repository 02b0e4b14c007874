"""Tells weights that no context ran from weights that have no effect.

    dead       its values reach the trajectory, and a change of them moves nothing (it is multiplied by zero)
    unseen     its values never reach the trajectory: it lies in a branch or loop that no context ran, behind a Where
               or a gate that never selected it, or in table rows that no context read

A NaN tells them apart: it passes through every product, zero included, but not through what is not computed or not
selected. Weights that no probe moved, and that the graph can leave out, are replaced by NaN, together first, then in
halves; if the rollout stays finite, no context ran them. A weight whose effect is multiplied by a gate that the model
chooses (TopK, one-hot …) is unseen as well: its gate was closed. Rows of a table are those that the indices name along
the rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.scores import Status, WeightScore
from tqs_passes.errors import InputError
from tqs_passes.survey.selection import gated, selectable, table_reads
from tqs_passes.weights import Weight

#: Most unread rows of a table that are listed.
_MOST_ROWS = 5


def with_unseen(bed: Testbed, rows: Sequence[WeightScore]) -> tuple[WeightScore, ...]:
    """Return scores in which weights, or rows of them, that no context of the testbed ran are named as unseen.

    Parameters
    ----------
    bed : Testbed
        Holds the scoring contexts.
    rows : sequence of WeightScore

    Raises
    ------
    InputError
        The model does not load.
    """
    rolled = {w.name: w for w in bed.weights}
    still = [rolled[r.weight] for r in rows if _may_be_unseen(r, rolled)]
    why = _rows_unread(bed, [w for w in bed.weights if w not in still])
    choosable = selectable(bed.model, still)
    why |= {w.name: _closed(w) for w in _never_run(bed, [w for w in still if w.name in choosable])}
    shut = gated(bed.model, [w for w in still if w.name not in why])
    why |= dict.fromkeys(shut, "its gate was closed in every context")
    found: list[WeightScore] = []
    for row in rows:
        update: dict[str, object] = {"unseen": why[row.weight]} if row.weight in why else {}
        if update and row.status is Status.DEAD:
            update["status"] = Status.UNSEEN
        found.append(row.model_copy(update=update) if update else row)
    return tuple(found)


def _may_be_unseen(row: WeightScore, rolled: dict[str, Weight]) -> bool:
    """Return whether a weight was perturbed and moved nothing, as far as its own score or that of its block tells."""
    if row.weight not in rolled:
        return False
    inside = bool(row.block) and all(r.in_body for r in rolled[row.weight].readers)
    return inside or (row.status is Status.DEAD and row.delta_norm > 0)


def _never_run(bed: Testbed, weights: Sequence[Weight]) -> list[Weight]:
    """Return the weights of which no value reaches the trajectory."""
    if not weights or not _reach(bed, weights):
        return list(weights)
    if len(weights) == 1:
        return []
    middle = len(weights) // 2
    return [*_never_run(bed, weights[:middle]), *_never_run(bed, weights[middle:])]


def _reach(bed: Testbed, weights: Sequence[Weight]) -> bool:
    fed = bed.exposed
    try:
        for _ in fed.pieces({w.name: np.full_like(fed.values(w), np.nan) for w in weights}):
            pass
    except InputError:  # the trajectory is not finite, or an operator refuses the NaN: it was used
        return True
    return False


def _closed(weight: Weight) -> str:
    inside = [r.node.rpartition("/")[0] for r in weight.readers if r.in_body]
    if inside and len(inside) == len(weight.readers):
        return f"no context ran {', '.join(dict.fromkeys(inside))}"
    return "no context selected it"


def _rows_unread(bed: Testbed, weights: Sequence[Weight]) -> dict[str, str]:
    """Return the reason for every table that has rows which no context read, or whose rows cannot be followed."""
    reads = table_reads(bed.model, weights)
    found: dict[str, str] = {}
    indices: dict[str, list[tuple[str, int]]] = {}
    read: dict[str, NDArray[np.bool_]] = {}
    shapes = {w.name: w.shape for w in weights}
    for name, uses in reads.items():
        why = next((use.why_not for use in uses if use.why_not), "")
        if not why and len({use.axis for use in uses}) > 1:
            why = "it is indexed along several axes"
        if why:
            found[name] = why
            continue
        n_rows = shapes[name][uses[0].axis]
        read[name] = np.zeros(n_rows, bool)
        for use in uses:
            indices.setdefault(use.index, []).append((name, n_rows))
    if indices:
        seeing = bed.capturing(tuple(indices))
        outputs = {tensor: seeing.outputs[tensor] for tensor in indices}
        for _, made in seeing.engine.walk(seeing.nominal, list(outputs.values())):
            for tensor, output in outputs.items():
                picked = np.unique(made[output].numpy())
                for name, n_rows in indices[tensor]:
                    read[name][picked % n_rows] = True
    for name, rows in read.items():
        if not rows.all():
            missing = np.flatnonzero(~rows)
            shown = ", ".join(map(str, missing[:_MOST_ROWS])) + (", …" if len(missing) > _MOST_ROWS else "")
            found[name] = f"no context read {len(missing)} of its {len(rows)} rows: {shown}"
    return found
