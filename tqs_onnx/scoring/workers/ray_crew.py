"""Executes tasks on a Ray cluster: one actor per GPU, or per few cores, each with one open session.

The driver sends the model once (see `ray_shipment`), gives each actor one task at a time, and stores results as they
arrive ::

    driver ──task──▶ actor on any node          queue ◀──rest of its task── an actor that died
       └◀──results, one at a time──┘

If an actor dies, alone or with its node, only the measurement in progress is lost: the driver gives the rest of its
task to another actor. Nodes that join later are used. An actor is used only if its machine matches this one in
everything that a job's digest contains, so that a cluster computes the scores that this machine would.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tqs_onnx.scoring.measure.station import Frame, exposable_of
from tqs_onnx.scoring.measure.task import Finding, Task, labels_of, parts_of
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan
from tqs_onnx.scoring.workers.ray_actor import Actor, Refused, identity
from tqs_onnx.scoring.workers.ray_connect import CONNECT_S, LostError, complaint_about, connected
from tqs_onnx.scoring.workers.ray_shipment import Bytes, pack
from tqs_passes.errors import InputError

_LOG = logging.getLogger(__name__)
#: Cores per actor if `threads` is 0: more cores gain little in one rollout.
_CORES = 4
#: Number of actors that may die on a node, or with a task, before the node or the task is given up.
_DEATHS = 3
#: Interval between checks for new nodes, in seconds.
_LOOK_S = 2.0


@dataclass(slots=True, eq=False)
class _Seat:
    """The driver's record of an actor: its node and its current task."""

    actor: Any
    node: str
    answer: Any
    task: Task | None = None
    session: int = -1
    fit: bool = False


