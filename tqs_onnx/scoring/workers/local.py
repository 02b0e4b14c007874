"""Executes the tasks of scoring on one machine: in this process, or in worker processes.

Every measurement is passed on as soon as it arrives. The choice of workers affects when and where a task runs, never
its result (see `measure.task`). `ray_crew` uses many machines.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Protocol

from tqs_onnx.rollout.contexts.context_set import kept_within
from tqs_onnx.rollout.guard import most_in_memory
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.scoring.measure.desk import Desk
from tqs_onnx.scoring.measure.station import Frame, exposable_of
from tqs_onnx.scoring.measure.task import Finding, Task, labels_of, parts_of
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan
from tqs_passes.errors import InputError

_LOG = logging.getLogger(__name__)
#: Number of workers that may die in a task before it is given up.
DEATHS = 3


class Crew(Protocol):
    """Executes tasks."""

    def frame(self) -> Frame:
        """Return the facts about the job's nominal rollout."""
        ...

    def measure(self, frame: Frame, tasks: tuple[Task, ...], keep: Callable[[Finding], None]) -> None:
        """Execute tasks and pass every result to `keep`."""
        ...


class Here:
    """Executes tasks in this process."""

    def __init__(self, plan: SweepPlan) -> None:
        self._desk = Desk(plan, exposable_of(plan))

    def frame(self) -> Frame:
        """Return the facts about the job's nominal rollout."""
        return self._desk.frame()

    def measure(self, frame: Frame, tasks: tuple[Task, ...], keep: Callable[[Finding], None]) -> None:
        """Execute tasks one after another."""
        for task in tasks:
            for found in self._desk.measure(frame, task):
                keep(found)


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """Executes tasks in worker processes.

    Parameters
    ----------
    plan : SweepPlan
        With `run.devices`, worker i runs on device i mod n, and part j of the tasks goes to worker j mod `workers`.
    workers : int
    """

    plan: SweepPlan
    workers: int

    def frame(self) -> Frame:
        """Return the facts about the job's nominal rollout, computed in this process."""
        return Here(self.plan).frame()

    def measure(self, frame: Frame, tasks: tuple[Task, ...], keep: Callable[[Finding], None]) -> None:
        """Execute tasks in parts; what a worker that dies was measuring runs again, in new processes.

        Raises
        ------
        InputError
            Workers died several times in the same part; the measurements so far are kept.
        """
        left = parts_of(self.plan, tasks, self.workers)
        deaths = Counter[object]()
        while left:
            left = self._executed(left, frame, keep)
            _count_death(deaths, left[: self.workers])  # they start in order: one of these ended its worker

    def _executed(
        self, parts: tuple[Task, ...], frame: Frame, keep: Callable[[Finding], None]
    ) -> tuple[Task, ...]:
        """Execute parts until all are done or a worker dies; return those that are not done, in order."""
        threads = self.plan.run.threads or max(1, (os.cpu_count() or 1) // self.workers)
        context = multiprocessing.get_context("spawn")
        _start_tracker()
        ended, end = context.Pipe(duplex=False)
        n_workers = min(self.workers, len(parts))
        pools = [
            ProcessPoolExecutor(
                n_processes,
                context,
                initializer=_start_worker,
                initargs=(replace(self.plan, run=replace(run, threads=threads)), frame, ended),
            )
            for n_processes, run in shared(self.plan.run, n_workers)
        ]
        try:
            running, undone = _submitted(pools, parts), dict(enumerate(parts))
            for done in as_completed(running):
                with contextlib.suppress(BrokenProcessPool):
                    for found in done.result():
                        keep(found)
                    del undone[running[done]]
            return tuple(undone.values())
        except BaseException:
            end.close()  # whatever they compute is of no use, and may never end
            raise
        finally:
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)
            end.close()
            ended.close()


def shared(run: RunOptions, workers: int) -> list[tuple[int, RunOptions]]:
    """Return the pools of worker processes, as (processes, run options): one for all, or one per worker on a GPU."""
    if not run.devices:
        return [(workers, run)]
    devices = [run.devices[i % len(run.devices)] for i in range(workers)]
    return [(1, replace(run, devices=(device,))) for device in devices]


def _count_death(deaths: Counter[object], started: tuple[Task, ...]) -> None:
    """Count the death of a worker for every task that it may have had; refuse to go on after several in one."""
    if not started:
        return
    keys = [(task.session, *task.todo) for task in started]
    deaths.update(keys)
    fatal = [task for task, key in zip(started, keys, strict=True) if deaths[key] >= DEATHS]
    if fatal:
        raise InputError(
            f"{DEATHS} times a worker process died in the same task; the measurements so far are kept",
            where=", ".join(dict.fromkeys(labels_of(task) for task in fatal)),
            todo="Run the same command again, with fewer `workers` or a smaller `batch` if memory ran out",
        )
    _LOG.warning("a worker process died; the rest of its task runs again")


def _submitted(
    pools: Sequence[ProcessPoolExecutor], parts: tuple[Task, ...]
) -> dict[Future[list[Finding]], int]:
    """Return what runs, with the index of its part; a worker may die before all are handed over."""
    running: dict[Future[list[Finding]], int] = {}
    for i, part in enumerate(parts):
        with contextlib.suppress(BrokenProcessPool):
            running[pools[i % len(pools)].submit(_work, part)] = i
    return running


_desk: list[tuple[Desk, Frame]] = []


def _start_tracker() -> None:
    """Start Python's process that cleans up after spawned ones; it would otherwise warn when this run is killed."""
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove("ignore:resource_tracker:UserWarning")


def _start_worker(plan: SweepPlan, frame: Frame, ended: Connection) -> None:
    threading.Thread(target=_end_with_parent, args=(ended,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the pool
    room = most_in_memory(plan.run.max_memory)
    plan = replace(
        plan, contexts=kept_within(plan.contexts, room)
    )  # their mapping did not pass from process to process
    _desk.append((Desk(plan, exposable_of(plan)), frame))


def _end_with_parent(ended: Connection) -> None:
    """Exit when the parent process ends or gives up: nothing would store further measurements."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, ended])
        os._exit(1)


def _work(task: Task) -> list[Finding]:
    desk, frame = _desk[0]
    return list(desk.measure(frame, task))
