"""Row tiers in the graph: concatenate parts of different widths before the scales are applied.

::

    part 1: planes → levels ─┐
    part 2: planes → levels ─┴▶ Concat(axis) ─▶ Gather(order, axis) ─▶ levels ─▶ DequantizeLinear, or Cast → Mul

The levels of every width fit int8. A weight therefore has one DequantizeLinear and one tensor of scales for any widths,
and onnxruntime fuses it like any other weight. `order` is stored in the smallest unsigned type. All steps but the last
fold at load.
"""

from __future__ import annotations

import onnx

from tqs_passes.encode.fragment import Fragment, part_name
from tqs_passes.encode.planes import decode_levels, plane_widths
from tqs_passes.grids.grid import Codes
from tqs_passes.grids.row_tiers import MOST_WIDTHS, codes_of_part, order_of, parts_of

#: Largest number of planes of a weight: three for 7 bits, two for 3, 5 and 6.
MOST_PLANES = 1 + 2 * MOST_WIDTHS


def decode_rows(codes: Codes, fragment: Fragment, stem: str, opset: int) -> str:
    """Append the stored parts of row tiers and the nodes that turn them into int8 levels; return their name.

    Parameters
    ----------
    codes : Codes
        Codes with `rows`.
    fragment : Fragment
        Receives the tensors and nodes.
    stem : str
        Prefix of the stored names.
    opset : int
        Opset of the file.
    """
    axis = codes.axis
    assert axis is not None
    parts = parts_of(codes.rows, codes.grid)
    shape = (*codes.levels.shape[:axis], -1, *codes.levels.shape[axis + 1 :])
    names: list[str] = []
    first = 0
    for part in parts:
        levels, is_int8 = decode_levels(
            codes_of_part(codes, part),
            fragment,
            part_name(stem, "quantized"),
            opset,
            first=first,
            shape=shape,
        )
        names.append(levels if is_int8 else fragment.op("Cast", [levels], to=int(onnx.TensorProto.INT8)))
        first += max(1, len(plane_widths(part.bits)))
    together = fragment.op("Concat", names, axis=axis)
    order = fragment.store(order_of(parts), part_name(stem, "order"))
    index = fragment.op("Cast", [order], to=int(onnx.TensorProto.INT32))
    return fragment.op("Gather", [together, index], axis=axis)
