"""Joint rollouts and joint repair, on the bundled model over few steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.times import TimedForm, TimeTable
from tqs_onnx.allocation.two_budgets import predicted_time
from tqs_onnx.emission import emit
from tqs_onnx.refinement import repair as repair_module
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.refinement.joint_drift import JointDrift
from tqs_onnx.refinement.refine import RefineOptions, refine
from tqs_onnx.refinement.repair import repair
from tqs_onnx.rollout.contexts.context_set import held_out
from tqs_onnx.rounding.assign import RoundingOptions
from tqs_onnx.rounding.codes_file import codes_beside, codes_digest, write_codes
from tqs_onnx.verification.evaluate import measure_drift
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError


@pytest.fixture(scope="module")
def plan(lorenz):
    return plan_within(lorenz.request, lorenz.source.facts.n_bytes // 10, PlanOptions())


def test_nothing_rounded_drifts_nothing(lorenz, plan):
    kept = tuple(m.candidates[0].assignment for m in lorenz.request.menus)
    assert JointDrift(lorenz.bed).drift(kept) == 0.0


def test_the_joint_drift_is_that_of_the_file(lorenz, plan, tmp_path):
    file = tmp_path / "model.onnx"
    emit(lorenz.source.lifted, plan, file)
    bed = lorenz.bed
    nominal, ours = bed.roll_file(lorenz.source.path), bed.roll_file(file)
    measured = measure_drift(
        nominal.outputs, ours.outputs, bed.spec, bed.contexts, bed.sigma, nominal.time_after
    ).total
    # The profile is exact: what is left is float32 rounding of two differently fused graphs.
    assert JointDrift(bed).drift(plan.assignments) == pytest.approx(measured, rel=1e-3)


def test_a_repair_never_raises_the_drift_on_the_acceptance_contexts(lorenz, plan):
    mended = repair(plan, lorenz.request, JointDrift(lorenz.bed), lorenz.scoring, PlanOptions(), 2)
    assert mended.after <= mended.before
    _, acceptance = held_out(lorenz.scoring, 0.5)
    assert JointDrift(lorenz.bed.on(acceptance)).drift(mended.plan.assignments) == pytest.approx(
        mended.after, rel=1e-9
    )


def test_a_repaired_plan_keeps_the_budget_and_its_bytes_are_exact(lorenz, plan, tmp_path):
    mended = repair(plan, lorenz.request, JointDrift(lorenz.bed), lorenz.scoring, PlanOptions(), 2).plan
    file = tmp_path / "model.onnx"
    emit(lorenz.source.lifted, mended, file)
    assert file.stat().st_size == mended.n_bytes <= plan.solver.budget_bytes


def test_repair_leaves_what_the_options_fix(lorenz):
    budget = lorenz.source.facts.n_bytes // 8
    scores = {s.weight: s for s in lorenz.request.scores.weights}
    middle = sorted(s.gamma_task for s in scores.values() if s.gamma_task is not None)[3]
    capped = PlanOptions(max_fp32=0)
    plan = plan_within(lorenz.request, budget, capped)
    mended = repair(plan, lorenz.request, JointDrift(lorenz.bed), lorenz.scoring, capped, 2).plan
    assert not any(a.form is Form.KEEP for a in mended.assignments)
    floored = PlanOptions(gamma_min=middle)
    plan = plan_within(lorenz.request, budget, floored)
    mended = repair(plan, lorenz.request, JointDrift(lorenz.bed), lorenz.scoring, floored, 2).plan
    for before, after in zip(plan.assignments, mended.assignments, strict=True):
        gamma = scores[before.weight].gamma_task
        if gamma is not None and gamma <= middle:
            assert after.tier is before.tier


def test_no_round_returns_the_plan_itself(lorenz, plan):
    assert repair(plan, lorenz.request, JointDrift(lorenz.bed), lorenz.scoring, PlanOptions(), 0).plan == plan


def test_drift_is_finite_for_every_tier_alone(lorenz):
    joint = JointDrift(lorenz.bed)
    menu = lorenz.request.menus[4]
    drifts = [joint.drift((c.assignment,)) for c in menu.candidates]
    assert np.isfinite(drifts).all()
    assert drifts[-1] > drifts[1]


def test_data_aware_rounding_lowers_the_joint_drift_and_names_its_codes(lorenz, plan):
    options = RefineOptions(repair_rounds=0, rounding=RoundingOptions(method="gptq"))
    free = RefineOptions(repair_rounds=0, rounding=RoundingOptions())
    plain = refine(plan, lorenz.request, instruments_on(lorenz.bed), PlanOptions(), free)
    aware = refine(plan, lorenz.request, instruments_on(lorenz.bed), PlanOptions(), options)
    assert plain.plan.codes_sha256 is None
    assert plain.codes == {}
    assert aware.plan.codes_sha256 == codes_digest(aware.codes)
    assert aware.plan.joint_drift < plain.plan.joint_drift
    assert aware.plan.digest() != plain.plan.digest()


def test_codes_of_another_plan_are_refused(lorenz, plan, tmp_path):
    options = RefineOptions(repair_rounds=0, rounding=RoundingOptions(method="gptq"))
    aware = refine(plan, lorenz.request, instruments_on(lorenz.bed), PlanOptions(), options)
    write_codes(tmp_path / "codes.npz", aware.codes)
    assert codes_beside(tmp_path / "plan.json", aware.plan).keys() == aware.codes.keys()
    fewer = dict(list(aware.codes.items())[1:])
    write_codes(tmp_path / "codes.npz", fewer)
    with pytest.raises(InputError, match="belong to another plan"):
        codes_beside(tmp_path / "plan.json", aware.plan)


def test_a_trial_spends_what_its_demotions_freed(lorenz, plan):
    budget = plan.solver.budget_bytes
    moves = repair_module._Moves(plan, lorenz.request, PlanOptions(), budget)
    trials = moves.trials(moves.start)
    assert trials
    for choices in trials.values():
        made = moves.plan(choices)
        assert made.n_bytes <= budget
        # No single choice that lowers the cost fits into the bytes that are left.
        for i, entry in enumerate(moves._entries):
            item, now = entry.item, choices[i]
            for k in moves._allowed[i]:
                if item.costs[k] < item.costs[now]:
                    assert moves._bytes([*choices[:i], k, *choices[i + 1 :]]) > budget


def test_a_repaired_plan_states_the_time_of_its_own_forms(lorenz):
    menus = lorenz.request.menus
    names = tuple(m.weight.name for m in menus)
    used = sorted({c.assignment.form for m in menus for c in m.candidates})
    forms = tuple(TimedForm(form=f, weights=names, share=0.001 * i) for i, f in enumerate(used))
    times = TimeTable(
        **{"source_sha256": lorenz.source.sha256, "processor": "", "runtime": "", "provider": "cpu"},
        **{"threads": 1, "batch": 32, "rounds": 1, "fp32_ms": 1.0, "base": 1.0},
        **{"forms": forms, "checked": 0.5, "summed": 0.5},
    )
    request = replace(lorenz.request, times=times)
    plan = plan_within(request, lorenz.source.facts.n_bytes // 10, PlanOptions())
    moves = repair_module._Moves(plan, request, PlanOptions(), plan.solver.budget_bytes)
    for choices in ([0] * len(menus), moves.start):
        found = moves.plan(tuple(choices))
        assert found.time.predicted == predicted_time(found.assignments, times)
    assert moves.plan((0,) * len(menus)).time.predicted != plan.time.predicted
