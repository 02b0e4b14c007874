"""Converts chosen nodes to 16-bit floats, with casts only at the borders of their blocks.

Before → after, for a block of one MatMul and the Tanh after it ::

    x ─▶ MatMul(w) ─▶ Tanh ─▶ y          x ─▶ Cast(half) ─▶ MatMul(w half) ─▶ Tanh ─▶ Cast(float) ─▶ y

A value that crosses a border twice is cast once. If a border lies beside one of the model's own Casts, that Cast is
used, so two casts never follow each other. Weights of a block have its type themselves, without a Cast. `deferred`
weights stay as stored, because the following rewrite writes them in that type (`Model.deferred` names them). Other
stored values are converted if only the block reads them and they are small, and cast otherwise. `choose` selects the
nodes, with a reason for every node left out; `whole` converts a whole model instead. Source: ONNX operator Cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper

from tqs_passes.encode.weight import np_dtype
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array, tensor_n_bytes
from tqs_passes.graph.names import names_of
from tqs_passes.graph_pass import PassResult
from tqs_passes.transforms.half_precision.choose import Chosen, choose
from tqs_passes.transforms.half_precision.types import Half, element_type

#: Larger stored values that are not weights get a Cast, which is folded at load, so that they can still be shrunk.
_MOST_CONVERTED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class HalfCompute:
    """The pass (see module docstring).

    Parameters
    ----------
    dtype : {"float16", "bfloat16"}
    blocks : str or None
        Pattern of the blocks (see `choose`); None: every node.
    labels : mapping of str to str
        Labels of the stored tensors that are weights, by name.
    deferred : bool
        Leave the weights of the blocks as stored: the model is sound only after the rewrite has written them.
    """

    dtype: Half
    blocks: str | None
    labels: Mapping[str, str]
    deferred: bool = False

    name: ClassVar[str] = "half-compute"

    def apply(self, model: Model) -> PassResult:
        """Return the model with casts at the borders, and the values whose type changed.

        Raises
        ------
        InputError
            The pattern is invalid or matches nothing, or no node can compute in this type.
        """
        chosen = choose(model, self.labels, self.dtype, self.blocks)
        work = _Rewiring(model, chosen, self.dtype)
        proto = work.result(frozenset() if self.deferred else chosen.weights)
        weights = sorted(chosen.weights)
        deferred = dict.fromkeys(weights, self.dtype) if self.deferred else {}
        return PassResult(
            replace(model, proto=proto, deferred={**model.deferred, **deferred}),
            (*weights, *work.changed),
            chosen.skipped,
        )


@dataclass(slots=True)
class _Rewiring:
    model: Model
    chosen: Chosen
    dtype: Half
    changed: list[str] = field(default_factory=list[str])
    _half: dict[str, str] = field(default_factory=dict[str, str])
    _given: dict[str, str] = field(default_factory=dict[str, str])
    _converted: set[str] = field(default_factory=set[str])
    _nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    _prefix: str = ""
    _count: int = 0

    def result(self, converted: frozenset[str]) -> onnx.ModelProto:
        """Return the rewired model; `converted` weights are stored in the type."""
        source = self.model.proto
        self._prefix = f"{names_of(source).namespace}.h"
        self._half = {name: name for name in self.chosen.weights}
        self._converted = set(converted)
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        made = {name: node for node in source.graph.node for name in node.output}
        stored = {t.name: t for t in source.graph.initializer}
        for info in source.graph.input:
            stored.pop(info.name, None)
        outside = _read_outside(self.chosen)
        bypassed: set[str] = set()
        for index, node in enumerate(proto.graph.node):
            ports = self.chosen.ports.get(index)
            if ports is None:
                if _is_cast(node):
                    node.input[0] = self._given.get(node.input[0], node.input[0])
                self._nodes.append(node)
                continue
            for position in ports.inputs:
                name = node.input[position]
                node.input[position] = self._as_half(name, made.get(name), stored.get(name), outside)
                bypassed.add(name)
            self._nodes.append(node)
            for position in ports.outputs:
                self._give(node, position, cast_back=node.output[position] in outside)
        read = {name for node in self._nodes for name in node.input} | outside
        nodes = [n for n in self._nodes if not (_is_cast(n) and n.output[0] in bypassed - read)]
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del proto.graph.node[:]
        proto.graph.node.extend(kept)
        for tensor in proto.graph.initializer:
            if tensor.name in self._converted:
                self._convert(tensor)
        changed = set(self.changed)
        for info in proto.graph.value_info:
            if info.name in changed:
                info.type.tensor_type.elem_type = element_type(self.dtype)
        return proto

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"

    def _give(self, node: onnx.NodeProto, position: int, *, cast_back: bool) -> None:
        """Change the type of an output, and cast it back for readers outside."""
        name = node.output[position]
        if cast_back:
            node.output[position] = self._fresh()
            back = helper.make_node("Cast", [node.output[position]], [name], to=int(onnx.TensorProto.FLOAT))
            self._nodes.append(back)
        else:
            self.changed.append(name)
        self._half[name] = self._given[name] = node.output[position]

    def _as_half(
        self,
        name: str,
        maker: onnx.NodeProto | None,
        tensor: onnx.TensorProto | None,
        outside: frozenset[str],
    ) -> str:
        """Return the name of a value in the type; it is cast once for all its readers."""
        if name in self._half:
            return self._half[name]
        if tensor is not None and name not in outside and tensor_n_bytes(tensor) <= _MOST_CONVERTED_BYTES:
            self._half[name] = name
            self._converted.add(name)
            self.changed.append(name)
            return name
        origin = name if maker is None or not _is_cast(maker) else maker.input[0]
        if origin in self._half:
            self._half[name] = self._half[origin]
        elif self.chosen.elements.get(origin) == element_type(self.dtype):
            self._half[name] = origin
        else:
            cast = helper.make_node("Cast", [origin], [self._fresh()], to=element_type(self.dtype))
            self._nodes.append(cast)
            self._half[name] = cast.output[0]
        return self._half[name]

    def _convert(self, tensor: onnx.TensorProto) -> None:
        values = np.asarray(tensor_array(tensor, self.model.folder)).astype(np_dtype(self.dtype))
        dims, kind = list(tensor.dims), element_type(self.dtype)
        tensor.CopyFrom(
            onnx.TensorProto(name=tensor.name, data_type=kind, dims=dims, raw_data=values.tobytes())
        )


def _is_cast(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and node.domain in ("", "ai.onnx")


def _read_outside(chosen: Chosen) -> frozenset[str]:
    """Return the values of the main graph that are read in their old type: by other nodes, bodies, or as graph outputs.

    A Cast of the main graph accepts any type, so a value computed by a chosen node may change its type under it; a
    stored value may not.
    """
    own = {site: i for i, site in enumerate(i for i, s in enumerate(chosen.wiring.sites) if s.scope == 0)}
    made = {
        n
        for site, index in own.items()
        if index in chosen.ports
        for n in chosen.wiring.sites[site].node.output
    }
    found = {name for (scope, name) in chosen.wiring.returned if scope == 0}
    for (scope, name), reads in chosen.wiring.consumers.items():
        if scope != 0:
            continue
        for site, position in reads:
            ports = chosen.ports.get(own.get(site, -1))
            if ports is not None and position in ports.inputs:
                continue
            if site in own and name in made and _is_cast(chosen.wiring.sites[site].node):
                continue
            found.add(name)
    return frozenset(found)
