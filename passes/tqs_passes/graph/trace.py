"""Find the readers of a weight: direct ones, those behind nodes that only move values, and those inside bodies.

A weight is followed node by node in graph order until each path ends at a node that computes with it (its
reader) or at a graph output. `Gather` and `GatherND` with constant indices only move values; with fed indices, as in
an embedding, they are readers. The cost is linear in the number of nodes passed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.axes import MOVERS, Dims, Known, Track, channel_axis, conv_groups, moved
from tqs_passes.graph.content import Array
from tqs_passes.graph.flow import Flow
from tqs_passes.graph.scope import Site, Value, Wiring
from tqs_passes.weights import Reader

_INTEGERS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32})
#: Shape and index lists longer than this are ignored.
_MOST_INTS = 64
_MOST_HOPS = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """A reader and its site.

    Parameters
    ----------
    reader : Reader
    site : Site
    """

    reader: Reader
    site: Site


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A stored float tensor of the main graph that may be a weight.

    Parameters
    ----------
    name : str
    shape : tuple of int
    readings : tuple of Reading
        The readers that compute with it.
    array : Callable
        Returns its values.
    """

    name: str
    shape: tuple[int, ...]
    readings: tuple[Reading, ...]
    array: Callable[[], Array]


@dataclass(slots=True)
class _Walk:
    tracks: dict[Value, Track] = field(default_factory=dict[Value, Track])
    queue: list[tuple[int, int, Value]] = field(default_factory=list[tuple[int, int, Value]])
    queued: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])


class Tracer:
    """Finds the readers of the initializers of one model.

    Parameters
    ----------
    model : Model
    wiring : Wiring
        Of the same model.
    flow : Flow
        Of the same model.
    """

    def __init__(self, model: Model, wiring: Wiring, flow: Flow) -> None:
        self._wiring = wiring
        self._flow = flow
        self._folder = model.folder
        self._tensors: dict[Value, onnx.TensorProto] = {}
        self._infos: dict[Value, onnx.ValueInfoProto] = {}
        for scope, graph in enumerate(wiring.graphs):
            for value in (*graph.value_info, *graph.output, *graph.input):
                self._infos[scope, value.name] = value
            for tensor in graph.initializer:
                self._tensors[scope, tensor.name] = tensor
        self._same: dict[Value, Value | None] = {}
        self._constants: dict[Value, onnx.NodeProto] = {}
        for site in wiring.sites:
            for name in site.node.output[:1]:
                if site.op == "Identity" and site.inputs:
                    self._same[site.scope, name] = site.inputs[0]
                elif site.op == "Constant":
                    self._note_constant(site, name)
        self.known = Known(self._ints, self._dims)

    def _note_constant(self, site: Site, name: str) -> None:
        for attribute in site.node.attribute:
            if attribute.name == "value":
                self._tensors[site.scope, name] = attribute.t
            elif attribute.name in ("value_int", "value_ints"):
                self._constants[site.scope, name] = site.node

    def _root(self, value: Value | None) -> Value | None:
        for _ in range(_MOST_HOPS):
            if value is None or value not in self._same:
                break
            value = self._same[value]
        return value

    def _ints(self, value: Value | None) -> list[int] | None:
        root = self._root(value)
        if root is None:
            return None
        if root in self._constants:
            given = self._constants[root].attribute[0]
            return [int(given.i)] if given.name == "value_int" else [int(i) for i in given.ints]
        tensor = self._tensors.get(root)
        if tensor is None or tensor.data_type not in _INTEGERS or len(tensor.dims) > 1:
            return None
        if any(not 0 <= dim <= _MOST_INTS for dim in tensor.dims):
            return None
        return [int(i) for i in tensor_array(tensor, self._folder).reshape(-1).tolist()]

    def _dims(self, value: Value | None) -> Dims | None:
        root = self._root(value)
        if root is None:
            return None
        if root in self._tensors:
            return tuple(int(d) if d >= 0 else None for d in self._tensors[root].dims)
        if root in self._constants:
            given = self._constants[root].attribute[0]
            return () if given.name == "value_int" else (len(given.ints),)
        info = self._infos.get(root)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        dims = info.type.tensor_type.shape.dim
        return tuple(int(d.dim_value) if d.dim_value > 0 else None for d in dims)

    def readings(self, value: Value, shape: tuple[int, ...]) -> tuple[Reading, ...]:
        """Return the readers of a stored tensor in graph order, each with its channel axis in that tensor."""
        walk = _Walk()
        self._reach(walk, value, Track(tuple(range(len(shape))), shape))
        found: list[Reading] = []
        while walk.queue:
            index, position, at = heapq.heappop(walk.queue)
            site, track = self._wiring.sites[index], walk.tracks[at]
            behind = moved(site, track, self.known) if self._passes(site, position) else None
            if behind is None:
                found.append(self._reading(site, position, track, shape))
                continue
            for name in site.node.output:
                if name:
                    self._reach(walk, (site.scope, name), behind)
        return tuple(found)

    def _reach(self, walk: _Walk, value: Value, track: Track) -> None:
        """Record that the weight arrives at a value, and queue the nodes that read the value."""
        seen = walk.tracks.get(value)
        walk.tracks[value] = track if seen is None else seen.merged(track)
        for index, position in self._wiring.consumers.get(value, ()):
            if (index, position) not in walk.queued:
                walk.queued.add((index, position))
                heapq.heappush(walk.queue, (index, position, value))
        for scope, position in self._wiring.returned.get(value, ()):
            holder = self._wiring.holders[scope]
            if holder is None or (-1 - scope, position) in walk.queued:
                continue
            site = self._wiring.sites[holder]
            outputs = site.node.output
            if site.op == "If" and position < len(outputs) and outputs[position]:
                walk.queued.add((-1 - scope, position))
                through = Track(track.axes, track.dims, (*track.through, "If"))
                self._reach(walk, (site.scope, outputs[position]), through)

    def _passes(self, site: Site, position: int) -> bool:
        if site.op not in MOVERS:
            return False
        if position != 0:
            return site.op == "Concat"
        indexed = site.op in ("Gather", "GatherND")
        return not indexed or (len(site.inputs) > 1 and site.inputs[1] not in self._flow.dynamic)

    @staticmethod
    def _reading(site: Site, position: int, track: Track, shape: tuple[int, ...]) -> Reading:
        node, axis = site.node, None
        if track.axes is not None and len(shape) > 1:
            local = channel_axis(site, position, track.dims)
            axis = None if local is None else track.axes[local]
        in_body = site.scope != 0
        groups = conv_groups(site, position) if track.dims == shape else 1
        reader = Reader(node.op_type, node.domain, site.label, position, track.through, axis, in_body, groups)
        return Reading(reader, site)
