"""Choose the form that decodes a weight, from one table indexed by way of reading and serving profile.

The first form of a row that suits the weight, its codes and the target is written. The table was measured by
``tools/measure_forms.py``; the figures, with the runtime's version and the CPU, are in ``tools/forms.md``. In short:
DequantizeLinear before a MatMul or plain Gemm is fused (8-bit activations inside); anywhere else it runs at every call.
Cast → Mul folds at load and costs the same as FP32, in time and in memory. MatMulNBits at level 0 is exact, faster than
FP32 for large matrices and few rows at a time, and keeps half a byte per weight in memory. DequantizeLinear is never
written before a Transpose: onnxruntime 1.17 to 1.23 abort while they load such a file (`tools/check_oldest.py`).
The profile `qdq` is for tools that read explicit quantization: native integers, DequantizeLinear, nothing on biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx

from tqs_passes.encode.dynamic import DYNAMIC_OPSET
from tqs_passes.encode.gathered import row_fits
from tqs_passes.encode.nbits import block_of, fits, fits_wide
from tqs_passes.encode.static import STATIC_OPSET
from tqs_passes.encode.weight import DQ_OPSET, Encoding, Form
from tqs_passes.graph.readers import Way, convolved, multiplied, recurs, way_of
from tqs_passes.grids.grid import Grid, grids_for
from tqs_passes.plan.plan import ServingTarget
from tqs_passes.plan.targets import WIDE_NBITS, Serving, serves
from tqs_passes.tier import Tier
from tqs_passes.weights import Weight

Profile = Literal["fast", "exact", "small", "qdq"]
PROFILES: tuple[Profile, ...] = ("fast", "exact", "small", "qdq")

_DQ, _CM, _NBITS, _ROWS = Form.DEQUANTIZE, Form.CAST_MUL, Form.NBITS, Form.GATHERED
#: Forms in order of preference; Cast → Mul is the last choice of every row.
TABLE: dict[Profile, dict[Way, tuple[Form, ...]]] = {
    "fast": {Way.MATRIX: (_DQ,)},
    "exact": {Way.MATRIX: (_NBITS,), Way.TURNED: (_NBITS,)},
    "small": {
        Way.MATRIX: (_NBITS, _DQ),
        Way.TURNED: (_NBITS, _DQ),
        Way.TABLE: (_ROWS,),
        Way.OTHER: (_DQ,),
    },
    "qdq": {Way.MATRIX: (_DQ,), Way.TURNED: (_DQ,), Way.TABLE: (_DQ,), Way.OTHER: (_DQ,)},
}
#: Smallest number of values for which a form pays, by profile; a matrix counts as the square of its shorter side. With
#: 8-bit activations a side below 256 takes 1.1 to 1.7 times as long as FP32 for 16 rows at a time and more. Below 16 M
#: MatMulNBits at level 0 takes up to 1.3 times as long as FP32 for 4 to 32 rows at a time (and 0.5 to 0.7 of it for
#: one), and `exact` promises FP32's speed at every batch.
LEAST_VALUES: dict[tuple[Profile, Form], int] = {
    ("fast", Form.DEQUANTIZE): 1 << 16,
    ("exact", Form.NBITS): 1 << 24,
    ("small", Form.NBITS): 1 << 12,
    ("small", Form.GATHERED): 1 << 12,
    ("small", Form.DEQUANTIZE): 1 << 12,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything besides the weight that decides its form.

    Parameters
    ----------
    profile : {"fast", "exact", "small", "qdq"}
    opset : int
    readers : mapping of str to onnx.NodeProto
        See `sole_readers`.
    serving : Serving
    followers : mapping of str to onnx.NodeProto
        See `followers_in`.
    """

    profile: Profile
    opset: int
    readers: Mapping[str, onnx.NodeProto]
    serving: Serving = field(default_factory=Serving)
    followers: Mapping[str, onnx.NodeProto] = field(default_factory=dict[str, onnx.NodeProto])


