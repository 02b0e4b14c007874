from __future__ import annotations

import numpy as np
import pytest

from tests.rounding.published.gptq import gptaq, gptq, rtn
from tests.rounding.published.uniform import Rounded, UniformGrid
from tqs_onnx.rounding.qep import qep_correct
from tqs_passes.errors import InputError

BITS = (2, 3, 4, 8)


def problem(
    seed: int = 0, rows: int = 6, columns: int = 24, samples: int = 200
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W, H and D of correlated inputs that an upstream error of a tenth has moved."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) / np.sqrt(columns) + np.eye(columns)
    full = mixing @ rng.standard_normal((columns, samples))
    seen = full + 0.1 * mixing @ rng.standard_normal((columns, samples))
    return rng.standard_normal((rows, columns)), seen @ seen.T, (full - seen) @ seen.T


def loss(weights: np.ndarray, rounded: Rounded, H: np.ndarray) -> float:
    delta = rounded.weights - weights
    return float(np.sum((delta @ H) * delta))


def brain_compression(
    W: np.ndarray, H: np.ndarray, scale: np.ndarray, bits: int, damp: float, order: np.ndarray
) -> np.ndarray:
    """Round column by column; the rest moves to its exact least-squares optimum, from a fresh inverse each time."""
    A = H + damp * np.mean(np.diag(H)) * np.eye(len(H))
    W, half = W.copy(), 2 ** (bits - 1)
    for place, j in enumerate(order):
        rest = order[place + 1 :]
        q = scale * np.clip(np.rint(W[:, j] / scale), -half, half - 1)
        # min over w_rest of the quadratic form, given the change of column j: -A_rr^-1 A_rj
        if len(rest):
            moved = np.linalg.solve(A[np.ix_(rest, rest)], A[rest, j])
            W[:, rest] -= np.outer(q - W[:, j], moved)
        W[:, j] = q
    return W


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_optimal_brain_compression_column_by_column(bits: int, act_order: bool) -> None:
    W, H, _ = problem()
    scale = np.abs(W).max(axis=1) / (2 ** (bits - 1) - 1)
    order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(len(H))
    expected = brain_compression(W, H, scale, bits, 0.01, order)
    found = gptq(W, H, bits=bits, act_order=act_order)
    # The same arithmetic in another order: float64 rounding of values near 1.
    np.testing.assert_allclose(found.weights, expected, atol=1e-9)


def naive_gptaq(W: np.ndarray, H: np.ndarray, D: np.ndarray, bits: int, alpha: float) -> np.ndarray:
    """The formulas of one block, element by element."""
    n = len(H)
    A = H + 0.01 * np.mean(np.diag(H)) * np.eye(n)
    U = np.linalg.cholesky(np.linalg.inv(A)).T
    P = np.zeros((n, n))
    for i in range(n):
        for k in range(n):
            P[i, k] = alpha * sum((D @ U.T)[i, m] * U[m, k] for m in range(i + 1, n))
    W, half = W.copy(), 2 ** (bits - 1)
    scale = np.abs(W).max(axis=1) / (half - 1)
    for j in range(n):
        w = W[:, j].copy()
        q = scale * np.clip(np.rint(w / scale), -half, half - 1)
        for k in range(j + 1, n):
            W[:, k] += w * P[j, k] - (w - q) / U[j, j] * U[j, k]
        W[:, j] = q
    return W


def test_gptaq_follows_its_formulas_within_one_block() -> None:
    W, H, D = problem(columns=12)
    found = gptaq(W, H, D, bits=3, alpha=0.7)
    np.testing.assert_allclose(found.weights, naive_gptaq(W, H, D, 3, 0.7), atol=1e-9)


def test_gptaq_depends_on_the_block_size_as_published() -> None:
    W, H, D = problem()
    whole = gptaq(W, H, D, bits=3, alpha=5.0)
    assert not np.array_equal(gptaq(W, H, D, bits=3, alpha=5.0, block_size=4).codes, whole.codes)


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"symmetric": False, "grid": "unsigned"}])
def test_gptaq_without_strength_is_gptq(options: dict) -> None:
    W, H, D = problem()
    np.testing.assert_array_equal(
        gptaq(W, H, D, alpha=0.0, bits=3, **options).codes, gptq(W, H, bits=3, **options).codes
    )


def test_gptaq_without_upstream_error_is_gptq() -> None:
    W, H, D = problem()
    np.testing.assert_array_equal(gptaq(W, H, 0 * D, bits=3).codes, gptq(W, H, bits=3).codes)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**12])
