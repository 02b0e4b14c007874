"""`lift`: every stored float tensor becomes an initializer of the main graph; the model computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from tqs_passes.files.model import Model, load_model, serialize
from tqs_passes.files.save import save_model
from tqs_passes.files.tensors import iter_graphs
from tqs_passes.survey.lift import Lift, Lifted
from tqs_passes.weights import Origin

ort = pytest.importorskip("onnxruntime")


def model_of(text: str, tmp_path: Path) -> Model:
    return Model(onnx.parser.parse_model(text), tmp_path)


def outputs_of(model: Model, folder: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    path = folder / "run.onnx"
    save_model(model, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def assert_computes_the_same(model: Model, lifted: Lifted, folder: Path, **feeds: np.ndarray) -> None:
    before, after = outputs_of(model, folder, feeds), outputs_of(lifted.model, folder, feeds)
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != 0) for a in before)


def float_tensors_elsewhere(model: Model) -> list[str]:
    """Names of float tensors of two values or more that are not initializers of the main graph."""
    found: list[str] = []
    for graph in iter_graphs(model.proto.graph):
        if graph is not model.proto.graph:
            found += [
                t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) >= 2
            ]
        for node in graph.node:
            if node.op_type == "Constant":
                found += [node.output[0] for a in node.attribute if len(a.floats) >= 2]
                found += [
                    node.output[0] for a in node.attribute if a.t.data_type == 1 and np.prod(a.t.dims) >= 2
                ]
    return found


X23 = np.array([[0.5, -1.25, 3.0], [7.0, 0.1, -0.3]], np.float32)

CONSTANTS = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2,3] x) => (float[2,2] z) {
   w = Constant <value = float[3,2] {0.1, 2, -3, 4, 5, 6.5}> ()
   b = Constant <value_floats = [0.25, -4.0]> ()
   k = Constant <value_float = 3.0> ()
   s = Constant <value = int64[2] {2, 2}> ()
   y = MatMul(x, w)
   y2 = Add(y, b)
   y3 = Mul(y2, k)
   z = Reshape(y3, s)
}"""


def test_constant_nodes_become_initializers_under_their_own_name(tmp_path: Path) -> None:
    model = model_of(CONSTANTS, tmp_path)
    lifted = Lift().apply(model)
    assert [t.name for t in lifted.model.proto.graph.initializer] == ["w", "b"]
    assert lifted.origins == {"w": Origin.CONSTANT, "b": Origin.CONSTANT}
    assert lifted.changed == ("w", "b")
    assert_computes_the_same(model, lifted, tmp_path, x=X23)


def test_scalars_and_integers_stay_constant_nodes(tmp_path: Path) -> None:
    kept = [
        n.output[0]
        for n in Lift().apply(model_of(CONSTANTS, tmp_path)).model.proto.graph.node
        if n.op_type == "Constant"
    ]
    assert kept == ["k", "s"]


def test_the_input_model_is_not_mutated(tmp_path: Path) -> None:
    model = model_of(CONSTANTS, tmp_path)
    before = serialize(model.proto)
    Lift().apply(model)
    assert serialize(model.proto) == before


def test_lifting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (Lift().apply(model_of(IF_BODIES, tmp_path)).model.proto for _ in range(2))
    assert serialize(first) == serialize(second)


def test_a_lifted_model_has_nothing_left_to_lift(tmp_path: Path) -> None:
    once = Lift().apply(model_of(NESTED, tmp_path)).model
    result = Lift().apply(once)
    assert result.model is once
    assert result.changed == ()


