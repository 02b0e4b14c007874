"""Checks evaluation contexts and their truth by one call of the model, before anything is scored."""

from __future__ import annotations

from pathlib import Path

from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import in_time
from tqs_passes.errors import InputError


def require_truth_fits(source: Path, bed: Testbed) -> None:
    """Refuse evaluation contexts that the model does not run on, and truth of another shape than the trajectory.

    Parameters
    ----------
    source : Path
    bed : Testbed
        Holds the evaluation contexts.

    Raises
    ------
    InputError
        The model fails on the contexts, or a truth is not ``[context, time, …]`` as the trajectory is.
    """
    spec, contexts = bed.spec, bed.contexts
    axis = spec.rollout.batch_axis
    for name, array in bed.first_outputs(source).items():
        truth = contexts.truth.get(name)
        if truth is None:
            continue
        n = 1 if axis is None else min(array.shape[axis], contexts.n_contexts)
        _, per_step, *rest = in_time(array, spec, n).shape
        if truth.ndim >= 2 and list(truth.shape[2:]) == rest:
            continue
        n_time = min(per_step * spec.rollout.steps, spec.rollout.length or per_step * spec.rollout.steps)
        whole = list(array.shape)
        if axis is not None:
            del whole[axis]
        todo = "Store the truth as [context, time, …], like the trajectory"
        if spec.trajectory.time_axis is None and list(truth.shape[1:]) == whole and spec.rollout.steps == 1:
            time_axis = 0 if axis is None or axis > 0 else 1
            todo = f"Set time_axis in [trajectory] to the output's axis of time, e.g. {time_axis}"
        raise InputError(
            f"truth/{name} is {list(truth.shape)}, the trajectory will be {[contexts.n_contexts, n_time, *rest]}",
            where=contexts.source,
            todo=todo,
        )
