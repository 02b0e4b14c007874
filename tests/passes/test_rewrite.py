"""`rewrite`: the planned weights are stored at their tiers, decode under their own names, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.models import TOKENS, block, draws, info, loop, model_of, run, tensor, two_branches
from tqs_onnx.allocation.file_size import FileSize, shared_bytes
from tqs_onnx.emission import emit, placeholder_metadata, rewritten
from tqs_onnx.version import VERSION
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import Model, file_facts, load_model, serialize
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.decoding import decoding
from tqs_passes.graph.names import names_of
from tqs_passes.grids.grid import Grid, grids_for
from tqs_passes.grids.nearest import quantize
from tqs_passes.plan.assigned import reference_weight, target_of
from tqs_passes.plan.candidates import Candidate, Menu, kitchen_of, menus
from tqs_passes.plan.forms import LEAST_VALUES, Profile, integer_form, scale_axes
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.survey.survey import find_weights
from tqs_passes.tier import DEFAULT_TIERS, Tier
from tqs_passes.transforms.rewrite import Rewrite
from tqs_passes.transforms.skeleton import skeleton
from tqs_passes.weights import Survey

TIERS = (*DEFAULT_TIERS, Tier.BF16)


def menus_of(lifted: Model, survey: Survey, profile: Profile = "fast") -> tuple[Menu, ...]:
    return menus(kitchen_of(lifted, profile), survey.weights, TIERS)


def plan_of(chosen: list[Candidate], profile: Profile = "fast", n_bytes: int = 0) -> Plan:
    return Plan(
        source_sha256="ab" * 32,
        profile=profile,
        assignments=tuple(c.assignment for c in chosen),
        n_bytes=n_bytes,
        source_bytes=1,
    )


def coarsest(menu: Menu, tiers: tuple[Tier, ...] = TIERS) -> Candidate:
    fits = [c for c in menu.candidates if c.assignment.tier in tiers and c.assignment.form is not Form.KEEP]
    return fits[-1] if fits else menu.candidates[0]


def chosen_for(model: Model, *tiers: Tier, profile: Profile = "fast") -> tuple[Model, list[Candidate]]:
    """Every weight at one of the tiers in turn, whether or not that pays; bytes are not predicted."""
    lifted, survey = find_weights(model)
    kitchen = kitchen_of(lifted, profile)
    chosen: list[Candidate] = []
    for index, menu in enumerate(menus(kitchen, survey.weights, ())):
        tier, weight = tiers[index % len(tiers)], menu.weight
        update: dict[str, object] = {"tier": tier, "form": Form.CAST, "rounding": "cast"}
        if tier.is_integer:
            axis, grid = scale_axes(weight, tier)[-1 if index % 2 else 0], grids_for(tier.bits)[-1]
            with mock.patch.dict(LEAST_VALUES, clear=True):  # however small the weight
                form = integer_form(kitchen.setting, weight, tier, grid, axis)
            update |= {"form": form, "rounding": "mse", "axis": axis, "grid": grid}
        chosen.append(Candidate(menu.candidates[0].assignment.model_copy(update=update), {}))
    return lifted, chosen


def cheapest_for(model: Model, *tiers: Tier) -> tuple[Model, list[Candidate]]:
    """The smallest candidate of every weight, with its predicted bytes."""
    lifted, survey = find_weights(model)
    return lifted, [coarsest(m, tiers) for m in menus_of(lifted, survey)]


def emitted_bytes(lifted: Model, chosen: list[Candidate]) -> int:
    """The size that planning predicts."""
    bare = skeleton(lifted, frozenset(c.assignment.weight for c in chosen), placeholder_metadata(), VERSION)
    size = FileSize(0, bare.ByteSize(), bare.graph.ByteSize())
    return size.of(sum(c.assignment.n_bytes for c in chosen) + shared_bytes(chosen))


def references(lifted: Model, plan: Plan) -> dict[str, np.ndarray]:
    stored = {t.name: t for t in lifted.proto.graph.initializer}
    return {
        a.weight: reference_weight(a, tensor_array(stored[a.weight], lifted.folder))
        for a in plan.assignments
        if a.form is not Form.KEEP
    }


def with_weights(model: Model, values: dict[str, np.ndarray]) -> Model:
    """The model with other values in its initializers."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for stored in proto.graph.initializer:
        if stored.name in values:
            stored.CopyFrom(numpy_helper.from_array(values[stored.name], stored.name))
    return Model(proto, model.folder)


