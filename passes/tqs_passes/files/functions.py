"""Bound what a model's local functions expand to, before anything expands them.

A function may call others twice, and these again ::

    f1(x) = f0(f0(x)),  f2(x) = f1(f1(x)),  …        n functions of two nodes: 2ⁿ nodes

The survey, the checker's shape inference and the runtime all inline functions, so a file of two kilobytes could occupy
them for hours. The sizes are therefore computed from the calls first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from tqs_passes.errors import InputError, one_line
from tqs_passes.files.tensors import iter_graphs

#: Nodes that functions may always expand to; beyond, at most `_NODES_PER_NODE` for each node that is stored.
MOST_NODES = 50_000
_NODES_PER_NODE = 20
#: Bytes of constants that functions may always expand to; beyond, at most `_BYTES_PER_BYTE` for each byte of the model.
MOST_BYTES = 256 << 20
_BYTES_PER_BYTE = 4
#: Calls inside calls; the checker and the runtime recurse into each.
_MOST_DEPTH = 100
#: Counting stops here, so that the numbers of a bomb stay small themselves.
_UNCOUNTED = 10**12

_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Size:
    """Nodes, bytes of constants and depth of calls, once everything is inlined."""

    nodes: int
    n_bytes: int
    depth: int


def require_bounded_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a model whose local functions expand without bound.

    Parameters
    ----------
    proto : onnx.ModelProto
    path : Path
        Its file, for the error.

    Raises
    ------
    InputError
        A function calls itself, calls are nested too deeply, or the functions expand to more nodes or bytes than the
        constants of this module allow.
    """
    if not proto.functions:
        return
    bodies = {_key(f.domain, f.name, f.overload): f for f in proto.functions}
    calls = {key: _calls(list(_nodes(f.node)), bodies) for key, f in bodies.items()}
    order = _innermost_first(calls, path)
    sizes: dict[_Key, _Size] = {}
    for key in order:
        sizes[key] = _size(list(_nodes(bodies[key].node)), sizes)
    nodes = [node for graph in iter_graphs(proto.graph) for node in graph.node]
    whole = _size(nodes, sizes)
    stored = len(nodes) + sum(len(f.node) for f in proto.functions)
    if whole.depth > _MOST_DEPTH:
        raise _refused(f"local functions call each other {whole.depth} levels deep", path)
    if whole.nodes > max(MOST_NODES, _NODES_PER_NODE * stored):
        raise _refused(f"{stored} nodes with local functions expand to {_shown(whole.nodes)} nodes", path)
    if whole.n_bytes > max(MOST_BYTES, _BYTES_PER_BYTE * proto.ByteSize()):
        raise _refused(f"the constants of local functions expand to {_shown(whole.n_bytes)} bytes", path)


def _key(domain: str, name: str, overload: str) -> _Key:
    return "" if domain == "ai.onnx" else domain, name, overload


def _called(node: onnx.NodeProto) -> _Key:
    return _key(node.domain, node.op_type, node.overload)


def _calls(nodes: Sequence[onnx.NodeProto], bodies: dict[_Key, onnx.FunctionProto]) -> list[_Key]:
    return list(dict.fromkeys(key for node in nodes if (key := _called(node)) in bodies))


def _nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                for graph in iter_graphs(body):
                    yield from graph.node


def _innermost_first(calls: dict[_Key, list[_Key]], path: Path) -> list[_Key]:
    """Return the functions so that each follows those it calls; without recursion, because files choose the depth."""
    order: list[_Key] = []
    done: set[_Key] = set()
    for first in calls:
        if first in done:
            continue
        stack, open_ = [(first, iter(calls[first]))], {first}
        while stack:
            key, rest = stack[-1]
            inner = next((k for k in rest if k not in done), None)
            if inner is None:
                stack.pop()
                open_.discard(key)
                done.add(key)
                order.append(key)
            elif inner in open_:
                raise _refused(f"local function {one_line(inner[1], 80)!r} calls itself", path)
            else:
                open_.add(inner)
                stack.append((inner, iter(calls[inner])))
    return order


def _size(nodes: Sequence[onnx.NodeProto], sizes: dict[_Key, _Size]) -> _Size:
    count = n_bytes = depth = 0
    for node in nodes:
        inner = sizes.get(_called(node))
        if inner is None:
            count += 1
            n_bytes += sum(a.t.ByteSize() for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
        else:
            count += inner.nodes
            n_bytes += inner.n_bytes
            depth = max(depth, inner.depth + 1)
    return _Size(min(count, _UNCOUNTED), min(n_bytes, _UNCOUNTED), depth)


def _refused(what: str, path: Path) -> InputError:
    return InputError(what, where=str(path), todo="Export the model without local functions")


def _shown(n: int) -> str:
    return f"{n:,}" if n < _UNCOUNTED else f"more than {_UNCOUNTED:,}"