def test_a_model_with_nothing_to_lift_is_returned_itself(tmp_path: Path) -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[2,3] x) => (float[2,2] z) <float[3,2] w = {1,2,3,4,5,6}> { z = MatMul(x, w) }""",
        tmp_path,
    )
    lifted = Lift().apply(model)
    assert lifted.model is model
    assert lifted.origins == {"w": Origin.INITIALIZER}


IF_BODIES = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2,3] x, bool c) => (float[2,2] z) {
   [choose] z = If (c) <
      then_branch = tb () => (float[2,2] o) <float[3,2] w = {1,2,3,4,5,6.5}> { o = MatMul(x, w) },
      else_branch = eb () => (float[2,2] o2) {
          w = Constant <value = float[3,2] {-1,2,3,4,5,7.25}> ()
          o2 = MatMul(x, w)
      }
   >
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_if_bodies_with_equal_names_inside_stay_apart(tmp_path: Path, condition: bool) -> None:
    model = model_of(IF_BODIES, tmp_path)
    lifted = Lift().apply(model)
    assert [t.name for t in lifted.model.proto.graph.initializer] == [
        "choose/then_branch/w",
        "choose/else_branch/w",
    ]
    assert set(lifted.origins.values()) == {Origin.BODY}
    assert float_tensors_elsewhere(lifted.model) == []
    assert_computes_the_same(model, lifted, tmp_path, x=X23, c=np.array(condition))


def test_a_nameless_outer_node_gives_its_index(tmp_path: Path) -> None:
    lifted = Lift().apply(model_of(IF_BODIES.replace("[choose] ", ""), tmp_path))
    assert lifted.changed == ("#0/then_branch/w", "#0/else_branch/w")


def test_a_taken_name_is_made_unique(tmp_path: Path) -> None:
    model = model_of(IF_BODIES, tmp_path)
    model.proto.graph.initializer.append(
        numpy_helper.from_array(np.ones(2, np.float32), "choose/then_branch/w")
    )
    assert "choose/then_branch/w_2" in Lift().apply(model).changed


@pytest.mark.parametrize("condition", [True, False])
def test_a_body_output_that_is_a_stored_tensor_keeps_its_name(tmp_path: Path, condition: bool) -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[2] x, bool c) => (float[2] z) {
           y = If (c) <
              then_branch = tb () => (float[2] o) { o = Constant <value = float[2] {1.5, 2}> () },
              else_branch = eb () => (float[2] o2) <float[2] o2 = {3.5, 4}> { unused = Identity(x) }
           >
           z = Add(x, y)
        }""",
        tmp_path,
    )
    lifted = Lift().apply(model)
    assert len(lifted.changed) == 2
    assert_computes_the_same(model, lifted, tmp_path, x=np.ones(2, np.float32), c=np.array(condition))


def test_a_constant_that_is_a_graph_output_still_is_one(tmp_path: Path) -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[2] x) => (float[2] c, float[2] z) {
           c = Constant <value = float[2] {1.5, 2}> ()
           z = Add(x, c)
        }""",
        tmp_path,
    )
    lifted = Lift().apply(model)
    assert lifted.changed == ("c",)
    assert_computes_the_same(model, lifted, tmp_path, x=np.ones(2, np.float32))


LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2,2] x, int64 n) => (float[2,2] z, float[k,2,2] all) {
   cond = Constant <value = bool {1}> ()
   [turn] z, all = Loop (n, cond, x) <
      body = lb (int64 i, bool go, float[2,2] state) => (bool again, float[2,2] next, float[2,2] seen)
         <float[2,2] w = {0.5, 0.25, -0.5, 1}> {
         again = Identity(go)
         b = Constant <value = float[2] {0.1, -0.2}> ()
         y = MatMul(state, w)
         next = Add(y, b)
         seen = Identity(next)
      }
   >
}"""


def test_a_loop_body_computes_the_same(tmp_path: Path) -> None:
    model = model_of(LOOP, tmp_path)
    lifted = Lift().apply(model)
    assert lifted.changed == ("turn/body/w", "turn/body/b")
    feeds = {"x": X23[:, :2], "n": np.array(4, np.int64)}
    assert_computes_the_same(model, lifted, tmp_path, **feeds)


