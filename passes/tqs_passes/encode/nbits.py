"""Store a matrix of at most 4 or of 8 bits as the operand of ``com.microsoft.MatMulNBits``: exact, little memory.

Before → after, for a matrix w of K rows and N columns ::

    x, w ─▶ MatMul ─▶ y        w (uint8 [N, K/block, block/2]), scales [N · K/block] ─▶ MatMulNBits(x) ─▶ y

The operator reads two 4-bit codes per byte, the first in the low half, with K as the fastest axis, and computes with
w = (code − 8) · scale. A level of at most 4 bits plus 8 is such a code, so 4-bit codes are stored packed. Narrower
codes are stored as planes, and the look-up table returns packed bytes ::

    plane (uint8 [m]) → Cast(int32) → Gather(table [256, 4/width]) → Reshape ( → Add of planes) = w

(with a Cast before opset 14, where planes are added as int32), so that folding at load leaves half a byte per weight
and never a float. 8-bit codes are stored as bytes, uint8 [N, K/block, block], with w = (code − 128) · scale. The graph
repeats one scale per column for all blocks of that column. Blocks hold at most 128 rows: CUDA's kernels for few rows of
x take no longer ones, and on the CPU 128 and 256 take the same time (measured, onnxruntime 1.31.1). At accuracy level 0
the runtime computes in float32: a product with a unit vector gives the decoded weight bit for bit (checked by `verify`,
with onnxruntime 1.31.1). Source: onnxruntime's ContribOperators, MatMulNBits.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tqs_passes.encode.fragment import Fragment, part_name
from tqs_passes.encode.planes import INT8_ADD_OPSET, affine, pack, plane_name, plane_widths, stored_shape
from tqs_passes.grids.grid import Codes, Grid

DOMAIN = "com.microsoft"
#: Bits of a packed code in the operator, and the code that means level 0.
BITS = 4
_ZERO = 8
#: The same of a code that is a byte.
WIDE_BITS = 8
_WIDE_ZERO = 128
_BLOCKS = (128, 64, 32)


def block_of(k: int) -> int | None:
    """Return the longest block that divides K rows, so that no padding is needed; None when there is none."""
    return next((b for b in _BLOCKS if k % b == 0), None)


def fits_wide(bits: int, grid: Grid) -> bool:
    """Return whether every level plus 128 is a code of one byte, stored as it is: 8 bits of the signed grid."""
    return bits == WIDE_BITS and grid is Grid.SIGNED


def fits(bits: int, grid: Grid) -> bool:
    """Return whether every level plus 8 is a 4-bit code: false for the mid-rise grid of 4 bits (levels up to ±15)."""
    return (grid is Grid.SIGNED and bits <= BITS) or (grid is Grid.MIDRISE and bits < BITS)


def encode_nbits(
    fragment: Fragment,
    codes: Codes,
    reader: onnx.NodeProto,
    name: str,
    stem: str,
    *,
    turned: bool,
    opset: int,
) -> Fragment:
    """Fill a fragment with the packed operand and the node that reads it.

    Parameters
    ----------
    fragment : Fragment
        An empty fragment.
    codes : Codes
        Levels ``[K, N]``, or ``[N, K]`` when `turned`; at most 4 bits, or 8; one scale per column or one scale.
    reader : onnx.NodeProto
        The MatMul or plain Gemm to replace.
    name : str
        Name of the weight, which the packed operand gets.
    stem : str
        Prefix of the other stored names.
    turned : bool
        The reader is a Gemm with transB = 1.
    """
    across = codes if turned else _turned(codes)
    n, k = across.levels.shape
    block = block_of(k)
    assert block is not None
    wide = codes.bits == WIDE_BITS
    if wide:
        shape = (n, k // block, block)
        fragment.store((across.levels.astype(np.int16) + _WIDE_ZERO).astype(np.uint8).reshape(shape), name)
    else:
        _packed(fragment, across, (n, k // block, block // 2), name, stem, opset)
    scales = _scales(fragment, across.scales, n, k // block, stem)
    fragment.share(DOMAIN, Fragment("", domain=DOMAIN))
    fragment.reader = reader
    with_bias = reader.op_type == "Gemm" and len(reader.input) > 2 and bool(reader.input[2])
    product = f"{fragment.prefix}y" if with_bias else reader.output[0]
    node = helper.make_node(
        "MatMulNBits", [reader.input[0], name, scales], [product], name=reader.name or None, domain=DOMAIN
    )
    for key, value in (("K", k), ("N", n), ("bits", WIDE_BITS if wide else BITS), ("block_size", block)):
        node.attribute.append(helper.make_attribute(key, value))
    fragment.reading.append(node)
    if with_bias:
        fragment.reading.append(helper.make_node("Add", [product, reader.input[2]], [reader.output[0]]))
    return fragment


def _turned(codes: Codes) -> Codes:
    scales = codes.scales if codes.axis is None else codes.scales.reshape(-1, 1)
    axis = None if codes.axis is None else 0
    return Codes(np.ascontiguousarray(codes.levels.T), scales, codes.bits, codes.grid, axis)


def _packed(
    fragment: Fragment, codes: Codes, shape: tuple[int, int, int], name: str, stem: str, opset: int
) -> None:
    if codes.bits == BITS:
        pairs = (codes.levels.astype(np.int16) + _ZERO).astype(np.uint8).reshape(-1, 2)
        fragment.store((pairs[:, 0] | np.left_shift(pairs[:, 1], 4)).reshape(shape), name)
        return
    unsigned = codes.unsigned()
    gain, lowest = affine(codes.bits, codes.grid)
    widths = plane_widths(codes.bits)
    bytes_add = len(widths) == 1 or opset >= INT8_ADD_OPSET
    total, shift = "", 0
    for index, width in enumerate(widths):
        top = index == len(widths) - 1
        plane = fragment.store(pack(unsigned, shift, width), plane_name(part_name(stem, "quantized"), index))
        table = _nibble_table(fragment, width, gain << shift, lowest + _ZERO if top else 0, int8=bytes_add)
        rows = fragment.op("Cast", [plane], to=int(onnx.TensorProto.INT32))
        nibbles = fragment.op("Gather", [table, rows])
        own = name if len(widths) == 1 else ""
        part = fragment.op("Reshape", [nibbles, stored_shape(fragment, shape)], output=own)
        last = name if top and bytes_add else ""
        total = fragment.op("Add", [total, part], output=last) if total else part
        shift += width
    if not bytes_add:
        fragment.op("Cast", [total], output=name, to=int(onnx.TensorProto.UINT8))


def _nibble_table(fragment: Fragment, width: int, gain: int, offset: int, *, int8: bool) -> str:
    """Share the table ``[256, 4/width]`` that maps each byte of a plane to packed bytes.

    It is uint8, or int32 where planes are added: before opset 14 standard operators cannot add uint8.
    """
    name = f"{fragment.namespace}.n{width}_{gain}_{offset}{'' if int8 else 'i'}"
    piece = Fragment(name + ".")
    piece.store(nibble_values(width, gain, offset).astype(np.uint8 if int8 else np.int32), name)
    fragment.share(name, piece)
    return name


def nibble_values(width: int, gain: int, offset: int) -> NDArray[np.int32]:
    """Return the table: for byte r and pair i the packed codes of fields 2i and 2i + 1, each gain · field + offset."""
    shifts = np.array([8 - width * (lane + 1) for lane in range(8 // width)])
    fields = ((np.arange(256)[:, None] >> shifts) & ((1 << width) - 1)) * gain + offset
    packed: NDArray[np.int32] = (fields[:, 0::2] + 16 * fields[:, 1::2]).astype(np.int32)
    return packed


def _scales(
    fragment: Fragment, scales: NDArray[np.float16] | NDArray[np.float32], n: int, blocks: int, stem: str
) -> str:
    """Append the nodes that repeat one scale per column for its blocks: float32 ``[n · blocks]``."""
    column = scales.reshape(-1, 1) if scales.size > 1 else scales.reshape(1, 1)
    value = fragment.store(column, part_name(stem, "scale"))
    if column.dtype == np.float16:
        value = fragment.op("Cast", [value], to=int(onnx.TensorProto.FLOAT))
    if column.size != n * blocks:
        value = fragment.op("Expand", [value, stored_shape(fragment, (n, blocks))])
    return fragment.op("Reshape", [value, stored_shape(fragment, (-1,))])


def operands(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the names of the packed operand and of the scales of a MatMulNBits; empty for any other node."""
    return tuple(node.input[1:3]) if (node.op_type, node.domain) == ("MatMulNBits", DOMAIN) else ()


def unpacked(packed: NDArray[np.uint8], scales: NDArray[np.float32], bits: int = BITS) -> NDArray[np.float32]:
    """Return level · scale, float32 ``[N, K]``, of an operand ``[N, K/block, block · bits / 8]`` of 4 or 8 bits."""
    n, blocks, size = packed.shape
    if bits == WIDE_BITS:
        levels = packed.astype(np.float32) - np.float32(_WIDE_ZERO)
    else:
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(n, blocks, 2 * size)
        levels = codes.astype(np.float32) - np.float32(_ZERO)
    return (levels * scales.reshape(n, blocks, 1)).reshape(n, -1)
