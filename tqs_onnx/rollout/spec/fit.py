"""Check the tables that append or write back against the model: each fed array must fit its input.

Shapes are the declared ones, with names or `?` for unknown sizes; an unknown size fits anything.
"""

from __future__ import annotations

from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, shape_text
from tqs_onnx.rollout.spec.spec import Cut, Feedback, RolloutSpec
from tqs_passes.errors import InputError


def check_feedback(feedback: Feedback, spec: RolloutSpec, signature: ModelSignature, where: str) -> None:
    """Check one feedback.

    Raises
    ------
    InputError
        The type, rank or sizes cannot fit, or an axis does not exist.
    """
    source, target = signature.output(feedback.output), signature.input(feedback.input)
    if source.dtype.kind not in "biu" and target.dtype.kind in "biu":
        raise InputError(
            f"{source} cannot become {target}: fractions would be lost",
            where=where,
            todo="Feed a float input, or export the model with an integer output",
        )
    if feedback.is_scaled and target.dtype.kind in "biu":
        raise InputError(
            f"scale and offset need a float input, but {target} is not one",
            where=where,
            todo="Remove scale and offset",
        )
    if source.shape is None:
        return
    batch = spec.rollout.batch_axis
    for cut in feedback.select:
        if cut.axis == batch:
            raise InputError("select cuts the batch axis", where=where, todo="Select another axis")
    fed = fed_shape(feedback, source.shape, where)
    if feedback.along is not None and feedback.along >= len(fed):
        raise InputError(
            f"along {feedback.along} is not an axis of the fed array {shape_text(fed)}",
            where=where,
            todo="Choose another axis",
        )
    _check_scale(feedback, fed, where)
    if target.shape is None:
        return
    slot = target.shape
    if feedback.into is not None:
        if feedback.into.axis == batch:
            raise InputError("into cuts the batch axis", where=where, todo="Choose another axis")
        slot = cut_shape((feedback.into,), slot, where)
        if feedback.into.index is not None:  # the fed array lacks this axis
            fed = (*fed[: feedback.into.axis], 1, *fed[feedback.into.axis :])
            slot = (*slot[: feedback.into.axis], 1, *slot[feedback.into.axis :])
    if len(fed) != len(slot):
        raise InputError(
            f"the fed array {shape_text(fed)} differs in rank from its destination {shape_text(slot)}",
            where=where,
            todo="Use select to drop an axis, or expand to add one",
        )
    if feedback.axis is not None and (feedback.axis >= len(slot) or feedback.axis == batch):
        raise InputError(
            f"axis {feedback.axis} is the batch axis, or not an axis of {target}",
            where=where,
            todo="Append along another axis",
        )
    if feedback.mode == "grow" and isinstance(slot[feedback.axis or 0], int) and spec.rollout.steps > 1:
        raise InputError(
            f"{target} cannot grow: its axis {feedback.axis} has a fixed size",
            where=where,
            todo='Use mode = "shift", or export the model with a dynamic axis',
        )
    for axis, (got, wanted) in enumerate(zip(fed, slot, strict=True)):
        clash = isinstance(got, int) and isinstance(wanted, int) and got != wanted
        if clash and axis not in (feedback.axis, batch):
            raise InputError(
                f"the fed array {shape_text(fed)} does not fit {shape_text(slot)} in axis {axis}",
                where=where,
                todo="Change select, expand, axis or into",
            )


def _check_scale(feedback: Feedback, fed: tuple[Dim, ...], where: str) -> None:
    n = max(len(feedback.scale), len(feedback.offset))
    if n == 1:
        return
    if not fed:
        raise InputError(
            "scale is a list, but the fed array is a scalar", where=where, todo="Give a single number"
        )
    size = fed[-1 if feedback.along is None else feedback.along]
    if isinstance(size, int) and size != n:
        raise InputError(
            f"scale or offset has {n} values, but the axis has {size}",
            where=where,
            todo="Give one per index, or set along",
        )


def check_fills(spec: RolloutSpec, signature: ModelSignature) -> None:
    """Check the fills.

    Raises
    ------
    InputError
        A value does not fit the type of its input, or the input cannot grow along the axis.
    """
    for index, fill in enumerate(spec.fill):
        port = signature.input(fill.input)
        where = f"rollout.toml fill[{index}]"
        if isinstance(fill.value, bool) != (port.dtype.kind == "b"):
            raise InputError(
                f"value {fill.value} does not fit {port}", where=where, todo="Give true or false"
            )
        if isinstance(fill.value, float) and port.dtype.kind in "iu":
            raise InputError(f"value {fill.value} does not fit {port}", where=where, todo="Give an integer")
        if port.shape is None:
            continue
        if fill.axis >= len(port.shape) or fill.axis == spec.rollout.batch_axis:
            raise InputError(
                f"axis {fill.axis} is the batch axis, or not an axis of {port}",
                where=where,
                todo="Append along another axis",
            )
        if fill.mode == "grow" and isinstance(port.shape[fill.axis], int) and spec.rollout.steps > 1:
            raise InputError(
                f"{port} cannot grow: its axis {fill.axis} has a fixed size",
                where=where,
                todo='Use mode = "shift"',
            )


def fed_shape(feedback: Feedback, shape: tuple[Dim, ...], where: str) -> tuple[Dim, ...]:
    """Return the shape of an output after select and expand; `?` marks unknown sizes.

    Raises
    ------
    InputError
        An axis or an index is outside the output.
    """
    kept = cut_shape(feedback.select, shape, where)
    rank = len(kept) + len(feedback.expand)
    if any(a >= rank for a in feedback.expand):
        raise InputError(
            f"expand {list(feedback.expand)} does not fit the selected output of rank {len(kept)}",
            where=where,
            todo=f"Axes count in the expanded array: choose 0 to {rank - 1}",
        )
    rest = iter(kept)
    return tuple(1 if a in feedback.expand else next(rest) for a in range(rank))


def cut_shape(cuts: tuple[Cut, ...], shape: tuple[Dim, ...], where: str) -> tuple[Dim, ...]:
    """Return a shape after cuts; see `fed_shape`."""
    result: list[Dim | None] = list(shape)
    for cut in cuts:
        if cut.axis >= len(shape):
            raise InputError(
                f"an array of shape {shape_text(shape)} has no axis {cut.axis}",
                where=where,
                todo="Choose another axis",
            )
        size = shape[cut.axis]
        if cut.index is not None:
            if isinstance(size, int) and not -size <= cut.index < size:
                raise InputError(
                    f"index {cut.index} lies outside axis {cut.axis} of {shape_text(shape)}",
                    where=where,
                    todo="Choose an index within the axis",
                )
            result[cut.axis] = None
        elif isinstance(size, int):
            length = len(range(size)[slice(*cut.bounds)])
            stop = cut.bounds[1]
            if length == 0 or (stop is not None and stop > size):
                raise InputError(
                    f"[{cut.bounds[0]}, {stop}) lies outside axis {cut.axis} of {shape_text(shape)}",
                    where=where,
                    todo="Choose a range within the axis",
                )
            result[cut.axis] = length
        else:
            result[cut.axis] = "?"
    return tuple(d for d in result if d is not None)
