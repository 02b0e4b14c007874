"""Which form a weight is decoded by: a table over reader, tier and serving profile.

Measured with onnxruntime 1.31.1 on a CPU with AVX512-VNNI, as a multiple of FP32 latency: DequantizeLinear before a
two-dimensional MatMul B, or a Gemm with neither operand transposed and alpha = beta = 1, is fused and runs at 0.2–0.4
(with 8-bit activations inside: relative error 5e-3 a MatMul). Before any other reader, behind a Transpose, with two
readers or inside a body it is decoded at every call, at 1.2–9. Cast → Mul folds at load and runs at 1.0 everywhere,
bit-exact.
"""

from __future__ import annotations

from typing import Literal

import onnx

from tqs_passes.encode.weight import DQ_OPSET, Form
from tqs_passes.plan import ServingTarget
from tqs_passes.tier import Tier
from tqs_passes.weights import Reader, Weight

Profile = Literal["fast", "exact"]


def integer_form(
    weight: Weight,
    profile: Profile,
    opset: int,
    gemm_plain: frozenset[str],
    target: ServingTarget = ServingTarget.ORT_CPU,
) -> Form:
    """Return the form of an integer tier for this weight.

    Parameters
    ----------
    weight : Weight
    profile : {"fast", "exact"}
    opset : int
    gemm_plain : frozenset of str
        Names of the Gemm nodes with alpha = beta = 1 and no transposed operand (see `plain_gemms`).
    target : ServingTarget
        TensorRT takes DequantizeLinear only; a portable file holds none.
    """
    if target is ServingTarget.TENSORRT:
        return Form.DEQUANTIZE
    if target is ServingTarget.PORTABLE:
        return Form.CAST_MUL
    if profile == "exact" or opset < DQ_OPSET or weight.dtype != "float32":
        return Form.CAST_MUL
    if len(weight.readers) != 1 or len(weight.shape) != 2:
        return Form.CAST_MUL
    return Form.DEQUANTIZE if _is_fused(weight.readers[0], gemm_plain) else Form.CAST_MUL


def _is_fused(reader: Reader, gemm_plain: frozenset[str]) -> bool:
    if reader.domain not in ("", "ai.onnx") or reader.through or reader.in_body or reader.input_index != 1:
        return False
    return reader.op_type == "MatMul" or (reader.op_type == "Gemm" and reader.node in gemm_plain)


def plain_gemms(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names of the Gemm nodes that onnxruntime fuses with DequantizeLinear."""
    plain: set[str] = set()
    for node in graph.node:
        if node.op_type != "Gemm" or not node.name:
            continue
        values = {a.name: a.i if a.type == onnx.AttributeProto.INT else a.f for a in node.attribute}
        if (
            not values.get("transA", 0)
            and not values.get("transB", 0)
            and values.get("alpha", 1.0) == 1.0
            and values.get("beta", 1.0) == 1.0
        ):
            plain.add(node.name)
    return frozenset(plain)


def scale_axes(weight: Weight, tier: Tier, form: Form) -> tuple[int | None, ...]:
    """Return the channel axes worth trying for the scales of an integer tier; None is one scale per tensor.

    A matrix has its reader's channel axis. A table read by Add or Mul has none: every axis is tried, and the
    allocator takes the one with the least error per byte. One-dimensional weights get one scale.
    """
    if not tier.is_integer or len(weight.shape) < 2:
        return (None,)
    if form is Form.DEQUANTIZE or weight.channel_axis is not None:
        return (weight.channel_axis, None) if weight.channel_axis is not None else (None,)
    return (None, *(i for i, d in enumerate(weight.shape) if 1 < d < weight.n_values))
