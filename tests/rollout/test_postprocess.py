"""Flip invariance and non-negative forecasts, as TimesFM's package has them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.postprocess import without_mirror
from tqs_onnx.rollout.session import Session, SessionOptions, open_session
from tqs_onnx.rollout.spec.spec import RolloutSpec, content_hash, load_spec, parse_spec
from tqs_passes.errors import InputError

FOLDER = Path(__file__).parents[2] / "models" / "zoo" / "timesfm_mini"


@cache
def session() -> Session:
    return open_session(FOLDER / "model.onnx", options=SessionOptions(threads=1))


def spec(**options: bool) -> RolloutSpec:
    plain = load_spec(FOLDER / "rollout.toml")
    return plain.model_copy(update={"rollout": plain.rollout.model_copy(update=options)})


@cache
def series() -> np.ndarray:
    """Daily cycles, float32 [4, 512]; 0 and 1 have negative values, 2 and 3 are cut at zero."""
    rng = np.random.default_rng(0)
    cycle = np.sin(2 * np.pi * np.arange(512) / 24) + 0.05 * rng.standard_normal((4, 512)).cumsum(axis=1)
    cycle[2:] = np.maximum(cycle[2:] - cycle[2:].mean(axis=1, keepdims=True), 0)
    return cycle.astype(np.float32)


def rolled(values: np.ndarray, **options: bool) -> np.ndarray:
    contexts = Contexts({"context": values}, {}, source="test")
    return Engine(session(), spec(**options), contexts).run().outputs["forecast"]


def test_both_options_are_off_by_default() -> None:
    assert without_mirror(spec()) == spec()
    assert content_hash(spec()) == content_hash(spec(flip_invariant=False))
    assert content_hash(spec()) != content_hash(spec(flip_invariant=True))


def test_the_network_by_itself_is_not_flip_invariant() -> None:
    assert np.abs(rolled(series()) + rolled(-series())).max() > 0.01


def test_a_flip_invariant_forecast_changes_its_sign_with_its_context() -> None:
    np.testing.assert_array_equal(
        rolled(series(), flip_invariant=True), -rolled(-series(), flip_invariant=True)
    )


def test_the_two_rollouts_are_averaged_at_their_end_not_step_by_step() -> None:
    """The package decodes both to the end; each feeds its own forecasts back."""
    expected = (rolled(series()) - rolled(-series())) / 2
    np.testing.assert_array_equal(rolled(series(), flip_invariant=True), expected)


def test_a_forecast_is_bounded_only_where_its_context_has_no_negative_value() -> None:
    plain, made = rolled(series()), rolled(series(), non_negative=True)
    assert (plain[2:] < 0).any()
    np.testing.assert_array_equal(made[:2], plain[:2])
    np.testing.assert_array_equal(made[2:], np.maximum(plain[2:], 0))


def test_the_bound_comes_after_the_average() -> None:
    made = rolled(series(), flip_invariant=True, non_negative=True)
    np.testing.assert_array_equal(made[2:], np.maximum(rolled(series(), flip_invariant=True)[2:], 0))


def test_a_part_of_the_contexts_gives_what_all_of_them_give() -> None:
    contexts = Contexts({"context": series()}, {}, source="test")
    engine = Engine(session(), spec(flip_invariant=True, non_negative=True), contexts, batch=2)
    whole, part = engine.run(), engine.run(contexts=slice(2, 4))
    np.testing.assert_array_equal(part.outputs["forecast"], whole.outputs["forecast"][2:])


@pytest.mark.parametrize("options", [{"flip_invariant": True}, {"non_negative": True}])
def test_squares_are_those_of_whole_rollouts(options: dict[str, bool]) -> None:
    contexts = Contexts({"context": series()}, {}, source="test")
    other = Contexts({"context": series() + np.float32(0.01)}, {}, source="test")
    engine = Engine(session(), spec(**options), contexts)
    held, nominal = engine.hold(), engine.run()
    made = engine.over(other).run().outputs["forecast"]
    expected = (made.astype(np.float64) - nominal.outputs["forecast"]) ** 2
    # a float32 difference is off by 2⁻²⁴ of itself, its square by twice that
    found = engine.over(other).squares(held).outputs["forecast"]
    np.testing.assert_allclose(found, expected, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("batch", [None, 2])
def test_step_by_step_is_the_whole(batch: int | None) -> None:
    contexts = Contexts({"context": series()}, {}, source="test")
    engine = Engine(session(), spec(flip_invariant=True, non_negative=True), contexts, batch=batch)
    held, whole = engine.hold(), engine.run().outputs["forecast"]
    for pieces in (engine.pieces(), engine.kept_pieces(held)):
        for piece in pieces:
            made = piece.outputs["forecast"]
            np.testing.assert_array_equal(made, whole[piece.rows, piece.time])


def test_without_feedback_there_is_nothing_to_flip() -> None:
    text = 'version = 1\n[rollout]\nsteps = 1\nflip_invariant = true\n[trajectory]\noutputs = ["y"]\n'
    with pytest.raises(InputError, match="no \\[\\[feedback\\]\\]"):
        parse_spec(text)


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about itself
def test_both_options_equal_the_packages_own_forecast(tmp_path: Path) -> None:
    pytest.importorskip("timesfm", reason="needs the package timesfm and torch")
    import timesfm as package

    from tqs_models import timesfm
    from tqs_models.timesfm.network import random_network

    timesfm.export(tmp_path, settings={"layers": "2"})
    model: Any = package.TimesFM_2p5_200M_torch(torch_compile=False)
    model.model = random_network(0, 2)
    model.compile(
        package.ForecastConfig(
            max_context=512, max_horizon=512, force_flip_invariance=True, infer_is_positive=True
        )
    )
    expected, _ = model.forecast(horizon=500, inputs=list(series()))
    plain = load_spec(tmp_path / "rollout.toml")
    update = {"flip_invariant": True, "non_negative": True}
    chosen = plain.model_copy(update={"rollout": plain.rollout.model_copy(update=update)})
    made_in = open_session(tmp_path / "model.onnx", options=SessionOptions(threads=1))
    arrays = {"context": series(), "mask": np.zeros(series().shape, np.bool_)}
    made = Engine(made_in, chosen, Contexts(arrays, {}, source="test")).run().outputs["forecast"]
    assert (expected == 0).any()
    # The package decodes with a cache of keys and values, the graph without: float32 rounding.
    assert np.abs(made - expected).max() <= 1e-5 * max(expected.std(), 1.0)


def test_other_contexts_are_flipped_as_well() -> None:
    engine = Engine(session(), spec(flip_invariant=True), Contexts({"context": series()}, {}))
    engine.run()
    other = engine.over(Contexts({"context": 2 * series()}, {})).run().outputs["forecast"]
    np.testing.assert_array_equal(other, rolled(2 * series(), flip_invariant=True))
