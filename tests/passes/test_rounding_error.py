"""Prices of large weights, from samples that keep outliers, against the errors of really rounding them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tqs_passes.encode.fragment import Fragment
from tqs_passes.encode.planes import decode_levels, packed_planes, unpack
from tqs_passes.grids.grid import Codes, Grid, grids_for
from tqs_passes.grids.nearest import quantize
from tqs_passes.grids.rounding_error import SAMPLED_ABOVE, Pricer
from tqs_passes.grids.row_sample import sampled

F32 = np.dtype(np.float32)


def weight(kind: str, *shape: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(5)
    if kind == "heavy":
        return rng.standard_t(4, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32)


def exact_error(w: NDArray[np.float32], bits: int, axis: int | None, grid: Grid) -> float:
    decoded = quantize(w, bits, axis, grid, half_scales=axis is not None).decode()
    return float(np.sum((decoded.astype(np.float64) - w) ** 2))


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_price_of_a_large_weight_is_close_to_its_error(kind: str, axis: int | None, bits: int) -> None:
    """Of 768 values a channel 341 are looked at; a scale fitted to them fits them better than it fits all."""
    w = weight(kind, 768, 768)
    assert w.size > SAMPLED_ABOVE
    for grid in grids_for(bits):
        priced = Pricer(w, F32).rounded(bits, axis, grid, half_scales=axis is not None).energies.sum()
        assert priced == pytest.approx(exact_error(w, bits, axis, grid), rel=0.06)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_the_price_of_a_small_weight_is_its_error(axis: int | None) -> None:
    w = weight("normal", 12, 20, 30)
    for bits in (1, 3, 8):
        grid = grids_for(bits)[-1]
        priced = Pricer(w, F32).rounded(bits, axis, grid, half_scales=axis is not None).energies.sum()
        assert priced == pytest.approx(exact_error(w, bits, axis, grid), rel=1e-9)  # another order of summing


def test_a_cast_out_of_range_has_no_finite_price() -> None:
    w = np.array([1.0, 1e6], np.float32)
    assert Pricer(w, F32).error_of(lambda v: v.astype(np.float16).astype(np.float32)) == np.inf


def test_a_sample_holds_the_outliers_and_stands_for_all_values() -> None:
    rows = weight("normal", 3, 50_001)
    rows[1, 777], rows[2, 50_000] = 90.0, -80.0
    sample, weights = sampled(rows, 1000)
    assert weights is not None
    assert weights.sum() == rows.shape[1]
    assert {90.0, -80.0} <= set(sample.reshape(-1).tolist())
    # The spread of an estimate of a mean square from 1000 values of weight 49: sqrt(2 / 1000) of it.
    assert (sample**2) @ weights == pytest.approx((rows**2).sum(axis=1), rel=5 * (2 / 1000) ** 0.5)


def test_rows_too_short_to_sample_come_back_as_they_are() -> None:
    rows = weight("normal", 4, 100)
    sample, weights = sampled(rows, 50)
    assert sample is rows
    assert weights is None


def test_long_channels_with_outliers_are_clipped_for_the_least_error() -> None:
    """A stride through a heavy-tailed tensor misses the outliers; unclipped, 4 bits would cost half again as much."""
    w = weight("heavy", 700, 700)
    error = exact_error(w, 4, None, Grid.SIGNED)
    peak = float(np.abs(w).max())
    tried = [
        float(np.sum((np.clip(np.rint(w / s), -8, 7) * s - w) ** 2))
        for s in np.geomspace(0.1, 1, 60) * peak / 7
    ]
    assert error <= 1.01 * min(tried)


@pytest.mark.parametrize("bits", range(1, 8))
def test_planes_packed_in_blocks_hold_every_code(bits: int) -> None:
    """Several blocks, the last one not full, of a size that 8 does not divide."""
    codes = quantize(weight("normal", 3, 100_003), bits, None, grids_for(bits)[-1])
    found, shift = np.zeros(codes.levels.size, np.uint8), 0
    for plane in packed_planes(codes):
        width = 8 // (codes.levels.size // len(plane) + (codes.levels.size % len(plane) > 0))
        found |= unpack(plane, width, codes.levels.size) << shift
        shift += width
    np.testing.assert_array_equal(found, codes.unsigned())


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_blank_codes_take_the_bytes_of_real_ones(bits: int) -> None:
    real = quantize(weight("normal", 33, 31), bits, 0, grids_for(bits)[-1])
    blank = Codes(np.broadcast_to(np.int8(0), (33, 31)), real.scales, bits, real.grid, 0)
    sizes = []
    for codes in (real, blank):
        fragment = Fragment("p")
        decode_levels(codes, fragment, "q", 17)
        sizes.append(fragment.n_bytes())
    assert blank.is_blank
    assert sizes[0] == sizes[1]
