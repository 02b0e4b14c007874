"""Encode one weight at one tier: the stored tensors, and nodes whose last output has the weight's own name.

Readers keep reading the same name; only its producer changes ::

    keep         initializer                                             (untouched)
    FP16, BF16   initializer (half) → Cast(float)
    INTb, cm     planes → levels → Cast(float) → Mul(scale)              folds at load into a plain float weight
                 with groups: levels get a group axis, then a Reshape    folds too
    INTb, dq     planes → levels → DequantizeLinear(scale, axis)         fused into MatMul by onnxruntime
    INTb, nbits  MatMulNBits replaces the reader                         see `tqs_passes.encode.nbits`
    INTb, gathered   the reader gathers codes, then decodes them         see `tqs_passes.encode.gathered`
    INT8, static     int8 → DequantizeLinear; the reader's input passes QuantizeLinear → DequantizeLinear with a fixed
                     range, see `tqs_passes.encode.static`
    INTb, dynamic    planes → levels (int8); the reader rounds its input to 8 bits and multiplies integers,
                     see `tqs_passes.encode.dynamic` and, for an LSTM, `tqs_passes.encode.lstm`

Row tiers concatenate the levels of their parts (`tqs_passes.encode.rows`).

Names follow onnxruntime's: `<w>_quantized`, `<w>_scale`, node `<w>_DequantizeLinear`. When the model already has one of
these names, another stem replaces `<w>`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tqs_passes.encode.dynamic import read_dynamically
from tqs_passes.encode.fragment import Fragment, node_name, part_name
from tqs_passes.encode.gathered import encode_gathered
from tqs_passes.encode.lstm import read_as_lstm
from tqs_passes.encode.native import native_levels
from tqs_passes.encode.nbits import encode_nbits
from tqs_passes.encode.planes import decode_levels, plane_name, stored_shape
from tqs_passes.encode.rows import MOST_PLANES, decode_rows
from tqs_passes.encode.static import Range, read_statically
from tqs_passes.grids.grid import Codes, grouped_shape
from tqs_passes.tier import Tier

#: Lowest opset with per-axis DequantizeLinear, and with bfloat16 Cast.
DQ_OPSET = 13
BF16_OPSET = 13
#: Lowest opset whose Cast names its type by number.
CAST_OPSET = 6
#: Lowest opset with INT4.
INT4_OPSET = 21


_CAST_DTYPES = {
    Tier.FP32: np.dtype(np.float32),
    Tier.FP16: np.dtype(np.float16),
    Tier.BF16: np.dtype(ml_dtypes.bfloat16),
}


class Form(StrEnum):
    """How a stored weight becomes a float tensor in the graph (see module docstring)."""

    KEEP = "keep"
    CAST = "cast"
    CAST_MUL = "cm"
    DEQUANTIZE = "dq"
    NBITS = "nbits"
    GATHERED = "gathered"
    DYNAMIC = "dynamic"
    STATIC = "static"


#: Forms whose reader rounds its input.
ROUNDED = (Form.DYNAMIC, Form.STATIC)


class Encoding(StrEnum):
    """How integer levels are stored: bit planes at any opset, or ONNX's own integer types (`native`)."""

    PLANES = "planes"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Target:
    """What a fragment must produce, and for which graph.

    Parameters
    ----------
    name : str
        Name of the weight: the name of the fragment's last output.
    dtype : str
        Data type that its readers expect.
    opset : int
        Opset of the file.
    prefix, namespace : str
        Prefixes of intermediate names and of shared pieces (see `Fragment`).
    stem : str
        Prefix of the names of stored tensors and of the last node (see `stem_names`); default `name`.
    reader : onnx.NodeProto or None
        The only reader of the weight, for forms that replace it.
    ranges : tuple of Range
        The ranges of its input and output, for the form `static`.
    follower : onnx.NodeProto or None
        The node that the form `static` computes with the reader (`tqs_passes.graph.readers.followers_in`).
    """

    name: str
    dtype: str
    opset: int
    prefix: str
    namespace: str = "tqs"
    stem: str = ""
    reader: onnx.NodeProto | None = None
    ranges: tuple[Range, ...] = ()
    follower: onnx.NodeProto | None = None

    def __post_init__(self) -> None:
        """Use the weight's own name as the stem by default."""
        if not self.stem:
            object.__setattr__(self, "stem", self.name)


def stem_names(stem: str) -> tuple[str, ...]:
    """Return every name of a tensor or node that a fragment may derive from a stem."""
    ends = ("DequantizeLinear", "Cast")
    planes = (plane_name(part_name(stem, "quantized"), i) for i in range(MOST_PLANES))
    return (
        *planes,
        *(part_name(stem, end) for end in ("scale", "order")),
        *(f"{stem}_{end}" for end in ends),
    )


def encode_kept(target: Target, values: NDArray[np.generic]) -> Fragment:
    """Return the fragment that stores `values` under the weight's own name in the type its readers expect."""
    fragment = Fragment(target.prefix, target.namespace)
    held = np.asarray(values).astype(np_dtype(target.dtype))
    stored = held.view(np.uint16) if target.dtype == "bfloat16" else held
    fragment.store(stored, target.name, tensor_type(target.dtype))
    return fragment


