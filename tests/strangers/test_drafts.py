"""Every stranger's model is drafted right or asked about; none is drafted plausibly but wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.strangers.shapes import STRANGERS, Stranger
from tqs_onnx.inputs.drafting import draft_text, drafted, tried, untried
from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.draft.draft import Draft
from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.spec import parse_spec


@pytest.fixture(scope="module")
def drafts() -> dict[str, Draft]:
    return {stranger.name: tried(open_source(stranger.build())) for stranger in STRANGERS}


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda s: s.name)
def test_what_is_fed_back_is_right_and_nothing_else_is(stranger: Stranger, drafts: dict[str, Draft]) -> None:
    spec = drafts[stranger.name].spec
    assert {(f.output, f.input, f.mode) for f in spec.feedback} == stranger.fed
    assert {f.input for f in spec.forcing} == stranger.forcing
    assert {f.input for f in spec.static} == stranger.static


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda s: s.name)
def test_what_is_ambiguous_is_asked_by_name_with_answers(
    stranger: Stranger, drafts: dict[str, Draft]
) -> None:
    questions = drafts[stranger.name].questions
    assert {asked.about for asked in questions} == stranger.asked
    assert all("?" in asked.text and repr(asked.about) in asked.text for asked in questions)


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda s: s.name)
def test_batch_time_and_steps_are_right(stranger: Stranger, drafts: dict[str, Draft]) -> None:
    spec = drafts[stranger.name].spec
    assert spec.rollout.batch_axis == stranger.batch
    assert spec.trajectory.time_axis == stranger.time_axis
    assert spec.rollout.steps == stranger.steps or (stranger.steps is None and spec.rollout.steps > 1)


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda s: s.name)
def test_the_text_parses_to_the_spec_and_fits_the_model(stranger: Stranger, drafts: dict[str, Draft]) -> None:
    found = drafts[stranger.name]
    assert parse_spec(draft_text(found)) == found.spec
    check_spec(found.spec, open_source(stranger.build()).signature)


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda s: s.name)
def test_every_answer_is_a_spec_that_fits_the_model_and_feeds_the_output_back(
    stranger: Stranger, drafts: dict[str, Draft]
) -> None:
    signature = open_source(stranger.build()).signature
    for asked in drafts[stranger.name].questions:
        assert asked.answers
        for answer in asked.answers:
            check_spec(answer, signature)
            assert answer.feedback[-1].output == asked.about
            assert answer.rollout.steps > 1


def test_an_answer_changes_what_depends_on_it(drafts: dict[str, Draft]) -> None:
    """Twelve values a call: the answer has a time axis and no variable for each of them."""
    (asked,) = drafts["horizon-of-one-feature"].questions
    (first, *others) = asked.answers
    assert len(others) == 4
    assert drafts["horizon-of-one-feature"].spec.variable
    assert (first.trajectory.time_axis, first.variable, first.rollout.steps) == (1, (), 5)
    assert [f.input for f in first.forcing] == ["input"]


def test_a_draft_without_calls_never_feeds_back_what_calls_would_refute() -> None:
    for stranger in STRANGERS:
        fed = {(f.output, f.input, f.mode) for f in untried(open_source(stranger.build())).spec.feedback}
        assert fed <= stranger.fed | {("x_next", "x", "replace")}, stranger.name


def test_channels_are_judged_one_by_one(drafts: dict[str, Draft]) -> None:
    spec = drafts["block-of-rows"].spec
    assert [(v.name, v.axis, v.index) for v in spec.variable] == [(f"prediction_{k}", 2, k) for k in range(7)]


@pytest.fixture
def no_child_for_drafts() -> None:
    """Keep the child process: it is what these tests are about."""


@pytest.mark.usefixtures("no_child_for_drafts")
def test_the_child_process_drafts_what_this_process_does(drafts: dict[str, Draft], tmp_path: Path) -> None:
    stranger = next(s for s in STRANGERS if s.name == "patches")
    path = tmp_path / "model.onnx"
    path.write_bytes(stranger.build().SerializeToString())
    assert drafted(open_source(path)) == drafts["patches"]


RIGHT: dict[str, tuple[set[tuple[str, str]], set[str]]] = {
    # (output, input) fed back, and outputs that may be asked about; from the README beside the models
    "silero/silero_vad_op18_ifless": ({("stateN", "state")}, set()),
    "silero/silero_vad_half": ({("stateN", "state")}, set()),
    "silero/silero_vad_16k_op15": ({("stateN", "state")}, set()),
    "dtln/model_1": ({("tf_op_layer_stack_2", "input_3")}, set()),
    "dtln/model_2": ({("tf_op_layer_stack_5", "input_5")}, {"conv1d_3"}),
    "gtcrn/gtcrn": (
        {
            ("conv_cache_out", "conv_cache"),
            ("tra_cache_out", "tra_cache"),
            ("inter_cache_out", "inter_cache"),
        },
        set(),
    ),
    "mvts/lstm": (set(), {"return_hat"}),
    "mvts/patchtst": (set(), {"return_hat"}),
    "mvts/transformer_vs": (set(), {"return_hat"}),
    "financial/model_fixed": (set(), {"prediction"}),
    "earthpulse/lstm_model": (set(), {"dense_1"}),
    "rul/lstm_model": (set(), {"output_0"}),
    "trader/t": (set(), {"decoder_output"}),
    "trader/lstm": (set(), set()),
    "sentinel/lstm_pre_v2": (set(), set()),
    "fuelcell/model": (set(), {"output"}),
    "cyclone/cyclone_model_200x200": (set(), set()),
}


@pytest.mark.parametrize("name", RIGHT)
def test_real_models_of_other_people_are_drafted_right_or_asked_about(name: str) -> None:
    path = Path(os.environ.get("TQS_DATA", "../shared/data")) / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"needs {name}.onnx below $TQS_DATA/models")
    found = tried(open_source(path))
    fed, asked = RIGHT[name]
    assert {(f.output, f.input) for f in found.spec.feedback} == fed
    assert {question.about for question in found.questions} == asked
    check_spec(found.spec, open_source(path).signature)
