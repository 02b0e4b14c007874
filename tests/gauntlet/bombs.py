"""Small files that would expand without bound."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]


def _model(nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["p", "W"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, ["b", 4])],
        [info("y", TensorProto.FLOAT, ["b", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32) / 2, "W")],
    )
    return helper.make_model(graph, opset_imports=_OPSETS, functions=functions, ir_version=8)


def _calls(name: str, inner: list[str]) -> onnx.FunctionProto:
    """Return a function that applies other functions of its domain one after another."""
    values = ["x", *(f"v{i}" for i in range(1, len(inner))), "y"]
    nodes = [
        helper.make_node(op, [a], [b], domain="local")
        for op, a, b in zip(inner, values, values[1:], strict=False)
    ]
    return helper.make_function("local", name, ["x"], ["y"], nodes, _OPSETS)


def function_bomb(n: int, times: int = 2, constant_bytes: int = 0) -> onnx.ModelProto:
    """Return a model with n functions, each of which calls the one before `times` times: timesⁿ⁻¹ leaves.

    A leaf adds a constant of `constant_bytes`, if any.
    """
    leaf = [helper.make_node("Neg", ["x"], ["y"])]
    if constant_bytes:
        value = numpy_helper.from_array(np.zeros(constant_bytes // 4, np.float32))
        leaf = [
            helper.make_node("Constant", [], ["c"], value=value),
            helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
            helper.make_node("Add", ["x", "s"], ["y"]),
        ]
    functions = [helper.make_function("local", "f0", ["x"], ["y"], leaf, _OPSETS)]
    functions += [_calls(f"f{i}", [f"f{i - 1}"] * times) for i in range(1, n)]
    return _model([helper.make_node(f"f{n - 1}", ["x"], ["p"], domain="local")], functions)


def function_loop(n: int = 1) -> onnx.ModelProto:
    """Return a model with n functions that call each other in a circle."""
    functions = [_calls(f"f{i}", [f"f{(i + 1) % n}"]) for i in range(n)]
    return _model([helper.make_node("f0", ["x"], ["p"], domain="local")], functions)


def concat_bomb(n: int = 24) -> onnx.ModelProto:
    """Return a model whose constants the runtime folds: n times doubled, 4 · 4 · 2ⁿ bytes."""
    nodes = [helper.make_node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(n)]
    nodes.append(helper.make_node("ReduceMean", [f"c{n}"], ["m"], axes=[0], keepdims=1))
    nodes.append(helper.make_node("Add", ["x", "m"], ["p"]))
    proto = _model(nodes, [])
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 4), np.float32), "c0"))
    return proto


def endless_loop(*, grows: bool, trips: int | None = None) -> onnx.ModelProto:
    """Return a model with a Loop that never ends, or after so many trips; its value grows if wanted."""
    info = helper.make_tensor_value_info
    node = helper.make_node("Neg", ["a"], ["out"])
    if grows:
        node = helper.make_node("Concat", ["a", "a"], ["out"], axis=0)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), node],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("a", TensorProto.FLOAT, None),
        ],
        [info("on", TensorProto.BOOL, []), info("out", TensorProto.FLOAT, None)],
    )
    times = "" if trips is None else "trips"
    nodes = [helper.make_node("Loop", [times, "yes", "x"], ["q"], body=body)]
    nodes.append(helper.make_node("Identity", ["q"], ["p"]))
    proto = _model(nodes, [])
    proto.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    if trips is not None:
        proto.graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [trips]))
    return proto
