"""Executes the tasks of scoring on one machine: in this process, or in worker processes.

Every measurement is passed on as soon as it arrives. The choice of workers affects when and where a task runs, never
its result (see `measure.task`). `ray_crew` uses many machines.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Protocol

from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.scoring.measure.desk import Desk
from tqs_onnx.scoring.measure.station import Frame, exposable_of
from tqs_onnx.scoring.measure.task import Finding, Task, parts_of
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan
from tqs_passes.errors import InputError


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
        """Execute tasks in parts.

        Raises
        ------
        InputError
            A worker died; the measurements so far are kept.
        """
        parts = parts_of(self.plan, tasks, self.workers)
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
            running: list[Future[list[Finding]]] = [
                pools[i % len(pools)].submit(_work, part) for i, part in enumerate(parts)
            ]
            for done in as_completed(running):
                for found in done.result():
                    keep(found)
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process died; the measurements so far are kept",
                todo="Run the same command again, with fewer `workers` if memory ran out",
            ) from error
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
