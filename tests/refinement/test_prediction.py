"""The predicted drift comes from contexts that chose no integers, with an interval, and says what limits its worth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import bed_of, forecaster, opened, spec_of, values
from tqs_onnx.jobs.baseline import unscored_uniform_plan
from tqs_onnx.refinement.instruments import Instruments, instruments_on
from tqs_onnx.refinement.prediction import prediction_of
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rounding.assign import RoundingOptions, decoded_weights, round_plan
from tqs_onnx.rounding.calibrate import Calibration
from tqs_passes.plan.plan import Plan, Prediction
from tqs_passes.plan.targets import Serving

GPTQ = RoundingOptions("gptq")


def contexts(n: int, seed: int) -> Contexts:
    return Contexts({"x": values(n, 16, seed=seed)}, {})


def case(folder: Path, n: int, calibration: Contexts | None = None) -> tuple[Plan, Instruments]:
    source = opened(folder, forecaster())
    bed = bed_of(source, spec_of(4), contexts(n, 1), {"y": 2.0})
    return unscored_uniform_plan(source, 3, "exact", Serving()), instruments_on(bed, calibration)


def predicted(plan: Plan, instruments: Instruments, rounding: RoundingOptions) -> Prediction | None:
    rolled = instruments.cross_fit.rolled(plan, rounding)
    if rolled is None:
        return None
    return prediction_of(instruments.bed.contexts.take(rolled.at.tolist()), rolled.energies, rolled.basis)


def drifts(instruments: Instruments, plan: Plan, chosen: Contexts, judged: Contexts) -> np.ndarray:
    """Return the squared drift of every context, of integers chosen on other contexts, worked out in NumPy."""
    bed = instruments.bed
    assigned = round_plan(plan, Calibration(bed.on(chosen)), GPTQ)
    replaced = decoded_weights(assigned, Calibration(bed.on(chosen)).arrays)
    ours = bed.on(judged).exposed.run(replaced).outputs["y"].astype(np.float64)
    nominal = bed.on(judged).exposed.run({}).outputs["y"].astype(np.float64)
    return (((ours - nominal) / 2.0) ** 2).reshape(judged.n_contexts, -1).mean(axis=1)


def test_integers_from_the_scoring_contexts_are_cross_fitted(tmp_path: Path) -> None:
    plan, instruments = case(tmp_path, 10)
    found = predicted(plan, instruments, GPTQ)
    first, second = (instruments.bed.contexts.take(range(*half)) for half in ((0, 5), (5, 10)))
    apart = [drifts(instruments, plan, first, second), drifts(instruments, plan, second, first)]
    assert found is not None
    assert found.basis == "cross-fit"
    assert found.drift == pytest.approx(np.sqrt(np.concatenate(apart).mean()), rel=1e-6)
    assigned = round_plan(plan, instruments.calibration, GPTQ)
    assert found.drift != pytest.approx(
        instruments.joint.drift(assigned.plan.assignments, assigned.codes), rel=1e-3
    )


def test_integers_from_other_contexts_are_judged_on_the_scoring_contexts(tmp_path: Path) -> None:
    other = contexts(6, 2)
    plan, instruments = case(tmp_path, 5, other)
    found = predicted(plan, instruments, GPTQ)
    apart = drifts(instruments, plan, other, instruments.bed.contexts)
    assert found is not None
    assert found.basis == "held-out"
    assert found.drift == pytest.approx(np.sqrt(apart.mean()), rel=1e-6)


def test_series_of_one_start_are_halved_by_number(tmp_path: Path) -> None:
    plan, instruments = case(tmp_path, 5)
    rows = np.repeat(np.array([[0, 9]]), 5, axis=0)
    bed = instruments.bed.on(replace(instruments.bed.contexts, rows=rows))
    rolled = instruments_on(bed).cross_fit.rolled(plan, GPTQ)
    assert rolled is not None
    first, second = (bed.contexts.take(range(*half)) for half in ((0, 2), (2, 5)))
    apart = [drifts(instruments, plan, first, second), drifts(instruments, plan, second, first)]
    assert rolled.energies == pytest.approx(np.concatenate(apart), rel=1e-6)
    assert rolled.at.tolist() == [2, 3, 4, 0, 1]


def test_a_single_context_that_chose_the_integers_predicts_nothing(tmp_path: Path) -> None:
    plan, instruments = case(tmp_path, 1)
    assert instruments.cross_fit.rolled(plan, GPTQ) is None


def test_integers_from_the_weights_alone_are_judged_on_every_scoring_context(tmp_path: Path) -> None:
    plan, instruments = case(tmp_path, 6)
    found = predicted(plan, instruments, RoundingOptions())
    assert found is not None
    assert found.basis == "scoring"
    assert found.drift == pytest.approx(instruments.joint.drift(plan.assignments), rel=1e-9)


def test_the_interval_of_normal_means_is_that_of_theory() -> None:
    energies = np.random.default_rng(3).normal(100.0, 10.0, 400)
    found = prediction_of(contexts(400, 0), energies, "scoring")
    # √ of a mean of 400 values: mean ± 1.645 · 10 / √400, within a bootstrap's own error
    low, high = np.sqrt(energies.mean() + np.array([-1, 1]) * 1.645 * energies.std() / 20)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_series_that_start_at_one_row_stay_together() -> None:
    rows = np.repeat(np.array([[0, 5], [5, 10]]), 50, axis=0)
    many = Contexts({"x": values(100, 16)}, {}, rows=rows)
    found = prediction_of(many, np.repeat([1.0, 9.0], 50), "scoring")
    assert (found.low, found.high) == (1.0, 3.0)  # one sample in four draws the same start twice


def test_few_contexts_and_a_heavy_tail_are_said() -> None:
    text = str(prediction_of(contexts(4, 0), np.array([0.01, 0.01, 0.01, 0.97]), "cross-fit"))
    assert "from 4 contexts only" in text
    assert "one context makes up 97 % of it" in text


def test_many_even_contexts_need_no_caveat() -> None:
    assert str(prediction_of(contexts(20, 0), np.full(20, 0.04), "cross-fit")) == "0.2 (0.2 to 0.2)"


def test_a_rollout_that_is_not_finite_predicts_an_infinite_drift() -> None:
    found = prediction_of(contexts(3, 0), np.array([1.0, np.inf, 1.0]), "scoring")
    assert (found.drift, found.high) == (np.inf, np.inf)


def test_calibration_contexts_that_are_also_scored_judge_nothing_that_they_chose(tmp_path: Path) -> None:
    plan, alone = case(tmp_path / "alone", 4)
    shared = alone.bed.contexts.take([0, 1])
    _, instruments = case(tmp_path / "shared", 4, shared)
    found, expected = (i.cross_fit.rolled(plan, GPTQ) for i in (instruments, alone))
    assert found is not None
    assert expected is not None
    assert found.basis == "cross-fit"
    assert found.energies == pytest.approx(expected.energies)
