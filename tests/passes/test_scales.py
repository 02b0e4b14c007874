"""Scales chosen from the values of a channel: what each rule promises."""

from __future__ import annotations

import numpy as np
import pytest

from tqs_passes.grids.grid import Grid, grids_for, round_levels
from tqs_passes.grids.nearest import quantize
from tqs_passes.grids.scales import FREE_ROUNDINGS, FreeRounding, scales_of

ROWS = np.random.default_rng(0).standard_normal((16, 512)).astype(np.float32)
CASES = [(bits, grid) for bits in range(2, 9) for grid in grids_for(bits)]


def decoded(bits: int, grid: Grid, rounding: FreeRounding, rows: np.ndarray = ROWS) -> np.ndarray:
    scales = scales_of(rows, bits, grid, rounding)[:, None]
    return (round_levels(rows / scales, bits, grid) * scales).astype(np.float64)


@pytest.mark.parametrize(("bits", "grid"), [(b, g) for b, g in CASES if b <= 4])
def test_unbiased_scales_give_back_much_of_the_gain_that_least_squares_loses(bits: int, grid: Grid) -> None:
    def lost(rounding: FreeRounding) -> float:
        q = decoded(bits, grid, rounding)
        return float(np.mean(1 - np.sum(q * ROWS, axis=1) / np.sum(ROWS.astype(np.float64) ** 2, axis=1)))

    assert lost("mse") > 0.005
    assert abs(lost("unbiased")) < 0.6 * lost("mse")


@pytest.mark.parametrize(("bits", "grid"), CASES)
def test_least_squares_has_the_least_squared_error_of_all_rules(bits: int, grid: Grid) -> None:
    errors = {r: np.sum((decoded(bits, grid, r) - ROWS) ** 2, axis=1) for r in FREE_ROUNDINGS}
    # the search looks at a few clip ratios only: from 4 bits on others can be a little better
    assert errors["mse"].sum() <= min(errors["unbiased"].sum(), errors["rtn"].sum()) * 1.02


@pytest.mark.parametrize(("bits", "grid"), CASES)
def test_raising_the_scale_of_heavy_tailed_rows_is_bounded(bits: int, grid: Grid) -> None:
    rows = np.random.default_rng(1).standard_t(2, (64, 512)).astype(np.float32)
    errors = {r: np.sum((decoded(bits, grid, r, rows) - rows) ** 2, axis=1) for r in FREE_ROUNDINGS}
    assert (errors["unbiased"] <= 1.51 * errors["mse"]).all()


@pytest.mark.parametrize(("bits", "grid"), CASES)
def test_rtn_clips_nothing(bits: int, grid: Grid) -> None:
    scales = scales_of(ROWS, bits, grid, "rtn")
    top = (1 << bits) - 1 if grid is Grid.MIDRISE else (1 << (bits - 1)) - 1
    np.testing.assert_allclose(scales * top, np.abs(ROWS).max(axis=1), rtol=1e-6)


@pytest.mark.parametrize("rounding", FREE_ROUNDINGS)
@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_scales_follow_the_size_of_the_weight(rounding: FreeRounding, factor: float) -> None:
    unit = scales_of(ROWS, 3, Grid.SIGNED, rounding)
    scaled = scales_of((ROWS * np.float32(factor)).astype(np.float32), 3, Grid.SIGNED, rounding)
    np.testing.assert_allclose(scaled, unit * factor, rtol=2e-3)


@pytest.mark.parametrize("rounding", FREE_ROUNDINGS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_channel_of_zeros_decodes_to_next_to_nothing(rounding: FreeRounding, bits: int) -> None:
    w = np.vstack([np.zeros(64, np.float32), ROWS[0, :64]])
    for grid in grids_for(bits):
        codes = quantize(w, bits, 0, grid, rounding=rounding)
        assert np.abs(codes.decode()[0]).max() <= 1e-30


@pytest.mark.parametrize("rounding", FREE_ROUNDINGS)
def test_at_one_bit_every_rule_takes_the_mean_size(rounding: FreeRounding) -> None:
    np.testing.assert_allclose(
        scales_of(ROWS, 1, Grid.MIDRISE, rounding), np.abs(ROWS).mean(axis=1), rtol=1e-6
    )
