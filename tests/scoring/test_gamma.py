"""The scores of one weight, worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqs_onnx.scoring.measure.gamma import gammas
from tqs_onnx.scoring.plan.options import default_horizons

# Logarithms of a few float64 numbers; ε = 1e-20 beside ‖δθ‖² = 4 is far below the last digit.
EXACT = 1e-12


def of(energy: list[list[list[float]]], delta_sq: list[float], horizons: tuple[int, ...]):
    return gammas(np.array(energy), np.array(delta_sq), horizons)


# One draw, two contexts, horizons 1 and 3: ‖ΔY‖² = 4, 100 and 16, 36; ‖δθ‖² = 4.
TWO = of([[[4.0, 100.0], [16.0, 36.0]]], [4.0], (1, 3))


def test_amplification_is_the_mean_of_the_squared_ratios() -> None:
    assert TWO.amplification == pytest.approx((100 + 36) / 2 / 4, rel=EXACT)


def test_gamma_task_takes_the_mean_before_the_logarithm() -> None:
    assert TWO.gamma_task == pytest.approx(math.log(17) / 3, rel=EXACT)


def test_gamma_takes_the_logarithm_of_plain_norms_before_the_mean() -> None:
    at_1 = (math.log(2 / 2) + math.log(4 / 2)) / 2
    at_3 = (math.log(10 / 2) + math.log(6 / 2)) / 2 / 3
    assert TWO.gamma == pytest.approx((at_1, at_3), rel=EXACT)


def test_the_mean_gamma_task_is_over_the_horizons() -> None:
    assert TWO.gamma_task_mean == pytest.approx((math.log(2.5) + math.log(17) / 3) / 2, rel=EXACT)


def test_a_max_is_the_largest_plain_ratio_over_contexts_and_horizons() -> None:
    assert TWO.a_max == pytest.approx(10 / 2, rel=EXACT)
    assert of([[[64.0, 36.0]]], [4.0], (1, 3)).a_max == pytest.approx(4.0, rel=EXACT)


def test_growth_is_the_slope_between_the_first_and_the_last_horizon() -> None:
    assert TWO.growth == pytest.approx((math.log(17) - math.log(2.5)) / 2, rel=EXACT)


def test_there_is_no_growth_with_one_horizon() -> None:
    assert of([[[4.0]]], [1.0], (5,)).growth is None


def test_the_standard_error_is_over_contexts_and_draws() -> None:
    rates = [math.log(5) / 3, math.log(3) / 3]
    assert TWO.gamma_stderr == pytest.approx(np.std(rates, ddof=1) / math.sqrt(2), rel=1e-10)
    assert of([[[4.0]]], [1.0], (5,)).gamma_stderr == 0.0


def test_every_draw_is_divided_by_its_own_perturbation() -> None:
    drawn = of([[[8.0]], [[9.0]]], [2.0, 1.0], (1,))
    assert drawn.amplification == pytest.approx((4 + 9) / 2, rel=EXACT)


@pytest.mark.parametrize(("steps", "printed"), [(1, -69.08), (13, -5.314)])
def test_a_weight_that_moves_nothing_scores_the_sentinel_of_the_paper(steps: int, printed: float) -> None:
    still = of([[[0.0]]], [1.0], (steps,))
    assert still.gamma_task == pytest.approx(math.log(1e-30) / steps, rel=EXACT)
    # The paper prints three or two decimals.
    assert still.gamma_task == pytest.approx(printed, abs=5e-3)
    assert still.gamma == pytest.approx((math.log(1e-30) / steps,), rel=EXACT)


@given(st.floats(1e-6, 1e9), st.floats(1e-9, 1e3), st.integers(1, 200))
def test_for_one_context_gamma_task_is_twice_gamma(energy: float, delta_sq: float, steps: int) -> None:
    one = of([[[energy]]], [delta_sq], (steps,))
    # ε enters the one as ‖δθ‖² + ε and the other as ‖δθ‖ + ε: 1e-11 of the smallest ‖δθ‖² here.
    assert one.gamma_task == pytest.approx(2 * one.gamma[0], rel=1e-9, abs=1e-10)


@pytest.mark.parametrize(
    ("steps", "horizons"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (5, (1, 5)), (12, (1, 5, 10, 12)), (60, (1, 5, 10, 20, 40, 60))],
)
def test_the_default_horizons_end_at_the_last_step(steps: int, horizons: tuple[int, ...]) -> None:
    assert default_horizons(steps) == horizons


def test_a_horizon_below_its_floor_has_no_numbers() -> None:
    energy = np.array([[[0.5, 4.0, 100.0]]])
    found = gammas(energy, np.array([1.0]), (1, 2, 4), np.array([1.0, 1.0, 1.0]))
    assert found.gamma[0] is None
    assert found.convergence is not None
    assert found.convergence[0] is None
    assert found.growth == pytest.approx((math.log(100) - math.log(4)) / 2, rel=EXACT)
    assert found.gamma_task_mean == pytest.approx((math.log(4) / 2 + math.log(100) / 4) / 2, rel=EXACT)