def test_scaling_the_statistics_changes_nothing(factor: float) -> None:
    W, H, D = problem()
    np.testing.assert_array_equal(gptq(W, factor * H, bits=3).codes, gptq(W, H, bits=3).codes)
    np.testing.assert_array_equal(
        gptaq(W, factor * H, factor * D, bits=3).codes, gptaq(W, H, D, bits=3).codes
    )


@pytest.mark.parametrize("block_size", [1, 5, 24, 128])
def test_the_block_size_does_not_change_ungrouped_gptq(block_size: int) -> None:
    W, H, _ = problem()
    np.testing.assert_array_equal(gptq(W, H, bits=3, block_size=block_size).codes, gptq(W, H, bits=3).codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_moves_the_output_less_than_rtn_over_many_columns(bits: int, symmetric: bool) -> None:
    W, H, _ = problem(rows=32, columns=96, samples=400)
    W = W.copy()
    ours = loss(W, gptq(W, H, bits=bits, symmetric=symmetric), H)
    assert ours < loss(W, rtn(W, bits=bits, symmetric=symmetric), H)


def test_gptq_on_uncorrelated_inputs_is_rtn() -> None:
    W, _, _ = problem()
    np.testing.assert_array_equal(gptq(W, np.eye(24), bits=4).codes, rtn(W, bits=4).codes)


def test_qep_is_the_least_squares_shift_when_neither_damped_nor_weakened() -> None:
    rng = np.random.default_rng(1)
    seen, full = rng.standard_normal((2, 8, 100))
    W = rng.standard_normal((5, 8))
    expected = np.linalg.lstsq(seen.T, (W @ full).T, rcond=None)[0].T
    found = qep_correct(W, seen @ seen.T, (full - seen) @ seen.T, damp=0.0, strength=1.0)
    np.testing.assert_allclose(found, expected, atol=1e-10)  # two solvers, condition number near 10


def test_qep_is_its_formula() -> None:
    W, H, D = problem()
    inverse = np.linalg.inv(H + 1.0 * np.mean(np.diag(H)) * np.eye(len(H)))
    np.testing.assert_allclose(qep_correct(W, H, D), W + 0.5 * W @ D @ inverse, atol=1e-12)


def test_qep_without_upstream_error_changes_nothing() -> None:
    W, H, D = problem()
    np.testing.assert_array_equal(qep_correct(W, H, 0 * D), W)


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_a_dead_input_gets_the_code_of_zero(method: str) -> None:
    W, H, D = problem()
    H[3], H[:, 3], D[:, 3] = 0, 0, 0
    found = gptq(W, H, bits=4) if method == "gptq" else gptaq(W, H, D, bits=4)
    assert not found.weights[:, 3].any()


def test_a_dead_input_still_counts_for_the_scale_of_its_row() -> None:
    W, H, _ = problem()
    W[:, 3] = 100.0
    H[3], H[:, 3] = 0, 0
    assert gptq(W, H, bits=4).scales[0, 0] == pytest.approx(100.0 / 7)


def test_static_groups_take_their_scales_from_columns_as_stored() -> None:
    W, H, _ = problem()
    found = gptq(W, H, bits=4, group_size=8, static_groups=True, act_order=True)
    expected = np.stack([np.abs(W[:, i : i + 8]).max(axis=1) / 7 for i in (0, 8, 16)], axis=1)
    np.testing.assert_allclose(found.scales, expected)
    np.testing.assert_array_equal(found.groups, np.arange(24) // 8)


def test_a_group_inside_a_block_takes_its_scale_from_columns_not_yet_corrected() -> None:
    W, H, _ = problem()
    lazy = gptq(W, H, bits=3, group_size=8, block_size=24)
    np.testing.assert_allclose(lazy.scales[:, 1], np.abs(W[:, 8:16]).max(axis=1) / 3)


def test_a_group_at_the_start_of_a_block_takes_its_scale_from_corrected_columns() -> None:
    W, H, _ = problem()
    fresh = gptq(W, H, bits=3, group_size=8, block_size=8)
    assert not np.allclose(fresh.scales[:, 1], np.abs(W[:, 8:16]).max(axis=1) / 3)


@pytest.mark.parametrize("grid", ["signed", "unsigned"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, *BITS])
@pytest.mark.parametrize("group_size", [-1, 7])
def test_codes_scales_and_zero_points_decode_to_the_weights(
    grid: str, symmetric: bool, bits: int, group_size: int
) -> None:
    W, H, D = problem()
    options = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "grid": grid}
    for found in (rtn(W, **options), gptq(W, H, act_order=True, **options), gptaq(W, H, D, **options)):
        decoded = found.scales[:, found.groups] * (found.codes - found.zero_points[:, found.groups])
        np.testing.assert_array_equal(decoded, found.weights)
        low, high = UniformGrid(bits, symmetric, grid).bounds
        assert found.codes.min() >= low
        assert found.codes.max() <= high


def test_one_symmetric_bit_is_sign_times_mean_size() -> None:
    W = np.array([[1.0, -3.0, 2.0]])
    np.testing.assert_array_equal(rtn(W, bits=1).weights, [[2.0, -2.0, 2.0]])


def test_the_unsigned_symmetric_grid_spans_both_signs_in_all_its_steps() -> None:
    found = rtn(np.array([[-1.0, 0.5]]), bits=3, grid="unsigned")
    assert found.scales[0, 0] == pytest.approx(2 / 7)
    assert found.zero_points[0, 0] == 4


def test_a_positive_row_on_the_unsigned_symmetric_grid_saturates_at_three_sevenths() -> None:
    found = rtn(np.array([[0.1, 0.7]]), bits=3, grid="unsigned")
    np.testing.assert_allclose(found.weights, [[0.1, 0.3]])


def test_two_signed_bits_are_ternary_on_symmetric_data() -> None:
    found = rtn(np.array([[-1.0, -0.4, 0.6, 1.0]]), bits=2)
    np.testing.assert_array_equal(found.codes, [[-1, 0, 1, 1]])


@pytest.mark.parametrize("grid", ["signed", "unsigned"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_of_zeros_stays_zero(grid: str, symmetric: bool) -> None:
    W, H, _ = problem()
    W[2] = 0.0
    assert not gptq(W, H, bits=4, grid=grid, symmetric=symmetric).weights[2].any()


@pytest.mark.parametrize("grid", ["signed", "unsigned"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_clipping_takes_the_first_best_of_eighty_shrinks(grid: str, symmetric: bool) -> None:
    row = np.random.default_rng(2).standard_t(3, (1, 64))
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    errors, scales = [], []
    for i in range(80):
        shrink = 1 - i / 100
        if symmetric and grid == "signed":
            scale, zero, bounds = shrink * high / 3, 0.0, (-4, 3)
        else:
            scale = (shrink * high - shrink * low) / 7
            zero, bounds = 4.0 if symmetric else np.rint(-shrink * low / scale), (0, 7)
        q = np.clip(np.rint(row / scale) + zero, *bounds)
        errors.append(np.sum(np.abs(scale * (q - zero) - row) ** 2.4))
        scales.append(scale)
    found = rtn(row, bits=3, grid=grid, symmetric=symmetric, mse=True)
    assert found.scales[0, 0] == scales[int(np.argmin(errors))]


def test_damping_rises_tenfold_until_the_factor_exists() -> None:
    W, H, _ = problem()
    H[0, 1] = H[1, 0] = 1.05 * np.sqrt(H[0, 0] * H[1, 1])  # indefinite
    found = gptq(W, H, bits=4, damp=1e-3)
    assert found.damp in (pytest.approx(0.1), pytest.approx(1.0))
    assert not found.fallback


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_useless_statistics_fall_back_to_rtn_and_say_so(value: float) -> None:
    W, H, _ = problem()
    found = gptq(W, np.full_like(H, value), bits=3)
    assert found.fallback
    np.testing.assert_array_equal(found.codes, rtn(W, bits=3).codes)


def test_an_indefinite_statistic_falls_back_to_rtn_and_says_so() -> None:
    W, H, _ = problem()
    H[0, 1] = H[1, 0] = 100 * np.max(H)
    found = gptq(W, H, bits=3)
    assert "no Cholesky factor" in found.fallback
    np.testing.assert_array_equal(found.codes, rtn(W, bits=3).codes)


def test_the_arguments_are_left_as_they_were() -> None:
    W, H, D = problem()
    before = W.copy(), H.copy(), D.copy()
    gptaq(W, H, D, bits=3, act_order=True)
    qep_correct(W, H, D)
    for given, kept in zip((W, H, D), before, strict=True):
        np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 3, "group_size": 0},
        {"bits": 3, "block_size": 0},
        {"bits": 3, "damp": -1},
    ],
)
def test_an_option_out_of_range_is_refused(options: dict) -> None:
    W, H, _ = problem()
    with pytest.raises(InputError):
        gptq(W, H, **options)


def test_a_statistic_of_another_size_is_refused() -> None:
    W, H, _ = problem()
    with pytest.raises(InputError, match="must be"):
        gptq(W, H[:5, :5], bits=3)
