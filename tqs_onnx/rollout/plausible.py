"""Notes on rollouts that a wrong spec makes implausible: no scale or offset where input and output differ in units.

    range    what is fed back leaves the range of the contexts by more than its width within the first steps
    skill    against the truth, the forecast is worse than the truth's first value held, and than its mean

Neither is an error: a model may be poor, and contexts few. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import Feedback, RolloutSpec
from tqs_onnx.rollout.variables import by_variable

#: Number of steps within which a rollout with wrong units leaves the range of its contexts.
_FIRST_STEPS = 3
#: Fewest contexts whose mean says something.
_FEWEST_CONTEXTS = 4

Outputs = Mapping[str, NDArray[Any]]


def out_of_range(
    spec: RolloutSpec, contexts: Contexts, outputs: Outputs, time_after: tuple[int, ...]
) -> tuple[str, ...]:
    """Return a note for each feedback whose values leave the range of the contexts at once.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
    outputs : mapping of str to array
        Trajectory of each output, ``[context, time, …]``.
    time_after : tuple of int
        Number of time values after 0, 1, … steps.
    """
    notes: list[str] = []
    steps = min(_FIRST_STEPS, len(time_after) - 1)
    for feedback in spec.feedback:
        given, made = contexts.arrays.get(feedback.input), outputs.get(feedback.output)
        if given is None or made is None or given.dtype.kind != "f" or not _is_whole(feedback, made):
            continue
        fed = made[:, : time_after[steps]].astype(np.float64) * feedback.scale[0] + feedback.offset[0]
        low, high = float(np.nanmin(given)), float(np.nanmax(given))
        least, most = float(np.nanmin(fed)), float(np.nanmax(fed))
        if least < low - (high - low) or most > high + (high - low):
            notes.append(
                f"{feedback.output!r}, fed back to {feedback.input!r}, leaves the range of the contexts within "
                f"{steps} step{'s' if steps > 1 else ''} ({least:.3g} … {most:.3g} against {low:.3g} … {high:.3g}): "
                "check scale and offset of its [[feedback]]"
            )
    return tuple(notes)


def _is_whole(feedback: Feedback, made: NDArray[Any]) -> bool:
    """Return whether the trajectory holds what is fed back, with one scale and offset."""
    if len(feedback.scale) > 1 or len(feedback.offset) > 1 or made.size == 0:
        return False
    return not feedback.select or int(np.prod(made.shape[2:])) == 1


def without_skill(spec: RolloutSpec, contexts: Contexts, outputs: Outputs) -> tuple[str, ...]:
    """Return a note for each variable whose forecast is worse than naive ones; see the module docstring."""
    known = {n: t for n, t in contexts.truth.items() if n in outputs and t.shape[2:] == outputs[n].shape[2:]}
    if known.keys() != outputs.keys():
        return ()
    truth, made = by_variable(known, spec, contexts), by_variable(dict(outputs), spec, contexts)
    notes: list[str] = []
    for name, forecast in made.items():
        right = truth[name].astype(np.float64)
        n_time = min(forecast.shape[1], right.shape[1])
        right, ours = right[:, :n_time], forecast[:, :n_time].astype(np.float64)
        if np.isnan(right).any() or len(right) < _FEWEST_CONTEXTS:
            continue
        naive = {"its mean over the contexts": right.mean(axis=(0, 1), keepdims=True)}
        if n_time > 1:
            naive["its first value held"] = right[:, :1]
        errors = {what: float(np.mean(np.abs(right - guess))) for what, guess in naive.items()}
        error = float(np.mean(np.abs(ours - right)))
        if error > max(errors.values()):
            than = " and ".join(f"{what} ({value:.3g})" for what, value in errors.items())
            notes.append(
                f"FP32 forecasts of {name!r} miss the truth by {error:.3g} on average, more than {than} would: check "
                "scale and offset of the [[feedback]], and the units of contexts and truth"
            )
    return tuple(notes)
