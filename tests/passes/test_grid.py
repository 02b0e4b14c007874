"""`grid`: levels in range, scales of least squared error, and what they decode to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tqs_passes.grids.grid import Codes, Grid, grids_for, round_levels, rtn
from tqs_passes.grids.nearest import quantize
from tqs_passes.grids.scales import scales_fit_half

WIDTHS = [(bits, grid) for bits in range(1, 9) for grid in grids_for(bits)]
SIGNED = list(range(2, 9))

sizes = st.floats(-1e3, 1e3, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=sizes
)


def energy(a: np.ndarray) -> float:
    return float(np.sum(np.square(a.astype(np.float64))))


def relative_error(w: np.ndarray, codes: Codes) -> float:
    return energy(codes.decode().astype(np.float64) - w) / energy(w)


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
@settings(max_examples=20, deadline=None)
@given(w=matrices, axis=st.sampled_from([None, 0, 1]), half=st.booleans())
def test_levels_are_levels_of_the_grid(
    bits: int, grid: Grid, w: np.ndarray, axis: int | None, half: bool
) -> None:
    levels = quantize(w, bits, axis, grid, half_scales=half).levels.astype(int)
    if grid is Grid.MIDRISE:
        assert np.all(levels % 2 == 1)
        assert np.abs(levels).max() <= 2**bits - 1
    else:
        assert levels.min() >= -(2 ** (bits - 1))
        assert levels.max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
@settings(max_examples=10, deadline=None)
@given(w=matrices)
def test_unsigned_codes_tell_the_levels(bits: int, grid: Grid, w: np.ndarray) -> None:
    codes = quantize(w, bits, None, grid)
    unsigned = codes.unsigned().astype(int)
    assert unsigned.max() < 2**bits
    back = 2 * unsigned - (2**bits - 1) if grid is Grid.MIDRISE else unsigned - 2 ** (bits - 1)
    np.testing.assert_array_equal(back.reshape(w.shape), codes.levels)


@pytest.mark.parametrize("bits", SIGNED)
@settings(max_examples=40, deadline=None)
@given(w=matrices, axis=st.sampled_from([None, 0, 1]))
def test_error_is_never_larger_than_plain_rounding(bits: int, w: np.ndarray, axis: int | None) -> None:
    ours = energy(quantize(w, bits, axis, Grid.SIGNED).decode().astype(np.float64) - w)
    plain = energy(rtn(w, bits, axis).astype(np.float64) - w)
    # Errors are compared in float32 while scales are chosen: 1e-5 of the error, 1e-12 of the weight's energy
    assert ours <= plain * (1 + 1e-5) + 1e-12 * energy(w)


@pytest.mark.parametrize("bits", SIGNED)
@pytest.mark.parametrize("outlier", [30.0, 200.0, 1000.0])
@pytest.mark.parametrize("place", [0, 12_345])
def test_an_outlier_that_the_sample_misses_is_not_clipped_away(bits: int, place: int, outlier: float) -> None:
    w = np.random.default_rng(0).normal(size=(2, 20_001)).astype(np.float32)
    w[1, place] = outlier
    ours = energy(quantize(w, bits, 0, Grid.SIGNED).decode().astype(np.float64) - w)
    assert ours <= energy(rtn(w, bits, 0).astype(np.float64) - w) * (1 + 1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_clipping_pays_on_normal_weights(bits: int) -> None:
    w = np.random.default_rng(3).normal(size=(8, 500)).astype(np.float32)
    ours = energy(quantize(w, bits, 0, Grid.SIGNED).decode().astype(np.float64) - w)
    plain = energy(rtn(w, bits, 0).astype(np.float64) - w)
    assert ours < 0.9 * plain


@settings(max_examples=40, deadline=None)
@given(w=matrices, axis=st.sampled_from([None, 0, 1]))
def test_one_bit_is_sign_times_mean_size(w: np.ndarray, axis: int | None) -> None:
    decoded = quantize(w, 1, axis, Grid.MIDRISE).decode().astype(np.float64)
    over = None if axis is None else 1 - axis
    mean = np.abs(w.astype(np.float64)).mean(axis=over, keepdims=True)
    expected = np.where(w >= 0, mean, -mean)
    # float32 has 24 bits: 1.2e-7 of the mean; zero rows decode to the smallest normal number, 1.2e-38
    np.testing.assert_allclose(decoded, expected, rtol=2.5e-7, atol=2e-38)


@pytest.mark.parametrize(("grid", "expected"), [(Grid.SIGNED, 0.150), (Grid.MIDRISE, 0.119)])
def test_two_bit_error_on_normal_weights_is_the_documented_one(grid: Grid, expected: float) -> None:
    w = np.random.default_rng(1).normal(size=(4, 20_000)).astype(np.float32)
    # 80 000 draws: the energy of the error has a spread of about 0.001
    assert relative_error(w, quantize(w, 2, None, grid)) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("bits", [6, 7])
def test_a_bit_more_quarters_the_error(bits: int) -> None:
    w = np.random.default_rng(2).uniform(-1, 1, size=(4, 5_000)).astype(np.float32)
    coarse = relative_error(w, quantize(w, bits, 0, Grid.SIGNED))
    fine = relative_error(w, quantize(w, bits + 1, 0, Grid.SIGNED))
    assert fine / coarse == pytest.approx(0.25, rel=0.05)  # uniform values: exactly 4 up to the edge cells


@pytest.mark.parametrize("bits", SIGNED)
def test_signed_grid_stores_zero_rows_exactly(bits: int) -> None:
    w = np.random.default_rng(4).normal(size=(5, 40)).astype(np.float32)
    w[2] = 0
    np.testing.assert_array_equal(quantize(w, bits, 0, Grid.SIGNED).decode()[2], np.zeros(40, np.float32))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_midrise_zero_rows_decode_to_next_to_nothing(bits: int) -> None:
    w = np.zeros((2, 8), np.float32)
    w[0] = 1e-30
    assert np.abs(quantize(w, bits, 0, Grid.MIDRISE).decode()[1]).max() <= 1.2e-38 * 2**bits


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
def test_zero_rows_leave_half_scales_to_the_others(bits: int, grid: Grid) -> None:
    w = np.random.default_rng(5).normal(size=(6, 40)).astype(np.float32)
    w[3] = 0
    codes = quantize(w, bits, 0, grid, half_scales=True)
    assert codes.scales.dtype == np.float16
    assert np.abs(codes.decode()[3]).max() <= 6.2e-5 * (0 if grid is Grid.SIGNED else 1)


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-7, 1e7, 1e20, 1e30])
def test_error_does_not_depend_on_the_unit(bits: int, grid: Grid, size: float) -> None:
    w = np.random.default_rng(6).normal(size=(3, 50)).astype(np.float32)
    scale = np.float32(2.0 ** round(np.log2(size)))
    # A power of two only moves exponents: the very same levels
    np.testing.assert_array_equal(
        quantize(w * scale, bits, 0, grid).levels, quantize(w, bits, 0, grid).levels
    )


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
@pytest.mark.parametrize("extreme", [np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-45])
def test_extreme_values_decode_to_finite_values(bits: int, grid: Grid, extreme: float) -> None:
    w = np.array([[extreme, -extreme, 0.0], [1.0, -1.0, 0.5]], np.float32)
    for axis in (None, 0, 1):
        assert np.isfinite(quantize(w, bits, axis, grid).decode()).all()


def test_half_scales_are_used_only_in_their_normal_range() -> None:
    assert quantize(np.full((2, 4), 1e-6, np.float32), 4, 0, Grid.SIGNED, half_scales=True).scales.dtype == (
        np.float32
    )
    assert not scales_fit_half(np.array([1e5], np.float32))
    assert scales_fit_half(np.array([6.2e-5, 6e4], np.float32))


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
def test_levels_are_chosen_for_the_half_scale_as_stored(bits: int, grid: Grid) -> None:
    w = np.random.default_rng(8).normal(size=(4, 30)).astype(np.float32)
    codes = quantize(w, bits, 0, grid, half_scales=True)
    nearest = round_levels(w / codes.scales.astype(np.float32), bits, grid)
    np.testing.assert_array_equal(codes.levels, nearest)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3])
def test_scales_lie_along_the_axis(axis: int | None) -> None:
    w = np.random.default_rng(9).normal(size=(2, 3, 4, 5)).astype(np.float32)
    codes = quantize(w, 4, axis, Grid.SIGNED)
    assert codes.scales.shape == (
        () if axis is None else tuple(d if i == axis else 1 for i, d in enumerate(w.shape))
    )
    assert codes.decode().shape == w.shape
    assert codes.levels.flags.c_contiguous


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_channel_is_rounded_by_itself(axis: int) -> None:
    w = np.random.default_rng(10).normal(size=(3, 4, 5)).astype(np.float32)
    whole = quantize(w, 3, axis, Grid.SIGNED).decode()
    for channel in range(w.shape[axis]):
        alone = quantize(np.take(w, [channel], axis), 3, None, Grid.SIGNED).decode()
        np.testing.assert_array_equal(np.take(whole, [channel], axis), alone)


def test_rounding_is_deterministic_and_leaves_its_input_alone() -> None:
    w = np.random.default_rng(11).normal(size=(6, 7)).astype(np.float32)
    before = w.copy()
    first, second = quantize(w, 3, 1, Grid.MIDRISE), quantize(w, 3, 1, Grid.MIDRISE)
    np.testing.assert_array_equal(first.levels, second.levels)
    np.testing.assert_array_equal(first.scales, second.scales)
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("bits", range(1, 9))
def test_plain_rounding_keeps_extremes_and_has_at_most_its_levels(bits: int) -> None:
    w = np.random.default_rng(12).normal(size=(4, 300)).astype(np.float32)
    out = rtn(w, bits, 0)
    for row, rounded in zip(w, out, strict=True):
        assert len(np.unique(rounded)) <= 2**bits
        if bits > 1:
            peak = np.argmax(np.abs(row))
            assert rounded[peak] == pytest.approx(row[peak], rel=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
def test_plain_rounding_of_zeros_is_zero(bits: int) -> None:
    np.testing.assert_array_equal(rtn(np.zeros((2, 3), np.float32), bits, 0), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("bits", "grid"), [(0, Grid.SIGNED), (9, Grid.SIGNED), (5, Grid.MIDRISE), (1, Grid.SIGNED)]
)
def test_widths_without_a_grid_are_refused(bits: int, grid: Grid) -> None:
    with pytest.raises(ValueError, match="bits"):
        quantize(np.ones((2, 2), np.float32), bits, None, grid)
