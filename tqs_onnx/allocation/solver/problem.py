"""The multiple-choice knapsack as values: one choice per item, with the least total cost within a byte budget.

    minimise  Σ_i costs[i][choice_i]   subject to   Σ_i sizes[i][choice_i] ≤ budget

Paper: A.1.2 (Sinha & Zoltners, 1979). Uses no ONNX and no runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_passes.errors import InfeasibleError, InputError

_LARGEST_TOTAL = 2**60
_LARGEST_COST = 1e200

OPTIMAL_GAP = 1e-9
"""Relative gap up to which a solution counts as optimal: above the rounding of sums, far below any practical need."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A multiple-choice knapsack.

    Parameters
    ----------
    costs : tuple of NDArray[np.float64]
        Per item, the cost of each choice, shape [K_i]. May be zero, negative, and of any magnitude up to
        1e200, above which sums could overflow.
    sizes : tuple of NDArray[np.int64]
        Per item, the bytes of each choice, shape [K_i], ≥ 0.
    budget : int
        Total bytes that may be spent.

    Raises
    ------
    InputError
        Shapes disagree, an item has no choice, a cost is not finite or beyond 1e200, or a size is negative.
    """

    costs: tuple[NDArray[np.float64], ...]
    sizes: tuple[NDArray[np.int64], ...]
    budget: int

    def __post_init__(self) -> None:
        """Validate the fields (see Raises)."""
        if len(self.costs) != len(self.sizes):
            raise InputError(f"{len(self.costs)} cost rows but {len(self.sizes)} size rows")
        for i, (cost, size) in enumerate(zip(self.costs, self.sizes, strict=True)):
            if cost.ndim != 1 or cost.shape != size.shape or cost.size == 0:
                raise InputError(
                    f"costs {cost.shape} and sizes {size.shape} do not form one row", where=f"item {i}"
                )
            if not (np.abs(cost) <= _LARGEST_COST).all():
                raise InputError("a cost is not finite, or beyond 1e200", where=f"item {i}")
            if size.min() < 0:
                raise InputError("a size is negative", where=f"item {i}")
        if sum(int(size.max()) for size in self.sizes) > _LARGEST_TOTAL:
            raise InputError("the sizes add up to more than 2^60 bytes")

    @property
    def smallest_size(self) -> int:
        """Bytes of the smallest feasible solution."""
        return sum(int(size.min()) for size in self.sizes)

    def require_feasible(self) -> None:
        """Raise InfeasibleError, with the smallest size, when no solution fits the budget."""
        smallest = self.smallest_size
        if smallest > self.budget:
            raise InfeasibleError(
                f"at least {smallest} bytes are needed, but the budget is {self.budget}",
                smallest_bytes=smallest,
                todo="Raise the budget, or allow smaller tiers",
            )

    def cost_of(self, choice: NDArray[np.int64]) -> float:
        """Return the total cost of `choice` [n], correctly rounded for any order of the items."""
        return math.fsum(float(cost[k]) for cost, k in zip(self.costs, choice, strict=True))

    def size_of(self, choice: NDArray[np.int64]) -> int:
        """Return the total bytes of `choice` [n]."""
        return sum(int(size[k]) for size, k in zip(self.sizes, choice, strict=True))


@dataclass(frozen=True, slots=True)
class Solution:
    """A feasible choice per item, and the proven facts about it.

    Parameters
    ----------
    choice : NDArray[np.int64]
        Index of the choice of each item, shape [n].
    cost : float
        Its total cost.
    size : int
        Its total bytes, within the budget.
    bound : float
        Proven lower bound on the cost of any feasible solution; ≤ cost.
    gap : float
        (cost − bound) / |cost|, 0 when they are equal; infinite when cost is 0 and the bound is not.
    solver : str
        The method that found it, e.g. ``"lagrangian+cp-sat"``, ``"greedy (solver failed: ...)"``.
    optimal : bool
        No feasible solution is cheaper by more than 1e-9 of the cost (including the rounding of the float costs).
    """

    choice: NDArray[np.int64]
    cost: float
    size: int
    bound: float
    gap: float
    solver: str
    optimal: bool


def judged(problem: Problem, choice: NDArray[np.int64], bound: float, solver: str) -> Solution:
    """Return `choice` [n] as a Solution; its cost, size and gap are computed here, never taken from a solver."""
    cost = problem.cost_of(choice)
    bound = min(bound, cost)
    gap = 0.0 if cost == bound else math.inf if cost == 0 else (cost - bound) / abs(cost)
    return Solution(choice, cost, problem.size_of(choice), bound, gap, solver, gap <= OPTIMAL_GAP)
