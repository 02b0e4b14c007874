"""Units of an input read from the graph: what the model subtracts from it and divides it by, element by element."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.models import NOWHERE
from tests.rollouts import model, values
from tqs_passes.files.model import Model
from tqs_passes.survey.input_units import InputUnits, input_units


def units(graph: str, shape: tuple[int, ...], weights: Mapping[str, NDArray[np.generic]]) -> InputUnits:
    return input_units(Model(model(graph, dict(weights)), NOWHERE), "x", shape)


MEAN, DEVIATION = np.float32([280, -3, 5]), np.float32([8, 0.5, 2])


def test_mean_and_deviation_of_channels_are_what_is_subtracted_and_divided_by() -> None:
    graph = "(float[b, 3] x) => (float[b, 3] y) { c = Sub(x, m)  z = Div(c, d)  y = MatMul(z, A) }"
    found = units(graph, (1, 3), {"m": MEAN, "d": DEVIATION, "A": values(3, 3)})
    assert found.mean[0] == pytest.approx(MEAN)
    assert found.deviation[0] == pytest.approx(DEVIATION)
    assert found.is_stated


def test_an_affine_map_is_inverted() -> None:
    graph = "(float[b, 3] x) => (float[b, 3] y) { s = Mul(x, k)  z = Add(s, o)  y = MatMul(z, A) }"
    found = units(graph, (1, 3), {"k": np.float32(0.25), "o": np.float32([1, 2, 3]), "A": values(3, 3)})
    assert found.mean[0] == pytest.approx([-4, -8, -12])  # 0.25 x + o has mean 0
    assert found.deviation[0] == pytest.approx([4, 4, 4])


def test_variables_that_are_normalised_apart_get_their_own_units() -> None:
    graph = """(float[b, 2, 4] x) => (float[b, 4] y) {
      u = Gather<axis = 1>(x, zero)  v = Gather<axis = 1>(x, one)
      cu = Sub(u, mu)  zu = Div(cu, du)  cv = Sub(v, mv)  zv = Div(cv, dv)
      s = Add(zu, zv)  y = MatMul(s, A) }"""
    numbers = {"mu": 100, "du": 7, "mv": -2, "dv": 0.1}
    weights = {name: np.float32(v) for name, v in numbers.items()} | {"A": values(4, 4)}
    found = units(graph, (1, 2, 4), {**weights, "zero": np.int64(0), "one": np.int64(1)})
    assert found.mean[0] == pytest.approx(np.array([[100.0] * 4, [-2.0] * 4]))
    assert found.deviation[0] == pytest.approx(np.array([[7.0] * 4, [0.1] * 4]))


def test_units_behind_a_transpose_and_a_reshape_return_to_the_layout_of_the_input() -> None:
    graph = """(float[b, 4, 3] x) => (float[b, 12] y) {
      t = Transpose<perm = [0, 2, 1]>(x)  r = Reshape(t, to)  c = Sub(r, m)  z = Div(c, d)  y = MatMul(z, A) }"""
    m, d = np.arange(12, dtype=np.float32), np.arange(1, 13, dtype=np.float32)
    found = units(graph, (1, 4, 3), {"m": m, "d": d, "A": values(12, 12), "to": np.int64([0, 12])})
    assert found.mean[0] == pytest.approx(m.reshape(3, 4).T)
    assert found.deviation[0] == pytest.approx(d.reshape(3, 4).T)


def test_a_batch_normalization_states_mean_and_variance_of_its_channels() -> None:
    graph = (
        "(float[b, 3, 4] x) => (float[b, 3, 4] y) { n = BatchNormalization(x, s, o, m, v)  y = MatMul(n, A) }"
    )
    weights = {"s": np.float32([3, 3, 3]), "o": np.float32([9, 9, 9]), "m": MEAN, "v": DEVIATION**2}
    found = units(graph, (1, 3, 4), {**weights, "A": values(4, 4)})
    assert found.mean[0] == pytest.approx(np.repeat(MEAN[:, None], 4, axis=1))
    assert found.deviation[0] == pytest.approx(np.repeat(DEVIATION[:, None], 4, axis=1), rel=1e-3)  # epsilon


def test_an_input_whose_own_mean_is_subtracted_may_have_any_scale() -> None:
    graph = """(float[b, 6] x) => (float[b, 6] y) {
      m = ReduceMean<axes = [1]>(x)  c = Sub(x, m)  y = MatMul(c, A) }"""
    found = units(graph, (1, 6), {"A": values(6, 6)})
    assert found.is_free
    assert not found.is_stated


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_a_vector_that_only_scales_or_only_shifts_is_no_unit(op: str) -> None:
    graph = f"(float[b, 3] x) => (float[b, 3] y) {{ g = {op}(x, w)  y = MatMul(g, A) }}"  # a gate, a position table
    assert not units(graph, (1, 3), {"w": values(3), "A": values(3, 3)}).is_stated


def test_a_shape_that_only_holds_for_another_size_ends_the_search() -> None:
    graph = "(float[b, n] x) => (float[b, 20] y) { c = Sub(x, m)  r = Reshape(c, to)  y = MatMul(r, A) }"
    found = units(graph, (1, 7), {"m": np.float32(4), "A": values(20, 20), "to": np.int64([1, 20])})
    assert found.mean == pytest.approx(np.full((1, 7), 4.0))
