"""Plans of uniform widths: what they store, that they fit, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Scored
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.allocation.simple_plans import ENDS_BITS, simple_plan
from tqs_onnx.allocation.tier_set import TierRule, TierSet
from tqs_onnx.allocation.uniform_plan import uniform_plan
from tqs_onnx.emission import emit
from tqs_passes.tier import DEFAULT_TIERS, Tier
from tqs_passes.weights import Role

OPTIONS = PlanOptions()


@pytest.fixture(scope="module")
def request_(lorenz: Scored) -> Request:
    return lorenz.request


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_the_widest_uniform_plan_that_fits_is_that_of_the_baseline(
    lorenz: Scored, request_: Request, bits: int, tmp_path: Path
) -> None:
    baseline = uniform_plan(request_, bits)
    for budget in (baseline.n_bytes, uniform_plan(request_, bits + 1).n_bytes - 1):
        plan = simple_plan(request_, budget, OPTIONS, "uniform", 0.0)
        assert plan is not None
        assert [a.tier for a in plan.assignments] == [a.tier for a in baseline.assignments]
        assert plan.n_bytes <= budget
    emit(lorenz.source.lifted, plan, tmp_path / "u.onnx")
    assert (tmp_path / "u.onnx").stat().st_size == plan.n_bytes


def test_nothing_fits_less_than_one_bit(request_: Request) -> None:
    assert simple_plan(request_, uniform_plan(request_, 1).n_bytes - 1, OPTIONS, "uniform", 0.0) is None


def test_ends_are_finer_and_the_middle_pays(lorenz: Scored) -> None:
    request = lorenz.request
    roles = {m.weight.name: m.weight.role for m in request.menus}
    budget = (uniform_plan(request, 2).n_bytes + uniform_plan(request, 3).n_bytes) // 2
    plan = simple_plan(request, budget, OPTIONS, "ends", 0.0)
    assert plan is not None
    assert plan.n_bytes <= budget
    matrices = [a for a in plan.assignments if len(a.shape) > 1]
    ends = {a.tier.bits for a in matrices if roles[a.weight] in (Role.INPUT, Role.OUTPUT)}
    body = [a.tier.bits for a in matrices if roles[a.weight] not in (Role.INPUT, Role.OUTPUT)]
    assert min(ends) >= ENDS_BITS
    assert set(body) == {2, 3}
    # Lowered from the middle outwards: the narrow ones lie together.
    narrow = [i for i, bits in enumerate(body) if bits == 2]
    assert narrow == list(range(narrow[0], narrow[-1] + 1))


def test_a_pinned_weight_keeps_its_tier_and_tied_ones_share_their_width(lorenz: Scored) -> None:
    matrices = [m.weight.name for m in lorenz.request.menus if m.weight.n_values > 1000]
    tiers = TierSet(DEFAULT_TIERS, (TierRule(matrices[0], (Tier.INT8,)),))
    request = request_for(lorenz.source, lorenz.scores, "exact", tiers)
    options = PlanOptions(ties=(matrices[1], f"{matrices[2]}*"))
    budget = uniform_plan(request, 4).n_bytes
    plan = simple_plan(request, budget, options, "uniform", 0.0)
    assert plan is not None
    held = {a.weight: a.tier for a in plan.assignments}
    assert held[matrices[0]] is Tier.INT8
    assert {held[name] for name in matrices[1:]} == {Tier.INT4}


def test_its_cost_is_stated_beside_the_least_possible_one(request_: Request) -> None:
    budget = uniform_plan(request_, 3).n_bytes
    best = plan_within(request_, budget, OPTIONS)
    assert best.solver is not None
    plan = simple_plan(request_, budget, OPTIONS, "uniform", best.solver.bound)
    assert plan is not None
    assert plan.solver is not None
    assert plan.solver.cost == pytest.approx(sum(a.cost for a in plan.assignments))
    assert plan.solver.cost >= best.solver.cost
    assert plan.solver.gap == pytest.approx((plan.solver.cost - best.solver.bound) / plan.solver.cost)


def test_a_width_that_no_matrix_is_offered_names_no_plan(lorenz: Scored) -> None:
    # In place of the missing INT8 the matrices would have FP16.
    request = request_for(lorenz.source, lorenz.scores, "exact", (Tier.FP32, Tier.FP16, Tier.INT4))
    for kind in ("uniform", "ends"):
        plan = simple_plan(request, lorenz.source.facts.n_bytes, OPTIONS, kind, 0.0)
        assert plan is not None
        assert plan.solver is not None
        assert plan.solver.solver.startswith("uniform 4 bits")
    assert simple_plan(
        lorenz.request, lorenz.source.facts.n_bytes, OPTIONS, "uniform", 0.0
    ).solver.solver == (  # type: ignore[union-attr]
        "uniform 8 bits"
    )
