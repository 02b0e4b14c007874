"""An output belongs to one job at a time; a job that finds it in use says by whom, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.cli.main import main
from tqs_onnx.jobs.run_directory import run_directory
from tqs_passes.files.temporary import _HELD as HELD
from tqs_passes.files.temporary import claimed


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path / "in", forecaster())


def as_another(run: Callable[[], int]) -> int:
    """Run what another process would: it holds none of this one's claims."""
    token = HELD.set(frozenset())
    try:
        return run()
    finally:
        HELD.reset(token)


@pytest.mark.parametrize("command", ["quantize", "score", "baseline", "build"])
def test_a_run_directory_in_use_is_refused_with_its_holder(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "run"
    build = tmp_path / "in" / "tqs.toml"
    build.write_text(
        'version = 1\nmodel = "m.onnx"\n[data]\nrollout = "rollout.toml"\ncontexts = "contexts.npz"\n'
        'eval_contexts = "eval.npz"\n[plan]\ncompression = 1.5\n'
    )
    data = case.arguments("--out", str(out))
    arguments = {
        "quantize": [str(case.model), *data, "--compression", "1.5", "--force"],
        "score": [str(case.model), *data[:4], "--out", str(out), "--force"],
        "baseline": [str(case.model), *data, "--method", "rtn", "--bits", "4", "--force"],
        "build": [str(build), "--out", str(out)],
    }[command]
    with run_directory(out, ["plan.json"], force=False):
        before = sorted(p.name for p in out.rglob("*"))
        assert as_another(lambda: main([command, *arguments])) == 2
        assert f"run: is being written by process {os.getpid()} on " in capsys.readouterr().err
        assert sorted(p.name for p in out.rglob("*")) == before


def test_a_plan_in_use_is_refused(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    arguments = ["allocate", str(case.model), "--scores", "none", "--compression", "2", "--out", str(plan)]
    with claimed(plan, "process 7 on elsewhere"):
        assert as_another(lambda: main(arguments)) == 2
    assert "plan.json: is being written by process 7 on elsewhere. Wait for it" in capsys.readouterr().err


def test_a_directory_is_free_again_when_its_job_is_over(tmp_path: Path) -> None:
    for _ in range(2):
        with run_directory(tmp_path / "run", ["a"], force=False):
            pass
    assert list((tmp_path / "run").iterdir()) == []
