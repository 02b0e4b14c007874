"""Resolve names through If, Loop and Scan bodies to the graph that defines them.

A body may read every name of its enclosing graphs; a name that it defines again hides the outer one. A value
is therefore a pair (scope, name): scope 0 is the main graph, and every body has its own scope.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

#: A value: the number of the graph that defines it, and its name in that graph.
Value = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Site:
    """One node and its place in the model.

    Parameters
    ----------
    node : onnx.NodeProto
    scope : int
        Number of its graph.
    label : str
        Its name, or `#<index>` when it has none; inside bodies `<outer>/<attribute>/<inner>`.
    inputs : tuple of (Value or None)
        The value that each input refers to; None for an omitted or undefined one.
    """

    node: onnx.NodeProto
    scope: int
    label: str
    inputs: tuple[Value | None, ...]

    @property
    def op(self) -> str:
        """Operator type, prefixed by its domain unless that is the standard domain."""
        domain = self.node.domain
        return self.node.op_type if domain in ("", "ai.onnx") else f"{domain}.{self.node.op_type}"


@dataclass(slots=True)
class Wiring:
    """All nodes of a model in order, with resolved inputs; bodies follow the node that contains them.

    Parameters
    ----------
    graphs : list of onnx.GraphProto
        By scope number.
    holders : list of (int or None)
        For each scope, the index in `sites` of the node that contains it; None for the main graph.
    sites : list of Site
    consumers : dict of Value to list of (int, int)
        For each value, the (site, input index) pairs that read it, in order.
    returned : dict of Value to list of (int, int)
        For each value, the (scope, output index) pairs of the bodies that return it.
    """

    graphs: list[onnx.GraphProto] = field(default_factory=list[onnx.GraphProto])
    holders: list[int | None] = field(default_factory=list[int | None])
    sites: list[Site] = field(default_factory=list[Site])
    consumers: dict[Value, list[tuple[int, int]]] = field(default_factory=dict[Value, list[tuple[int, int]]])
    returned: dict[Value, list[tuple[int, int]]] = field(default_factory=dict[Value, list[tuple[int, int]]])


def node_label(node: onnx.NodeProto, index: int) -> str:
    """Return a node's name, or `#<index>` when it has none."""
    return node.name or f"#{index}"


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield (attribute name, body) for every body of a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for index, body in enumerate(attribute.graphs):
            yield f"{attribute.name}[{index}]", body


def defined_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names that a graph defines itself: inputs, initializers and node outputs."""
    names = {value.name for value in graph.input}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
    names.discard("")
    return names


def wire(graph: onnx.GraphProto) -> Wiring:
    """Resolve every name of a graph and its bodies; the cost is linear in their size times the nesting depth."""
    wiring = Wiring()
    _wire(graph, None, "", [], wiring)
    return wiring


def _wire(
    graph: onnx.GraphProto, holder: int | None, prefix: str, outer: list[tuple[int, set[str]]], wiring: Wiring
) -> None:
    scope = len(wiring.graphs)
    wiring.graphs.append(graph)
    wiring.holders.append(holder)
    visible = [*outer, (scope, defined_names(graph))]
    for index, node in enumerate(graph.node):
        site = len(wiring.sites)
        label = prefix + node_label(node, index)
        inputs = tuple(_resolve(name, visible) for name in node.input)
        wiring.sites.append(Site(node, scope, label, inputs))
        for position, value in enumerate(inputs):
            if value is not None:
                wiring.consumers.setdefault(value, []).append((site, position))
        for attribute, body in bodies(node):
            _wire(body, site, f"{label}/{attribute}/", visible, wiring)
    for position, output in enumerate(graph.output):
        value = _resolve(output.name, visible)
        if value is not None:
            wiring.returned.setdefault(value, []).append((scope, position))


def _resolve(name: str, visible: list[tuple[int, set[str]]]) -> Value | None:
    if not name:
        return None
    return next(((scope, name) for scope, names in reversed(visible) if name in names), None)