def encode_cast(target: Target, values: NDArray[np.generic], tier: Tier) -> Fragment:
    """Return the fragment that stores `values` as a narrower float type and casts it back."""
    fragment = Fragment(target.prefix, target.namespace)
    stored = part_name(target.stem, "quantized")
    if tier is Tier.BF16:
        bits = np.asarray(values).astype(ml_dtypes.bfloat16).view(np.uint16)
        fragment.store(bits, stored, onnx.TensorProto.BFLOAT16)
    else:
        fragment.store(np.asarray(values).astype(_CAST_DTYPES[tier]), stored)
    fragment.op(
        "Cast",
        [stored],
        output=target.name,
        name=node_name(target.stem, "Cast"),
        to=tensor_type(target.dtype),
    )
    return fragment


def decoded_cast(values: NDArray[np.generic], tier: Tier, dtype: str) -> NDArray[np.generic]:
    """Return what `encode_cast` decodes to, in the weight's own dtype."""
    return np.asarray(values).astype(_CAST_DTYPES[tier]).astype(np_dtype(dtype))


def encode_codes(target: Target, codes: Codes, form: Form, encoding: Encoding = Encoding.PLANES) -> Fragment:
    """Return the fragment that stores integer codes and decodes them, in any form of an integer tier."""
    fragment = Fragment(target.prefix, target.namespace)
    name, stem = target.name, target.stem
    if target.reader is not None and form is Form.NBITS:
        turned = is_turned(target.reader)
        return encode_nbits(fragment, codes, target.reader, name, stem, turned=turned, opset=target.opset)
    if target.reader is not None and form is Form.GATHERED:
        return encode_gathered(fragment, codes, target.reader, name, stem, target.opset)
    is_static = form is Form.STATIC and target.reader is not None
    if is_static and target.reader is not None and is_turned(target.reader):
        codes = _transposed(codes)
    if encoding is Encoding.NATIVE:
        levels, is_int8 = native_levels(codes, fragment, part_name(stem, "quantized")), True
    elif codes.rows:
        levels, is_int8 = decode_rows(codes, fragment, stem, target.opset), True
    else:
        levels, is_int8 = decode_levels(
            _in_groups(codes), fragment, part_name(stem, "quantized"), target.opset
        )
    direct = target.dtype == "float32"
    last = name if direct else ""
    node = node_name(stem, "DequantizeLinear")
    if form in (Form.DEQUANTIZE, Form.DYNAMIC, Form.STATIC):
        if not is_int8:  # before opset 14 the sums are float32
            levels = fragment.op("Cast", [levels], to=int(onnx.TensorProto.INT8))
        if form is Form.DYNAMIC and target.reader is not None and target.reader.op_type == "LSTM":
            return read_as_lstm(fragment, levels, codes.scales, target.reader, name)
        scale = _stored_scale(
            fragment, stem, codes.scales.reshape(-1) if codes.axis is not None else codes.scales
        )
        if form is Form.DYNAMIC and target.reader is not None:
            turned = is_turned(target.reader)
            return read_dynamically(fragment, levels, scale, target.reader, name, turned=turned)
        axis = {} if codes.axis is None else {"axis": codes.axis}
        value = fragment.op("DequantizeLinear", [levels, scale], output=last, name=node, **axis)
        if is_static and target.reader is not None:
            return read_statically(fragment, value, target.reader, target.ranges, target.follower)
    else:
        scale = _stored_scale(fragment, stem, codes.scales)
        if is_int8:
            levels = fragment.op("Cast", [levels], to=int(onnx.TensorProto.FLOAT))
        value = fragment.op("Mul", [levels, scale], output="" if codes.group else last, name=node)
        if codes.group:
            value = fragment.op("Reshape", [value, stored_shape(fragment, codes.levels.shape)], output=last)
    if not direct:
        fragment.op("Cast", [value], output=name, to=tensor_type(target.dtype))
    return fragment


def is_turned(reader: onnx.NodeProto) -> bool:
    """Return whether a reader is a Gemm that multiplies by the transposed matrix."""
    return reader.op_type == "Gemm" and any(a.name == "transB" and a.i for a in reader.attribute)


def _transposed(codes: Codes) -> Codes:
    """Return the codes of the transposed matrix; blank codes stay blank."""
    axis = None if codes.axis is None else 1 - codes.axis
    levels = (
        np.broadcast_to(np.int8(0), codes.levels.shape[::-1])
        if codes.is_blank
        else np.ascontiguousarray(codes.levels.T)
    )
    return replace(codes, levels=levels, scales=codes.scales.T, axis=axis)


def _in_groups(codes: Codes) -> Codes:
    """Return the codes with an axis for the groups, if there are any."""
    if not codes.group or codes.axis is None:
        return codes
    shape = grouped_shape(codes.levels.shape, codes.axis, codes.group)
    blank = codes.is_blank
    levels = np.broadcast_to(np.int8(0), shape) if blank else codes.levels.reshape(shape)
    return replace(codes, levels=levels)


def _stored_scale(fragment: Fragment, stem: str, scales: NDArray[np.float16] | NDArray[np.float32]) -> str:
    stored = fragment.store(scales, part_name(stem, "scale"))
    if scales.dtype == np.float16:
        return fragment.op("Cast", [stored], to=int(onnx.TensorProto.FLOAT))
    return stored


def tensor_type(dtype: str) -> int:
    """Return the ONNX element type of a weight's dtype name."""
    return {
        "float32": int(onnx.TensorProto.FLOAT),
        "float16": int(onnx.TensorProto.FLOAT16),
        "bfloat16": int(onnx.TensorProto.BFLOAT16),
        "float64": int(onnx.TensorProto.DOUBLE),
    }[dtype]


def np_dtype(dtype: str) -> np.dtype[np.generic]:
    """Return the NumPy dtype of a weight's dtype name (bfloat16 through ml_dtypes)."""
    return helper.tensor_dtype_to_np_dtype(tensor_type(dtype))
