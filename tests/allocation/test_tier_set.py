"""Tiers by name: pins, bans and the FP32 cap."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollouts import forecaster, motley, opened, scored, spec_of, values
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.allocation.tier_set import TierSet, parse_rule
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.scoring.plan.options import Blocks
from tqs_onnx.scoring.scores import Scores
from tqs_passes.errors import InputError
from tqs_passes.plan.plan import Plan
from tqs_passes.tier import DEFAULT_TIERS, Tier

WIDE = (Tier.FP32, Tier.BF16, Tier.INT8, Tier.INT4, Tier.INT2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return opened(tmp_path_factory.mktemp("f"), forecaster())


@pytest.fixture(scope="module")
def scores(source: Source) -> Scores:
    return scored(source, spec_of(), values(2, 16))


def ruled(
    pins: tuple[str, ...] = (), bans: tuple[str, ...] = (), tiers: tuple[Tier, ...] = DEFAULT_TIERS
) -> TierSet:
    return TierSet(
        tiers,
        tuple(parse_rule(r, "pin") for r in pins),
        tuple(parse_rule(r, "forbid") for r in bans),
    )


def asked(source: Source, scores: Scores, *pins: str, bans: tuple[str, ...] = ()) -> Request:
    return request_for(source, scores, "fast", ruled(pins, bans))


def tiers_of(plan: Plan) -> dict[str, Tier]:
    return {a.weight: a.tier for a in plan.assignments}


def test_a_pinned_weight_gets_its_tier_at_any_budget(source: Source, scores: Scores) -> None:
    request = asked(source, scores, "W1=INT8")
    for budget in (3100, 10**6):
        assert tiers_of(plan_within(request, budget, PlanOptions()))["W1"] is Tier.INT8


def test_a_pin_may_name_a_tier_that_is_not_allowed_for_all(source: Source, scores: Scores) -> None:
    assert tiers_of(plan_within(asked(source, scores, "W?=BF16"), 10**6, PlanOptions()))["W2"] is Tier.BF16


def test_a_pin_may_name_a_tier_that_is_larger_than_the_weight_itself(source: Source, scores: Scores) -> None:
    # 16 values take 64 bytes as they are, less than their levels, scale and nodes
    assert tiers_of(plan_within(asked(source, scores, "b2=INT8"), 10**6, PlanOptions()))["b2"] is Tier.INT8


def test_a_forbidden_tier_is_not_used(source: Source, scores: Scores) -> None:
    tight = plan_within(asked(source, scores), 1900, PlanOptions())
    low = {tiers_of(tight)["W1"], tiers_of(tight)["W2"]}
    assert min(t.bits for t in low) < 4
    request = asked(source, scores, bans=("W*=INT3,INT2,INT1",))
    plan = plan_within(request, 3100, PlanOptions())
    assert all(t.bits >= 4 for t in tiers_of(plan).values())


def test_fp32_can_be_forbidden(source: Source, scores: Scores) -> None:
    plan = plan_within(asked(source, scores, bans=("W1=FP32",)), 10**6, PlanOptions())
    assert tiers_of(plan)["W1"] is Tier.FP16
    assert tiers_of(plan)["W2"] is Tier.FP32


def test_the_file_of_a_plan_with_rules_has_the_bytes_planned(
    source: Source, scores: Scores, tmp_path: Path
) -> None:
    plan = plan_within(asked(source, scores, "W1=INT8", bans=("W2=INT4",)), 3500, PlanOptions())
    emit(source.lifted, plan, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size == plan.n_bytes


def test_a_pattern_that_matches_nothing_is_refused(source: Source, scores: Scores) -> None:
    with pytest.raises(InputError, match="pattern 'W9' matches no weight"):
        asked(source, scores, "W9=INT8")


def test_rules_that_leave_no_tier_name_the_weights(source: Source, scores: Scores) -> None:
    with pytest.raises(InputError, match="no tier for weight 'W1', 'W2'"):
        asked(source, scores, "W*=INT8", bans=("W*=INT8",))


def test_pins_that_cannot_be_stored_name_the_weights(tmp_path: Path) -> None:
    import numpy as np

    from tests.rollouts import model

    weights = {"A": values(8, 8, scale=0.2), "big": np.full(8, 1e6, np.float32)}
    graph = "(float[b, 8] x) => (float[b, 8] y) { p = MatMul(x, A)  q = Div(p, big)  y = Add(q, x) }"
    source = opened(tmp_path, model(graph, weights))
    # one million overflows float16
    with pytest.raises(InputError, match="can be stored for weight 'big'"):
        asked(source, scored(source, spec_of(), values(2, 8)), "big=FP16")


def test_two_pins_leave_what_they_have_in_common(source: Source, scores: Scores) -> None:
    request = asked(source, scores, "W*=INT8,INT4", "W1=INT4,INT2")
    assert tiers_of(plan_within(request, 10**6, PlanOptions()))["W1"] is Tier.INT4


def test_an_unstable_weight_that_is_pinned_lower_is_refused(tmp_path: Path) -> None:
    source = opened(tmp_path, motley())
    request = asked(source, scored(source, spec_of(), values(2, 6)), "U=INT8")
    with pytest.raises(InputError, match="makes the rollout NaN or infinite"):
        plan_within(request, 10**6, PlanOptions())


@pytest.mark.parametrize("text", ["INT8", "=INT8", "W1="])
def test_a_text_that_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_rule(text, "pin")


def free_to_shrink(plan: Plan, request: Request) -> list[str]:
    """Return the weights in FP32 that could be stored otherwise."""
    several = {m.weight.name for m in request.menus if len(m.candidates) > 1}
    return [a.weight for a in plan.assignments if a.tier is Tier.FP32 and a.weight in several]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_at_most_n_weights_keep_fp32_and_the_others_get_16_bits(
    source: Source, scores: Scores, n: int
) -> None:
    request = request_for(source, scores, "fast", WIDE)
    plan = plan_within(request, 10**6, PlanOptions(max_fp32=n))
    several = {m.weight.name for m in request.menus if len(m.candidates) > 1}
    assert len(several) > 2
    assert len(free_to_shrink(plan, request)) == n
    assert {a.tier for a in plan.assignments if a.weight in several} <= {Tier.FP32, Tier.BF16}


def test_the_most_sensitive_keep_fp32(source: Source, scores: Scores) -> None:
    request = request_for(source, scores, "fast", WIDE)
    (kept,) = free_to_shrink(plan_within(request, 10**6, PlanOptions(max_fp32=1)), request)
    several = {m.weight.name for m in request.menus if len(m.candidates) > 1}
    gammas = {s.weight: s.gamma_task or 0.0 for s in scores.weights if s.weight in several}
    assert kept == max(gammas, key=lambda name: gammas[name])


def test_of_a_block_one_representative_keeps_fp32(source: Source) -> None:
    blocks = Blocks("pattern:(W)", "joint")
    scores = scored(source, spec_of(), values(2, 16), blocks=blocks)
    request = request_for(source, scores, "fast", WIDE)
    for options in (PlanOptions(max_fp32=10), PlanOptions(max_fp32=10, untie=True)):
        tiers = tiers_of(plan_within(request, 10**6, options))
        assert sorted((tiers["W1"], tiers["W2"])) == [Tier.BF16, Tier.FP32]


def test_a_capped_file_has_the_bytes_planned_within_the_budget(
    source: Source, scores: Scores, tmp_path: Path
) -> None:
    plan = plan_within(request_for(source, scores, "fast", WIDE), 5500, PlanOptions(max_fp32=1))
    emit(source.lifted, plan, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size == plan.n_bytes <= 5500
