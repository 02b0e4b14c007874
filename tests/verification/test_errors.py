"""Errors per variable: units, both RMSEs, bias, contexts, intervals."""

import numpy as np
import pytest

from tests.rollouts import REPLACE, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.rollout.stream import array_pieces
from tqs_onnx.verification.errors import errors_of
from tqs_onnx.verification.moments import compared
from tqs_onnx.verification.native import native_of

AFTER = (0, 2, 4)
TRUTH = values(6, 4, 3, seed=1).astype(np.float64)
FP32 = TRUTH.astype(np.float32) + values(6, 4, 3, seed=2, scale=0.3)
OURS = FP32 + values(6, 4, 3, seed=3, scale=0.1)
#: Means of float64 differences: only the order of the sums differs.
EXACT = 1e-12


def found(contexts: Contexts, spec=None):
    spec = spec or spec_of(2)
    pieces = array_pieces({"y": FP32}, AFTER), array_pieces({"y": OURS}, AFTER)
    return errors_of(compared(*pieces, spec, contexts), spec, contexts)


X = {"x": np.zeros((6, 3), np.float32)}
ERRORS = found(Contexts(X, {"y": TRUTH}))["y"]
DELTA = OURS.astype(np.float64) - TRUTH


def test_the_rmse_of_the_paper_is_the_mean_of_roots_over_time_and_the_pooled_one_the_root_of_all() -> None:
    assert ERRORS.file.rmse == pytest.approx(np.sqrt((DELTA**2).mean(axis=(0, 2))).mean(), rel=EXACT)
    assert ERRORS.file.rmse_pooled == pytest.approx(np.sqrt((DELTA**2).mean()), rel=EXACT)


def test_the_bias_is_signed() -> None:
    assert ERRORS.file.bias == pytest.approx(DELTA.mean(), abs=1e-15)
    assert ERRORS.file.bias_per_step[1] == pytest.approx(DELTA[:, 2:].mean(), abs=1e-15)


def test_the_error_against_fp32_needs_no_truth() -> None:
    alone = found(Contexts(X, {}))["y"]
    assert alone.file is None
    assert alone.against_fp32.mae == pytest.approx(np.abs(OURS.astype(np.float64) - FP32).mean(), rel=EXACT)


def test_every_context_has_its_mae() -> None:
    assert ERRORS.file.mae_per_context == pytest.approx(np.abs(DELTA).mean(axis=(1, 2)), rel=EXACT)


def test_the_typical_error_is_the_geometric_mean_over_contexts() -> None:
    second = np.abs(DELTA[:, 2:]).mean(axis=(1, 2))
    assert ERRORS.file.typical_per_step[1] == pytest.approx(np.prod(second) ** (1 / 6), rel=EXACT)


def test_the_interval_holds_the_degradation_and_the_bands_the_mae() -> None:
    assert ERRORS.degradation_low < ERRORS.degradation < ERRORS.degradation_high
    for low, value, high in zip(
        ERRORS.file.mae_low, ERRORS.file.mae_per_step, ERRORS.file.mae_high, strict=True
    ):
        assert low < value < high
    assert ERRORS.resampled == "contexts"


def test_a_single_context_draws_its_time_values() -> None:
    spec, one = spec_of(2), Contexts({"x": X["x"][:1]}, {"y": TRUTH[:1]})
    pieces = array_pieces({"y": FP32[:1]}, AFTER), array_pieces({"y": OURS[:1]}, AFTER)
    single = errors_of(compared(*pieces, spec, one), spec, one)["y"]
    assert single.resampled == "time values"
    assert single.degradation_low < single.degradation < single.degradation_high


def test_overlapping_windows_are_drawn_in_blocks() -> None:
    rows = np.array([[s, s + 25] for s in range(0, 60, 10)])
    assert found(Contexts(X, {"y": TRUTH}, rows=rows))["y"].resampled == "blocks of 3 contexts"


def test_a_standardised_column_returns_to_its_own_unit() -> None:
    names = ("a", "b", "c")
    plain = found(Contexts(X, {"y": TRUTH}, columns=names))
    native = found(Contexts(X, {"y": TRUTH}, columns=names, factors={"a": 2.0, "b": 0.5, "c": 1.0}))
    assert native["a"].file.mae == pytest.approx(2.0 * plain["a"].file.mae, rel=EXACT)
    assert native["b"].fp32.rmse_pooled == pytest.approx(0.5 * plain["b"].fp32.rmse_pooled, rel=EXACT)
    assert native["a"].degradation == plain["a"].degradation


def test_era5_is_reported_in_the_units_of_the_paper() -> None:
    tables = "".join(
        f'[[variable]]\nname = "{name}"\noutput = "y"\nunit = "{unit}"\naxis = 1\nindex = {i}\n'
        for i, (name, unit) in enumerate([("msl", "Pa"), ("q_850", "kg/kg"), ("t2m", "K")])
    )
    spec = parse_spec(REPLACE.format(steps=2) + tables)
    units = [native_of(name, spec, Contexts(X, {})) for name in ("msl", "q_850", "t2m")]
    assert [u.unit for u in units] == ["hPa", "g/kg", "°C"]
    # 1e-12: the factor is the difference of two converted values.
    assert [u.factor for u in units] == pytest.approx([0.01, 1000.0, 1.0], rel=1e-12)
