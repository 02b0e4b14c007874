"""Follow a weight's axes through nodes that only move values, and find the channel axis of each reader.

A track maps each axis of the moved tensor to the axis of the stored weight that it came from::

    W [768, 64] --Transpose(1, 0)--> [64, 768]   axes (1, 0)
                --Reshape(64, 12, 64)--> [64, 12, 64]   axes (1, None, None): the split axis is lost
                --MatMul B: last axis--> None

Channel axes (ONNX operators): MatMul B last, A last but one; Gemm by transA and transB; Conv 0; ConvTranspose 1, or 0
when each group has one output channel (`conv_groups`); LSTM, GRU and RNN W and R 1; Gather its own axis. All other
readers, and all one-dimensional weights, have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

import onnx

from tqs_passes.graph.scope import Site, Value

#: Dimensions of a tensor; None for an unknown one.
Dims = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Track:
    """The axes of a weight at one point on the path to a reader.

    Parameters
    ----------
    axes : tuple of (int or None), or None
        The axis of the stored weight for each axis here, None where it is lost; None for an unknown rank.
    dims : tuple of (int or None)
        Dimensions here; undefined when `axes` is None.
    through : tuple of str
        Operators passed so far.
    """

    axes: tuple[int | None, ...] | None
    dims: Dims
    through: tuple[str, ...] = ()

    def merged(self, other: Track) -> Track:
        """Return what this track and another track to the same value have in common."""
        if self.axes is None or other.axes is None or len(self.axes) != len(other.axes):
            return replace(self, axes=None, dims=())
        axes = tuple(a if a == b else None for a, b in zip(self.axes, other.axes, strict=True))
        dims = tuple(a if a == b else None for a, b in zip(self.dims, other.dims, strict=True))
        return replace(self, axes=axes, dims=dims)


@dataclass(frozen=True, slots=True)
class Known:
    """Facts about values that are known without running the model.

    Parameters
    ----------
    ints : Callable
        Maps a value to its stored integers, or to None when they are not stored.
    dims : Callable
        Maps a value to its dimensions, or to None when its rank is unknown.
    """

    ints: Callable[[Value | None], list[int] | None]
    dims: Callable[[Value | None], Dims | None]


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _attribute_ints(node: onnx.NodeProto, name: str) -> list[int] | None:
    return next((list(a.ints) for a in node.attribute if a.name == name), None)


def _axis(value: int, rank: int) -> int | None:
    axis = value + rank if value < 0 else value
    return axis if 0 <= axis < rank else None


def moved(site: Site, track: Track, known: Known) -> Track | None:
    """Return the track after a node that moves its first input; None when the node computes with it.

    All outputs of `Split` share one track. A node with unknown arguments keeps only the axes that certainly survive.
    """
    rule = _RULES.get(site.op)
    if rule is None:
        return None
    through = (*track.through, site.node.op_type)
    if track.axes is None:
        return replace(track, through=through)
    found = rule(site, track.axes, track.dims, known)
    if found is None:
        return Track(None, (), through)
    return Track(found[0], found[1], through)


_Found = tuple[tuple[int | None, ...], Dims] | None


def _same(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    return axes, dims


def _transpose(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    order: list[int] = _attribute_ints(site.node, "perm") or list(range(len(axes)))[::-1]
    if sorted(order) != list(range(len(axes))):
        return None
    return tuple(axes[i] for i in order), tuple(dims[i] for i in order)


def _output_dims(site: Site, known: Known) -> Dims | None:
    return known.dims((site.scope, site.node.output[0])) if site.node.output else None


def _reshape(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    wanted = known.ints(site.inputs[1]) if len(site.inputs) > 1 else _attribute_ints(site.node, "shape")
    target: Dims | None
    if wanted is not None:
        target = _reshape_dims(wanted, dims, allow_zero=bool(attribute(site.node, "allowzero", 0)))
    else:
        target = _output_dims(site, known)
    return None if target is None else (surviving(axes, dims, target), target)


def _reshape_dims(wanted: Sequence[int], dims: Dims, *, allow_zero: bool) -> Dims:
    target: list[int | None] = []
    for position, dim in enumerate(wanted):
        if dim == 0 and not allow_zero:
            target.append(dims[position] if position < len(dims) else None)
        else:
            target.append(None if dim < 0 else dim)
    if target.count(None) == 1 and None not in dims:
        rest = math.prod(d for d in target if d is not None)
        total = math.prod(d for d in dims if d is not None)
        target[target.index(None)] = total // rest if rest else 0
    return tuple(target)


def surviving(axes: Sequence[int | None], dims: Dims, target: Dims) -> tuple[int | None, ...]:
    """Return the weight axis of each axis of a reshaped tensor; None where it was lost.

    An axis survives when it is neither split nor joined: its length and the number of values before it stay equal.

    Examples
    --------
    >>> surviving((0, 1), (6, 4), (2, 3, 4))
    (None, None, 1)
    """
    if None in dims or None in target:
        return (None,) * len(target)
    before = [d for d in dims if d is not None]
    after = [d for d in target if d is not None]
    place = {
        (start, dim): axis
        for axis, dim, start in zip(axes, before, accumulate(before, mul, initial=1), strict=False)
        if dim > 1
    }
    starts = accumulate(after, mul, initial=1)
    return tuple(place.get((start, dim)) for dim, start in zip(after, starts, strict=False))


def _flatten(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    given = attribute(site.node, "axis", 1)
    at = given + len(dims) if given < 0 else given
    if not 0 <= at <= len(dims):
        return None

    def length(part: Dims) -> int | None:
        return None if None in part else math.prod(d for d in part if d is not None)

    target = (length(dims[:at]), length(dims[at:]))
    return surviving(axes, dims, target), target


def _axes_argument(site: Site, known: Known) -> list[int] | None:
    given = _attribute_ints(site.node, "axes")
    return given if given is not None else known.ints(site.inputs[1]) if len(site.inputs) > 1 else None


def _unsqueeze(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    new = _axes_argument(site, known)
    if new is None:
        return None
    rank = len(axes) + len(new)
    at = {a + rank if a < 0 else a for a in new}
    if len(at) != len(new) or not all(0 <= a < rank for a in at):
        return None
    old = iter(zip(axes, dims, strict=True))
    pairs = [(None, 1) if i in at else next(old) for i in range(rank)]
    return tuple(a for a, _ in pairs), tuple(d for _, d in pairs)


def _squeeze(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    given = _axes_argument(site, known)
    if given is None and (len(site.inputs) > 1 or None in dims):
        return None
    ones = (
        [i for i, d in enumerate(dims) if d == 1] if given is None else [_axis(a, len(axes)) for a in given]
    )
    kept = [i for i in range(len(axes)) if i not in ones]
    return tuple(axes[i] for i in kept), tuple(dims[i] for i in kept)


def _gather(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    at = _axis(attribute(site.node, "axis", 0), len(axes))
    index = known.dims(site.inputs[1])
    if at is None or index is None:
        return None
    picked = (axes[at],) if len(index) == 1 else (None,) * len(index)
    return (*axes[:at], *picked, *axes[at + 1 :]), (*dims[:at], *index, *dims[at + 1 :])


def _gather_nd(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    index = known.dims(site.inputs[1])
    if not index or index[-1] is None:
        return None
    used = attribute(site.node, "batch_dims", 0) + index[-1]
    return (*((None,) * (len(index) - 1)), *axes[used:]), (*index[:-1], *dims[used:])


def _slice(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    rank = len(axes)
    if len(site.inputs) > 1:
        given = [known.ints(value) for value in site.inputs[1:]]
    else:
        given = [_attribute_ints(site.node, name) for name in ("starts", "ends", "axes")]
    given += [None] * (4 - len(given))
    starts, ends = given[0], given[1]
    if starts is None or ends is None or len(starts) != len(ends):
        return axes, (None,) * rank
    at = given[2] if given[2] is not None else list(range(len(starts)))
    steps = given[3] if given[3] is not None else [1] * len(starts)
    cut = list(dims)
    for start, end, axis, step in zip(starts, ends, at, steps, strict=False):
        place = _axis(axis, rank)
        if place is None or step == 0:
            return axes, (None,) * rank
        dim = cut[place]
        cut[place] = None if dim is None else len(range(*slice(start, end, step).indices(dim)))
    return axes, tuple(cut)


def _expand(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    wanted = known.ints(site.inputs[1]) if len(site.inputs) > 1 else None
    shape: Dims | None = tuple(wanted) if wanted is not None else _output_dims(site, known)
    if shape is None:
        return None
    rank = max(len(shape), len(axes))
    old = [(None, 1)] * (rank - len(axes)) + list(zip(axes, dims, strict=True))
    new = (1,) * (rank - len(shape)) + shape
    pairs = [_expanded(axis, dim, want) for (axis, dim), want in zip(old, new, strict=True)]
    return tuple(a for a, _ in pairs), tuple(d for _, d in pairs)


def _expanded(axis: int | None, dim: int | None, want: int | None) -> tuple[int | None, int | None]:
    return (None, want) if dim == 1 and want != 1 else (axis, dim)


def _along(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    """Handle Concat and Split: only the length along one axis changes."""
    at = _axis(attribute(site.node, "axis", 0), len(axes))
    if at is None:
        return None
    out = _output_dims(site, known)
    length = out[at] if site.op == "Concat" and out is not None and len(out) == len(dims) else None
    return axes, (*dims[:at], length, *dims[at + 1 :])


def _pad(site: Site, axes: tuple[int | None, ...], dims: Dims, known: Known) -> _Found:
    return axes, (None,) * len(dims)


_Rule = Callable[[Site, tuple[int | None, ...], Dims, Known], _Found]
_RULES: dict[str, _Rule] = {
    "Identity": _same,
    "Cast": _same,
    "CastLike": _same,
    "QuantizeLinear": _same,
    "DequantizeLinear": _same,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Slice": _slice,
    "Expand": _expand,
    "Concat": _along,
    "Split": _along,
    "Pad": _pad,
}
#: Operators that only move values of their first input (Concat: of every input).
MOVERS = frozenset(_RULES)


def conv_groups(site: Site, input_index: int) -> int:
    """Return how many groups of output channels lie one after another along axis 0 of a reader's input.

    The weight of a ConvTranspose is ``[group · in, out, *kernel]``: channel ``out`` of group g is ``w[g · in:, out]``.
    Everywhere else, and in a ConvTranspose without groups, the answer is 1.
    """
    return attribute(site.node, "group", 1) if site.op == "ConvTranspose" and input_index == 1 else 1


def channel_axis(site: Site, input_index: int, dims: Dims) -> int | None:
    """Return the channel axis of a reader's input of these dimensions; None when it has none."""
    node, op, rank = site.node, site.op, len(dims)
    if rank < 2:
        return None
    if op in ("MatMul", "com.microsoft.FusedMatMul") and input_index in (0, 1):
        turned = attribute(node, "transA" if input_index == 0 else "transB", 0) != 0
        return rank - 2 if (input_index == 0) != turned else rank - 1
    if op in ("Gemm", "com.microsoft.FusedGemm") and input_index in (0, 1):
        turned = attribute(node, "transA" if input_index == 0 else "transB", 0) != 0
        return int((input_index == 1) != turned)
    if op in ("LSTM", "GRU", "RNN") and input_index in (1, 2):
        return 1
    if op == "Gather" and input_index == 0:
        return _axis(attribute(node, "axis", 0), rank)
    if op == "ConvTranspose" and input_index == 1:
        return 0 if conv_groups(site, input_index) > 1 and dims[1] == 1 else 1
    fixed = {"Conv": 0, "com.microsoft.FusedConv": 0, "DeformConv": 0}
    return fixed.get(op) if input_index == 1 else None
