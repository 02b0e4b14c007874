"""Ask a model by calling it whether an output behaves like the next value of an input.

A frame (equal shapes) is a next value if it goes with its input from case to case and if the model, fed with its own
result, moves on: a reconstruction or a denoiser gives its own result back. A series is continued if its first new value
goes with the last known one, and moves with that one more than with most of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.draft.pairs import Pair, Way
from tqs_onnx.rollout.draft.trial import Array, Trial
from tqs_passes.errors import InputError

#: Least correlation, over cases, of a next value with the value it follows.
_FOLLOWS = 0.5
#: A model that moves its own result by less than this share of its first move gives it back: a projection.
_STILL = 0.2
#: Share of a window's values that may move the first new value more than the last one does.
_BEFORE = 0.25
#: Growth of the largest value over the steps of `stays_bounded` that no forecast has.
_BLOWN_UP = 1e3
_STEPS = 50
_FEW = 4
_PROBED = 64


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A model and cases to ask it with.

    Parameters
    ----------
    trial : Trial
    cases : mapping of str to array
        [case, *core] for each input.
    """

    trial: Trial
    cases: Mapping[str, Array]

    def follows(self, pair: Pair) -> bool:
        """Return whether the output behaves like the next value of the input; see the module docstring."""
        try:
            return self._frame(pair) if pair.way is Way.FRAME else self._series(pair)
        except InputError:
            return False

    def stays_bounded(self, pair: Pair) -> bool:
        """Return whether the model, fed with its own results for some steps, stays finite and bounded."""
        inputs = {name: array[:_FEW] for name, array in self.cases.items()}
        first = _largest(inputs[pair.input])
        try:
            for _ in range(_STEPS):
                made = self.trial.call(inputs)[pair.output]
                inputs[pair.input] = _fed(pair, made, inputs[pair.input])
                if not np.isfinite(inputs[pair.input].astype(np.float64)).all():
                    return False
        except InputError:
            return False
        return _largest(inputs[pair.input]) <= _BLOWN_UP * max(first, 1e-6)

    def _frame(self, pair: Pair) -> bool:
        inputs = dict(self.cases)
        before = inputs[pair.input].astype(np.float64)
        inputs[pair.input] = _fed(pair, self.trial.call(inputs)[pair.output], inputs[pair.input])
        once = inputs[pair.input].astype(np.float64)
        twice = _fed(pair, self.trial.call(inputs)[pair.output], inputs[pair.input]).astype(np.float64)
        moved = float(np.linalg.norm(once - before))
        if moved <= 1e-6 * float(np.linalg.norm(before)):
            return False
        return _correlation(before, once) >= _FOLLOWS and float(np.linalg.norm(twice - once)) > _STILL * moved

    def _series(self, pair: Pair) -> bool:
        if pair.axis is None:
            return False
        window = self.cases[pair.input]
        axis = pair.axis + 1
        if window.shape[axis] < 4:
            return False
        made = self.trial.call(self.cases)[pair.output]
        first = _first_value(pair, made, window)
        last = np.take(window, -1, axis).astype(np.float64)
        if _correlation(last, first) < _FOLLOWS:
            return False
        return self._is_moved_by_the_last(pair, axis)

    def _is_moved_by_the_last(self, pair: Pair, axis: int) -> bool:
        """Return whether the last value of the window moves the first new one more than most others do."""
        window = self.cases[pair.input]
        length = window.shape[axis]
        places = np.unique(np.linspace(0, length - 1, min(length, _PROBED)).astype(int))
        one = {name: array[:1] for name, array in self.cases.items()}
        step = 0.1 * (float(np.std(window.astype(np.float64))) or 1.0)
        nominal = _first_value(pair, self.trial.call(one)[pair.output], one[pair.input])
        moves: list[float] = []
        for place in places:
            moved = one[pair.input].copy()
            index: list[slice | int] = [slice(None)] * moved.ndim
            index[axis] = int(place)
            moved[tuple(index)] += np.asarray(step, moved.dtype)
            made = self.trial.call({**one, pair.input: moved})[pair.output]
            moves.append(float(np.linalg.norm(_first_value(pair, made, moved) - nominal)))
        return sum(move > moves[-1] for move in moves[:-1]) <= _BEFORE * len(moves)


def _first_value(pair: Pair, made: Array, window: Array) -> NDArray[np.float64]:
    """Return the first new value, shaped as one value of the window."""
    assert pair.axis is not None
    fed = _part(pair, made)
    if pair.expand is not None:
        fed = np.expand_dims(fed, pair.expand + 1)
    first: NDArray[np.float64] = np.take(fed, 0, pair.axis + 1).astype(np.float64)
    return first


def _part(pair: Pair, made: Array) -> Array:
    if pair.select is None:
        return made
    axis, start, stop = pair.select
    part: Array = np.take(made, start if start == stop else np.arange(start, stop), axis + 1)
    return part


def _fed(pair: Pair, made: Array, current: Array) -> Array:
    """Return the next input: the output in its place, or appended while the oldest values are dropped."""
    fed = _part(pair, made)
    if pair.expand is not None:
        fed = np.expand_dims(fed, pair.expand + 1)
    if pair.axis is None:
        return fed.astype(current.dtype)
    axis = pair.axis + 1
    joined = np.concatenate([current, fed.astype(current.dtype)], axis)
    size, new = current.shape[axis], joined.shape[axis]
    kept: Array = np.take(joined, np.arange(new - size, new), axis)
    return kept


def _largest(array: Array) -> float:
    return float(np.max(np.abs(array.astype(np.float64)), initial=0.0))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the correlation over cases: what every case has in common does not count."""
    da, db = a - a.mean(0), b - b.mean(0)
    norm = float(np.linalg.norm(da) * np.linalg.norm(db))
    return float(np.sum(da * db)) / norm if norm > 0 else 0.0
