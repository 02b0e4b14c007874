"""Converts a whole model to float16 with onnxconverter-common: the obvious first attempt, kept as a control.

Before → after ::

    x ─▶ MatMul(w) ─▶ Softmax ─▶ y        x ─▶ Cast(half) ─▶ MatMul(w half) ─▶ Softmax ─▶ Cast(float) ─▶ y

`onnxconverter_common.float16.convert_float_to_float16` does the conversion, with its own list of operators that stay in
float32 and its own limits: finite values beyond ±1e4 become ±1e4, and non-zero values closer to zero than 1e-7 become
±1e-7. Inputs and outputs keep their types. Of 21 models tried, release 1.16 alone converts 12 into files that
onnxruntime loads, the bundled one and the zoo among them; with the workarounds below, applied to a copy, it converts
17, and 4 are refused:

- The Casts it adds are named after nodes: nodes without a name, or with a duplicate name, get a unique one.
- It does not change the output type of `Cast(to = float)`, nor of a `Constant` with `value_floats`: these stay in
  float32, and so do operators of other domains and those that do not accept float16 at the model's opset.
- A stored tensor read by one operator in float32 and by another in float16, and an output that is also read or that
  comes from an operator in float32, would have two types: an Identity is inserted between them.
- It reads only `raw_data`: tensors in external files or in typed fields are first converted to it.
- Transposes on which onnxruntime crashes in float16 stay in float32 (see `fused_transposes`).

Refused, each with a one-line error: If, Loop and Scan (its sorting does not see what a body reads from the outer
graph), calls of local functions (it does not convert their content: lift the model first), models that already contain
float16, opsets without a Cast to float16, models above 2 GB, and results that ONNX's full checker rejects. It cannot
detect run-time values beyond float16's range, so the file has to be rolled out. Its sorting takes time quadratic in the
number of nodes.

Measured with onnxruntime 1.31 on the CPU, as relative distance of the outputs of one call: the bundled model 2e-4,
pangu_mini 7e-4, timesfm_mini 6e-4, aurora_mini 1.3e-3, at 1.9 to 2.0 times fewer bytes. Models of a few hundred
kilobytes and a thousand nodes do not become smaller: the casts take as many bytes as the conversion saves.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxconverter_common import float16

from tqs_passes.encode.weight import CAST_OPSET
from tqs_passes.errors import InputError
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import Model, without_initializers
from tqs_passes.files.save import SINGLE_FILE_LIMIT_BYTES
from tqs_passes.files.tensors import iter_tensors, tensor_array, tensor_n_bytes
from tqs_passes.graph.names import names_of, opset_of
from tqs_passes.graph.scope import bodies, node_label
from tqs_passes.graph_pass import PassResult, Skip
from tqs_passes.transforms.half_precision.elements import element_types
from tqs_passes.transforms.half_precision.fused_transposes import fused_transposes

_FLOAT, _HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)
#: onnxconverter-common's own limits of stored values.
_LEAST, _MOST = 1e-7, 1e4
#: Operators that stay in float32 without a reason, because a list contains them.
_LISTED = frozenset(float16.DEFAULT_OP_BLOCK_LIST)
#: Operators whose output type is set by an attribute.
_TYPED = frozenset(
    {"Bernoulli", "BlackmanWindow", "Cast", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix",
     "RandomNormal", "RandomNormalLike", "RandomUniform"}
)  # fmt: skip
#: Casts and constants between float32 and float16; they need no reason.
_SILENT = frozenset({"Cast", "Constant", "ConstantOfShape"})
_CRASHES = "onnxruntime's CPU provider crashes on this Transpose in float16"
#: Warnings that `_clamped` reports better, because it knows the tensor.
_KNOWN_WARNING = "will be truncated to"


@dataclass(frozen=True, slots=True)
class HalfWhole:
    """The pass (see the module docstring)."""

    name: ClassVar[str] = "half-whole"

    def apply(self, model: Model) -> PassResult:
        """Return the model in float16, with unchanged inputs and outputs, without external data.

        `changed` names the stored tensors that are now float16; `skipped` names the nodes that stay in float32 and the
        tensors with clamped values, and holds onnxconverter-common's warnings. Deterministic. Not thread-safe: it
        catches Python warnings, which are global to the process.

        Raises
        ------
        InputError
            The conversion does not support this model (see the module docstring).
        """
        _require(model)
        elements = element_types(model)
        if _HALF in elements.values():
            raise _refusal("it already contains float16", "Give the float32 model")
        proto = _inline(model)
        labels = _name_nodes(proto)
        kept = _kept(proto, elements)
        _separate(proto, kept, elements)
        skips = [Skip(labels[n.name], kept[n.name]) for n in proto.graph.node if kept.get(n.name)]
        skips += _clamped(proto)
        proto, told = _converted(proto, set(kept))
        _check(model, proto)
        return PassResult(
            Model(proto, model.folder),
            tuple(t.name for t in proto.graph.initializer if t.data_type == _HALF),
            (*skips, *told),
        )


def _refusal(why: str, todo: str = "Leave the float16 control out") -> InputError:
    return InputError(f"cannot be converted to float16 as a whole: {why}", todo=todo)


def _require(model: Model) -> None:
    proto = model.proto
    for index, node in enumerate(proto.graph.node):
        if next(bodies(node), None) is not None:
            raise _refusal(
                f"onnxconverter-common does not convert {node.op_type} {node_label(node, index)!r} correctly"
            )
    called = {(f.domain, f.name) for f in proto.functions}
    if any((node.domain, node.op_type) in called for node in proto.graph.node):
        raise _refusal("it calls local functions", "Lift it first")
    if opset_of(proto) < CAST_OPSET:
        raise _refusal(
            f"opset {opset_of(proto)} has no Cast to float16", f"Set `opset` to {CAST_OPSET} or more"
        )
    numeric = (t for t in iter_tensors(proto) if t.data_type != onnx.TensorProto.STRING)
    if sum(tensor_n_bytes(tensor) for tensor in numeric) > SINGLE_FILE_LIMIT_BYTES:
        raise _refusal("onnxconverter-common needs the model in one message, and it is above 2 GB")


def _inline(model: Model) -> onnx.ModelProto:
    """Return a copy whose float32 tensors hold raw data, regardless of their original storage."""
    proto = without_initializers(model.proto)
    proto.graph.initializer.extend(model.proto.graph.initializer)
    for tensor in iter_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.float_data:
            values = np.ascontiguousarray(tensor_array(tensor, model.folder)).reshape(tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def _name_nodes(proto: onnx.ModelProto) -> dict[str, str]:
    """Give every node a unique name; return the label of each node for reports, by that name."""
    names, space = Counter(node.name for node in proto.graph.node), names_of(proto).namespace
    labels: dict[str, str] = {}
    for index, node in enumerate(proto.graph.node):
        label = node_label(node, index)
        if not node.name or names[node.name] > 1:
            node.name = f"{space}.n{index}"
        labels[node.name] = label
    return labels


def _kept(proto: onnx.ModelProto, elements: dict[str, int]) -> dict[str, str]:
    """Return the nodes that stay in float32 by name, with the reason; it is empty if no reason is needed."""
    opset, fused = opset_of(proto), fused_transposes(proto.graph)
    kept: dict[str, str] = {}
    for node in proto.graph.node:
        if any(elements.get(name) == _FLOAT for name in (*node.input, *node.output)):
            why = _CRASHES if fused.intersection(node.output) else _why_float32(node, opset, elements)
            if why is not None:
                kept[node.name] = "" if node.op_type in _SILENT else why
    return kept


def _why_float32(node: onnx.NodeProto, opset: int, elements: dict[str, int]) -> str | None:
    op = node.op_type
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}.{op} is not an operator of the standard domain"
    if op in _LISTED:
        return f"onnxconverter-common keeps {op} in float32"
    given = {attribute.name for attribute in node.attribute}
    untyped = (op == "Constant" and "value" not in given) or (op == "ConstantOfShape" and not given)
    if (op in _TYPED or untyped) and elements.get(node.output[0]) == _FLOAT:
        return f"{op} sets its output type by an attribute"
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return f"{op} is not known at opset {opset}"
    for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for position, name in enumerate(names):
            types = formals[min(position, len(formals) - 1)].types
            if elements.get(name) == _FLOAT and "tensor(float16)" not in types:
                return f"{op} does not take float16 at opset {opset}"
    return None


def _separate(proto: onnx.ModelProto, kept: dict[str, str], elements: dict[str, int]) -> None:
    """Insert an Identity wherever a value would have two types, and record the type of every value."""
    graph, space = proto.graph, names_of(proto).namespace
    outputs = {v.name for v in graph.output if v.type.tensor_type.elem_type == _FLOAT}
    renamed = {name: f"{space}.o{i}" for i, name in enumerate(_made(graph)) if name in outputs}
    free = {name for node in graph.node if node.name not in kept for name in node.input}
    shared = {t.name for t in graph.initializer if t.data_type == _FLOAT and t.name in free}
    copied = {name: f"{space}.c{i}" for i, name in enumerate(sorted(shared))}
    read: set[str] = set()
    for node in graph.node:
        names = {**renamed, **copied} if node.name in kept else renamed
        read.update(name for name in node.input if name in copied and node.name in kept)
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    first = [helper.make_node("Identity", [n], [copied[n]], name=copied[n]) for n in sorted(read)]
    last = [helper.make_node("Identity", [new], [old], name=new) for old, new in renamed.items()]
    nodes = [*first, *(onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node), *last]
    del graph.node[:]
    graph.node.extend(nodes)
    noted = [v for v in graph.value_info if v.type.tensor_type.elem_type and v.name not in outputs]
    known = {v.name for v in (*noted, *graph.input, *graph.output)} | {t.name for t in graph.initializer}
    fresh = dict.fromkeys((*renamed.values(), *(copied[name] for name in read)), _FLOAT)
    for name, kind in {**elements, **fresh}.items():
        if name not in known:
            noted.append(helper.make_tensor_value_info(name, kind, None))
    del graph.value_info[:]
    graph.value_info.extend(noted)


def _made(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from (name for name in node.output if name)


def _clamped(proto: onnx.ModelProto) -> list[Skip]:
    """Return the tensors with values beyond the limits."""
    skips: list[Skip] = []
    for tensor in iter_tensors(proto):
        if tensor.data_type != _FLOAT:
            continue
        sizes = np.abs(numpy_helper.to_array(tensor))
        large = int(np.count_nonzero((sizes > _MOST) & np.isfinite(sizes)))
        small = int(np.count_nonzero((sizes < _LEAST) & (sizes > 0)))
        if large:
            skips.append(Skip(tensor.name, f"{large} values beyond ±{_MOST:g} became ±{_MOST:g}"))
        if small:
            skips.append(
                Skip(tensor.name, f"{small} values closer to zero than {_LEAST:g} became ±{_LEAST:g}")
            )
    return skips


def _converted(proto: onnx.ModelProto, kept: set[str]) -> tuple[onnx.ModelProto, list[Skip]]:
    """Convert a model in place with onnxconverter-common; return it and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            proto = cast(Any, float16).convert_float_to_float16(
                proto, _LEAST, _MOST, keep_io_types=True, disable_shape_infer=True,
                node_block_list=sorted(kept), check_fp16_ready=False,
            )  # fmt: skip
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _refusal(f"onnxconverter-common fails ({type(error).__name__}: {error})") from error
    texts = (str(warning.message) for warning in caught)
    return proto, [Skip("onnxconverter-common", text) for text in texts if _KNOWN_WARNING not in text]


def _check(model: Model, proto: onnx.ModelProto) -> None:
    """Refuse a model that is not sound, or whose inputs or outputs changed."""
    for given, made in (
        (model.proto.graph.input, proto.graph.input),
        (model.proto.graph.output, proto.graph.output),
    ):
        if [(v.name, v.type.tensor_type.elem_type) for v in given] != [
            (v.name, v.type.tensor_type.elem_type) for v in made
        ]:
            raise _refusal("onnxconverter-common changes the types of its inputs or outputs")
    complaint = checker_complaint(proto)
    if complaint is not None:
        raise _refusal(f"the checker rejects the result: {complaint}")
