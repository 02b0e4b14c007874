"""No rollout is lost: a sweep that was killed or stopped goes on, and ends with the scores of one that was not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.cli.main import main

_N_ROLLOUTS = 5 * 32

#: The command line, with a sweep that waits for its signal once it has kept a number of measurements, however long
#: the signal takes to come: it is never done before.
_WAITING = """
import sys, time
from tqs_onnx.cli.main import main
from tqs_onnx.scoring.measure.store import Results
put = Results.put
def put_and_wait(self, job, found):
    put(self, job, found)
    while self._db.execute("SELECT count(*) FROM measurement").fetchone()[0] >= {count}:
        time.sleep(0.01)
Results.put = put_and_wait
sys.exit(main(sys.argv[1:]))
"""
#: A limit on file sizes stands for a full disk.
_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from tqs_onnx.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def _score(case: Case, out: Path, *more: str) -> list[str]:
    data = ["--rollout", str(case.rollout), "--contexts", str(case.contexts)]
    data += ["--providers", "cpu", "--threads", "1"]
    probe = ["--probe", "gauss", "--draws", "30", "--top", "0"]
    return ["score", str(case.model), *data, *probe, "--out", str(out), *more]


def _count(store: Path) -> int:
    """Return how many measurements a running sweep has kept so far."""
    if not store.exists():
        return 0
    database = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)
    try:
        return int(database.execute("SELECT count(*) FROM measurement").fetchone()[0])
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0
    finally:
        database.close()


def _stopped_at(arguments: list[str], out: Path, count: int, how: signal.Signals) -> tuple[int, str]:
    """Start a sweep, signal it once it has kept `count` measurements, and return its exit code and stderr.

    It goes on meanwhile, so that the signal meets it at work; but for less than a dozen measurements more.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _WAITING.format(count=count + 10), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and what they start, ignore Ctrl-C: the tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while process.poll() is None and _count(out / "sweep.sqlite") < count:
            time.sleep(0.005)
        process.send_signal(how)
        _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("case"), forecaster(hidden=256), steps=40, n=4)


@pytest.fixture(scope="module")
def uninterrupted(case: Case, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(_score(case, out)) == 0
    return (out / "scores.json").read_bytes()


def _killed_and_resumed(case: Case, out: Path, kills: int) -> list[int]:
    """Kill a sweep at random moments, then let it end; return the exit codes of the killed runs."""
    moments = sorted(random.Random(kills).sample(range(1, _N_ROLLOUTS - 20), kills))
    codes = [_stopped_at(_score(case, out), out, count, signal.SIGKILL)[0] for count in moments]
    assert main(_score(case, out)) == 0
    return codes


@pytest.mark.slow
def test_killed_five_times_and_resumed_the_scores_are_those_of_an_uninterrupted_run(
    case: Case, uninterrupted: bytes, tmp_path: Path
) -> None:
    assert _killed_and_resumed(case, tmp_path / "run", 5) == 5 * [-signal.SIGKILL]
    assert (tmp_path / "run" / "scores.json").read_bytes() == uninterrupted


def test_workers_end_with_the_process_that_started_them(
    case: Case, uninterrupted: bytes, tmp_path: Path
) -> None:
    # They hold its stderr: that it comes to an end, within the time given, shows that they are gone.
    out = tmp_path / "run"
    # Nor does Python's tracker of shared resources, which outlives it, warn there.
    code, stderr = _stopped_at(_score(case, out, "--workers", "2"), out, 1, signal.SIGKILL)
    assert (code, stderr) == (-signal.SIGKILL, "")
    assert main(_score(case, out)) == 0
    assert (out / "scores.json").read_bytes() == uninterrupted


def _workers_of(parent: int) -> list[int]:
    """Return the worker processes of a run."""
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            stat, command = (place / "stat").read_text(), (place / "cmdline").read_bytes()
            if int(stat.rpartition(")")[2].split()[1]) == parent and b"spawn_main" in command:
                found.append(int(place.name))
    return sorted(found)


@pytest.mark.slow
def test_with_a_worker_killed_again_and_again_a_sweep_ends_with_the_same_scores(
    case: Case, uninterrupted: bytes, tmp_path: Path
) -> None:
    out, kills, rng = tmp_path / "run", 0, random.Random(0)
    with subprocess.Popen(
        [sys.executable, "-m", "tqs_onnx.cli.main", *_score(case, out, "--workers", "2")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:
            workers = _workers_of(process.pid)
            if workers and _count(out / "sweep.sqlite") >= 25 * (kills + 1):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    kills += 1
            time.sleep(0.01)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert kills >= 4
    assert 1 <= stderr.count("a worker process died; the rest of its task runs again\n") <= kills
    assert (out / "scores.json").read_bytes() == uninterrupted


@pytest.mark.slow
def test_killed_twenty_times_and_resumed_the_scores_are_those_of_an_uninterrupted_run(
    case: Case, uninterrupted: bytes, tmp_path: Path
) -> None:
    assert _killed_and_resumed(case, tmp_path / "run", 20) == 20 * [-signal.SIGKILL]
    assert (tmp_path / "run" / "scores.json").read_bytes() == uninterrupted


@pytest.mark.slow
def test_an_interrupted_sweep_says_how_to_go_on_and_does(
    case: Case, uninterrupted: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, stderr = _stopped_at(_score(case, out), out, 30, signal.SIGINT)
    assert code == 130
    assert len(stderr.splitlines()) == 1
    assert "Run the same command again" in stderr
    kept = _count(out / "sweep.sqlite")
    assert 30 <= kept < _N_ROLLOUTS
    assert main(_score(case, out)) == 0
    assert (out / "scores.json").read_bytes() == uninterrupted


def test_a_disk_that_fills_up_is_one_line_and_the_sweep_goes_on_when_there_is_room(
    case: Case, uninterrupted: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", _LIMITED, *_score(case, out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert str(out / "sweep.sqlite") in done.stderr
    assert 0 < _count(out / "sweep.sqlite") < _N_ROLLOUTS
    assert main(_score(case, out)) == 0
    assert (out / "scores.json").read_bytes() == uninterrupted


def test_a_place_that_cannot_be_written_to_is_one_line(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_score(case, Path("/proc/run"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/proc/run: cannot be created" in line


@pytest.mark.slow
def test_quantize_resumes_too(case: Case, tmp_path: Path) -> None:
    def job(out: Path) -> list[str]:
        options = ["--compression", "2", "--probe", "gauss", "--draws", "30", "--out", str(out), "--json"]
        return ["quantize", str(case.model), *case.arguments(*options)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(job(whole)) == 0
    assert _stopped_at(job(broken), broken, 100, signal.SIGKILL)[0] == -signal.SIGKILL
    assert main(job(broken)) == 0
    assert (broken / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    assert (broken / "m.tqs.onnx").read_bytes() == (whole / "m.tqs.onnx").read_bytes()
