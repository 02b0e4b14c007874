"""A model that crashes the runtime is one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import onnx
import pytest

from tests.rollouts import forecaster
from tqs_onnx.rollout.child import loads_in_child, require_loadable
from tqs_passes.errors import InputError


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
