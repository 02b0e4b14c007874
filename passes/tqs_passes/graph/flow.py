"""Compute which values can influence which others: reachability including bodies (networkx).

Vertices are values (scope, name) and nodes (their site number); an edge means "feeds". A value read inside a
body feeds the inner node. The result of an If body feeds the If output at the same position. The result of a Loop or
Scan body feeds every output of that node, because its state is carried from one iteration to the next.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import networkx as nx

from tqs_passes.graph.scope import Value, Wiring

#: Operators that read only the shape of their input.
SHAPE_ONLY = frozenset({"Shape", "Size"})


class Flow:
    """Reachability between the values of one model.

    Parameters
    ----------
    wiring : Wiring
        The resolved names of the model.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._graph = _feeds(wiring)
        stored = {(0, t.name) for t in wiring.graphs[0].initializer}
        #: Values that are fed: inputs of the main graph, and of Loop and Scan bodies (new in every iteration).
        self.sources: frozenset[Value] = frozenset(
            (scope, value.name)
            for scope, graph in enumerate(wiring.graphs)
            for value in graph.input
            if (scope, value.name) not in stored
        )
        #: Values that depend on a fed value.
        self.dynamic = self._after(self._graph, self.sources)
        by_shape = self._graph.copy()
        by_shape.remove_nodes_from([i for i, site in enumerate(wiring.sites) if site.op in SHAPE_ONLY])
        #: The same set without values that depend only on the shape of a fed value.
        self.data_dynamic = self._after(by_shape, self.sources)

    @staticmethod
    def _after(graph: nx.DiGraph[Hashable], sources: Iterable[Hashable]) -> frozenset[Hashable]:
        layers = nx.bfs_layers(graph, [source for source in sources if source in graph])
        return frozenset(vertex for layer in layers for vertex in layer)

    def around(self, nodes: Iterable[int]) -> tuple[frozenset[Hashable], frozenset[Hashable]]:
        """Return what reaches any of these nodes (site numbers) and what they reach; the nodes are in neither set."""
        starts = list(nodes)
        return (
            self._after(self._graph.reverse(copy=False), starts) - set(starts),
            self._after(self._graph, starts) - set(starts),
        )

    def outputs_by_value(self) -> dict[Hashable, tuple[str, ...]]:
        """Map every value that reaches a graph output to the names of those outputs, in graph order."""
        reached: dict[Hashable, list[str]] = {}
        for name in dict.fromkeys(output.name for output in self._wiring.graphs[0].output):
            if (0, name) not in self._graph:
                continue
            for vertex in (*nx.ancestors(self._graph, (0, name)), (0, name)):
                reached.setdefault(vertex, []).append(name)
        return {vertex: tuple(names) for vertex, names in reached.items()}


def _feeds(wiring: Wiring) -> nx.DiGraph[Hashable]:
    graph: nx.DiGraph[Hashable] = nx.DiGraph()
    for scope, inner in enumerate(wiring.graphs):
        graph.add_nodes_from(
            (scope, value.name) for value in (*inner.input, *inner.initializer) if value.name
        )
    for index, site in enumerate(wiring.sites):
        graph.add_node(index)
        graph.add_edges_from((value, index) for value in site.inputs if value is not None)
        graph.add_edges_from((index, (site.scope, name)) for name in site.node.output if name)
    for value, places in wiring.returned.items():
        for scope, position in places:
            holder = wiring.holders[scope]
            if holder is None:
                continue
            site = wiring.sites[holder]
            outputs = site.node.output
            if site.op == "If" and position < len(outputs) and outputs[position]:
                graph.add_edge(value, (site.scope, outputs[position]))
            elif site.op != "If":
                graph.add_edge(value, holder)
    return graph
