"""Drift and truth errors by hand."""

import math

import numpy as np
import pytest

from tests.rollouts import REPLACE, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.verification.evaluate import measure_drift, measure_truth, step_bounds
from tqs_passes.errors import InputError

X = {"x": np.zeros((4, 3), np.float32)}
FP32 = {"y": values(4, 6, 3, seed=1)}
OURS = {"y": FP32["y"] + values(4, 6, 3, seed=2, scale=0.1)}
TRUTH = {"y": values(4, 6, 3, seed=3).astype(np.float64)}
AFTER = (0, 2, 4, 6)
# Means of float32 differences taken in float64: only the order of the sums differs.
EXACT = 1e-9
DELTA = OURS["y"].astype(np.float64) - FP32["y"].astype(np.float64)
MINE = measure_drift(FP32, OURS, spec_of(3), Contexts(X, {}), {"y": 2.0}, AFTER)
ERRORS = measure_truth(FP32, OURS, spec_of(3), Contexts(X, TRUTH), AFTER)["y"]


def test_the_total_is_the_root_of_the_mean_square_in_units_of_sigma() -> None:
    assert MINE.total == pytest.approx(np.sqrt(np.mean((DELTA / 2) ** 2)), rel=EXACT)
    assert MINE.per_variable == {"y": pytest.approx(MINE.total, rel=EXACT)}


def test_a_step_counts_its_own_values() -> None:
    by_hand = [np.sqrt(np.mean((DELTA[:, a : a + 2] / 2) ** 2)) for a in (0, 2, 4)]
    assert MINE.per_step == pytest.approx(by_hand, rel=EXACT)


def test_the_percentile_is_over_contexts() -> None:
    each = np.sqrt(np.mean((DELTA / 2) ** 2, axis=(1, 2)))
    # Interpolated between squares, not between roots.
    assert MINE.p95 == pytest.approx(np.sqrt(np.percentile(each**2, 95)), rel=EXACT)


def test_a_step_that_length_cuts_away_is_left_out() -> None:
    assert step_bounds((0, 2, 4, 4), 4) == [(0, 2), (2, 4)]
    assert step_bounds((0, 3, 6), 4) == [(0, 3), (3, 4)]


def test_mae_and_rmse_are_against_the_truth() -> None:
    e0, e1 = FP32["y"] - TRUTH["y"], OURS["y"] - TRUTH["y"]
    assert ERRORS.mae_fp32 == pytest.approx(np.mean(np.abs(e0)), rel=EXACT)
    assert ERRORS.mae == pytest.approx(np.mean(np.abs(e1)), rel=EXACT)
    assert ERRORS.rmse_fp32 == pytest.approx(np.sqrt(np.mean(e0**2)), rel=EXACT)
    assert ERRORS.rmse == pytest.approx(np.sqrt(np.mean(e1**2)), rel=EXACT)


def test_degradation_is_in_percent_of_the_mae_of_fp32() -> None:
    assert ERRORS.degradation == pytest.approx(100 * (ERRORS.mae / ERRORS.mae_fp32 - 1), rel=1e-6)


def test_degradation_per_step_is_that_of_its_values() -> None:
    e0, e1 = np.abs(FP32["y"] - TRUTH["y"])[:, 2:4].mean(), np.abs(OURS["y"] - TRUTH["y"])[:, 2:4].mean()
    assert ERRORS.degradation_per_step[1] == pytest.approx(100 * (e1 - e0) / e0, rel=1e-6)


def test_a_shorter_truth_counts_as_far_as_it_goes() -> None:
    short = measure_truth(FP32, OURS, spec_of(3), Contexts(X, {"y": TRUTH["y"][:, :3]}), AFTER)["y"]
    assert short.mae_fp32 == pytest.approx(np.mean(np.abs(FP32["y"] - TRUTH["y"])[:, :3]), rel=EXACT)
    assert len(short.degradation_per_step) == 2


def test_a_perfect_forecast_degrades_infinitely_or_not_at_all() -> None:
    exact = Contexts(X, {"y": FP32["y"].astype(np.float64)})
    assert measure_truth(FP32, OURS, spec_of(3), exact, AFTER)["y"].degradation == math.inf
    assert measure_truth(FP32, FP32, spec_of(3), exact, AFTER)["y"].degradation == 0.0


def test_without_truth_there_are_no_errors() -> None:
    assert measure_truth(FP32, OURS, spec_of(3), Contexts(X, {}), AFTER) == {}


def test_a_truth_for_one_output_of_two_is_used() -> None:
    spec = parse_spec(REPLACE.format(steps=3).replace('outputs = ["y"]', 'outputs = ["y", "z"]'))
    both = {**FP32, "z": FP32["y"]}
    found = measure_truth(both, {**OURS, "z": OURS["y"]}, spec, Contexts(X, TRUTH), AFTER)
    assert found == {"y": ERRORS}


def test_a_truth_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"truth/y is \[4, 6\], the trajectory is \[context, time, 3\]"):
        measure_truth(FP32, OURS, spec_of(3), Contexts(X, {"y": TRUTH["y"][..., 0]}), AFTER)
