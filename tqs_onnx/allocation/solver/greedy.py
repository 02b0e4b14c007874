"""The paper's two greedy allocators: they go by order of sensitivity and ignore what a byte saves elsewhere.

Paper: step 7 of Algorithm 2 ("greedy promotion from t_K") and A.5 ("the highest precision available to the most
sensitive layer at each step until the storage budget is exhausted"). It does not say which tier a promotion
goes to, nor what happens to an item that does not fit; each function below states the choice made here.
Uses no ONNX and no runtime.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocation.solver.problem import Problem, Solution, judged
from tqs_passes.errors import InputError


def greedy_promotion(problem: Problem, priority: NDArray[np.float64]) -> Solution:
    """Process the items once by decreasing priority; promote each to its cheapest choice that still fits.

    All items start at their smallest choice (of equal sizes the cheapest, then the first). An item moves only
    to a choice that costs strictly less than its current one (of equal costs the smaller, then the first). An item
    without a fitting choice is skipped, and later items may use the remaining bytes. Ties of priority: item order.

    Parameters
    ----------
    problem : Problem
        The items and the budget.
    priority : NDArray[np.float64]
        Shape [n], without NaN; the paper's γ.

    Returns
    -------
    Solution
        Its bound is the sum of the cheapest choices: the greedy method proves nothing about the budget.

    Raises
    ------
    InfeasibleError
        The smallest choices do not fit.
    InputError
        `priority` differs in length from the problem, or contains a NaN.

    Examples
    --------
    >>> costs = (np.array([8.0, 1.0]), np.array([5.0, 1.0]))
    >>> sizes = (np.array([1, 4]), np.array([1, 4]))
    >>> greedy_promotion(Problem(costs, sizes, budget=5), np.array([0.1, 0.2])).choice.tolist()
    [0, 1]
    """
    choice = _smallest(problem)
    slack = _slack(problem, choice)
    for i in _by_priority(problem, priority):
        cost, size = problem.costs[i], problem.sizes[i]
        rise = size - size[choice[i]]
        worth = (rise <= slack) & (cost < cost[choice[i]])
        if worth.any():
            best = int(np.lexsort((size, np.where(worth, cost, np.inf)))[0])
            slack -= int(rise[best])
            choice[i] = best
    return _solution(problem, choice, "greedy")


def greedy_from_top(problem: Problem, priority: NDArray[np.float64]) -> Solution:
    """Give the items, by decreasing priority, their largest choice until the budget is exhausted.

    The remaining items always keep room for their smallest size. The first item whose largest choice does not fit gets
    the largest one that does (of equal sizes the cheapest, then the first), and the method stops: every later item
    stays at its smallest choice. Costs matter only for ties. Ties of priority: item order.

    Parameters, Returns and Raises are those of `greedy_promotion`.
    """
    choice = _smallest(problem)
    slack = _slack(problem, choice)
    for i in _by_priority(problem, priority):
        cost, size = problem.costs[i], problem.sizes[i]
        rise = size - size[choice[i]]
        largest = int(rise[rise <= slack].max())
        choice[i] = int(np.lexsort((cost, rise != largest))[0])
        slack -= largest
        if largest < rise.max():
            break
    return _solution(problem, choice, "greedy-top")


def _smallest(problem: Problem) -> NDArray[np.int64]:
    """Return the smallest choice of every item, shape [n]."""
    problem.require_feasible()
    pairs = zip(problem.costs, problem.sizes, strict=True)
    return np.array([np.lexsort((cost, size))[0] for cost, size in pairs], dtype=np.int64)


def _slack(problem: Problem, choice: NDArray[np.int64]) -> int:
    return problem.budget - problem.size_of(choice)


def _by_priority(problem: Problem, priority: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the items by decreasing priority, ties in item order."""
    if priority.shape != (len(problem.costs),):
        raise InputError(f"{priority.shape} priorities do not fit {len(problem.costs)} items")
    if np.isnan(priority).any():
        raise InputError("a priority is NaN", where=f"item {int(np.argmax(np.isnan(priority)))}")
    return np.argsort(-priority, kind="stable")


def _solution(problem: Problem, choice: NDArray[np.int64], solver: str) -> Solution:
    return judged(problem, choice, math.fsum(float(cost.min()) for cost in problem.costs), solver)
