"""Check a model after every pass at low cost: no stored value is read.

Two properties are checked. Every name must be defined exactly once, and before it is read. ONNX's checker must accept
the nodes. The checker gets the model with its stored tensors as graph inputs, so the cost does not depend on their size
or location. It infers no types: it accepts a model whose weights have yet to be written in another type, and an output
whose type a runtime must infer. `tqs_passes.files.checker` is the full check of a whole file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from google.protobuf.message import EncodeError

from tqs_passes.graph.scope import bodies

#: Larger `Constant` nodes become graph inputs for the checker.
_MOST_CONSTANT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Soundness:
    """The defects of a model.

    Parameters
    ----------
    names : frozenset of str
        One sentence for each invalid name.
    checker : str or None
        The first error of ONNX's checker.
    """

    names: frozenset[str]
    checker: str | None

    def worse_than(self, before: Soundness) -> str | None:
        """Return a defect that `before` did not have; None when there is none.

        If the checker rejected the model before, its errors are not informative, and only the names are compared.
        """
        new = sorted(self.names - before.names)
        if new:
            return new[0]
        return self.checker if before.checker is None else None


def soundness(proto: onnx.ModelProto) -> Soundness:
    """Return the defects of a model; the cost is linear in its nodes."""
    found: set[str] = set()
    _collect(proto.graph, [], found)
    return Soundness(frozenset(found), _checker_complaint(_without_values(proto)))


def _collect(graph: onnx.GraphProto, outer: Sequence[set[str]], found: set[str]) -> None:
    """Add a sentence for each invalid name of a graph and its bodies; `outer` are the names of enclosing graphs."""
    stored = [*(t.name for t in graph.initializer), *(s.values.name for s in graph.sparse_initializer)]
    here: set[str] = set()
    for names in ([value.name for value in graph.input], stored):
        found.update(f"{name!r} is defined twice" for name, n in Counter(names).items() if n > 1)
        here.update(names)
    visible = [*outer, here]
    for node in graph.node:
        for name in node.input:
            if name and not any(name in names for names in visible):
                found.add(f"{name!r} is read before it is defined")
        for _, body in bodies(node):
            _collect(body, visible, found)
        for name in node.output:
            if name and name in here:
                found.add(f"{name!r} is defined twice")
            here.add(name)
    for value in graph.output:
        if not any(value.name in names for names in visible):
            found.add(f"the output {value.name!r} is not defined")


def _without_values(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the stored tensors of its main graph as graph inputs."""
    graph = proto.graph
    out = onnx.ModelProto(ir_version=proto.ir_version)
    out.opset_import.extend(proto.opset_import)
    out.functions.extend(proto.functions)
    out.graph.name = graph.name
    out.graph.input.extend(graph.input)
    out.graph.output.extend(value for value in graph.output if value.HasField("type"))
    out.graph.value_info.extend(graph.value_info)
    stored = [*graph.initializer, *(s.values for s in graph.sparse_initializer)]
    for node in graph.node:
        if node.op_type == "Constant" and node.ByteSize() > _MOST_CONSTANT_BYTES and len(node.output) == 1:
            kind = next((a.t.data_type for a in node.attribute if a.name == "value"), onnx.TensorProto.FLOAT)
            stored.append(onnx.TensorProto(name=node.output[0], data_type=kind))
        else:
            out.graph.node.append(node)
    given = {value.name for value in graph.input}
    for tensor in stored:
        if tensor.name not in given:
            out.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return out


def _checker_complaint(proto: onnx.ModelProto) -> str | None:
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, EncodeError, ValueError, RuntimeError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
