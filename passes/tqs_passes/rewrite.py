"""Apply a plan: every planned weight is stored at its tier and decoded under its own name.

Before → after, for a weight `w` at INT3 ::

    w (float initializer) ─▶ MatMul          w_quantized, w_quantized_1, w_scale ─▶ planes ─▶ … ─▶ w ─▶ MatMul

Readers, outputs and other nodes are untouched, whichever graph they are in, but for the readers that the forms `nbits`
and `gathered` replace; the float original is gone. Stored tensors and nodes are written straight as protobuf (not
through onnx-graphsurgeon, which drops node metadata and cannot say how many bytes it will write), so the bytes a plan
predicts are the bytes of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data

from tqs_passes.base import PassResult, Skip
from tqs_passes.content import digest
from tqs_passes.debug_notes import DEBUG_PREFIXES, drop_debug_notes
from tqs_passes.encode.fragment import Fragment, field_size
from tqs_passes.encode.planes import MIN_OPSET
from tqs_passes.encode.weight import (
    BF16_OPSET,
    CAST_OPSET,
    DQ_OPSET,
    INT4_OPSET,
    Encoding,
    Form,
    Target,
    decoded_cast,
    encode_cast,
    encode_codes,
    encode_kept,
    np_dtype,
    stem_names,
    tensor_type,
)
from tqs_passes.errors import InputError
from tqs_passes.grid import Codes
from tqs_passes.model_io import Model, iter_graphs, tensor_array, tensor_n_bytes, without_initializers
from tqs_passes.nearest import quantize
from tqs_passes.plan import Assignment, Plan
from tqs_passes.readers import sole_readers
from tqs_passes.row_grid import quantize_rows
from tqs_passes.scales import free_rounding
from tqs_passes.scope import defined_names
from tqs_passes.spill import Spill
from tqs_passes.tier import Tier


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the default ONNX operator set; 0 when the model imports none."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


@dataclass(frozen=True, slots=True)
class Names:
    """Which names a model leaves free.

    Parameters
    ----------
    taken : frozenset of str
        Every name of a tensor or node in its graph and their bodies.
    namespace : str
        A prefix that none of them starts with: `tqs`, else `tqs2`, `tqs3` and so on.
    """

    taken: frozenset[str]
    namespace: str


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


def target_of(
    assignment: Assignment, index: int, opset: int, names: Names, reader: onnx.NodeProto | None = None
) -> Target:
    """Return where the fragment of an assignment goes; `index` is its place in the plan, `reader` its one reader.

    Its names stem from the weight's, or from ``<namespace>.<index>`` where the model has such names already.
    """
    weight, prefix = assignment.weight, f"{names.namespace}.{index}"
    stem = weight if names.taken.isdisjoint(stem_names(weight)) else prefix
    return Target(weight, assignment.dtype, opset, f"{prefix}.", names.namespace, stem, reader)


def round_weight(values: NDArray[np.generic], assignment: Assignment) -> Codes:
    """Return the integer codes of a weight by a rounding that needs no data.

    Raises
    ------
    InputError
        The plan's rounding looked at data: its integers are in `codes.npz`.
    """
    a = assignment
    rounding = free_rounding(a.rounding)
    if a.grid is None or rounding is None:
        raise InputError(
            f"the integers of {a.label!r} were chosen by {a.rounding}, and are not here",
            todo="Put the codes.npz that was written with the plan beside it",
        )
    w = np.ascontiguousarray(values).astype(np.float32)
    if a.rows and a.axis is not None:
        return quantize_rows(w, a.rows, a.axis, a.grid, half_scales=a.half_scales, rounding=rounding)
    return quantize(
        w, a.tier.bits, a.axis, a.grid, half_scales=a.half_scales, rounding=rounding, group=a.group
    )


def fragment_of(
    assignment: Assignment, target: Target, values: NDArray[np.generic], codes: Codes | None
) -> Fragment:
    """Return the fragment that stores and decodes one weight (`keep`: in the type of the block that reads it)."""
    if assignment.form is Form.KEEP:
        return encode_kept(target, values)
    if assignment.form is Form.CAST:
        return encode_cast(target, values, assignment.tier)
    codes = codes or round_weight(values, assignment)
    return encode_codes(target, codes, assignment.form, assignment.encoding)


def reference_weight(
    assignment: Assignment, values: NDArray[np.generic], codes: Codes | None = None
) -> NDArray[np.generic]:
    """Return what the plan says a weight decodes to, in its own dtype: the reference of numerics rule 5."""
    if assignment.form is Form.KEEP:
        return np.asarray(values).astype(np_dtype(assignment.dtype), copy=False)
    if assignment.form is Form.CAST:
        return decoded_cast(values, assignment.tier, assignment.dtype)
    decoded = (codes or round_weight(values, assignment)).decode()
    return decoded.astype(np_dtype(assignment.dtype))


def fed_weight(
    assignment: Assignment, values: NDArray[np.generic], codes: Codes | None = None
) -> NDArray[np.generic]:
    """Return the reference of a weight in the source's own dtype, as the source's graph can be fed it."""
    return reference_weight(assignment, values, codes).astype(values.dtype, copy=False)


def skeleton(
    model: Model, planned: frozenset[str], metadata: Mapping[str, str], version: str
) -> onnx.ModelProto:
    """Return the lifted model without its planned weights, debug notes dropped and metadata added."""
    proto = without_initializers(model.proto)
    graph = model.proto.graph
    proto.graph.initializer.extend(t for t in graph.initializer if t.name not in planned)
    drop_debug_notes(proto)
    if proto.producer_name != "tqs-onnx":
        _set_metadata(
            proto, "tqs_onnx.source_producer", f"{proto.producer_name} {proto.producer_version}".strip()
        )
    proto.producer_name, proto.producer_version = "tqs-onnx", version
    for key in sorted(metadata):
        _set_metadata(proto, key, metadata[key])
    return proto


def _set_metadata(proto: onnx.ModelProto, key: str, value: str) -> None:
    for entry in proto.metadata_props:
        if entry.key == key:
            entry.value = value
            return
    proto.metadata_props.add(key=key, value=value)


def kept_size(tensor: onnx.TensorProto) -> int:
    """Return the serialized bytes of a tensor that stays as it is, once `drop_debug_notes` and `save_model` ran."""
    if uses_external_data(tensor):
        bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        header: int = bare.ByteSize()
        return header + field_size(tensor_n_bytes(tensor))
    notes = [e for e in tensor.metadata_props if e.key.startswith(DEBUG_PREFIXES)]
    size: int = tensor.ByteSize()
    return size - sum(1 + field_size(e.ByteSize()) for e in notes)


def _require(
    a: Assignment,
    tensor: onnx.TensorProto | None,
    codes: Codes | None,
    opset: int,
    computed: str | None,
    reader: onnx.NodeProto | None,
) -> None:
    todo = "Allocate again for this model"
    what = f"the plan's weight {a.label!r} of shape {list(a.shape)}"
    if tensor is None or tuple(tensor.dims) != a.shape:
        raise InputError(f"{what} is not in the model", todo=todo)
    if a.dtype != computed if computed else tensor.data_type != tensor_type(a.dtype):
        raise InputError(f"{what} is not {a.dtype} in the model", todo=todo)
    if codes is not None and codes.levels.shape != a.shape:
        raise InputError(f"{what} has codes of shape {list(codes.levels.shape)}", todo=todo)
    reads = {Form.NBITS: ("MatMul", "Gemm"), Form.GATHERED: ("Gather",)}.get(a.form)
    if reads is not None and (reader is None or reader.op_type not in reads):
        raise InputError(f"{what} is not read by one {' or '.join(reads)} alone ({a.form})", todo=todo)
    if codes is not None and codes.rows != a.rows:
        raise InputError(f"{what} has codes of other row tiers", todo=todo)
    needs_dq = a.form is Form.DEQUANTIZE and a.axis is not None
    needs = 0 if a.form is Form.KEEP else CAST_OPSET if a.form is Form.CAST else MIN_OPSET
    if needs_dq or (a.tier is Tier.BF16 and a.form is Form.CAST):
        needs = max(DQ_OPSET, BF16_OPSET)
    if a.encoding is Encoding.NATIVE and a.tier is Tier.INT4:
        needs = INT4_OPSET
    if opset < needs:
        raise InputError(f"{what} cannot be stored as {a.tier} ({a.form}) at opset {opset}", todo=todo)


def twin_fragment(weight: str, first: str) -> Fragment:
    """Return the fragment of a weight that an earlier one's bytes serve."""
    fragment = Fragment("")
    fragment.op("Identity", [first], output=weight)
    return fragment


