"""Algorithm 2 of the paper (A.1.2) on plain values: find dead items, protect items in FP32, solve a knapsack.

    dead, or γ ≤ γ_min          → floor choice
    highest γ, while they fit   → FP32, up to the fraction p_FP32 of all FP32 bytes
    the rest                    → multiple-choice knapsack, or one of the greedy rules, with the remaining bytes

Items are processed in order of name, so the result does not depend on their input order. Uses no ONNX and no runtime.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tqs_onnx.allocation.solver.greedy import greedy_from_top, greedy_promotion
from tqs_onnx.allocation.solver.knapsack import solve
from tqs_onnx.allocation.solver.problem import Problem, Solution
from tqs_passes.errors import InfeasibleError, InputError

Solver = Literal["mckp", "greedy", "greedy-top"]

_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Item:
    """A weight, or a block of weights, with the size and cost of each of its choices.

    Parameters
    ----------
    name : str
        Unique key, used to break ties.
    sizes : tuple of int
        Bytes of each choice, ≥ 0.
    tiers : tuple of str
        Name of each choice.
    costs : tuple of float
        Cost of each choice (see `objective`), finite.
    gamma : float
        γ; −inf where there is none.
    n_values : int
        Number of values stored: 4 bytes each in FP32.
    dead : bool
        It changes no trajectory. A γ of −inf does not imply this: the probe may have been zero.
    fp32_choice : int or None
        The choice that keeps it in FP32; None when it cannot be protected.
    floor_choice : int or None
        The choice it gets when dead; None for its smallest choice (of equal sizes the cheapest, then the first).

    Raises
    ------
    InputError
        The tuples differ in length or are empty, a number is out of range, or γ is NaN or +inf.
    """

    name: str
    sizes: tuple[int, ...]
    tiers: tuple[str, ...]
    costs: tuple[float, ...]
    gamma: float
    n_values: int
    dead: bool
    fp32_choice: int | None = None
    floor_choice: int | None = None

    def __post_init__(self) -> None:
        """Validate the fields (see Raises)."""
        n = len(self.sizes)
        if n == 0 or len(self.tiers) != n or len(self.costs) != n:
            lengths = f"{n} sizes, {len(self.tiers)} tiers and {len(self.costs)} costs"
            raise InputError(f"{lengths}, but the numbers must be equal and at least 1", where=self.name)
        if min(self.sizes) < 0 or self.n_values < 0:
            raise InputError("a size is negative", where=self.name)
        if not all(map(math.isfinite, self.costs)):
            raise InputError("a cost is not finite", where=self.name)
        if math.isnan(self.gamma) or self.gamma == math.inf:
            raise InputError(f"γ is {self.gamma}", where=self.name, todo="Score it again, or mark it dead")
        for choice in (self.fp32_choice, self.floor_choice):
            if choice is not None and not 0 <= choice < n:
                raise InputError(f"there is no choice {choice} of {n}", where=self.name)

    @property
    def smallest_choice(self) -> int:
        """Index of the smallest choice; of equal sizes the cheapest, then the first."""
        return min(range(len(self.sizes)), key=lambda k: (self.sizes[k], self.costs[k], k))


@dataclass(frozen=True, slots=True)
class Allocation:
    """The result of `allocate`: one choice per item.

    Parameters
    ----------
    choices : dict of str to int
        Choice of each item, in order of name.
    cost : float
        Total cost of all items.
    solution : Solution
        The solver's result for the items left to it (in order of name): cost, bound, gap, label.
    fp32_protected : tuple of str
        Items kept in FP32, by decreasing γ.
    p_fp32 : float
        The fraction of the FP32 bytes that applies: as requested, or the protected share after it was lowered.
    dead : tuple of str
        Items at their floor choice because they are dead or γ ≤ γ_min, by name.
    warnings : tuple of str
        Warnings for the user; empty when everything went as requested.
    budget_bytes : int
        Bytes that could be spent.
    used_bytes : int
        Bytes spent, ≤ budget_bytes.
    smallest_bytes : int
        Bytes of the smallest allocation: nothing protected, every item at its smallest choice.
    saturated : bool
        The budget does not bind (the paper's saturation): every item left to the solver has its cheapest choice.
    """

    choices: dict[str, int]
    cost: float
    solution: Solution
    fp32_protected: tuple[str, ...]
    p_fp32: float
    dead: tuple[str, ...]
    warnings: tuple[str, ...]
    budget_bytes: int
    used_bytes: int
    smallest_bytes: int
    saturated: bool


def allocate(
    items: Iterable[Item],
    budget_bytes: int,
    *,
    p_fp32: float,
    gamma_min: float | None,
    solver: Solver = "mckp",
    time_limit_s: float = 30.0,
) -> Allocation:
    """Choose for every item within the budget, by Algorithm 2.

    The items with the highest γ and an FP32 choice are protected, each as a whole, while their FP32 bytes stay within
    `p_fp32` of the FP32 bytes of all items. An item that would exceed this share is skipped and the next one is tried.
    If the remaining items would then not fit, protection is removed from the last items until they fit, with a warning.

    Parameters
    ----------
    items : iterable of Item
        In any order; names are unique.
    budget_bytes : int
        Bytes available to the items, without the rest of the file.
    p_fp32 : float
        Fraction of all FP32 bytes to protect, 0 … 1.
    gamma_min : float or None
        Items with γ at or below it (a γ of −inf always) are treated as dead; None for no threshold.
    solver : {"mckp", "greedy", "greedy-top"}
        How the rest is decided: `knapsack.solve`, or `greedy_promotion` or `greedy_from_top` by γ.
    time_limit_s : float
        Wall clock for the knapsack, seconds.

    Raises
    ------
    InfeasibleError
        Even the smallest allocation does not fit; the error carries its bytes.
    InputError
        Two items share a name, `p_fp32` is out of range or `gamma_min` is NaN.
    """
    every = sorted(items, key=lambda item: item.name)
    for a, b in itertools.pairwise(every):
        if a.name == b.name:
            raise InputError("two items have this name", where=a.name)
    if not 0 <= p_fp32 <= 1:
        raise InputError(f"the FP32 fraction is {p_fp32}", todo="Give a number from 0 to 1")
    if gamma_min is not None and math.isnan(gamma_min):
        raise InputError("the threshold γ_min is NaN", todo="Give a number, or none")

    dead = [item for item in every if item.dead or (gamma_min is not None and item.gamma <= gamma_min)]
    gone = {item.name for item in dead}
    alive = [item for item in every if item.name not in gone]
    choices = {item.name: _floor(item) for item in dead}
    smallest_bytes = _bytes(dead, choices) + sum(min(item.sizes) for item in alive)
    if smallest_bytes > budget_bytes:
        raise InfeasibleError(
            f"the weights need at least {smallest_bytes} bytes, but the budget is {budget_bytes}",
            smallest_bytes=smallest_bytes,
            todo="Ask for less compression, or allow smaller tiers",
        )
    wanted = _protected(alive, p_fp32 * _FP32_BYTES * sum(item.n_values for item in every))
    protected = _affordable(wanted, budget_bytes - smallest_bytes)
    in_force = p_fp32 if len(protected) == len(wanted) else _share(protected, every)
    choices |= {item.name: item.fp32_choice for item in protected if item.fp32_choice is not None}

    rest = [item for item in alive if item.name not in choices]
    problem = Problem(
        tuple(np.array(item.costs, dtype=np.float64) for item in rest),
        tuple(np.array(item.sizes, dtype=np.int64) for item in rest),
        budget_bytes - _bytes([*dead, *protected], choices),
    )
    solution = _solved(problem, rest, solver, time_limit_s)
    choices |= {item.name: int(k) for item, k in zip(rest, solution.choice, strict=True)}
    return Allocation(
        choices={item.name: choices[item.name] for item in every},
        cost=math.fsum(item.costs[choices[item.name]] for item in every),
        solution=solution,
        fp32_protected=tuple(item.name for item in protected),
        p_fp32=in_force,
        dead=tuple(item.name for item in dead),
        warnings=_fp32_warnings(wanted, protected, p_fp32, in_force)
        + _solver_warnings(problem, solution, solver),
        budget_bytes=budget_bytes,
        used_bytes=_bytes(every, choices),
        smallest_bytes=smallest_bytes,
        saturated=_is_saturated(problem, solution),
    )


def _floor(item: Item) -> int:
    return item.smallest_choice if item.floor_choice is None else item.floor_choice


def _bytes(items: Sequence[Item], choices: dict[str, int]) -> int:
    return sum(item.sizes[choices[item.name]] for item in items)


def _protected(alive: Sequence[Item], fp32_bytes: float) -> list[Item]:
    """Return the items to keep in FP32, by decreasing γ (ties: name), within `fp32_bytes`; skip those too large."""
    chosen: list[Item] = []
    mass = 0
    for item in sorted(alive, key=lambda item: -item.gamma):
        size = _FP32_BYTES * item.n_values
        if item.fp32_choice is not None and mass + size <= fp32_bytes:
            chosen.append(item)
            mass += size
    return chosen


def _affordable(wanted: Sequence[Item], spare_bytes: int) -> list[Item]:
    """Return the longest prefix of `wanted` whose FP32 choices need at most `spare_bytes` above the smallest ones."""
    affordable: list[Item] = []
    for item in wanted:
        spare_bytes -= item.sizes[item.fp32_choice or 0] - min(item.sizes)
        if spare_bytes < 0:
            break
        affordable.append(item)
    return affordable


def _solved(problem: Problem, rest: Sequence[Item], solver: Solver, time_limit_s: float) -> Solution:
    priority = np.array([item.gamma for item in rest], dtype=np.float64)
    match solver:
        case "mckp":
            return solve(problem, time_limit_s=time_limit_s)
        case "greedy":
            return greedy_promotion(problem, priority)
        case "greedy-top":
            return greedy_from_top(problem, priority)


def _share(protected: Sequence[Item], every: Sequence[Item]) -> float:
    """Return the fraction of the FP32 bytes of `every` that `protected` holds; 0 when there are none."""
    return sum(item.n_values for item in protected) / max(1, sum(item.n_values for item in every))


def _fp32_warnings(
    wanted: Sequence[Item], protected: Sequence[Item], p_fp32: float, in_force: float
) -> tuple[str, ...]:
    if len(protected) < len(wanted):
        let_go = f"{len(wanted) - len(protected)} of {len(wanted)} weights are no longer protected"
        return (f"p_fp32 lowered from {p_fp32:g} to {in_force:.3g} to fit the budget: {let_go}",)
    if p_fp32 > 0 and not protected:
        return (f"no weight is kept in FP32: no eligible weight fits within p_fp32 = {p_fp32:g}",)
    return ()


def _solver_warnings(problem: Problem, solution: Solution, solver: Solver) -> tuple[str, ...]:
    warnings: list[str] = []
    if solver == "mckp" and not solution.optimal:
        warnings.append(f"not proven to be the cheapest: gap {solution.gap:.2g}, {solution.solver}")
    if problem.costs and _is_saturated(problem, solution):
        spare = problem.budget - solution.size
        warnings.append(
            f"the budget does not bind: every weight has its cheapest tier, {spare} bytes are left"
        )
    return tuple(warnings)


def _is_saturated(problem: Problem, solution: Solution) -> bool:
    return all(cost[k] == cost.min() for cost, k in zip(problem.costs, solution.choice, strict=True))
