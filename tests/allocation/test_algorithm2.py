"""Algorithm 2: the rules for dead and protected weights, by hand, and its independence of order."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqs_onnx.allocation.solver.algorithm2 import Allocation, Item, allocate
from tqs_passes.errors import InfeasibleError, InputError

TIERS = ("INT2", "INT8", "FP32")


def item(name: str, gamma: float, n_values: int = 100, *, dead: bool = False, weight: float = 1.0) -> Item:
    """INT2, INT8 and FP32 at exactly 2, 8 and 32 bits a value."""
    sizes = (n_values // 4, n_values, 4 * n_values)
    return Item(name, sizes, TIERS, (64 * weight, 8 * weight, 0.0), gamma, n_values, dead, fp32_choice=2)


def run(items: list[Item], budget: int, **changes: object) -> Allocation:
    return allocate(items, budget, **({"p_fp32": 0.0, "gamma_min": None} | changes))


ABC = [item("a", 0.3), item("b", 0.2), item("c", 0.1)]


def test_the_knapsack_decides_where_nothing_is_dead_or_protected() -> None:
    result = run([item("a", 0.1, weight=9), item("b", 0.2, weight=1)], 425)
    assert result.choices == {"a": 2, "b": 0}
    assert (result.used_bytes, result.budget_bytes, result.smallest_bytes) == (425, 425, 50)
    assert (result.cost, result.solution.optimal, result.warnings) == (64.0, True, ())


def test_a_dead_item_gets_its_smallest_choice_at_any_budget() -> None:
    result = run([item("a", 0.3), item("z", -math.inf, dead=True)], 10**6)
    assert (result.choices["z"], result.dead) == (0, ("z",))


def test_a_dead_item_gets_its_floor_choice_where_it_has_one() -> None:
    floored = replace(item("z", 0.3, dead=True), floor_choice=1)
    result = run([floored], 10**6)
    assert (result.choices, result.smallest_bytes) == ({"z": 1}, 100)


def test_an_item_at_the_threshold_is_dead_and_one_above_it_is_not() -> None:
    result = run([item("a", 0.1), item("b", 0.11)], 10**6, gamma_min=0.1)
    assert (result.dead, result.choices) == (("a",), {"a": 0, "b": 2})


def test_no_score_without_a_threshold_is_not_dead() -> None:
    assert run([item("a", -math.inf)], 10**6).dead == ()


def test_the_most_sensitive_are_protected_up_to_the_fraction() -> None:
    result = run(ABC, 700, p_fp32=0.34)
    assert (result.fp32_protected, result.choices["a"], result.p_fp32) == (("a",), 2, 0.34)


def test_protection_reaches_the_fraction_exactly_and_never_overshoots() -> None:
    four = [*ABC, item("d", 0.0)]
    assert run(four, 10**6, p_fp32=0.5).fp32_protected == ("a", "b")
    assert run(four, 10**6, p_fp32=0.49).fp32_protected == ("a",)


def test_an_item_that_would_overshoot_is_passed_over_for_the_next() -> None:
    items = [item("big", 0.9, 1000), item("small", 0.1, 100)]
    assert run(items, 10**6, p_fp32=0.2).fp32_protected == ("small",)


def test_the_fraction_is_of_all_items_the_dead_included() -> None:
    items = [item("a", 0.9), item("z", 0.0, 300, dead=True)]
    assert run(items, 10**6, p_fp32=0.25).fp32_protected == ("a",)


def test_dead_items_are_never_protected() -> None:
    items = [item("z", 0.9, dead=True), item("a", 0.1)]
    assert run(items, 10**6, p_fp32=0.5).fp32_protected == ("a",)


def test_an_item_without_an_fp32_choice_is_not_protected() -> None:
    items = [replace(item("a", 0.9), fp32_choice=None), item("b", 0.1)]
    assert run(items, 10**6, p_fp32=0.5).fp32_protected == ("b",)


def test_equal_scores_are_protected_by_name() -> None:
    assert run([item("b", 0.5), item("a", 0.5)], 10**6, p_fp32=0.5).fp32_protected == ("a",)


def test_the_last_protected_are_let_go_where_the_rest_would_not_fit() -> None:
    result = run(
        ABC, 460, p_fp32=1.0
    )  # 400 for one in FP32, 25 for each of the others: a second does not fit
    assert result.fp32_protected == ("a",)
    assert result.choices == {"a": 2, "b": 0, "c": 0}
    assert result.p_fp32 == pytest.approx(1 / 3, abs=1e-12)
    assert result.warnings == (
        "p_fp32 lowered from 1 to 0.333 to fit the budget: 2 of 3 weights are no longer protected",
    )


def test_a_fraction_too_small_for_any_weight_is_said() -> None:
    warnings = run(ABC, 460, p_fp32=0.1).warnings
    assert warnings == ("no weight is kept in FP32: no eligible weight fits within p_fp32 = 0.1",)


def test_a_budget_that_does_not_bind_is_said() -> None:
    (warning,) = run(ABC, 1300).warnings
    assert warning == "the budget does not bind: every weight has its cheapest tier, 100 bytes are left"


def test_a_knapsack_that_ran_out_of_time_is_said() -> None:
    items = [item(f"w{i:02}", 0.0, 97 + 13 * i, weight=1.3**i) for i in range(20)]
    result = run(items, 9001, time_limit_s=-1.0)
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("not proven to be the cheapest: gap ")


def test_the_smallest_allocation_still_fits() -> None:
    result = run(ABC, 75, p_fp32=0.5)
    assert (result.choices, result.used_bytes) == ({"a": 0, "b": 0, "c": 0}, 75)


def test_an_infeasible_budget_is_refused_with_the_smallest_total() -> None:
    with pytest.raises(InfeasibleError, match="at least 75 bytes, but the budget is 74") as caught:
        run(ABC, 74)
    assert caught.value.smallest_bytes == 75


def test_greedy_promotes_by_score_and_not_by_what_a_byte_buys() -> None:
    items = [item("a", 0.1, weight=9), item("b", 0.2, weight=1)]
    assert run(items, 425, solver="greedy").choices == {"a": 0, "b": 2}


def test_greedy_goes_on_after_an_item_that_does_not_get_its_best_and_greedy_top_does_not() -> None:
    items = [item("a", 0.9), item("b", 0.5)]
    assert run(items, 300, solver="greedy").choices == {"a": 1, "b": 1}
    assert run(items, 300, solver="greedy-top").choices == {"a": 1, "b": 0}


def test_no_items_are_allocated_nothing() -> None:
    result = run([], 0)
    assert (result.choices, result.used_bytes, result.warnings) == ({}, 0, ())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sizes": (1, 2)}, "2 sizes, 3 tiers and 3 costs"),
        ({"sizes": (1, 2, -3)}, "a size is negative"),
        ({"costs": (1.0, math.inf, 0.0)}, "a cost is not finite"),
        ({"gamma": math.nan}, "γ is nan"),
        ({"gamma": math.inf}, "γ is inf"),
        ({"fp32_choice": 3}, "there is no choice 3 of 3"),
        ({"floor_choice": -1}, "there is no choice -1 of 3"),
    ],
)
def test_a_malformed_item_is_refused_by_name(change: dict[str, object], what: str) -> None:
    with pytest.raises(InputError, match=f"layer.w: {what}"):
        replace(item("layer.w", 0.1), **change)


@pytest.mark.parametrize(
    ("items", "changes", "what"),
    [
        ([ABC[0], ABC[0]], {}, "a: two items have this name"),
        (ABC, {"p_fp32": 1.5}, "the FP32 fraction is 1.5"),
        (ABC, {"p_fp32": math.nan}, "the FP32 fraction is nan"),
        (ABC, {"gamma_min": math.nan}, "γ_min is NaN"),
    ],
)
def test_a_malformed_request_is_refused(items: list[Item], changes: dict[str, object], what: str) -> None:
    with pytest.raises(InputError, match=what):
        run(items, 1000, **changes)


SOLVERS = st.sampled_from(["mckp", "greedy", "greedy-top"])
_GAMMAS = st.sampled_from([-1.0, 0.0, 0.0, 0.5, 0.5])  # ties on purpose


@st.composite
def item_lists(draw: st.DrawFn) -> list[Item]:
    n = draw(st.integers(1, 8))
    return [
        item(
            f"w{i}",
            draw(_GAMMAS),
            draw(st.sampled_from([40, 40, 100, 104])),
            dead=draw(st.booleans()),
            weight=draw(st.sampled_from([0.0, 1.0, 1.0, 2.5])),
        )
        for i in range(n)
    ]


@given(
    item_lists(),
    st.randoms(use_true_random=False),
    st.integers(0, 2000),
    SOLVERS,
)
@settings(max_examples=120, deadline=None)
def test_the_order_of_the_items_does_not_matter(
    items: list[Item], random: object, more: int, solver: str
) -> None:
    budget = sum(min(i.sizes) for i in items) + more
    shuffled = items.copy()
    random.shuffle(shuffled)
    first = run(items, budget, p_fp32=0.3, gamma_min=-0.5, solver=solver)
    second = run(shuffled, budget, p_fp32=0.3, gamma_min=-0.5, solver=solver)
    assert first.choices == second.choices
    assert list(first.choices) == list(second.choices)


@given(item_lists(), st.integers(0, 2000), st.floats(0, 1))
@settings(max_examples=120, deadline=None)
def test_the_budget_and_the_fraction_hold(items: list[Item], more: int, p_fp32: float) -> None:
    budget = sum(min(i.sizes) for i in items) + more
    result = run(items, budget, p_fp32=p_fp32)
    by_name = {i.name: i for i in items}
    assert result.used_bytes == sum(by_name[n].sizes[k] for n, k in result.choices.items()) <= budget
    assert (
        sum(by_name[n].n_values for n in result.fp32_protected)
        <= p_fp32 * sum(i.n_values for i in items) + 1e-9
    )
    assert result.p_fp32 <= p_fp32
    assert all(result.choices[n] == 0 for n in result.dead)
