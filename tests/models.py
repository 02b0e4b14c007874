"""Small ONNX models for tests, built node by node: every operator that reads a weight in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tqs_onnx.rollout.options import SessionOptions
from tqs_onnx.rollout.session import open_session
from tqs_passes.files.model import Model

NOWHERE = Path("nowhere")


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def info(name: str, shape: Sequence[int | str] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    stored: Sequence[onnx.TensorProto],
    opset: int = 17,
    folder: Path = NOWHERE,
) -> Model:
    """A checked-in-memory model; `folder` matters only to external data."""
    graph = helper.make_graph(nodes, "small", inputs, outputs, stored)
    ir_version = {9: 4, 10: 5, 11: 6, 12: 7}.get(opset, 10 if opset >= 21 else 8)
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name="a test",
        producer_version="1",
    )
    return Model(proto, folder)


def draws(seed: int, *shape: int, dtype: type[np.generic] = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def block(opset: int = 17, width: int = 12, rename: dict[str, str] | None = None) -> Model:
    """Embed tokens (Gather), add a position table, normalise, MLP by MatMul and Gemm, residual, Conv.

    tokens [2, 5] → embed + table [2, 5, width] → (LayerNormalization from opset 17) → MatMul up → Relu → Gemm down
    → + residual → Conv over time → y [2, 3, 5]. `rename` gives weights other names.
    """
    called = {
        n: n for n in ("embed", "table", "gain", "bias", "up", "down", "down_bias", "kernel", "kernel_bias")
    }
    called |= rename or {}
    wide = 2 * width
    values = {
        "embed": draws(0, 7, width),
        "table": draws(1, 5, width),
        "gain": 1 + 0.1 * draws(2, width),
        "bias": 0.1 * draws(3, width),
        "up": draws(4, width, wide) / width**0.5,
        "down": draws(5, wide, width) / wide**0.5,
        "down_bias": 0.1 * draws(6, width),
        "kernel": draws(7, 3, width, 3) / (3 * width) ** 0.5,
        "kernel_bias": 0.1 * draws(8, 3),
    }
    node = helper.make_node
    nodes = [
        node("Gather", [called["embed"], "tokens"], ["e"], name="embed_tokens"),
        node("Add", ["e", called["table"]], ["h"], name="add_table"),
    ]
    if opset >= 17:
        nodes.append(
            node("LayerNormalization", ["h", called["gain"], called["bias"]], ["n"], name="norm", axis=-1)
        )
    else:
        nodes += [
            node("Mul", ["h", called["gain"]], ["g"], name="norm_gain"),
            node("Add", ["g", called["bias"]], ["n"], name="norm_bias"),
        ]
    nodes += [
        node("MatMul", ["n", called["up"]], ["u"], name="up"),
        node("Relu", ["u"], ["r"], name="relu"),
        node("Reshape", ["r", "rows"], ["r2"], name="rows_of"),
        node("Gemm", ["r2", called["down"], called["down_bias"]], ["d"], name="down"),
        node("Reshape", ["d", "back"], ["d3"], name="back_of"),
        node("Add", ["d3", "h"], ["s"], name="residual"),
        node("Transpose", ["s"], ["t"], name="to_channels", perm=[0, 2, 1]),
        node("Conv", ["t", called["kernel"], called["kernel_bias"]], ["y"], name="conv", pads=[1, 1]),
    ]
    stored = [tensor(called[name], array.astype(np.float32)) for name, array in values.items()]
    stored += [tensor("rows", np.array([10, wide])), tensor("back", np.array([2, 5, width]))]
    return model_of(nodes, [info("tokens", [2, 5], TensorProto.INT64)], [info("y", [2, 3, 5])], stored, opset)


TOKENS = {"tokens": np.array([[0, 3, 6, 1, 2], [5, 5, 4, 0, 1]])}


def two_branches() -> Model:
    """Weights `a`, `b` [4, 3] read only inside the bodies of an If, `c` [4, 3] inside and outside."""
    node = helper.make_node
    then = helper.make_graph(
        [
            node("MatMul", ["x", "a"], ["ta"]),
            node("MatMul", ["x", "c"], ["tc"]),
            node("Add", ["ta", "tc"], ["t"]),
        ],
        "then_body",
        [],
        [info("t", [2, 3])],
    )
    other = helper.make_graph([node("MatMul", ["x", "b"], ["o"])], "else_body", [], [info("o", [2, 3])])
    nodes = [
        node("If", ["flag"], ["z"], name="branch", then_branch=then, else_branch=other),
        node("MatMul", ["x", "c"], ["xc"], name="outside"),
        node("Add", ["z", "xc"], ["y"], name="sum"),
    ]
    stored = [tensor("a", draws(1, 4, 3)), tensor("b", draws(2, 4, 3)), tensor("c", draws(3, 4, 3))]
    return model_of(
        nodes, [info("x", [2, 4]), info("flag", [], TensorProto.BOOL)], [info("y", [2, 3])], stored
    )


def loop() -> Model:
    """Weight `w` [3, 3] read inside a Loop of two turns: y = (x w) w."""
    node = helper.make_node
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("MatMul", ["h", "w"], ["h2"])],
        "turn",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("h", [2, 3])],
        [info("go_on", [], TensorProto.BOOL), info("h2", [2, 3])],
    )
    stored = [tensor("w", draws(4, 3, 3)), tensor("turns", np.array(2)), tensor("yes", np.array(True))]
    nodes = [node("Loop", ["turns", "yes", "x"], ["y"], name="loop", body=body)]
    return model_of(nodes, [info("x", [2, 3])], [info("y", [2, 3])], stored)


def states_of_zero() -> Model:
    """x [b, 3, 4] → GRU whose zero state is computed from the batch size, as exporters write it → y [1, b, 5]."""
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["time_first"], perm=[1, 0, 2]),
        node("Constant", [], ["one"], value=tensor("junk", np.array(1))),
        node("Constant", [], ["another_one"], value=tensor("", np.array(1))),
        node("Constant", [], ["zero"], value_ints=[0]),
        node("Shape", ["time_first"], ["sizes"]),
        node("Gather", ["sizes", "one"], ["batch"], axis=0),
        node("Unsqueeze", ["batch", "zero"], ["batch_1"]),
        node("Constant", [], ["rest"], value_ints=[5]),
        node("Constant", [], ["layers"], value_ints=[1]),
        node("Concat", ["layers", "batch_1", "rest"], ["shape"], axis=0),
        node("ConstantOfShape", ["shape"], ["h0"], value=tensor("", np.zeros(1, np.float32))),
        node("GRU", ["time_first", "w", "r", "", "", "h0"], ["all", "last"], hidden_size=5),
        node("Gather", ["sizes", "another_one"], ["batch_again"], axis=0),
        node("Unsqueeze", ["batch_again", "zero"], ["batch_again_1"]),
        node("Concat", ["layers", "batch_again_1", "rest"], ["target"], axis=0),
        node("Reshape", ["last", "target"], ["y"]),
    ]
    stored = [tensor("w", draws(5, 1, 15, 4)), tensor("r", draws(6, 1, 15, 5))]
    return model_of(nodes, [info("x", ["b", 3, 4])], [info("y", [1, "b", 5])], stored)


def run(model: Model | onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Every output, computed by onnxruntime with one thread and stock optimisation."""
    proto = model.proto if isinstance(model, Model) else model
    session = open_session(proto.SerializeToString(), options=SessionOptions(threads=1))
    given = {name: session.value(array) for name, array in (feeds or {}).items()}
    return {name: value.numpy() for name, value in session.run(given).items()}
