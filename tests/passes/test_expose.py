"""`expose`: weights become inputs; fed with their own values the model computes what it did."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models import NOWHERE, TOKENS, block, draws, info, loop, model_of, run, tensor, two_branches
from tqs_passes.files.model import Model, load_model, serialize
from tqs_passes.transforms.expose import Expose, weight_values


def values_of(model: Model, *names: str) -> dict[str, np.ndarray]:
    stored = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    return {name: stored[name] for name in names}


def linear(kind: type[np.generic] = np.float32) -> Model:
    onnx_kind = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    stored = [tensor("w", draws(0, 4, 3, dtype=kind)), tensor("b", draws(1, 3, dtype=kind))]
    return model_of(nodes, [info("x", [2, 4], onnx_kind)], [info("y", [2, 3], onnx_kind)], stored)


ALL = ("embed", "table", "gain", "bias", "up", "down", "down_bias", "kernel", "kernel_bias")


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_nominal_values_give_the_nominal_outputs(opset: int) -> None:
    model = block(opset)
    exposed = Expose(ALL).apply(model)
    assert exposed.changed == ALL
    got = run(exposed.model, TOKENS | values_of(model, *ALL))["y"]
    # Constant weights may be fused and prepacked, fed ones not: sums of 36 float32 products, 1e-5 of values near 1
    np.testing.assert_allclose(got, run(model, TOKENS)["y"], rtol=1e-5, atol=1e-5)


def test_exposed_weights_are_inputs_in_the_order_given_and_no_longer_stored() -> None:
    proto = Expose(("down", "up")).apply(block()).model.proto
    assert [i.name for i in proto.graph.input] == ["tokens", "down", "up"]
    assert not {"down", "up"} & {t.name for t in proto.graph.initializer}
    assert "embed" in {t.name for t in proto.graph.initializer}


def test_an_input_has_the_weights_type_and_shape() -> None:
    port = Expose(("w",)).apply(linear(np.float16)).model.proto.graph.input[-1]
    assert port.type.tensor_type.elem_type == TensorProto.FLOAT16
    assert [d.dim_value for d in port.type.tensor_type.shape.dim] == [4, 3]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_an_overridden_weight_changes_the_outputs_as_numpy_says(kind: type[np.generic]) -> None:
    model, x, other = linear(kind), draws(5, 2, 4, dtype=kind), draws(6, 4, 3, dtype=kind)
    exposed = Expose(("w",)).apply(model).model
    expected = x.astype(np.float64) @ other + values_of(model, "b")["b"]
    # A handful of additions: a few units of the type's own precision
    tolerance = 8 * float(np.finfo(kind).eps)
    np.testing.assert_allclose(
        run(exposed, {"x": x, "w": other})["y"], expected, rtol=tolerance, atol=4 * tolerance
    )


def test_bfloat16_weights_can_be_fed() -> None:
    stored = numpy_helper.from_array(draws(0, 4, 3).astype(ml_dtypes.bfloat16), "w")
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    model = model_of(nodes, [info("x", [2, 4])], [info("y", [2, 3])], [stored])
    exposed = Expose(("w",)).apply(model)
    x, w = draws(1, 2, 4), draws(2, 4, 3).astype(ml_dtypes.bfloat16)
    got = run(exposed.model, {"x": x, "w": w})["y"]
    np.testing.assert_allclose(got, x @ w.astype(np.float32), rtol=1e-5, atol=1e-5)  # float32 sums of four


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_readers_in_the_bodies_of_an_if_see_the_input(name: str, flag: bool) -> None:
    model = two_branches()
    exposed = Expose((name,)).apply(model)
    assert exposed.changed == (name,)
    weights = values_of(model, "a", "b", "c")
    weights[name] = draws(9, 4, 3)
    x = draws(1, 2, 4)
    inside = x @ weights["a"] + x @ weights["c"] if flag else x @ weights["b"]
    got = run(exposed.model, {"x": x, "flag": np.array(flag), name: weights[name]})["y"]
    np.testing.assert_allclose(got, inside + x @ weights["c"], rtol=1e-5, atol=1e-5)  # float32 sums of four


def test_readers_in_the_body_of_a_loop_see_the_input() -> None:
    exposed = Expose(("w",)).apply(loop())
    x, w = draws(1, 2, 3), draws(8, 3, 3)
    np.testing.assert_allclose(run(exposed.model, {"x": x, "w": w})["y"], x @ w @ w, rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_an_output_as_well_can_be_fed() -> None:
    model = linear()
    model.proto.graph.output.append(info("w", [4, 3]))
    exposed = Expose(("w",)).apply(model)
    w = draws(7, 4, 3)
    np.testing.assert_array_equal(run(exposed.model, {"x": draws(1, 2, 4), "w": w})["w"], w)


def test_names_that_are_no_read_initializer_are_skipped_with_a_reason() -> None:
    model = linear()
    model.proto.graph.initializer.append(tensor("idle", draws(3, 2, 2)))
    result = Expose(("gone", "idle", "x", "w")).apply(model)
    assert result.changed == ("w",)
    assert [s.what for s in result.skipped] == ["gone", "idle", "x"]
    assert all(s.why for s in result.skipped)


@pytest.mark.parametrize("opset", [9, 11, 17, 21])
def test_versions_are_kept(opset: int) -> None:
    model = block(opset)
    proto = Expose(("up",)).apply(model).model.proto
    assert proto.ir_version == model.proto.ir_version
    assert list(proto.opset_import) == list(model.proto.opset_import)


def test_other_operator_sets_are_kept() -> None:
    model = linear()
    model.proto.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"))
    model.proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.proto.graph.output.append(info("z", [2, 3]))
    exposed = Expose(("w",)).apply(model).model
    assert {(o.domain, o.version) for o in exposed.proto.opset_import} == {("", 17), ("com.microsoft", 1)}
    feeds = {"x": draws(1, 2, 4)}
    expected = run(model, feeds)["z"]
    np.testing.assert_allclose(
        run(exposed, feeds | values_of(model, "w"))["z"], expected, rtol=1e-5, atol=1e-6
    )


def test_the_input_is_not_mutated() -> None:
    model = two_branches()
    before = serialize(model.proto)
    Expose(("a", "c")).apply(model)
    assert serialize(model.proto) == before


def test_hostile_names_become_inputs() -> None:
    names = {"up": "a\nb/💥", "down": "n" * 10_000, "embed": "tokens2 "}
    model = block(rename=names)
    exposed = Expose(tuple(names.values())).apply(model)
    assert exposed.changed == tuple(names.values())
    got = run(exposed.model, TOKENS | values_of(model, *names.values()))["y"]
    np.testing.assert_allclose(got, run(model, TOKENS)["y"], rtol=1e-5, atol=1e-5)


def test_external_data_are_read_and_scalars_keep_their_rank(tmp_path: Path) -> None:
    model = linear()
    model.proto.graph.node.append(helper.make_node("Mul", ["y", "k"], ["z"]))
    model.proto.graph.initializer.append(tensor("k", np.array(2.5, np.float32)))
    model.proto.graph.output.append(info("z", [2, 3]))
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    onnx.save_model(
        copy, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    loaded = load_model(tmp_path / "m.onnx")
    exposed = Expose(("w",)).apply(loaded).model
    assert list(next(t for t in exposed.proto.graph.initializer if t.name == "k").dims) == []
    feeds = {"x": draws(1, 2, 4)}
    got = run(exposed, feeds | {"w": weight_values(loaded, "w", "float32")})["z"]
    np.testing.assert_allclose(got, run(model, feeds)["z"], rtol=1e-5, atol=1e-6)


def test_the_values_of_exposed_weights_are_not_in_the_model() -> None:
    big = draws(0, 512, 256)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", [1, 512])],
        [info("y", [1, 256])],
        [tensor("w", big)],
        folder=NOWHERE,
    )
    assert len(serialize(Expose(("w",)).apply(model).model.proto)) < 1000
