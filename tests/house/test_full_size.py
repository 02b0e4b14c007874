"""The full-size trips: integers are chosen on contexts that judge nothing, and the table takes every record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.full_size import TRIPS, held_out, page
from tqs_onnx.rollout.contexts.context_set import thin

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(TRIPS))
def test_calibration_shares_no_context_with_those_scored_on(tmp_path: Path, name: str) -> None:
    trip = TRIPS[name]
    n = int(trip.export[trip.export.index("--contexts") + 1])
    n_scored = int(trip.rollout[trip.rollout.index("--max-contexts") + 1])
    np.savez(tmp_path / "contexts.npz", x=np.arange(n))
    held_out(tmp_path / "contexts.npz", n_scored, tmp_path / "calibration.npz")
    with np.load(tmp_path / "calibration.npz") as held:
        chosen = set(held["x"].tolist())
    assert chosen
    assert chosen | set(thin(n, n_scored)) == set(range(n))
    assert not chosen & set(thin(n, n_scored))


def test_a_plan_without_a_prediction_has_a_row() -> None:
    stage = {"command": "tqs x", "exit_code": 0, "wall_s": 1.0, "cpu_s": 1.0, "peak_mb": 1.0}
    facts = {"weight_compression": 8.0, "compression": 7.9, "planned_bytes": 10, "bytes": 10, "drift": 0.5}
    facts |= {"predicted_drift": None, "runtime_gap": 0.1, "n_decoded": 3}
    record = {
        "model": {"bytes": 80, "tensors": 3, "weights": 20},
        "machine": {"date": "2026-01-01", "cpu": "a", "cores": 2, "memory_gb": 8},
        **{f"{s} qep 8": stage for s in ("allocate", "emit", "verify")},
        "facts qep 8": facts,
    }
    text = page({"tiny": record})
    assert "| 8 | 8.000 | 7.900 | 10 | 10 | +0.0000 % | 1 | – | 0.5 | 0.1 |" in text
    assert "| allocate 8 | 1 | 1 | 1 |" in text


def test_the_page_keeps_the_sections_of_models_that_are_not_here() -> None:
    text = (ROOT / "models/zoo/FULL_SIZE.md").read_text(encoding="utf-8")
    assert page({}, text) == text
    assert text.count("\n## ") >= 3


@pytest.mark.slow
def test_the_measured_trip_is_rehearsed(tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools" / "full_size.py"), "tiny", "--measured", "--ratios", "8"]
    done = subprocess.run(
        [*tool, "--threads", "1", "--folder", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads((tmp_path / "tiny" / "full_size.json").read_text())["facts qep 8"]
    assert facts["planned_bytes"] == facts["bytes"]
    assert facts["compared"] > 1
    assert facts["predicted_drift"] > 0