def integer_form(setting: Setting, weight: Weight, tier: Tier, grid: Grid, axis: int | None) -> Form:
    """Return the form of a weight at an integer tier, with levels on a grid and scales along an axis."""
    if setting.serving.target is ServingTarget.TENSORRT:
        return _DQ
    way = way_of(weight, setting.readers)
    size = min(weight.shape) ** 2 if way in (Way.MATRIX, Way.TURNED) else weight.n_values
    for form in TABLE[setting.profile].get(way, ()):
        enough = size >= LEAST_VALUES.get((setting.profile, form), 0)
        served = serves(setting.serving, form)
        if enough and served and _takes(setting, form, way, weight, (tier, grid, axis)):
            return form
    return _CM


def offered_forms(
    setting: Setting, weight: Weight, tier: Tier, axis: int | None
) -> tuple[tuple[Grid, Form], ...]:
    """Return the grids worth trying at a width and the form of each; keep only the form the profile prefers.

    The mid-rise grid of 4 bits is a little better than the signed one but cannot be an operand of MatMulNBits. It is
    not offered where MatMulNBits is written, because it would take away the profile's advantage.
    """
    found = [(g, integer_form(setting, weight, tier, g, axis)) for g in grids_for(tier.bits)]
    order = (*TABLE[setting.profile].get(way_of(weight, setting.readers), ()), _CM, _DQ)
    best = min((form for _, form in found), key=order.index)
    return tuple((g, form) for g, form in found if form is best)


def _takes(
    setting: Setting, form: Form, way: Way, weight: Weight, code: tuple[Tier, Grid, int | None]
) -> bool:
    tier, grid, axis = code
    if form is Form.DEQUANTIZE:
        return setting.opset >= DQ_OPSET and weight.dtype == "float32"
    if setting.serving.stored_as is not Encoding.PLANES:
        return False
    if form is Form.GATHERED:
        return row_fits(weight.shape[1])
    columns, rows = (0, 1) if way is Way.TURNED else (1, 0)
    fitting = fits(tier.bits, grid) or (
        fits_wide(tier.bits, grid) and setting.serving.target in WIDE_NBITS and setting.profile == "small"
    )
    return fitting and axis in (None, columns) and block_of(weight.shape[rows]) is not None


def takes_dynamic(setting: Setting, weight: Weight, axis: int | None) -> bool:
    """Return whether a weight with scales along an axis can be multiplied as integers (form `dynamic`)."""
    columns = 0 if way_of(weight, setting.readers) is Way.TURNED else 1
    lstm = recurs(weight, setting.readers) and not setting.serving.standard_ops
    return (
        (multiplied(weight, setting.readers) or lstm)
        and axis in (None, columns)
        and setting.opset >= DYNAMIC_OPSET
        and setting.serving.stored_as is Encoding.PLANES
        and serves(setting.serving, Form.DYNAMIC)
    )


def takes_static(setting: Setting, weight: Weight, tier: Tier, axis: int | None) -> bool:
    """Return whether a weight with scales along an axis can have a reader that runs in 8 bits (form `static`)."""
    way = way_of(weight, setting.readers)
    columns = 0 if way is Way.TURNED or convolved(weight, setting.readers) else 1
    return (
        tier is Tier.INT8
        and (multiplied(weight, setting.readers) or convolved(weight, setting.readers))
        and axis in (None, columns)
        and setting.opset >= STATIC_OPSET
        and setting.serving.stored_as is Encoding.NATIVE
        and serves(setting.serving, Form.STATIC)
    )


def scale_axes(weight: Weight, tier: Tier) -> tuple[int | None, ...]:
    """Return the channel axes worth trying for the scales of an integer tier; None means one scale per tensor.

    A matrix has its reader's channel axis. A table read by Add or Mul has none: every axis is tried, and the
    allocator picks the one with the least error per byte. One-dimensional weights get one scale.
    """
    if not tier.is_integer or len(weight.shape) < 2:
        return (None,)
    if weight.channel_axis is not None:
        return (weight.channel_axis, None)
    return (None, *(i for i, d in enumerate(weight.shape) if 1 < d < weight.n_values))
