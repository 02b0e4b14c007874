"""Roll made contexts out: to make their states the model's own, and to find those whose rollout explodes.

Contexts run in blocks of a fixed size, the last one filled up, so that a context does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.session import Session
from tqs_onnx.rollout.spec.check import fixed_batch
from tqs_onnx.rollout.spec.spec import RolloutSpec

Arrays = dict[str, NDArray[Any]]

#: Contexts of one block, if the model runs any number at once.
BLOCK = 16
#: A rollout explodes if a value grows beyond this many times the largest of its first step and its context.
MOST_GROWTH = 1e3


class Roller:
    """Rolls out blocks of contexts.

    Parameters
    ----------
    session : Session
    spec : RolloutSpec
    """

    def __init__(self, session: Session, spec: RolloutSpec) -> None:
        self._session = session
        self._spec = spec
        self._fed = tuple(dict.fromkeys(f.input for f in spec.feedback))
        fixed = fixed_batch(spec, session.signature)
        self._block = 1 if spec.rollout.batch_axis is None else fixed or BLOCK

    def after(self, arrays: Mapping[str, NDArray[Any]], steps: int) -> Arrays:
        """Return the fed inputs [context, …] after a number of steps.

        Raises
        ------
        InputError
            The model fails on these contexts.
        """
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in self._fed}
        spec = self._spec.with_steps(steps + 1)
        for block, n in _blocks(arrays, self._block):
            for step, (inputs, _) in enumerate(self._calls(spec, block)):
                if step == steps:
                    for name in self._fed:
                        found[name].append(self._by_context(inputs[name].numpy(), name)[:n].copy())
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def explodes(self, arrays: Mapping[str, NDArray[Any]], steps: int | None = None) -> NDArray[np.bool_]:
        """Return, by context, whether the rollout is not finite or grows beyond `MOST_GROWTH`.

        Raises
        ------
        InputError
            The model fails on these contexts.
        """
        spec = self._spec if steps is None else self._spec.with_steps(steps)
        found: list[NDArray[np.bool_]] = []
        for block, n in _blocks(arrays, self._block):
            size = len(next(iter(block.values())))
            limit = np.zeros(size)
            for name in self._fed:
                limit = np.maximum(limit, _largest(block[name], size))
            bad = np.zeros(size, bool)
            for step, (_, outputs) in enumerate(self._calls(spec, block)):
                most = np.zeros(size)
                for name in spec.trajectory.outputs:
                    most = np.maximum(most, _largest(self._by_context(outputs[name].numpy(), None), size))
                if step == 0:
                    limit = MOST_GROWTH * np.maximum(limit, most)
                bad |= ~(np.isfinite(most) & (most <= limit))
            found.append(bad[:n])
        return np.concatenate(found)

    def _calls(self, spec: RolloutSpec, block: Arrays) -> Iterator[tuple[Any, Any]]:
        """Yield (inputs, outputs) of every call of one block."""
        contexts = Contexts(block, {}, source="made contexts")
        return Engine(self._session, spec, contexts, batch=self._block).walk(extra=spec.trajectory.outputs)

    def _by_context(self, array: NDArray[Any], name: str | None) -> NDArray[Any]:
        axis = self._spec.rollout.batch_axis
        if axis is None or name in self._spec.shared or array.ndim <= axis:
            return array[None]
        return np.moveaxis(array, axis, 0)


def _blocks(arrays: Mapping[str, NDArray[Any]], size: int) -> Iterator[tuple[Arrays, int]]:
    """Yield blocks of contexts, the last one filled up with its last context, and their number of contexts."""
    n = len(next(iter(arrays.values())))
    for start in range(0, n, size):
        indices = [min(i, n - 1) for i in range(start, start + size)]
        yield {name: array[indices] for name, array in arrays.items()}, min(size, n - start)


def grown(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    """Return, by context, whether a state is not finite or beyond `MOST_GROWTH` times the one it was rolled out from.

    A state that was zero only has to be finite.
    """
    n = len(before)
    start, end = _largest(before, n), _largest(after, n)
    return ~np.isfinite(end) | ((start > 0) & (end > MOST_GROWTH * start))


def _largest(array: NDArray[Any], size: int) -> NDArray[np.float64]:
    """Return the largest absolute value of every context; NaN if one is not a number."""
    values = np.abs(array.astype(np.float64))
    if len(values) != size:
        return np.full(size, values.max(initial=0.0))
    return np.asarray(values.reshape(size, -1).max(axis=1, initial=0.0))
