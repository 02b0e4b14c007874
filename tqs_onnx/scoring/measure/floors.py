"""Measures the two floors of a session: differences without a perturbation, below which a score has no meaning.

The noise floor is measured between two nominal rollouts, the rounding floor with an initial state changed by one unit
in the last place; the rounding floor is never below the noise floor.

Sessions are compiled separately and may compute differently. Each therefore has its own floors, and a weight is judged
by those of the session in which it was perturbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts, made_of_parts
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.station import Station
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan

#: Values that are changed at a time; an even number.
_BLOCK_VALUES = 1 << 18


@dataclass(frozen=True, slots=True)
class SessionFloors:
    """The floors of one session of a job.

    Parameters
    ----------
    session : int
        Index of its group in the plan.
    floors : Floors
    """

    session: int
    floors: Floors


def floors_of(plan: SweepPlan, station: Station, session: int) -> Floors:
    """Measure the floors of a session: a second nominal rollout, and one from a slightly changed state.

    The second rollout replaces a weight by its own values; if sessions are rebuilt, this builds another session.
    """
    meter, injection = station.meter, station.injection
    same = {w.name: injection.values(w) for w in plan.weights_of(session)[:1]}
    again = injection.prepare(same).squares(meter.held)
    noise = meter.measure(again, 0.0).energy.max(axis=0)
    try:
        moved = injection.squares_from(nudged(plan.contexts, plan.spec), meter.held)
        rounding = np.maximum(noise, meter.measure(moved, 0.0).energy.max(axis=0))
    except NonFiniteError:
        rounding = noise
    return Floors(
        noise=float(noise[-1]),
        rounding=float(rounding[-1]),
        rounding_at=tuple(float(v) for v in rounding),
    )


def nudged(contexts: Contexts, spec: RolloutSpec) -> Contexts:
    """Return contexts whose float32 and float64 states differ by one unit in the last place, up and down in turn."""
    states = {f.input for f in spec.feedback}
    arrays = {n: _nudged(a) if n in states else a for n, a in contexts.arrays.items()}
    return replace(contexts, arrays=arrays)


def _nudged(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.name not in ("float32", "float64"):
        return array
    return made_of_parts(_nudged_parts(array), array)


def _nudged_parts(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    values = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, values.size, _BLOCK_VALUES):
        block = values[start : start + _BLOCK_VALUES]
        signs = np.full(block.shape, np.inf, array.dtype)
        signs[1::2] = -np.inf
        # Zeros are not changed: they may mark missing data.
        yield np.where(block == 0, block, np.nextafter(block, signs))
