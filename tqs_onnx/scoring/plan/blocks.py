"""Group weights into blocks, which are scored (and may be assigned) together.

============= =======================================================================================================
rule          the weights of a block
============= =======================================================================================================
pattern:R     weights whose labels give regex R the same match (the same groups, if it has any)
nodes:N       N consecutive weights, in the order of the nodes that read them
nodes:A-B,C-D weights that are first read by nodes A to B, counted from 0 without
              Constant nodes, both ends included
stored:N      N consecutive weights, in the order of the file (the paper's Pangu: 223 tensors, 28 blocks of 8)
prefix:D      weights whose labels share their first D parts, split at ``.`` and ``/``
auto          weights of one chain between residual joins: the Adds of two values that both depend on fed values are
              removed from the graph, and each connected part that remains is a chain (networkx)
============= =======================================================================================================

A weight that a rule leaves out forms its own block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import networkx as nx
import onnx

from tqs_onnx.scoring.plan.perturbation import Perturbation
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.graph.flow import SHAPE_ONLY
from tqs_passes.weights import Weight

_JOINS = frozenset({"Add", "Sum"})


def blocks_of(model: Model, weights: tuple[Weight, ...], rule: str) -> tuple[Perturbation, ...]:
    """Return the blocks of `weights` for a rule, in the order of their first weights.

    Raises
    ------
    InputError
        The rule is not in the table above, or its regex or number is invalid.
    """
    kind, _, argument = rule.partition(":")
    if kind == "pattern" and argument:
        keys = _by_pattern(weights, argument)
    elif kind == "nodes" and argument.isdecimal() and int(argument) > 0:
        keys = _by_nodes(model.proto.graph, weights, int(argument))
    elif kind == "nodes" and re.fullmatch(r"\d+-\d+(,\d+-\d+)*", argument, re.ASCII):
        keys = _by_ranges(model.proto.graph, weights, argument)
    elif kind == "stored" and argument.isdecimal() and int(argument) > 0:
        keys = {w.name: f"block{i // int(argument):03d}" for i, w in enumerate(weights)}
    elif kind == "prefix" and argument.isdecimal() and int(argument) > 0:
        keys = {w.name: _prefix(w.label, int(argument)) for w in weights}
    elif rule == "auto":
        keys = _by_chain(model.proto.graph, weights)
    else:
        raise InputError(
            f"{rule!r} is not a rule for blocks",
            where="score.blocks.rule",
            todo="Write pattern:REGEX, nodes:N, nodes:A-B,C-D, stored:N, prefix:DEPTH or auto",
        )
    members: dict[str, list[Weight]] = {}
    for weight in weights:
        alone = weight.label if weight.label not in keys.values() else weight.name
        members.setdefault(keys.get(weight.name, alone), []).append(weight)
    return tuple(Perturbation(name, tuple(found)) for name, found in members.items())


def _by_pattern(weights: Iterable[Weight], pattern: str) -> dict[str, str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"pattern {pattern!r} is not a regular expression ({error})",
            where="score.blocks.rule",
            todo="Write e.g. 'pattern:layers\\.\\d+'",
        ) from error
    found = {w.name: regex.search(w.label) for w in weights}
    labels = {name: ".".join(m.groups("")) or m.group(0) for name, m in found.items() if m is not None}
    keys = {name: label for name, label in labels.items() if label}
    if not keys:
        raise InputError(
            f"pattern {pattern!r} matches no weight",
            where="score.blocks.rule",
            todo="tqs inspect lists the labels",
        )
    return keys


def _by_nodes(graph: onnx.GraphProto, weights: tuple[Weight, ...], n: int) -> dict[str, str]:
    first = _first_readers(graph)
    ordered = sorted(weights, key=lambda w: (first.get(w.name, len(graph.node)), weights.index(w)))
    return {w.name: f"block{i // n:03d}" for i, w in enumerate(ordered)}


def _by_ranges(graph: onnx.GraphProto, weights: tuple[Weight, ...], text: str) -> dict[str, str]:
    ranges = [tuple(map(int, part.split("-"))) for part in text.split(",")]
    for (a, b), (c, _) in zip(ranges, [*ranges[1:], (ranges[-1][1] + 1, 0)], strict=True):
        if not a <= b < c:
            raise InputError(
                f"nodes:{text}: {a}-{b} runs backwards or into the next range",
                where="score.blocks.rule",
                todo="Write ranges in order that do not overlap, e.g. nodes:0-119,120-245",
            )
    first = _first_readers(graph)
    found = {w.name: f"nodes{a}-{b}" for w in weights for a, b in ranges if a <= first.get(w.name, -1) <= b}
    if not found:
        raise InputError(
            f"nodes:{text} contains no weight",
            where="score.blocks.rule",
            todo=f"The graph has {len(graph.node)} nodes, counted from 0: choose ranges that read weights",
        )
    return found


def _prefix(label: str, depth: int) -> str:
    parts = [p for p in re.split(r"[./]", label) if p]
    return ".".join(parts[:depth]) or label


def _first_readers(graph: onnx.GraphProto) -> dict[str, int]:
    """Map every name to the index of the first main-graph node that reads it, also from inside its bodies."""
    first: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in _read(node):
            first.setdefault(name, index)
    return first


def _read(node: onnx.NodeProto) -> Iterable[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.type == onnx.AttributeProto.GRAPH else ():
            yield from _read(inner)


def _by_chain(graph: onnx.GraphProto, weights: tuple[Weight, ...]) -> dict[str, str]:
    flow = _dynamic_nodes(graph)
    chains: nx.Graph[int] = nx.Graph()
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    joins = {i for i in flow if _is_join(graph.node[i], flow, producer, graph)}
    chains.add_nodes_from(flow - joins)
    for index in flow - joins:
        for name in _read(graph.node[index]):
            source = producer.get(name)
            if source in flow and source not in joins and graph.node[source].op_type not in SHAPE_ONLY:
                chains.add_edge(source, index)
    ordered = sorted(sorted(chain) for chain in nx.connected_components(chains))
    number = {index: i for i, chain in enumerate(ordered) for index in chain}
    reached = _reaching(graph, flow)
    places = {w.name: number.get(reached.get(w.name, -1)) for w in weights}
    used = {place: i for i, place in enumerate(sorted({p for p in places.values() if p is not None}))}
    return {name: f"chain{used[place]:03d}" for name, place in places.items() if place is not None}


def _dynamic_nodes(graph: onnx.GraphProto) -> set[int]:
    """Return the nodes that depend on fed values."""
    stored = {t.name for t in graph.initializer}
    live = {i.name for i in graph.input if i.name not in stored}
    found: set[int] = set()
    for index, node in enumerate(graph.node):  # topological order
        if any(name in live for name in _read(node)):
            found.add(index)
            live.update(node.output)
    return found


def _is_join(
    node: onnx.NodeProto, flow: set[int], producer: Mapping[str, int], graph: onnx.GraphProto
) -> bool:
    fed = {i.name for i in graph.input} - {t.name for t in graph.initializer}
    live = [name for name in node.input if name in fed or producer.get(name) in flow]
    return node.op_type in _JOINS and len(live) > 1


def _reaching(graph: onnx.GraphProto, flow: set[int]) -> dict[str, int]:
    """Map every value to the first node of `flow` that it reaches through nodes outside `flow`."""
    reached: dict[str, int] = {}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        place = index if index in flow else next((reached[o] for o in node.output if o in reached), None)
        if place is not None:
            reached.update(dict.fromkeys(_read(node), place))
    return reached
