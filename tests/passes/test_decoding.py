"""`check` and `random_ops`: what ONNX's checker says, what an emitted file decodes to, which nodes draw numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models import NOWHERE, block, draws, info, model_of, run, tensor
from tqs_passes.errors import InputError
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import Model
from tqs_passes.graph.decoding import decoding
from tqs_passes.graph.random_ops import random_operators


def decoded() -> Model:
    """`w` is made of stored codes and scales, `h` and `y` of the input as well."""
    nodes = [
        helper.make_node("Cast", ["codes"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "w0"], ["y"]),
    ]
    stored = [
        tensor("codes", np.arange(-6, 6, dtype=np.int8).reshape(4, 3)),
        tensor("scale", np.array([[0.5, 0.25, 3.0]], np.float32)),
        tensor("w0", draws(0, 3)),
    ]
    return model_of(nodes, [info("x", [2, 4])], [info("y", [2, 3])], stored)


def in_an_if(read_in_body: str) -> Model:
    """`w` comes out of an If with a stored condition, whose bodies read `read_in_body` from around them."""
    bodies = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Neg", [read_in_body], [f"{name}_out"])],
            name,
            [],
            [info(f"{name}_out", [4, 3])],
        )
        for name in ("then", "else")
    }
    nodes = [helper.make_node("If", ["yes"], ["w"], **bodies), helper.make_node("MatMul", ["x", "w"], ["y"])]
    stored = [tensor("yes", np.array(True)), tensor("base", draws(0, 4, 3))]
    return model_of(nodes, [info("x", [4, 4]), info("z", [4, 3])], [info("y", [4, 3])], stored)


def test_the_decoding_computes_the_weight_exactly() -> None:
    expected = np.arange(-6, 6).reshape(4, 3) * np.array([[0.5, 0.25, 3.0]])
    np.testing.assert_array_equal(run(decoding(decoded(), ["w"]))["w"], expected.astype(np.float32))


def test_the_decoding_holds_only_what_it_needs() -> None:
    cut = decoding(decoded(), ["w"]).graph
    assert [n.op_type for n in cut.node] == ["Cast", "Mul"]
    assert [t.name for t in cut.initializer] == ["codes", "scale"]
    assert not cut.input


def test_a_stored_tensor_decodes_to_itself() -> None:
    got = run(decoding(decoded(), ["w0", "w"]))
    np.testing.assert_array_equal(got["w0"], draws(0, 3))
    assert got["w"].shape == (4, 3)


def test_stored_tensors_alone_decode_too() -> None:
    np.testing.assert_array_equal(run(decoding(decoded(), ["w0"]))["w0"], draws(0, 3))


@pytest.mark.parametrize("name", ["h", "y", "x", "absent"])
def test_a_tensor_that_depends_on_an_input_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="does not compute this weight from stored tensors alone"):
        decoding(decoded(), ["w", name])


def test_what_a_body_reads_from_around_it_is_part_of_the_decoding() -> None:
    np.testing.assert_array_equal(run(decoding(in_an_if("base"), ["w"]))["w"], -draws(0, 4, 3))


def test_an_input_that_only_a_body_reads_is_refused() -> None:
    with pytest.raises(InputError, match="does not compute this weight from stored tensors alone"):
        decoding(in_an_if("z"), ["w"])


def test_the_decoding_leaves_its_model_alone() -> None:
    model = decoded()
    before = model.proto.SerializeToString()
    decoding(model, ["w"])
    assert model.proto.SerializeToString() == before


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_a_sound_model_has_no_complaint(opset: int) -> None:
    assert checker_complaint(block(opset).proto) is None


@pytest.mark.parametrize("fault", ["unknown operator", "undefined input", "wrong shape"])
def test_a_broken_model_has_one_line_of_complaint(fault: str) -> None:
    proto = block().proto
    if fault == "unknown operator":
        proto.graph.node[0].op_type = "Gathr"
    elif fault == "undefined input":
        proto.graph.node[1].input[1] = "nobody"
    else:
        proto.graph.output[0].CopyFrom(info("y", [2, 3, 99]))
    complaint = checker_complaint(proto)
    assert complaint
    assert "\n" not in complaint


def drawing(domain: str = "") -> onnx.NodeProto:
    return helper.make_node("RandomNormalLike", ["a"], ["b"], name="noise", domain=domain)


def test_a_node_that_draws_is_named() -> None:
    model = model_of([drawing()], [info("a", [2])], [info("b", [2])], [])
    assert random_operators(model.proto) == ("RandomNormalLike 'noise'",)


def test_nothing_draws_in_a_plain_model_or_in_another_domain() -> None:
    assert random_operators(block().proto) == ()
    assert random_operators(model_of([drawing("mine")], [], [], []).proto) == ()


@pytest.mark.parametrize(
    ("training", "named"),
    [("yes", True), ("no", False), ("made_no", False), ("flag", True), ("", False)],
)
def test_dropout_draws_unless_its_training_mode_is_a_constant_false(training: str, named: bool) -> None:
    node = helper.make_node("Dropout", ["a", "", training], ["b"], name="drop")
    no = numpy_helper.from_array(np.array(False), "no")
    made = helper.make_node("Constant", [], ["made_no"], value=no)
    stored = [no, numpy_helper.from_array(np.array(True), "yes")]
    flag = helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    model = model_of([made, node], [info("a", [2]), flag], [info("b", [2])], stored)
    assert random_operators(model.proto) == (("Dropout 'drop'",) if named else ())


def test_draws_in_bodies_and_in_bodies_of_functions_are_found() -> None:
    body = helper.make_graph([drawing()], "body", [], [info("b", [2])])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    assert len(random_operators(model_of([branch], [], [], []).proto)) == 2
    function = helper.make_function("f", "F", ["c", "a"], ["y"], [branch], [helper.make_opsetid("", 17)])
    proto = onnx.ModelProto(functions=[function])
    assert len(random_operators(Model(proto, NOWHERE).proto)) == 2
