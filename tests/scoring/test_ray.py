"""A sweep on a Ray cluster of two nodes on this machine: whoever measures, and whoever dies, the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.rollouts import bed_of, forecaster, opened, scored, spec_of, values, write_case
from tests.scoring.test_group_test import modulated
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.scoring.measure.station import Frame
from tqs_onnx.scoring.measure.task import Task, parts_of
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan
from tqs_onnx.scoring.score import score
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.scoring.workers.ray_crew import OnCluster
from tqs_passes.errors import InputError

ray = pytest.importorskip("ray", reason="Ray is not installed (tqs-onnx[ray])")
utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed (tqs-onnx[ray])")

# Ray's own: it leaves its log files open
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]

STORE_BYTES = 80 << 20  # the least Ray takes
PATIENCE_S = 600

#: What a test does once an actor was given a task: called with the actor's seat, the task, and the actor's process.
Then = Callable[[Any, Task, int], None]


@dataclass
class Two:
    """A cluster of a head and a second node, one core each; the second can be killed and comes back."""

    cluster: Any
    second: Any = None

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def restore(self, num_cpus: int = 1) -> None:
        self.kill()
        self.second = self.cluster.add_node(num_cpus=num_cpus, object_store_memory=STORE_BYTES)

    def kill(self) -> None:
        """End the second node as a power cut does: its processes, and Ray's own, which would let them finish."""
        if self.second is not None:
            (raylet,) = self.second.all_processes["raylet"]
            for process in children(raylet.process.pid):
                os.kill(process, signal.SIGKILL)
            self.cluster.remove_node(self.second, allow_graceful=False)
            while self.second.node_id in self.living():
                time.sleep(0.05)
            self.second = None

    def living(self) -> set[str]:
        """Return the nodes that the head takes for alive: for a moment, one that was just killed is among them."""
        return {node["NodeID"] for node in self.cluster.global_state.node_table() if node["Alive"]}


def children(parent: int) -> list[int]:
    """Return the processes that a process started."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            text = stat.read_text()
            if int(text.rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def patient(look: Callable[..., Any]) -> Callable[..., Any]:
    """Return Ray's look at a node that starts, asked again until the node is there: Ray itself gives up after 30 s."""

    def looked(*arguments: Any) -> Any:
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            with contextlib.suppress(RuntimeError):
                return look(*arguments)
            time.sleep(0.1)
        return look(*arguments)

    return looked


