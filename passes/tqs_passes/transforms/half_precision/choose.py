r"""Chooses the nodes that compute in 16-bit floats: blocks from a pattern, reduced until every border is valid.

A pattern is a regular expression, searched for in the labels of weights and in the names of nodes. Equal matches (equal
groups, if the pattern has groups) form one block: ``layers\.(\d+)\.`` gives one block per layer. A block consists of
the nodes that match or read a matching weight, and of all nodes on paths between them that read no other weight.
Without a pattern, every node is in a block.

Nodes are removed from a block, each with a reason, until nothing changes: operators that do not accept the type
(`types`), nodes on which the runtime crashes (`fused_transposes`), nodes with an input of unknown or other type, nodes
that read a stored value outside the type's range, and nodes that read a weight which a node outside also reads, because
a weight has one type in the file and two casts never follow each other. Finally, connected parts without a product are
removed, because they gain nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx

from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.names import opset_of
from tqs_passes.graph.scope import Wiring, bodies, node_label, wire
from tqs_passes.graph_pass import Skip
from tqs_passes.transforms.half_precision.elements import element_types
from tqs_passes.transforms.half_precision.fused_transposes import fused_transposes
from tqs_passes.transforms.half_precision.types import PRODUCTS, Half, Ports, ports_of

#: Borders and stored values; removing them needs no reason.
_SILENT = frozenset({"Cast", "Constant"})
#: Largest finite value and smallest normal value of each type.
_RANGE: dict[Half, tuple[float, float]] = {"float16": (65504.0, 2.0**-14), "bfloat16": (3.3895e38, 2.0**-126)}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The nodes, weights and values that compute in 16-bit floats.

    Parameters
    ----------
    ports : dict of int to Ports
        Ports by the index of the node in the main graph.
    weights : frozenset of str
        Stored tensors, among the given ones, that only chosen nodes read.
    elements : dict of str to int
        Element type of every value before the change.
    wiring : Wiring
    skipped : tuple of Skip
        Nodes of the blocks that stay in float32.
    """

    ports: dict[int, Ports]
    weights: frozenset[str]
    elements: dict[str, int]
    wiring: Wiring
    skipped: tuple[Skip, ...]


def choose(model: Model, weights: Mapping[str, str], dtype: Half, blocks: str | None) -> Chosen:
    """Choose the nodes (see the module docstring).

    Parameters
    ----------
    model : Model
    weights : mapping of str to str
        Labels of the stored tensors that are weights, by name.
    dtype : {"float16", "bfloat16"}
    blocks : str or None
        Pattern of the blocks.

    Raises
    ------
    InputError
        The pattern is not a regular expression or matches nothing, or no node can compute in this type.
    """
    nodes = list(model.proto.graph.node)
    wanted = range(len(nodes)) if blocks is None else sorted(_matching(nodes, model, weights, blocks))
    work = _Narrowing(model, weights, dtype)
    for index in wanted:
        work.consider(index)
    work.narrow()
    if not work.ports:
        first = next((f": {s.what}: {s.why}" for s in work.skipped if s.op in PRODUCTS), "")
        raise InputError(
            f"no block can compute in {dtype}{first}",
            where="`compute`",
            todo="Leave it out, or give other `compute_blocks`",
        )
    read = {name for name in weights if any(i in work.ports for i in work.readers(name))}
    skipped = tuple(Skip(s.what, s.why) for s in work.skipped)
    return Chosen(work.ports, frozenset(read), work.elements, work.wiring, skipped)


def _matching(
    nodes: list[onnx.NodeProto], model: Model, weights: Mapping[str, str], pattern: str
) -> set[int]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{pattern!r} is not a regular expression ({error})",
            where="`compute_blocks`",
            todo=r"Write e.g. 'layers\.\d+'",
        ) from error
    keys = {name: _key(regex, label) for name, label in weights.items()}
    blocks: dict[str, set[int]] = {}
    foreign: dict[int, set[str | None]] = {}
    for index, read in _weights_read(nodes, model, weights):
        foreign[index] = {keys[name] for name in read}
        for key in (k for k in foreign[index] if k is not None):
            blocks.setdefault(key, set()).add(index)
    for index, node in enumerate(nodes):
        named = _key(regex, node.name)
        if named is not None:
            blocks.setdefault(named, set()).add(index)
    if not blocks:
        raise InputError(
            f"{pattern!r} matches no weight and no node",
            where="`compute_blocks`",
            todo="tqs inspect lists the labels",
        )
    whole = _edges(nodes)
    found: set[int] = set()
    for key, seeds in blocks.items():
        inside = whole.subgraph(i for i in whole if i in seeds or not foreign.get(i, set()) - {key})
        after = set[int]().union(*(nx.descendants(inside, i) for i in seeds))
        before = set[int]().union(*(nx.ancestors(inside, i) for i in seeds))
        found |= seeds | (after & before)
    return found


def _key(regex: re.Pattern[str], text: str) -> str | None:
    match = regex.search(text)
    return None if match is None else ".".join(match.groups("")) or match.group(0)