def test_a_scan_body_computes_the_same(tmp_path: Path) -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[2] s, float[5,2] x) => (float[2] last, float[5,2] all) {
           last, all = Scan <num_scan_inputs = 1,
              body = sb (float[2] state, float[2] xi) => (float[2] next, float[2] y)
                 <float[2] d = {0.5, -0.75}> {
                 kept = Mul(state, d)
                 next = Add(kept, xi)
                 y = Identity(next)
              }
           > (s, x)
        }""",
        tmp_path,
    )
    lifted = Lift().apply(model)
    assert lifted.changed == ("#0/body/d",)
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert_computes_the_same(model, lifted, tmp_path, s=np.array([1, -1], np.float32), x=x)


NESTED = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2,2] x, bool c, bool d) => (float[2,2] z) <float[2,2] w = {9, 8, 7, 6}> {
   y = MatMul(x, w)
   [outer] z = If (c) <
      then_branch = tb () => (float[2,2] o) <float[2,2] v = {1, 2, 3, 4.5}> {
         [inner] p = If (d) <
            then_branch = tt () => (float[2,2] q) { q = MatMul(y, v) },
            else_branch = te () => (float[2,2] r) {
               u = Constant <value = float[2,2] {5, 0.5, -1, 2}> ()
               r = MatMul(y, u)
            }
         >
         o = MatMul(p, v)
      },
      else_branch = eb () => (float[2,2] o2) { o2 = MatMul(y, w) }
   >
}"""


@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize("d", [True, False])
def test_nested_bodies_compute_the_same(tmp_path: Path, c: bool, d: bool) -> None:
    model = model_of(NESTED, tmp_path)
    lifted = Lift().apply(model)
    assert lifted.changed == ("outer/then_branch/v", "outer/then_branch/inner/else_branch/u")
    assert_computes_the_same(model, lifted, tmp_path, x=X23[:, :2], c=np.array(c), d=np.array(d))


def test_a_name_defined_again_inside_hides_the_hoisted_one(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["w"]), helper.make_node("Add", ["w", "x"], ["q"])],
        "inner", [], [helper.make_tensor_value_info("q", 1, [2])],
    )  # fmt: skip
    outer = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["p"], then_branch=inner, else_branch=inner),
            helper.make_node("Add", ["p", "w"], ["o"]),
        ],
        "outer", [], [helper.make_tensor_value_info("o", 1, [2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], name="if", then_branch=outer, else_branch=outer)],
        "main",
        [
            helper.make_tensor_value_info("x", 1, [2]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("z", 1, [2])],
    )
    lifted = Lift().apply(Model(helper.make_model(graph), tmp_path)).model.proto
    body = lifted.graph.node[0].attribute[0].g
    assert list(body.node[1].input) == ["p", f"if/{lifted.graph.node[0].attribute[0].name}/w"]
    assert list(body.node[0].attribute[0].g.node[1].input) == ["w", "x"]


FUNCTIONS = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
agraph (float[2,3] x, bool c) => (float[2,2] z) {
   a = local.linear <by = 2.0> (x)
   b = local.linear <by = 3.0> (x)
   y = Add(a, b)
   g = local.gate (y, c)
   z = Relu(g)
}
<domain: "local", opset_import: ["" : 17]>
linear <by> (x) => (y) {
   w = Constant <value = float[3,2] {0.1, 2, -3, 4, 5, 6.5}> ()
   k = Constant <value_float: float = @by> ()
   t = MatMul(x, w)
   y = Mul(t, k)
}
<domain: "local", opset_import: ["" : 17]>
gate (x, c) => (y) {
   y = If (c) <
      then_branch = tb () => (float[2,2] o) <float[2,2] w = {1, 2, 3, 4.5}> { o = MatMul(x, w) },
      else_branch = eb () => (float[2,2] o2) { o2 = Identity(x) }
   >
}"""


def test_local_functions_are_inlined_and_compute_the_same(tmp_path: Path) -> None:
    model = model_of(FUNCTIONS, tmp_path)
    lifted = Lift().apply(model)
    assert len(lifted.model.proto.functions) == 0
    assert len(lifted.changed) == 3
    assert set(lifted.origins.values()) == {Origin.FUNCTION}
    assert not any(n.metadata_props for g in iter_graphs(lifted.model.proto.graph) for n in g.node)
    assert_computes_the_same(model, lifted, tmp_path, x=X23, c=np.array(True))


def test_functions_that_call_each_other_too_deeply_are_skipped_with_a_reason() -> None:
    """The inliner gives up on such a chain; onnxruntime 1.31 dies of it."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("loc", 1)]

    def function(i: int, n: int = 5000) -> onnx.FunctionProto:
        node = helper.make_node("Tanh", ["x"], ["y"])
        if i < n:
            node = helper.make_node(f"F{i + 1}", ["x"], ["y"], domain="loc")
        return helper.make_function("loc", f"F{i}", ["x"], ["y"], [node], opsets)

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("F0", ["x"], ["y"], domain="loc")], "g", [x], [y])
    functions = [function(i) for i in range(5001)]
    proto = helper.make_model(graph, opset_imports=opsets, functions=functions)
    (skip,) = Lift().apply(Model(proto, Path())).skipped
    assert "cannot be inlined (ValidationError)" in skip.why


