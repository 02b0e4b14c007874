"""Splits packed recurrent weights into one weight per gate, so that gates can be scored and stored apart.

Before → after, for the weights of an LSTM of H units ::

    W [D, 4·H, in] ─▶ LSTM       W.input, W.output, W.forget, W.cell, each [D, H, in] ─▶ Concat(axis 1) ─▶ LSTM
    B [D, 8·H]     ─▶ LSTM       B.input … B.cell, then B.state.input … B.state.cell  ─▶ Concat(axis 1) ─▶ LSTM

    W [in, k·H] ─▶ MatMul (─▶ Add) ─▶ Split     W.1 … W.k ─▶ Concat(axis 1) ─▶ MatMul ─▶ Split

Gates: those of LSTM and GRU in ONNX's order; of a cell made of products, the parts that Split returns, numbered. The
outputs are the same bit for bit. Sources: ONNX operators LSTM, GRU, Split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.scope import bodies
from tqs_passes.graph_pass import PassResult, Skip
from tqs_passes.transforms.slim.storage import constant_of

#: Gates in the order in which ONNX packs them.
GATES: Mapping[str, tuple[str, ...]] = {
    "LSTM": ("input", "output", "forget", "cell"),
    "GRU": ("update", "reset", "hidden"),
}
_STANDARD = ("", "ai.onnx")
_MOST_PARTS = 64


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a weight is cut: the axis, and the names of its equal parts."""

    axis: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SplitGates:
    """The pass (see the module docstring).

    Parameters
    ----------
    labels : mapping of str to str
        Weights that may be split, and the labels that the names of their parts begin with.
    """

    labels: Mapping[str, str]

    name: ClassVar[str] = "split-gates"

    def apply(self, model: Model) -> PassResult:
        """Return the model with split weights, or the model itself if it has none to split."""
        stored = {t.name: t for t in model.proto.graph.initializer}
        shapes = {n: tuple(stored[n].dims) for n in self.labels if n in stored}
        graphs = list(_graphs(model.proto.graph))
        known = _constants(graphs, model)
        cuts: dict[str, _Cut | None] = {}
        for graph in graphs:
            for node in graph.node:
                for weight, found in _cuts(node, graph, shapes, known):
                    # A weight that readers cut differently stays whole.
                    cuts[weight] = found if cuts.get(weight, found) == found else None
        taken = set(stored) | {i.name for g in graphs for i in g.input}
        taken |= {n for g in graphs for node in g.node for n in node.output}
        parts: dict[str, list[onnx.TensorProto]] = {}
        joins: list[onnx.NodeProto] = []
        skipped: list[Skip] = []
        for weight, cut in cuts.items():
            label = self.labels[weight]
            if cut is None:
                skipped.append(Skip(label, "its readers cut it differently"))
                continue
            names = [f"{label}.{part}" for part in cut.parts]
            if not taken.isdisjoint(names):
                skipped.append(Skip(label, "the names of its parts are taken"))
                continue
            taken.update(names)
            values = np.split(tensor_array(stored[weight], model.folder), len(names), cut.axis)
            parts[weight] = [
                numpy_helper.from_array(np.ascontiguousarray(v), n)
                for v, n in zip(values, names, strict=True)
            ]
            joins.append(helper.make_node("Concat", names, [weight], axis=cut.axis))
        if not parts:
            return PassResult(model, (), tuple(skipped))
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        graph, before = proto.graph, model.proto.graph
        for field in ("initializer", "node", "input"):
            graph.ClearField(field)
        graph.initializer.extend(t for old in before.initializer for t in parts.get(old.name, [old]))
        graph.node.extend([*joins, *before.node])
        graph.input.extend(
            i for i in before.input if i.name not in parts
        )  # before IR 4 an initializer is an input
        return PassResult(replace(model, proto=proto), tuple(parts), tuple(skipped))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for _, body in bodies(node):
            yield from _graphs(body)


def _cuts(
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    shapes: Mapping[str, tuple[int, ...]],
    known: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, _Cut]]:
    """Yield the weights that a node reads by gates, and how they are cut."""
    if node.domain not in _STANDARD:
        return
    if node.op_type in GATES:
        gates = GATES[node.op_type]
        both = (*gates, *(f"state.{gate}" for gate in gates))
        for name, parts in zip(node.input[1:4], (gates, gates, both), strict=False):
            if name in shapes:
                yield name, _Cut(1, parts)
        return
    n_parts = _n_parts(node.output[0], graph, known) if node.op_type in ("MatMul", "Gemm", "Add") else 0
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    for i, name in enumerate(node.input):
        if i == 0 and node.op_type != "Add":  # a left operand has rows of data, not gates
            continue
        rank = len(shapes.get(name, ()))
        axis = 0 if rank == 1 or (rank == 2 and turned and i == 1) else 1
        if rank in (1, 2) and n_parts > 1 and shapes[name][axis] % n_parts == 0:
            yield name, _Cut(axis, tuple(str(i + 1) for i in range(n_parts)))


def _n_parts(value: str, graph: onnx.GraphProto, known: Mapping[str, tuple[int, ...]]) -> int:
    """Return into how many equal parts Split cuts a value along its last axis, also after Adds; 0 if it does not."""
    readers = [n for n in graph.node if value in n.input]
    if len(readers) != 1:
        return 0
    reader = readers[0]
    if reader.op_type == "Add":
        return _n_parts(reader.output[0], graph, known)
    if reader.op_type != "Split" or reader.input[0] != value:
        return 0
    last = any(a.name == "axis" and a.i != 0 for a in reader.attribute)
    sizes = next((tuple(a.ints) for a in reader.attribute if a.name == "split"), ())
    if len(reader.input) > 1 and reader.input[1]:
        sizes = known.get(reader.input[1], (0, 1))
    return len(reader.output) if last and len(set(sizes)) <= 1 else 0


def _constants(graphs: Sequence[onnx.GraphProto], model: Model) -> dict[str, tuple[int, ...]]:
    """Return the values of the small int64 vectors that graphs store."""
    tensors = [(t.name, t) for graph in graphs for t in graph.initializer]
    made = [(node.output[0], constant_of(node)) for graph in graphs for node in graph.node if node.output]
    return {
        name: tuple(int(v) for v in tensor_array(tensor, model.folder))
        for name, tensor in (*tensors, *made)
        if tensor is not None
        and tensor.data_type == onnx.TensorProto.INT64
        and len(tensor.dims) == 1
        and tensor.dims[0] <= _MOST_PARTS
    }
