"""The knapsack against brute force over exact rationals, and the greedy rules by hand."""

import itertools
import math
import subprocess
import sys
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqs_onnx.allocation.solver import branch, cp_sat, knapsack
from tqs_onnx.allocation.solver.knapsack import Problem, Solution, greedy_from_top, greedy_promotion, solve
from tqs_onnx.allocation.solver.lagrange import Table, fill, relax, undominated
from tqs_passes.errors import InfeasibleError, InputError

_RELATIVE = Fraction(1, 10**9)  # what `optimal` promises
_WIDE = st.one_of(
    st.just(0.0),
    st.sampled_from([1.0, 2.0, 2.0, 5.0, -1.0]),  # ties
    st.floats(1e-30, 1e30),
    st.floats(-1e3, 1e3, allow_subnormal=False),
)


def problem_of(costs: list[list[float]], sizes: list[list[int]], budget: int) -> Problem:
    return Problem(
        tuple(np.array(row, dtype=np.float64) for row in costs),
        tuple(np.array(row, dtype=np.int64) for row in sizes),
        budget,
    )


@st.composite
def problems(draw: st.DrawFn, cost: st.SearchStrategy[float] = _WIDE) -> Problem:
    """At most 4^5 solutions, of sizes from a few to billions of bytes, feasible."""
    widths = draw(st.lists(st.integers(1, 4), max_size=5))
    unit = draw(st.sampled_from([1, 7, 10**9]))
    costs = [draw(st.lists(cost, min_size=k, max_size=k)) for k in widths]
    sizes = [draw(st.lists(st.integers(0, 12), min_size=k, max_size=k)) for k in widths]
    rows = [[s * unit for s in row] for row in sizes]
    return problem_of(costs, rows, sum(map(min, rows)) + draw(st.integers(0, 30 * unit)))


def cheapest(problem: Problem) -> Fraction:
    """The exact cost of the best solution, by trying all."""
    best: Fraction | None = None
    for choice in itertools.product(*(range(row.size) for row in problem.costs)):
        if sum(int(s[k]) for s, k in zip(problem.sizes, choice, strict=True)) > problem.budget:
            continue
        cost = sum((Fraction(float(c[k])) for c, k in zip(problem.costs, choice, strict=True)), Fraction(0))
        best = cost if best is None else min(best, cost)
    assert best is not None
    return best


def exact_cost(problem: Problem, solution: Solution) -> Fraction:
    rows = zip(problem.costs, solution.choice, strict=True)
    return sum((Fraction(float(row[k])) for row, k in rows), Fraction(0))


