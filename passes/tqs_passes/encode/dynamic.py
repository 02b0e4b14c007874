"""Store a matrix as 8-bit integers whose reader multiplies integers: its input is rounded to 8 bits at every call.

Before → after, for a matrix w of K rows and N columns ::

    x, w ─▶ MatMul ─▶ y        x ─▶ DynamicQuantizeLinear ─▶ q (uint8), s, z
                               q, w (int8 [K, N]), z ─▶ MatMulInteger ─▶ Cast(float) ─▶ Mul(s · scale) ─▶ y

Standard operators of opset 11, in the order that onnxruntime fuses into DynamicQuantizeMatMul (the two scales are
multiplied first; checked with 1.31.1, also when w and its scale are computed from planes and a float16 scale at load).
One scale s for the whole input of a call, one weight scale per column or one for the matrix. The levels of every width
and grid of at most 8 bits are int8, so a weight may be stored in fewer bits than it is computed with.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tqs_passes.encode.fragment import Fragment

#: Lowest opset with DynamicQuantizeLinear.
DYNAMIC_OPSET = 11
_LEVELS = 255


def read_dynamically(
    fragment: Fragment, levels: str, scale: str, reader: onnx.NodeProto, name: str, *, turned: bool
) -> Fragment:
    """Replace a weight's reader in a fragment that already decodes its int8 levels.

    Parameters
    ----------
    fragment : Fragment
    levels, scale : str
        Names of the levels, ``[K, N]`` or ``[N, K]`` when `turned`, and of the scale, ``[N]`` or one value.
    reader : onnx.NodeProto
        The MatMul or plain Gemm to replace.
    name : str
        Name of the weight, which the levels ``[K, N]`` get.
    turned : bool
        The reader is a Gemm with transB = 1.
    """
    if turned:
        fragment.op("Transpose", [levels], output=name, perm=[1, 0])
    else:
        _rename(fragment, levels, name)
    reading = Fragment(f"{fragment.prefix}y", fragment.namespace)
    q, s, z = (f"{fragment.prefix}y{end}" for end in "qsz")
    reading.nodes.append(helper.make_node("DynamicQuantizeLinear", [reader.input[0]], [q, s, z]))
    product = reading.op("MatMulInteger", [q, name, z], name=reader.name)
    product = reading.op("Cast", [product], to=int(onnx.TensorProto.FLOAT))
    factor = reading.op("Mul", [s, scale])
    if reader.op_type == "Gemm" and len(reader.input) > 2 and reader.input[2]:
        product = reading.op("Mul", [product, factor])
        reading.op("Add", [product, reader.input[2]], output=reader.output[0])
    else:
        reading.op("Mul", [product, factor], output=reader.output[0])
    fragment.reader, fragment.reading = reader, reading.nodes
    return fragment


def _rename(fragment: Fragment, old: str, new: str) -> None:
    for tensor in fragment.tensors:
        if tensor.name == old:
            tensor.name = new
    for node in fragment.nodes:
        node.output[:] = [new if output == old else output for output in node.output]


def scale_of(made: Mapping[str, onnx.NodeProto], nodes: list[onnx.NodeProto], weight: str) -> str | None:
    """Return the name of the scale that a file multiplies a weight's integer product with; None if it has none.

    Parameters
    ----------
    made : mapping of str to onnx.NodeProto
        The node that produces each tensor.
    nodes : list of onnx.NodeProto
        All nodes of the file.
    weight : str
    """
    product = next((n for n in nodes if n.op_type == "MatMulInteger" and n.input[1] == weight), None)
    if product is None:
        return None
    cast = next((n for n in nodes if n.input and n.input[0] == product.output[0]), None)
    scaled = next((n for n in nodes if cast is not None and n.input and n.input[0] == cast.output[0]), None)
    factor = made.get(scaled.input[1]) if scaled is not None and scaled.op_type == "Mul" else None
    return factor.input[1] if factor is not None and factor.op_type == "Mul" else None


def rounded_input(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an input as DynamicQuantizeLinear and DequantizeLinear would return it: uint8, with one scale."""
    low, high = min(float(x.min(initial=0.0)), 0.0), max(float(x.max(initial=0.0)), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(_LEVELS))
    if scale == 0:
        return np.zeros_like(x)
    zero = np.clip(np.rint(-np.float32(low) / scale), 0, _LEVELS)
    levels = np.clip(np.rint(x / scale) + zero, 0, _LEVELS)
    rounded: NDArray[np.float32] = ((levels - zero) * scale).astype(np.float32)
    return rounded
