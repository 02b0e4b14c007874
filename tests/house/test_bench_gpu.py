"""The run for a GPU is rehearsed on the CPU: every section ends, and says what it is for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    tool = str(ROOT / "tools" / "bench_gpu.py")
    return subprocess.run(
        [sys.executable, tool, "--out", str(out), *more],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.slow
def test_the_run_for_a_gpu_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    done = run(tmp_path, "--provider", "cpu", "--tiny", "--threads", "1")
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    said = json.loads((tmp_path / "gpu.json").read_text())
    assert list(said) == ["correctness", "tf32", "placement", "blocks", "sweep", "forms"]
    assert "the same sweep gives the same bits" in said["correctness"]
    assert said["tf32"].count("e-0") == 4  # float32 rounding, under both options
    assert "of 28 blocks measured" in said["sweep"]
    assert "(extrapolated)" in said["sweep"]
    assert "bfloat16 | refused" in said["blocks"]
    assert "INT4 nbits" in said["forms"]
    assert "a rehearsal" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_what_no_time_is_left_for_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--provider", "cpu", "--tiny", "--minutes", "0", "--only", "tf32,placement")
    assert done.returncode == 0
    assert "no time was left for tf32, placement" in done.stdout