def assert_decodes_to(out: Model, expected: dict[str, np.ndarray]) -> None:
    got = run(decoding(out, expected))
    for name, values in expected.items():
        assert got[name].dtype == values.dtype
        assert got[name].tobytes() == np.ascontiguousarray(values).tobytes(), name


def linear(*names: str, opset: int = 17, kind: type[np.generic] = np.float32) -> Model:
    """A chain of square MatMuls by weights of the given names."""
    onnx_kind = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    steps = ["x", *(f"v{i}" for i in range(len(names) - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [a, w], [b]) for a, w, b in zip(steps[:-1], names, steps[1:], strict=True)
    ]
    stored = [tensor(n, draws(i, 16, 16, dtype=kind)) for i, n in enumerate(names)]
    return model_of(nodes, [info("x", [2, 16], onnx_kind)], [info("y", [2, 16], onnx_kind)], stored, opset)


# ---- fired, structure, numerics, checker, negative twin


@pytest.mark.parametrize("tier", [t for t in TIERS if t is not Tier.FP32])
@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_every_weight_decodes_to_its_reference(tier: Tier, profile: Profile) -> None:
    lifted, chosen = chosen_for(block(), tier, profile=profile)
    plan = plan_of(chosen, profile)
    out = rewritten(lifted, plan)
    expected = references(lifted, plan)
    assert len(expected) >= 5
    assert_decodes_to(out, expected)


@pytest.mark.parametrize("opset", [11, 13, 14, 17, 18, 21])
def test_the_rewritten_model_passes_the_checker(opset: int) -> None:
    lifted, chosen = chosen_for(block(opset), Tier.INT5, Tier.INT3)
    assert checker_complaint(rewritten(lifted, plan_of(chosen)).proto) is None


@pytest.mark.parametrize("opset", [9, 11, 13, 14, 17, 18, 21])
def test_the_rewritten_model_computes_with_the_references(opset: int) -> None:
    lifted, chosen = chosen_for(block(opset), Tier.INT3, Tier.FP16, profile="exact")
    plan = plan_of(chosen, "exact")
    expected = run(with_weights(lifted, references(lifted, plan)), TOKENS)["y"]
    # The same float32 weights in the same graph; constant folding may fuse differently: 1e-5 of values near 1
    np.testing.assert_allclose(run(rewritten(lifted, plan), TOKENS)["y"], expected, rtol=1e-5, atol=1e-5)


def test_the_float_original_is_gone_and_its_name_is_a_node_output() -> None:
    lifted, chosen = chosen_for(block(), Tier.INT4)
    out = rewritten(lifted, plan_of(chosen)).proto.graph
    names = {c.assignment.weight for c in chosen if c.assignment.form is not Form.KEEP}
    assert names.isdisjoint(t.name for t in out.initializer)
    assert names <= {o for n in out.node for o in n.output}


def test_what_changed_and_what_was_kept_is_told() -> None:
    lifted, chosen = chosen_for(block(), Tier.INT4)
    chosen[0] = menus_of(*find_weights(block()))[0].candidates[0]
    result = Rewrite(plan_of(chosen), {}, {}, "1").apply(lifted)
    assert result.changed == tuple(c.assignment.weight for c in chosen if c.assignment.form is not Form.KEEP)
    assert (result.skipped[0].what, result.skipped[0].why) == ("embed", "kept as FP32")


def test_a_plan_that_keeps_everything_keeps_the_graph() -> None:
    lifted, survey = find_weights(block())
    plan = plan_of([m.candidates[0] for m in menus_of(lifted, survey)])
    result = Rewrite(plan, {}, {}, "1").apply(lifted)
    assert result.changed == ()
    assert result.model.proto.graph == lifted.proto.graph


def test_readers_and_outputs_are_untouched() -> None:
    lifted, chosen = chosen_for(block(), Tier.INT4)
    out = rewritten(lifted, plan_of(chosen)).proto.graph
    readers = list(lifted.proto.graph.node)
    assert list(out.node)[-len(readers) :] == readers
    assert out.output == lifted.proto.graph.output
    assert out.input == lifted.proto.graph.input


def test_the_input_is_not_mutated() -> None:
    lifted, chosen = chosen_for(block(), Tier.INT4)
    before = serialize(lifted.proto)
    rewritten(lifted, plan_of(chosen))
    assert serialize(lifted.proto) == before


def test_the_same_plan_gives_the_same_bytes() -> None:
    first, second = (
        serialize(rewritten(lifted, plan_of(chosen)).proto)
        for lifted, chosen in (chosen_for(block(), Tier.INT3) for _ in range(2))
    )
    assert first == second


# ---- bytes


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_predicted_bytes_are_the_bytes_of_the_file(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    opset = data.draw(st.sampled_from([9, 11, 13, 17, 21]))
    profile: Profile = data.draw(st.sampled_from(["fast", "exact"]))
    lifted, survey = find_weights(block(opset, width=data.draw(st.sampled_from([5, 12, 48]))))
    chosen = [data.draw(st.sampled_from(m.candidates)) for m in menus_of(lifted, survey, profile)]
    out = tmp_path_factory.mktemp("bytes") / "out.onnx"
    emit(lifted, plan_of(chosen, profile), out)
    assert out.stat().st_size == emitted_bytes(lifted, chosen)


def odd_tensor(name: str, dtype: type[np.generic], how: str) -> onnx.TensorProto:
    """A weight stored as only some exporters do."""
    values = draws(3, 16, 16, dtype=dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if how == "typed fields":
        return helper.make_tensor(name, kind, values.shape, values.reshape(-1))
    made = tensor(name, values)
    if how == "doc string":
        made.doc_string = "the weight of the layer"
    if how == "notes":
        made.metadata_props.add(key="pkg.torch.onnx.original_node_name", value="w" * 200)
        made.metadata_props.add(key="ours", value="kept")
    return made


@pytest.mark.parametrize("how", ["typed fields", "doc string", "notes"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("keep", [True, False])
def test_bytes_are_exact_however_the_source_stores_its_values(
    how: str, dtype: type[np.generic], keep: bool, tmp_path: Path
) -> None:
    model = linear("w", kind=dtype)
    model.proto.graph.initializer[0].CopyFrom(odd_tensor("w", dtype, how))
    lifted, survey = find_weights(model)
    menu = menus_of(lifted, survey)[0]
    chosen = [menu.candidates[0] if keep else coarsest(menu)]
    emit(lifted, plan_of(chosen), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size == emitted_bytes(lifted, chosen)


@pytest.mark.parametrize("keep", [True, False])
def test_bytes_are_exact_when_the_source_has_external_data(keep: bool, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    onnx.save_model(
        linear("a", "b").proto, source, save_as_external_data=True, location="in.data", size_threshold=0
    )
    lifted, survey = find_weights(load_model(source))
    listed = menus_of(lifted, survey)
    chosen = [coarsest(listed[0]), listed[1].candidates[0] if keep else coarsest(listed[1])]
    emit(lifted, plan_of(chosen), tmp_path / "out.onnx")
    assert file_facts(tmp_path / "out.onnx").n_bytes == emitted_bytes(lifted, chosen)


# ---- metadata


def test_metadata_are_kept_and_ours_added() -> None:
    model = block()
    model.proto.metadata_props.add(key="licence", value="MIT")
    model.proto.doc_string = "a model"
    lifted, chosen = chosen_for(model, Tier.INT4)
    out = rewritten(lifted, plan_of(chosen)).proto
    props = {e.key: e.value for e in out.metadata_props}
    assert props["licence"] == "MIT"
    assert props["tqs_onnx.source_sha256"] == "ab" * 32
    assert props["tqs_onnx.source_producer"] == "a test 1"
    assert props["tqs_onnx.plan_sha256"] == plan_of(chosen).digest()
    assert (out.producer_name, out.doc_string) == ("tqs-onnx", "a model")


def test_debug_notes_of_nodes_are_dropped_and_other_notes_kept() -> None:
    model = block()
    node = model.proto.graph.node[0]
    node.doc_string = "File model.py, line 3"
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="…" * 99)
    node.metadata_props.add(key="owner", value="us")
    lifted, chosen = chosen_for(model, Tier.INT4)
    out = rewritten(lifted, plan_of(chosen)).proto
    kept = next(n for n in out.graph.node if n.name == node.name)
    assert kept.doc_string == ""
    assert [e.key for e in kept.metadata_props] == ["owner"]


# ---- where weights are read


def test_a_weight_of_several_readers_is_stored_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["b"], transB=1),
        helper.make_node("Add", ["b", "w"], ["y"]),
    ]
    model = model_of(nodes, [info("x", [16, 16])], [info("y", [16, 16])], [tensor("w", draws(0, 16, 16))])
    lifted, chosen = chosen_for(model, Tier.INT4)
    plan = plan_of(chosen)
    out = rewritten(lifted, plan)
    assert [t.name for t in out.proto.graph.initializer if t.name.startswith("w")] == [
        "w_quantized",
        "w_scale",
    ]
    expected = run(with_weights(lifted, references(lifted, plan)), {"x": draws(1, 16, 16)})["y"]
    # Values up to 1e3 after two products: 1e-4 is 1e-7 of them
    np.testing.assert_allclose(run(out, {"x": draws(1, 16, 16)})["y"], expected, rtol=1e-5, atol=1e-3)


def test_a_weight_that_is_a_graph_output_stays_one() -> None:
    model = linear("w")
    model.proto.graph.output.append(info("w", [16, 16]))
    lifted, chosen = chosen_for(model, Tier.INT4)
    plan = plan_of(chosen)
    out = rewritten(lifted, plan)
    assert checker_complaint(out.proto) is None
    got = run(out, {"x": draws(1, 2, 16)})["w"]
    np.testing.assert_array_equal(got, references(lifted, plan)["w"])


@pytest.mark.parametrize("flag", [True, False])
def test_readers_in_the_bodies_of_an_if_see_the_decoded_weight(flag: bool) -> None:
    lifted, chosen = chosen_for(two_branches(), Tier.INT8, Tier.INT4)
    plan = plan_of(chosen)
    feeds = {"x": draws(1, 2, 4), "flag": np.array(flag)}
    out = rewritten(lifted, plan)
    assert checker_complaint(out.proto) is None
    expected = run(with_weights(lifted, references(lifted, plan)), feeds)["y"]
    np.testing.assert_allclose(run(out, feeds)["y"], expected, rtol=1e-5, atol=1e-5)


def test_readers_in_the_body_of_a_loop_see_the_decoded_weight() -> None:
    lifted, chosen = chosen_for(loop(), Tier.INT3)
    plan = plan_of(chosen)
    feeds = {"x": draws(1, 2, 3)}
    expected = run(with_weights(lifted, references(lifted, plan)), feeds)["y"]
    np.testing.assert_allclose(run(rewritten(lifted, plan), feeds)["y"], expected, rtol=1e-5, atol=1e-5)


def integer_assignment(a: Assignment, bits: int = 3, form: Form = Form.CAST_MUL) -> Assignment:
    tier = Tier(f"INT{bits}")
    update = {"tier": tier, "grid": Grid.SIGNED, "axis": None, "form": form, "rounding": "mse"}
    return a.model_copy(update=update)


# ---- names


HOSTILE = [
    ("w", "w_quantized"),
    ("w_quantized", "w"),
    ("w", "w_scale"),
    ("w_scale", "w_quantized_1", "w"),
    ("w", "tqs.b"),
    ("tqs.b", "tqs.r", "tqs2.r", "tqs.0.0"),
    ("tqs", "tqs2"),
    ("tqs.0_quantized", "w", "w_quantized"),
    ("a\nb", "a\tb"),
    ("/model/layer.0/Mat Mul", "..", "💥", "a\"b'c\\"),
    ("n" * 10_000, "n" * 9_999),
    ("w_DequantizeLinear", "w"),
    ("w_Cast", "w"),
]


@pytest.mark.parametrize(
    "names", HOSTILE, ids=lambda names: "+".join(n[:20].strip() for n in names).replace("\n", "_")
)
@pytest.mark.parametrize("bits", [3, 7, 8])
@pytest.mark.parametrize("form", [Form.CAST_MUL, Form.DEQUANTIZE, Form.CAST])
def test_hostile_names_never_collide(names: tuple[str, ...], bits: int, form: Form) -> None:
    lifted, survey = find_weights(linear(*names))
    keeps = [m.candidates[0].assignment for m in menus_of(lifted, survey)]
    assert len(keeps) == len(names)
    half = {"tier": Tier.FP16, "form": Form.CAST, "rounding": "cast"}
    made = [
        a.model_copy(update=half) if form is Form.CAST else integer_assignment(a, bits, form) for a in keeps
    ]
    plan = plan_of([Candidate(a, {}) for a in made])
    out = rewritten(lifted, plan)
    assert checker_complaint(out.proto) is None
    defined = [t.name for t in out.proto.graph.initializer] + [
        o for n in out.proto.graph.node for o in n.output
    ]
    assert len(set(defined)) == len(defined)
    assert_decodes_to(out, references(lifted, plan))


@pytest.mark.parametrize("taken", ["w_DequantizeLinear", "w_Cast"])
def test_node_names_are_unique_too(taken: str) -> None:
    """The runtime refuses two nodes of one name."""
    model = linear("w")
    model.proto.graph.node[0].name = taken
    for tier in (Tier.INT4, Tier.FP16):
        lifted, chosen = chosen_for(model, tier)
        plan = plan_of(chosen)
        out = rewritten(lifted, plan)
        assert run(out, {"x": draws(0, 2, 16)})["y"].shape == (2, 16)


def test_a_free_weight_keeps_its_own_stem() -> None:
    lifted, chosen = chosen_for(linear("w", "v"), Tier.INT4)
    target = target_of(chosen[0].assignment, 0, 17, names_of(lifted.proto))
    assert (target.stem, target.namespace) == ("w", "tqs")


def test_names_inside_bodies_count_as_taken() -> None:
    model = two_branches()
    then = next(a.g for a in model.proto.graph.node[0].attribute if a.name == "then_branch")
    then.node[0].output[0] = "a_quantized"
    then.node[2].input[0] = "a_quantized"
    lifted, chosen = chosen_for(model, Tier.INT8, Tier.FP16)
    assert target_of(chosen[0].assignment, 0, 17, names_of(lifted.proto)).stem == "tqs.0"


# ---- re-emission


@pytest.mark.parametrize("tier", [Tier.INT8, Tier.INT7, Tier.INT3, Tier.INT1])
@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_an_emitted_file_is_left_as_it_is_with_a_reason(tier: Tier, profile: Profile) -> None:
    lifted, chosen = chosen_for(linear("a", "b"), tier, profile=profile)
    once = rewritten(lifted, plan_of(chosen, profile))
    again, survey = find_weights(once)
    assert survey.weights == ()
    assert {e.name: e.reason for e in survey.excluded}[
        "a_scale"
    ] == "already quantised: a scale or zero point"
    twice = rewritten(again, plan_of([], profile))
    assert twice.proto.graph == once.proto.graph


@pytest.mark.parametrize("first", [Tier.INT4, Tier.FP16])
def test_a_partly_quantised_file_can_be_emitted_again(first: Tier) -> None:
    lifted, chosen = chosen_for(block(width=48), first)
    once = rewritten(lifted, plan_of([c for c in chosen if c.assignment.weight != "up"]))
    again, second = cheapest_for(once, Tier.INT3)
    plan = plan_of(second)
    assert "up" in references(again, plan)
    twice = rewritten(again, plan)
    assert checker_complaint(twice.proto) is None
    assert_decodes_to(twice, references(again, plan))
    assert len(twice.proto.SerializeToString()) == emitted_bytes(again, second)


def test_a_weight_scaled_by_another_weight_is_no_scale() -> None:
    """Weight normalisation, g · v: both are weights."""
    nodes = [helper.make_node("Mul", ["g", "v"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    stored = [tensor("g", draws(0, 1, 16)), tensor("v", draws(1, 16, 16))]
    _, survey = find_weights(model_of(nodes, [info("x", [2, 16])], [info("y", [2, 16])], stored))
    assert [w.name for w in survey.weights] == ["g", "v"]


def test_a_weight_times_a_stored_integer_is_a_weight() -> None:
    nodes = [
        helper.make_node("Cast", ["k"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["w", "f"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    stored = [tensor("w", draws(0, 16, 16)), tensor("k", np.array(3))]
    _, survey = find_weights(model_of(nodes, [info("x", [2, 16])], [info("y", [2, 16])], stored))
    assert [w.name for w in survey.weights] == ["w"]


# ---- plans that do not fit


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"weight": "gone"}, "is not in the model"),
        ({"shape": (16, 15)}, "is not in the model"),
        ({"dtype": "float64"}, "is not float64"),
    ],
)
def test_a_plan_for_another_model_is_refused(update: dict[str, object], said: str) -> None:
    lifted, chosen = chosen_for(linear("w"), Tier.INT4)
    wrong = plan_of([Candidate(chosen[0].assignment.model_copy(update=update), {})])
    with pytest.raises(InputError, match=said):
        Rewrite(wrong, {}, {}, "1").apply(lifted)


@pytest.mark.parametrize(
    "update",
    [
        {"form": Form.DEQUANTIZE, "tier": Tier.INT4, "axis": 1, "grid": Grid.SIGNED},
        {"form": Form.CAST, "tier": Tier.BF16},
    ],
)
def test_forms_that_the_opset_lacks_are_refused(update: dict[str, object]) -> None:
    lifted, chosen = chosen_for(linear("w", opset=11), Tier.INT4)
    wrong = plan_of([Candidate(chosen[0].assignment.model_copy(update=update), {})])
    with pytest.raises(InputError, match="opset 11"):
        Rewrite(wrong, {}, {}, "1").apply(lifted)


def test_given_codes_are_written_instead_of_our_own() -> None:
    lifted, chosen = chosen_for(linear("w"), Tier.INT4)
    a = chosen[0].assignment
    assert a.grid is not None
    codes = quantize(draws(99, 16, 16), 4, a.axis, a.grid, half_scales=a.half_scales)
    plan = plan_of([Candidate(a.model_copy(update={"rounding": "gptq"}), {})])
    out = rewritten(lifted, plan, {"w": codes})
    assert_decodes_to(out, {"w": codes.decode()})


def test_codes_whose_scales_are_too_small_for_float16_are_written_with_float32_scales() -> None:
    lifted, chosen = chosen_for(linear("w"), Tier.INT8)
    a = chosen[0].assignment.model_copy(update={"half_scales": True, "rounding": "gptq"})
    assert a.grid is not None
    codes = quantize(1e-4 * draws(99, 16, 16), 8, a.axis, a.grid, half_scales=True)
    assert codes.scales.dtype == np.float32
    out = rewritten(lifted, plan_of([Candidate(a, {})]), {"w": codes})
    assert_decodes_to(out, {"w": codes.decode()})


def test_codes_of_another_shape_are_refused() -> None:
    lifted, chosen = chosen_for(linear("w"), Tier.INT4)
    with pytest.raises(InputError, match="codes of shape"):
        rewritten(lifted, plan_of(chosen), {"w": quantize(draws(0, 16, 15), 4, None, Grid.SIGNED)})


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"tier": Tier.INT3}, "codes of 8 bits, not 3"),
        ({"tier": Tier.INT4, "grid": Grid.MIDRISE}, "codes of 8 bits, not 4"),
        ({"axis": 0}, "codes of axis 1 and group 0, not 0 and 0"),
        ({"axis": None}, "codes of axis 1 and group 0, not None and 0"),
        ({"form": Form.CAST_MUL, "group": 16}, "codes of axis 1 and group 0, not 1 and 16"),
        ({"half_scales": False}, "codes of float16 scales"),
        (
            {"tier": Tier.FP16, "form": Form.CAST, "grid": None},
            "codes of 8 bits, although it is stored as FP16",
        ),
    ],
)
def test_codes_that_are_not_what_the_plan_says_are_refused(update: dict[str, object], said: str) -> None:
    lifted, chosen = chosen_for(linear("w"), Tier.INT8)
    changes = {"grid": Grid.SIGNED, "axis": 1, "half_scales": True, "group": 0, "rounding": "qep"}
    a = chosen[0].assignment.model_copy(update=changes)
    codes = quantize(draws(99, 16, 16), 8, 1, Grid.SIGNED, half_scales=True)
    rewritten(lifted, plan_of([Candidate(a, {})]), {"w": codes})
    with pytest.raises(InputError, match=said):
        rewritten(lifted, plan_of([Candidate(a.model_copy(update=update), {})]), {"w": codes})
