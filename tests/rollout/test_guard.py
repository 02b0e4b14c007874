"""A run that does not end is ended by Ctrl-C; one that grows, by the memory it may take."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.gauntlet.bombs import concat_bomb, endless_loop
from tests.rollouts import REPLACE, forecaster
from tqs_onnx.rollout.crash_check import loads_in_child, require_loadable
from tqs_onnx.rollout.guard import guard, resident_bytes
from tqs_onnx.rollout.session import Session, SessionOptions, open_session
from tqs_passes.errors import InputError


@pytest.fixture(autouse=True)
def no_trial_load() -> None:
    """Here models are tried in a process of their own, as they are for users."""


def opened(proto: onnx.ModelProto) -> Session:
    return open_session(proto.SerializeToString(), options=SessionOptions(threads=1))


def test_ctrl_c_ends_a_loop_without_end(tmp_path: Path) -> None:
    onnx.save(endless_loop(grows=False), tmp_path / "m.onnx")
    (tmp_path / "rollout.toml").write_text(REPLACE.format(steps=2))
    np.savez(tmp_path / "contexts.npz", x=np.ones((2, 4), np.float32))
    files = ["--rollout", str(tmp_path / "rollout.toml"), "--contexts", str(tmp_path / "contexts.npz")]
    code = f"""
import os, signal, sys, threading
from tqs_onnx.cli.main import main
from tqs_onnx.rollout import session
run = session.Session._run
def begun(self, binding):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    run(self, binding)
session.Session._run = begun
sys.exit(main(["score", {str(tmp_path / "m.onnx")!r}, *{files!r}, "--providers", "cpu", "--threads", "1", "--out",
               {str(tmp_path / "run")!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    (line,) = (x for x in done.stderr.splitlines() if "error" in x or "Traceback" in x)
    assert done.returncode == 130
    assert line.startswith("tqs: error: stopped")


def test_a_signal_that_the_program_handles_itself_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    session = opened(endless_loop(grows=False, trips=300_000))
    x = session.value(np.zeros((1, 4), np.float32))
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert session.run({"x": x})["y"].shape == (1, 4)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_a_loop_that_grows_is_ended_by_the_memory_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(endless_loop(grows=True))
    x = session.value(np.ones((1, 4), np.float32))
    monkeypatch.setattr(guard, "limit_bytes", resident_bytes() + (64 << 20))
    start = time.monotonic()
    with pytest.raises(InputError, match="step 1: the model failed: it takes more than"):
        session.run({"x": x}, where="step 1")
    assert time.monotonic() - start < 60


def test_constants_that_are_folded_into_gigabytes_are_refused_in_the_trial(tmp_path: Path) -> None:
    onnx.save(concat_bomb(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 4000
    with pytest.raises(InputError, match=r"it takes more than \d+ MiB of memory to load"):
        require_loadable(tmp_path / "m.onnx", max_memory=1)


def test_an_ordinary_model_loads_under_the_smallest_limit(tmp_path: Path) -> None:
    onnx.save(forecaster(), tmp_path / "m.onnx")
    assert loads_in_child(tmp_path / "m.onnx", max_memory=1) is None
