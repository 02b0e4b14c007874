from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tqs_onnx.rollout.session import open_session
from tqs_onnx.rounding.uses import Uses, uses_of


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def output(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString())
    return session.run({"x": session.value(x)})["y"].numpy()


def uses(model: onnx.ModelProto, n_readers: dict[str, int] | None = None) -> dict[str, Uses]:
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return uses_of(model.graph, shapes, n_readers or dict.fromkeys(shapes, 1))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def product(w: np.ndarray, x: np.ndarray, found: Uses) -> np.ndarray:
    """Return rows · matricesᵀ [group, n, out]: what the reader computes, by the view."""
    view = found.uses[0].view
    return view.rows(x, w.shape) @ np.swapaxes(view.matrices(w).astype(np.float64), 1, 2)


MATRIX_CASES = {
    "MatMul B": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        (5, 3),
        (2, 4, 5),
        lambda y: y.reshape(1, -1, 3),
    ),
    "MatMul B, vector": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        (5, 3),
        (5,),
        lambda y: y[None, None],
    ),
    "MatMul A": (
        helper.make_node("MatMul", ["w", "x"], ["y"]),
        (3, 5),
        (2, 5, 4),
        lambda y: np.swapaxes(y, 1, 2).reshape(1, -1, 3),
    ),
    "MatMul A, vector": (
        helper.make_node("MatMul", ["w", "x"], ["y"]),
        (3, 5),
        (5,),
        lambda y: y[None, None],
    ),
    "batched MatMul B": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        (2, 5, 3),
        (7, 2, 4, 5),
        lambda y: np.moveaxis(y, 1, 0).reshape(2, -1, 3),
    ),
    "batched MatMul B, shared rows": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        (2, 5, 3),
        (4, 5),
        lambda y: y,
    ),
    "batched MatMul B, one matrix for an inner axis": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        (2, 1, 5, 3),
        (2, 6, 4, 5),
        lambda y: y.reshape(2, -1, 3),
    ),
    "batched MatMul A, one matrix for an inner axis": (
        helper.make_node("MatMul", ["w", "x"], ["y"]),
        (2, 1, 3, 5),
        (7, 2, 6, 5, 4),
        lambda y: np.moveaxis(y, 1, 0).swapaxes(-1, -2).reshape(2, -1, 3),
    ),
    "Gemm B": (helper.make_node("Gemm", ["x", "w"], ["y"]), (5, 3), (4, 5), lambda y: y[None]),
    "Gemm B, transB": (
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
        (3, 5),
        (4, 5),
        lambda y: y[None],
    ),
    "Gemm B, transA": (
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
        (5, 3),
        (5, 4),
        lambda y: y[None],
    ),
    "Gemm B, both": (
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1),
        (3, 5),
        (5, 4),
        lambda y: y[None],
    ),
    "Gemm A": (helper.make_node("Gemm", ["w", "x"], ["y"]), (3, 5), (5, 4), lambda y: y.T[None]),
    "Gemm A, transA": (
        helper.make_node("Gemm", ["w", "x"], ["y"], transA=1),
        (5, 3),
        (5, 4),
        lambda y: y.T[None],
    ),
    "Gemm A, transB": (
        helper.make_node("Gemm", ["w", "x"], ["y"], transB=1),
        (3, 5),
        (4, 5),
        lambda y: y.T[None],
    ),
}


@pytest.mark.parametrize("case", MATRIX_CASES)
def test_rows_times_matrices_are_what_a_product_computes(case: str) -> None:
    node, w_shape, x_shape, arranged = MATRIX_CASES[case]
    w, x = normal(*w_shape), normal(*x_shape)
    model = graph_of([node], {"w": w}, x)
    # float32 sums of five products of values near 1
    np.testing.assert_allclose(product(w, x, uses(model)["w"]), arranged(output(model, x)), atol=1e-5)


