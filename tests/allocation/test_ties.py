"""Blocks as units of allocation: members of a tie group share a tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollouts import forecaster, opened, scored, spec_of, values
from tqs_onnx.allocation.choice import tied
from tqs_onnx.allocation.costing import PlanOptions, Request, amplification
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.allocation.solver import branch, cp_sat
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.scoring.plan.options import Blocks
from tqs_passes.errors import InfeasibleError, InputError
from tqs_passes.plan.plan import Plan
from tqs_passes.tier import DEFAULT_TIERS, Tier

BUDGETS = (2300, 2600, 3100, 4000, 5500)
TIED = PlanOptions(ties=("W*",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return opened(tmp_path_factory.mktemp("f"), forecaster())


@pytest.fixture(scope="module")
def single(source: Source) -> Request:
    return request_for(source, scored(source, spec_of(), values(2, 16)), "fast", DEFAULT_TIERS)


@pytest.fixture(scope="module")
def joint(source: Source) -> Request:
    scores = scored(source, spec_of(), values(2, 16), blocks=Blocks("pattern:(W)", "joint"))
    return request_for(source, scores, "fast", DEFAULT_TIERS)


def tiers_of(plan: Plan) -> dict[str, Tier]:
    return {a.weight: a.tier for a in plan.assignments}


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_members_of_a_scored_block_get_one_tier(joint: Request, budget: int) -> None:
    tiers = tiers_of(plan_within(joint, budget, PlanOptions()))
    assert tiers["W1"] is tiers["W2"]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_weights_that_a_pattern_ties_get_one_tier(single: Request, budget: int) -> None:
    tiers = tiers_of(plan_within(single, budget, TIED))
    assert tiers["W1"] is tiers["W2"]


def test_untied_weights_of_a_block_may_differ(joint: Request) -> None:
    plans = [tiers_of(plan_within(joint, b, PlanOptions(untie=True))) for b in BUDGETS]
    assert any(p["W1"] is not p["W2"] for p in plans)


def test_the_plan_names_the_block(joint: Request) -> None:
    plan = plan_within(joint, 3100, PlanOptions())
    assert {a.weight: a.block for a in plan.assignments if a.block} == {"W1": "W", "W2": "W"}


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_file_of_tied_weights_has_exactly_the_bytes_planned(
    source: Source, single: Request, tmp_path: Path, budget: int
) -> None:
    plan = plan_within(single, budget, TIED)
    emit(source.lifted, plan, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size == plan.n_bytes <= budget


def test_assignments_stay_in_graph_order(single: Request) -> None:
    plan = plan_within(single, 3100, PlanOptions(ties=("W2", "b*")))
    assert [a.weight for a in plan.assignments] == [m.weight.name for m in single.menus]


def test_ties_never_predict_less_drift_than_free_weights(single: Request) -> None:
    for budget in BUDGETS:
        tied_plan, free = plan_within(single, budget, TIED), plan_within(single, budget, PlanOptions())
        assert (tied_plan.predicted_drift or 0.0) >= (free.predicted_drift or 0.0)


def test_a_block_is_charged_its_own_amplification_at_the_error_of_all_members(joint: Request) -> None:
    plan = plan_within(joint, 3100, PlanOptions())
    score = next(s for s in joint.scores.weights if s.weight == "W1")
    members = [a for a in plan.assignments if a.block == "W"]
    energy = sum(a.error_energy for a in members)
    assert sum(a.cost for a in members) == pytest.approx(
        amplification(score, energy, joint.scores) * energy, rel=1e-9
    )


def test_a_member_that_lacks_a_tier_takes_the_next_finer_one(single: Request) -> None:
    menus = {m.weight.name: m for m in single.menus}
    found = tied([menus["W1"].candidates, menus["b2"].candidates])
    least = found[-1]
    assert least.candidates[0].assignment.tier is Tier.INT1
    assert least.candidates[1].assignment.tier is menus["b2"].candidates[-1].assignment.tier


def test_the_smallest_size_named_for_tied_weights_is_feasible(single: Request) -> None:
    with pytest.raises(InfeasibleError) as caught:
        plan_within(single, 1, TIED)
    least = caught.value.smallest_bytes
    assert plan_within(single, least, TIED).n_bytes == least


def test_a_weight_tied_twice_is_refused(single: Request) -> None:
    with pytest.raises(InputError, match=r"'W1' is tied by 'W\*' and by '\*1'"):
        plan_within(single, 3100, PlanOptions(ties=("W*", "*1")))


def test_a_tie_that_matches_nothing_is_refused(single: Request) -> None:
    with pytest.raises(InputError, match="matches no weight"):
        plan_within(single, 3100, PlanOptions(ties=("V*",)))


def test_when_the_solver_fails_the_plan_says_so_and_keeps_its_budget(
    single: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> cp_sat.CoreResult:
        raise cp_sat.SolverFailedError("out of order")

    monkeypatch.setattr(branch, "solve_core", refuse)
    plans = [plan_within(single, budget, PlanOptions()) for budget in BUDGETS]
    labels = [p.solver.solver for p in plans if p.solver is not None]
    assert any("(solver failed: out of order)" in label for label in labels)
    assert all(p.n_bytes <= budget for p, budget in zip(plans, BUDGETS, strict=True))
