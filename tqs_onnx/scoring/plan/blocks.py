"""Put weights together into blocks, which are scored (and may be assigned) together.

============= =======================================================================================================
rule          a block is
============= =======================================================================================================
pattern:R     the weights whose labels give regex R the same match (its groups, where it has some)
nodes:N       N weights in a row, in the order of the nodes that read them
nodes:A-B,C-D the weights that are first read by nodes A to B, counted from 0 without
              Constant nodes, both ends included
stored:N      N weights in a row, in the order of the file (the paper's Pangu: 223 tensors, 28 blocks of 8)
prefix:D      the weights whose labels share their first D parts, split at ``.`` and ``/``
auto          the weights of one chain between residual joins: the Adds of two values that both depend on what is fed
              are cut out of the graph, and what hangs together without them is a chain (networkx)
============= =======================================================================================================

A weight that a rule leaves out is a block of its own.
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
    """Return the blocks of `weights` by a rule, in the order of their first weights.

    Raises
    ------
    InputError
        The rule is not one of the table above, or its regex or number is wrong.
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
            f"--blocks {rule!r} is no rule for blocks",
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
            f"--blocks pattern {pattern!r} is no regular expression ({error})",
            todo="Write e.g. 'pattern:layers\\.\\d+'",
        ) from error
    found = {w.name: regex.search(w.label) for w in weights}
    labels = {name: ".".join(m.groups("")) or m.group(0) for name, m in found.items() if m is not None}
    keys = {name: label for name, label in labels.items() if label}
    if not keys:
        raise InputError(f"--blocks pattern {pattern!r} matches no weight", todo="See tqs inspect")
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
                f"--blocks nodes:{text}: {a}-{b} runs backwards or into the next range",
                todo="Write ranges in order that do not overlap, e.g. nodes:0-119,120-245",
            )
    first = _first_readers(graph)
    found = {w.name: f"nodes{a}-{b}" for w in weights for a, b in ranges if a <= first.get(w.name, -1) <= b}
    if not found:
        raise InputError(
            f"--blocks nodes:{text} holds no weight", todo=f"The graph has {len(graph.node)} nodes, from 0"
        )
    return found


def _prefix(label: str, depth: int) -> str:
    parts = [p for p in re.split(r"[./]", label) if p]
    return ".".join(parts[:depth]) or label


def _first_readers(graph: onnx.GraphProto) -> dict[str, int]:
    """Return for every name the index of the first node of the main graph that reads it, in bodies too."""
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
    """Return the nodes that depend on what is fed."""
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
    """Return for every value the first node of `flow` that it reaches through nodes outside it."""
    reached: dict[str, int] = {}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        place = index if index in flow else next((reached[o] for o in node.output if o in reached), None)
        if place is not None:
            reached.update(dict.fromkeys(_read(node), place))
    return reached