class OnCluster:
    """Executes tasks on a cluster; created by `cluster_crew`.

    Parameters
    ----------
    ray : module
        The connected module.
    plan : SweepPlan
    """

    def __init__(self, ray: ModuleType, plan: SweepPlan) -> None:
        self._ray = ray
        self._plan = plan
        self._content: dict[str, Any] = {}
        self._cargo = [ray.put(pack(plan, exposable_of(plan), self._put))]
        self._seats: list[_Seat] = []
        self._queue: list[Task] = []
        self._deaths: Counter[object] = Counter()
        self._unfit: set[str] = set()
        self._looked_s = -_LOOK_S
        self._head = str(ray.get_runtime_context().gcs_address)
        self._heard_s = time.monotonic()

    def _put(self, sha256: str, content: Bytes) -> None:
        self._content[sha256] = self._ray.put(content)

    def frame(self) -> Frame:
        """Return the facts about the job's nominal rollout, computed by one of the actors.

        Raises
        ------
        InputError
            The model does not run, or no actor is available.
        """
        frames: list[Frame] = []

        def keep(found: Frame | Finding) -> None:
            if isinstance(found, Frame):
                frames.append(found)

        self._run([Task(0, {})], None, keep)
        return frames[0]

    def measure(self, frame: Frame, tasks: tuple[Task, ...], keep: Callable[[Finding], None]) -> None:
        """Execute tasks in parts, and pass every result to `keep`.

        Raises
        ------
        InputError
            A session does not run, a task kills its actors, or no actor is left; the measurements so far are kept.
        """

        def kept(found: Frame | Finding) -> None:
            if not isinstance(found, Frame):
                keep(found)

        self._hire()
        self._run(parts_of(self._plan, tasks, max(1, len(self._seats))), frame, kept)

    def close(self) -> None:
        """Release the actors."""
        for seat in self._seats:
            self._ray.kill(seat.actor)
        self._seats.clear()

    def _run(
        self, tasks: Sequence[Task], frame: Frame | None, keep: Callable[[Frame | Finding], None]
    ) -> None:
        self._queue = list(tasks)
        while self._queue or any(seat.task for seat in self._seats):
            if not self._head_answers():
                continue
            self._hire()
            for seat in self._seats:
                if self._queue and seat.fit and seat.task is None:
                    self._start(seat, self._queue.pop(self._best(seat)), frame)
            waiting = {seat.answer: seat for seat in self._seats if seat.answer is not None}
            if not waiting:
                raise self._nobody()
            done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_LOOK_S)
            for answer in done:
                self._advance(waiting[answer], keep)

    def _head_answers(self) -> bool:
        """Return whether the head of the cluster answers; while it does not, nothing may be asked of Ray.

        Raises
        ------
        LostError
            It has not answered for `CONNECT_S`.
        """
        now_s = time.monotonic()
        if now_s - self._heard_s < _LOOK_S:
            return True
        what = complaint_about(self._head)
        if not what:
            self._heard_s = time.monotonic()
            return True
        if time.monotonic() - self._heard_s > CONNECT_S:
            raise LostError(
                f"the head of the Ray cluster is lost: {what}; the measurements so far are kept",
                where="`engine` ray",
                todo="Run the same command again when it is back",
            )
        time.sleep(_LOOK_S / 10)
        return False

    def _best(self, seat: _Seat) -> int:
        """Return the queue index of the best task for a seat: of its session, else of one that no actor has open."""
        others = {s.session for s in self._seats if s is not seat}
        found = enumerate((t.session != seat.session, t.session in others) for t in self._queue)
        return min(found, key=lambda place: (place[1], place[0]))[0]

    def _start(self, seat: _Seat, task: Task, frame: Frame | None) -> None:
        seat.task, seat.session = task, task.session
        seat.answer = seat.actor.work.options(num_returns="streaming").remote(frame, task)

    def _advance(self, seat: _Seat, keep: Callable[[Frame | Finding], None]) -> None:
        """Process the next result of a seat."""
        errors = self._ray.exceptions
        try:
            if seat.task is None:
                self._look_at(seat, self._ray.get(seat.answer))
                return
            found = self._ray.get(next(seat.answer))
        except StopIteration:
            seat.task = seat.answer = None
            self._deaths[seat.node] = 0
            return
        except errors.RayTaskError as error:
            if seat.task is not None:
                raise
            self._give_up(seat, f"tqs-onnx does not start on it ({str(error).splitlines()[-1]})")
            return
        except errors.RayError as error:
            self._bury(seat, error)
            return
        if isinstance(found, Refused):
            raise InputError(found.what, where=found.where, todo=found.todo)
        keep(found)
        if not isinstance(found, Frame):
            seat.task = seat.task.without(found)

    def _look_at(self, seat: _Seat, theirs: dict[str, str]) -> None:
        """Use an actor if its machine matches this one."""
        ours = identity(self._plan.run.provider)
        other = next((name for name, value in ours.items() if theirs.get(name) != value), None)
        if other is None:
            seat.fit, seat.answer = True, None
        else:
            self._give_up(seat, f"its {other} is {theirs.get(other)!r}, this machine's is {ours[other]!r}")

    def _give_up(self, seat: _Seat, reason: str) -> None:
        if seat.node not in self._unfit:
            _LOG.warning("node %s is not used: %s", self._name(seat.node), reason)
        self._unfit.add(seat.node)
        self._dismiss(seat)

    def _bury(self, seat: _Seat, error: Exception) -> None:
        """Release a dead actor, and queue the rest of its task."""
        self._dismiss(seat)
        self._looked_s = -_LOOK_S  # allow a replacement immediately
        self._deaths[seat.node] += 1
        if seat.task is not None:
            key = (seat.task.session, tuple(seat.task.todo))
            self._deaths[key] += 1
            _LOG.warning("an actor on node %s died; the rest of its task runs again", self._name(seat.node))
            if self._deaths[key] >= _DEATHS:
                raise InputError(
                    f"{_DEATHS} actors died in the same task; the measurements so far are kept",
                    where=labels_of(seat.task),
                    todo="See Ray's log; if memory ran out, use a smaller `batch` or fewer `workers`",
                ) from error
            self._queue.insert(0, seat.task)
        if self._deaths[seat.node] >= _DEATHS and seat.node not in self._unfit:
            self._unfit.add(seat.node)
            _LOG.warning("node %s is not used: %d actors died on it", self._name(seat.node), _DEATHS)

    def _dismiss(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(seat.actor)

    def _name(self, node: str) -> str:
        return next((n["NodeName"] for n in self._ray.nodes() if n["NodeID"] == node), node)

    def _hire(self) -> None:
        """Start actors on the free capacity of the live nodes, one per node in turn."""
        now_s = time.monotonic()
        if self._seats and now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        nodes = [n for n in self._ray.nodes() if n["Alive"] and n["NodeID"] not in self._unfit]
        nodes.sort(key=lambda n: n["NodeID"])
        taken = Counter(seat.node for seat in self._seats)
        most = self._plan.options.workers
        for rank in range(max((self._room(n) for n in nodes), default=0)):
            for node in nodes:
                if most is not None and len(self._seats) >= most:
                    return
                if taken[node["NodeID"]] <= rank < self._room(node):
                    self._seats.append(self._seated(node))

    def _seated(self, node: dict[str, Any]) -> _Seat:
        near = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        cores, gpus = (1, 1) if self._on_gpu else (self._cores(node), 0)
        make = self._ray.remote(Actor).options(num_cpus=cores, num_gpus=gpus, scheduling_strategy=near)
        actor = make.remote(self._cargo, self._content, self._plan.run.threads or cores)
        return _Seat(actor, node["NodeID"], actor.identity.remote(self._plan.run.provider))

    @property
    def _on_gpu(self) -> bool:
        return self._plan.run.provider != "cpu"

    def _cores(self, node: dict[str, Any]) -> int:
        n_cpus = int(node["Resources"].get("CPU", 0))
        return self._plan.run.threads or max(1, min(_CORES, n_cpus))

    def _room(self, node: dict[str, Any]) -> int:
        """Return how many actors fit on an otherwise idle node."""
        if self._on_gpu:
            return int(node["Resources"].get("GPU", 0))
        return int(node["Resources"].get("CPU", 0)) // self._cores(node)

    def _nobody(self) -> InputError:
        cores = self._plan.run.threads
        needed = "a GPU" if self._on_gpu else f"{cores} cores" if cores > 1 else "a core"
        return InputError(
            f"no usable node of the Ray cluster has {needed}; the measurements so far are kept",
            where="`engine` ray",
            todo="Run the same command again when one is available"
            + (", or with fewer `threads`" if cores > 1 else ""),
        )


@contextlib.contextmanager
def cluster_crew(plan: SweepPlan) -> Generator[OnCluster]:
    """Yield the workers on the cluster that a plan's options name.

    Raises
    ------
    InputError
        Ray is not installed, or the cluster cannot be reached.
    """
    with connected(plan.options.address) as ray:
        crew = OnCluster(ray, plan)
        try:
            yield crew
        except LostError:
            raise  # the actors end with their cluster
        except BaseException:
            crew.close()
            raise
        else:
            crew.close()
