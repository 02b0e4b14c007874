"""Constants of the data are told from weights (statistics, counts, encodings), and true weights are not hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from tqs_passes.files.model import Model, load_model
from tqs_passes.graph.content import is_unit_pairs
from tqs_passes.survey.survey import find_weights, survey
from tqs_passes.weights import Survey

ZOO = Path(__file__).parents[2] / "models" / "zoo"


def survey_of(body: str, **arrays: np.ndarray) -> Survey:
    signature = "(float[N,8] x) => (float[N,8] z)"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]>\nagraph {signature} {{ {body} }}'
    )
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return survey(Model(proto, Path("/nowhere")))


def dense(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def names(found: Survey) -> set[str]:
    return {w.name for w in found.weights}


@pytest.mark.parametrize(
    ("model", "before", "after", "gone"),
    [
        ("timesfm_mini", 88, 87, {"counts"}),
        ("pangu_mini", 123, 121, {"deviation", "change"}),
        ("aurora_mini", 132, 128, {"deviation", "change", "lead", "val_165"}),
    ],
)
def test_the_constants_of_the_zoo_are_no_weights(model: str, before: int, after: int, gone: set[str]) -> None:
    """`before`: how many were counted when these tensors passed as weights."""
    found = find_weights(load_model(ZOO / model / "model.onnx"))[1]
    assert len(found.weights) == after == before - len(gone)
    assert gone <= {e.name for e in found.excluded}


def test_constant_fields_beside_the_inputs_stay_weights() -> None:
    assert "maps" in names(find_weights(load_model(ZOO / "pangu_mini" / "model.onnx"))[1])


def test_a_positive_divisor_of_the_input_is_a_deviation_whatever_its_name() -> None:
    body = "a = Div(x, q)  z = MatMul(a, w)"
    assert names(survey_of(body, w=dense(8, 8), q=np.abs(dense(8)))) == {"w"}


def test_a_divisor_inside_the_network_is_a_weight() -> None:
    body = "a = MatMul(x, w)  r = Relu(a)  z = Div(r, q)"
    assert names(survey_of(body, w=dense(8, 8), q=np.abs(dense(8)))) == {"w", "q"}


def test_a_factor_of_the_input_is_a_weight() -> None:
    body = "a = Mul(x, q)  z = MatMul(a, w)"
    assert names(survey_of(body, w=dense(8, 8), q=np.abs(dense(8)))) == {"w", "q"}


def test_a_gain_on_the_output_without_the_name_of_a_statistic_is_a_weight() -> None:
    body = "a = MatMul(x, w)  b = Mul(a, gain)  z = Add(x, b)"
    assert names(survey_of(body, w=dense(8, 8), gain=np.abs(dense(8)))) == {"w", "gain"}


def test_whole_numbers_that_only_divide_are_a_table_of_counts() -> None:
    body = "a = MatMul(x, w)  r = Relu(a)  z = Div(r, n)"
    found = survey_of(body, w=dense(8, 8), n=np.arange(1, 9, dtype=np.float32))
    assert [(e.name, e.reason) for e in found.excluded] == [
        ("n", "a table of counts: whole numbers that only divide")
    ]


def test_whole_numbers_that_multiply_are_a_weight() -> None:
    body = "a = MatMul(x, w)  z = Mul(a, n)"
    assert names(survey_of(body, w=dense(8, 8), n=np.arange(1, 9, dtype=np.float32))) == {"w", "n"}


def encoding(form: str) -> np.ndarray:
    angle = np.linspace(0.1, 7.0, 8)
    pairs = np.stack([np.sin(angle), np.cos(angle)])
    order = {"halves": pairs.ravel(), "interleaved": pairs.T.ravel()}
    quarters = pairs.reshape(2, 2, 4).transpose(1, 0, 2).ravel()
    return (order | {"quarters": quarters})[form].astype(np.float32)


@pytest.mark.parametrize("form", ["halves", "interleaved", "quarters"])
def test_pairs_of_sine_and_cosine_are_an_encoding(form: str) -> None:
    assert is_unit_pairs(encoding(form))


@pytest.mark.parametrize(
    "values",
    [
        dense(1, 16),
        np.eye(16, dtype=np.float32),
        np.repeat([1.0, 0.0], 8).astype(np.float32),
        np.full(16, np.nan, np.float32),
        np.ones((), np.float32),
        np.zeros((0, 16), np.float32),
        encoding("halves") * np.float32(1.01),
    ],
)
def test_other_tensors_are_no_encoding(values: np.ndarray) -> None:
    assert not is_unit_pairs(values)


@pytest.mark.parametrize(("name", "is_weight"), [("val_7", False), ("norm_scale", True)])
def test_ones_that_scale_a_norm_are_a_weight_only_under_a_given_name(name: str, is_weight: bool) -> None:
    body = f"a = MatMul(x, w)  z = LayerNormalization(a, {name})"
    found = survey_of(body, **{"w": dense(8, 8), name: np.ones(8, np.float32)})
    assert (name in names(found)) == is_weight


@pytest.mark.parametrize(("name", "is_weight"), [("val_8", False), ("norm_bias", True)])
def test_zeros_that_shift_a_norm_are_a_weight_only_under_a_given_name(name: str, is_weight: bool) -> None:
    body = f"a = MatMul(x, w)  z = LayerNormalization(a, s, {name})"
    found = survey_of(body, **{"w": dense(8, 8), "s": dense(8, seed=1), name: np.zeros(8, np.float32)})
    assert (name in names(found)) == is_weight


NORMALISED = "c = Sub(x, m)  a = Div(c, d)  b = MatMul(a, w)  e = Mul(b, d2)  z = Add(e, m2)"


def test_what_is_taken_off_and_put_back_is_a_statistic_whatever_its_name() -> None:
    m, d = dense(8), np.abs(dense(8, seed=1)) + 1
    assert names(survey_of(NORMALISED, m=m, d=d, w=dense(8, 8, seed=2), d2=d, m2=m)) == {"w"}


def test_other_values_at_the_output_are_weights() -> None:
    m, d = dense(8), np.abs(dense(8, seed=1)) + 1
    found = survey_of(NORMALISED, m=m, d=d, w=dense(8, 8, seed=2), d2=d + 1, m2=m + 1)
    assert names(found) == {"w", "d2", "m2"}


def test_what_is_taken_off_an_input_that_is_not_divided_is_a_weight() -> None:
    assert names(survey_of("c = Sub(x, m)  z = MatMul(c, w)", m=dense(8), w=dense(8, 8))) == {"m", "w"}


def test_a_mask_that_is_tiled_over_the_batch_is_a_mask() -> None:
    """TorchScript repeats window masks by Expand and Tile."""
    mask = np.where(np.eye(8) > 0, 0, -100).astype(np.float32)
    found = survey_of(
        "t = Tile(m, n)  a = MatMul(x, w)  z = Add(a, t)", w=dense(8, 8), m=mask, n=np.array([1, 1])
    )
    assert names(found) == {"w"}
