"""Store a constant losslessly in fewer bytes: as one value, as codes of few values, or as whole numbers of few bits.

Before → after, for a tensor t of n values ::

    one value          value, shape ─▶ Expand ─▶ t
    up to 256 values   planes of b-bit codes ─▶ (sum) ─▶ Gather(values) ─▶ t       a {0, -100} mask takes 1 bit
    whole numbers      planes of b-bit codes ─▶ (sum) ─▶ Add(smallest) ─▶ Cast ─▶ t

b-bit codes are split into one field of 1, 2 or 4 bits for each of those bits set in b mod 8 (low bits first), and a
plane of whole bytes for each further 8 bits. Values are compared by their bits, so NaN and -0.0 are restored exactly.
The runtime folds all of these nodes at load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tqs_passes.encode.fragment import Fragment
from tqs_passes.encode.planes import (
    TABLE_OPS_OPSET,
    fields_table,
    pack,
    plane_widths,
    shaped,
    stored_scalar,
    stored_shape,
    table_values,
)

#: Largest number of values in a table, and of bits in a code.
MOST_VALUES = 256
MOST_BITS = 24
_BLOCK = 1 << 20
_LARGEST = 1 << 62


def encode_constant(
    values: NDArray[np.generic], name: str, stem: str, prefix: str, namespace: str, opset: int
) -> Fragment | None:
    """Return the smallest fragment that computes exactly these values; None when none of the three ways applies.

    Parameters
    ----------
    values : array
        At least two values of a numeric or boolean type of whole bytes.
    name : str
        Name of the result.
    stem : str
        Prefix of the stored names.
    prefix, namespace : str
        See `Fragment`.
    opset : int
    """
    flat = values.reshape(-1)
    table = distinct(flat)
    if table is not None and table.size == 1:
        return _expanded(values, name, stem, prefix, namespace)
    found: list[Fragment] = []
    if table is not None:
        fragment = Fragment(prefix, namespace)
        bits = max(1, int(table.size - 1).bit_length())
        codes = _blocks(flat, lambda block: np.searchsorted(table, _bits(block)))
        _looked_up(fragment, codes, bits, table.view(values.dtype), values.shape, (name, stem), opset)
        found.append(fragment)
    if values.dtype.kind in "iu":
        low, high = int(flat.min()), int(flat.max())
        bits = max(1, (high - low).bit_length())
        small = low >= -_LARGEST and high <= _LARGEST
        if small and bits <= MOST_BITS and bits < 8 * values.dtype.itemsize:
            fragment = Fragment(prefix, namespace)
            codes = _blocks(flat, lambda block: block.astype(np.int64) - low)
            _counted(fragment, codes, bits, low, values, (name, stem), opset)
            found.append(fragment)
    return min(found, key=lambda f: f.n_bytes(), default=None)


def distinct(flat: NDArray[np.generic]) -> NDArray[np.generic] | None:
    """Return the distinct bit patterns, ascending, as unsigned integers; None when there are more than `MOST_VALUES`.

    Stops at the first block that exceeds the limit.
    """
    seen = np.unique(_bits(flat[:4096]))
    for start in range(4096, flat.size, _BLOCK):
        if seen.size > MOST_VALUES:
            return None
        block = _bits(flat[start : start + _BLOCK])
        fresh = np.unique(block[~np.isin(block, seen)]) if seen.size > 1 else np.unique(block)
        seen = np.union1d(seen, fresh)
    return seen if seen.size <= MOST_VALUES else None


def _bits(block: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(block).view(np.dtype(f"u{block.dtype.itemsize}"))


def _blocks(
    flat: NDArray[np.generic], code: Callable[[NDArray[np.generic]], NDArray[np.generic]]
) -> NDArray[np.uint32]:
    out = np.empty(flat.size, np.uint32)
    for start in range(0, flat.size, _BLOCK):
        out[start : start + _BLOCK] = code(flat[start : start + _BLOCK])
    return out


def _data_type(dtype: np.dtype[np.generic]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _expanded(values: NDArray[np.generic], name: str, stem: str, prefix: str, namespace: str) -> Fragment:
    fragment = Fragment(prefix, namespace)
    one = np.ascontiguousarray(values.reshape(-1)[:1]).reshape(())
    stored = fragment.store(one, f"{stem}_value", _data_type(values.dtype))
    fragment.op("Expand", [stored, stored_shape(fragment, values.shape)], output=name)
    return fragment


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (shift, width) of each plane."""
    shift = 0
    for width in (*plane_widths(bits % 8), *(8 for _ in range(bits // 8))):
        yield shift, width
        shift += width


def _rows(fragment: Fragment, plane: NDArray[np.uint8], stored: str) -> str:
    return fragment.op("Cast", [fragment.store(plane, stored)], to=int(onnx.TensorProto.INT32))


def _field_table(fragment: Fragment, width: int, opset: int) -> str:
    if opset >= TABLE_OPS_OPSET:
        return fields_table(fragment, width, opset)
    name = f"{fragment.namespace}.f{width}"
    piece = Fragment(name)
    stored = piece.store(table_values(width, 1, 0).astype(np.uint8), f"{name}.b")
    piece.op("Cast", [stored], output=name, to=int(onnx.TensorProto.INT32))
    fragment.share(name, piece)
    return name


def _looked_up(
    fragment: Fragment,
    codes: NDArray[np.uint32],
    bits: int,
    table: NDArray[np.generic],
    shape: tuple[int, ...],
    names: tuple[str, str],
    opset: int,
) -> None:
    name, stem = names
    if bits not in (1, 2, 4):
        values = fragment.store(table, f"{stem}_values", _data_type(table.dtype))
        fragment.op("Gather", [values, _summed(fragment, codes, bits, shape, stem, opset)], output=name)
        return
    # One plane: the table maps a whole byte of codes to its values.
    padded = np.append(table, np.full((1 << bits) - table.size, table[-1]))
    values = fragment.store(padded, f"{stem}_values", _data_type(table.dtype))
    by_byte = fragment.op("Gather", [values, _field_table(fragment, bits, opset)])
    packed = pack(codes.astype(np.uint8), 0, bits)
    whole = fragment.op("Gather", [by_byte, _rows(fragment, packed, f"{stem}_quantized")])
    shaped(fragment, whole, packed.size * (8 // bits), shape, opset)
    fragment.nodes[-1].output[0] = name


def _counted(
    fragment: Fragment,
    codes: NDArray[np.uint32],
    bits: int,
    low: int,
    values: NDArray[np.generic],
    names: tuple[str, str],
    opset: int,
) -> None:
    name, stem = names
    total = _summed(fragment, codes, bits, values.shape, stem, opset)
    wide = onnx.TensorProto.INT64 if values.dtype.itemsize > 2 else onnx.TensorProto.INT32
    if low:
        offset = np.array(low, np.int64 if wide == onnx.TensorProto.INT64 else np.int32)
        if wide == onnx.TensorProto.INT64:
            total = fragment.op("Cast", [total], to=int(wide))
        total = fragment.op("Add", [total, fragment.store(offset, f"{stem}_first")])
    fragment.op("Cast", [total], output=name, to=_data_type(values.dtype))


def _summed(
    fragment: Fragment, codes: NDArray[np.uint32], bits: int, shape: tuple[int, ...], stem: str, opset: int
) -> str:
    """Append stored planes and the nodes that sum them; return the name of the codes, int32, of `shape`."""
    total = ""
    for index, (shift, width) in enumerate(_planes(bits)):
        stored = f"{stem}_quantized" if index == 0 else f"{stem}_quantized_{index}"
        if width == 8:
            plane = _rows(fragment, (codes >> np.uint32(shift)).astype(np.uint8).reshape(shape), stored)
        else:
            packed = pack(((codes >> np.uint32(shift)) & np.uint32(15)).astype(np.uint8), 0, width)
            fields = _field_table(fragment, width, opset)
            plane = fragment.op("Gather", [fields, _rows(fragment, packed, stored)])
            plane = shaped(fragment, plane, packed.size * (8 // width), shape, opset)
        if shift:
            plane = fragment.op("Mul", [plane, stored_scalar(fragment, 1 << shift)])
        total = fragment.op("Add", [total, plane]) if total else plane
    return total
