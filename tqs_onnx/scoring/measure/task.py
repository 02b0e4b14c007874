"""Tasks, the units of work of scoring: rollouts of one session; and the form in which their results are returned.

Tasks decide where a rollout is measured, never its result: the plan fixes the session, so a rollout gives the same bits
in any task, on any worker, in any order. A rollout is the smallest unit: its contexts run together, and if early stop
is on, its first chunk of contexts decides for the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.floors import SessionFloors
from tqs_onnx.scoring.measure.meter import Measurement
from tqs_onnx.scoring.plan.group_test import families
from tqs_onnx.scoring.plan.perturbation import Rollout
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan

#: Measurements by key, stored in one transaction.
Kept = tuple[tuple[str, Measurement], ...]
#: One result of a task: a session's floors or some measurements.
Finding = Kept | SessionFloors
#: Maximum rollouts per part; small, so that little is lost with a worker.
_MOST_ROLLOUTS = 4
#: Parts per worker, enough to keep all workers busy until the end.
_PARTS_PER_WORKER = 4


@dataclass(frozen=True, slots=True)
class Task:
    """Rollouts of one session that must be measured.

    Parameters
    ----------
    session : int
        Index of its group in the plan.
    todo : dict of str to Rollout
        The rollouts without a measurement, by the keys of their measurements.
    floors : Floors or None
        The session's floors, if known.
    measures_floors : bool
        Whether the floors must be measured first.
    """

    session: int
    todo: Mapping[str, Rollout]
    floors: Floors | None = None
    measures_floors: bool = False

    def without(self, found: Finding) -> Task:
        """Return the rest of the task after a result of it has arrived."""
        if isinstance(found, SessionFloors):
            return replace(self, floors=found.floors, measures_floors=False)
        gone = {key for key, _ in found}
        return replace(self, todo={key: r for key, r in self.todo.items() if key not in gone})


def tasks_of(plan: SweepPlan, have: Collection[str], floors: Mapping[int, Floors]) -> tuple[Task, ...]:
    """Return a task for each session that lacks measurements or floors; `have`: keys of stored measurements."""
    found: list[Task] = []
    for session in range(plan.n_sessions):
        keyed = {r.key(plan.job): r for t in plan.targets_of(session) for r in plan.rollouts(t)}
        todo = {key: rollout for key, rollout in keyed.items() if key not in have}
        known = floors.get(session)
        if todo or known is None:
            found.append(Task(session, todo, known, measures_floors=known is None))
    return tuple(found)


def parts_of(plan: SweepPlan, tasks: tuple[Task, ...], workers: int) -> tuple[Task, ...]:
    """Return the tasks in parts, for a number of workers; with group tests a family stays whole."""
    n_rollouts = sum(len(t.todo) for t in tasks)
    size = max(1, min(_MOST_ROLLOUTS, n_rollouts // (_PARTS_PER_WORKER * workers)))
    return tuple(part for task in tasks for part in _cut(plan, task, size))


def labels_of(task: Task) -> str:
    """Return the weights of a task's rollouts, without duplicates."""
    return ", ".join(dict.fromkeys(w.label for r in task.todo.values() for w in r.weights))


def _cut(plan: SweepPlan, task: Task, size: int) -> Iterator[Task]:
    pieces = list(_families(plan, task) if plan.options.group_test else _runs(task, size))
    for i, piece in enumerate(pieces or [{}]):
        yield replace(task, todo=piece, measures_floors=task.measures_floors and i == 0)


def _runs(task: Task, size: int) -> Iterator[dict[str, Rollout]]:
    items = list(task.todo.items())
    for start in range(0, len(items), size):
        yield dict(items[start : start + size])


def _families(plan: SweepPlan, task: Task) -> Iterator[dict[str, Rollout]]:
    for family in families(plan.targets_of(task.session)):
        keys = {r.key(plan.job) for t in family for r in plan.rollouts(t)}
        if piece := {key: rollout for key, rollout in task.todo.items() if key in keys}:
            yield piece
