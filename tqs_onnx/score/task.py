"""The unit of work of a sweep: some targets of one session; and what whoever measures them gives back.

Tasks say what is measured where, never how it comes out: a rollout gives the same bits in any task, on any worker, in
any order, because the session it runs in is fixed by the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tqs_onnx.score.floors import SessionFloors
from tqs_onnx.score.measure import Measurement
from tqs_onnx.score.plan import Plan
from tqs_onnx.score.store import Floors
from tqs_onnx.score.target import Target

#: Keyed measurements that are kept in one transaction.
Kept = tuple[tuple[str, Measurement], ...]
#: What measuring a task gives, piece by piece.
Found = Kept | SessionFloors
#: Most targets of a part: few, so that little is lost with a worker.
_MOST_TARGETS = 4
#: Parts per worker that keep all of them busy to the end.
_PARTS_PER_WORKER = 4


@dataclass(frozen=True, slots=True)
class Task:
    """Targets of one session that are to be measured.

    Parameters
    ----------
    session : int
        Index of its group in the plan.
    targets : tuple of Target
        Those that lack a measurement.
    have : frozenset of str
        Keys of theirs that are kept already.
    floors : Floors or None
        The session's floors, where they are known.
    measures_floors : bool
        They are to be measured first.
    """

    session: int
    targets: tuple[Target, ...]
    have: frozenset[str]
    floors: Floors | None = None
    measures_floors: bool = False

    def without(self, found: Found) -> Task:
        """Return what is left of the task once something of it has been found."""
        if isinstance(found, SessionFloors):
            return replace(self, floors=found.floors, measures_floors=False)
        return replace(self, have=self.have | {key for key, _ in found})


def tasks_of(plan: Plan, have: frozenset[str], floors: Mapping[int, Floors]) -> tuple[Task, ...]:
    """Return a task for each session that lacks measurements or its floors."""
    found: list[Task] = []
    for session in range(plan.n_sessions):
        targets = tuple(
            t for t in plan.targets_of(session) if any(r.key(plan.job) not in have for r in plan.rollouts(t))
        )
        known = floors.get(session)
        if targets or known is None:
            found.append(Task(session, targets, have, known, measures_floors=known is None))
    return tuple(found)


def parts_of(plan: Plan, tasks: tuple[Task, ...], workers: int) -> tuple[Task, ...]:
    """Return the tasks in parts, for so many workers; a session under group tests stays whole."""
    n_targets = sum(len(t.targets) for t in tasks)
    size = max(1, min(_MOST_TARGETS, n_targets // (_PARTS_PER_WORKER * workers)))
    return tuple(part for task in tasks for part in _cut(plan, task, size))


def _cut(plan: Plan, task: Task, size: int) -> Iterator[Task]:
    if plan.options.group_test:
        size = len(task.targets)
    for start in range(0, max(1, len(task.targets)), max(1, size)):
        targets = task.targets[start : start + size]
        keys = {r.key(plan.job) for t in targets for r in plan.rollouts(t)}
        first = task.measures_floors and start == 0
        yield replace(task, targets=targets, have=task.have & keys, measures_floors=first)
