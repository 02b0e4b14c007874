"""Read the names and the opset of a model, and find a prefix that is free for new tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs
from tqs_passes.graph.scope import defined_names


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the default ONNX operator set; 0 when the model imports none."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


@dataclass(frozen=True, slots=True)
class Names:
    """The names that a model uses, and a prefix that is free.

    Parameters
    ----------
    taken : frozenset of str
        Every name of a tensor or node in the graph and its bodies.
    namespace : str
        A prefix that no name starts with: `tqs`, else `tqs2`, `tqs3` and so on; empty in a model of short names.
    stored : mapping of str to str
        See `Model.stored`.
    terse : bool
        The model has short names, so that new ones are short as well.
    """

    taken: frozenset[str]
    namespace: str
    stored: Mapping[str, str] = field(default_factory=dict[str, str])
    terse: bool = False


def names_of(proto: onnx.ModelProto) -> Names:
    """Collect the names of a model; the cost is linear in its size."""
    taken: set[str] = set()
    for graph in iter_graphs(proto.graph):
        taken |= defined_names(graph)
        taken.update(node.name for node in graph.node)
        taken.update(name for node in graph.node for name in node.input)
    spaces = {name.partition(".")[0] for name in taken if name.startswith("tqs")}
    space, count = "tqs", 1
    while space in spaces:
        count += 1
        space = f"tqs{count}"
    return Names(frozenset(taken), space)


def names_in(model: Model) -> Names:
    """Collect the names of a model that may have short names (see `tqs_passes.transforms.slim.short_names`)."""
    found = names_of(model.proto)
    if not model.names:
        return found
    free = not any(name.startswith(".") for name in found.taken)
    return Names(found.taken, "" if free else found.namespace, model.stored, terse=True)
