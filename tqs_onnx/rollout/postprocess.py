"""The post-processing of TimesFM's package, for any rollout: flip invariance and non-negative forecasts.

    flip invariance   Y = (R(x) − R(−x)) / 2, R the whole rollout: both feed back their own outputs, not the average
    non-negative      Y = max(Y, 0) for every context whose states have no negative value; Y is not fed back

States are the inputs that are fed back; forcings, masks and static inputs stay unchanged. Of quantiles, keep only the
mean or the median (`trajectory.select`), because the others would have to swap places. Both act on one value at a
time, so they are applied step by step. Source:
`force_flip_invariance` and `infer_is_positive` of the PyTorch package `timesfm` (its decoder, not its network). NumPy
only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts, blocks_of, made_of_parts
from tqs_onnx.rollout.spec.spec import RolloutSpec


def states(spec: RolloutSpec) -> tuple[str, ...]:
    """Return the names of the inputs that are fed back, each once."""
    return tuple(dict.fromkeys(f.input for f in spec.feedback))


def without_mirror(spec: RolloutSpec) -> RolloutSpec:
    """Return a spec without flip invariance and without a bound at zero."""
    rollout = spec.rollout.model_copy(update={"flip_invariant": False, "non_negative": False})
    return spec.model_copy(update={"rollout": rollout})


def flipped(contexts: Contexts, spec: RolloutSpec) -> Contexts:
    """Return contexts whose states are negated."""
    arrays = {n: contexts.arrays[n] for n in states(spec)}
    turned = {n: made_of_parts((-block for block in blocks_of(a)), a) for n, a in arrays.items()}
    return replace(contexts, arrays=contexts.arrays | turned)


def averaged(plain: NDArray[np.float32], turned: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return half the difference between an output and that of the flipped contexts."""
    result: NDArray[np.float32] = (plain - turned) * np.float32(0.5)
    return result


def without_negatives(contexts: Contexts, spec: RolloutSpec, rows: slice | list[int]) -> NDArray[np.bool_]:
    """Return which of these contexts have no negative value in any state, bool [context]."""
    arrays = [contexts.arrays[name][rows] for name in states(spec)]
    free = np.ones(len(arrays[0]), np.bool_)
    for array in arrays:
        free &= (array >= 0).reshape(len(array), -1).all(axis=1)
    return free


def bounded(array: NDArray[np.float32], free: NDArray[np.bool_], axis: int | None) -> NDArray[np.float32]:
    """Return an output without negative values for the contexts that are `free` of them.

    Parameters
    ----------
    array : float32 array
        An ONNX output, of any rank.
    free : bool array [context]
    axis : int or None
        The axis of the contexts; None: the output belongs to one context.
    """
    chosen = free if axis is None else free.reshape(*(1,) * axis, -1, *(1,) * (array.ndim - axis - 1))
    return np.where(chosen, np.maximum(array, np.float32(0)), array)
