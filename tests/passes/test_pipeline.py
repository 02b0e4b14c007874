"""A pipeline applies passes in order, checks each, tells what each did; every pass keeps the contract of a pass."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import helper

import tqs_passes
from tests.models import NOWHERE, block, draws, info, loop, model_of, states_of_zero, tensor, two_branches
from tqs_onnx.emission import emission, preparation
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError, PassError
from tqs_passes.files.model import Model, serialize
from tqs_passes.graph.soundness import soundness
from tqs_passes.graph_pass import GraphPass, PassResult, Skip
from tqs_passes.pipeline import Applied, Pipeline
from tqs_passes.plan.plan import Assignment, Compute, Plan
from tqs_passes.survey.lift import Lift
from tqs_passes.survey.merge import MergeEqual
from tqs_passes.survey.survey import find_weights
from tqs_passes.tier import Tier
from tqs_passes.transforms.capture import Capture
from tqs_passes.transforms.convert_opset import ConvertOpset
from tqs_passes.transforms.every_pass import EVERY_PASS
from tqs_passes.transforms.expose import Expose
from tqs_passes.transforms.half_precision.half import HalfCompute
from tqs_passes.transforms.half_precision.whole import HalfWhole
from tqs_passes.transforms.reveal import Reveal, revealed_states
from tqs_passes.transforms.rewrite import Rewrite
from tqs_passes.transforms.shrink_constants import ShrinkConstants
from tqs_passes.transforms.slim.short_names import ShortNames
from tqs_passes.transforms.slim.slimming import slim_passes
from tqs_passes.transforms.split_gates import SplitGates
from tqs_passes.transforms.switch import Switch

KEBAB = re.compile(r"[a-z]+(-[a-z]+)*")


@dataclass(frozen=True)
class Renames:
    """Gives node `index` another name."""

    index: int
    name: ClassVar[str] = "renames"

    def apply(self, model: Model) -> PassResult:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        proto.graph.node[self.index].name += "+"
        skips = (Skip("a", "it is kept"), Skip("b", "it is kept"), Skip("c", "it is small"))
        return PassResult(Model(proto, model.folder), (f"n{self.index}", "other"), skips)


@dataclass(frozen=True)
class Rests:
    """Changes nothing."""

    name: ClassVar[str] = "rests"

    def apply(self, model: Model) -> PassResult:
        return PassResult(model)


@dataclass(frozen=True)
class Breaks:
    """Spoils the graph."""

    how: Callable[[onnx.GraphProto], object]
    name: ClassVar[str] = "breaks"

    def apply(self, model: Model) -> PassResult:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        self.how(proto.graph)
        return PassResult(Model(proto, model.folder), ("x",))


@dataclass(frozen=True)
class Refuses:
    """Takes no model."""

    name: ClassVar[str] = "refuses"

    def apply(self, model: Model) -> PassResult:
        raise InputError("is not for me", where="the model")


# ---- order and results


def test_passes_run_in_order_and_each_tells_what_it_did() -> None:
    result = Pipeline((Renames(0), Rests(), Renames(0))).apply(block())
    assert result.model.proto.graph.node[0].name == "embed_tokens++"
    assert [(p.name, p.changed) for p in result.passes] == [
        ("renames", ("n0", "other")),
        ("rests", ()),
        ("renames", ("n0", "other")),
    ]
    assert result.passes[1] == Applied("rests", (), ())
    assert len(result.skipped_by("renames")) == 6


def test_a_pipeline_that_changes_nothing_gives_the_model_itself() -> None:
    model = block()
    assert Pipeline((Rests(),)).apply(model).model is model
    assert Pipeline(()).apply(model).model is model


def test_none_stands_for_a_pass_that_was_not_asked_for() -> None:
    assert Pipeline.of(None, Rests(), None) == Pipeline((Rests(),))


# ---- the check


def drop_first(graph: onnx.GraphProto) -> None:
    del graph.node[0]


def define_twice(graph: onnx.GraphProto) -> None:
    graph.node.add(op_type="Identity", input=["h"], output=["h"])


def reverse(graph: onnx.GraphProto) -> None:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)


def lose_the_output(graph: onnx.GraphProto) -> None:
    graph.node[-1].output[0] = "elsewhere"


def name_no_operator(graph: onnx.GraphProto) -> None:
    graph.node[0].op_type = "Grather"


def store_twice(graph: onnx.GraphProto) -> None:
    graph.initializer.append(graph.initializer[0])


BREAKS = [
    (drop_first, "'e' is read before it is defined"),
    (define_twice, "'h' is defined twice"),
    (reverse, "is read before it is defined"),
    (lose_the_output, "the output 'y' is not defined"),
    (name_no_operator, "Grather"),
    (store_twice, "'embed' is defined twice"),
]


@pytest.mark.parametrize(("how", "complaint"), BREAKS, ids=lambda b: getattr(b, "__name__", ""))
def test_a_model_that_is_not_sound_names_the_pass_and_those_before(
    how: Callable[[onnx.GraphProto], None], complaint: str
) -> None:
    with pytest.raises(PassError, match=re.escape(complaint)) as raised:
        Pipeline((Renames(0), Rests(), Breaks(how), Renames(0))).apply(block())
    assert (raised.value.name, raised.value.before) == ("breaks", ("renames", "rests"))
    assert "the pass breaks, after renames, rests," in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1


def test_a_first_pass_that_breaks_has_none_before_it() -> None:
    with pytest.raises(PassError, match="the pass breaks, which ran first"):
        Pipeline((Breaks(drop_first),)).apply(block())


def test_a_name_lost_inside_a_body_is_seen() -> None:
    def in_body(graph: onnx.GraphProto) -> None:
        graph.node[0].attribute[0].g.node[0].input[0] = "nobody"

    with pytest.raises(PassError, match="'nobody' is read before it is defined"):
        Pipeline((Breaks(in_body),)).apply(two_branches())


@pytest.mark.parametrize("model", [block(), loop(), two_branches()], ids=["block", "loop", "branches"])
def test_a_sound_model_has_no_complaint(model: Model) -> None:
    found = soundness(model.proto)
    assert (found.names, found.checker) == (frozenset(), None)


def test_what_was_wrong_in_the_source_is_no_fault_of_a_pass() -> None:
    unsorted = Breaks(reverse).apply(block()).model
    assert soundness(unsorted.proto).checker is not None
    assert Pipeline((Renames(0),)).apply(unsorted).passes[0].name == "renames"
    with pytest.raises(PassError, match="the output 'y' is not defined"):
        Pipeline((Breaks(lambda g: setattr(g.output[0], "name", "y") or g.node.pop(0)),)).apply(unsorted)


def test_stored_values_are_not_looked_at() -> None:
    model = block()
    for stored in model.proto.graph.initializer:
        stored.ClearField("raw_data")
    found = soundness(model.proto)
    assert (found.names, found.checker) == (frozenset(), None)


def test_a_big_constant_node_counts_as_defined() -> None:
    node = helper.make_node("Constant", [], ["c"], value=tensor("c", draws(0, 40, 40)))
    model = model_of(
        [node, helper.make_node("MatMul", ["x", "c"], ["y"])], [info("x", [2, 40])], [info("y", [2, 40])], []
    )
    assert soundness(model.proto).checker is None


def test_an_error_of_a_pass_goes_on_as_it_is_with_a_note_of_where_it_was() -> None:
    with pytest.raises(InputError, match="the model: is not for me") as raised:
        Pipeline((Rests(), Refuses())).apply(block())
    assert raised.value.__notes__ == ["raised by the pass refuses; passes that ran before it: rests"]


# ---- the log


def lines_of(caplog: pytest.LogCaptureFixture, *passes: GraphPass) -> list[str]:
    with caplog.at_level(logging.DEBUG, "tqs_passes"):
        Pipeline(passes).apply(block())
    return [record.getMessage() for record in caplog.records if record.name == "tqs_passes.pipeline"]


def test_each_pass_logs_what_it_changed_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of(caplog, Renames(0), Rests(), ConvertOpset(18)) == [
        "renames: changed 2 tensors",
        "renames: skipped 2, it is kept: a, b",
        "renames: skipped 1, it is small: c",
        "rests: changed nothing",
        "convert-opset: changed opset",
    ]


def test_nothing_is_logged_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tqs_passes"):
        Pipeline((Renames(0),)).apply(block())
    assert not caplog.records


def test_emission_logs_a_line_for_each_pass(caplog: pytest.LogCaptureFixture) -> None:
    lifted, plan = planned(opset=18, constants="small")
    with caplog.at_level(logging.DEBUG, "tqs_passes"):
        emission(plan).apply(lifted)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "convert-opset: changed opset"
    assert "rewrite: changed 2 tensors" in lines
    assert any(line.startswith("rewrite: skipped") and "kept as FP32" in line for line in lines)


# ---- what emission does


def planned(**options: object) -> tuple[Model, Plan]:
    """A plan that casts `up` and `down` to FP16 and keeps the rest."""
    lifted, survey = find_weights(block())
    rows = tuple(
        Assignment(
            weight=w.name, label=w.label, shape=w.shape, dtype=w.dtype, n_bytes=0, error_energy=0.0,
            **({"tier": Tier.FP16, "form": Form.CAST, "rounding": "cast"}
               if w.name in ("up", "down") else {"tier": Tier.FP32, "form": Form.KEEP, "rounding": "keep"}),
        )
        for w in survey.weights
    )  # fmt: skip
    plan = Plan(
        source_sha256="ab" * 32, profile="fast", assignments=rows, n_bytes=0, source_bytes=1, **options
    )
    return lifted, plan


def names(pipeline: Pipeline) -> list[str]:
    return [each.name for each in pipeline.passes]


def test_emission_is_the_preparation_and_then_the_rewrite() -> None:
    _, plan = planned(opset=18, constants="small", compute=Compute(dtype="float16"))
    expected = ["convert-opset", "half-compute", "shrink-constants"]
    assert names(preparation({}, "small", 18, plan.compute)) == expected
    assert names(emission(plan)) == [*expected, "rewrite"]


def test_what_a_plan_does_not_ask_for_is_not_done() -> None:
    _, plan = planned(constants="keep")
    assert names(preparation({}, "keep", None, None)) == []
    assert names(emission(plan)) == ["rewrite"]


# ---- the contract of every pass


def found_in_the_package() -> set[type]:
    """Every class of the package with a name and an `apply` from model to result."""
    found: set[type] = set()
    for module in pkgutil.walk_packages(tqs_passes.__path__, "tqs_passes."):
        for _, each in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if each.__module__ == module.name and isinstance(getattr(each, "name", None), str):
                found.add(each)
    return found


def test_every_pass_there_is_is_listed() -> None:
    assert found_in_the_package() == set(EVERY_PASS)


def test_names_are_unique_and_kebab_case() -> None:
    given = [each.name for each in EVERY_PASS]
    assert len(set(given)) == len(given)
    assert all(KEBAB.fullmatch(name) for name in given)


@pytest.mark.parametrize("each", EVERY_PASS, ids=lambda p: p.name)
def test_every_pass_is_a_frozen_dataclass_with_one_method(each: type[GraphPass]) -> None:
    assert dataclasses.is_dataclass(each)
    assert each.__dataclass_params__.frozen  # type: ignore[attr-defined]
    public = [name for name, _ in inspect.getmembers(each, inspect.isfunction) if not name.startswith("_")]
    assert public == ["apply"]


def applied() -> dict[str, tuple[GraphPass, Model]]:
    """Every pass with a model that it changes."""
    lifted, plan = planned()
    mask = tensor("mask", np.where(np.eye(64), 0.0, -100.0).astype(np.float32))
    masked = model_of(
        [helper.make_node("Add", ["x", "mask"], ["y"])], [info("x", [64, 64])], [info("y", [64, 64])], [mask]
    )
    constant = model_of(
        [
            helper.make_node("Constant", [], ["c"], value=tensor("c", draws(0, 4, 4))),
            helper.make_node("MatMul", ["x", "c"], ["y"]),
        ],
        [info("x", [2, 4])],
        [info("y", [2, 4])],
        [],
    )
    same = draws(0, 4, 4)
    twins = model_of(
        [helper.make_node("MatMul", ["x", "w1"], ["h"]), helper.make_node("MatMul", ["h", "w2"], ["y"])],
        [info("x", [2, 4])],
        [info("y", [2, 4])],
        [tensor("w1", same), tensor("w2", same)],
    )
    labels = {"up": "up", "down": "down"}
    passes: list[tuple[GraphPass, Model]] = [
        (Lift(), constant),
        (MergeEqual(frozenset({"w1", "w2"})), twins),
        (Expose(("up",)), lifted),
        (Capture(("h",)), lifted),
        (Reveal((revealed_states(11),)), states_of_zero()),
        (ConvertOpset(18), lifted),
        (HalfCompute("float16", None, labels), lifted),
        (HalfWhole(), lifted),
        (ShrinkConstants(frozenset()), masked),
        (SplitGates({"w": "w", "r": "r"}), states_of_zero()),
        (Switch(("up",)), lifted),
        (Rewrite(plan, {}, {}, "1"), lifted),
        (ShortNames(frozenset(labels)), lifted),
        *((each, wasteful()) for each in slim_passes(frozenset())),
    ]
    return {each.name: (each, model) for each, model in passes}


def wasteful() -> Model:
    """A model with something to do for every pass that slims."""
    proto = onnx.ModelProto()
    proto.CopyFrom(states_of_zero().proto)
    proto.graph.node[0].doc_string = "a note"
    proto.graph.node.add(op_type="Shape", input=["x"], output=["unused"])
    proto.graph.node.add(op_type="Shape", input=["x"], output=["repeated"])
    return Model(proto, NOWHERE)


@pytest.mark.parametrize("name", [each.name for each in EVERY_PASS])
def test_every_pass_leaves_its_input_as_it_was_and_says_what_changed(name: str) -> None:
    each, model = applied()[name]
    before = serialize(model.proto)
    result = each.apply(model)
    assert serialize(model.proto) == before
    assert isinstance(result, PassResult)
    assert result.model is not model
    assert result.changed
    assert soundness(result.model.proto).worse_than(soundness(model.proto)) is None
