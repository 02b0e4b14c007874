"""Probes: the size of a perturbation, and that nothing but seed, name and draw decides it."""

import numpy as np
import pytest

from tests.rollouts import values
from tqs_onnx.scoring.plan.probe import Probe, ProbeKind, generator, perturbed, residual

THETA = values(5, 7, seed=1)
GAUSS = Probe(ProbeKind.GAUSS, draws=3, seed=4)


def rounded_by_hand(theta: np.ndarray, bits: int) -> np.ndarray:
    """Q_b written out: one float32 scale max|θ| / (2^(b−1) − 1), nearest level, no clipping above the largest."""
    top = 2 ** (bits - 1) - 1
    scale = np.float32(np.abs(theta).max() / np.float32(top))
    return (np.rint(theta / scale) * scale).astype(np.float64)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_the_quant_probe_is_the_rounding_residual(bits: int) -> None:
    moved, delta_sq = perturbed(THETA, Probe(bits=bits), "w", 0, None)
    expected = rounded_by_hand(THETA, bits)
    np.testing.assert_array_equal(moved, expected.astype(np.float32))
    # Sums of 35 squares in float64, in another order.
    assert delta_sq == pytest.approx(np.sum((expected - THETA) ** 2), rel=1e-12)


def test_per_channel_rounds_every_channel_by_itself() -> None:
    by_row = np.stack([rounded_by_hand(row, 6) for row in THETA])
    np.testing.assert_array_equal(residual(THETA, 6, 0), by_row - THETA)


def test_the_channel_axis_is_ignored_unless_asked_for() -> None:
    np.testing.assert_array_equal(
        perturbed(THETA, Probe(), "w", 0, 0)[0], perturbed(THETA, Probe(), "w", 0, None)[0]
    )


def test_the_gauss_probe_has_the_norm_of_the_quant_residual() -> None:
    theta = THETA.astype(np.float64)
    _, delta_sq = perturbed(theta, GAUSS, "w", 0, None)
    # θ + δθ − θ in float64 loses some 1e-16 of θ, 1e-13 of a residual a hundred times smaller.
    assert delta_sq == pytest.approx(np.sum(residual(theta, 6, None) ** 2), rel=1e-11)


def test_the_reported_norm_is_that_of_what_was_applied() -> None:
    moved, delta_sq = perturbed(THETA.astype(np.float16), GAUSS, "w", 0, None)
    assert moved.dtype == np.float16
    applied = moved.astype(np.float64) - THETA.astype(np.float16).astype(np.float64)
    assert delta_sq == np.sum(applied * applied)


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    alone = perturbed(THETA, GAUSS, "w", 2, None)[0]
    for other, draw in (("v", 0), ("w", 0), ("w", 1)):
        perturbed(THETA, GAUSS, other, draw, None)
    np.testing.assert_array_equal(perturbed(THETA, GAUSS, "w", 2, None)[0], alone)


@pytest.mark.parametrize(("seed", "name", "draw"), [(5, "w", 0), (4, "v", 0), (4, "w", 1)])
def test_seed_name_and_draw_each_change_the_draw(seed: int, name: str, draw: int) -> None:
    reference = generator(4, "w", 0).standard_normal(8)
    assert not np.array_equal(generator(seed, name, draw).standard_normal(8), reference)


def test_digits_of_the_seed_and_the_name_do_not_run_together() -> None:
    assert not np.array_equal(
        generator(1, "1w", 0).standard_normal(8), generator(11, "w", 0).standard_normal(8)
    )


@pytest.mark.parametrize("kind", list(ProbeKind))
def test_all_ones_have_no_residual(kind: ProbeKind) -> None:
    ones = np.ones((4, 3), np.float32)
    moved, delta_sq = perturbed(ones, Probe(kind), "w", 0, None)
    assert delta_sq == 0.0
    np.testing.assert_array_equal(moved, ones)


def test_the_quant_probe_has_one_draw_whatever_is_asked() -> None:
    assert (Probe(draws=5).n_draws, GAUSS.n_draws) == (1, 3)
