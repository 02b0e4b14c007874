"""Executes scoring tasks; the same code runs in every worker.

A measurement is a function of the plan alone: every worker opens the same sessions, runs the same nominal rollouts, and
computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tqs_onnx.rollout.injection import Exposable
from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.floors import SessionFloors, floors_of
from tqs_onnx.scoring.measure.station import (
    Frame,
    Station,
    frame_of,
    measured,
    open_station,
    perturbation,
    prepare,
    prepared,
)
from tqs_onnx.scoring.measure.task import Finding, Kept, Task
from tqs_onnx.scoring.plan.group_test import families, is_worth_testing, settle
from tqs_onnx.scoring.plan.perturbation import Perturbation, Rollout
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan


class Desk:
    """Executes tasks one after another; the session of the last task stays open, because the next task may reuse it.

    Parameters
    ----------
    plan : SweepPlan
    source : Exposable
        The plan's model.
    """

    def __init__(self, plan: SweepPlan, source: Exposable) -> None:
        self._plan = plan
        self._source = source
        self._session = -1
        self._station: Station | None = None
        self._floors: Floors | None = None

    def frame(self) -> Frame:
        """Return σ and the trajectory size of the job's nominal rollout, from the job's first session.

        Raises
        ------
        InputError
            The model does not run, or its nominal rollout is not finite.
        """
        return frame_of(self._opened(0, None))

    def measure(self, frame: Frame, task: Task) -> Iterator[Finding]:
        """Execute a task and yield each result as soon as it is available.

        Raises
        ------
        InputError
            The model does not run, or a session's nominal rollout is not finite.
        """
        station, floors = self._opened(task.session, frame), task.floors
        if floors is None and (task.measures_floors or self._plan.options.group_test):
            floors = self._floors = self._floors or floors_of(self._plan, station, task.session)
        if floors is not None and task.measures_floors:
            yield SessionFloors(task.session, floors)
        if floors is not None and self._plan.options.group_test:
            yield from _in_families(self._plan, station, floors, task)
        else:
            yield from _one_by_one(self._plan, station, task.todo)

    def _opened(self, session: int, frame: Frame | None) -> Station:
        if self._station is None or self._session != session:
            self._station = self._floors = None  # free the old session before building the new one
            self._station = open_station(self._plan, self._source, session, frame)
            self._session = session
        return self._station


def _in_families(plan: SweepPlan, station: Station, floors: Floors, task: Task) -> Iterator[Kept]:
    def todo_of(targets: Sequence[Perturbation]) -> dict[str, Rollout]:
        keyed = {r.key(plan.job): r for t in targets for r in plan.rollouts(t)}
        return {key: rollout for key, rollout in keyed.items() if key in task.todo}

    for family in families(plan.targets_of(task.session)):
        if not is_worth_testing(family) or not todo_of(family):
            yield from _one_by_one(plan, station, todo_of(family))
            continue
        # Settle the whole family, whatever is missing: the results must not depend on where a run stopped.
        head, rest = family[0], family[1:]
        yield from _one_by_one(plan, station, todo_of((head,)))
        settled: tuple[Perturbation, ...] = ()
        if _still(plan, station, floors, (head,)):
            settled, rest = settle(rest, lambda some: _still(plan, station, floors, some))
        if found := _settled(station, todo_of(settled)):
            yield found
        yield from _one_by_one(plan, station, todo_of(rest))


def _one_by_one(plan: SweepPlan, station: Station, todo: Mapping[str, Rollout]) -> Iterator[Kept]:
    for key, ready in zip(todo, prepared(todo.values(), station.injection), strict=True):
        yield ((key, measured(plan, station, ready)),)


def _still(plan: SweepPlan, station: Station, floors: Floors, targets: Sequence[Perturbation]) -> bool:
    """Whether perturbing all targets at once, by the probe and by the coarsest response, moves nothing."""
    weights = tuple(w for t in targets for w in t.weights)
    rollouts = [replace(r, weights=weights) for r in plan.rollouts(targets[0])]
    for rollout in (rollouts[0], min(rollouts, key=lambda r: r.probe.bits)):
        m = measured(plan, station, prepare(rollout, station.injection))
        if not m.finite or m.delta_sq == 0.0 or m.energy[:, -1].max() > floors.noise:
            return False
    return True


def _settled(station: Station, todo: Mapping[str, Rollout]) -> Kept:
    deltas = {key: perturbation(rollout, station.injection)[1] for key, rollout in todo.items()}
    return tuple((key, station.meter.blank(delta_sq)) for key, delta_sq in deltas.items())
