"""Finds the places where a weight is multiplied, and the tensors that it is multiplied with.

A matrix may reach its reader through Transpose and Identity, or as a part of a Concat along the axis of the outputs,
whose slices are rounded independently (`tqs_passes.transforms.split_gates`). Readers in the body of a Loop or Scan
count, with their inputs of all turns; those in a branch of an If do not, because nothing says which calls take it. The
rows of a table that Gather reads are read one by one: no other row can compensate the error of one, and data say
nothing about it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from tqs_onnx.rounding.contraction_view import TransposedConvView, einsum_view
from tqs_onnx.rounding.recurrent_view import InputView, ResetStateView, StateView
from tqs_onnx.rounding.view import ConvView, MatrixView, View
from tqs_passes.graph.scope import bodies, defined_names
from tqs_passes.transforms.reveal import revealed_in_body, revealed_states

_STANDARD = ("", "ai.onnx")
#: Recurrent operators.
GATES = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a weight is multiplied.

    Parameters
    ----------
    position : int
        Index of the node in the main graph.
    activation : str
        Name of the tensor that is multiplied with the weight, or `revealed` name of a hidden one.
    view : View
    also : tuple of str
        Further tensors that the view needs, weights among them; an empty name stands for an absent one.
    """

    position: int
    activation: str
    view: View
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Uses:
    """All places where a weight is read.

    Parameters
    ----------
    position : int
        Index of the first node that reads it; the number of nodes if no node of the main graph reads it.
    uses : tuple of Use
        Empty if `why_not` is set.
    why_not : str
        Why the weight is rounded without data; empty if it is not.
    """

    position: int
    uses: tuple[Use, ...] = ()
    why_not: str = ""


@dataclass(slots=True)
class _Found:
    n_readers: int = 0
    uses: list[Use] = field(default_factory=list[Use])
    position: int | None = None
    why_not: str = ""


def uses_of(
    graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]], n_readers: dict[str, int]
) -> dict[str, Uses]:
    """Return where each weight is multiplied, and with what.

    Parameters
    ----------
    graph : onnx.GraphProto
        Main graph of the lifted model.
    shapes : dict of str to tuple of int
        Shapes of the weights.
    n_readers : dict of str to int
        Number of readers that the survey found; a reader elsewhere (in a branch, after a Reshape) excludes data-aware
        rounding.
    """
    found = {name: _Found() for name in shapes}
    # Tensor → (weight, whether its last two axes are swapped against the stored ones)
    moved = {name: (name, False) for name in shapes}
    # Tensor → (its parts, the axis along which they are joined)
    joined: dict[str, tuple[tuple[str, ...], int]] = {}
    for position, node in enumerate(graph.node):
        if not _join(node, shapes, joined):
            _follow(node, position, moved, shapes, found, joined)
        if node.op_type in ("Loop", "Scan") and node.domain in _STANDARD:
            for _, body in bodies(node):
                own = defined_names(body)
                inside = {name: weight for name, weight in moved.items() if name not in own}
                outside = {name: parts for name, parts in joined.items() if name not in own}
                for inner in body.node:
                    _follow(inner, position, inside, shapes, found, outside, own)
    return {name: _settled(entry, n_readers[name], len(graph.node)) for name, entry in found.items()}


def _follow(
    node: onnx.NodeProto,
    position: int,
    moved: dict[str, tuple[str, bool]],
    shapes: dict[str, tuple[int, ...]],
    found: dict[str, _Found],
    joined: Mapping[str, tuple[tuple[str, ...], int]],
    own: Collection[str] | None = None,
) -> None:
    """Record how a node reads weights; `own` are the names that its body defines, None in the main graph."""
    for index, name in enumerate(node.input):
        for weight in joined[name][0] if name in joined else ():
            use = _use(node, index, position, False, shapes[weight])
            if isinstance(use, Use) and _output_axis(use.view, shapes[weight]) != joined[name][1]:
                use = f"no rule for parts joined along axis {joined[name][1]} for {node.op_type}"
            _record(use, node, position, weight, shapes, found, own)
        if name not in moved:
            continue
        weight, swapped = moved[name]
        entry = found[weight]
        entry.position = position if entry.position is None else entry.position
        behind = _behind(node, len(shapes[weight]))
        if behind is not None:
            moved[node.output[0]] = (weight, swapped ^ behind)
            continue
        _record(
            _use(node, index, position, swapped, shapes[weight]), node, position, weight, shapes, found, own
        )


def _record(
    use: Use | str,
    node: onnx.NodeProto,
    position: int,
    weight: str,
    shapes: dict[str, tuple[int, ...]],
    found: dict[str, _Found],
    own: Collection[str] | None,
) -> None:
    """Add a use of a weight, or the reason why there is none."""
    entry = found[weight]
    entry.n_readers += 1
    entry.position = position if entry.position is None else entry.position
    if own is not None and isinstance(use, Use):
        use = _inside(use, own, shapes[weight], node)
    if isinstance(use, str):
        entry.why_not = entry.why_not or use
    else:
        entry.uses.append(use)


def _join(
    node: onnx.NodeProto,
    shapes: Mapping[str, tuple[int, ...]],
    joined: dict[str, tuple[tuple[str, ...], int]],
) -> bool:
    """Return whether a node joins weights, and nothing else, into one tensor; note it."""
    if node.op_type != "Concat" or node.domain not in _STANDARD or not all(n in shapes for n in node.input):
        return False
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    joined[node.output[0]] = (tuple(node.input), axis % max(1, len(shapes[node.input[0]])))
    return True


