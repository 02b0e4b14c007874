"""Two budgets: bytes and time, against every combination of choices."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from tests.conftest import Scored
from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.choice import flat
from tqs_onnx.allocation.costing import PlanOptions, Request, activation_cost
from tqs_onnx.allocation.file_size import file_bytes
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.offers import Entry, entries_of, limited
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.allocation.times import TimedForm, TimeTable, read_times
from tqs_onnx.allocation.two_budgets import predicted_time, within_budgets
from tqs_onnx.scoring.scores import ActivationScore
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InfeasibleError, InputError
from tqs_passes.tier import DEFAULT_TIERS


@pytest.fixture(scope="module")
def request_(lorenz: Scored) -> Request:
    """The demo's request with made-up activations and times: each matrix saves 5 % of FP32's time, the last none."""
    made = request_for(lorenz.source, lorenz.scores, "exact", DEFAULT_TIERS, rounded=True)
    names = [m.weight.name for m in made.menus if any(is_dynamic(c) for c in m.candidates)]
    activations = tuple(
        ActivationScore(weight=n, label=n, energy=1e-3 * 4.0 ** (i % 5), delta_norm=1.0)
        for i, n in enumerate(names)
    )
    forms = (TimedForm(form=Form.DYNAMIC, weights=tuple(names[:-1]), share=-0.05),)
    times = TimeTable(
        **{"source_sha256": lorenz.source.sha256, "processor": "", "runtime": "", "provider": "cpu"},
        **{"threads": 1, "batch": 32, "rounds": 1, "fp32_ms": 1.0, "base": 1.0},
        **{"forms": forms, "checked": 0.5, "summed": 0.5},
    )
    return replace(made, scores=lorenz.scores.model_copy(update={"activations": activations}), times=times)


def is_dynamic(c) -> bool:
    return c.assignment.form is Form.DYNAMIC


def few(request: Request, options: PlanOptions) -> list[Entry]:
    """Five matrices with six choices each: 7,776 combinations."""
    entries = [e for e in entries_of(request, options) if any(is_dynamic(b.candidates[0]) for b in e.bundles)]
    found: list[Entry] = []
    for e in entries[:5]:
        plain = [b for b in e.bundles if not is_dynamic(b.candidates[0])]
        rounded = [b for b in e.bundles if is_dynamic(b.candidates[0])]
        found.append(
            limited(e, [*plain[:: max(1, len(plain) // 3)][:3], *rounded[:: max(1, len(rounded) // 3)][:3]])
        )
    return found


@pytest.mark.parametrize(("speedup", "compression"), [(1.1, 1.5), (1.2, 2.5), (1.25, 3.0)])
def test_the_plan_is_the_best_combination_and_proven_so(
    request_: Request, speedup: float, compression: float
) -> None:
    options = PlanOptions(speedup=speedup)
    entries = few(request_, options)
    assert request_.times is not None
    most = request_.size.of(0) + int(sum(max(b.n_bytes for b in e.bundles) for e in entries) / compression)
    best = math.inf
    for picks in itertools.product(*(range(len(e.bundles)) for e in entries)):
        chosen = [e.bundles[k] for e, k in zip(entries, picks, strict=True)]
        cost = math.fsum(e.item.costs[k] for e, k in zip(entries, picks, strict=True))
        if cost >= best or file_bytes(request_.size, flat(chosen)) > most:
            continue
        if predicted_time([c.assignment for c in flat(chosen)], request_.times) <= 1 / speedup:
            best = cost
    found = within_budgets(request_, entries, options, most)
    solution = found.allocation.solution
    assert found.file_bytes <= most
    assert predicted_time([c.assignment for c in flat(found.chosen)], request_.times) <= 1 / speedup
    assert solution.cost >= best * (1 - 1e-9)
    assert solution.cost - best <= (solution.cost - solution.bound) * (1 + 1e-9)
    assert solution.cost == pytest.approx(best, rel=1e-9)
    assert solution.optimal


def test_a_plan_meets_both_budgets_and_states_its_time(request_: Request) -> None:
    limit = request_.size.source_bytes // 4
    plan = plan_within(request_, limit, PlanOptions(speedup=1.3))
    assert plan.n_bytes <= limit
    assert plan.time is not None
    assert plan.time.predicted <= 1 / 1.3 == plan.time.limit
    rounded = [a for a in plan.assignments if a.form is Form.DYNAMIC]
    assert len(rounded) == 5  # 1/1.3 needs 4.6 savings of 5 %
    assert sum(a.cost for a in plan.assignments) == pytest.approx(plan.solver.cost if plan.solver else None)


def test_the_inputs_that_matter_least_are_rounded(request_: Request) -> None:
    plan = plan_within(request_, request_.size.source_bytes, PlanOptions(speedup=1.3))
    rounded = {a.weight for a in plan.assignments if a.form is Form.DYNAMIC}
    known = {a.weight: a.energy for a in request_.scores.activations}
    saving = {n for t in (request_.times.forms if request_.times else ()) for n in t.weights}
    least = sorted(known[n] for n in saving)[:5]
    assert sorted(known[n] for n in rounded) == least


def test_without_a_speedup_nothing_is_rounded(request_: Request) -> None:
    plan = plan_within(request_, request_.size.source_bytes // 4, PlanOptions())
    assert not any(a.form is Form.DYNAMIC for a in plan.assignments)


@pytest.mark.slow
def test_a_finer_budget_of_time_never_costs_less(request_: Request) -> None:
    costs = [
        plan_within(request_, request_.size.source_bytes // 4, PlanOptions(speedup=s)).solver.cost  # type: ignore[union-attr]
        for s in (1.2, 1.4)
    ]
    assert costs == sorted(costs)


def test_a_speedup_out_of_reach_is_infeasible_and_says_what_is(request_: Request) -> None:
    with pytest.raises(InfeasibleError, match=r"predicted to take 0\.6 of its time"):  # 1 − 8 · 5 %
        plan_within(request_, request_.size.source_bytes, PlanOptions(speedup=3))


def test_an_input_whose_rounding_was_not_finite_is_never_rounded(request_: Request) -> None:
    first = request_.scores.activations[0]
    broken = (first.model_copy(update={"finite": False}), *request_.scores.activations[1:])
    scores = request_.scores.model_copy(update={"activations": broken})
    plan = plan_within(replace(request_, scores=scores), request_.size.source_bytes, PlanOptions(speedup=1.5))
    held = {a.weight: a.form for a in plan.assignments}
    assert held[first.weight] is not Form.DYNAMIC
    rounded = next(
        c.assignment
        for m in request_.menus
        if m.weight.name == first.weight
        for c in m.candidates
        if is_dynamic(c)
    )
    assert activation_cost(rounded, scores) == math.inf


def test_a_speedup_without_times_is_refused(request_: Request) -> None:
    with pytest.raises(InputError, match="needs measured times"):
        plan_within(replace(request_, times=None), request_.size.source_bytes, PlanOptions(speedup=1.2))


@pytest.mark.parametrize("wrong", [{"speedup": 0.0}, {"speedup": 2.0, "objective": Objective.LOCAL}])
def test_a_speedup_that_cannot_be_spent_is_refused(wrong) -> None:
    with pytest.raises(InputError, match="speedup"):
        PlanOptions(**wrong)


def test_a_table_survives_its_file_and_another_file_is_refused(request_: Request, tmp_path) -> None:
    assert request_.times is not None
    (tmp_path / "times.json").write_text(request_.times.to_json())
    assert read_times(tmp_path / "times.json") == request_.times
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="not a table of times"):
        read_times(tmp_path / "other.json")


def test_a_budget_of_time_alone_needs_no_budget_of_bytes() -> None:
    assert not Budget().is_given
    assert Budget(compression=2).is_given
