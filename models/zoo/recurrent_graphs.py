"""Write the recurrent forecasters as the files that are found in the wild.

    lstm_ett      PyTorch's TorchScript exporter: Shape → Gather → Concat → ConstantOfShape make the zero states
    gru_weather   as tf2onnx writes Keras: time first, Shape → Slice → Concat → Expand, names of 60 characters
    seq2seq_ett   a Scan whose body is an LSTM cell of MatMul, Split, Sigmoid and Tanh

torch is imported by the caller. This module must never import onnxruntime.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from recurrent_networks import GruWeather, LstmEtt, Seq2SeqEtt
from torch import Tensor

OPSET = 17
KERAS = "StatefulPartitionedCall/functional_1"


def array(values: Tensor) -> np.ndarray:
    """Return values as a contiguous float32 array."""
    return np.ascontiguousarray(values.detach().numpy().astype(np.float32))


def reordered(values: Tensor, order: str, wanted: str) -> np.ndarray:
    """Return rows of stacked gates [gates · width, …] in another order of gates, named by one letter each."""
    parts = dict(zip(order, np.split(array(values), len(order)), strict=True))
    return np.concatenate([parts[gate] for gate in wanted])


def lstm_ett(model: LstmEtt, path: Path) -> onnx.ModelProto:
    """Export by PyTorch's TorchScript exporter."""
    stream = io.BytesIO()
    torch.onnx.export(
        model,
        (torch.zeros(2, 96, len(model.mean)),),
        stream,
        dynamo=False,
        opset_version=OPSET,
        input_names=["window"],
        output_names=["next"],
        dynamic_axes={"window": {0: "batch"}, "next": {0: "batch"}},
    )
    return onnx.load_from_string(stream.getvalue())


