"""Puts a switch around an LSTM: switched on, it rounds what the form `dynamic` rounds, with its float weights.

Before → after ::

    X, W, R, B, h, c ─▶ LSTM ─▶ Y, Y_h, Y_c       If(switch)
                                                    else  the same LSTM
                                                    then  X ─▶ rounded;  Scan over its steps of
                                                            x_t, rounded h, c ─▶ LSTM of one step ─▶ Y, h, c

X is rounded once a call, and the state at every step before R multiplies it, as DynamicQuantizeLSTM does it
(`tqs_passes.encode.lstm`), each by DynamicQuantizeLinear ─▶ DequantizeLinear.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_FLOAT = int(onnx.TensorProto.FLOAT)
_H0, _C0, _P = 5, 6, 7
#: Lowest opset whose Unsqueeze takes its axes as an input.
_AXES_INPUT_OPSET = 13


def switched_lstm(node: onnx.NodeProto, switch: str, opset: int) -> onnx.NodeProto:
    """Return the If that replaces an LSTM of one direction (see the module docstring).

    Parameters
    ----------
    node : onnx.NodeProto
        See `tqs_passes.graph.readers.has_one_direction`.
    switch : str
        Name of the boolean that switches the rounding on, and prefix of the names made here.
    opset : int
    """
    wanted = [i for i, name in enumerate(node.output) if name]
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.output[:] = [f"{switch}.off{i}" if name else "" for i, name in enumerate(node.output)]
    other = helper.make_graph([plain], "off", [], [_value(plain.output[i]) for i in wanted])
    then = _rounded(node, switch, wanted, opset)
    out = [node.output[i] for i in wanted]
    return helper.make_node("If", [switch], out, then_branch=then, else_branch=other)


def _rounded(node: onnx.NodeProto, switch: str, wanted: list[int], opset: int) -> onnx.GraphProto:
    """Return the branch with the Scan; its outputs are those of the LSTM that are `wanted`."""
    given = [*node.input, *[""] * (_P + 1 - len(node.input))]
    n = {
        key: f"{switch}.{key}"
        for key in ("x", "h", "c", "y", "zeros", "shape", "b", "r", "one", "first", "hidden")
    }
    nodes, constants = _passed(given[0], n["x"], switch), []
    if not (given[_H0] and given[_C0]):
        constants += [
            numpy_helper.from_array(np.array([1], np.int64), n["one"]),
            numpy_helper.from_array(np.array([_hidden(node)], np.int64), n["hidden"]),
        ]
        nodes += [
            helper.make_node("Shape", [given[0]], [n["shape"]]),
            helper.make_node("Gather", [n["shape"], n["one"]], [n["b"]]),
            helper.make_node("Concat", [n["one"], n["b"], n["hidden"]], [n["r"]], axis=0),
            helper.make_node("ConstantOfShape", [n["r"]], [n["zeros"]]),
        ]
    reverse = any(a.name == "direction" and a.s == b"reverse" for a in node.attribute)
    inputs = [given[_H0] or n["zeros"], given[_C0] or n["zeros"], n["x"]]
    way: dict[str, Any] = {"scan_input_directions": [1], "scan_output_directions": [1]} if reverse else {}
    nodes.append(
        helper.make_node(
            "Scan",
            inputs,
            [n["h"], n["c"], n["y"]],
            body=_step(node, given, f"{switch}.step", opset),
            num_scan_inputs=1,
            **way,
        )
    )
    made = [(n["y"], n["h"], n["c"])[i] for i in wanted]
    return helper.make_graph(nodes, "on", [], [_value(name) for name in made], constants)


def _step(node: onnx.NodeProto, given: list[str], prefix: str, opset: int) -> onnx.GraphProto:
    """Return the body of the Scan: one step of the LSTM with a rounded state ``[1, B, H]``."""
    h, c, x, hr, cr, xs, y, hn, cn, ys, axis = (
        f"{prefix}.{key}" for key in ("h", "c", "x", "hr", "cr", "xs", "y", "hn", "cn", "ys", "axis")
    )
    step = onnx.NodeProto()
    step.CopyFrom(node)
    step.input[:] = [xs, *given[1:4], "", hr, c, *([given[_P]] if given[_P] else [])]
    step.output[:] = [y, hn, cn]
    kept = [a for a in node.attribute if a.name != "direction"]
    del step.attribute[:]
    step.attribute.extend(kept)
    by_input = opset >= _AXES_INPUT_OPSET
    unsqueezed: dict[str, Any] = {} if by_input else {"axes": [0]}
    constants = [
        *([numpy_helper.from_array(np.array([0], np.int64), axis)] if by_input else []),
        numpy_helper.from_array(np.array([1, -1, _hidden(node)], np.int64), f"{axis}y"),
    ]
    nodes = [
        *_passed(h, hr, prefix),
        helper.make_node("Unsqueeze", [x, axis] if by_input else [x], [xs], **unsqueezed),
        step,
        helper.make_node("Reshape", [y, f"{axis}y"], [ys]),
        helper.make_node("Identity", [cn], [cr]),
    ]
    outputs = [_value(hn), _value(cr), _value(ys)]
    return helper.make_graph(nodes, "step", [_value(h), _value(c), _value(x)], outputs, constants)


def _hidden(node: onnx.NodeProto) -> int:
    return next(int(a.i) for a in node.attribute if a.name == "hidden_size")


def _passed(x: str, out: str, prefix: str) -> list[onnx.NodeProto]:
    names = [f"{prefix}.{end}" for end in ("q8", "s8", "z8")]
    return [
        helper.make_node("DynamicQuantizeLinear", [x], names),
        helper.make_node("DequantizeLinear", names, [out]),
    ]


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _FLOAT, None)
