"""The objective `measured`: what is measured, what is guessed, and what is kept for the next budget."""

from __future__ import annotations

import numpy as np
import pytest

from tqs_onnx.allocation.choice import Bundle, storage_key
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.offers import entries_of
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.responses import expected, finite_choices
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.refinement.measured_objective import NEGLIGIBLE, Responder, plan_measured
from tqs_onnx.rounding.assign import Alone, RoundingOptions
from tqs_onnx.rounding.calibrate import Calibration
from tqs_onnx.scoring.measure.store import Results

OPTIONS = PlanOptions(objective=Objective.MEASURED)


def responder(lorenz, results, method="gptq", contexts=None, calibration=None):
    bed = lorenz.bed if contexts is None else lorenz.bed.on(contexts)
    instruments = instruments_on(bed, calibration)
    return Responder(instruments, RoundingOptions(method), lorenz.source.sha256, results)


def budget(lorenz, compression):
    return int(lorenz.source.facts.n_bytes / compression)


@pytest.fixture(scope="module")
def run(lorenz):
    with Results(None) as results:
        first = plan_measured(lorenz.request, budget(lorenz, 8), OPTIONS, responder(lorenz, results))
        again = plan_measured(lorenz.request, budget(lorenz, 8), OPTIONS, responder(lorenz, results))
        by_qep = plan_measured(lorenz.request, budget(lorenz, 8), OPTIONS, responder(lorenz, results, "qep"))
        other = plan_measured(lorenz.request, budget(lorenz, 6), OPTIONS, responder(lorenz, results))
    return first, again, by_qep, other


def test_a_second_run_measures_nothing_and_gives_the_same_plan(run):
    first, again, _, _ = run
    assert first.measured > 0
    assert again.measured == 0
    assert again.plan == first.plan


def test_another_budget_measures_only_what_it_lacks(run):
    first, _, _, other = run
    assert other.reused > 0
    assert other.measured < first.measured


def test_a_plan_does_not_depend_on_what_the_store_held_before(lorenz, run):
    with Results(None) as empty:
        alone = plan_measured(lorenz.request, budget(lorenz, 6), OPTIONS, responder(lorenz, empty))
    assert alone.reused == 0
    assert alone.plan == run[3].plan
    assert alone.request.responses == run[3].request.responses


def test_tiers_that_are_not_chosen_are_not_measured(lorenz, run):
    every = sum(len(e.bundles) for e in entries_of(lorenz.request, OPTIONS))
    assert run[0].measured < every / 2


def test_all_but_a_hundredth_of_the_predicted_cost_is_measured(run):
    found = run[0]
    guessed = [a.cost for a in found.plan.assignments if storage_key([a]) not in found.request.responses]
    assert sum(guessed) <= NEGLIGIBLE * sum(a.cost for a in found.plan.assignments)


def test_a_response_is_the_squared_drift_of_the_weight_rounded_alone(lorenz, run):
    a = max(run[0].plan.assignments, key=lambda a: a.cost)
    bed = lorenz.bed
    ours = bed.exposed.pieces({a.weight: Alone(Calibration(bed), RoundingOptions("gptq")).decoded(a)})
    # the same rollouts, added up in another order
    expected = bed.ruler.n_values * bed.drift(ours) ** 2
    assert run[0].request.responses[storage_key([a])] == pytest.approx(expected, rel=1e-9)


def test_the_plan_is_charged_what_was_measured(run):
    a = max(run[0].plan.assignments, key=lambda a: a.cost)
    # cost is amplification times error energy, two roundings of a float
    assert a.cost == pytest.approx(run[0].request.responses[storage_key([a])], rel=1e-12)


def test_no_plan_of_the_responses_known_is_cheaper(lorenz, run):
    energy = plan_within(lorenz.request, budget(lorenz, 8), PlanOptions())
    known = run[0].request.responses
    table = {
        key: cost
        for e in entries_of(run[0].request, OPTIONS)
        for b, row in zip(e.bundles, e.amplifications, strict=True)
        for key, cost in [(b.key, row[0] * b.error_energy)]
    }
    assert sum(table[storage_key([a])] for a in energy.assignments) >= sum(
        a.cost for a in run[0].plan.assignments
    )
    assert known


def test_data_aware_roundings_share_their_responses(run):
    assert run[2].measured == 0


def test_another_rounding_or_calibration_measures_anew(lorenz):
    bundle = entries_of(lorenz.request, OPTIONS)[0].bundles[-1]
    halves = lorenz.scoring.take([0, 1]), lorenz.scoring.take([2, 3])
    with Results(None) as results:
        small = {"contexts": halves[0]}
        responder(lorenz, results, "mse", **small).measure([bundle])
        assert responder(lorenz, results, "mse", **small).known([bundle])
        assert not responder(lorenz, results, "gptq", **small).known([bundle])
        responder(lorenz, results, "gptq", **small).measure([bundle])
        assert not responder(lorenz, results, "gptq", calibration=halves[1], **small).known([bundle])
        # rounding by the weight alone sees no calibration contexts
        assert responder(lorenz, results, "mse", calibration=halves[1], **small).known([bundle])


def ladder(lorenz) -> tuple[Bundle, ...]:
    return max((e.bundles for e in entries_of(lorenz.request, OPTIONS)), key=len)


def test_without_measurements_the_guess_stands(lorenz):
    bundles = ladder(lorenz)[:3]
    assert expected([bundles], [[0.0, 2.0, 5.0]], {}) == [[0.0, 2.0, 5.0]]


def test_a_guess_between_measurements_is_corrected_by_both(lorenz):
    bundles = ladder(lorenz)[1:4]
    known = {bundles[0].key: 2.0, bundles[2].key: 50.0}  # ratios 2 and 0.5 at guesses 1 and 100
    found = expected([bundles], [[1.0, 10.0, 100.0]], known)[0]
    # half way in the logarithm: ratio sqrt(2 · 0.5) = 1
    assert found == pytest.approx([2.0, 10.0, 50.0], rel=1e-12)


def test_a_weight_without_measurements_takes_the_median_ratio_of_the_others(lorenz):
    one, other = ladder(lorenz)[1:3], entries_of(lorenz.request, OPTIONS)[0].bundles[1:2]
    known = {one[0].key: 3.0, one[1].key: 6.0}
    assert expected([one, other], [[1.0, 2.0], [7.0]], known)[1] == pytest.approx([21.0], rel=1e-12)


def test_a_choice_that_made_the_rollout_infinite_is_not_offered(lorenz):
    bundles = ladder(lorenz)[:3]
    assert finite_choices(bundles, {bundles[1].key: np.inf}) == [0, 2]
    assert finite_choices(bundles[:1], {bundles[0].key: np.inf}) == [0]
