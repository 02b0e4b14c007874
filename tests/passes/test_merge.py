"""Weights of equal content become one weight, wherever they are stored and read; the model computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, parser

from tests.models import draws, info, model_of, run, tensor
from tqs_passes.files.model import Model
from tqs_passes.survey.merge import MergeEqual
from tqs_passes.survey.survey import find_weights
from tqs_passes.weights import Weight


def chain(**weights: np.ndarray) -> Model:
    """x · w · v …, in the order given."""
    names = list(weights)
    values = ["x", *(f"h{i}" for i in range(1, len(names))), "y"]
    nodes = [helper.make_node("MatMul", [values[i], n], [values[i + 1]], name=n) for i, n in enumerate(names)]
    width = weights[names[0]].shape[0]
    stored = [tensor(n, w) for n, w in weights.items()]
    return model_of(
        nodes, [info("x", [2, width])], [info("y", [2, weights[names[-1]].shape[1]])], stored, folder=Path()
    )


def of(model: Model) -> dict[str, Weight]:
    return find_weights(model)[1].by_name()


def test_equal_weights_are_one_with_all_their_readers() -> None:
    w = draws(0, 4, 4)
    found = of(chain(w=w, u=draws(1, 4, 4), v=w.copy()))
    assert {n: (x.copies, x.n_stored, [r.node for r in x.readers]) for n, x in found.items()} == {
        "w": (("v",), 2, ["w", "v"]),
        "u": ((), 1, ["u"]),
    }


def test_the_model_computes_the_same_with_one_tensor_fewer() -> None:
    w, x = draws(0, 4, 4), draws(2, 2, 4)
    model = chain(w=w, v=w.copy())
    merged = MergeEqual(frozenset({"w", "v"})).apply(model)
    assert [t.name for t in merged.model.proto.graph.initializer] == ["w"]
    onnx.checker.check_model(merged.model.proto)
    # The same kernels run on the same values.
    np.testing.assert_array_equal(run(merged.model, {"x": x})["y"], run(model, {"x": x})["y"])


def test_large_tensors_that_differ_in_the_middle_stay_apart() -> None:
    w = draws(0, 512, 512)
    v = w.copy()
    v[256, 100] += 1
    assert list(of(chain(w=w, v=v))) == ["w", "v"]


def test_equal_bytes_of_another_shape_stay_apart() -> None:
    w = draws(0, 4, 6)
    assert list(of(chain(w=w, v=w.reshape(6, 4)))) == ["w", "v"]


def test_a_weight_that_the_graph_returns_stays_apart() -> None:
    w = draws(0, 4, 4)
    model = chain(w=w, v=w.copy())
    model.proto.graph.output.append(info("v", [4, 4]))
    merged = MergeEqual(frozenset({"w", "v"})).apply(model)
    assert merged.model is model
    assert [(s.what, s.why) for s in merged.skipped] == [("v", "it is an output of a graph")]


def test_bodies_read_the_first_of_equal_weights() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2, 4] x, bool flag) => (float[2, 4] y)
    <float[4, 4] w, float[4, 4] v> {
      h = MatMul(x, w)
      y = If(flag)<then_branch = t () => (float[2, 4] a) { a = MatMul(h, v) },
                   else_branch = e () => (float[2, 4] b) { b = Neg(h) }> }"""
    proto = parser.parse_model(text)
    w = draws(3, 4, 4)
    for name in ("w", "v"):
        stored = next((t for t in proto.graph.initializer if t.name == name), proto.graph.initializer.add())
        stored.CopyFrom(tensor(name, w))
    lifted, survey = find_weights(Model(proto, Path()))
    assert [(x.name, x.copies) for x in survey.weights] == [("w", ("v",))]
    feeds = {"x": draws(4, 2, 4), "flag": np.array(True)}
    np.testing.assert_array_equal(run(lifted, feeds)["y"], run(proto, feeds)["y"])


def test_a_name_that_a_body_defines_again_is_not_merged() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2, 4] x, bool flag) => (float[2, 4] y) {
      h = MatMul(x, w)
      k = MatMul(h, v)
      y = If(flag)<then_branch = t () => (float[2, 4] a) { w = Neg(k)  a = Identity(w) },
                   else_branch = e () => (float[2, 4] b) { b = Neg(k) }> }"""
    proto = parser.parse_model(text)
    w = draws(3, 4, 4)
    proto.graph.initializer.extend([tensor("w", w), tensor("v", w)])
    merged = MergeEqual(frozenset({"w", "v"})).apply(Model(proto, Path()))
    assert [s.what for s in merged.skipped] == ["w"]
    assert not merged.changed


def test_the_content_of_a_function_is_stored_once_however_often_it_is_called() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
    g (float[b, 2] x) => (float[b, 2] y) { p = local.turn(x)  q = local.turn(p)  y = local.turn(q) }
    <domain: "local", opset_import: ["" : 18]>
    turn (a) => (o) { w = Constant<value = float[2, 2] {0.6, -0.8, 0.8, 0.6}>()  o = MatMul(a, w) }"""
    (weight,) = of(Model(parser.parse_model(text), Path())).values()
    assert (weight.n_stored, len(weight.copies), len(weight.readers)) == (1, 2, 3)
