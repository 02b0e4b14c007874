"""Packed recurrent weights split by gate: the same outputs, and every gate a weight of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.models import draws, info, model_of, run, tensor
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.source import open_source
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model
from tqs_passes.transforms.split_gates import SplitGates

node = helper.make_node
GATES = {"LSTM": ("input", "output", "forget", "cell"), "GRU": ("update", "reset", "hidden")}


def recurrent(op: str) -> Model:
    """x [5, 2, 3] → op in both directions, 4 units → y."""
    n = 4 * len(GATES[op])
    stored = [tensor("w", draws(1, 2, n, 3)), tensor("r", draws(2, 2, n, 4)), tensor("b", draws(3, 2, 2 * n))]
    nodes = [node(op, ["x", "w", "r", "b"], ["y"], hidden_size=4, direction="bidirectional")]
    return model_of(nodes, [info("x", [5, 2, 3])], [info("y", [5, 2, 2, 4])], stored)


def cell() -> Model:
    """A Scan whose body adds two products and a bias, and splits the sum into 3 gates of 4 units."""
    body = helper.make_graph(
        [
            node("MatMul", ["x_t", "kernel"], ["a"]),
            node("Gemm", ["h", "turned"], ["c"], transB=1),
            node("Add", ["a", "c"], ["s"]),
            node("Add", ["s", "bias"], ["z"]),
            node("Split", ["z"], ["u", "v", "w"], axis=-1),
            node("Sigmoid", ["u"], ["g"]),
            node("Tanh", ["v"], ["t"]),
            node("Mul", ["g", "t"], ["m"]),
            node("Add", ["m", "w"], ["next"]),
            node("Identity", ["next"], ["row"]),
        ],
        "body",
        [info("h", [2, 4]), info("x_t", [2, 3])],
        [info("next", [2, 4]), info("row", [2, 4])],
    )
    stored = [
        tensor("kernel", draws(1, 3, 12)),
        tensor("turned", draws(2, 12, 4)),
        tensor("bias", draws(3, 12)),
        tensor("h0", np.zeros((2, 4), np.float32)),
    ]
    nodes = [node("Scan", ["h0", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    return model_of(nodes, [info("x", [5, 2, 3])], [info("y", [5, 2, 4])], stored, opset=17)


def split(model: Model) -> Model:
    labels = {t.name: t.name for t in model.proto.graph.initializer}
    return SplitGates(labels).apply(model).model


def stored(model: Model) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer}


@pytest.mark.parametrize("model", [recurrent("LSTM"), recurrent("GRU"), cell()], ids=["LSTM", "GRU", "cell"])
def test_the_outputs_are_the_same_bit_for_bit(model: Model) -> None:
    feeds = {"x": draws(9, 5, 2, 3)}
    made = split(model)
    onnx.checker.check_model(made.proto, full_check=True)
    assert run(made, feeds)["y"].tobytes() == run(model, feeds)["y"].tobytes()


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_parts_are_the_rows_of_a_gate_in_the_order_of_the_operator(op: str) -> None:
    model = recurrent(op)
    parts, whole = stored(split(model)), stored(model)
    n = len(GATES[op])
    assert set(parts) == {f"{w}.{gate}" for w in "wrb" for gate in GATES[op]} | {
        f"b.state.{gate}" for gate in GATES[op]
    }
    for i, gate in enumerate(GATES[op]):
        rows = slice(4 * i, 4 * i + 4)
        np.testing.assert_array_equal(parts[f"w.{gate}"], whole["w"][:, rows])
        np.testing.assert_array_equal(parts[f"r.{gate}"], whole["r"][:, rows])
        np.testing.assert_array_equal(parts[f"b.{gate}"], whole["b"][:, rows])
        np.testing.assert_array_equal(
            parts[f"b.state.{gate}"], whole["b"][:, 4 * n + 4 * i : 4 * n + 4 * i + 4]
        )


def test_a_cell_of_products_is_cut_where_split_cuts_it() -> None:
    model = cell()
    parts, whole = stored(split(model)), stored(model)
    for i in range(3):
        columns = slice(4 * i, 4 * i + 4)
        np.testing.assert_array_equal(parts[f"kernel.{i + 1}"], whole["kernel"][:, columns])
        np.testing.assert_array_equal(parts[f"turned.{i + 1}"], whole["turned"][columns])
        np.testing.assert_array_equal(parts[f"bias.{i + 1}"], whole["bias"][columns])
    assert "h0" in parts


def test_stated_sizes_that_are_equal_are_gates() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Split", ["a", "sizes"], ["p", "q"], axis=1)]
    sizes = tensor("sizes", np.array([6, 6], np.int64))
    outputs = [info(name, [2, 6]) for name in "pq"]
    model = model_of(nodes, [info("x", [2, 3])], outputs, [tensor("w", draws(0, 3, 12)), sizes], opset=13)
    assert SplitGates({"w": "w"}).apply(model).changed == ("w",)


def test_a_weight_that_two_readers_cut_differently_stays_whole() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Split", ["a"], ["p", "q"], axis=1),
        node("MatMul", ["x", "w"], ["b"]),
        node("Split", ["b"], ["r", "s", "t"], axis=1),
    ]
    outputs = [info(name, [2, 6 if name in "pq" else 4]) for name in "pqrst"]
    model = model_of(nodes, [info("x", [2, 3])], outputs, [tensor("w", draws(0, 3, 12))], opset=13)
    result = SplitGates({"w": "w"}).apply(model)
    assert result.model is model
    assert [(skip.what, skip.why) for skip in result.skipped] == [("w", "its readers cut it differently")]


def test_a_left_operand_has_no_gates() -> None:
    nodes = [node("MatMul", ["w", "x"], ["a"]), node("Split", ["a"], ["p", "q"], axis=1)]
    outputs = [info(name, [4, 6]) for name in "pq"]
    model = model_of(nodes, [info("x", [6, 12])], outputs, [tensor("w", draws(0, 4, 6))], opset=13)
    assert SplitGates({"w": "w"}).apply(model).model is model


def test_a_part_named_as_an_input_is_not_made() -> None:
    nodes = [node("MatMul", ["w.1", "w"], ["a"]), node("Split", ["a"], ["p", "q"], axis=1)]
    outputs = [info(name, [2, 6]) for name in "pq"]
    model = model_of(nodes, [info("w.1", [2, 3])], outputs, [tensor("w", draws(0, 3, 12))], opset=13)
    result = SplitGates({"w": "w"}).apply(model)
    assert result.model is model
    assert [skip.why for skip in result.skipped] == ["the names of its parts are taken"]


def test_a_split_of_rows_or_into_unequal_parts_is_no_gate() -> None:
    sizes = tensor("sizes", np.array([4, 8], np.int64))
    for nodes in (
        [node("MatMul", ["x", "w"], ["a"]), node("Split", ["a"], ["p", "q"], axis=0)],
        [node("MatMul", ["x", "w"], ["a"]), node("Split", ["a", "sizes"], ["p", "q"], axis=1)],
    ):
        outputs = [info(name, None, TensorProto.FLOAT) for name in "pq"]
        model = model_of(nodes, [info("x", [2, 3])], outputs, [tensor("w", draws(0, 3, 12)), sizes], opset=13)
        assert SplitGates({"w": "w"}).apply(model).model is model


def test_inspect_writes_a_model_whose_gates_are_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(recurrent("GRU"), tmp_path / "model.onnx")
    command = ["inspect", str(tmp_path / "model.onnx"), "--split-gates", str(tmp_path / "gates.onnx")]
    assert main(command) == 0
    assert "3 weights split by gate" in capsys.readouterr().err
    labels = {w.label for w in open_source(tmp_path / "gates.onnx").survey.weights}
    assert {"w.update", "w.reset", "w.hidden", "r.update", "b.state.hidden"} <= labels
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err


def test_a_model_without_gates_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    save_model(
        model_of(nodes, [info("x", [2, 3])], [info("y", [2, 12])], [tensor("w", draws(0, 3, 12))]),
        tmp_path / "model.onnx",
    )
    assert main(["inspect", str(tmp_path / "model.onnx"), "--split-gates", str(tmp_path / "g.onnx")]) == 2
    assert "no weight holds several gates" in capsys.readouterr().err
    assert not (tmp_path / "g.onnx").exists()
