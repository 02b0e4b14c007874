"""The operators that may compute in 16-bit floats: a table, restricted by ONNX's schemas at the file's opset.

An operator is in the table if onnxruntime's CUDA provider has a kernel for the type (its OperatorKernels page, 1.31)
and if rounding its inputs to the type does no further harm: products accumulate in float32; elementwise operators and
those that only move values round once. Sums over an axis, exponentials and powers stay in float32.
onnxconverter-common's own list of operators that do not accept float16 is respected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
from onnxconverter_common.float16 import DEFAULT_OP_BLOCK_LIST

from tqs_passes.encode.weight import CAST_OPSET

#: The 16-bit floats a node may compute with.
Half = Literal["float16", "bfloat16"]

#: Operators that gain from the type: a block without one of them is not converted.
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
_MOVING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze"}
)  # fmt: skip
_BOTH = frozenset({"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Softmax", "LayerNormalization"})
_TAKES: dict[str, frozenset[str]] = {
    "bfloat16": _MOVING | _BOTH | {"MatMul", "Gemm"},
    "float16": (
        _MOVING | _BOTH | PRODUCTS
        | {"Abs", "Clip", "DepthToSpace", "Elu", "Erf", "Gelu", "HardSigmoid", "LeakyRelu", "Neg", "PRelu", "Pad",
           "Softplus", "SpaceToDepth", "Tile", "Where"}
    ).difference(DEFAULT_OP_BLOCK_LIST),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ports:
    """The inputs and outputs of a node that change their type together.

    Parameters
    ----------
    inputs, outputs : tuple of int
        Their positions.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def element_type(dtype: Half) -> int:
    """Return the ONNX element type of a 16-bit float."""
    return int(onnx.TensorProto.FLOAT16 if dtype == "float16" else onnx.TensorProto.BFLOAT16)


def ports_of(node: onnx.NodeProto, opset: int, dtype: Half) -> Ports | str:
    """Return the inputs and outputs of a node that would be 16-bit floats, or the reason why it does not accept them.

    Parameters
    ----------
    node : onnx.NodeProto
    opset : int
        Opset of the default domain.
    dtype : {"float16", "bfloat16"}
    """
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}.{node.op_type} is not an operator of the standard domain"
    if opset < CAST_OPSET:
        return f"opset {opset} has no Cast to {dtype}: it starts at {CAST_OPSET}"
    if node.op_type not in _TAKES[dtype]:
        return f"{node.op_type} stays in float32"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return f"{node.op_type} is not known at opset {opset}"
    kind = schema.outputs[0].type_str
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == kind), ())
    if f"tensor({dtype})" not in allowed:
        return f"{node.op_type} does not take {dtype} at opset {opset}"
    inputs = tuple(i for i, name in enumerate(node.input) if name and _kind(schema.inputs, i) == kind)
    outputs = tuple(i for i, name in enumerate(node.output) if name and _kind(schema.outputs, i) == kind)
    if len(outputs) != sum(bool(name) for name in node.output):
        return f"{node.op_type} has an output that stays in float32"
    return Ports(inputs, outputs)


def _kind(formals: Sequence[onnx.defs.OpSchema.FormalParameter], position: int) -> str:
    return str(formals[min(position, len(formals) - 1)].type_str)
