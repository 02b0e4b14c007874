"""Measure what a plan asks for and a store does not hold yet, session by session, here or in worker processes.

Every measurement is handed on as soon as it is made. What is measured is a function of the plan: a worker opens the
same session, makes the same nominal rollout, and gives the same bits.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from tqs_onnx.score.engine import Exposable
from tqs_onnx.score.families import families, is_worth_testing, settle
from tqs_onnx.score.measure import Measurement
from tqs_onnx.score.plan import Plan
from tqs_onnx.score.rolling import (
    Frame,
    Station,
    exposable_of,
    measured,
    open_station,
    perturbation,
    prepare,
    prepared,
)
from tqs_onnx.score.target import Rollout, Target
from tqs_passes.errors import InputError

#: Keyed measurements that are kept in one transaction.
Kept = tuple[tuple[str, Measurement], ...]
#: Targets a worker is given at a time: few, so that little is lost with it.
_TARGETS_A_TASK = 4


@dataclass(frozen=True, slots=True)
class Task:
    """Targets of one session that are to be measured.

    Parameters
    ----------
    group : int
    targets : tuple of Target
        Those that lack a measurement.
    have : frozenset of str
        Keys that are kept already.
    """

    group: int
    targets: tuple[Target, ...]
    have: frozenset[str]


def tasks_of(plan: Plan, have: frozenset[str]) -> tuple[Task, ...]:
    """Return a task for each session that lacks measurements."""
    found: list[Task] = []
    for index, group in enumerate(plan.groups):
        lacking = tuple(t for t in group if any(r.key(plan.job) not in have for r in plan.rollouts(t)))
        if lacking:
            found.append(Task(index, lacking, have))
    return tuple(found)


def run_task(plan: Plan, station: Station, frame: Frame, task: Task) -> Iterator[Kept]:
    """Measure the targets of a task and yield what is to be kept."""
    if not plan.options.group_test:
        yield from _one_by_one(plan, station, task.targets, task.have)
        return
    for family in families(plan.groups[task.group]):
        missing = tuple(t for t in family if t in task.targets)
        if not is_worth_testing(family) or not missing:
            yield from _one_by_one(plan, station, missing, task.have)
            continue
        head, rest = family[0], tuple(t for t in missing if t != family[0])
        yield from _one_by_one(plan, station, (head,) if head in missing else (), task.have)
        settled: tuple[Target, ...] = ()
        if rest and _still(plan, station, frame, (head,)):
            settled, rest = settle(rest, lambda some: _still(plan, station, frame, some))
        if settled:
            yield _settled(plan, station, settled)
        yield from _one_by_one(plan, station, rest, task.have)


def _one_by_one(
    plan: Plan, station: Station, targets: Sequence[Target], have: frozenset[str]
) -> Iterator[Kept]:
    rollouts = [r for t in targets for r in plan.rollouts(t) if r.key(plan.job) not in have]
    for ready in prepared(rollouts, station.injection):
        yield ((ready.rollout.key(plan.job), measured(plan, station, ready)),)


def _still(plan: Plan, station: Station, frame: Frame, targets: Sequence[Target]) -> bool:
    """Whether nothing moves when all of these are perturbed at once, by the probe and by the coarsest response."""
    weights = tuple(w for t in targets for w in t.weights)
    rollouts = [replace(r, weights=weights) for r in plan.rollouts(targets[0])]
    for rollout in (rollouts[0], min(rollouts, key=lambda r: r.probe.bits)):
        m = measured(plan, station, prepare(rollout, station.injection))
        if not m.finite or m.delta_sq == 0.0 or m.energy[:, -1].max() > frame.noise_floor:
            return False
    return True


def _settled(plan: Plan, station: Station, targets: Sequence[Target]) -> Kept:
    kept: list[tuple[str, Measurement]] = []
    for rollout in (r for t in targets for r in plan.rollouts(t)):
        _, delta_sq = perturbation(rollout, station.injection)
        kept.append((rollout.key(plan.job), station.meter.blank(delta_sq)))
    return tuple(kept)


def measure_here(
    plan: Plan,
    source: Exposable,
    frame: Frame,
    tasks: Sequence[Task],
    keep: Callable[[Kept], None],
    first: Station | None,
) -> None:
    """Measure tasks in this process, one session open at a time; `first` is that of group 0, if it is open."""
    for task in tasks:
        station = first if first is not None and task.group == 0 else None
        first = None
        station = station or open_station(plan, source, task.group, frame)
        for kept in run_task(plan, station, frame, task):
            keep(kept)


def measure_in_workers(
    plan: Plan, frame: Frame, tasks: Sequence[Task], keep: Callable[[Kept], None], workers: int
) -> None:
    """Measure tasks in worker processes.

    Raises
    ------
    InputError
        A worker died; what was measured before is kept.
    """
    threads = plan.options.threads or max(1, (os.cpu_count() or 1) // workers)
    plan = replace(plan, options=replace(plan.options, threads=threads))
    parts = [part for task in tasks for part in _parts(task, whole=plan.options.group_test)]
    pool = ProcessPoolExecutor(
        min(workers, len(parts)),
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(plan, frame),
    )
    try:
        running: list[Future[list[Kept]]] = [pool.submit(_work, part) for part in parts]
        for done in as_completed(running):
            for kept in done.result():
                keep(kept)
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process died; what was measured is kept",
            todo="Run the same command again, with fewer --workers if memory ran out",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _parts(task: Task, *, whole: bool) -> Iterator[Task]:
    size = len(task.targets) if whole else _TARGETS_A_TASK
    for start in range(0, len(task.targets), size):
        yield replace(task, targets=task.targets[start : start + size])


@dataclass(slots=True)
class _Worker:
    """What a worker process holds: the plan, the model, and the session it opened last."""

    plan: Plan
    frame: Frame
    source: Exposable
    group: int = -1
    station: Station | None = None


_worker: list[_Worker] = []


def _start_worker(plan: Plan, frame: Frame) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    _worker.append(_Worker(plan, frame, exposable_of(plan)))


def _work(task: Task) -> list[Kept]:
    worker = _worker[0]
    if worker.station is None or worker.group != task.group:
        worker.station = None  # let go of the old session before the new one is built
        worker.station = open_station(worker.plan, worker.source, task.group, worker.frame)
        worker.group = task.group
    return list(run_task(worker.plan, worker.station, worker.frame, task))


def rollouts_left(plan: Plan, have: frozenset[str]) -> tuple[Rollout, ...]:
    """Return the rollouts of a plan that are not kept yet."""
    return tuple(
        r for group in plan.groups for t in group for r in plan.rollouts(t) if r.key(plan.job) not in have
    )
