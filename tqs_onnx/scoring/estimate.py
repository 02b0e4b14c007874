"""Estimates the cost of scoring: its sessions and rollouts, and its time and memory from one timed rollout."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tqs_onnx.scoring.measure.station import exposable_of, open_station
from tqs_onnx.scoring.plan.memory import memory_of
from tqs_onnx.scoring.plan.strategy import NOMINAL_ROLLOUTS
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated cost of scoring.

    Parameters
    ----------
    how : str
        How weights are injected, see `tqs_onnx.scoring.plan.strategy`.
    sessions : int
        Number of sessions, each with its own nominal rollout and floors.
    rollouts : int
        Number of perturbed rollouts, without the savings of early stop and group tests.
    chunk : int
        Contexts per call.
    rollout_s, build_s : float
        Measured: one nominal rollout, and building its session.
    time_s : float
        Estimated time in one process.
    memory_bytes : int
        Memory, estimated from the graph.
    """

    how: str
    sessions: int
    rollouts: int
    chunk: int
    rollout_s: float
    build_s: float
    time_s: float
    memory_bytes: int


def estimate(plan: SweepPlan) -> Estimate:
    """Roll out once and estimate the rest; nothing is stored.

    Raises
    ------
    InputError
        The model does not run, or its nominal rollout is not finite.
    """
    source = exposable_of(plan)
    start = time.perf_counter()
    station = open_station(plan, source, 0)
    opened = time.perf_counter()
    station.injection.prepare({}).squares(station.meter.held)
    rollout_s = time.perf_counter() - opened
    build_s = max(0.0, opened - start - rollout_s)
    sessions = plan.n_sessions
    n_built = plan.n_rollouts if plan.how == "rebuild" else sessions
    return Estimate(
        how=plan.how,
        sessions=sessions,
        rollouts=plan.n_rollouts,
        chunk=plan.batch,
        rollout_s=rollout_s,
        build_s=build_s,
        time_s=(plan.n_rollouts + NOMINAL_ROLLOUTS * sessions) * rollout_s + n_built * build_s,
        memory_bytes=memory_of(source, plan.spec, plan.contexts).total(plan.batch),
    )
