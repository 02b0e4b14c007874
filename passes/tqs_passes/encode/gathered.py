"""Decode a table read by Gather row by row: codes are gathered first, and only the gathered rows become floats.

Before → after, for a table w of V rows of D values, D a multiple of 8 ::

    w, i ─▶ Gather ─▶ y      plane [V, D · width/8] ─▶ Gather(i) ─▶ Cast(int32) ─▶ Gather(table [256, 8/width])
                                ─▶ Reshape([shape of i, D]) ( ─▶ sum of planes) ─▶ Cast(float) ─▶ Mul(scale) ─▶ y

Every row of a plane is packed by itself, so that it can be gathered; the first plane gets the weight's name. Scales
per row are gathered like the codes. The result is float32(level) · float32(scale), bit for bit as from a decoded
table, but the table stays in memory at its stored width, whereas folding would make it float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_passes.encode.fragment import Fragment, part_name
from tqs_passes.encode.planes import (
    INT8_ADD_OPSET,
    affine,
    lookup_table,
    pack,
    plane_name,
    plane_widths,
    stored_shape,
)
from tqs_passes.grids.grid import Codes

_LANES = 8


def row_fits(d: int) -> bool:
    """Return whether rows of d values fill whole bytes at every width."""
    return d % _LANES == 0


def encode_gathered(
    fragment: Fragment, codes: Codes, reader: onnx.NodeProto, name: str, stem: str, opset: int
) -> Fragment:
    """Fill a fragment with rows of codes and the nodes that gather and decode them.

    Parameters
    ----------
    fragment : Fragment
        An empty fragment.
    codes : Codes
        Levels ``[V, D]``, D a multiple of 8; scales along any axis, or one scale.
    reader : onnx.NodeProto
        The Gather along axis 0 to replace.
    name : str
        Name of the weight, which the first stored plane gets.
    stem : str
        Prefix of the other stored names.
    opset : int
    """
    reading = Fragment(fragment.prefix, fragment.namespace)
    fragment.reader = reader
    indices = reader.input[1]
    if codes.bits == 8:
        levels = reading.op("Gather", [fragment.store(codes.levels, name), indices], name=reader.name, axis=0)
        is_int8 = True
    else:
        levels, is_int8 = _levels(fragment, reading, codes, reader, (name, stem), opset)
    if is_int8:
        levels = reading.op("Cast", [levels], to=int(onnx.TensorProto.FLOAT))
    reading.op(
        "Mul", [levels, _scale(fragment, reading, codes, indices, stem)], output=reader.output[0]
    )  # the same product as decoding the whole table
    fragment.reading = reading.nodes
    return fragment


def _levels(
    fragment: Fragment,
    reading: Fragment,
    codes: Codes,
    reader: onnx.NodeProto,
    names: tuple[str, str],
    opset: int,
) -> tuple[str, bool]:
    rows, d = codes.levels.shape
    widths = plane_widths(codes.bits)
    use_int8 = opset >= INT8_ADD_OPSET or len(widths) == 1
    unsigned = codes.unsigned()
    gain, lowest = affine(codes.bits, codes.grid)
    shape = reading.op(
        "Concat", [reading.op("Shape", [reader.input[1]]), stored_shape(fragment, (d,))], axis=0
    )
    total, shift = "", 0
    for index, width in enumerate(widths):
        top = index == len(widths) - 1
        plane = fragment.store(
            pack(unsigned, shift, width).reshape(rows, -1),
            names[0] if index == 0 else plane_name(part_name(names[1], "quantized"), index),
        )
        table = lookup_table(fragment, width, gain << shift, lowest if top else 0, opset, int8=use_int8)
        node = reader.name if index == 0 else ""
        picked = reading.op("Gather", [plane, reader.input[1]], name=node, axis=0)
        fields = reading.op("Gather", [table, reading.op("Cast", [picked], to=int(onnx.TensorProto.INT32))])
        part = reading.op("Reshape", [fields, shape])
        total = reading.op("Add", [total, part]) if total else part
        shift += width
    return total, use_int8


def _scale(fragment: Fragment, reading: Fragment, codes: Codes, indices: str, stem: str) -> str:
    scales: NDArray[np.generic] = codes.scales
    if codes.axis == 1:
        scales = scales.reshape(-1)  # lies along the last axis of any gathered result
    value = fragment.store(scales, part_name(stem, "scale"))
    if codes.axis == 0:
        value = reading.op("Gather", [value, indices], axis=0)
    if scales.dtype == np.float16:
        value = reading.op("Cast", [value], to=int(onnx.TensorProto.FLOAT))
    return value
