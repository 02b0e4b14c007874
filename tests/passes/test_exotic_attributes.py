"""Files with attributes that onnx-graphsurgeon cannot carry run when their weights are exposed; stdout stays clean."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tests.models import draws, info, model_of, run, tensor
from tests.rollouts import values, write_case
from tqs_onnx.cli import inspect
from tqs_onnx.cli.main import main
from tqs_passes.files.model import Model
from tqs_passes.transforms.expose import Expose


def sparse_constant() -> Model:
    """y = x · w + s with s sparse, 2 of 12 values."""
    held = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [2], [5.0, -3.0]),
        helper.make_tensor("i", TensorProto.INT64, [2], [1, 10]),
        [3, 4],
    )
    nodes = [
        helper.make_node("Constant", [], ["s"], sparse_value=held),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "s"], ["y"]),
    ]
    return model_of(nodes, [info("x", [3, 4])], [info("y", [3, 4])], [tensor("w", draws(0, 4, 4))])


def optional(inside: bool) -> Model:
    """y = x · w, or 0 if an optional value is empty; `inside` a branch or in the main graph."""
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [3, 4])
    nodes = [
        helper.make_node("Optional", [], ["none"], type=kind),
        helper.make_node("OptionalHasElement", ["none"], ["has"]),
    ]
    branch = [
        helper.make_graph([helper.make_node("MatMul", ["x", "w"], [out])], out, [], [info(out, [3, 4])])
        for out in ("then_y", "else_y")
    ]
    test = helper.make_node("If", ["has"], ["y"], then_branch=branch[0], else_branch=branch[1])
    if not inside:
        nodes.append(test)
    else:
        inner = helper.make_graph([*nodes, test], "outer", [], [info("y", [3, 4])])
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "other", [], [info("n", [3, 4])])
        nodes = [helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=other)]
    ports = [info("x", [3, 4]), *([info("flag", [], TensorProto.BOOL)] if inside else [])]
    return model_of(
        nodes, ports, [info("z" if inside else "y", [3, 4])], [tensor("w", draws(0, 4, 4))], opset=18
    )


@pytest.mark.parametrize(
    "model", [sparse_constant(), optional(False), optional(True)], ids=["sparse", "type", "body"]
)
def test_a_file_that_runs_also_runs_exposed(model: Model) -> None:
    feeds = {"x": draws(1, 3, 4)} | ({"flag": np.array(True)} if len(model.proto.graph.input) > 1 else {})
    (right,) = run(model, feeds).values()
    (made,) = run(Expose(("w",)).apply(model).model, feeds | {"w": draws(0, 4, 4)}).values()
    np.testing.assert_allclose(made, right, rtol=1e-6, atol=1e-6)


def with_brain_float() -> onnx.ModelProto:
    """y = x · w, in which a bfloat16 scale is cast."""
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 19]> g (float[b, 48] x) => (float[b, 48] y) {
        p = MatMul(x, w)  k = Cast<to = 1>(scale)  y = Mul(p, k) }"""
    )
    scale = numpy_helper.from_array(np.full(48, 0.5, ml_dtypes.bfloat16), "scale")
    proto.graph.initializer.extend([scale, numpy_helper.from_array(values(48, 48, scale=0.2), "w")])
    return proto


def with_float8() -> onnx.ModelProto:
    """The same with a scale of one float8 value."""
    proto = with_brain_float()
    del proto.graph.initializer[0]
    proto.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT8E4M3FN, [1], [0.5]))
    return proto


@pytest.mark.parametrize("proto", [with_brain_float(), with_float8()], ids=["bfloat16", "float8"])
def test_json_is_the_only_thing_on_stdout(
    proto: onnx.ModelProto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case = write_case(tmp_path / "in", proto)
    options = case.arguments(
        "--out", str(tmp_path / "run"), "--compression", "1.5", "--repair", "0", "--json"
    )
    code = main(["quantize", str(case.model), *options])
    out = capfd.readouterr().out
    assert code == 0
    assert json.loads(out)["compression"] >= 1.5


def test_whatever_a_library_prints_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = write_case(tmp_path / "in", with_brain_float())
    opened = inspect.open_source
    monkeypatch.setattr(inspect, "open_source", lambda path: print("noise") or opened(path))
    assert main(["inspect", str(case.model), "--json"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["weights"]
    assert "noise" in streams.err
