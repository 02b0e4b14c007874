"""The contest of plans: judged on contexts that chose no integers, the least drift, the smallest of equals."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import Scored
from tests.rollouts import values
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.uniform_plan import uniform_plan
from tqs_onnx.refinement.contest import Contender, contest, told
from tqs_onnx.refinement.cross_fit import Rolled
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.refinement.prediction import ratio_interval
from tqs_onnx.refinement.refine import RefineOptions, refine
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rounding.assign import RoundingOptions
from tqs_passes.plan.plan import Plan, Tried

NO_REPAIR = RefineOptions(repair_rounds=0, rounding=RoundingOptions())
GPTQ = replace(NO_REPAIR, rounding=RoundingOptions("gptq"))


def entry(plan: Plan, name: str, drift: float, n_bytes: int, *, is_simple: bool = False) -> Contender:
    """Return a contender that drifts alike on four contexts."""
    energies = np.full(4, drift**2)
    rolled = Rolled(energies, np.arange(4), "scoring", None)
    plan = plan.model_copy(update={"n_bytes": n_bytes})
    return Contender(name, plan, RoundingOptions(), rolled, is_simple)


@pytest.fixture(scope="module")
def plan(lorenz: Scored) -> Plan:
    return plan_within(lorenz.request, lorenz.source.facts.n_bytes // 10, PlanOptions())


def decided(plan: Plan, lorenz: Scored, *figures: tuple[str, float, int]) -> str:
    cross_fit = instruments_on(lorenz.bed).cross_fit
    held = [entry(plan, *figure) for figure in figures]
    return contest(held, cross_fit, lorenz.scoring).chosen.name


def test_the_least_drift_is_chosen(plan: Plan, lorenz: Scored) -> None:
    assert decided(plan, lorenz, ("a", 0.03, 900), ("b", 0.02, 1000), ("c", 0.05, 100)) == "b"


def test_of_practically_equal_plans_the_smallest_is_chosen(plan: Plan, lorenz: Scored) -> None:
    assert decided(plan, lorenz, ("a", 0.02, 1000), ("b", 0.0201, 800), ("c", 0.021, 100)) == "b"


def test_a_rollout_that_is_not_finite_never_wins(plan: Plan, lorenz: Scored) -> None:
    assert decided(plan, lorenz, ("a", np.inf, 100), ("b", 0.5, 1000)) == "b"


def test_plans_are_compared_on_the_contexts_that_they_share(plan: Plan, lorenz: Scored) -> None:
    # On contexts 0 and 1, which b was not rolled out on, a is bad; on the others it is better than b.
    a = replace(
        entry(plan, "a", 1.0, 10),
        rolled=Rolled(np.array([9.0, 9.0, 1.0, 1.0]), np.arange(4), "scoring", None),
    )
    b = replace(
        entry(plan, "b", 1.0, 10), rolled=Rolled(np.array([4.0, 4.0]), np.array([3, 2]), "cross-fit", None)
    )
    found = contest((a, b), instruments_on(lorenz.bed).cross_fit, lorenz.scoring)
    assert found.chosen.name == "a"
    assert [t.drift for t in found.tried] == [1.0, 2.0]


def test_integers_of_half_the_contexts_count_with_what_all_may_leave(lorenz: Scored, plan: Plan) -> None:
    by_data = replace(
        entry(plan, "by data", 0.03, 1000),
        rolled=Rolled(np.full(4, 0.03**2), np.arange(4), "cross-fit", None, least=0.7),
    )
    cross_fit = instruments_on(lorenz.bed).cross_fit
    found = contest((by_data, entry(plan, "free", 0.022, 1000)), cross_fit, lorenz.scoring)
    assert found.chosen.name == "by data"
    assert [t.drift for t in found.tried] == pytest.approx([0.03, 0.022])
    assert [t.at_best for t in found.tried] == pytest.approx([0.021, 0.022])
    found = contest((by_data, entry(plan, "free", 0.02, 1000)), cross_fit, lorenz.scoring)
    assert found.chosen.name == "free"


def test_what_all_contexts_may_leave_follows_from_how_many_chose(lorenz: Scored, plan: Plan) -> None:
    gptq = RoundingOptions("gptq")
    contexts = lorenz.bed.contexts.take([0, 1, 2, 3, 4])
    found = instruments_on(lorenz.bed.on(contexts)).cross_fit.rolled(plan, gptq)
    assert found is not None
    assert found.least == pytest.approx((2 / 5) ** 0.5)  # the smaller half of five contexts
    made = Contexts({name: a[:4] + 1 for name, a in contexts.arrays.items()}, {})
    beside = instruments_on(lorenz.bed.on(contexts), beside=made).cross_fit.rolled(plan, gptq)
    assert beside is not None
    assert beside.least == pytest.approx((6 / 9) ** 0.5)
    free = instruments_on(lorenz.bed.on(contexts)).cross_fit.rolled(plan, RoundingOptions())
    assert free is not None
    assert free.least == 1


def test_the_weights_own_rounding_takes_part(lorenz: Scored, plan: Plan) -> None:
    options = replace(NO_REPAIR, rounding=RoundingOptions("qep"), candidates=2)
    found = refine(plan, lorenz.request, instruments_on(lorenz.bed), PlanOptions(), options).plan
    assert [t.rounding.split(",")[0] for t in found.tried] == [
        "qep on unbiased scales",
        "gptq on unbiased scales",
        "unbiased",
    ]


def test_only_a_rounding_by_data_is_settled_for_larger_budgets(lorenz: Scored, plan: Plan) -> None:
    instruments, options = instruments_on(lorenz.bed), replace(NO_REPAIR, rounding=RoundingOptions("qep"))
    small = refine(plan, lorenz.request, instruments, PlanOptions(), replace(options, candidates=2))
    larger = plan_within(lorenz.request, plan.n_bytes + 4000, PlanOptions())
    assert small.contender is not None

    def tried(method: str) -> list[str]:
        won = replace(small.contender, rounding=RoundingOptions(method))
        before = [replace(small, contender=won)]
        done = refine(
            larger, lorenz.request, instruments, PlanOptions(), replace(options, candidates=1 + 1), before
        )
        return [t.rounding.split(",")[0].split(" ")[0] for t in done.plan.tried if "smaller" not in t.name]

    assert tried("unbiased") == ["qep", "gptq", "unbiased"]
    assert tried("gptq")[:2] == ["gptq", "unbiased"]


def test_an_overwhelming_uniform_plan_is_written_and_said(
    lorenz: Scored, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    held = (entry(plan, "energy", 0.05, 1000), entry(plan, "uniform 4 bits", 0.02, 900, is_simple=True))
    with caplog.at_level(logging.INFO):
        found = contest(held, instruments_on(lorenz.bed).cross_fit, lorenz.scoring)
    assert found.chosen.name == "uniform 4 bits"
    assert "a uniform file is as good, and is written: uniform 4 bits" in caplog.text


def test_a_uniform_plan_within_the_interval_is_said() -> None:
    ours = Tried(
        name="energy", rounding="mse", n_bytes=10, drift=0.1, at_best=0.1, low=1, high=1, chosen=True
    )
    near = Tried(
        name="uniform 4 bits", rounding="mse", n_bytes=10, drift=0.11, at_best=0.11, low=0.9, high=1.3
    )
    far = near.model_copy(update={"low": 1.05})
    assert "as good within the interval: uniform 4 bits" in told([ours, near], [False, True])[-1]
    assert not any(line.startswith("note:") for line in told([ours, far], [False, True]))


def test_each_plan_has_its_line_and_the_chosen_one_is_marked() -> None:
    a = Tried(
        name="energy", rounding="gptq", n_bytes=1200, drift=0.1, at_best=0.1, low=1, high=1, chosen=True
    )
    b = Tried(
        name="energy, 0.9 of the budget",
        rounding="qep",
        n_bytes=1080,
        drift=0.25,
        at_best=0.16,
        low=2,
        high=3,
    )
    assert told([a, b], [False, False]) == [
        "compared on held-out contexts (at best: the least that integers chosen on all contexts can reach):",
        "  energy, gptq: 1,200 bytes, drift 0.1 ← chosen",
        "  energy, 0.9 of the budget, qep: 1,080 bytes, drift 0.25, at best 0.16",
    ]
    assert told([a], [False]) == [
        "compared on held-out contexts:",
        "  energy, gptq: 1,200 bytes, drift 0.1 ← chosen",
    ]


def test_the_interval_of_a_ratio_is_of_pairs() -> None:
    contexts = Contexts({"x": values(50, 3)}, {})
    energies = np.random.default_rng(0).uniform(0.1, 9.0, 50)
    # Twice the drift in every context, whatever is drawn: 4 times the energy.
    assert ratio_interval(contexts, 4 * energies, energies) == pytest.approx((2.0, 2.0))
    low, high = ratio_interval(contexts, np.flip(energies), energies)
    assert low < 1 < high


def test_refine_takes_the_best_of_the_plans_on_held_out_contexts(lorenz: Scored, plan: Plan) -> None:
    instruments = instruments_on(lorenz.bed)
    found = refine(plan, lorenz.request, instruments, PlanOptions(), replace(NO_REPAIR, candidates=4)).plan
    assert len(found.tried) == 4
    assert {t.name for t in found.tried} >= {"energy", "energy, 0.9 of the budget"}
    chosen = next(t for t in found.tried if t.chosen)
    assert chosen.drift <= 1.01 * min(t.drift for t in found.tried)
    assert (chosen.low, chosen.high) == (1.0, 1.0)
    # Worked out apart: the drift of the written plan on all scoring contexts; the weights alone chose the integers.
    assert instruments.joint.drift(found.assignments) == pytest.approx(chosen.drift, rel=1e-9)
    assert found.n_bytes == chosen.n_bytes <= plan.solver.budget_bytes  # type: ignore[union-attr]


def test_one_candidate_is_no_contest(lorenz: Scored, plan: Plan) -> None:
    found = refine(
        plan, lorenz.request, instruments_on(lorenz.bed), PlanOptions(), replace(NO_REPAIR, candidates=1)
    )
    assert found.plan.tried == ()
    assert "tried" not in found.plan.to_json()
    assert [a.tier for a in found.plan.assignments] == [a.tier for a in plan.assignments]


def test_integers_from_the_contexts_are_judged_on_the_other_half(lorenz: Scored, plan: Plan) -> None:
    found = refine(
        plan, lorenz.request, instruments_on(lorenz.bed), PlanOptions(), replace(GPTQ, candidates=2)
    ).plan
    assert found.prediction is not None
    assert found.prediction.basis == "cross-fit"
    chosen = next(t for t in found.tried if t.chosen)
    assert found.prediction.drift == pytest.approx(chosen.drift, rel=1e-12)


def test_the_paper_s_objective_is_left_alone(lorenz: Scored) -> None:
    options = PlanOptions(objective=Objective.PAPER)
    paper = plan_within(lorenz.request, lorenz.source.facts.n_bytes // 8, options)
    assert refine(paper, lorenz.request, instruments_on(lorenz.bed), options, NO_REPAIR).plan.tried == ()


def test_a_larger_budget_may_keep_the_smaller_file(lorenz: Scored, plan: Plan) -> None:
    instruments = instruments_on(lorenz.bed)
    options = replace(NO_REPAIR, candidates=2)
    small = refine(plan, lorenz.request, instruments, PlanOptions(), options)
    bad = uniform_plan(lorenz.request, 2)
    facts = plan.solver.model_copy(update={"budget_bytes": plan.n_bytes + 5000})  # type: ignore[union-attr]
    worse = plan.model_copy(
        update={"assignments": bad.assignments, "n_bytes": plan.n_bytes + 5000, "solver": facts}
    )
    options = replace(options, candidates=2)
    alone = refine(worse, lorenz.request, instruments, PlanOptions(), options).plan
    found = refine(worse, lorenz.request, instruments, PlanOptions(), options, [small]).plan
    by_name = {t.name: t.drift for t in found.tried}
    assert min(by_name.values()) == pytest.approx(min(t.drift for t in found.tried if t.chosen), rel=0.011)
    assert found.joint_drift <= alone.joint_drift  # type: ignore[operator]
    assert found.solver.budget_bytes == facts.budget_bytes  # type: ignore[union-attr]


def test_a_smaller_plan_is_not_proven_within_the_larger_budget(lorenz: Scored, plan: Plan) -> None:
    instruments = instruments_on(lorenz.bed)
    options = replace(NO_REPAIR, candidates=2)
    small = refine(plan, lorenz.request, instruments, PlanOptions(), options)
    larger = plan_within(lorenz.request, plan.n_bytes + 3000, PlanOptions())
    bad = uniform_plan(lorenz.request, 2).assignments
    found = refine(
        larger.model_copy(update={"assignments": bad}),
        lorenz.request,
        instruments,
        PlanOptions(),
        options,
        [replace(small, contender=replace(small.contender, name="smaller"))],  # type: ignore[type-var]
    ).plan
    assert larger.solver is not None
    assert found.solver is not None
    assert next(t.name for t in found.tried if t.chosen) == "smaller, of a smaller budget"
    assert found.solver.bound == larger.solver.bound < found.solver.cost
    assert found.solver.gap == pytest.approx(1 - found.solver.bound / found.solver.cost)
    assert not found.solver.optimal


def test_a_repair_that_no_context_can_judge_is_not_skipped_in_silence(
    lorenz: Scored, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    instruments = instruments_on(lorenz.bed.on(lorenz.bed.contexts.take([0])))
    options = RefineOptions(repair_rounds=2, rounding=RoundingOptions("gptq"))
    with caplog.at_level("INFO"):
        refine(plan, lorenz.request, instruments, PlanOptions(), options)
    assert "nothing is repaired: the only context chooses the integers" in caplog.text


def test_the_paper_s_objective_takes_no_plan_of_a_smaller_budget(lorenz: Scored) -> None:
    instruments, options = instruments_on(lorenz.bed), PlanOptions(objective=Objective.PAPER)
    n_bytes = lorenz.source.facts.n_bytes
    plans = [plan_within(lorenz.request, n_bytes // c, options) for c in (8, 4)]
    small = refine(plans[0], lorenz.request, instruments, options, NO_REPAIR)
    found = refine(plans[1], lorenz.request, instruments, options, NO_REPAIR, [small]).plan
    assert found.tried == ()
    assert [a.tier for a in found.assignments] == [a.tier for a in plans[1].assignments]


def test_what_a_contest_of_many_values_takes_is_told_before(
    lorenz: Scored, plan: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tqs_onnx.refinement.refine._TOLD_VALUES", 1)
    own, other = instruments_on(lorenz.bed), instruments_on(lorenz.bed, lorenz.scoring.take([0]))
    apart = Contexts({name: a + 1 for name, a in lorenz.scoring.arrays.items()}, {})
    said: list[str] = []
    for instruments, options in (
        (own, GPTQ),
        (other, GPTQ),  # a context in both sets: the scoring contexts judge by halves
        (instruments_on(lorenz.bed, apart), GPTQ),
        (own, NO_REPAIR),
        (own, replace(GPTQ, candidates=1)),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            refine(
                plan,
                lorenz.request,
                instruments,
                PlanOptions(),
                replace(options, candidates=min(2, options.candidates)),
            )
        said.append(next((m for m in caplog.messages if "plans are compared" in m), ""))
    assert [" twice " in s for s in said] == [True, True, False, False, False]
    assert [" once " in s for s in said] == [False, False, True, False, False]
    assert said[0].startswith(
        "note: up to 2 plans are compared, for each of which data choose 0 M integers twice"
    )
