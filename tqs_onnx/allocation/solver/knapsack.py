"""Solve the multiple-choice knapsack: undominated choices → Lagrangian → branch → CP-SAT on the rest.

Paper: A.1.2, step 7 of Algorithm 2. The steps and their mathematics are in `lagrange`, `branch` and `cp_sat`; the
paper's greedy alternatives are in `greedy`. Uses no ONNX and no runtime.
"""

from __future__ import annotations

import math

import numpy as np

from tqs_onnx.allocation.solver.branch import search
from tqs_onnx.allocation.solver.greedy import greedy_from_top, greedy_promotion
from tqs_onnx.allocation.solver.lagrange import Table, relax, undominated
from tqs_onnx.allocation.solver.problem import Problem, Solution, judged

__all__ = ["Problem", "Solution", "greedy_from_top", "greedy_promotion", "solve"]

_PROVEN_UP_TO = 5000
_ENOUGH = 1e-12
_ENOUGH_BEYOND = 1e-5


def solve(problem: Problem, *, time_limit_s: float = 30.0) -> Solution:
    """Return the cheapest choices that fit the budget.

    Up to 5,000 items the search continues until no cheaper solution exists (to 1e-12 of the cost, the rounding of
    sums); with more items, until the gap is at most 1e-5.
    Of equally cheap solutions the first one found stays, which favours earlier items; of equally cheap choices of an
    item the smaller, then the first. Deterministic unless `time_limit_s` of wall clock ends the search: the solution
    is then feasible, its gap is stated, and `solver` says "(time limit)". If CP-SAT is missing or rejects
    the model, the Lagrangian's solution is returned with its gap, and `solver` says "(solver failed: …)".

    Parameters
    ----------
    problem : Problem
        The items and the budget.
    time_limit_s : float
        Wall clock, seconds.

    Raises
    ------
    InfeasibleError
        Even the smallest choices do not fit; the error carries their total size.

    Examples
    --------
    >>> costs = (np.array([8.0, 1.0]), np.array([5.0, 1.0]))
    >>> sizes = (np.array([1, 4]), np.array([1, 4]))
    >>> solve(Problem(costs, sizes, budget=5)).choice.tolist()
    [1, 0]
    """
    problem.require_feasible()
    table = undominated(problem)
    # A power of two scales the costs to about 1: this is exact and prevents underflow.
    largest = float(np.abs(table.cost).max(where=np.isfinite(table.cost), initial=0.0))
    exponent = math.frexp(largest)[1]
    table = Table(np.ldexp(table.cost, -exponent), table.size, table.index)
    relaxation = relax(table, problem.budget)
    rows = np.arange(len(problem.costs))
    base = table.cost[rows, relaxation.base]
    scale = abs(math.fsum(base))
    found = search(
        Table(table.cost - base[:, None], table.size, table.index),
        problem.budget,
        relaxation,
        scale=scale,
        enough=scale * (_ENOUGH if len(rows) <= _PROVEN_UP_TO else _ENOUGH_BEYOND),
        time_limit_s=time_limit_s,
    )
    bound = math.ldexp(math.fsum((*base, found.bound)), exponent)
    return judged(problem, found.choice, bound, found.solver)
