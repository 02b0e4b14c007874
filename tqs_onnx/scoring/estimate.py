"""Estimates the cost of scoring: its sessions and rollouts, and its time and memory from one timed rollout."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tqs_onnx.rollout.contexts.context_set import n_mapped_bytes
from tqs_onnx.rollout.held import Where
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
        Memory, estimated from the graph: the sum of the four below, without a nominal rollout that lies in a file.
    weights_bytes, contexts_bytes, chunk_bytes, nominal_bytes : int
        Weights; contexts; activations and differences of one chunk; nominal rollout (see `plan.memory`).
    contexts_in_files_bytes : int
        Context arrays that lie in temporary files: no memory.
    nominal_in : {"device", "memory", "file"}
        Where the nominal rollout is held; on the CPU `device` is the memory.
    """

    how: str
    sessions: int
    rollouts: int
    chunk: int
    rollout_s: float
    build_s: float
    time_s: float
    memory_bytes: int
    weights_bytes: int
    contexts_bytes: int
    contexts_in_files_bytes: int
    chunk_bytes: int
    nominal_bytes: int
    nominal_in: Where


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
    memory = memory_of(source, plan.spec, plan.contexts, (t for group in plan.groups for t in group))
    place = memory.place(plan.run.max_memory, plan.batch, on_host=plan.run.provider == "cpu")
    return Estimate(
        how=plan.how,
        sessions=sessions,
        rollouts=plan.n_rollouts,
        chunk=plan.batch,
        rollout_s=rollout_s,
        build_s=build_s,
        time_s=(plan.n_rollouts + NOMINAL_ROLLOUTS * sessions) * rollout_s + n_built * build_s,
        memory_bytes=memory.total(plan.batch, in_file=place == "file"),
        weights_bytes=memory.beside(0) - memory.contexts,
        contexts_bytes=memory.contexts,
        contexts_in_files_bytes=n_mapped_bytes(plan.contexts),
        chunk_bytes=plan.batch * memory.per_context,
        nominal_bytes=memory.held,
        nominal_in=place,
    )