def random_problem(n: int, seed: int) -> Problem:
    """Costs amplification · 4^-b · noise over several decades, sizes n·b/8 with an overhead."""
    rng = np.random.default_rng(seed)
    bits = np.array([2, 4, 8, 16, 32])
    values = np.exp(rng.normal(10, 1.5, n)).astype(np.int64) + 16
    amplification = np.exp(rng.normal(0, 3, n))
    scale = amplification * values
    costs = tuple(a * 4.0**-bits * np.exp(rng.normal(0, 0.3, 5)) for a in scale)
    sizes = tuple((v * bits + 7) // 8 + int(rng.integers(40, 200)) for v in values)
    return Problem(costs, sizes, int(values.sum() * 4 / 7))


@given(problems())
@settings(max_examples=250, deadline=None)
def test_the_cost_is_that_of_the_best_of_all_solutions(problem: Problem) -> None:
    solution = solve(problem)
    best = cheapest(problem)
    assert solution.optimal or abs(solution.cost) < 1e-9 * max(abs(c).max() for c in problem.costs)
    assert exact_cost(problem, solution) - best <= _RELATIVE * max(
        abs(best), Fraction(solution.cost - solution.bound)
    )


@given(problems())
@settings(max_examples=150, deadline=None)
def test_branching_to_the_last_item_finds_the_same_cost(problem: Problem) -> None:
    plain = solve(problem)
    with patch.object(branch, "_LEAF_CHOICES", 0):
        branched = solve(problem)
    assert branched.cost == pytest.approx(plain.cost, rel=1e-9, abs=plain.cost - plain.bound)
    assert branched.bound <= float(cheapest(problem))


@given(problems())
@settings(max_examples=200, deadline=None)
def test_the_bound_is_never_above_the_best_solution(problem: Problem) -> None:
    solution = solve(problem)
    assert solution.bound <= float(cheapest(problem))  # both correctly rounded


@given(problems())
@settings(max_examples=100, deadline=None)
def test_a_solution_fits_and_states_its_own_cost_and_size(problem: Problem) -> None:
    solution = solve(problem)
    assert solution.size == problem.size_of(solution.choice) <= problem.budget
    assert solution.bound <= solution.cost == float(exact_cost(problem, solution))


@given(problems(), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_more_budget_never_costs_more(problem: Problem, more: int) -> None:
    tight = solve(problem)
    loose = solve(Problem(problem.costs, problem.sizes, problem.budget + more))
    assert loose.cost <= tight.cost + 1e-9 * abs(tight.cost) + (loose.cost - loose.bound)


@pytest.mark.parametrize("seed", range(4))
def test_branching_and_cp_sat_agree_with_dynamic_programming_on_instances_past_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, budget = 60, 700
    costs = [np.sort(np.exp(rng.normal(0, 2, 6)))[::-1].copy() for _ in range(n)]
    sizes = [np.sort(rng.integers(1, 40, 6)) for _ in range(n)]
    best = np.full(budget + 1, np.inf)
    best[0] = 0.0
    for cost, size in zip(costs, sizes, strict=True):
        step = np.full(budget + 1, np.inf)
        for c, s in zip(cost, size, strict=True):
            step[s:] = np.minimum(step[s:], best[: budget + 1 - s] + c)
        best = step
    solution = solve(Problem(tuple(costs), tuple(sizes), budget))
    assert solution.optimal
    assert solution.cost == pytest.approx(best.min(), rel=1e-9)


def test_a_realistic_instance_is_proven_optimal() -> None:
    solution = solve(random_problem(89, 3))
    assert solution.optimal
    assert 0 <= solution.gap <= 1e-9


def test_beyond_five_thousand_items_the_gap_is_within_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "_PROVEN_UP_TO", 100)
    assert solve(random_problem(400, 1)).gap <= 1e-5


def test_the_result_is_the_same_twice() -> None:
    problem = random_problem(89, 5)
    assert solve(problem).choice.tolist() == solve(problem).choice.tolist()


def test_no_items_cost_nothing() -> None:
    solution = solve(Problem((), (), 0))
    assert (solution.cost, solution.size, solution.optimal) == (0.0, 0, True)


def test_where_all_costs_are_equal_the_smallest_sizes_are_chosen() -> None:
    assert solve(problem_of([[0, 0, 0], [7, 7, 7]], [[9, 3, 5], [2, 8, 1]], 100)).choice.tolist() == [1, 2]


def test_of_equal_items_the_earlier_is_served_first() -> None:
    assert solve(problem_of([[4, 1], [4, 1], [4, 1]], [[1, 5], [1, 5], [1, 5]], 11)).choice.tolist() == [
        1,
        1,
        0,
    ]


def test_of_equal_choices_the_first_is_taken() -> None:
    assert solve(problem_of([[3, 3]], [[2, 2]], 2)).choice.tolist() == [0]


def test_an_item_that_dwarfs_the_others_does_not_hide_them() -> None:
    costs = [[1e30, 1e29], [3e-30, 1e-30], [2e-30, 1e-30]]
    sizes = [[1, 100], [1, 2], [1, 2]]
    assert solve(problem_of(costs, sizes, 5)).choice.tolist() == [0, 1, 1]


@pytest.mark.parametrize("magnitude", [1e-310, 1e-290, 1e-30, 1e30, 1e199])
def test_the_choices_do_not_depend_on_the_unit_of_the_costs(magnitude: float) -> None:
    costs = [[9 * magnitude, 5 * magnitude, 0.0], [8 * magnitude, 2 * magnitude, 0.0], [magnitude, 0.0, 0.0]]
    assert solve(problem_of(costs, [[1, 4, 9], [1, 5, 8], [1, 2, 3]], 13)).choice.tolist() == [1, 2, 0]


def test_negative_costs_are_minimised_too() -> None:
    solution = solve(problem_of([[-8, -1], [-5, -9]], [[1, 4], [1, 4]], 8))
    assert solution.choice.tolist() == [0, 1]
    assert solution.cost == -17


def test_an_infeasible_budget_is_refused_with_the_smallest_size() -> None:
    with pytest.raises(InfeasibleError, match="at least 8 bytes are needed, but the budget is 7") as caught:
        solve(problem_of([[1, 2], [1, 2]], [[5, 9], [3, 4]], 7))
    assert caught.value.smallest_bytes == 8


def test_the_smallest_budget_that_fits_is_met() -> None:
    assert solve(problem_of([[1, 0], [1, 0]], [[5, 9], [3, 4]], 8)).size == 8


@pytest.mark.parametrize(
    ("costs", "sizes", "what"),
    [
        ([[1.0]], [[1], [2]], "1 cost rows but 2 size rows"),
        ([[1.0, 2.0]], [[1]], "do not form one row"),
        ([[]], [[]], "do not form one row"),
        ([[math.nan]], [[1]], "not finite"),
        ([[math.inf]], [[1]], "not finite"),
        ([[1e201]], [[1]], "beyond 1e200"),
        ([[1.0]], [[-1]], "negative"),
        ([[1.0]], [[2**61]], "2\\^60"),
    ],
)
def test_a_malformed_problem_is_refused(costs: list[list[float]], sizes: list[list[int]], what: str) -> None:
    with pytest.raises(InputError, match=what):
        problem_of(costs, sizes, 10)


def test_without_cp_sat_the_lagrangian_solution_is_returned_with_its_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> cp_sat.CoreResult:
        raise cp_sat.SolverFailedError("OR-tools cannot be imported")

    problem = random_problem(89, 3)
    best = solve(problem)
    monkeypatch.setattr(branch, "solve_core", refuse)
    solution = solve(problem)
    assert solution.solver.endswith("(solver failed: OR-tools cannot be imported)")
    assert solution.bound <= best.cost <= solution.cost
    assert solution.size <= problem.budget
    assert not solution.optimal


def test_when_time_is_up_the_solution_is_feasible_and_says_so() -> None:
    problem = random_problem(89, 3)
    solution = solve(problem, time_limit_s=-1.0)
    assert solution.solver == "lagrangian (time limit)"
    assert solution.size <= problem.budget
    assert solution.bound < solution.cost


@given(problems(st.floats(0, 1e6, allow_subnormal=False)))
@settings(max_examples=100, deadline=None)
def test_the_lagrangian_alone_bounds_every_solution(problem: Problem) -> None:
    table = undominated(problem)
    relaxation = relax(table, problem.budget)
    base = [table.index[i, k] for i, k in enumerate(relaxation.base)]
    base_cost = sum((Fraction(float(c[k])) for c, k in zip(problem.costs, base, strict=True)), Fraction(0))
    assert base_cost + Fraction(relaxation.bound) <= cheapest(problem)


def test_dominated_choices_are_dropped() -> None:
    table = undominated(problem_of([[3, 5, 1, 1, 4]], [[2, 3, 6, 8, 1]], 9))
    assert table.index.tolist() == [[4, 0, 2]]
    assert table.size.tolist() == [[1, 2, 6]]


def test_choices_too_large_for_the_budget_are_dropped() -> None:
    table = undominated(problem_of([[3, 1, 0], [2, 1, 0]], [[1, 4, 5], [2, 5, 6]], 6))
    assert [row[np.isfinite(cost)].tolist() for row, cost in zip(table.index, table.cost, strict=True)] == [
        [0, 1],
        [0, 1],
    ]


def test_fill_spends_what_the_relaxation_leaves() -> None:
    table = Table(np.array([[9.0, 0.0], [4.0, 1.0]]), np.array([[1, 50], [1, 3]]), np.array([[0, 1], [0, 1]]))
    assert fill(table, np.array([0, 0]), 10).tolist() == [0, 1]


def test_cp_sat_reports_a_limit_that_no_solution_meets() -> None:
    table = Table(np.array([[9.0, 0.0], [4.0, 1.0]]), np.array([[1, 50], [1, 3]]), np.array([[0, 1], [0, 1]]))
    result = cp_sat.solve_core(table, 10, limit=9.0, resolution=1e-9, work=5, time_limit_s=10)
    assert (result.positions, result.bound, result.finished) == (None, math.inf, True)


def test_cp_sat_is_exact_where_sizes_are_too_large_for_floats() -> None:
    big = 2**55
    table = Table(np.array([[1.0, 0.0]] * 2), np.array([[big, big + 1]] * 2), np.array([[0, 1]] * 2))
    result = cp_sat.solve_core(table, 2 * big + 1, limit=5.0, resolution=1e-9, work=5, time_limit_s=10)
    assert result.positions is not None
    assert sorted(result.positions.tolist()) == [0, 1]


GREEDY = problem_of(
    [[8, 4, 1], [8, 4, 1], [8, 4, 1]],
    [[1, 4, 9], [1, 4, 9], [1, 2, 20]],
    budget=15,
)


def test_greedy_promotion_passes_over_what_does_not_fit_and_goes_on() -> None:
    # 3 bytes at the bottom, 12 to spend: item 1 takes 8, item 0 takes 3 of the 4 left, item 2 the last one.
    solution = greedy_promotion(GREEDY, np.array([0.5, 0.9, 0.1]))
    assert solution.choice.tolist() == [1, 2, 1]
    assert (solution.cost, solution.size, solution.solver) == (9.0, 15, "greedy")


def test_greedy_from_top_ends_at_the_first_item_that_cannot_have_its_largest() -> None:
    solution = greedy_from_top(GREEDY, np.array([0.5, 0.9, 0.1]))
    assert solution.choice.tolist() == [1, 2, 0]
    assert (solution.cost, solution.size, solution.solver) == (13.0, 14, "greedy-top")


def test_greedy_promotion_never_takes_a_costlier_choice() -> None:
    assert greedy_promotion(problem_of([[-1, 2]], [[1, 2]], 9), np.array([1.0])).choice.tolist() == [0]


def test_greedy_from_top_takes_the_largest_even_if_costlier() -> None:
    assert greedy_from_top(problem_of([[-1, 2]], [[1, 2]], 9), np.array([1.0])).choice.tolist() == [1]


@pytest.mark.parametrize("greedy", [greedy_promotion, greedy_from_top])
def test_greedy_serves_equal_priorities_in_item_order(greedy: type) -> None:
    problem = problem_of([[2, 1], [2, 1]], [[1, 3], [1, 3]], 4)
    assert greedy(problem, np.array([1.0, 1.0])).choice.tolist() == [1, 0]


@pytest.mark.parametrize("greedy", [greedy_promotion, greedy_from_top])
def test_greedy_refuses_an_infeasible_budget(greedy: type) -> None:
    with pytest.raises(InfeasibleError):
        greedy(problem_of([[1]], [[5]], 4), np.array([1.0]))


@pytest.mark.parametrize("priority", [np.array([1.0]), np.array([1.0, math.nan])])
def test_greedy_refuses_a_priority_that_does_not_match(priority: np.ndarray) -> None:
    with pytest.raises(InputError, match="prior"):
        greedy_promotion(problem_of([[1], [1]], [[1], [1]], 4), priority)


@given(problems(), st.sampled_from([greedy_promotion, greedy_from_top]))
@settings(max_examples=150, deadline=None)
def test_greedy_fits_the_budget_and_never_beats_the_knapsack(problem: Problem, greedy: type) -> None:
    solution = greedy(problem, np.arange(len(problem.costs), dtype=np.float64))
    assert solution.size <= problem.budget
    assert solution.bound <= float(cheapest(problem)) <= solution.cost


def test_ctrl_c_still_works_after_a_solve() -> None:
    """OR-Tools takes the signal unless told not to; the process would then end without a word."""
    script = """
import os, signal, time
import numpy as np
from tqs_onnx.allocation.solver import cp_sat
from tqs_onnx.allocation.solver.lagrange import Table
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
table = Table(np.array([[3.0, 1.0], [4.0, 0.0]]), np.array([[1, 9], [1, 9]]), np.array([[0, 1], [0, 1]]))
assert cp_sat.solve_core(table, 10, limit=9.0, resolution=1e-9, work=5, time_limit_s=10).positions is not None
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "stopped"), done.stderr
