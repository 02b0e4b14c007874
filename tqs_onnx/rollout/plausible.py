"""Notes on rollouts that a wrong spec makes implausible: no scale or offset where input and output differ in units.

    range    what is fed back leaves the range of the contexts by more than its width within the first steps
    skill    against the truth, the forecast is worse than the truth's first value held, and than its mean

Neither is an error: a model may be poor, and contexts few. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import Feedback, RolloutSpec
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.variables import by_variable

#: Number of steps within which a rollout with wrong units leaves the range of its contexts.
_FIRST_STEPS = 3
#: Fewest contexts whose mean says something.
_FEWEST_CONTEXTS = 4


@dataclass(slots=True)
class FirstSteps:
    """Takes the pieces of a rollout, and keeps the extremes of its first steps.

    Parameters
    ----------
    extremes : dict of str to (float, float)
        Least and largest value of each output.
    rest : dict of str to tuple of int
        Shape of each output, without context and time.
    steps : int
        Steps that were taken.
    """

    extremes: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    rest: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    steps: int = 0

    def add(self, piece: Piece) -> None:
        """Take a piece; those of later steps are ignored."""
        if piece.step > _FIRST_STEPS:
            return
        self.steps = max(self.steps, piece.step)
        for name, array in piece.outputs.items():
            if array.size == 0:
                continue
            least, most = float(np.nanmin(array)), float(np.nanmax(array))
            low, high = self.extremes.get(name, (least, most))
            self.extremes[name] = min(low, least), max(high, most)
            self.rest[name] = array.shape[2:]


def out_of_range(spec: RolloutSpec, contexts: Contexts, first: FirstSteps) -> tuple[str, ...]:
    """Return a note for each feedback whose values leave the range of the contexts at once.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
    first : FirstSteps
        Of the rollout of these contexts.
    """
    notes: list[str] = []
    steps = first.steps
    for feedback in spec.feedback:
        given, made = contexts.arrays.get(feedback.input), first.extremes.get(feedback.output)
        if given is None or made is None or given.dtype.kind != "f":
            continue
        if not _is_whole(feedback, first.rest[feedback.output]):
            continue
        ends = [end * feedback.scale[0] + feedback.offset[0] for end in made]
        low, high = float(np.nanmin(given)), float(np.nanmax(given))
        least, most = min(ends), max(ends)
        if least < low - (high - low) or most > high + (high - low):
            notes.append(
                f"{feedback.output!r}, fed back to {feedback.input!r}, leaves the range of the contexts within "
                f"{steps} step{'s' if steps > 1 else ''} ({least:.3g} … {most:.3g} against {low:.3g} … {high:.3g}): "
                "check scale and offset of its [[feedback]]"
            )
    return tuple(notes)


def _is_whole(feedback: Feedback, rest: tuple[int, ...]) -> bool:
    """Return whether the trajectory holds what is fed back, with one scale and offset."""
    if len(feedback.scale) > 1 or len(feedback.offset) > 1:
        return False
    return not feedback.select or math.prod(rest) == 1


def without_skill(spec: RolloutSpec, contexts: Contexts, errors: Mapping[str, float]) -> tuple[str, ...]:
    """Return a note for each variable whose forecast is worse than naive ones; see the module docstring.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
    errors : mapping of str to float
        Mean absolute error of the FP32 forecast against the truth, for each variable with truth.
    """
    if not errors:
        return ()
    truth = by_variable(dict(contexts.truth), spec, contexts)
    notes: list[str] = []
    for name, error in errors.items():
        right = truth[name].astype(np.float64)
        if np.isnan(right).any() or len(right) < _FEWEST_CONTEXTS:
            continue
        naive = {"its mean over the contexts": right.mean(axis=(0, 1), keepdims=True)}
        if right.shape[1] > 1:
            naive["its first value held"] = right[:, :1]
        misses = {what: float(np.mean(np.abs(right - guess))) for what, guess in naive.items()}
        if error > max(misses.values()):
            than = " and ".join(f"{what} ({value:.3g})" for what, value in misses.items())
            notes.append(
                f"FP32 forecasts of {name!r} miss the truth by {error:.3g} on average, more than {than} would: check "
                "scale and offset of the [[feedback]], and the units of contexts and truth"
            )
    return tuple(notes)
