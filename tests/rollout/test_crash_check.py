"""A model that crashes the runtime is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.rollouts import REPLACE, forecaster, model, values
from tqs_onnx.rollout.crash_check import loads_in_child, require_loadable
from tqs_passes.errors import InputError


@pytest.fixture(autouse=True)
def no_trial_load() -> None:
    """Here models are tried in a process of their own, as they are for users."""


def test_a_model_that_loads_is_let_through(tmp_path: Path) -> None:
    onnx.save(forecaster(), tmp_path / "m.onnx")
    assert loads_in_child(tmp_path / "m.onnx") is None


def test_a_model_that_does_not_load_is_left_to_the_caller(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    assert loads_in_child(tmp_path / "m.onnx") is None


@pytest.mark.parametrize(("code", "said"), [(-11, "SIGSEGV"), (-6, "SIGABRT"), (139, "exit code 139")])
def test_a_crash_of_the_child_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess([], code))
    with pytest.raises(InputError, match=rf"crashes the runtime \({said}\)"):
        require_loadable(tmp_path / "m.onnx")


def test_a_file_that_crashes_the_runtime_is_one_line(tmp_path: Path) -> None:
    """A block of 2³² squared overflows to 0: onnxruntime 1.31 divides by it while it loads the model (SIGFPE)."""
    graph = """(float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
      p = MatMul(x, W)  q = DepthToSpace <blocksize: int = 4294967296> (p)  s = Shape(x)  y = Reshape(q, s) }"""
    onnx.save(model(graph, {"W": values(8, 8)}), tmp_path / "m.onnx")
    (tmp_path / "rollout.toml").write_text(REPLACE.format(steps=2))
    np.savez(tmp_path / "contexts.npz", x=values(2, 4, 8, 8))
    command = [sys.executable, "-m", "tqs_onnx.cli.main", "score", str(tmp_path / "m.onnx")]
    files = ["--rollout", str(tmp_path / "rollout.toml"), "--contexts", str(tmp_path / "contexts.npz")]
    done = subprocess.run(
        [*command, *files, "--providers", "cpu", "--out", str(tmp_path / "run")],
        check=False,
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.partition("m.onnx: ")[0]) == (2, f"tqs: error: {tmp_path}/")
    assert loads_in_child(tmp_path / "m.onnx") is None or "crashes the runtime (SIG" in line
    assert not (tmp_path / "run").exists()


def test_the_trial_load_preloads_the_cuda_libraries_and_asks_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime of the test's own writes down, in order, what the child asks of it."""
    (tmp_path / "onnxruntime.py").write_text(
        "import json\n"
        "def note(*what):\n"
        f"    open({str(tmp_path / 'log')!r}, 'a').write(json.dumps(what) + '\\n')\n"
        "class SessionOptions: pass\n"
        "def set_default_logger_severity(n): pass\n"
        "def preload_dlls(): note('preload')\n"
        "def InferenceSession(path, options, providers): note('load', providers)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    onnx.save(forecaster(), tmp_path / "m.onnx")
    assert loads_in_child(tmp_path / "m.onnx", "cuda", device=1) is None
    asked = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    both = [["CUDAExecutionProvider", {"device_id": "1"}], ["CPUExecutionProvider", {}]]
    alone = [["load", [both[1]]]] if sys.platform == "linux" else []
    assert asked == [*alone, ["preload"], ["load", both]]
