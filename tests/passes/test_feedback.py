"""Feedback suggestions: outputs paired with inputs by shape, type and name, rendered as TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tqs_passes.files.model import Model
from tqs_passes.survey.feedback import Mode, Suggestion, render_rollout, suggest_feedback

Port = tuple[str, list[int | str | None]]


def model_of(inputs: list[Port], outputs: list[Port], *, stored: tuple[str, ...] = ()) -> Model:
    def ports(listed: list[Port]) -> list[object]:
        return [
            helper.make_tensor_value_info(n, TensorProto.BOOL if n == "mask" else TensorProto.FLOAT, dims)
            for n, dims in listed
        ]

    nodes = [helper.make_node("Identity", [inputs[0][0]], [name]) for name, _ in outputs]
    tensors = [numpy_helper.from_array(np.ones(2, np.float32), n) for n in stored]
    graph = helper.make_graph(nodes, "g", ports(inputs), ports(outputs), tensors)
    return Model(helper.make_model(graph), Path("/nowhere"))


def wired(model: Model) -> list[tuple[str, str, Mode, int | None]]:
    return [(s.output, s.input, s.mode, s.axis) for s in suggest_feedback(model)]


def test_equal_shapes_are_replaced() -> None:
    assert wired(model_of([("x", ["N", 8])], [("y", ["N", 8])])) == [("y", "x", Mode.REPLACE, None)]


def test_pangu_pairs_surface_with_surface() -> None:
    dims: list[int | str | None] = [4, 721, 1440]
    model = model_of([("input", dims), ("input_surface", dims)], [("output_surface", dims), ("output", dims)])
    assert wired(model) == [
        ("output", "input", Mode.REPLACE, None),
        ("output_surface", "input_surface", Mode.REPLACE, None),
    ]


def test_names_decide_between_equal_shapes() -> None:
    dims: list[int | str | None] = ["N", 8]
    model = model_of([("forcing", dims), ("state", dims)], [("state_next", dims)])
    assert [(o, i) for o, i, _, _ in wired(model)] == [("state_next", "state")]


def test_final_states_feed_initial_states() -> None:
    dims: list[int | str | None] = ["N", 8]
    model = model_of([("solar", dims), ("c0", dims), ("h0", dims)], [("hn", dims), ("cn", dims)])
    assert [(o, i) for o, i, _, _ in wired(model)] == [("cn", "c0"), ("hn", "h0")]


def test_cache_entries_are_paired_by_their_numbers() -> None:
    dims: list[int | str | None] = ["N", 2, 16, 8]
    inputs = [(f"past_key_values.{i}.{k}", dims) for i in range(3) for k in ("key", "value")]
    outputs = [(f"present.{i}.{k}", dims) for i in range(3) for k in ("key", "value")]
    pairs = [(o, i) for o, i, _, _ in wired(model_of(inputs, outputs[::-1]))]
    assert pairs == [(o, i) for (i, _), (o, _) in zip(inputs, outputs, strict=True)]


def test_a_shorter_axis_is_shifted() -> None:
    model = model_of([("context", ["N", 512])], [("forecast", ["N", 128])])
    assert wired(model) == [("forecast", "context", Mode.SHIFT, 1)]


def test_a_missing_history_axis_is_shifted_and_inserted() -> None:
    model = model_of([("surf", [1, 2, 4, 17, 32])], [("surf_next", [1, 4, 17, 32])])
    (found,) = suggest_feedback(model)
    assert (found.mode, found.axis, found.expand) == (Mode.SHIFT, 1, True)


def test_a_missing_axis_of_one_is_replaced_and_inserted() -> None:
    (found,) = suggest_feedback(model_of([("x", ["N", 1, 8])], [("y", ["N", 8])]))
    assert (found.mode, found.axis, found.expand) == (Mode.REPLACE, 1, True)


def test_of_a_longer_output_the_end_is_used() -> None:
    (found,) = suggest_feedback(model_of([("x", ["N", 96])], [("y", ["N", 720])]))
    assert (found.mode, found.select) == (Mode.REPLACE, (1, 624, 720))


def test_other_types_and_other_shapes_are_not_paired() -> None:
    model = model_of([("mask", ["N", 8]), ("p", ["N", 3, 5])], [("y", ["N", 8]), ("q", ["N", 4, 6])])
    assert wired(model) == []


def test_initializers_are_no_inputs() -> None:
    model = model_of([("x", ["N", 2]), ("w", [2])], [("y", ["N", 2]), ("v", [2])], stored=("w",))
    assert [i for _, i, _, _ in wired(model)] == ["x"]


def test_no_output_and_no_input_is_used_twice() -> None:
    dims: list[int | str | None] = ["N", 8]
    found = wired(model_of([("a", dims), ("b", dims)], [("y", dims)]))
    assert len(found) == 1


def test_the_rendered_spec_is_toml_with_every_input() -> None:
    model = model_of(
        [("surf", ["N", 2, 4]), ("lsm", ["N", 4]), ("mask", ["N", 4])], [("surf_next", ["N", 4])]
    )
    spec = tomllib.loads(render_rollout(model, suggest_feedback(model), n_steps=7))
    assert spec == {
        "version": 1,
        "rollout": {"steps": 7, "batch_axis": 0},
        "feedback": [
            {"output": "surf_next", "input": "surf", "mode": "shift", "axis": 1, "expand": [1]},
        ],
        "static": [{"input": "lsm"}, {"input": "mask"}],
        "trajectory": {"outputs": ["surf_next"]},
    }


def test_the_history_input_wins_over_a_map_of_equal_shape_by_name() -> None:
    model = model_of([("lsm", ["N", 4]), ("surf", ["N", 2, 4])], [("surf_next", ["N", 4])])
    assert wired(model) == [("surf_next", "surf", Mode.SHIFT, 1)]


def test_state_is_not_judged() -> None:
    model = model_of([("x", ["N", 4]), ("hidden", ["N", 9])], [("y", ["N", 4]), ("hidden_next", ["N", 9])])
    spec = tomllib.loads(render_rollout(model, suggest_feedback(model)))
    assert spec["trajectory"]["outputs"] == ["y"]


def test_without_a_shared_symbolic_axis_no_batch_axis_is_claimed() -> None:
    model = model_of([("x", [1, 4])], [("y", [1, 4])])
    assert "batch_axis" not in tomllib.loads(render_rollout(model, suggest_feedback(model)))["rollout"]


def test_the_selected_end_is_rendered() -> None:
    model = model_of([("x", ["N", 96])], [("y", ["N", 720])])
    (feedback,) = tomllib.loads(render_rollout(model, suggest_feedback(model)))["feedback"]
    assert feedback["select"] == {"axis": 1, "start": 624, "stop": 720}


def test_hostile_names_are_valid_toml() -> None:
    name = 'a"\n]\\\x7f\x01🌍'
    model = model_of([(name, ["N", 4])], [("b\n[rollout]", ["N", 4])])
    spec = tomllib.loads(render_rollout(model, suggest_feedback(model)))
    assert spec["feedback"][0]["input"] == name
    assert spec["trajectory"]["outputs"] == ["b\n[rollout]"]


def test_a_hostile_reason_stays_in_its_comment() -> None:
    model = model_of([("x", [4])], [("y", [4])])
    text = render_rollout(model, (Suggestion("y", "x", Mode.REPLACE, why="a\nversion = 2"),))
    assert tomllib.loads(text)["version"] == 1


def test_ports_without_shapes_are_left_to_the_user() -> None:
    model = model_of([("x", [4])], [("y", [4])])
    model.proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert wired(model) == []
    assert tomllib.loads(render_rollout(model, ()))["static"] == [{"input": "x"}]
