"""The growth of an error of the state, against a rotation that stretches by a known factor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Scored
from tests.rollouts import bed_of, linear, opened, scored, spec_of, values
from tqs_onnx.analysis.curvature import state_table
from tqs_onnx.analysis.growth import linear_growth
from tqs_onnx.jobs.curvature import Curvature
from tqs_onnx.jobs.state_growth import SIZE, state_growth
from tqs_onnx.rollout.contexts.context_set import Contexts

N, STEPS, STRETCH = 16, 5, 1.25


def test_a_stretching_rotation_has_the_exponent_of_its_stretch(tmp_path: Path) -> None:
    """x' = s x Q with Q orthogonal: ‖ΔY_t‖ = s^t ‖δx‖ in every context."""
    rotation = np.linalg.qr(values(N, N, seed=1).astype(np.float64))[0]
    source = opened(tmp_path, linear((STRETCH * rotation).astype(np.float32)))
    x = values(6, N, seed=2)
    scores = scored(source, spec_of(STEPS), x)
    found = state_growth(bed_of(source, spec_of(STEPS), Contexts({"x": x}, {})), scores)
    assert found is not None
    moved = SIZE * math.sqrt(x.astype(np.float64).var(axis=0).mean()) / scores.sigma["y"]
    expected = [moved * STRETCH**t for t in range(1, STEPS + 1)]
    assert found.distance_per_step == pytest.approx(expected, rel=1e-3)
    ratios = [math.sqrt(sum(STRETCH ** (2 * t) for t in range(1, T + 1))) for T in found.horizons]
    gamma = [math.log(r * moved / SIZE) / T for r, T in zip(ratios, found.horizons, strict=True)]
    assert found.gamma == pytest.approx(gamma, abs=1e-3)
    first, last = found.horizons[0], found.horizons[-1]
    growth = 2 * math.log(ratios[-1] / ratios[0]) / (last - first)
    assert found.growth == pytest.approx(growth, abs=1e-3)
    held = Curvature(source_sha256=source.sha256, weights=(), state=found)
    (row,) = state_table({"run": scores}, {"run": held}).rows
    assert row[1] == pytest.approx(math.log(STRETCH), abs=1e-3)


def test_a_state_that_is_not_moved_has_no_growth(tmp_path: Path) -> None:
    source = opened(tmp_path, linear(np.eye(N, dtype=np.float32)))
    x = values(2, N)
    scores = scored(source, spec_of(2), x)
    bed = bed_of(source, spec_of(2), Contexts({"x": np.zeros_like(x)}, {}))
    assert state_growth(bed, scores) is None  # a state of zeros may be missing: it is not moved


def test_the_demo_grows_at_its_lyapunov_exponent(lorenz: Scored) -> None:
    """In a few steps the exponent of Lorenz-96, .0845 a step, is told from 0 and from twice its value."""
    found = state_growth(lorenz.bed, lorenz.scores)
    assert found is not None
    fit = linear_growth(found.distance_per_step, 1.0)
    assert fit is not None
    assert fit.rate == pytest.approx(0.0845, abs=0.04)
