from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from tqs_onnx.rollout.session import open_session
from tqs_passes.files.model import Model, serialize
from tqs_passes.transforms.capture import Capture, captured_names

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
{
  h = MatMul(x, w)
  y = Relu(h)
}
"""


def model(text: str = TEXT) -> Model:
    return Model(onnx.parser.parse_model(text), Path())


def test_what_flows_into_a_reader_becomes_an_output() -> None:
    captured = Capture(("h", "x")).apply(model())
    session = open_session(serialize(captured.model.proto))
    x = np.array([[1.0, -1.0]], np.float32)
    values = {k: v.numpy() for k, v in session.run({"x": session.value(x)}).items()}
    names = captured_names(model(), ("h", "x"))
    np.testing.assert_array_equal(values[names["h"]], [[-2.0, -2.0]])
    np.testing.assert_array_equal(values[names["x"]], x)
    np.testing.assert_array_equal(values["y"], [[0.0, 0.0]])


def test_what_is_there_stays_as_it_is() -> None:
    before, after = model().proto, Capture(("h",)).apply(model()).model.proto
    assert list(after.graph.node)[:-1] == list(before.graph.node)
    assert list(after.graph.output)[:-1] == list(before.graph.output)
    assert list(after.graph.initializer) == list(before.graph.initializer)


def test_the_given_model_is_left_alone() -> None:
    given = model()
    before = given.proto.SerializeToString(deterministic=True)
    Capture(("h",)).apply(given)
    assert given.proto.SerializeToString(deterministic=True) == before


def test_a_declared_type_is_kept_and_passes_the_checker() -> None:
    captured = Capture(("x",)).apply(model()).model.proto
    onnx.checker.check_model(captured, full_check=True)
    assert captured.graph.output[-1].type == captured.graph.input[0].type


def test_a_tensor_that_is_not_there_is_skipped_with_a_reason() -> None:
    result = Capture(("h", "nothing")).apply(model())
    assert result.changed == ("h",)
    assert [(s.what, s.why) for s in result.skipped] == [("nothing", "no such tensor in the main graph")]


def test_names_of_a_model_that_was_captured_before_are_not_taken_again() -> None:
    once = Capture(("h",)).apply(model()).model
    twice = Capture(("h",)).apply(once).model
    names = [o.name for o in twice.proto.graph.output]
    assert len(set(names)) == len(names) == 3
