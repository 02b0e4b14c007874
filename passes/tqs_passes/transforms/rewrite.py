"""Applies a plan: every planned weight is stored at its tier and decoded under its own name.

Before → after, for a weight `w` at INT3 ::

    w (float initializer) ─▶ MatMul          w_quantized, w_quantized_1, w_scale ─▶ planes ─▶ … ─▶ w ─▶ MatMul

Readers, outputs and other nodes are unchanged, in every graph, except the readers that the forms `nbits`, `gathered`,
`dynamic` and `static` replace; the float original is removed. A weight that the model has deferred is written in the
type that its readers compute in. Stored tensors and nodes are written directly as protobuf, not with onnx-graphsurgeon,
which drops node metadata and cannot predict how many bytes it will write; the bytes that a plan predicts are therefore
the bytes of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx

from tqs_passes.encode.dynamic import DYNAMIC_OPSET
from tqs_passes.encode.fragment import Fragment
from tqs_passes.encode.planes import MIN_OPSET
from tqs_passes.encode.static import STATIC_OPSET
from tqs_passes.encode.weight import (
    BF16_OPSET,
    CAST_OPSET,
    DQ_OPSET,
    INT4_OPSET,
    Encoding,
    Form,
    tensor_type,
)
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.spill import Spill
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.names import names_in, opset_of
from tqs_passes.graph.readers import followers_in, readers_in
from tqs_passes.graph_pass import PassResult, Skip
from tqs_passes.grids.grid import Codes
from tqs_passes.grids.scales import scales_fit_half
from tqs_passes.plan.assigned import fragment_of, target_of
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.tier import Tier
from tqs_passes.transforms.skeleton import skeleton


def _require(
    a: Assignment,
    tensor: onnx.TensorProto | None,
    codes: Codes | None,
    opset: int,
    computed: str | None,
    reader: onnx.NodeProto | None,
) -> None:
    todo = "Run tqs allocate again for this model"
    what = f"the plan's weight {a.label!r} of shape {list(a.shape)}"
    if tensor is None or tuple(tensor.dims) != a.shape:
        raise InputError(f"{what} is not in the model", todo=todo)
    if a.dtype != computed if computed else tensor.data_type != tensor_type(a.dtype):
        raise InputError(f"{what} is not {a.dtype} in the model", todo=todo)
    if codes is not None and codes.levels.shape != a.shape:
        raise InputError(f"{what} has codes of shape {list(codes.levels.shape)}", todo=todo)
    products = ("MatMul", "Gemm")
    reads = {
        Form.NBITS: products,
        Form.DYNAMIC: (*products, "LSTM"),
        Form.STATIC: (*products, "Conv"),
        Form.GATHERED: ("Gather",),
    }.get(a.form)
    if reads is not None and (reader is None or reader.op_type not in reads):
        raise InputError(f"{what} is not read by one {' or '.join(reads)} alone ({a.form})", todo=todo)
    if codes is not None and (other := _differing(a, codes)):
        raise InputError(f"{what} has codes of {other}", todo=todo)
    needs_dq = a.form is Form.DEQUANTIZE and a.axis is not None
    needs = 0 if a.form is Form.KEEP else CAST_OPSET if a.form is Form.CAST else MIN_OPSET
    if needs_dq or (a.tier is Tier.BF16 and a.form is Form.CAST):
        needs = max(DQ_OPSET, BF16_OPSET)
    if a.encoding is Encoding.NATIVE and a.tier is Tier.INT4:
        needs = INT4_OPSET
    if a.form is Form.DYNAMIC:
        needs = DYNAMIC_OPSET
    if a.form is Form.STATIC:
        needs = STATIC_OPSET
    if opset < needs:
        raise InputError(f"{what} cannot be stored as {a.tier} ({a.form}) at opset {opset}", todo=todo)


def _require_pairs(plan: Plan, readers: Mapping[str, onnx.NodeProto]) -> None:
    """Refuse a plan in which only one matrix of an LSTM is multiplied as integers."""
    rounded = {a.weight: readers[a.weight] for a in plan.assignments if a.form is Form.DYNAMIC}
    halves = Counter(tuple(node.output) for node in rounded.values() if node.op_type == "LSTM")
    alone = [name for name, node in rounded.items() if halves[tuple(node.output)] == 1]
    if alone:
        raise InputError(
            f"the plan has only one matrix of the LSTM that reads {alone[0]!r} as integers, which need both",
            todo="Run tqs allocate again for this model",
        )


def _differing(a: Assignment, codes: Codes) -> str:
    """Return in what the codes of a weight differ from what the plan says about it; empty if in nothing."""
    if not a.tier.is_integer:
        return f"{codes.bits} bits, although it is stored as {a.tier}"
    if codes.rows != a.rows:
        return "other row tiers"
    if codes.bits != max(a.widths):
        return f"{codes.bits} bits, not {max(a.widths)}"
    if codes.grid is not a.grid:
        return f"the {codes.grid} grid, not {a.grid}"
    if (codes.axis, codes.group) != (a.axis, a.group):
        return f"axis {codes.axis} and group {codes.group}, not {a.axis} and {a.group}"
    is_half = codes.scales.dtype.itemsize == 2
    # Scales that float16 cannot hold are stored in float32.
    fits = is_half or scales_fit_half(codes.scales.astype(np.float32))
    if is_half != (a.half_scales and fits):
        return f"{codes.scales.dtype} scales"
    return ""


def _with_readings(
    proto: onnx.ModelProto, fragments: list[Fragment], shared: Mapping[str, Fragment]
) -> list[onnx.NodeProto]:
    """Return the model's nodes, with those readers replaced that fragments replace; import the opsets they need.

    Shared pieces that are late come right before the first node that needs them. The names of weights that such a
    reader reads now denote packed bytes, so the notes on their types are removed.
    """
    instead = {tuple(f.reader.output): f for f in fragments if f.reader is not None}
    read = {name for f in fragments if f.reader is not None for name in f.reader.input}
    made = {t.name for f in fragments for t in f.tensors} | {
        o for f in fragments for n in f.nodes for o in n.output
    }
    notes = [v for v in proto.graph.value_info if v.name not in read or v.name not in made]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(notes)
    imported = {o.domain for o in proto.opset_import}
    domains = {piece.domain for piece in shared.values() if piece.domain} - imported
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(domains))
    nodes: list[onnx.NodeProto] = []
    waiting = {key: piece for key, piece in shared.items() if piece.late}
    gone = {tuple(node.output) for f in fragments for node in f.also}
    for node in proto.graph.node:
        fragment = instead.get(tuple(node.output))
        if tuple(node.output) in gone:
            continue
        if fragment is None:
            nodes.append(node)
            continue
        for key in fragment.shared:
            if key in waiting:
                nodes += waiting.pop(key).nodes
        nodes += fragment.reading
    return nodes


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The pass that emits mixed precision (see the module docstring).

    Parameters
    ----------
    plan : Plan
    codes : mapping of str to Codes
        Codes of data-aware roundings, by weight.
    metadata : mapping of str to str
        Added to the model's metadata.
    version : str
        Stored as the producer version.
    spill : Spill or None
        Receives the encoded tensors, so that only one weight at a time is in memory; None: they stay in the model.
    """

    plan: Plan
    codes: Mapping[str, Codes]
    metadata: Mapping[str, str]
    version: str
    spill: Spill | None = None

    name: ClassVar[str] = "rewrite"

    def apply(self, model: Model) -> PassResult:
        """Return the rewritten model.

        Raises
        ------
        InputError
            The plan names a weight that the model lacks or that has another shape or data type, or a form that the
            model's opset lacks; or the codes of a weight differ from what the plan says about it.
        """
        stored = {t.name: t for t in model.proto.graph.initializer}
        changed: list[str] = []
        skipped: list[Skip] = []
        planned = model.stored_names(
            a.weight for a in self.plan.assignments if a.form is not Form.KEEP or a.weight in model.deferred
        )
        opset, readers = opset_of(model.proto), readers_in(model)
        followers = followers_in(model.proto.graph)
        for a in self.plan.assignments:
            computed, reader = model.deferred.get(a.weight), readers.get(a.weight)
            tensor = stored.get(model.stored_name(a.weight))
            _require(a, tensor, self.codes.get(a.weight), opset, computed, reader)
        _require_pairs(self.plan, readers)
        proto = skeleton(model, planned, self.metadata, self.version)
        names = names_in(model)
        shared: dict[str, Fragment] = {}
        fragments: list[Fragment] = []
        for index, a in enumerate(self.plan.assignments):
            if a.form is Form.KEEP and a.weight not in model.deferred:
                skipped.append(Skip(a.weight, f"kept as {a.tier}"))
                continue
            values = tensor_array(stored[model.stored_name(a.weight)], model.folder)
            target = target_of(a, index, opset, names, readers.get(a.weight), followers)
            fragment = fragment_of(a, target, values, self.codes.get(a.weight))
            for key, piece in fragment.shared.items():
                shared.setdefault(key, piece)
            if self.spill is not None:
                self.spill.take(fragment.tensors)
            fragments.append(fragment)
            changed.append(a.weight)
        nodes = _with_readings(proto, fragments, shared)
        del proto.graph.node[:]
        for piece in (*shared.values(), *fragments):
            proto.graph.initializer.extend(piece.tensors)
            if not piece.late:
                proto.graph.node.extend(piece.nodes)
            piece.tensors.clear()  # the graph holds a copy; keep only one in memory
        proto.graph.node.extend(nodes)
        out = replace(model, proto=proto, spill=self.spill, deferred={})
        return PassResult(out, tuple(changed), tuple(skipped))
