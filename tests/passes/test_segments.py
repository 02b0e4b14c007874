"""A model cut into parts that run one after another computes what the whole model computes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from tests.rollouts import model, values
from tqs_onnx.rollout.session import open_session
from tqs_passes.graph.segments import Segment, segments
from tqs_passes.graph.split_model import value_types

KEPT = ("h", "k", "y")


def residual() -> onnx.ModelProto:
    """Two residual branches, a constant that both read, and a shape that is computed."""
    graph = """(float[b, 6] x, float[6, 6] W) => (float[b, 6] y, float[b, 6] z) {
      two = Constant<value = float {2.0}>()
      four = Mul(two, two)
      size = Shape(x)
      h = MatMul(x, W)
      g = Mul(h, four)
      i = Add(x, g)
      k = Tanh(i)
      m = MatMul(k, B)
      n = Mul(m, two)
      o = Add(i, n)
      y = Reshape(o, size)
      z = Neg(y) }"""
    return model(graph, {"B": values(6, 6, seed=2)})


def whole(proto: onnx.ModelProto, given: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    types = value_types(proto)
    there = {o.name for o in proto.graph.output}
    shown.graph.output.extend(types[n] for n in KEPT if n not in there)
    session = open_session(shown.SerializeToString())
    made = session.run({n: session.value(a) for n, a in given.items()}, KEPT)
    return {n: v.numpy() for n, v in made.items()}


def by_parts(
    parts: Collection[Segment], given: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    known = dict(given)
    for part in parts:
        assert tuple(i.name for i in part.model.graph.input) == part.reads
        assert tuple(o.name for o in part.model.graph.output) == part.makes
        if not part.makes:
            continue
        session = open_session(part.model.SerializeToString())
        made = session.run({n: session.value(known[n]) for n in part.reads}, part.makes)
        known |= {n: v.numpy() for n, v in made.items()}
    return {n: known[n] for n in KEPT}


@pytest.mark.parametrize("cuts", [(), (6,), (3, 7), tuple(range(14))])
def test_parts_make_the_same_bits_as_the_whole(cuts: tuple[int, ...]) -> None:
    proto, given = residual(), {"x": values(3, 6), "W": values(6, 6, seed=1)}
    parts = segments(proto, cuts, KEPT, value_types(proto))
    assert len(parts) == len([c for c in cuts if 0 < c < len(proto.graph.node)]) + 1
    for name, expected in whole(proto, given).items():
        np.testing.assert_array_equal(by_parts(parts, given)[name], expected)


def test_a_part_holds_what_is_needed_and_computes_constants_itself() -> None:
    proto = residual()
    _, middle, last = segments(proto, (4, 7), KEPT, value_types(proto))
    assert [n.op_type for n in middle.model.graph.node] == ["Constant", "Mul", "Mul", "Add", "Tanh"]
    assert (middle.reads, middle.makes) == (("h", "x"), ("i", "k"))
    assert [n.op_type for n in last.model.graph.node] == ["Constant", "MatMul", "Mul", "Add", "Reshape"]
    assert [t.name for t in last.model.graph.initializer] == ["B"]
    assert not middle.model.graph.initializer
    onnx.checker.check_model(last.model)


def test_a_cut_that_a_value_of_unknown_type_would_cross_is_left_out() -> None:
    proto = residual()
    types = {n: t for n, t in value_types(proto).items() if n != "i"}
    parts = segments(proto, (5, 6, 7, 9, 10), KEPT, types)  # node 5 makes i, node 9 is the last that reads it
    assert ["i" in [o for n in p.model.graph.node for o in n.output] for p in parts] == [False, True, False]


def test_a_kept_constant_is_made_once() -> None:
    proto = residual()
    parts = segments(proto, (4, 8), ("four", "y"), value_types(proto))
    assert [part.makes.count("four") for part in parts] == [1, 0, 0]
    assert "four" in parts[1].reads


def test_a_body_reads_the_values_of_earlier_parts() -> None:
    proto = model(
        """(float[b, 6] x, bool p) => (float[b, 6] y) {
          h = Tanh(x)
          i = Neg(x)
          k = If(p) <then_branch = t () => (float[b, 6] s) { s = Add(h, i) },
                     else_branch = e () => (float[b, 6] u) { u = Identity(h) }>
          y = Abs(k) }""",
        {},
    )
    types = value_types(proto)
    types.setdefault("k", helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, ["b", 6]))
    _, second, _ = segments(proto, (2, 3), ("y",), types)
    assert set(second.reads) == {"p", "h", "i"}
