"""Labels: renamed weights get back the name of the module that reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, helper, numpy_helper

from tqs_passes.files.model import Model
from tqs_passes.survey.survey import survey

SCOPES = "pkg.torch.onnx.name_scopes"


def node(op: str, inputs: list[str], output: str, name: str = "", scopes: str = "") -> NodeProto:
    made = helper.make_node(op, inputs, [output], name=name)
    if scopes:
        made.metadata_props.add(key=SCOPES, value=scopes)
    return made


def labels_of(nodes: list[NodeProto], *names: str, rank: int = 2) -> dict[str, str]:
    """Survey a graph whose initializers carry `names`; no two alike in content."""
    rng = np.random.default_rng(0)
    stored = [numpy_helper.from_array(rng.normal(size=(4,) * rank).astype(np.float32), n) for n in names]
    x, z = (helper.make_tensor_value_info(n, 1, [4, 4]) for n in ("x", "z"))
    graph = helper.make_graph(nodes, "g", [x], [z], stored)
    return {w.name: w.label for w in survey(Model(helper.make_model(graph), Path("/nowhere"))).weights}


def test_a_given_name_is_its_own_label() -> None:
    nodes = [node("MatMul", ["x", "model.fc.weight"], "z", "/model/other/MatMul", "['', 'other', 'linear']")]
    assert labels_of(nodes, "model.fc.weight") == {"model.fc.weight": "model.fc.weight"}


@pytest.mark.parametrize("name", ["W1", "weight_1", "fc1", "w"])
def test_a_short_given_name_without_scopes_is_its_own_label(name: str) -> None:
    assert labels_of([node("MatMul", ["x", name], "z", "/a/b/MatMul")], name) == {name: name}


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/model/stacked_xf.0/attn/qkv_proj/MatMul", "model.stacked_xf.0.attn.qkv_proj.weight"),
        ("/b1/a12/MatMul_3", "b1.a12.weight"),
        ("/encoder/net/net.0/MatMul", "encoder.net.0.weight"),
        ("MatMul_17", "MatMul_17.weight"),
        ("", "onnx::MatMul_507"),
        ("/MatMul", "/MatMul.weight"),
    ],
)
def test_a_torchscript_weight_is_called_after_its_readers_path(path: str, label: str) -> None:
    found = labels_of([node("MatMul", ["x", "onnx::MatMul_507"], "z", path)], "onnx::MatMul_507")
    assert found == {"onnx::MatMul_507": label}


def test_a_constant_of_torchscript_is_called_after_its_readers_path() -> None:
    found = labels_of(
        [node("Mul", ["x", "/b/Constant_3_output_0"], "z", "/b/norm/Mul")], "/b/Constant_3_output_0"
    )
    assert found == {"/b/Constant_3_output_0": "b.norm.weight"}


@pytest.mark.parametrize("name", ["val_12", "cat_1", "lifted_tensor_0", "mul_3"])
def test_a_dynamo_weight_is_called_after_the_module_in_the_scopes(name: str) -> None:
    scopes = "['', 'model', 'model.0.attn', 'linear_7']"
    found = labels_of([node("MatMul", ["x", name], "z", "node_MatMul_3", scopes)], name)
    assert found == {name: "model.0.attn.weight"}


def test_the_reader_behind_a_transpose_gives_the_name() -> None:
    nodes = [
        node("Transpose", ["val_1"], "t", scopes="['', 'wrong', 'transpose']"),
        node("MatMul", ["x", "t"], "z", scopes="['', 'model.fc', 'linear']"),
    ]
    assert labels_of(nodes, "val_1") == {"val_1": "model.fc.weight"}


def test_a_renamed_vector_that_is_added_is_a_bias() -> None:
    nodes = [node("Add", ["x", "onnx::Add_5"], "z", "/model/fc/Add")]
    assert labels_of(nodes, "onnx::Add_5", rank=1) == {"onnx::Add_5": "model.fc.bias"}


@pytest.mark.parametrize(
    "scopes",
    [
        "__import__('os').getcwd()",
        "[",
        "{}",
        "['one']",
        "[1, 2]",
        "['', '']",
        "(" * 900,
        "['a'," + "'b'," * 9000 + "]",
        "\0",
    ],
)
def test_hostile_scopes_fall_back_to_the_node_name(scopes: str) -> None:
    found = labels_of([node("MatMul", ["x", "val_1"], "z", "/model/fc/MatMul", scopes)], "val_1")
    assert found == {"val_1": "model.fc.weight"}


def test_equal_labels_are_numbered_and_never_take_a_real_name() -> None:
    scopes = "['', 'fc', 'linear']"
    nodes = [
        node("MatMul", ["x", "val_1"], "a", scopes=scopes),
        node("MatMul", ["a", "val_2"], "b", scopes=scopes),
        node("MatMul", ["b", "fc.weight"], "z"),
    ]
    found = labels_of(nodes, "val_1", "val_2", "fc.weight")
    assert found == {"val_1": "fc.weight#2", "val_2": "fc.weight#3", "fc.weight": "fc.weight"}


def test_labels_are_one_printable_line_and_stay_apart() -> None:
    nodes = [
        node("MatMul", ["x", "a\n"], "a"),
        node("MatMul", ["a", "a\\n"], "b"),
        node("MatMul", ["b", "val_1"], "z", "/evil\x1b[2J\n/MatMul"),
    ]
    found = labels_of(nodes, "a\n", "a\\n", "val_1")
    assert found == {"a\n": "a\\n", "a\\n": "a\\n#2", "val_1": "evil\\x1b[2J\\n.weight"}


def test_two_very_long_names_have_two_labels() -> None:
    names = ("w" * 400 + "a", "w" * 400 + "b")
    found = labels_of([node("MatMul", ["x", names[0]], "a"), node("MatMul", ["a", names[1]], "z")], *names)
    assert len(set(found.values())) == 2