def _output_axis(view: View, shape: tuple[int, ...]) -> int | None:
    """Return the axis of a weight whose slices are rounded independently; None if a part cannot be told apart."""
    match view:
        case InputView() | StateView():
            return 1
        case MatrixView(out_first):
            return len(shape) - (2 if out_first else 1)
        case _:
            return None


def _inside(use: Use, own: Collection[str], shape: tuple[int, ...], node: onnx.NodeProto) -> Use | str:
    """Return a use in the body of a Loop or Scan, whose activation is collected over the turns."""
    if not isinstance(use.view, MatrixView) or len(shape) > 2:
        return f"no rule for {node.op_type} in a body"
    if use.activation not in own:
        return use
    return replace(use, activation=revealed_in_body(use.position, use.activation))


def _settled(entry: _Found, n_readers: int, n_nodes: int) -> Uses:
    position = n_nodes if entry.position is None else entry.position
    why = entry.why_not
    if not why and entry.n_readers < max(n_readers, 1):
        why = "a reader lies in a body or behind nodes that move values"
    if not why and len({_split(use.view) for use in entry.uses}) > 1:
        why = "its readers disagree on which axis holds the outputs"
    return Uses(position, (), why) if why else Uses(position, tuple(entry.uses))


def _split(view: View) -> tuple[object, ...]:
    """Return the properties of a view that determine how it splits a weight into matrices."""
    match view:
        case MatrixView(out_first):
            return "MatMul", out_first
        case ConvView(groups) | TransposedConvView(groups):
            return type(view).__name__, groups
        case InputView() | StateView():
            return ("recurrent",)
        case _:
            return (view,)


def _behind(node: onnx.NodeProto, rank: int) -> bool | None:
    """Return whether a node that only moves a matrix swaps its axes; None for any other node."""
    if node.domain not in _STANDARD:
        return None
    if node.op_type == "Identity":
        return False
    if node.op_type == "Transpose" and rank == 2:
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
        return perm == [1, 0]
    return None


def _use(node: onnx.NodeProto, index: int, position: int, swapped: bool, shape: tuple[int, ...]) -> Use | str:
    """Return the use of a weight by a node, or the reason why there is no rule for it."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.domain not in _STANDARD:
        return f"no rule for {node.domain}.{node.op_type}"
    if node.op_type == "MatMul" and len(shape) >= 2:
        # As input B the weight ends in [in, out]; as input A in [out, in].
        return Use(position, node.input[1 - index], MatrixView((index == 0) ^ swapped, index == 1))
    if node.op_type == "Gemm" and index < 2 and len(shape) == 2:
        flipped = bool(attributes.get(("transA", "transB")[index], 0))
        other = bool(attributes.get(("transB", "transA")[index], 0))
        view = MatrixView((index == 0) ^ swapped ^ flipped, (index == 1) ^ other)
        return Use(position, node.input[1 - index], view)
    if node.op_type == "Conv" and index == 1 and not swapped:
        auto_pad = attributes.get("auto_pad", b"NOTSET")
        conv = ConvView(
            int(attributes.get("group", 1)),
            tuple(attributes.get("strides", ())),
            tuple(attributes.get("dilations", ())),
            tuple(attributes.get("pads", ())),
            auto_pad.decode() if isinstance(auto_pad, bytes) else str(auto_pad),
        )
        return Use(position, node.input[0], conv)
    if node.op_type == "ConvTranspose" and index == 1 and not swapped:
        return _transposed_conv(node, position, attributes)
    if node.op_type == "Einsum" and len(node.input) == 2 and not swapped:
        equation = attributes.get("equation", b"").decode()
        einsum = einsum_view(equation, index, shape)
        return Use(position, node.input[1 - index], einsum) if einsum else f"no rule for Einsum {equation!r}"
    if node.op_type in GATES and index in (1, 2) and not swapped and len(shape) == 3:
        return _recurrent(node, index, position, attributes)
    return f"no rule for {node.op_type}"


def _transposed_conv(node: onnx.NodeProto, position: int, attributes: dict[str, Any]) -> Use | str:
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes:
        return "no rule for ConvTranspose with automatic padding"
    view = TransposedConvView(
        int(attributes.get("group", 1)),
        *(tuple(attributes.get(name, ())) for name in ("strides", "dilations", "pads", "output_padding")),
    )
    return Use(position, node.input[0], view)


def _recurrent(node: onnx.NodeProto, index: int, position: int, attributes: dict[str, Any]) -> Use | str:
    names = [*node.input, *[""] * (8 - len(node.input))]
    if names[4] or attributes.get("layout", 0):
        return f"no rule for {node.op_type} with sequence lengths or the batch first"
    direction = attributes.get("direction", b"forward").decode()
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    if index == 1:
        return Use(position, names[0], InputView(len(backward)))
    states = node.output[0] if node.output and node.output[0] else revealed_states(position)
    if node.op_type != "GRU" or attributes.get("linear_before_reset", 0):
        return Use(position, states, StateView(backward), (names[5],))
    if "activations" in attributes or "clip" in attributes:
        return "no rule for GRU with other activations"
    return Use(position, states, ResetStateView(backward), (names[5], *names[:4]))
