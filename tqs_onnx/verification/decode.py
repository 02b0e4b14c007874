"""Decodes the weights of an emitted file with the runtime and compares them bit for bit with the plan.

A weight that is decoded under its own name is fetched by running only the nodes that produce it. A weight stored for
its reader has no such name; it is checked in two ways:

- MatMulNBits: the packed operand and the scales, as the runtime folds them, are unpacked in full; in addition the
  operator is fed unit vectors, for every row or for `_MOST_ROWS` rows spread over them, and must return these rows.
- integers multiplied with a rounded input: the int8 levels and the scale, as the runtime folds them, are multiplied.
- codes gathered first: the nodes from the indices to the reader's output are run with every index.

A fault that depends on the activations is not visible here; the rollout shows it (`verify`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_onnx.emission import prepared_for
from tqs_onnx.rollout.session import Session, SessionOptions, open_session
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.verification.subject import Subject
from tqs_passes.encode.dynamic import scale_of
from tqs_passes.encode.lstm import lstm_operands
from tqs_passes.encode.nbits import operands, unpacked
from tqs_passes.encode.weight import Form, is_turned
from tqs_passes.errors import GateError
from tqs_passes.files.model import Model, serialize
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.decoding import decoding
from tqs_passes.graph.readers import readers_in
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.plan import Assignment

#: Maximum bytes of weights decoded at once.
_DECODE_CHUNK_BYTES = 256 << 20
#: Maximum number of unit vectors fed to one operator, and of their values at once.
_MOST_ROWS = 1024
_PROBE_VALUES = 1 << 22

_STORED_FOR_READER = (Form.NBITS, Form.GATHERED, Form.DYNAMIC)


def check_decoding(subject: Subject, emitted: Model, bed: Testbed) -> int:
    """Decode every rewritten weight with the runtime; return how many equal the reference bit for bit.

    Raises
    ------
    GateError
        A decoded weight differs, or a weight that the plan keeps differs from the source.
    """
    plan = subject.plan
    changed = (plan.names, plan.graph) != ("keep", "keep")
    ready = prepared_for(subject.lifted, plan) if changed else subject.lifted
    _check_kept(subject, emitted, ready)
    probe = _Probe(subject, emitted, bed, ready)
    planned = [a for a in subject.plan.assignments if a.form is not Form.KEEP]
    chunk: list[Assignment] = []
    size = 0
    for a in planned:
        if a.form in _STORED_FOR_READER:
            probe.check_reader(a)
            continue
        chunk.append(a)
        size += int(np.prod(a.shape)) * 4
        if size >= _DECODE_CHUNK_BYTES:
            probe.check_named(chunk)
            chunk, size = [], 0
    probe.check_named(chunk)
    return len(planned)


def _check_kept(subject: Subject, emitted: Model, ready: Model) -> None:
    theirs = {t.name: t for t in emitted.proto.graph.initializer}
    ours = {t.name: t for t in subject.lifted.proto.graph.initializer}
    for a in subject.plan.assignments:
        if a.form is not Form.KEEP:
            continue
        stored = ready.stored_name(a.weight)
        same = stored in theirs and _same_bits(
            tensor_array(theirs[stored], emitted.folder),
            reference_weight(a, tensor_array(ours[a.weight], subject.lifted.folder)),
        )
        if not same:
            raise GateError(
                f"weight {a.label!r} differs from the source, although the plan keeps it",
                where=str(subject.emitted),
            )


class _Probe:
    """Decodes weights of one file; `ready` is the model whose weights were stored, with the names of the file."""

    def __init__(self, subject: Subject, emitted: Model, bed: Testbed, ready: Model) -> None:
        self._subject, self._emitted, self._bed = subject, emitted, bed
        self._stored = {t.name: t for t in subject.lifted.proto.graph.initializer}
        self._made = {out for node in emitted.proto.graph.node for out in node.output}
        self._readers = readers_in(ready)
        self._ready = ready

    def check_named(self, chunk: list[Assignment]) -> None:
        """Compare weights that are decoded under their own names."""
        if not chunk:
            return
        for a in chunk:
            if self._ready.stored_name(a.weight) not in self._made:
                raise self._not_decoded(a)
        session = self._session(decoding(self._emitted, [self._ready.stored_name(a.weight) for a in chunk]))
        decoded = {name: value.numpy() for name, value in session.run({}).items()}
        for a in chunk:
            reference = self._reference(a)
            if a.form is Form.STATIC and is_turned(self._readers[a.weight]):  # stored for a MatMul
                reference = np.ascontiguousarray(reference.T)
            self._require_equal(a, decoded[self._ready.stored_name(a.weight)], reference)

    def check_reader(self, a: Assignment) -> None:
        """Compare a weight that is stored for its reader."""
        if a.form is Form.NBITS:
            self._check_packed(a)
        elif a.form is Form.DYNAMIC:
            self._check_levels(a)
        else:
            self._check_gathered(a)

    def _check_packed(self, a: Assignment) -> None:
        packed_name = self._ready.stored_name(a.weight)
        node = next((n for n in self._emitted.proto.graph.node if operands(n)[:1] == (packed_name,)), None)
        if node is None:
            raise self._not_decoded(a)
        reference = self._reference(a)
        across = reference.T if _columns(self._readers[a.weight]) == 1 else reference  # [N, K]
        session = self._session(decoding(self._emitted, operands(node)))
        packed, scales = (value.numpy() for value in session.run({}, operands(node)).values())
        bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
        self._require_equal(a, unpacked(packed, scales, bits), np.ascontiguousarray(across))
        k = across.shape[1]
        fed = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, ["m", k])
        session = self._session(decoding(self._emitted, [node.output[0]], fed))
        rows = np.unique(np.linspace(0, k - 1, min(k, _MOST_ROWS)).astype(np.int64))
        for some in np.array_split(rows, -(-rows.size * k // _PROBE_VALUES)):
            units = np.zeros((some.size, k), np.float32)
            units[np.arange(some.size), some] = 1
            got = session.run({node.input[0]: session.value(units)})[node.output[0]].numpy()
            self._require_equal(a, got, np.ascontiguousarray(across[:, some].T))

    def _check_levels(self, a: Assignment) -> None:
        nodes = list(self._emitted.proto.graph.node)
        levels_name = self._ready.stored_name(a.weight)
        lstm = lstm_operands(nodes, levels_name)
        made = {out: n for n in nodes for out in n.output}
        scale_name = lstm[1] if lstm else scale_of(made, nodes, levels_name)
        if scale_name is None:
            raise self._not_decoded(a)
        stored = {t.name: t for t in self._emitted.proto.graph.initializer}
        computed = [name for name in (levels_name, scale_name) if name not in stored]
        found: dict[str, NDArray[Any]] = {}
        if computed:
            folded = self._session(decoding(self._emitted, computed)).run({}, computed)
            found = {name: value.numpy() for name, value in folded.items()}
        found |= {
            n: tensor_array(t, self._emitted.folder)
            for n, t in stored.items()
            if n in (levels_name, scale_name)
        }
        levels, scale = found[levels_name], found[scale_name]
        reference = self._reference(a)
        if lstm:
            across = reference.transpose(0, 2, 1)  # [1, K, 4H], scale [1, 4H] or [1]
            scale = scale.reshape(1, 1, -1)
        else:
            across = reference.T if _columns(self._readers[a.weight]) == 0 else reference  # [K, N]
        self._require_equal(a, levels.astype(np.float32) * scale, np.ascontiguousarray(across))

    def _check_gathered(self, a: Assignment) -> None:
        reader = self._readers.get(a.weight)
        if reader is None or reader.output[0] not in self._made:
            raise self._not_decoded(a)
        fed = onnx.helper.make_tensor_value_info(reader.input[1], onnx.TensorProto.INT64, ["m"])
        session = self._session(decoding(self._emitted, [reader.output[0]], fed))
        indices = np.arange(a.shape[0], dtype=np.int64)
        got = session.run({reader.input[1]: session.value(indices)})[reader.output[0]].numpy()
        self._require_equal(a, got, self._reference(a))

    def _reference(self, a: Assignment) -> NDArray[Any]:
        values = tensor_array(self._stored[a.weight], self._subject.lifted.folder)
        return reference_weight(a, values, self._subject.codes.get(a.weight))

    def _session(self, proto: onnx.ModelProto) -> Session:
        return open_session(
            serialize(proto),
            provider=self._bed.provider,
            options=SessionOptions(self._bed.run.threads, device=self._bed.run.device),  # TF32 would round
            folder=self._emitted.folder,
        )

    def _require_equal(self, a: Assignment, got: NDArray[Any], wanted: NDArray[Any]) -> None:
        if not _same_bits(got, wanted):
            raise GateError(
                f"weight {a.label!r} does not decode to the plan's values", where=str(self._subject.emitted)
            )

    def _not_decoded(self, a: Assignment) -> GateError:
        return GateError(
            f"weight {a.label!r} is not decoded in the file: it was emitted from another plan",
            where=str(self._subject.emitted),
        )


def _columns(reader: onnx.NodeProto) -> int:
    """Return the axis of the columns in a matrix read by MatMul or Gemm."""
    return 0 if is_turned(reader) else 1


def _same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    left, right = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