def _edges(nodes: list[onnx.NodeProto]) -> nx.DiGraph[int]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(nodes)))
    made: dict[str, int] = {}
    for index, node in enumerate(nodes):
        graph.add_edges_from((made[name], index) for name in node.input if name in made)
        made.update((name, index) for name in node.output if name)
    return graph


def _weights_read(
    nodes: list[onnx.NodeProto], model: Model, weights: Mapping[str, str]
) -> Iterator[tuple[int, set[str]]]:
    """Yield (node, weights it reads), directly or through nodes that read only stored tensors."""
    held: dict[str, set[str]] = {t.name: {t.name} & weights.keys() for t in model.proto.graph.initializer}
    for index, node in enumerate(nodes):
        names = [name for name in node.input if name]
        read = set[str]().union(*(held.get(name, set()) for name in names))
        if all(name in held for name in names) and not list(bodies(node)):
            held.update((name, read) for name in node.output)
        if read:
            yield index, read


@dataclass(frozen=True, slots=True)
class _Left:
    what: str
    why: str
    op: str


class _Narrowing:
    def __init__(self, model: Model, weights: Mapping[str, str], dtype: Half) -> None:
        self.nodes = list(model.proto.graph.node)
        self.wiring = wire(model.proto.graph)
        self.elements = element_types(model)
        self.ports: dict[int, Ports] = {}
        self.skipped: list[_Left] = []
        self._weights = weights
        self._dtype: Half = dtype
        self._opset = opset_of(model.proto)
        self._model = model
        self._stored = {t.name: t for t in model.proto.graph.initializer}
        self._stored |= {
            n.output[0]: a.t
            for n in self.nodes
            if n.op_type == "Constant" and len(n.output) == 1
            for a in n.attribute
            if a.name == "value"
        }
        self._given = {info.name for info in model.proto.graph.input}
        self._index = {
            site: index
            for index, site in enumerate(i for i, s in enumerate(self.wiring.sites) if s.scope == 0)
        }
        self._sound: dict[str, bool] = {}
        self._fused = fused_transposes(model.proto.graph) if dtype == "float16" else frozenset[str]()

    def readers(self, name: str) -> list[int | None]:
        """Return the nodes of the main graph that read a value; None stands for a body or a graph output."""
        found: list[int | None] = [self._index.get(s) for s, _ in self.wiring.consumers.get((0, name), [])]
        return found + [None for _ in self.wiring.returned.get((0, name), [])]

    def consider(self, index: int) -> None:
        """Add a node, unless it cannot compute in this type at all."""
        node = self.nodes[index]
        ports = ports_of(node, self._opset, self._dtype)
        if self._fused.intersection(node.output):
            ports = "onnxruntime's CPU provider crashes on this Transpose in float16"
        if isinstance(ports, Ports):
            why = next((w for i in ports.inputs if (w := self._unfit(node.input[i]))), None)
            if why is None:
                self.ports[index] = ports
                return
            ports = why
        if node.op_type not in _SILENT and any(
            self.elements.get(name) == onnx.TensorProto.FLOAT for name in node.output
        ):
            self._leave(index, ports)

    def _leave(self, index: int, why: str) -> None:
        node = self.nodes[index]
        self.ports.pop(index, None)
        self.skipped.append(_Left(node_label(node, index), why, node.op_type))

    def _unfit(self, name: str) -> str | None:
        if self.elements.get(name) != onnx.TensorProto.FLOAT:
            return f"its input {name!r} is not known to be float32"
        if name in self._weights and name in self._given:
            return f"weight {name!r} may be overridden as a graph input"
        if name in self._stored and not self._in_range(name):
            return f"{name!r} holds values outside the range of {self._dtype}"
        return None

    def _in_range(self, name: str) -> bool:
        """Return whether no value becomes infinite, and no scalar (an epsilon) becomes zero or denormal."""
        if name not in self._sound:
            values = np.asarray(tensor_array(self._stored[name], self._model.folder))
            most, normal = _RANGE[self._dtype]
            finite = values if np.isfinite(values).all() else values[np.isfinite(values)]
            largest = float(max(finite.max(initial=0), -finite.min(initial=0)))
            self._sound[name] = largest <= most and (values.size > 1 or largest == 0.0 or largest >= normal)
        return self._sound[name]

    def narrow(self) -> None:
        """Remove nodes until every weight has one type and every connected part has a product."""
        while True:
            before = len(self.ports)
            for index in sorted(self.ports):
                node = self.nodes[index]
                for name in (node.input[i] for i in self.ports[index].inputs):
                    if name in self._weights and any(r not in self.ports for r in self.readers(name)):
                        self._leave(index, f"weight {name!r} is read outside the block as well")
                        break
            pieces = _edges(self.nodes).subgraph(self.ports)
            for piece in list(nx.weakly_connected_components(pieces)):
                if not any(self.nodes[i].op_type in PRODUCTS for i in piece):
                    for index in sorted(piece):
                        self._leave(index, "not connected to a product: nothing to gain")
            if len(self.ports) == before:
                return


__all__ = ["Chosen", "choose"]
