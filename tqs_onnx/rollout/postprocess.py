"""The post-processing of TimesFM's package, for any rollout: flip invariance and non-negative forecasts.

    flip invariance   Y = (R(x) − R(−x)) / 2, R the whole rollout: both are rolled out to the end, then averaged
    non-negative      Y = max(Y, 0) for every context whose states have no negative value

States are the inputs that are fed back; forcings, masks and static inputs stay unchanged. Of quantiles, keep only the
mean or the median (`trajectory.select`), because the others would have to swap places. Source:
`force_flip_invariance` and `infer_is_positive` of the PyTorch package `timesfm` (its decoder, not its network). NumPy
only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.trajectory import Trajectory


def states(spec: RolloutSpec) -> tuple[str, ...]:
    """Return the names of the inputs that are fed back, each once."""
    return tuple(dict.fromkeys(f.input for f in spec.feedback))


def without_mirror(spec: RolloutSpec) -> RolloutSpec:
    """Return a spec without flip invariance and without a bound at zero."""
    rollout = spec.rollout.model_copy(update={"flip_invariant": False, "non_negative": False})
    return spec.model_copy(update={"rollout": rollout})


def flipped(contexts: Contexts, spec: RolloutSpec) -> Contexts:
    """Return contexts whose states are negated."""
    turned = set(states(spec))
    return replace(contexts, arrays={n: -a if n in turned else a for n, a in contexts.arrays.items()})


def averaged(plain: Trajectory, turned: Trajectory) -> Trajectory:
    """Return half the difference between a trajectory and that of the flipped contexts."""
    outputs = {n: (a - turned.outputs[n]) * np.float32(0.5) for n, a in plain.outputs.items()}
    return replace(plain, outputs=outputs)


def bounded(trajectory: Trajectory, contexts: Contexts, spec: RolloutSpec) -> Trajectory:
    """Return a trajectory without negative values for contexts whose states have none."""
    rows = slice(trajectory.contexts.start, trajectory.contexts.stop)
    free = np.ones(len(trajectory.contexts), np.bool_)
    for name in states(spec):
        array = contexts.arrays[name][rows]
        free &= (array >= 0).reshape(len(array), -1).all(axis=1)
    return replace(trajectory, outputs={n: _bounded(a, free) for n, a in trajectory.outputs.items()})


def _bounded(array: NDArray[np.float32], free: NDArray[np.bool_]) -> NDArray[np.float32]:
    chosen = free.reshape(-1, *(1,) * (array.ndim - 1))
    return np.where(chosen, np.maximum(array, np.float32(0)), array)
