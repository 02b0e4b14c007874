"""The multiple-choice knapsack with two resources: bytes and time.

    minimise  Σ_i costs[i][choice_i]   subject to   Σ_i sizes[i][choice_i] ≤ budget,   Σ_i times[i][choice_i] ≤ limit

With a price μ ≥ 0 of time the knapsack with one resource (`knapsack.solve`) gives choices and a proven bound ::

    any feasible y costs ≥ [least cost + μ · time within the bytes] − μ · limit

A bisection finds the μ at which the time first fits. With its μ and its price λ of a byte, a choice costs at least
``r[i,k] = c + λs + μt − min over k`` above the bound, so that most choices are excluded by the best known cost. CP-SAT
decides the rest exactly, or states its gap after a fixed amount of work. Uses no ONNX and no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocation.solver.cp_sat import SolverFailedError, solve_limited
from tqs_onnx.allocation.solver.knapsack import solve
from tqs_onnx.allocation.solver.lagrange import relax, undominated
from tqs_onnx.allocation.solver.problem import Problem, Solution, judged
from tqs_passes.errors import InfeasibleError

_RAISES = 60
_BISECTIONS = 14
#: Relative accuracy of the interval of prices.
_SAME_PRICE = 1e-4
#: CP-SAT's own count of work, the same on every machine: some seconds.
_WORK = 8.0

Rows = Sequence[NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class _Priced:
    choice: NDArray[np.int64]
    cost: float
    time: int
    bound: float
    price: float


def solve_both(
    problem: Problem, times: Sequence[NDArray[np.int64]], limit: int, *, time_limit_s: float = 30.0
) -> Solution:
    """Return the cheapest choices that fit both resources, with a proven bound.

    Parameters
    ----------
    problem : Problem
        Costs, bytes and the budget of bytes.
    times : sequence of NDArray[np.int64]
        Per item, the time of each choice; may be negative.
    limit : int
        Largest total time.
    time_limit_s : float
        Wall clock for CP-SAT, seconds; its count of work normally ends it first.

    Raises
    ------
    InfeasibleError
        No choices were found that fit both.
    """
    problem.require_feasible()
    free = _at(problem, times, limit, 0.0)
    if free.time <= limit:
        return judged(problem, free.choice, free.bound, "lagrangian (two budgets)")
    low, high, tried = 0.0, _first_price(problem.costs, times), [free]
    for _ in range(_RAISES):
        tried.append(_at(problem, times, limit, high))
        if tried[-1].time <= limit:
            break
        low, high = high, 8 * high
    else:
        raise InfeasibleError(
            "no choices fit both budgets",
            smallest_bytes=problem.smallest_size,
            todo="Raise one of them",
        )
    for _ in range(_BISECTIONS):
        if low > 0 and high - low <= _SAME_PRICE * high:
            break
        tried.append(_at(problem, times, limit, math.sqrt(low * high) if low > 0 else high / 64))
        low, high = (low, tried[-1].price) if tried[-1].time <= limit else (tried[-1].price, high)
    fitting = [p for p in tried if p.time <= limit]
    best = min(fitting, key=lambda p: p.cost)
    choice = _improved(problem, times, limit, best.choice)
    bound = max(p.bound for p in tried)
    at = max(tried, key=lambda p: p.bound)
    return _finished(problem, times, limit, choice, bound, at.price, time_limit_s)


def _at(problem: Problem, times: Sequence[NDArray[np.int64]], limit: int, price: float) -> _Priced:
    costs = tuple(c + price * t for c, t in zip(problem.costs, times, strict=True))
    found = solve(Problem(costs, problem.sizes, problem.budget))
    time = sum(int(row[k]) for row, k in zip(times, found.choice, strict=True))
    return _Priced(found.choice, problem.cost_of(found.choice), time, found.bound - price * limit, price)


def _first_price(costs: Rows, times: Sequence[NDArray[np.int64]]) -> float:
    """Return a price at which an average saving of time outweighs little cost."""
    cost = math.fsum(float(np.ptp(row)) for row in costs)
    time = math.fsum(float(np.ptp(row)) for row in times)
    return cost / time / 1024 if cost > 0 and time > 0 else 1.0


def _improved(
    problem: Problem, times: Sequence[NDArray[np.int64]], limit: int, choice: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Spend what a choice leaves of both resources on the single changes that lower the cost most."""
    choice = choice.copy()
    size = problem.size_of(choice)
    time = sum(int(row[k]) for row, k in zip(times, choice, strict=True))
    while True:
        best: tuple[float, int, int] | None = None
        for i, (c, s, t) in enumerate(zip(problem.costs, problem.sizes, times, strict=True)):
            held = choice[i]
            fits = (size - s[held] + s <= problem.budget) & (time - t[held] + t <= limit)
            gain = np.where(fits, c[held] - c, -np.inf)
            k = int(np.argmax(gain))
            if gain[k] > 0 and (best is None or gain[k] > best[0]):
                best = (float(gain[k]), i, k)
        if best is None:
            return choice
        _, i, k = best
        size += int(problem.sizes[i][k] - problem.sizes[i][choice[i]])
        time += int(times[i][k] - times[i][choice[i]])
        choice[i] = k


def _finished(
    problem: Problem,
    times: Sequence[NDArray[np.int64]],
    limit: int,
    choice: NDArray[np.int64],
    bound: float,
    price: float,
    time_limit_s: float,
) -> Solution:
    """Decide with CP-SAT what the bound leaves open."""
    best = problem.cost_of(choice)
    costs = tuple(c + price * t for c, t in zip(problem.costs, times, strict=True))
    byte_price = relax(undominated(Problem(costs, problem.sizes, problem.budget)), problem.budget).price
    priced = [c + byte_price * s for c, s in zip(costs, problem.sizes, strict=True)]
    least = math.fsum(float(row.min()) for row in priced) - byte_price * problem.budget - price * limit
    slack = max(best - least, 0.0) * (1 + 1e-9) + 1e-12 * abs(best)
    open_ = [np.flatnonzero(row - row.min() <= slack) for row in priced]
    try:
        found = solve_limited(
            [c[k] for c, k in zip(problem.costs, open_, strict=True)],
            [s[k] for s, k in zip(problem.sizes, open_, strict=True)],
            [t[k] for t, k in zip(times, open_, strict=True)],
            (problem.budget, limit),
            best=best,
            work=_WORK,
            time_limit_s=time_limit_s,
        )
    except SolverFailedError as error:
        return judged(problem, choice, bound, f"lagrangian (two budgets; solver failed: {error})")
    if found.positions is not None:
        exact = np.array([k[p] for k, p in zip(open_, found.positions, strict=True)], np.int64)
        choice = min(choice, exact, key=problem.cost_of)
    # A solution outside the open choices costs more than the best one known.
    bound = max(bound, min(found.bound, problem.cost_of(choice)))
    return judged(problem, choice, bound, "lagrangian+cp-sat (two budgets)")
