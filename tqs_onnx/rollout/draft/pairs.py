"""The ways in which one output can re-enter one input, by the shapes of a single case.

=====================  ==================  =====================================================================
output                 input               way
=====================  ==================  =====================================================================
[…]                    […]                 it replaces the input
[H, F], H < T          [T, F]              its H rows are appended, the H oldest dropped (`shift`); never along
[C, y, x]              [T, C, y, x]        the last axis of several, which holds features
[H]                    [T, 1], [1, T]      the same, with the missing axis inserted
[H, F], H > T          [T, F]              its last T rows replace the input
[H, F, 1]              [T, F]              the same as without the last axis
[H, F, Q]              [T, F]              which of the Q parts is fed back has to be asked
[…, P + k, …]          […, P, …]           a cache, P symbolic: its k new values are appended (`grow`)
[H]                    [T, F]              which of the F features it continues has to be asked
=====================  ==================  =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

Shape = tuple[int, ...]


class Way(Enum):
    """How an output enters an input; the values are words for reasons."""

    FRAME = "equal shapes"
    SERIES = "a shorter first axis, all others equal"
    ROW = "equal shapes but for one axis that the output lacks"
    LONGER = "a longer first axis, all others equal"
    LINE = "one axis of another length, which may be time or features"
    PARTS = "one more axis, whose parts may be quantiles"
    GROWN = "the input with new values at its end"
    FEATURE = "fewer features than the input"


@dataclass(frozen=True, slots=True)
class Pair:
    """One output, one input and how the first may enter the second; axes are those of single cases.

    Parameters
    ----------
    output, input : str
    way : Way
    axis : int or None
        Axis of the input along which the output is appended; None: it replaces the input.
    expand : int or None
        Axis that is inserted into what is fed.
    select : tuple of int, or None
        (axis of the output, start, stop), or (axis, index, index) for one index; (axis, −k, 0): the last k.
    choices : int
        Number of answers to the question that the pair leaves open: parts or features; 0 for none.
    feature : int or None
        Index on the input's last axis that the output continues; the others are given at every step.
    """

    output: str
    input: str
    way: Way
    axis: int | None = None
    expand: int | None = None
    select: tuple[int, int, int] | None = None
    choices: int = 0
    feature: int | None = None


def pair_of(output: str, out: Shape, target: str, into: Shape) -> Pair | None:
    """Return how `output` of shape `out` can enter `target` of shape `into`; None if it cannot."""
    pair = _same_rank(output, out, target, into) if len(out) == len(into) else None
    if pair is not None:
        return pair
    if out and out[-1] == 1 and len(out) == len(into) + 1:
        inner = pair_of(output, out[:-1], target, into)
        one = (len(out) - 1, 0, 0)
        return inner if inner is None or inner.select is not None else replace(inner, select=one)
    if len(out) == len(into) - 1:
        return _lacking(output, out, target, into)
    if len(out) == len(into) + 1 and _same_rank(output, out[:-1], target, into) is not None:
        return Pair(output, target, Way.PARTS, 0, choices=out[-1])
    if len(out) == len(into) == 2 and out[0] < into[0] and out[1] == 1 < into[1]:
        return Pair(output, target, Way.FEATURE, 0, select=(1, 0, 0), choices=into[1])
    return None


def _same_rank(output: str, out: Shape, target: str, into: Shape) -> Pair | None:
    differ = [axis for axis, (a, b) in enumerate(zip(out, into, strict=True)) if a != b]
    if not differ:
        return Pair(output, target, Way.FRAME)
    if len(differ) > 1:
        return None
    (axis,) = differ
    got, wanted = out[axis], into[axis]
    many = len(into) > 1
    if axis > 0 and got == 1:
        return None  # one feature, channel or mask for every place
    if len(into) == 2 and into[0] < into[1]:
        way = Way.LINE  # more columns than rows: the rows may be features
    elif many and axis == 0 and len(into) != 3:
        way = Way.SERIES if got < wanted else Way.LONGER
    elif not many or (len(into) == 2 and got > 1) or (axis == 0 and wanted % got == 0):
        way = Way.LINE
    else:
        return None
    if got > wanted:
        return Pair(output, target, way, select=(axis, got - wanted, got))
    return Pair(output, target, way, axis)


def _lacking(output: str, out: Shape, target: str, into: Shape) -> Pair | None:
    if len(into) == 2 and into[1] == 1:
        if out[0] == into[0]:
            return Pair(output, target, Way.FRAME, expand=1)
        if out[0] < into[0]:
            return Pair(output, target, Way.SERIES, 0, expand=1)
        return Pair(output, target, Way.LONGER, expand=1, select=(0, out[0] - into[0], out[0]))
    if len(into) == 2 and into[0] == 1 < into[1] and out[0] < into[1]:
        return Pair(output, target, Way.SERIES, 1, expand=0)
    for axis in range(len(into)):
        if into[:axis] + into[axis + 1 :] == out:
            if into[axis] == 1:
                return Pair(output, target, Way.FRAME, expand=axis)
            if axis == len(into) - 1:
                break
            return Pair(output, target, Way.ROW, axis, expand=axis)
    if len(into) == 2:
        last = None if out[0] <= into[0] else (0, out[0] - into[0], out[0])
        return Pair(output, target, Way.FEATURE, 0, select=last, choices=into[1])
    return None
