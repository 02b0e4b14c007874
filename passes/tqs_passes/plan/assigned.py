"""Apply an assignment to a weight: its fragment, its integers, its stored form, and its decoded values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_passes.encode.fragment import Fragment
from tqs_passes.encode.weight import (
    Form,
    Target,
    decoded_cast,
    encode_cast,
    encode_codes,
    encode_kept,
    np_dtype,
    stem_names,
)
from tqs_passes.errors import InputError
from tqs_passes.graph.names import Names
from tqs_passes.grids.grid import Codes, Scales
from tqs_passes.grids.nearest import quantize
from tqs_passes.grids.row_tiers import quantize_rows
from tqs_passes.grids.scales import free_rounding
from tqs_passes.plan.plan import Assignment


def target_of(
    assignment: Assignment,
    index: int,
    opset: int,
    names: Names,
    reader: onnx.NodeProto | None = None,
    followers: Mapping[str, onnx.NodeProto] | None = None,
) -> Target:
    """Return the target of an assignment's fragment; `index` is its place in the plan, `reader` its only reader.

    `followers`: see `tqs_passes.graph.readers.followers_in`. The fragment's names start with the weight's name, or with
    ``<namespace>.<index>`` when the model already has such names. In a model of short names they start with the
    weight's short name and a dot, which no other name does.
    """
    weight = names.stored.get(assignment.weight, assignment.weight)
    follower = (followers or {}).get(reader.output[0]) if reader is not None else None
    if names.terse:
        own = f"{weight}."
        return Target(
            *(weight, assignment.dtype, opset, own, names.namespace, own, reader), assignment.ranges, follower
        )
    prefix = f"{names.namespace}.{index}"
    stem = weight if names.taken.isdisjoint(stem_names(weight)) else prefix
    return Target(
        *(weight, assignment.dtype, opset, f"{prefix}.", names.namespace, stem, reader),
        assignment.ranges,
        follower,
    )


def round_weight(values: NDArray[np.generic], assignment: Assignment, scales: Scales | None = None) -> Codes:
    """Return the integer codes of a weight by a rounding that needs no data.

    Parameters
    ----------
    values : array
    assignment : Assignment
    scales : float16 or float32 array, optional
        Those of the codes that this function returned for the same values and assignment, to save time.

    Raises
    ------
    InputError
        The plan's rounding used data: its integers are in `codes.npz`.
    """
    a = assignment
    rounding = free_rounding(a.rounding)
    if a.grid is None or rounding is None:
        raise InputError(
            f"the integers of {a.label!r} were chosen by {a.rounding} and are missing",
            todo="Put the codes.npz that was written with the plan beside the plan",
        )
    w = np.ascontiguousarray(values).astype(np.float32)
    if a.rows and a.axis is not None:
        return quantize_rows(
            w, a.rows, a.axis, a.grid, half_scales=a.half_scales, rounding=rounding, known=scales
        )
    return quantize(
        *(w, a.tier.bits, a.axis, a.grid),
        half_scales=a.half_scales,
        rounding=rounding,
        group=a.group,
        scales=scales,
    )


def fragment_of(
    assignment: Assignment, target: Target, values: NDArray[np.generic], codes: Codes | None
) -> Fragment:
    """Return the fragment that stores and decodes one weight (`keep`: in the type of the block that reads it)."""
    if assignment.form is Form.KEEP:
        return encode_kept(target, values)
    if assignment.form is Form.CAST:
        return encode_cast(target, values, assignment.tier)
    codes = codes or round_weight(values, assignment)
    return encode_codes(target, codes, assignment.form, assignment.encoding)


def reference_weight(
    assignment: Assignment, values: NDArray[np.generic], codes: Codes | None = None
) -> NDArray[np.generic]:
    """Return the values that a weight decodes to, in its own dtype: the reference of numerics rule 5."""
    if assignment.form is Form.KEEP:
        return np.asarray(values).astype(np_dtype(assignment.dtype), copy=False)
    if assignment.form is Form.CAST:
        return decoded_cast(values, assignment.tier, assignment.dtype)
    decoded = (codes or round_weight(values, assignment)).decode()
    return decoded.astype(np_dtype(assignment.dtype))


def fed_weight(
    assignment: Assignment, values: NDArray[np.generic], codes: Codes | None = None
) -> NDArray[np.generic]:
    """Return the reference of a weight in the source's dtype, so that the source's graph can be fed with it."""
    return reference_weight(assignment, values, codes).astype(values.dtype, copy=False)
