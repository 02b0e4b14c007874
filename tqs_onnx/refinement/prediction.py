"""Predicts the drift of a plan's file on contexts that chose none of its integers, with an interval.

    integers from the weights alone      all weights together on the scoring contexts          "scoring"
    integers from other contexts         the same: the scoring contexts are held out           "held-out"
    integers from the scoring contexts   chosen on each half of them, judged on the other      "cross-fit"

The interval holds 90 % of the drifts of bootstrap samples, drawn over the starts of contexts: series of a table that
start at one row stay together, unless there is only one. It says how much the choice of contexts matters, not what
other data would do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.refinement.instruments import Instruments
from tqs_onnx.rollout.contexts.context_set import Contexts, held_out_indices
from tqs_onnx.rounding.assign import RoundingOptions, round_plan
from tqs_onnx.rounding.calibrate import Calibration
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Basis, Plan, Prediction

_DRAWS = 1000
#: Bounds of the interval, in percent.
_INTERVAL = (5, 95)


def predict(
    allocated: Plan,
    rounded: Plan,
    codes: Mapping[str, Codes],
    instruments: Instruments,
    rounding: RoundingOptions,
) -> Prediction | None:
    """Return the predicted drift of a plan; None if one context chose its integers and no other is left to judge.

    Parameters
    ----------
    allocated : Plan
        Before its integers were chosen.
    rounded : Plan
        With its integers chosen.
    codes : mapping of str to Codes
        Those that contexts chose; empty if the weights alone decide them.
    instruments : Instruments
    rounding : RoundingOptions
        How contexts choose integers, with its settings.
    """
    contexts = instruments.bed.contexts
    if not codes or instruments.calibrating is not instruments.bed:
        energies = instruments.joint.energies(rounded.assignments, codes)
        return prediction_of(contexts, energies, "held-out" if codes else "scoring")
    halves = held_out_indices(contexts, 0.5)
    if halves is None:
        return None
    found: list[NDArray[np.float64]] = []
    for chosen, judged in (halves, halves[::-1]):
        calibration = Calibration(instruments.bed.on(contexts.take(chosen)))
        assigned = round_plan(allocated, calibration, rounding)
        joint = instruments.joint.on(contexts.take(judged))
        found.append(joint.energies(assigned.plan.assignments, assigned.codes))
    order = [*halves[1], *halves[0]]
    return prediction_of(contexts.take(order), np.concatenate(found), "cross-fit")


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
    starts = np.arange(len(energies)) if contexts.rows is None else contexts.rows[:, 0]
    n_starts = len(np.unique(starts))
    low, high = _interval(energies, starts if n_starts > 1 else np.arange(len(energies)))
    return Prediction(
        drift=float(np.sqrt(energies.mean())),
        low=low,
        high=high,
        n_contexts=len(energies),
        n_starts=n_starts,
        largest_share=float(energies.max() / total) if 0 < total < np.inf else 0.0,
        basis=basis,
    )


def _interval(energies: NDArray[np.float64], starts: NDArray[np.int64]) -> tuple[float, float]:
    """Return the bounds; contexts of one start are drawn together."""
    _, group = np.unique(starts, return_inverse=True)
    sums = np.bincount(group, energies)
    counts = np.bincount(group)
    if not np.isfinite(sums).all():
        return float("inf"), float("inf")
    drawn = np.random.default_rng(0).integers(len(sums), size=(_DRAWS, len(sums)))
    drifts = np.sqrt(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(drifts, _INTERVAL)
    return float(low), float(high)
