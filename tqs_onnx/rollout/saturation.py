"""Finds out whether the CPU's integer products saturate: without VNNI, x86 adds two products of 8 bits in 16 bits.

    255 · 127 + 255 · 127 = 64,770 > 32,767        255 · 64 + 255 · 64 = 32,640

onnxruntime multiplies unsigned inputs with signed weights. On such a processor large sums are cut, which no simulation
in floats shows; weights of at most 7 bits are safe everywhere.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tqs_onnx.rollout.session import open_session

_ROWS, _DEPTH, _COLUMNS = 4, 64, 16
_INPUT, _WEIGHT = 255, 127
_OPSET = 13


@cache
def saturates() -> bool:
    """Return whether a product of the largest 8-bit integers comes out too small on the CPU."""
    ports = [
        helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [_ROWS, _DEPTH]),
        helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [_ROWS, _COLUMNS]),
    ]
    weight = numpy_helper.from_array(np.full((_DEPTH, _COLUMNS), _WEIGHT, np.int8), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "saturation", ports[:1], ports[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    session = open_session(proto.SerializeToString())
    x = np.full((_ROWS, _DEPTH), _INPUT, np.uint8)
    found = session.run({"x": session.value(x)})["y"].numpy()
    return bool(np.any(found != _INPUT * _WEIGHT * _DEPTH))
