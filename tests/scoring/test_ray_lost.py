"""A cluster that loses its head, or a node that falls silent: one line or none, and no measurement is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rollouts import Case, forecaster, write_case
from tests.scoring.test_ray import children
from tests.scoring.test_resume import _count, _score
from tqs_onnx.cli.main import main

pytest.importorskip("ray", reason="Ray is not installed (tqs-onnx[ray])")
pytestmark = pytest.mark.slow

#: Starts a head and a second node, prints what they are, and ends them when its stdin is closed.
_CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
look = {"health_check_period_ms": 300, "health_check_failure_threshold": 3, "health_check_timeout_ms": 1000}
least = {"num_cpus": 1, "object_store_memory": 80 << 20}
cluster = Cluster(True, head_node_args={**least, "include_dashboard": False, "_system_config": look})
second = cluster.add_node(**least)
(head,), (raylet,) = cluster.head_node.all_processes["gcs_server"], second.all_processes["raylet"]
print(json.dumps([cluster.address, head.process.pid, raylet.process.pid]), flush=True)
sys.stdin.read()
cluster.shutdown()
"""
#: The command line, with a sweep that waits until a file is there: once, after 20 measurements, when actors on both
#: nodes have a task. Until then it takes its time, because one actor alone would do all before the other has started.
_WAITING = """
import os, sys, time
import tqs_onnx.scoring.workers.ray_crew as crew
from tqs_onnx.cli.main import main
from tqs_onnx.scoring.measure.store import Results
put, start, at_work = Results.put, crew.OnCluster._start, set()
def noted(self, seat, task, frame):
    at_work.add(seat.node)
    start(self, seat, task, frame)
def put_and_wait(self, job, found):
    put(self, job, found)
    if len(at_work) < 2:
        time.sleep(0.2)
    elif self._db.execute("SELECT count(*) FROM measurement").fetchone()[0] >= 20:
        open({ready!r}, "a").close()
        while not os.path.exists({go!r}):
            time.sleep(0.01)
Results.put, crew.OnCluster._start = put_and_wait, noted
crew._LOOK_S, crew.CONNECT_S = 0.0, 2.0
sys.exit(main())
"""


@dataclass(frozen=True)
class Lost:
    """A cluster that may be harmed: its address, and the processes of its head and of its second node."""

    address: str
    head: int
    second: int


@pytest.fixture
def cluster() -> Generator[Lost]:
    with subprocess.Popen(
        [sys.executable, "-c", _CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lost = Lost(*json.loads(process.stdout.readline()))
        yield lost
        with contextlib.suppress(ProcessLookupError):
            os.kill(lost.second, signal.SIGCONT)
        process.communicate("")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("case"), forecaster())


@pytest.fixture(scope="module")
def undisturbed(case: Case, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(_score(case, out)) == 0
    return (out / "scores.json").read_bytes()


def disturbed(case: Case, out: Path, address: str, disturb: Callable[[], None]) -> tuple[int, str]:
    """Run a sweep on a cluster, and disturb it once both nodes are at work; return its code and its stderr."""
    go, ready = out.with_name("go"), out.with_name("ready")
    with subprocess.Popen(
        [
            *(sys.executable, "-c", _WAITING.format(go=str(go), ready=str(ready))),
            *_score(case, out, "--engine", "ray", "--address", address),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not ready.exists():
            time.sleep(0.01)
        disturb()
        go.touch()
        _, stderr = process.communicate()
    return process.returncode, stderr


def test_a_lost_head_ends_the_command_in_one_line_and_it_resumes_without_it(
    cluster: Lost, case: Case, undisturbed: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, stderr = disturbed(case, out, cluster.address, lambda: os.kill(cluster.head, signal.SIGKILL))
    assert code == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith("tqs: error: ")
    assert "the head of the Ray cluster is lost" in line
    kept = _count(out / "sweep.sqlite")
    assert 20 <= kept < 5 * 32
    assert main(_score(case, out)) == 0
    assert (out / "scores.json").read_bytes() == undisturbed


def test_a_node_that_falls_silent_costs_what_it_was_measuring(
    cluster: Lost, case: Case, undisturbed: bytes, tmp_path: Path
) -> None:
    def silence() -> None:
        for pid in (cluster.second, *children(cluster.second)):
            os.kill(pid, signal.SIGSTOP)

    out = tmp_path / "run"
    code, stderr = disturbed(case, out, cluster.address, silence)
    assert code == 0, stderr
    assert "died; the rest of its task runs again" in stderr
    assert (out / "scores.json").read_bytes() == undisturbed