def _twin(a: Assignment, stored: Mapping[str, onnx.TensorProto], model: Model) -> Fragment:
    assert a.same_as is not None
    mine, first = (tensor_array(stored[name], model.folder) for name in (a.weight, a.same_as))
    if digest(mine) != digest(first):
        raise InputError(
            f"the plan says that {a.label!r} equals {a.same_as!r}, which it does not",
            todo="Allocate again for this model",
        )
    return twin_fragment(a.weight, a.same_as)


def _with_readings(
    proto: onnx.ModelProto, fragments: list[Fragment], shared: Mapping[str, Fragment]
) -> list[onnx.NodeProto]:
    """Return the model's nodes with the readers that fragments replace replaced; import what those need.

    The names of weights that such a reader reads mean packed bytes now: no note of their type may remain.
    """
    instead = {f.reader.output[0]: f.reading for f in fragments if f.reader is not None}
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
    for node in proto.graph.node:
        nodes += instead.get(node.output[0], [node]) if node.output else [node]
    return nodes


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The pass that emits mixed precision (see module docstring).

    Parameters
    ----------
    plan : Plan
    codes : mapping of str to Codes
        Codes of data-aware roundings, by weight.
    metadata : mapping of str to str
        Added to the model's metadata.
    version : str
        Written as producer version.
    spill : Spill or None
        Where encoded tensors are put, so that one weight at a time is in memory; None: they stay in the model.
    computed : mapping of str to str
        The type of the block that reads a weight, where that is not the type it is stored in.
    """

    plan: Plan
    codes: Mapping[str, Codes]
    metadata: Mapping[str, str]
    version: str
    spill: Spill | None = None
    computed: Mapping[str, str] = field(default_factory=dict[str, str])

    name: ClassVar[str] = "rewrite"

    def apply(self, model: Model) -> PassResult:
        """Return the rewritten model.

        Raises
        ------
        InputError
            The plan names a weight that the model lacks, or one of another shape or data type, or a form that
            the model's opset lacks; or codes of another shape are given.
        """
        stored = {t.name: t for t in model.proto.graph.initializer}
        changed: list[str] = []
        skipped: list[Skip] = []
        planned = frozenset(
            a.weight
            for a in self.plan.assignments
            if a.form is not Form.KEEP or a.same_as is not None or a.weight in self.computed
        )
        opset, readers = opset_of(model.proto), sole_readers(model.proto.graph)
        for a in self.plan.assignments:
            computed, reader = self.computed.get(a.weight), readers.get(a.weight)
            _require(a, stored.get(a.weight), self.codes.get(a.weight), opset, computed, reader)
        proto = skeleton(model, planned, self.metadata, self.version)
        names = names_of(model.proto)
        shared: dict[str, Fragment] = {}
        fragments: list[Fragment] = []
        for index, a in enumerate(self.plan.assignments):
            if a.same_as is not None:
                fragments.append(_twin(a, stored, model))
                changed.append(a.weight)
                continue
            if a.form is Form.KEEP and a.weight not in self.computed:
                skipped.append(Skip(a.weight, f"kept as {a.tier}"))
                continue
            values = tensor_array(stored[a.weight], model.folder)
            target = target_of(a, index, opset, names, readers.get(a.weight))
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
            proto.graph.node.extend(piece.nodes)
            piece.tensors.clear()  # the graph holds a copy: only one is wanted in memory
        proto.graph.node.extend(nodes)
        return PassResult(Model(proto, model.folder, self.spill), tuple(changed), tuple(skipped))