@pytest.fixture(scope="module")
def started() -> Generator[Two]:
    # A dead node refuses at once to be looked at, so that looking often finds it soon. One that is alive is never
    # given up, however late a busy machine lets it answer.
    look = {
        "health_check_period_ms": 300,
        "health_check_failure_threshold": 3,
        "health_check_timeout_ms": PATIENCE_S * 1000,
        "agent_register_timeout_ms": PATIENCE_S * 1000,
        "worker_register_timeout_seconds": PATIENCE_S,
    }
    head = {
        "num_cpus": 1,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "_system_config": look,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_gcs_server_port_wait_time_s", str(PATIENCE_S))
        patch.setattr("ray._private.services.get_node", patient(ray._private.services.get_node))
        two = Two(utils.Cluster(initialize_head=True, head_node_args=head))
        two.restore()
        yield two
        two.cluster.shutdown()


@pytest.fixture
def two(started: Two) -> Two:
    if started.second is None:
        started.restore()
    return started


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return opened(tmp_path_factory.mktemp("model"), forecaster())


def swept(
    source: Source,
    store: Path | None = None,
    **changes: object,
) -> Scores:
    """Return the scores of a sweep in two sessions, unless changed."""
    run = {name: changes.pop(name) for name in ("batch", "threads") if name in changes}
    options = ScoreOptions(**({"strategy": Strategy("expose", 2)} | changes))  # type: ignore[arg-type]
    bed = bed_of(source, spec_of(), Contexts({"x": values(3, 16)}, {}), **run)
    return score(bed, source.sha256, options, store=store)


@pytest.fixture(scope="module")
def local(source: Source) -> str:
    return swept(source).to_json()


def process_of(actor: Any) -> int | None:
    """Return the process that an actor lives in, None if it died."""
    try:
        return int(ray.get(actor.__ray_call__.remote(lambda actor: os.getpid())))
    except ray.exceptions.RayError:
        return None


@contextlib.contextmanager
def stopped(process: int) -> Generator[None]:
    """Let a process do nothing meanwhile; it goes on unless it was killed."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Then], None]:
    """Call something when an actor has a task with rollouts and no answer yet; none gets one before all are there."""
    start = OnCluster._start

    def watch(then: Then) -> None:
        def watching(self: OnCluster, seat: Any, task: Task, frame: Frame | None) -> None:
            for other in tuple(self._seats):
                if not other.fit:
                    self._advance(other, lambda found: None)  # waits for it, and buries it if it died
            process = process_of(seat.actor)
            if process is None or not task.todo:
                start(self, seat, task, frame)
                return
            with stopped(process):
                start(self, seat, task, frame)
                then(seat, task, process)

        monkeypatch.setattr(OnCluster, "_start", watching)

    return watch


def test_a_cluster_scores_as_this_process(two: Two, source: Source, local: str, watched: Any) -> None:
    nodes: set[str] = set()
    watched(lambda seat, task, process: nodes.add(seat.node))
    assert swept(source, engine="ray", address=two.address).to_json() == local
    assert len(nodes) == 2


@pytest.mark.slow
def test_one_actor_scores_as_two(two: Two, source: Source, local: str, watched: Any) -> None:
    seats: set[int] = set()
    watched(lambda seat, task, process: seats.add(id(seat)))
    assert swept(source, engine="ray", address=two.address, workers=1).to_json() == local
    assert len(seats) == 1


@pytest.mark.slow
def test_tasks_in_another_order_score_the_same(
    two: Two, source: Source, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(plan: SweepPlan, tasks: tuple[Task, ...], workers: int) -> tuple[Task, ...]:
        parts = list(parts_of(plan, tasks, workers))
        assert len(parts) > 3
        random.Random(1).shuffle(parts)
        return tuple(parts)

    monkeypatch.setattr("tqs_onnx.scoring.workers.ray_crew.parts_of", shuffled)
    assert swept(source, engine="ray", address=two.address).to_json() == local


@pytest.mark.slow
def test_rebuilt_sessions_score_the_same_there(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(
        forecaster(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    source = open_source(tmp_path / "m.onnx")
    how = {"strategy": Strategy("rebuild", 1)}
    here = swept(source, **how)
    assert swept(source, engine="ray", address=two.address, **how).to_json() == here.to_json()


def test_group_tests_settle_the_same_there(two: Two, tmp_path: Path) -> None:
    source = opened(tmp_path, modulated(alive=(3,)))
    here = scored(source, spec_of(), values(2, 6), group_test=True)
    there = scored(source, spec_of(), values(2, 6), group_test=True, engine="ray", address=two.address)
    assert there.to_json() == here.to_json()


def test_a_node_killed_without_grace_costs_what_it_was_measuring(
    two: Two, source: Source, local: str, watched: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def kill(seat: Any, task: Task, process: int) -> None:
        if two.second is not None and seat.node == two.second.node_id:
            two.kill()

    watched(kill)
    scores = swept(source, engine="ray", address=two.address)
    assert scores.to_json() == local
    assert two.second is None
    assert any("died; the rest of its task runs again" in line for line in caplog.messages)


@pytest.mark.slow
def test_with_no_node_left_the_sweep_ends_in_one_line_and_can_be_resumed(
    two: Two, source: Source, local: str, watched: Any, tmp_path: Path
) -> None:
    two.restore(num_cpus=2)  # the only one with two cores
    started: list[Task] = []

    def kill(seat: Any, task: Task, process: int) -> None:
        started.append(task)
        if len(started) == 3:
            two.kill()

    watched(kill)
    ask = {"engine": "ray", "address": two.address}
    with pytest.raises(InputError, match="no usable node of the Ray cluster has 2 cores"):
        swept(source, tmp_path / "s.sqlite", threads=2, **ask)
    assert swept(source, tmp_path / "s.sqlite", **ask).to_json() == local
    assert sum(len(task.todo) for task in started[3:]) <= 15 - 2 * 3  # two tasks of three rollouts were kept


@pytest.mark.slow
def test_a_task_that_kills_its_actors_is_given_up(two: Two, source: Source, watched: Any) -> None:
    def kill(seat: Any, task: Task, process: int) -> None:
        if any(w.name == "W2" for r in task.todo.values() for w in r.weights):
            os.kill(process, signal.SIGKILL)

    watched(kill)
    with pytest.raises(InputError, match="3 actors died in the same task"):
        swept(source, engine="ray", address=two.address)


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Let so many actors die before they start; return the nodes that they were for."""

    def let(most: int) -> list[str]:
        seated, dead = OnCluster._seated, list[str]()

        def seated_and_killed(self: OnCluster, node: dict[str, Any]) -> Any:
            seat = seated(self, node)
            if len(dead) < most:
                ray.kill(seat.actor)
                dead.append(node["NodeID"])
            return seat

        monkeypatch.setattr(OnCluster, "_seated", seated_and_killed)
        return dead

    return let


@pytest.mark.slow
def test_an_actor_that_dies_before_it_starts_is_replaced(
    two: Two, source: Source, local: str, dying: Callable[[int], list[str]]
) -> None:
    dead = dying(1)
    assert swept(source, engine="ray", address=two.address).to_json() == local
    assert len(dead) == 1


def test_nodes_on_which_no_actor_starts_are_given_up_in_one_line(
    two: Two, source: Source, dying: Callable[[int], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    dead = dying(1000)
    with pytest.raises(InputError, match="no usable node of the Ray cluster has a core"):
        swept(source, engine="ray", address=two.address)
    said = [line for line in caplog.messages if line.endswith("is not used: 3 actors died on it")]
    assert (len(said), len(dead)) == (2, 6)


def test_nodes_that_would_measure_otherwise_are_not_used(
    two: Two, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "tqs_onnx.scoring.workers.ray_crew.identity", lambda provider: {"instruction set": "riscv64"}
    )
    with pytest.raises(InputError, match="no usable node of the Ray cluster"):
        swept(source, engine="ray", address=two.address)
    said = [line for line in caplog.messages if "is not used: its instruction set is " in line]
    assert len(said) == 2


def test_a_model_that_does_not_run_is_the_users_error_there_too(two: Two, tmp_path: Path) -> None:
    proto = forecaster()
    proto.graph.initializer[0].raw_data = (1e30 * values(16, 48)).tobytes()
    proto.graph.node[2].op_type = "Exp"
    with pytest.raises(InputError, match="NaN or infinite"):
        swept(opened(tmp_path, proto), engine="ray", address=two.address)


def test_the_command_scores_on_a_cluster_and_prints_its_result_only(
    two: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = write_case(tmp_path, forecaster())
    data = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--json"]
    there = ["--engine", "ray", "--address", two.address]
    assert main(["score", str(case.model), *data, "--out", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    assert main(["score", str(case.model), *data, "--out", str(tmp_path / "b"), *there]) == 0
    assert json.loads(capsys.readouterr().out)["alive"] == 5
    assert (tmp_path / "a" / "scores.json").read_bytes() == (tmp_path / "b" / "scores.json").read_bytes()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "nothing listens at 127.0.0.1:1"),
        ("127.0.0.1:99999", "nothing listens"),
        ("somewhere", "is not HOST:PORT"),
        ("ray://127.0.0.1:10001", "is the address of a Ray client"),
    ],
)
def test_an_address_of_no_cluster_is_one_line(source: Source, address: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        swept(source, engine="ray", address=address)
