"""The verdict: how much smaller a file is, and how long its forecast stays as good."""

from __future__ import annotations

import pytest

from tqs_onnx.verification.evaluate import Drift, TruthError
from tqs_onnx.verification.verdict import change, verdict_of


def drift(*steps: float) -> Drift:
    return Drift(total=0.1, p95=0.1, per_variable={"u": 0.1}, per_step=steps)


def truth(whole: float, *steps: float) -> TruthError:
    ones = (1.0,) * len(steps)
    return TruthError(
        mae_fp32=1.0,
        mae=1.0,
        rmse_fp32=1.0,
        rmse=1.0,
        degradation=whole,
        degradation_per_step=steps,
        mae_fp32_per_step=ones,
        mae_per_step=ones,
    )


@pytest.mark.parametrize(
    ("drifts", "error", "said"),
    [
        ((0.1, 0.1), truth(0.4, 0.2, 0.9), "as good as FP32 at all 2 steps (MAE 0.4 % worse over all steps)"),
        ((0.1, 0.1), truth(2.0, 0.2, 5.0), "as good as FP32 to step 1, 5.0 % worse at step 2 "
         "(MAE 2.0 % worse over all steps)"),
        # FP32 is nearly exact: its error triples, and yet the forecasts hardly differ
        ((0.001, 0.002), truth(284.0, 300.0, 280.0), "within 0.01 σ of FP32 at all 2 steps "
         "(MAE 284 % worse over all steps)"),
        ((0.001, 0.2), truth(9.0, 300.0, 5.0), "within 0.01 σ of FP32 to step 1, 5.0 % worse at step 2 "
         "(MAE 9.0 % worse over all steps)"),
        ((0.1, 0.2), truth(9.0, 3.0, 15.0), "MAE 15 % worse at step 2, MAE 9.0 % worse over all steps"),
        ((0.1,), truth(-2.0, -2.0), "as good as FP32 (MAE 2.0 % better)"),
        ((0.1,), truth(7.0, 7.0), "MAE 7.0 % worse"),
    ],
)  # fmt: skip
def test_errors_against_the_truth_in_words(drifts: tuple[float, ...], error: TruthError, said: str) -> None:
    assert verdict_of(4.0, drift(*drifts), {"u": error}) == f"4 times smaller; {said}"


def test_of_several_variables_the_worst_is_named() -> None:
    errors = {"u": truth(0.1, 0.1, 0.1), "v": truth(3.0, 2.0, 4.0)}
    assert verdict_of(8.0, drift(0.1, 0.1), errors).endswith("MAE 3.0 % worse over all steps in v")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((0.001, 0.009), "its forecasts stay within 0.01 σ of FP32 at all 2 steps"),
        ((0.001, 0.3), "its forecasts stay within 0.01 σ of FP32 to step 1 and are 0.3 σ away at step 2"),
        ((0.1,), "its forecasts are 0.1 σ away from FP32"),
        ((0.001,), "its forecasts stay within 0.01 σ of FP32"),
        ((0.1, 0.3), "its forecasts are 0.1 σ away from FP32 at step 1 and 0.3 σ away at step 2"),
    ],
)
def test_without_a_truth_the_distance_is_told(steps: tuple[float, ...], said: str) -> None:
    assert verdict_of(2.5, drift(*steps), {}) == f"2.5 times smaller; {said}"


def test_a_change_too_small_to_print_is_none() -> None:
    assert [change(p) for p in (0.04, -0.04, 0.06, 12.3)] == [
        "unchanged",
        "unchanged",
        "0.1 % worse",
        "12 % worse",
    ]