class _Graph:
    """Collects nodes and stored tensors."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def op(self, op_type: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(
            helper.make_node(op_type, inputs, [output], name=output.partition(":")[0], **attributes)
        )
        return output

    def store(self, name: str, values: np.ndarray) -> str:
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def model(self, shapes: tuple[list[int | str], list[int | str]]) -> onnx.ModelProto:
        given = helper.make_tensor_value_info("window", TensorProto.FLOAT, shapes[0])
        made = helper.make_tensor_value_info("next", TensorProto.FLOAT, shapes[1])
        graph = helper.make_graph(self.nodes, "forecaster", [given], [made], self.stored)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(proto)
        return proto


def gru_weather(model: GruWeather, path: Path) -> onnx.ModelProto:
    """Write the graph that tf2onnx makes of two Keras GRU layers."""
    g, columns = _Graph(), len(model.mean)
    mean = g.store(f"{KERAS}/normalization_1/Sub/y:0", array(model.mean).reshape(1, 1, -1))
    deviation = g.store(f"{KERAS}/normalization_1/Sqrt:0", array(model.deviation).reshape(1, 1, -1))
    g.op("Sub", ["window", mean], f"{KERAS}/normalization_1/Sub:0")
    sequence = g.op(
        "Div", [f"{KERAS}/normalization_1/Sub:0", deviation], f"{KERAS}/normalization_1/truediv:0"
    )
    last = sequence
    for index, layer in enumerate((model.first, model.second), 1):
        scope, width = f"{KERAS}/gru_{index}_1", layer.hidden_size
        g.op("Transpose", [sequence], f"{scope}/transpose:0", perm=[1, 0, 2])
        zero, one, two = (g.store(f"const_fold_opt__{index}{i}", np.array([i])) for i in range(3))
        g.op("Shape", [f"{scope}/transpose:0"], f"{scope}/Shape__{index}:0")
        g.op("Slice", [f"{scope}/Shape__{index}:0", one, two, zero], f"{scope}/strided_slice:0")
        many = g.store(f"{scope}/zeros/packed_Concat__{index}_const", np.array([width]))
        g.op("Concat", [f"{scope}/strided_slice:0", many], f"{scope}/zeros/packed_Concat:0", axis=0)
        blank = g.store(f"{scope}/zeros/Const:0", np.zeros(1, np.float32))
        g.op("Expand", [blank, f"{scope}/zeros/packed_Concat:0"], f"{scope}/zeros:0")
        g.op("Unsqueeze", [f"{scope}/zeros:0", zero], f"{scope}/zeros_Unsqueeze__{index}:0")
        rows = lambda w: reordered(w, "rzn", "zrn")  # noqa: E731
        w = g.store(f"{scope}/while/MatMul/ReadVariableOp:0", rows(layer.weight_ih_l0)[None])
        r = g.store(f"{scope}/while/MatMul_1/ReadVariableOp:0", rows(layer.weight_hh_l0)[None])
        biases = np.concatenate([rows(layer.bias_ih_l0), rows(layer.bias_hh_l0)])
        b = g.store(f"{scope}/while/BiasAdd/ReadVariableOp:0", biases[None])
        g.op(
            "GRU",
            [f"{scope}/transpose:0", w, r, b, "", f"{scope}/zeros_Unsqueeze__{index}:0"],
            f"{scope}/GRU__{index}:0",
            hidden_size=width,
            linear_before_reset=1,
        )
        squeezed = g.op("Squeeze", [f"{scope}/GRU__{index}:0", one], f"{scope}/TensorListStack:0")
        sequence = g.op("Transpose", [squeezed], f"{scope}/transpose_1:0", perm=[1, 0, 2])
    start, stop, axis = (g.store(f"const_end__{i}", np.array([v])) for i, v in enumerate((-1, 2**31 - 1, 1)))
    g.op("Slice", [sequence, start, stop, axis], f"{KERAS}/get_item_1/strided_slice:0")
    kernel = g.store(f"{KERAS}/dense_1/Tensordot/ReadVariableOp:0", array(model.head.weight).T)
    bias = g.store(f"{KERAS}/dense_1/BiasAdd/ReadVariableOp:0", array(model.head.bias))
    g.op("MatMul", [f"{KERAS}/get_item_1/strided_slice:0", kernel], f"{KERAS}/dense_1/Tensordot:0")
    g.op("Add", [f"{KERAS}/dense_1/Tensordot:0", bias], f"{KERAS}/dense_1/BiasAdd:0")
    g.op("Slice", [last, start, stop, axis], f"{KERAS}/get_item_2/strided_slice:0")
    g.op("Add", [f"{KERAS}/get_item_2/strided_slice:0", f"{KERAS}/dense_1/BiasAdd:0"], f"{KERAS}/add_1/Add:0")
    g.op("Mul", [f"{KERAS}/add_1/Add:0", deviation], f"{KERAS}/rescaling_1/mul:0")
    g.op("Add", [f"{KERAS}/rescaling_1/mul:0", mean], "next")
    return g.model((["batch", 72, columns], ["batch", 1, columns]))


def seq2seq_ett(model: Seq2SeqEtt, path: Path) -> onnx.ModelProto:
    """Write an encoder of one LSTM, and a Scan over 24 steps for the decoder."""
    g, columns, width = _Graph(), len(model.mean), model.encoder.hidden_size
    mean, deviation = (
        g.store("scaler.mean", array(model.mean)),
        g.store("scaler.deviation", array(model.deviation)),
    )
    g.op("Sub", ["window", mean], "/scaler/Sub_output_0")
    standard = g.op("Div", ["/scaler/Sub_output_0", deviation], "/scaler/Div_output_0")
    zero, one = g.store("axis.0", np.array([0])), g.store("axis.1", np.array([1]))
    minus, most = g.store("last.start", np.array([-1])), g.store("last.end", np.array([2**62]))
    last = g.op("Slice", [standard, minus, most, one], "/encoder/Slice_output_0")
    g.op("Sub", [standard, last], "/encoder/Sub_output_0")
    g.op("Transpose", ["/encoder/Sub_output_0"], "/encoder/Transpose_output_0", perm=[1, 0, 2])
    encoder = model.encoder
    w = g.store("encoder.weight_ih", reordered(encoder.weight_ih_l0, "ifco", "iofc")[None])
    r = g.store("encoder.weight_hh", reordered(encoder.weight_hh_l0, "ifco", "iofc")[None])
    biases = [reordered(b, "ifco", "iofc") for b in (encoder.bias_ih_l0, encoder.bias_hh_l0)]
    b = g.store("encoder.bias", np.concatenate(biases)[None])
    ends = ["", "/encoder/LSTM_output_1", "/encoder/LSTM_output_2"]
    g.nodes.append(
        helper.make_node(
            "LSTM", ["/encoder/Transpose_output_0", w, r, b], ends, name="/encoder/LSTM", hidden_size=width
        )
    )
    h = g.op("Squeeze", ["/encoder/LSTM_output_1", zero], "/decoder/Squeeze_output_0")
    c = g.op("Squeeze", ["/encoder/LSTM_output_2", zero], "/decoder/Squeeze_1_output_0")
    g.op("Squeeze", [last, one], "/decoder/Squeeze_2_output_0")
    row = g.op("Sub", ["/decoder/Squeeze_2_output_0", "/decoder/Squeeze_2_output_0"], "/decoder/Sub_output_0")
    turns = g.store("decoder.turns", np.zeros((Seq2SeqEtt.STEPS, 1), np.float32))
    g.nodes.append(
        helper.make_node(
            "Scan",
            [row, h, c, turns],
            [f"/decoder/Scan_output_{i}" for i in range(4)],
            name="/decoder/Scan",
            num_scan_inputs=1,
            body=_cell(model, g),
        )
    )
    made = g.op("Transpose", ["/decoder/Scan_output_3"], "/decoder/Transpose_output_0", perm=[1, 0, 2])
    g.op("Add", [made, last], "/decoder/Add_output_0")
    g.op("Mul", ["/decoder/Add_output_0", deviation], "/scaler/Mul_output_0")
    g.op("Add", ["/scaler/Mul_output_0", mean], "next")
    return g.model((["batch", 96, columns], ["batch", Seq2SeqEtt.STEPS, columns]))


def _cell(model: Seq2SeqEtt, g: _Graph) -> onnx.GraphProto:
    """Return the body: one turn of the decoder, its weights in the main graph."""
    decoder, columns, width = model.decoder, len(model.mean), model.decoder.hidden_size
    w_in = g.store("decoder.kernel", array(decoder.weight_ih).T)
    w_state = g.store("decoder.recurrent_kernel", array(decoder.weight_hh).T)
    bias = g.store("decoder.bias", array(decoder.bias_ih + decoder.bias_hh))
    head, head_bias = (
        g.store("head.kernel", array(model.head.weight).T),
        g.store("head.bias", array(model.head.bias)),
    )
    turn = _Graph()
    turn.op("MatMul", ["row", w_in], "/cell/MatMul_output_0")
    turn.op("MatMul", ["h", w_state], "/cell/MatMul_1_output_0")
    turn.op("Add", ["/cell/MatMul_output_0", "/cell/MatMul_1_output_0"], "/cell/Add_output_0")
    turn.op("Add", ["/cell/Add_output_0", bias], "/cell/Add_1_output_0")
    gates = [f"/cell/Split_output_{i}" for i in range(4)]
    turn.nodes.append(helper.make_node("Split", ["/cell/Add_1_output_0"], gates, name="/cell/Split", axis=1))
    for i, function in enumerate(("Sigmoid", "Sigmoid", "Tanh", "Sigmoid")):
        turn.op(function, [gates[i]], f"/cell/gate_{i}_output_0")
    turn.op("Mul", ["/cell/gate_1_output_0", "c"], "/cell/Mul_output_0")
    turn.op("Mul", ["/cell/gate_0_output_0", "/cell/gate_2_output_0"], "/cell/Mul_1_output_0")
    turn.op("Add", ["/cell/Mul_output_0", "/cell/Mul_1_output_0"], "c_next")
    turn.op("Tanh", ["c_next"], "/cell/Tanh_output_0")
    turn.op("Mul", ["/cell/gate_3_output_0", "/cell/Tanh_output_0"], "h_next")
    turn.op("MatMul", ["h_next", head], "/cell/MatMul_2_output_0")
    turn.op("Add", ["/cell/MatMul_2_output_0", head_bias], "/cell/Add_2_output_0")
    turn.op("Add", ["row", "/cell/Add_2_output_0"], "row_next")
    turn.op("Identity", ["row_next"], "made")
    kind, batch = TensorProto.FLOAT, "batch"
    given = [("row", columns), ("h", width), ("c", width)]
    inputs = [helper.make_tensor_value_info(n, kind, [batch, size]) for n, size in given]
    inputs.append(helper.make_tensor_value_info("turn", kind, [1]))
    ends = [("row_next", columns), ("h_next", width), ("c_next", width), ("made", columns)]
    outputs = [helper.make_tensor_value_info(n, kind, [batch, size]) for n, size in ends]
    return helper.make_graph(turn.nodes, "turn", inputs, outputs)
