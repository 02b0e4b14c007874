"""Plans: budgets kept to the byte, and what each status does to a weight."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Scored
from tests.rollouts import forecaster, motley, opened, scored, spec_of, values
from tqs_onnx.allocation import spend
from tqs_onnx.allocation.budget import Budget, source_weight_bytes
from tqs_onnx.allocation.costing import PlanOptions, Request, amplification, gamma_of
from tqs_onnx.allocation.file_size import FileSize, require_feasible, shared_bytes
from tqs_onnx.allocation.objective import Objective, RankBy
from tqs_onnx.allocation.offers import UNMEASURED_BITS, entries_of, offered
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.allocation.uniform_plan import uniform_plan
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.scoring.scores import ResponsePoint, Scores, Status, WeightScore
from tqs_passes.errors import InfeasibleError, InputError
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import DEFAULT_TIERS, Tier


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return opened(tmp_path_factory.mktemp("f"), forecaster())


@pytest.fixture(scope="module")
def request_(source: Source) -> Request:
    return request_for(source, scored(source, spec_of(), values(2, 16)), "fast", DEFAULT_TIERS)


@pytest.fixture(scope="module")
def motley_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return opened(tmp_path_factory.mktemp("m"), motley())


@pytest.fixture(scope="module")
def motley_request(motley_source: Source) -> Request:
    return request_for(motley_source, scored(motley_source, spec_of(), values(2, 6)), "fast", DEFAULT_TIERS)


def smallest(request: Request, options: PlanOptions | None = None) -> int:
    with pytest.raises(InfeasibleError) as caught:
        plan_within(request, 1, options or PlanOptions())
    return caught.value.smallest_bytes


def of(plan: Plan, name: str) -> Assignment:
    return next(a for a in plan.assignments if a.weight == name)


BUDGETS = (2200, 2600, 3100, 4000, 5500, 6900)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_file_has_exactly_the_bytes_of_the_plan_within_the_budget(
    source: Source, request_: Request, tmp_path: Path, budget: int
) -> None:
    plan = plan_within(request_, budget, PlanOptions())
    emit(source.lifted, plan, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size == plan.n_bytes <= budget


@pytest.mark.parametrize("objective", list(Objective))
def test_the_smallest_size_named_is_feasible_and_one_byte_less_is_not(
    request_: Request, objective: Objective
) -> None:
    options = PlanOptions(objective=objective)
    least = smallest(request_, options)
    assert plan_within(request_, least, options).n_bytes == least
    with pytest.raises(InfeasibleError, match=f"the smallest file is {least} bytes"):
        plan_within(request_, least - 1, options)


def test_more_bytes_never_predict_more_drift(request_: Request) -> None:
    drifts = [plan_within(request_, b, PlanOptions()).predicted_drift or 0.0 for b in range(2140, 3000, 70)]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[0] > drifts[-1]


def test_a_budget_that_does_not_bind_keeps_every_weight(request_: Request) -> None:
    plan = plan_within(request_, 10**6, PlanOptions())
    assert {a.tier for a in plan.assignments} == {Tier.FP32}
    assert plan.predicted_drift == 0.0
    assert any("does not bind" in w for w in plan.warnings)


def test_the_predicted_drift_adds_amplification_times_error_energy(request_: Request) -> None:
    plan = plan_within(request_, 2600, PlanOptions())
    costs = [a.amplification * a.error_energy for a in plan.assignments]
    assert [a.cost for a in plan.assignments] == costs
    assert plan.predicted_drift == pytest.approx(math.sqrt(sum(costs) / request_.scores.n_values), rel=1e-12)
    assert plan.solver is not None
    assert plan.solver.cost == pytest.approx(sum(costs), rel=1e-9)


def test_a_dead_weight_gets_its_smallest_form_at_any_budget(motley_request: Request) -> None:
    plan = plan_within(motley_request, 10**6, PlanOptions())
    menu = next(m for m in motley_request.menus if m.weight.name == "D")
    assert of(plan, "D").n_bytes == min(c.assignment.n_bytes for c in menu.candidates)
    assert of(plan, "D").dead
    assert of(plan, "D").cost == 0.0


def big_request(tmp_path: Path) -> Request:
    """A weight of every status, wide enough for the narrow tiers to pay."""
    from tests.rollouts import model

    graph = """(float[b, 32] x) => (float[b, 32] y, float[b, 32] z) {
      p = MatMul(x, W)  none = Sub(x, x)  d = MatMul(none, D)  y = Add(p, d)  z = MatMul(x, O) }"""
    weights = {n: values(32, 32, seed=i, scale=0.15) for i, n in enumerate("WDO")}
    source = opened(tmp_path, model(graph, weights))
    return request_for(source, scored(source, spec_of(), values(2, 32)), "fast", DEFAULT_TIERS)


def test_a_dead_matrix_gets_the_bottom_tier(tmp_path: Path) -> None:
    assert of(plan_within(big_request(tmp_path), 10**6, PlanOptions()), "D").tier is Tier.INT1


def test_an_off_trajectory_weight_keeps_8_bits_at_the_least(tmp_path: Path) -> None:
    request = big_request(tmp_path)
    assert of(plan_within(request, smallest(request), PlanOptions()), "O").tier is Tier.INT8


def test_an_off_trajectory_weight_goes_to_the_bottom_where_outputs_are_dropped(tmp_path: Path) -> None:
    plan = plan_within(big_request(tmp_path), 10**6, PlanOptions(drop_outputs=True))
    assert of(plan, "O").tier is Tier.INT1


def test_an_unstable_weight_is_kept_as_it_is(motley_request: Request) -> None:
    plan = plan_within(motley_request, smallest(motley_request), PlanOptions())
    assert of(plan, "U").tier is Tier.FP32


def test_p_fp32_protects_the_most_sensitive(request_: Request) -> None:
    ranked = sorted(request_.scores.weights, key=lambda s: -(s.gamma_task or -math.inf))
    share = request_.menus[0].weight.n_values
    total = sum(m.weight.n_values for m in request_.menus)
    first = ranked[0].weight
    n_first = next(m.weight.n_values for m in request_.menus if m.weight.name == first)
    assert n_first < share
    plan = plan_within(request_, 2600, PlanOptions(p_fp32=n_first / total))
    assert of(plan, first).tier is Tier.FP32
    assert plan.solver is not None
    assert plan.solver.p_fp32 == pytest.approx(n_first / total)


def test_p_fp32_defaults_to_two_percent_for_the_objectives_of_the_paper_only() -> None:
    shares = {o: PlanOptions(objective=o).protected_share for o in Objective}
    assert shares == {
        Objective.ENERGY: 0.0,
        Objective.MEASURED: 0.0,
        Objective.LOCAL: 0.0,
        Objective.PAPER: 0.02,
        Objective.PAPER_LITERAL: 0.02,
    }
    assert PlanOptions(objective=Objective.PAPER, p_fp32=0.1).protected_share == 0.1


def test_gamma_min_sends_weights_at_or_below_it_to_the_bottom(request_: Request) -> None:
    gammas = {s.weight: s.gamma_task or 0.0 for s in request_.scores.weights}
    plan = plan_within(request_, 10**6, PlanOptions(gamma_min=gammas["W1"]))
    low = {n for n, g in gammas.items() if g <= gammas["W1"]}
    for a in plan.assignments:
        menu = next(m for m in request_.menus if m.weight.name == a.weight)
        least = min(c.assignment.n_bytes for c in menu.candidates)
        assert (a.n_bytes == least) == (a.weight in low or len(menu.candidates) == 1)


@pytest.mark.parametrize(
    ("by", "kept"), [(RankBy.TASK, "W1"), (RankBy.PLAIN, "W2"), (RankBy.MEAN, "b1")], ids=str
)
def test_rank_by_says_which_score_counts(request_: Request, by: RankBy, kept: str) -> None:
    """Eq. 1 puts W1 above the threshold, Eq. 2 at the last horizon W2, and the mean over horizons b1."""
    known = {"W1": (1.0, 0.0, 0.0), "W2": (0.0, 1.0, 0.0), "b1": (0.0, 0.0, 1.0)}
    weights = tuple(
        s.model_copy(update={"gamma_task": task, "gamma": (9.0, plain), "gamma_task_mean": mean})
        for s in request_.scores.weights
        for task, plain, mean in (known.get(s.weight, (0.0, 0.0, 0.0)),)
    )
    asked = replace(request_, scores=request_.scores.model_copy(update={"weights": weights}))
    gammas = {s.weight: gamma_of(s, asked.scores, by) for s in weights}
    assert gammas == {name: float(name == kept) for name in gammas}
    plan = plan_within(asked, 10**6, PlanOptions(gamma_min=0.5, rank_by=by))
    for menu in request_.menus:
        least = min(c.assignment.n_bytes for c in menu.candidates)
        lowest = of(plan, menu.weight.name).n_bytes == least
        assert lowest == (menu.weight.name != kept or len(menu.candidates) == 1)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_uniform_plan_rounds_matrices_and_halves_the_rest(request_: Request, bits: int) -> None:
    plan = uniform_plan(request_, bits)
    assert {a.tier.bits for a in plan.assignments if len(a.shape) == 2} == {bits}
    assert {a.tier for a in plan.assignments if len(a.shape) == 1} <= {Tier.FP16, Tier.FP32}
    assert plan.solver is None


def test_the_uniform_plan_falls_back_to_the_next_finer_width(source: Source) -> None:
    scores = scored(source, spec_of(), values(2, 16))
    request = request_for(source, scores, "fast", (Tier.FP32, Tier.FP16, Tier.INT4))
    assert of(uniform_plan(request, 3), "W1").tier is Tier.INT4


def test_the_bytes_of_the_uniform_plan_are_those_of_its_file(
    source: Source, request_: Request, tmp_path: Path
) -> None:
    plan = uniform_plan(request_, 3)
    emit(source.lifted, plan, tmp_path / "u.onnx")
    assert (tmp_path / "u.onnx").stat().st_size == plan.n_bytes


def test_energy_predicts_no_more_drift_than_uniform_at_its_bytes(request_: Request) -> None:
    for bits in (2, 3, 4):
        uniform = uniform_plan(request_, bits)
        plan = plan_within(request_, uniform.n_bytes, PlanOptions())
        assert (plan.predicted_drift or 0) <= (uniform.predicted_drift or 0)


def test_shared_tables_are_counted_once(request_: Request) -> None:
    candidate = next(c for c in request_.menus[0].candidates if c.shared)
    assert shared_bytes([candidate, candidate]) == sum(candidate.shared.values())


def test_the_size_of_a_file_counts_the_length_prefix_of_its_graph() -> None:
    # 100 bytes of which a graph of 90: tag and one length byte. At 128 the length takes two bytes.
    size = FileSize(1000, 100, 90)
    assert (size.of(0), size.of(37), size.of(38)) == (100, 137, 139)


POINTS = (
    ResponsePoint(delta_sq=1e-4, amplification=10.0),
    ResponsePoint(delta_sq=1e-2, amplification=1000.0),
)
ALIVE = WeightScore(
    weight="w", label="w", shape=(2,), status=Status.ALIVE, amplification=10.0, response=POINTS
)


@pytest.fixture(scope="module")
def scores(request_: Request) -> Scores:
    return request_.scores


@pytest.mark.parametrize(
    ("energy", "expected"), [(1e-4, 10), (1e-3, 100), (1e-2, 1000), (1e-9, 10), (1.0, 1000), (0.0, 0)]
)
def test_amplification_is_read_off_between_the_probes(scores: Scores, energy: float, expected: float) -> None:
    # Linear in the logarithms: half way between 10 and 1000 lies 100; constant beyond the ends.
    assert amplification(ALIVE, energy, scores) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("status", [Status.DEAD, Status.OFF_TRAJECTORY])
def test_a_weight_that_moves_nothing_amplifies_nothing(scores: Scores, status: Status) -> None:
    assert amplification(ALIVE.model_copy(update={"status": status}), 1e-3, scores) == 0.0


def test_an_unprobed_weight_is_taken_for_the_most_sensitive(scores: Scores) -> None:
    blank = ALIVE.model_copy(update={"status": Status.UNPROBED, "response": ()})
    most = max(s.amplification or 0.0 for s in scores.weights)
    assert amplification(blank, 1e-3, scores) == most > 0


def test_the_scores_of_another_model_are_refused(motley_source: Source, request_: Request) -> None:
    with pytest.raises(InputError, match="the scores are for another model"):
        request_for(motley_source, request_.scores, "fast", DEFAULT_TIERS)


def test_scores_that_lack_a_weight_are_refused(source: Source, scores: Scores) -> None:
    fewer = scores.model_copy(update={"weights": scores.weights[1:]})
    with pytest.raises(InputError, match="the scores are for another model"):
        request_for(source, fewer, "fast", DEFAULT_TIERS)


def test_the_same_request_gives_the_same_plan(request_: Request) -> None:
    assert plan_within(request_, 2600, PlanOptions()) == plan_within(request_, 2600, PlanOptions())


def test_greedy_keeps_the_budget_too(request_: Request) -> None:
    for solver in ("greedy", "greedy-top"):
        assert plan_within(request_, 2600, PlanOptions(solver=solver)).n_bytes <= 2600


def test_no_weight_is_lost(request_: Request) -> None:
    plan = plan_within(request_, 2600, PlanOptions())
    assert [a.weight for a in plan.assignments] == [m.weight.name for m in request_.menus]


@pytest.mark.parametrize("ratio", [2, 3])
def test_a_weight_compression_asked_for_is_reached_and_not_overshot(request_: Request, ratio: float) -> None:
    plan = plan_within(
        request_, Budget(weight_compression=ratio).n_bytes(request_.menus, request_.size), PlanOptions()
    )
    allowed, tables = (
        source_weight_bytes(request_.menus) / ratio,
        plan.n_bytes - request_.size.of(plan.weight_bytes),
    )
    finest_step = max(a.n_bytes for a in plan.assignments) // 2
    # Tables are shared by all weights; what is left over is less than a step of one weight.
    assert allowed - finest_step <= plan.weight_bytes + tables <= allowed


def test_a_weight_compression_that_is_not_positive_is_refused(request_: Request) -> None:
    with pytest.raises(InputError, match="must be positive"):
        Budget(weight_compression=0.0)


@pytest.fixture(scope="module")
def without_rows(lorenz: Scored) -> Request:
    return request_for(lorenz.source, lorenz.scores, "exact", DEFAULT_TIERS, Serving(rows=False))


@pytest.mark.parametrize(
    ("compression", "tables_matter"), [(6, 0), (12, 0), (16, 0), (20, 0), (20, spend._TABLES_MATTER_BYTES)]
)
def test_row_tiers_never_predict_more_drift_at_the_same_bytes(
    compression: int,
    tables_matter: int,
    lorenz: Scored,
    without_rows: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spend, "_TABLES_MATTER_BYTES", tables_matter)
    budget = lorenz.source.facts.n_bytes // compression
    ours, plain = (plan_within(r, budget, PlanOptions()) for r in (lorenz.request, without_rows))
    assert max(ours.n_bytes, plain.n_bytes) <= budget
    assert not any(a.rows for a in plain.assignments)
    # both are proven optimal to 1e-9 of the cost
    assert drift(ours) <= drift(plain) * (1 + 1e-9)


def drift(plan: Plan) -> float:
    assert plan.predicted_drift is not None
    return plan.predicted_drift


@pytest.mark.parametrize("objective", [Objective.PAPER, Objective.PAPER_LITERAL])
def test_objectives_that_look_at_bits_are_offered_no_row_tiers(objective: Objective, lorenz: Scored) -> None:
    entries = entries_of(lorenz.request, PlanOptions(objective=objective))
    assert any(c.assignment.rows for m in lorenz.request.menus for c in m.candidates)
    assert not any(c.assignment.rows for e in entries for b in e.bundles for c in b.candidates)


def test_weights_off_the_trajectory_get_no_narrow_channels(lorenz: Scored) -> None:
    for menu in lorenz.request.menus:
        kept = offered(menu, Status.OFF_TRAJECTORY, PlanOptions())
        assert all(w >= UNMEASURED_BITS for c in kept for w in c.assignment.widths)


def test_an_impossible_budget_says_what_the_smallest_file_is_made_of() -> None:
    size = FileSize(1000, 700, 690, constant_bytes=100, name_bytes=500)
    with pytest.raises(InfeasibleError) as caught:
        require_feasible(size, [], 10)
    smallest = size.of(0)
    assert f"the smallest file is {smallest} bytes" in str(caught.value)
    said = f"of which {smallest - 700} are weights with their scales and tables, 100 of other constants, 500 of names"
    assert f"{said}, 100 of the graph" in str(caught.value)
    assert "set `names` to short" in str(caught.value)


def test_what_a_request_keeps_between_plans_changes_no_entry(lorenz: Scored) -> None:
    options = PlanOptions(objective=Objective.MEASURED)
    plain = [e.item.costs for e in entries_of(lorenz.request, options)]
    bundle = entries_of(lorenz.request, options)[0].bundles[-1]
    responses = {bundle.key: 2 * plain[0][-1]}
    again = entries_of(replace(lorenz.request, responses=responses), options)
    fresh = entries_of(replace(lorenz.request, responses=responses, priced={}), options)
    assert [e.item for e in again] == [e.item for e in fresh]
    assert again[0].item.costs[-1] == pytest.approx(2 * plain[0][-1], rel=1e-12)
    fewer = replace(lorenz.request, menus=lorenz.request.menus[:2])
    assert [e.menus for e in entries_of(fewer, options)] == [(m,) for m in fewer.menus]
