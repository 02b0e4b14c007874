"""Store levels in native integer types: INT8 and INT7 as int8, INT4 two per byte (opset 21, IR 10).

Cast or DequantizeLinear decodes them.

INT4 stores the first value of a pair in the low nibble, as ONNX defines. Levels of the signed grid fit; mid-rise levels
are odd numbers up to ±(2^b − 1) and do not. Native INT2 is never written: onnxruntime 1.31 computes wrong results with
it when the number of columns is not a multiple of 4.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_passes.encode.fragment import Fragment
from tqs_passes.grids.grid import Codes, Grid


def pack_nibbles(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack levels -8 … 7 two per byte, the first in the low nibble, zero-padded: uint8 ``[ceil(n / 2)]``."""
    flat = np.zeros(levels.size + levels.size % 2, np.uint8)
    flat[: levels.size] = levels.reshape(-1).astype(np.uint8) & 15
    packed: NDArray[np.uint8] = flat[0::2] | np.left_shift(flat[1::2], 4)
    return packed


def native_levels(codes: Codes, fragment: Fragment, stored: str) -> str:
    """Store the levels in their native type under `stored`; return that name.

    Raises
    ------
    ValueError
        There is no native type for this width or grid.
    """
    if codes.grid is not Grid.SIGNED or codes.bits not in (4, 7, 8):
        raise ValueError(f"no native type for {codes.bits} bits on the {codes.grid} grid")
    if codes.bits != 4:
        return fragment.store(codes.levels, stored)
    tensor = onnx.TensorProto(name=stored, data_type=onnx.TensorProto.INT4, dims=codes.levels.shape)
    tensor.raw_data = pack_nibbles(codes.levels).tobytes()
    fragment.tensors.append(tensor)
    return stored