def test_a_function_of_another_opset_is_skipped_with_its_reason(tmp_path: Path) -> None:
    text = FUNCTIONS.replace(
        '<domain: "local", opset_import: ["" : 17]>\ngate', '<domain: "local", opset_import: ["" : 16]>\ngate'
    )
    lifted = Lift().apply(model_of(text, tmp_path))
    assert [(s.what, "another opset" in s.why) for s in lifted.skipped] == [("local.gate", True)]


def test_initializers_of_ir_3_are_inputs_no_more(tmp_path: Path) -> None:
    model = model_of(
        """<ir_version: 3, opset_import: ["" : 11]>
        agraph (float[2,3] x, float[3,2] w) => (float[2,2] z) { z = MatMul(x, w) }""",
        tmp_path,
    )
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    model.proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    lifted = Lift().apply(model)
    assert [v.name for v in lifted.model.proto.graph.input] == ["x"]
    assert lifted.model.proto.ir_version == 4
    assert lifted.changed == ("w", "ir_version")
    assert lifted.origins == {"w": Origin.INITIALIZER}
    assert_computes_the_same(model, lifted, tmp_path, x=X23)


def test_sparse_and_string_constants_stay_and_are_named(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "v")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 3]), "i"), [4])
    text = helper.make_tensor("t", TensorProto.STRING, [2], [b"a", b"b"])
    nodes = [
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("Constant", [], ["t"], value=text),
        helper.make_node("Identity", ["s"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("z", 1, [4])])
    lifted = Lift().apply(Model(helper.make_model(graph), tmp_path))
    assert [(s.what, s.why.split(":")[0]) for s in lifted.skipped] == [
        ("s", "sparse constant"),
        ("t", "constant of strings"),
    ]


def test_external_tensors_keep_pointing_to_their_file(tmp_path: Path) -> None:
    w = np.arange(1024, dtype=np.float32).reshape(32, 32) / 512
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w)),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
    ]
    x, z = (helper.make_tensor_value_info(n, 1, [1, 32]) for n in "xz")
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [z]), ir_version=10)
    proto.opset_import[0].version = 17
    save_model(Model(proto, tmp_path), tmp_path / "m.onnx", external=True)
    lifted = Lift().apply(load_model(tmp_path / "m.onnx")).model
    (stored,) = lifted.proto.graph.initializer
    assert stored.data_location == TensorProto.EXTERNAL
    assert not stored.raw_data
    assert lifted.folder == tmp_path.resolve()
    (got,) = outputs_of(lifted, tmp_path, {"x": np.eye(1, 32, dtype=np.float32)})
    np.testing.assert_array_equal(got, w[:1])


def test_hostile_names_do_not_crash(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    nodes = [
        helper.make_node("Constant", [], [""], value=numpy_helper.from_array(ones)),
        helper.make_node("Identity", ["w\n"], ["o"]),
    ]
    stored = [numpy_helper.from_array(ones, "w\n")] * 2
    branch = helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("o", 1, [2])], stored)
    node = helper.make_node("If", ["c"], ["z"], name="a\nb/", then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node, node], "g", [helper.make_tensor_value_info("c", 9, [])], [])
    changed = Lift().apply(Model(helper.make_model(graph), tmp_path)).changed
    assert len(set(changed)) == len(changed) == 8
