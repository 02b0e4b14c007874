"""What changed between a model and a file made from it, by weight and by node, in words.

    stored tensor of the model      in the file: unchanged · other values · decoded by nodes from other tensors · gone
    node of the model               in the file: unchanged · other inputs or attributes · gone
    node of the file                of the model · decodes a weight · shared by several weights · new

Nodes are matched by what they output, tensors by name, so that files of any tool can be compared; short names are
translated by the map that lies beside a file of ours. Only the main graph
is looked at. ONNX only; no runtime.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import TensorProto

from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.emission import names_file, read_names
from tqs_passes.files.model import Model, file_facts, load_model
from tqs_passes.files.tensors import iter_graphs, tensor_array

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Changes:
    """The differences of two files.

    Parameters
    ----------
    lines : tuple of str
        What changed as a whole, in words.
    weights : Table
        Every stored tensor of the source that is not the same in the file.
    nodes : Table
        Nodes by what became of them, and by operator.
    """

    lines: tuple[str, ...]
    weights: Table
    nodes: Table


def changes_of(source: Path, other: Path) -> Changes:
    """Return what changed from one file to another; see `load_model` for the errors."""
    a, b = load_model(source), _named_back(load_model(other), names_file(other))
    stored = {t.name: t for t in b.proto.graph.initializer}
    made = {out: node for node in b.proto.graph.node for out in node.output}
    theirs = {out for node in a.proto.graph.node if node.op_type != "Constant" for out in node.output}
    rows: list[tuple[Cell, ...]] = []
    n_same = 0
    used: dict[str, set[str]] = {}
    for name, tensor in _stored(a).items():
        before = _describe(tensor)
        if name in stored:
            if _same(tensor, a, stored[name], b):
                n_same += 1
                continue
            same_type = tensor.data_type == stored[name].data_type
            what = "other values" if same_type else f"stored as {_describe(stored[name])}"
            rows.append((name, before, what, _bytes(tensor, a), _bytes(stored[name], b)))
        elif name in made and made[name].op_type != "Constant":
            nodes, tensors = _chain(name, made, stored, theirs)
            for node in nodes:
                used.setdefault(node, set()).add(name)
            own = [t for t in tensors if t.startswith(name)] or sorted(tensors)
            operators = " → ".join(dict.fromkeys(made[n].op_type for n in reversed(nodes)))
            kept = ", ".join(_describe(stored[t]) for t in own[:_SHOWN])
            size = sum(_bytes(stored[t], b) for t in own)
            rows.append((name, before, f"decoded by {operators} from {kept}", _bytes(tensor, a), size))
        elif name in made:
            rows.append((name, before, "in a Constant node", _bytes(tensor, a), None))
        else:
            rows.append((name, before, "gone under this name", _bytes(tensor, a), 0))
    columns = ("tensor", "in the source", "in the file", "bytes", "bytes now")
    title = f"Stored tensors that differ; {n_same} are the same"
    return Changes(
        _lines(source, other, a, b), Table("weights", title, columns, tuple(rows)), _node_table(a, b, used)
    )


def _named_back(model: Model, names: Path) -> Model:
    """Return a model whose short names are those of its source again, as the map beside it says, if there is one."""
    if not names.exists():
        return model
    known = read_names(names)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)

    def back(name: str) -> str:
        stem, dot, part = name.partition(".")
        return known.get(name) or (f"{known[stem]}{dot}{part}" if stem in known else name)

    for graph in iter_graphs(proto.graph):
        for node in graph.node:
            for values in (node.input, node.output):
                values[:] = [back(name) for name in values]
        for tensor in graph.initializer:
            tensor.name = back(tensor.name)
    return replace(model, proto=proto)


def _stored(model: Model) -> dict[str, TensorProto]:
    """Return the stored tensors of the main graph, those of Constant nodes under the names of their outputs."""
    found = {t.name: t for t in model.proto.graph.initializer}
    for node in model.proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def _same(one: TensorProto, a: Model, other: TensorProto, b: Model) -> bool:
    if one.data_type != other.data_type or list(one.dims) != list(other.dims):
        return False
    return tensor_array(one, a.folder).tobytes() == tensor_array(other, b.folder).tobytes()


def _bytes(tensor: TensorProto, model: Model) -> int:
    return int(tensor_array(tensor, model.folder).nbytes)


def _describe(tensor: TensorProto) -> str:
    shape = "×".join(map(str, tensor.dims)) or "scalar"
    known = tensor.data_type in TensorProto.DataType.values()
    kind = TensorProto.DataType.Name(tensor.data_type) if known else f"unknown type {tensor.data_type}"
    return f"{kind} {shape}"


def _chain(
    name: str, made: dict[str, onnx.NodeProto], stored: dict[str, TensorProto], theirs: set[str]
) -> tuple[list[str], set[str]]:
    """Return the outputs of the new nodes that make a tensor, nearest first, and the stored tensors they read."""
    nodes: list[str] = []
    tensors: set[str] = set()
    waiting = [name]
    while waiting:
        at = waiting.pop(0)
        if at in stored:
            tensors.add(at)
        elif at in made and at not in nodes and (at == name or at not in theirs):
            nodes.append(at)
            waiting += [i for i in made[at].input if i]
    return nodes, tensors


def _node_table(a: Model, b: Model, used: dict[str, set[str]]) -> Table:
    before = {n.output[0]: n for n in a.proto.graph.node if n.output and n.op_type != "Constant"}
    after = {n.output[0]: n for n in b.proto.graph.node if n.output and n.op_type != "Constant"}
    counts: dict[str, Counter[str]] = {}
    for out, node in after.items():
        if out in before:
            what = "unchanged" if _key(node) == _key(before[out]) else "with other inputs or attributes"
        elif out in used:
            what = "new: decodes one weight" if len(used[out]) == 1 else "new: decodes several weights"
        else:
            what = "new"
        counts.setdefault(what, Counter())[node.op_type] += 1
    for out, node in before.items():
        if out not in after:
            counts.setdefault("gone", Counter())[node.op_type] += 1
    rows = tuple(
        (what, sum(ops.values()), ", ".join(f"{n} {op}" for op, n in ops.most_common()))
        for what, ops in sorted(counts.items())
    )
    return Table("nodes", "Nodes", ("nodes", "number", "operators"), rows)


def _key(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return (node.op_type, node.domain, tuple(node.input), tuple(attributes))


def _lines(source: Path, other: Path, a: Model, b: Model) -> tuple[str, ...]:
    sizes = file_facts(source).n_bytes, file_facts(other).n_bytes
    lines = [f"{sizes[0]:,} → {sizes[1]:,} bytes: {sizes[0] / max(sizes[1], 1):.3g} times smaller"]
    opsets = [{o.domain or "ai.onnx": o.version for o in m.proto.opset_import} for m in (a, b)]
    if opsets[0] != opsets[1]:
        lines.append(f"operator sets {_pairs(opsets[0])} → {_pairs(opsets[1])}")
    if a.proto.ir_version != b.proto.ir_version:
        lines.append(f"IR version {a.proto.ir_version} → {b.proto.ir_version}")
    for kind in ("input", "output"):
        names = [[v.name for v in getattr(m.proto.graph, kind)] for m in (a, b)]
        if names[0] != names[1]:
            lines.append(f"{kind}s {', '.join(names[0])} → {', '.join(names[1])}")
    metadata = [{p.key: p.value for p in m.proto.metadata_props} for m in (a, b)]
    new = [key for key in metadata[1] if metadata[0].get(key) != metadata[1][key]]
    if new:
        lines.append(f"metadata set: {', '.join(new)}")
    elements = [sum(math.prod(t.dims) for t in _stored(m).values()) for m in (a, b)]
    lines.append(f"{elements[0]:,} → {elements[1]:,} stored elements")
    return tuple(lines)


def _pairs(opsets: dict[str, int]) -> str:
    return ", ".join(f"{domain} {version}" for domain, version in sorted(opsets.items()))
