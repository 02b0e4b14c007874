"""Bit planes: b-bit codes, 1 ≤ b ≤ 8, packed in uint8 and unpacked by table look-up, at any opset from 9.

The bits of a code are split into fields of 4, 2 and 1 bits (3 = 1 + 2, 5 = 1 + 4, 6 = 2 + 4, 7 = 1 + 2 + 4, low
bits first). One plane holds the same field of every value, packed high bits first into bytes, and is decoded by ::

    plane (uint8 [m]) → Cast(int32) → Gather(table [256, 8/width]) → Reshape(shape of the weight)

where row r of the table holds the 8/width fields of byte r, already weighted (2^shift, twice that for the mid-rise
grid) and, for the highest plane, offset. The sum of the planes is the levels of `tqs_passes.grids.grid`. The graph
computes the tables from one uint8 ramp and folds them at load, so a table costs some 200 bytes instead of 2 kB.

int8 sums need opset 14; before that the tables, and therefore the levels, are float32.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tqs_passes.encode.fragment import Fragment
from tqs_passes.files.tensors import shortest
from tqs_passes.grids.grid import Codes, Grid

#: Lowest opset at which the planes encoding runs.
MIN_OPSET = 9
TABLE_OPS_OPSET = 10  # Mod
INT8_ADD_OPSET = 14
_BLOCK_VALUES = 1 << 18
_SLICE_INPUT_OPSET = 10
_RANGE_OPSET = 11


def plane_widths(bits: int) -> tuple[int, ...]:
    """Return the field widths of a b-bit code, low bits first."""
    return tuple(width for width in (1, 2, 4) if bits & width)


def affine(bits: int, grid: Grid) -> tuple[int, int]:
    """Return (gain, lowest): a code represents the level gain · code + lowest."""
    if grid is Grid.MIDRISE:
        return 2, -((1 << bits) - 1)
    return 1, -(1 << (bits - 1))


def pack(codes: NDArray[np.uint8], shift: int, width: int) -> NDArray[np.uint8]:
    """Pack one field of flat codes into bytes, the first value in the high bits, zero-padded.

    Parameters
    ----------
    codes : uint8 array, ``[n]``
    shift, width : int
        The field is bits ``shift … shift + width - 1``; width divides 8.

    Returns
    -------
    uint8 array, ``[ceil(n · width / 8)]``
    """
    per_byte = 8 // width
    fields = (codes >> shift) & ((1 << width) - 1)
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = fields
    lanes = padded.reshape(-1, per_byte)
    out = np.zeros(lanes.shape[0], np.uint8)
    for lane in range(per_byte):
        out |= lanes[:, lane] << (8 - width * (lane + 1))
    return out


def packed_planes(codes: Codes) -> list[NDArray[np.uint8]]:
    """Return the planes of codes of fewer than 8 bits, low bits first; zeros when the levels are blank."""
    widths, size = plane_widths(codes.bits), codes.levels.size
    planes = [np.zeros(-(-size * width // 8), np.uint8) for width in widths]
    if codes.is_blank:
        return planes
    flat = codes.levels.reshape(-1)
    for start in range(0, size, _BLOCK_VALUES):  # a multiple of 8: a block fills whole bytes of every plane
        block = replace(codes, levels=flat[start : start + _BLOCK_VALUES]).unsigned()
        shift = 0
        for plane, width in zip(planes, widths, strict=True):
            packed = pack(block, shift, width)
            plane[start * width // 8 : start * width // 8 + packed.size] = packed
            shift += width
    return planes


def unpack(packed: NDArray[np.uint8], width: int, n: int) -> NDArray[np.uint8]:
    """Return the first n fields of a packed plane: the inverse of `pack`."""
    per_byte = 8 // width
    shifts = np.array([8 - width * (lane + 1) for lane in range(per_byte)], np.uint8)
    return ((packed[:, None] >> shifts) & ((1 << width) - 1)).reshape(-1)[:n].astype(np.uint8)


def plane_name(stored: str, index: int) -> str:
    """Return the name of a stored plane: `stored`, then ``<stored>_1``, ``<stored>_2`` and so on."""
    return stored if index == 0 else f"{stored}_{index}"


def decode_levels(
    codes: Codes,
    fragment: Fragment,
    stored: str,
    opset: int,
    *,
    first: int = 0,
    shape: tuple[int, ...] | None = None,
) -> tuple[str, bool]:
    """Append stored planes and the nodes that turn them into levels.

    Parameters
    ----------
    codes : Codes
    fragment : Fragment
        Receives the tensors and nodes.
    stored : str
        Name of the stored codes (see `plane_name`).
    opset : int
        Opset of the file.
    first : int
        Index of the first plane.
    shape : tuple of int, optional
        Shape of the levels in the graph; one axis may be -1 [default: the shape of the codes].

    Returns
    -------
    name : str
        Name of the levels, which have the shape of the weight.
    is_int8 : bool
        Whether they are int8 (else float32).
    """
    if codes.bits == 8:
        return fragment.store(codes.levels, plane_name(stored, first)), True
    widths = plane_widths(codes.bits)
    use_int8 = opset >= INT8_ADD_OPSET or len(widths) == 1
    planes = packed_planes(codes)
    gain, offset = affine(codes.bits, codes.grid)
    total, shift = "", 0
    for index, width in enumerate(widths):
        packed = planes[index]
        name = fragment.store(packed, plane_name(stored, first + index))
        top = index == len(widths) - 1
        table = lookup_table(fragment, width, gain << shift, offset if top else 0, opset, int8=use_int8)
        rows = fragment.op("Cast", [name], to=int(onnx.TensorProto.INT32))
        fields = fragment.op("Gather", [table, rows])
        plane = shaped(
            fragment,
            fields,
            packed.size * (8 // width),
            shape or codes.levels.shape,
            opset,
            size=codes.levels.size,
        )
        total = fragment.op("Add", [total, plane]) if total else plane
        shift += width
    return total, use_int8


def shaped(
    fragment: Fragment,
    values: str,
    n_padded: int,
    shape: tuple[int, ...],
    opset: int,
    *,
    size: int | None = None,
) -> str:
    """Append the nodes that cut `n_padded` values to the values of `shape`, and return the name of the result.

    `size` is the number of values when one axis of `shape` is -1.
    """
    size = math.prod(shape) if size is None else size
    if n_padded != size:
        values = fragment.op("Reshape", [values, stored_shape(fragment, (-1,))])
        if opset >= _SLICE_INPUT_OPSET:
            bounds = [stored_shape(fragment, (0,)), stored_shape(fragment, (size,))]
            values = fragment.op("Slice", [values, *bounds])
        else:
            values = fragment.op("Slice", [values], starts=[0], ends=[size])
    return fragment.op("Reshape", [values, stored_shape(fragment, shape)])


def stored_shape(fragment: Fragment, shape: tuple[int, ...]) -> str:
    """Share the int64 tensor that holds a shape; return its name."""
    return _shared_whole(
        fragment, f"{fragment.namespace}.s" + "x".join(str(d) for d in shape), shape, "int64"
    )


def table_values(width: int, gain: int, offset: int) -> NDArray[np.int32]:
    """Return the look-up table ``[256, 8/width]``: gain · field + offset of each byte."""
    rows = np.arange(256)[:, None]
    shifts = np.array([8 - width * (lane + 1) for lane in range(8 // width)])
    values: NDArray[np.int32] = (((rows >> shifts) & ((1 << width) - 1)) * gain + offset).astype(np.int32)
    return values


def lookup_table(fragment: Fragment, width: int, gain: int, offset: int, opset: int, *, int8: bool) -> str:
    """Share the look-up table of one plane ``[256, 8/width]``, int8 or float32; return its name."""
    name, piece = _lookup_table(fragment.namespace, width, gain, offset, opset, int8)
    fragment.share(name, piece)
    return name


@lru_cache(maxsize=1 << 10)
def _lookup_table(
    space: str, width: int, gain: int, offset: int, opset: int, int8: bool
) -> tuple[str, Fragment]:
    name = f"{space}.t{width}_{gain}_{-offset}{'' if int8 else 'f'}"
    piece = Fragment(name + ".", space)
    if opset < TABLE_OPS_OPSET:
        piece.store(table_values(width, gain, offset).astype(np.int8 if int8 else np.float32), name)
        return name, piece
    value = fields_table(piece, width, opset)
    if gain != 1:
        value = piece.op("Mul", [value, stored_scalar(piece, gain)])
    if offset:
        value = piece.op("Add", [value, stored_scalar(piece, offset)])
    kind = onnx.TensorProto.INT8 if int8 else onnx.TensorProto.FLOAT
    piece.op("Cast", [value], output=name, to=int(kind))
    return name, piece


def fields_table(fragment: Fragment, width: int, opset: int) -> str:
    """Share the plain fields ``[256, 8/width]``, int32, computed from a ramp 0 … 255, and return their name.

    Needs opset `TABLE_OPS_OPSET`.
    """
    name, ramp, piece = _fields_table(fragment.namespace, width, opset)
    fragment.share(f"{fragment.namespace}.r", ramp)
    fragment.share(name, piece)
    return name


@lru_cache(maxsize=1 << 10)
def _fields_table(space: str, width: int, opset: int) -> tuple[str, Fragment, Fragment]:
    ramp = Fragment(f"{space}.r.", space)
    if ramp.is_terse and opset >= _RANGE_OPSET:
        bounds = [stored_scalar(ramp, v) for v in (0, 256, 1)]
        ramp.op("Reshape", [ramp.op("Range", bounds), stored_shape(ramp, (256, 1))], output=f"{space}.r")
    else:
        ramp.store(np.arange(256, dtype=np.uint8)[:, None], f"{space}.b")
        ramp.op("Cast", [f"{space}.b"], output=f"{space}.r", to=int(onnx.TensorProto.INT32))
    name = f"{space}.f{width}"
    piece = Fragment(name + ".", space)
    divisors = [1 << (8 - width * (lane + 1)) for lane in range(8 // width)]
    piece.tensors.append(_whole(piece, np.array(divisors, np.int32), name + ".d"))
    quotient = piece.op("Div", [f"{space}.r", name + ".d"])
    piece.op("Mod", [quotient, stored_scalar(piece, 1 << width)], output=name)
    return name, ramp, piece


def _whole(fragment: Fragment, values: NDArray[np.generic], name: str) -> onnx.TensorProto:
    """Return a tensor of integers: raw data, or the shortest form where the fragment's names are short too."""
    if fragment.is_terse:
        return shortest(values, name)
    return numpy_helper.from_array(values, name)


def stored_scalar(fragment: Fragment, value: int) -> str:
    """Share the int32 scalar `value`; return its name."""
    return _shared_whole(fragment, f"{fragment.namespace}.i{value}", value, "int32")


def _shared_whole(fragment: Fragment, name: str, value: int | tuple[int, ...], dtype: str) -> str:
    fragment.share(name, _whole_piece(fragment.namespace, name, value, dtype))
    return name


@lru_cache(maxsize=1 << 12)
def _whole_piece(space: str, name: str, value: int | tuple[int, ...], dtype: str) -> Fragment:
    piece = Fragment(name, space)
    piece.tensors.append(_whole(piece, np.array(value, dtype), name))
    return piece
