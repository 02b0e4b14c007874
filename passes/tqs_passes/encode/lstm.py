"""Store both matrices of an LSTM as 8-bit integers that the runtime's own DynamicQuantizeLSTM multiplies with.

Before → after, for weights W ``[1, 4H, I]`` and R ``[1, 4H, H]`` ::

    X, W, R, B ─▶ LSTM ─▶ Y      W levels (int8) ─▶ Transpose ─▶ W [1, I, 4H]
                                 R levels (int8) ─▶ Transpose ─▶ R [1, H, 4H]
                                 X, W, R, B, scales, zero points ─▶ com.microsoft.DynamicQuantizeLSTM ─▶ Y

The operator rounds X once a call, and the state h at every step, to uint8 with one scale each. It is onnxruntime's, and
only its CPU provider has it; it has none for GRU and RNN. One direction, no sequence lengths. W and R need each other:
the node is written with W, and names R by what R's own fragment stores.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tqs_passes.encode.fragment import Fragment

#: The operator set of the operator.
DOMAIN = "com.microsoft"
_W, _R, _PEEPHOLES = 1, 2, 7
_SCALES = {_W: 8, _R: 10}


def read_as_lstm(
    fragment: Fragment,
    levels: str,
    scales: NDArray[np.float16] | NDArray[np.float32],
    reader: onnx.NodeProto,
    name: str,
) -> Fragment:
    """Store one matrix of an LSTM in a fragment that already decodes its int8 levels; with W also replace the LSTM.

    Parameters
    ----------
    fragment : Fragment
    levels : str
        Name of the levels, ``[1, 4H, I]`` or ``[1, 4H, H]``.
    scales : float16 or float32 array
        One for each of the 4H channels, or one.
    reader : onnx.NodeProto
        The LSTM.
    name : str
        Name of the weight, which the transposed levels get.
    """
    fragment.op("Transpose", [levels], output=name, perm=[0, 2, 1])
    scale, zero = _parameters(fragment, name)
    stored = scales.reshape(1, -1) if scales.size > 1 else scales.reshape(1)
    if stored.dtype == np.float16:
        half = fragment.store(stored, f"{scale}h")
        fragment.op("Cast", [half], output=scale, to=int(onnx.TensorProto.FLOAT))
    else:
        fragment.store(stored, scale)
    zeros = helper.make_tensor("", onnx.TensorProto.INT8, [1], [0])
    fragment.op("ConstantOfShape", [fragment.op("Shape", [scale])], output=zero, value=zeros)
    fragment.share(DOMAIN, Fragment("", domain=DOMAIN))
    if name != reader.input[_W]:
        return fragment
    given = [*reader.input, *[""] * (_PEEPHOLES + 1 - len(reader.input))]
    inputs = [*given, *_parameters(fragment, given[_W]), *_parameters(fragment, given[_R])]
    node = onnx.NodeProto(op_type="DynamicQuantizeLSTM", domain=DOMAIN, name=reader.name)
    node.input.extend(inputs)
    node.output.extend(reader.output)
    node.attribute.extend(a for a in reader.attribute if a.name != "layout")
    fragment.reader, fragment.reading = reader, [node]
    return fragment


def _parameters(fragment: Fragment, name: str) -> tuple[str, str]:
    """Return the names of the scale and the zero point of a matrix."""
    stem = f"{fragment.namespace}.l.{name}"
    return f"{stem}.s", f"{stem}.z"


def lstm_operands(nodes: list[onnx.NodeProto], name: str) -> tuple[str, str] | None:
    """Return the names of a matrix' levels and scale in a file; None if no DynamicQuantizeLSTM reads it."""
    for node in nodes:
        if (node.op_type, node.domain) == ("DynamicQuantizeLSTM", DOMAIN) and name in node.input[_W : _R + 1]:
            return name, node.input[_SCALES[list(node.input).index(name)]]
    return None
