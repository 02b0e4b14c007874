"""Slim graphs: every output stays the same bit for bit, and what is written is what the plan priced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.kinds import every_kind
from tests.models import (
    TOKENS,
    block,
    draws,
    info,
    loop,
    model_of,
    run,
    states_of_zero,
    tensor,
    two_branches,
)
from tqs_onnx.allocation.file_size import file_bytes
from tqs_onnx.allocation.request import menus_of, prepared_source, settled_serving, size_of
from tqs_onnx.emission import emit, names_file, rewritten
from tqs_onnx.inputs.source import Source, open_source
from tqs_passes.files.model import Model, file_facts, load_model
from tqs_passes.files.tensors import iter_graphs, shortest
from tqs_passes.pipeline import Pipeline
from tqs_passes.plan.candidates import Candidate
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.survey.bytes_by_kind import bytes_by_kind
from tqs_passes.survey.survey import find_weights
from tqs_passes.tier import DEFAULT_TIERS, Tier
from tqs_passes.transforms.slim.notes import DropNotes
from tqs_passes.transforms.slim.repeats import MergeRepeats
from tqs_passes.transforms.slim.short_names import ShortNames
from tqs_passes.transforms.slim.slimming import slim_passes, slimming_of
from tqs_passes.transforms.slim.static import FoldStatic
from tqs_passes.transforms.slim.storage import StoreCompactly
from tqs_passes.transforms.slim.unused import DropUnused
from tqs_passes.transforms.slim.zero_states import DropZeroStates

NOTHING: frozenset[str] = frozenset()
node = helper.make_node
X = {"x": draws(9, 2, 3, 4)}


def slimmed(model: Model) -> tuple[Model, Model]:
    """The lifted model, and the same with short names and a slim graph."""
    lifted, survey = find_weights(model)
    weights = frozenset(w.name for w in survey.weights)
    passes = (ShortNames(weights), *slim_passes(weights), ShortNames(weights))
    return lifted, Pipeline(passes).apply(lifted).model


def ops(model: Model) -> list[str]:
    return [n.op_type for g in iter_graphs(model.proto.graph) for n in g.node]


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(
        a[k].tobytes() == b[k].tobytes() and a[k].dtype == b[k].dtype and a[k].shape == b[k].shape for k in a
    )


# ---- outputs


def given(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((3, 8)).astype(np.float32), "idx": rng.integers(0, 10, (3, 4))}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_model_of_every_kind_gives_the_same_bits(seed: int) -> None:
    lifted, slim = slimmed(Model(every_kind(), Path("nowhere")))
    assert same_bits(run(lifted, given(seed)), run(slim, given(seed)))
    assert slim.proto.ByteSize() < 0.9 * lifted.proto.ByteSize()


@pytest.mark.parametrize(
    ("model", "feeds"),
    [
        (block(), TOKENS),
        (block(11), TOKENS),
        (two_branches(), {"x": draws(1, 2, 4), "flag": np.array(True)}),
        (two_branches(), {"x": draws(1, 2, 4), "flag": np.array(False)}),
        (loop(), {"x": draws(1, 2, 3)}),
        (states_of_zero(), X),
    ],
)
def test_small_models_give_the_same_bits(model: Model, feeds: dict[str, np.ndarray]) -> None:
    lifted, slim = slimmed(model)
    assert same_bits(run(lifted, feeds), run(slim, feeds))


ROOT = Path(__file__).parents[2] / "models"
OURS = [ROOT / "tqs_models" / "lorenz96" / "model.onnx", *sorted((ROOT / "zoo").glob("*/model.onnx"))]


@pytest.mark.parametrize("path", OURS, ids=lambda p: p.parent.name)
def test_the_models_that_we_ship_give_the_same_bits(path: Path) -> None:
    model = load_model(path)
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for value in model.proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 2 for d in kind.shape.dim]
        feeds[value.name] = rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    lifted, slim = slimmed(model)
    assert same_bits(run(lifted, feeds), run(slim, feeds))


# ---- each pass


def test_zero_states_are_left_out_with_all_that_made_them() -> None:
    _, slim = slimmed(states_of_zero())
    assert ops(slim) == ["Transpose", "GRU", "Reshape"]
    assert [len(n.input) for n in slim.proto.graph.node] == [1, 3, 2]


def test_a_state_that_is_not_zero_stays() -> None:
    model = states_of_zero()
    made = next(n for n in model.proto.graph.node if n.op_type == "ConstantOfShape")
    made.attribute[0].t.CopyFrom(tensor("", np.ones(1, np.float32)))
    assert DropZeroStates(NOTHING).apply(model).model is model


def test_a_reshape_with_one_unknown_size_gets_a_constant_shape() -> None:
    model = FoldStatic(NOTHING).apply(states_of_zero()).model
    stored = {t.name: numpy_helper.to_array(t).tolist() for t in model.proto.graph.initializer}
    reshape = model.proto.graph.node[-1]
    assert stored[reshape.input[1]] == [1, -1, 5]


def test_a_reshape_with_two_unknown_sizes_stays() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Reshape", ["y0", "s"], ["y"]), node("Relu", ["x"], ["y0"])]
    ordered = [nodes[0], nodes[2], nodes[1]]
    model = model_of(ordered, [info("x", ["a", "b", 3])], [info("y", ["a", "b", 3])], [])
    assert FoldStatic(NOTHING).apply(model).model is model


@pytest.mark.parametrize(("a", "b"), [(-7, 2), (7, 0)])
def test_quotients_that_languages_round_differently_stay_computed(a: int, b: int) -> None:
    stored = [tensor("a", np.array([a])), tensor("b", np.array([b]))]
    model = model_of([node("Div", ["a", "b"], ["y"])], [], [info("y", [1], TensorProto.INT64)], stored)
    assert FoldStatic(NOTHING).apply(model).model is model


@pytest.mark.parametrize(
    ("values", "computed"),
    [
        (np.array([70000, 70000], np.int32), 2**31 - 1),  # onnxruntime saturates
        (np.array([2**53 + 1, 1]), 2**53),  # and multiplies in float64
    ],
)
def test_a_product_that_the_runtime_does_not_compute_exactly_stays(values: np.ndarray, computed: int) -> None:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    nodes = [node("ReduceProd", ["i"], ["p"], keepdims=0), node("Add", ["p", "z"], ["y"])]
    stored = [tensor("i", values), tensor("z", np.zeros(1, values.dtype))]
    model = model_of(nodes, [], [info("y", [1], kind)], stored)
    assert run(FoldStatic(NOTHING).apply(model).model)["y"].tolist() == [computed]


def test_what_is_declared_about_inner_values_is_not_believed() -> None:
    model = model_of(
        [node("Relu", ["x"], ["r"]), node("Shape", ["r"], ["y"])],
        [info("x", ["b", 3])],
        [info("y", [2], TensorProto.INT64)],
        [],
    )
    model.proto.graph.value_info.append(info("r", [17, 3]))
    assert FoldStatic(NOTHING).apply(model).model is model


def growing(state: str, shape: list[int] | None) -> Model:
    """A Loop of three turns whose body doubles its state, x at first, and gives its number of values at every turn."""
    body = helper.make_graph(
        [
            node("Identity", ["go"], ["on"]),
            node("Concat", [state, state], ["more"], axis=0),
            node("Size", [state], ["size"]),
            node("Neg", ["size"], ["minus"]),
        ],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info(state, shape)],
        [info("on", [], TensorProto.BOOL), info("more", shape), info("minus", [], TensorProto.INT64)],
    )
    return model_of(
        [node("Loop", ["n", "", "x"], ["last", "y"], body=body)],
        [info("x", [1, 4])],
        [info("last", None), info("y", None, TensorProto.INT64)],
        [tensor("n", np.array(3))],
    )


@pytest.mark.parametrize(("state", "shape"), [("s", [1, 4]), ("x", None)])
def test_the_size_of_a_state_that_grows_stays_computed(state: str, shape: list[int] | None) -> None:
    # Whatever the body declares about the state, and whatever the enclosing graph calls by its name.
    model, feeds = growing(state, shape), {"x": draws(0, 1, 4)}
    folded = FoldStatic(NOTHING).apply(model).model
    assert run(folded, feeds)["y"].tolist() == [-4, -8, -16]


def test_what_a_branch_declares_about_its_output_is_not_believed() -> None:
    branches = [
        helper.make_graph([node("Expand", ["x", "s"], ["t"])], "then", [], [info("t", [1, 4])]),
        helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [info("e", [1, 4])]),
    ]
    model = model_of(
        [
            node("If", ["flag"], ["z"], then_branch=branches[0], else_branch=branches[1]),
            node("Shape", ["z"], ["found"]),
            node("Neg", ["found"], ["y"]),
        ],
        [
            info("x", [1, 4]),
            info("flag", [], TensorProto.BOOL),
            info("s", [2], TensorProto.INT64),
        ],
        [info("y", [2], TensorProto.INT64)],
        [],
    )
    # Run with s = [5, 4], z is [5, 4]. (onnxruntime's own constant folding believes the declaration.)
    assert FoldStatic(NOTHING).apply(model).model is model


def test_a_negative_declared_size_means_any_size() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Neg", ["s"], ["y"])]
    model = model_of(nodes, [info("x", [-1, 3])], [info("y", [2], TensorProto.INT64)], [])
    folded = FoldStatic(NOTHING).apply(model).model
    assert run(folded, {"x": draws(0, 2, 3)})["y"].tolist() == [-2, -3]


def expanded_to(reads: str) -> Model:
    """Expand(a [n, 1], [rows of `reads`, 5]), beside b [n, 3] and c = -a."""
    nodes = [
        node("Neg", ["a"], ["c"]),
        node("Shape", [reads], ["s"]),
        node("Gather", ["s", "first"], ["rows"]),
        node("Concat", ["rows", "five"], ["target"], axis=0),
        node("Expand", ["a", "target"], ["y"]),
    ]
    stored = [tensor("first", np.array([0])), tensor("five", np.array([5]))]
    given = [info("a", ["n", 1]), info("b", ["n", 3])]
    return model_of(nodes, given, [info("y", None)], stored)


def test_sizes_of_one_symbol_are_not_taken_to_be_equal() -> None:
    model, feeds = expanded_to("b"), {"a": draws(0, 1, 1), "b": draws(1, 4, 3)}  # onnxruntime accepts both
    assert run(FoldStatic(NOTHING).apply(model).model, feeds)["y"].shape == (4, 5)


def test_a_size_that_comes_from_the_operand_is_known_to_be_its_own() -> None:
    model = FoldStatic(NOTHING).apply(expanded_to("c")).model
    stored = {t.name: numpy_helper.to_array(t).tolist() for t in model.proto.graph.initializer}
    assert stored[model.proto.graph.node[-1].input[1]] == [1, 5]


def test_equal_nodes_and_constants_are_merged_but_random_numbers_are_not() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Relu", ["x"], ["b"]),
        node("Add", ["a", "b"], ["s"]),
        node("RandomUniformLike", ["x"], ["u"]),
        node("RandomUniformLike", ["x"], ["v"]),
        node("Sub", ["u", "v"], ["d"]),
        node("Add", ["s", "d"], ["y"]),
    ]
    model = model_of(nodes, [info("x", [3])], [info("y", [3])], [])
    merged = MergeRepeats(NOTHING).apply(model)
    assert merged.changed == ("b",)
    assert ops(merged.model).count("RandomUniformLike") == 2


@pytest.mark.parametrize(
    ("pair", "merged"),
    [
        (lambda out: node("Noise", ["x"], [out], domain="mine"), False),
        (lambda out: node("QuickGelu", ["x"], [out], domain="com.microsoft"), True),
        (lambda out: node("Dropout", ["x", "half", "yes"], [out]), False),
        (lambda out: node("Dropout", ["x", "half", "no"], [out]), True),
    ],
    ids=["another domain", "onnxruntime", "Dropout in training", "Dropout"],
)
def test_only_operators_known_to_repeat_their_values_are_merged(
    pair: Callable[[str], onnx.NodeProto], merged: bool
) -> None:
    stored = [tensor("half", np.float32(0.5)), tensor("yes", np.array(True)), tensor("no", np.array(False))]
    nodes = [pair("a"), pair("b"), node("Sub", ["a", "b"], ["y"])]
    model = model_of(nodes, [info("x", [3])], [info("y", [3])], stored)
    assert (MergeRepeats(NOTHING).apply(model).changed == ("b",)) is merged


def shadowed() -> Model:
    """An If whose body defines `b` again, while `a` and `b` are equal outside."""
    inner = helper.make_graph(
        [node("Neg", ["x"], ["b"]), node("Add", ["b", "a"], ["t"])], "then", [], [info("t", [3])]
    )
    other = helper.make_graph([node("Sub", ["a", "x"], ["e"])], "else", [], [info("e", [3])])
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("If", ["flag"], ["z"], then_branch=inner, else_branch=other),
        node("Relu", ["x"], ["c"]),
        node("Add", ["z", "c"], ["y"]),
    ]
    return model_of(nodes, [info("x", [3]), info("flag", [], TensorProto.BOOL)], [info("y", [3])], [])


@pytest.mark.parametrize("flag", [True, False])
def test_names_that_a_body_defines_again_are_not_confused(flag: bool) -> None:
    feeds = {"x": draws(0, 3), "flag": np.array(flag)}
    model = shadowed()
    lifted, slim = slimmed(model)
    assert same_bits(run(lifted, feeds), run(slim, feeds))


def test_two_bodies_that_use_one_name_for_different_values_are_not_confused() -> None:
    bodies = [
        helper.make_graph(
            [node(op, ["x"], ["m"]), node(op, ["x"], ["m2"]), node("Add", ["m", "m2"], ["t"])],
            op,
            [],
            [info("t", [3])],
        )
        for op in ("Neg", "Abs")
    ]
    nodes = [node("If", ["flag"], ["y"], then_branch=bodies[0], else_branch=bodies[1])]
    model = model_of(nodes, [info("x", [3]), info("flag", [], TensorProto.BOOL)], [info("y", [3])], [])
    merged = MergeRepeats(NOTHING).apply(model).model
    for flag in (True, False):
        feeds = {"x": draws(0, 3), "flag": np.array(flag)}
        assert same_bits(run(model, feeds), run(merged, feeds))


def test_what_nothing_reads_goes_and_weights_stay() -> None:
    model = states_of_zero()
    model.proto.graph.initializer.append(tensor("spare", draws(0, 3, 3)))
    model.proto.opset_import.add(domain="unused.domain", version=1)
    for weights, left in ((NOTHING, {"w", "r"}), (frozenset({"spare"}), {"w", "r", "spare"})):
        out = DropUnused(weights).apply(model).model.proto
        assert {t.name for t in out.graph.initializer} == left
        assert [o.domain for o in out.opset_import] == [""]
    gru = next(n for n in out.graph.node if n.op_type == "GRU")
    assert list(gru.output) == ["", "last"]


def test_integers_are_stored_in_their_shortest_form() -> None:
    # One byte for a small integer of a list, ten for a negative one, eight in raw data.
    assert shortest(np.array([1, 5, 100]), "s").ByteSize() == shortest(np.array([1, 5]), "s").ByteSize() + 1
    assert shortest(np.array([-1, -1]), "s").HasField("raw_data")
    for values in (np.array([0, 3, -2]), np.array(7, np.int32), np.array([True, False])):
        back = numpy_helper.to_array(shortest(values, "s"))
        assert back.dtype == values.dtype
        assert np.array_equal(back, values)


def test_attributes_that_equal_the_default_are_left_out() -> None:
    gemm = node("Gemm", ["x", "w"], ["y"], alpha=1.0, beta=2.0, transB=1)
    model = model_of([gemm], [info("x", [2, 4])], [info("y", [2, 3])], [tensor("w", draws(0, 3, 4))])
    out = StoreCompactly(frozenset({"w"})).apply(model).model
    assert [a.name for a in out.proto.graph.node[0].attribute] == ["beta", "transB"]


def test_a_declared_type_goes_if_it_can_be_inferred_and_stays_if_it_says_more() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Reshape", ["r", "t"], ["s"]),
        node("Identity", ["s"], ["y"]),
    ]
    inputs = [info("x", ["b", 6]), info("t", [2], TensorProto.INT64)]
    model = model_of(nodes, inputs, [info("y", ["c", "d"])], [])
    model.proto.graph.value_info.extend([info("r", ["b", 6]), info("s", ["c", 3]), info("gone", [1])])
    model.proto.graph.node[0].doc_string = "a note"
    out = DropNotes().apply(model).model.proto
    assert [v.name for v in out.graph.value_info] == ["s"]
    assert not out.graph.node[0].doc_string


# ---- names


def test_inputs_outputs_and_pinned_names_stay_and_the_map_gives_the_others_back() -> None:
    lifted, survey = find_weights(block())
    result = ShortNames(frozenset(w.name for w in survey.weights), ("embed*", "r2")).apply(lifted).model
    used = {name for n in result.proto.graph.node for name in (*n.input, *n.output)}
    assert {"tokens", "y", "embed", "r2"} <= used
    assert all(len(name) <= 2 for name in used - {"tokens", "embed"})
    assert {n.name for n in result.proto.graph.node} == {"embed_tokens", ""}
    before = {name for n in lifted.proto.graph.node for name in (*n.input, *n.output)}
    assert {result.names.get(name, name) for name in used} == before
    for name in ("up", "kernel"):
        here = next(t for t in result.proto.graph.initializer if t.name == result.stored_name(name))
        there = next(t for t in lifted.proto.graph.initializer if t.name == name)
        assert here.raw_data == there.raw_data


def test_shortening_twice_still_gives_the_first_names_back() -> None:
    lifted, _ = find_weights(block())
    once = ShortNames(NOTHING).apply(lifted).model
    twice = ShortNames(NOTHING).apply(once).model
    assert sorted(twice.names.values()) == sorted(once.names.values())
    assert {old: twice.names[new] for old, new in twice.stored.items()} == {old: old for old in twice.stored}


def test_auto_slims_what_takes_more_than_a_share_of_the_smaller_file() -> None:
    small, middle, large = block().proto, onnx.ModelProto(), onnx.ModelProto()
    for bigger, size in ((middle, 100), (large, 400)):
        bigger.CopyFrom(small)
        bigger.graph.initializer.append(tensor("big", draws(0, size, size)))
    kinds = bytes_by_kind(Model(middle, Path()), frozenset())
    assert kinds.names < 0.03 * kinds.total
    assert kinds.names > 0.03 * (kinds.total - 7 / 8 * kinds.constants)
    assert slimming_of(Model(middle, Path()), "auto", "auto").names
    assert slimming_of(Model(small, Path()), "auto", "auto").names
    assert slimming_of(Model(small, Path()), "auto", "auto").graph
    assert not slimming_of(Model(large, Path()), "auto", "auto").names
    assert not slimming_of(Model(large, Path()), "auto", "auto").graph


# ---- files


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("slim") / "every.onnx"
    onnx.save(every_kind(), path)
    return open_source(path)


def plan_for(source: Source, serving: Serving, pick: int) -> Plan:
    serving = settled_serving(source, serving)
    ready = prepared_source(source, serving)
    chosen: list[Candidate] = []
    for index, menu in enumerate(menus_of(source, ready, "fast", (*DEFAULT_TIERS, Tier.INT1), serving)):
        chosen.append(menu.candidates[(index * 7 + pick) % len(menu.candidates)])
    return Plan(
        source_sha256=source.sha256,
        profile="fast",
        constants=serving.constants_as_stored,
        names=serving.names_as_stored,
        graph=serving.graph_as_stored,
        pinned=serving.pinned,
        assignments=tuple(c.assignment for c in chosen),
        n_bytes=file_bytes(size_of(source, ready), chosen),
        source_bytes=source.facts.n_bytes,
    )


@pytest.mark.parametrize("pick", [0, 1, 2])
@pytest.mark.parametrize(
    "serving", [Serving(), Serving(names="keep"), Serving(graph="keep", pinned=("w_*",))]
)
@pytest.mark.slow
def test_the_file_of_a_slim_plan_has_the_bytes_it_predicts(
    source: Source, serving: Serving, pick: int, tmp_path: Path
) -> None:
    plan = plan_for(source, serving, pick)
    emit(source.lifted, plan, tmp_path / "o.onnx")
    assert file_facts(tmp_path / "o.onnx").n_bytes == plan.n_bytes


def test_a_slim_file_computes_the_bits_of_the_file_that_is_not_slim(source: Source) -> None:
    plan = plan_for(source, Serving(), 1)
    plain = plan.model_copy(update={"names": "keep", "graph": "keep"})
    outputs = [run(rewritten(source.lifted, p), given(0)) for p in (plan, plain)]
    assert same_bits(*outputs)


def test_the_map_beside_the_file_is_written_only_with_short_names(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    plan = plan_for(source, Serving(), 0)
    emit(source.lifted, plan, out)
    names = json.loads(names_file(out).read_text(encoding="utf-8"))
    assert "w_right2" in names.values()
    emit(source.lifted, plan.model_copy(update={"names": "keep"}), out)
    assert not names_file(out).exists()


def test_plans_made_before_there_were_slim_graphs_keep_their_digest(source: Source) -> None:
    plan = plan_for(source, Serving(names="keep", graph="keep"), 0)
    again = Plan.model_validate_json(
        json.dumps(
            {k: v for k, v in json.loads(plan.to_json()).items() if k not in ("names", "graph", "pinned")}
        )
    )
    assert again.digest() == plan.digest() != plan.model_copy(update={"names": "short"}).digest()


def test_bytes_by_kind_add_up_to_the_file(source: Source, tmp_path: Path) -> None:
    emit(source.lifted, plan_for(source, Serving(), 1), tmp_path / "o.onnx")
    kinds = bytes_by_kind(load_model(tmp_path / "o.onnx"), NOTHING)
    assert kinds.total == (tmp_path / "o.onnx").stat().st_size