CONV_CASES = {
    "one axis": ((4, 2, 3), (3, 2, 9), {}),
    "asymmetric pads": ((4, 2, 3), (3, 2, 9), {"pads": [2, 0]}),
    "stride and dilation": ((4, 2, 3), (3, 2, 12), {"strides": [2], "dilations": [2], "pads": [1, 3]}),
    "groups": ((6, 2, 3), (2, 4, 9), {"group": 2}),
    "depthwise": ((4, 1, 3), (2, 4, 9), {"group": 4, "pads": [1, 1]}),
    "two axes": ((4, 3, 2, 3), (2, 3, 6, 7), {"pads": [1, 0, 0, 2], "strides": [2, 1]}),
    "SAME_UPPER": ((4, 2, 4), (2, 2, 9), {"auto_pad": "SAME_UPPER", "strides": [2]}),
    "SAME_LOWER": ((4, 2, 4), (2, 2, 9), {"auto_pad": "SAME_LOWER", "strides": [2]}),
    "VALID": ((4, 2, 4), (2, 2, 9), {"auto_pad": "VALID"}),
    "three axes": ((2, 2, 2, 2, 2), (1, 2, 3, 4, 5), {"pads": [1, 0, 0, 0, 1, 0]}),
}


@pytest.mark.parametrize("case", CONV_CASES)
def test_rows_times_matrices_are_what_a_convolution_computes(case: str) -> None:
    w_shape, x_shape, attributes = CONV_CASES[case]
    w, x = normal(*w_shape), normal(*x_shape)
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], {"w": w}, x)
    y = output(model, x)  # [batch, out, place…]
    groups = attributes.get("group", 1)
    split = y.reshape(y.shape[0], groups, y.shape[1] // groups, -1)
    expected = split.transpose(1, 0, 3, 2).reshape(groups, -1, y.shape[1] // groups)
    np.testing.assert_allclose(product(w, x, uses(model)["w"]), expected, atol=1e-5)


@pytest.mark.parametrize("case", [*MATRIX_CASES, *CONV_CASES])
def test_matrices_become_the_weight_again(case: str) -> None:
    if case in MATRIX_CASES:
        node, w_shape, x_shape, _ = MATRIX_CASES[case]
    else:
        w_shape, x_shape, attributes = CONV_CASES[case]
        node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    w = normal(*w_shape)
    view = uses(graph_of([node], {"w": w}, normal(*x_shape)))["w"].uses[0].view
    np.testing.assert_array_equal(view.weight(view.matrices(w), w.shape), w)


def test_a_weight_behind_a_transpose_is_seen_the_other_way_round() -> None:
    w, x = normal(3, 5), normal(4, 5)
    nodes = [
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("Transpose", ["v"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    model = graph_of(nodes, {"w": w}, x)
    np.testing.assert_allclose(product(w, x, uses(model)["w"])[0], output(model, x), atol=1e-5)


def test_a_tied_weight_has_a_use_at_every_reader() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    found = uses(graph_of(nodes, {"w": normal(4, 4)}, normal(2, 4)), {"w": 2})["w"]
    assert [(use.position, use.activation) for use in found.uses] == [(0, "x"), (1, "h")]


def test_readers_that_disagree_on_the_outputs_rule_data_out() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    found = uses(graph_of(nodes, {"w": normal(4, 4)}, normal(2, 4)), {"w": 2})["w"]
    assert found.why_not == "its readers disagree on which axis holds the outputs"


@pytest.mark.parametrize(
    ("node", "shape", "why"),
    [
        (helper.make_node("Add", ["x", "w"], ["y"]), (4, 4), "no rule for Add"),
        (helper.make_node("Gather", ["w", "x"], ["y"]), (4, 4), "no rule for Gather"),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (4,), "no rule for MatMul"),
    ],
)
def test_other_readers_rule_data_out_and_say_so(
    node: onnx.NodeProto, shape: tuple[int, ...], why: str
) -> None:
    found = uses(graph_of([node], {"w": normal(*shape)}, normal(2, 4, 4)))["w"]
    assert found.why_not == why
    assert found.uses == ()


def test_a_reader_that_was_not_found_rules_data_out() -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(4, 4)}, normal(2, 4))
    assert "in a body" in uses(model, {"w": 2})["w"].why_not
