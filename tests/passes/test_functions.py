"""Local functions are counted before they are expanded: none of these files may take long, or much memory."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.gauntlet.bombs import function_bomb, function_loop
from tqs_passes.errors import InputError
from tqs_passes.files import functions
from tqs_passes.files.model import load_model
from tqs_passes.survey.lift import Lift


def written(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("proto", "said"),
    [
        (function_bomb(28), "expand to 134,217,729 nodes"),
        (function_bomb(90), "expand to more than 1,000,000,000,000 nodes"),
        (function_bomb(12, constant_bytes=1 << 20), "expand to 2,1.. bytes"),
        (function_loop(1), "local function 'f0' calls itself"),
        (function_loop(7), "local function 'f0' calls itself"),
        (function_bomb(5000, times=1), "call each other 5000 levels deep"),
    ],
    ids=["many", "more", "bytes", "itself", "circle", "deep"],
)
def test_functions_that_expand_without_bound_are_refused(
    proto: onnx.ModelProto, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said.replace("2,1..", r"2,1\d\d,\d{3},\d{3}")):
        load_model(written(tmp_path, proto))


def test_functions_that_expand_to_the_bound_are_inlined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "MOST_NODES", 1025)
    lifted = Lift().apply(load_model(written(tmp_path, function_bomb(11)))).model
    assert len(lifted.proto.graph.node) == 2**10 + 1  # the leaves, and the product that follows them
    with pytest.raises(InputError, match="25 nodes with local functions expand to 2,049 nodes"):
        load_model(written(tmp_path, function_bomb(12)))


def test_calls_inside_bodies_are_counted(tmp_path: Path) -> None:
    proto = function_bomb(28)
    call = proto.graph.node[0]
    info = onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node(call.op_type, ["x"], ["inner"], domain=call.domain)], "branch", [], [info]
    )
    chosen = onnx.helper.make_node("If", ["c"], ["p"], then_branch=branch, else_branch=branch)
    proto.graph.node[0].CopyFrom(chosen)
    proto.graph.initializer.append(onnx.helper.make_tensor("c", onnx.TensorProto.BOOL, [], [True]))
    with pytest.raises(InputError, match="expand to 268,435,458 nodes"):
        load_model(written(tmp_path, proto))
