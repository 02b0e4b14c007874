"""Gives inner values names of one to three letters, and takes the names of nodes away.

Before → after ::

    /model/lstm/Transpose_output_0 ─▶ LSTM "/model/lstm/LSTM"  ─▶ …        b ─▶ LSTM ─▶ …

Graph inputs and outputs keep their names, and so does what `pinned` matches. The values that are written most often get
the shortest names, weights first: the names of their stored parts begin with them. `Model.names` says what every new
name stands for, and `Model.stored` under which name a tensor of the lifted model is now stored. Names have no influence
on what a model computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from string import ascii_letters, digits
from typing import ClassVar

import onnx

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs
from tqs_passes.graph.scope import bodies, defined_names
from tqs_passes.graph_pass import PassResult, Skip
from tqs_passes.transforms.slim.scopes import editable

#: A weight's name is written about so often besides its readers: by the tensors and nodes that decode it.
_WRITTEN_FOR_A_WEIGHT = 12
#: Name of a body: ONNX demands one.
_BODY = "b"


@dataclass(frozen=True, slots=True)
class ShortNames:
    """The pass (see the module docstring).

    Parameters
    ----------
    weights : frozenset of str
        Weights, by their names in the lifted model.
    pinned : tuple of str
        Patterns of names to keep, with ``*`` and ``?``.
    """

    weights: frozenset[str]
    pinned: tuple[str, ...] = ()

    name: ClassVar[str] = "short-names"

    def apply(self, model: Model) -> PassResult:
        """Return the model with short inner names; `changed` holds the names they replace."""
        proto = editable(model.proto)
        ends = {value.name for value in (*proto.graph.input, *proto.graph.output)}
        kept = {name for name in _every_name(proto.graph) if name in ends or self._is_pinned(name, model)}
        work = _Renaming(_free(kept), kept, {})
        work.rename(proto.graph, {}, _order(proto.graph, model.stored_names(self.weights)))
        for graph in iter_graphs(proto.graph):
            if graph is not proto.graph:
                graph.name = _BODY
            for node in graph.node:
                if not self._is_pinned(node.name, model):
                    node.ClearField("name")
        if not work.made:
            return PassResult(model, (), (Skip("names", "all are inputs, outputs or pinned"),))
        before = {new: model.names.get(old, old) for new, old in work.made.items()}
        main = {old: new for new, old in work.made.items() if old in _stored(model.proto)}
        stored = {old: main.get(now, now) for old, now in model.stored.items()}
        stored |= {old: new for old, new in main.items() if old not in model.names}
        names = {n: o for n, o in model.names.items() if n in kept} | before
        out = replace(model, proto=proto, names=names, stored=stored)
        return PassResult(out, tuple(before.values()))

    def _is_pinned(self, name: str, model: Model) -> bool:
        return any(fnmatchcase(model.names.get(name, name), pattern) for pattern in self.pinned)


@dataclass(slots=True)
class _Renaming:
    free: Iterator[str]
    kept: set[str]
    made: dict[str, str]

    def rename(self, graph: onnx.GraphProto, outer: Mapping[str, str], order: Iterable[str] = ()) -> None:
        """Rename the values of a graph and its bodies; `outer` maps the names of the enclosing graphs."""
        own = defined_names(graph)
        renamed = {name: new for name, new in outer.items() if name not in own}
        for name in (*order, *sorted(own - set(order))):
            if name in own and name not in self.kept:
                renamed[name] = next(self.free)
                self.made[renamed[name]] = name
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
            for _, body in bodies(node):
                self.rename(body, renamed)
        for values in (graph.value_info, graph.input, graph.output):
            for value in values:
                value.name = renamed.get(value.name, value.name)
        for tensor in graph.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = renamed.get(sparse.values.name, sparse.values.name)
        for note in graph.quantization_annotation:
            note.tensor_name = renamed.get(note.tensor_name, note.tensor_name)
            for entry in note.quant_parameter_tensor_names:
                entry.value = renamed.get(entry.value, entry.value)


def _every_name(graph: onnx.GraphProto) -> set[str]:
    return set().union(*(defined_names(inner) for inner in iter_graphs(graph)))


def _stored(proto: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in proto.graph.initializer}


def _order(graph: onnx.GraphProto, weights: frozenset[str]) -> list[str]:
    """Return the names of a graph's values, those first that are written most often; ties in graph order."""
    uses = Counter(name for inner in iter_graphs(graph) for n in inner.node for name in (*n.input, *n.output))
    uses.update(dict.fromkeys(weights, _WRITTEN_FOR_A_WEIGHT))
    place = {name: i for i, name in enumerate(uses)}
    own = [name for name in defined_names(graph) if name in place]
    return sorted(own, key=lambda name: (-uses[name], place[name]))


def _free(kept: set[str]) -> Iterator[str]:
    """Yield short names, none of which is kept or begins a kept name up to a dot."""
    begun = {name.partition(".")[0] for name in kept}
    for length in range(1, 9):
        for letters in product(ascii_letters, *([ascii_letters + digits] * (length - 1))):
            name = "".join(letters)
            if name not in kept and name not in begun:
                yield name
