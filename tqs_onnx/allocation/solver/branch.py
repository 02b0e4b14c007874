"""Branch and bound over the Lagrangian: split on the item at which the budget breaks, solve small parts with CP-SAT.

    node = decided choices + a table of the undecided items
    open:    relax, fill (a new incumbent?), drop choices that the reduced costs exclude
    split:   one child for each choice of the broken item        leaf: at most `_LEAF_CHOICES` left → CP-SAT

The gap of the relaxation is the part of one large item that does not fit. Deciding that item closes most of the gap,
so a few splits reduce a thousand items to tens.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocation.solver.cp_sat import SolverFailedError, solve_core
from tqs_onnx.allocation.solver.lagrange import EPS, Relaxation, Table, fill, relax

_LEAF_CHOICES = 120
_MOST_SPLITS = 40
_RESOLUTION = 1e-11
_WORK_PER_SECOND = 0.2
"""Limit in CP-SAT's units of work; it does 0.2 to 1.2 a second (measured), so the clock rarely stops it first."""


@dataclass(frozen=True, slots=True)
class Branched:
    """The outcome of a search.

    Parameters
    ----------
    choice : NDArray[np.int64]
        Choice of the problem per item, shape [n].
    bound : float
        Lower bound on the cost of any solution, relative to the base of the relaxation.
    solver : str
        The methods used.
    """

    choice: NDArray[np.int64]
    bound: float
    solver: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A subproblem: the decided choices, their cost, and the table of the undecided items.

    `choice` [n] holds −1 for the undecided items; these are `rows` [m], with `table` [m, K] and `budget` bytes.
    """

    choice: NDArray[np.int64]
    offset: float
    rows: NDArray[np.int64]
    table: Table
    budget: int

    def completed(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
        """Return all choices [n] and their cost, with the undecided at `positions` [m]."""
        every = np.arange(len(self.rows))
        choice = self.choice.copy()
        choice[self.rows] = self.table.index[every, positions]
        return choice, self.offset + math.fsum(self.table.cost[every, positions])

    def restricted(self, keep: NDArray[np.bool_]) -> _Part:
        """Return the part with only the choices `keep` [m, K]; items with a single choice left become decided."""
        counts = keep.sum(axis=1)
        every = np.arange(len(self.rows))
        single = np.flatnonzero(counts == 1)
        only = np.argmax(keep, axis=1)[single]
        choice = self.choice.copy()
        choice[self.rows[single]] = self.table.index[single, only]
        rest = every[counts > 1]
        columns = np.argsort(~keep[rest], axis=1, kind="stable")[:, : max(1, int(counts.max(initial=1)))]
        kept = np.take_along_axis(keep[rest], columns, 1)
        size = np.take_along_axis(self.table.size[rest], columns, 1)
        return _Part(
            choice,
            self.offset + math.fsum(self.table.cost[single, only]),
            self.rows[rest],
            Table(
                np.where(kept, np.take_along_axis(self.table.cost[rest], columns, 1), np.inf),
                np.where(kept, size, size[:, :1]),
                np.take_along_axis(self.table.index[rest], columns, 1),
            ),
            self.budget - int(self.table.size[single, only].sum()),
        )


@dataclass(frozen=True, slots=True)
class _Node:
    """A part with its relaxation; none of its solutions costs less than `bound`."""

    part: _Part
    relaxation: Relaxation
    bound: float


@dataclass(slots=True)
class _Incumbent:
    choice: NDArray[np.int64]
    cost: float

    def offer(self, choice: NDArray[np.int64], cost: float) -> None:
        """Accept `choice` [n] if it is strictly cheaper: the first of equal solutions stays."""
        if cost < self.cost:
            self.choice, self.cost = choice, cost


def search(
    table: Table, budget: int, relaxation: Relaxation, *, scale: float, enough: float, time_limit_s: float
) -> Branched:
    """Return the best choices found within `budget` bytes.

    Deterministic unless the time limit is reached first.

    Parameters
    ----------
    table : Table
        Costs [n, K], relative to those of `relaxation.base`, and bytes; the smallest sizes fit.
    budget : int
        Bytes.
    relaxation : Relaxation
        Relaxation of the whole table.
    scale : float
        Magnitude of the total cost, from which the rounding error is derived.
    enough : float
        Stop when the solution is proven to be at most this much above the cheapest.
    time_limit_s : float
        Wall clock, seconds.
    """
    deadline = time.monotonic() + time_limit_s
    work = max(time_limit_s, 0.0) * _WORK_PER_SECOND
    n = len(table.cost)
    best = _Incumbent(np.zeros(n, np.int64), math.inf)
    root = _open(_Part(np.full(n, -1, np.int64), 0.0, np.arange(n), table, budget), relaxation, best)
    heap: list[tuple[float, int, _Node]] = [(root.bound, 0, root)]
    counter, splits, leaves = 0, 0, 0
    proven = math.inf  # lowest bound of the leaves
    rounding = 0.0  # costs are sums of rounded differences: no decision below has a larger error
    note = ""
    while heap and best.cost - min(heap[0][0], proven) > enough:
        if time.monotonic() > deadline:
            note = " (time limit)"
            break
        bound, _, node = heapq.heappop(heap)
        keep = _worth_keeping(node, best)
        if not keep.any(axis=1).all():
            continue
        if node is root:
            costs = np.where(keep, np.abs(table.cost), 0.0)
            rounding = 4 * EPS * math.fsum(costs.max(axis=1, initial=0.0))
        broken = node.relaxation.broken
        if broken >= 0 and splits < _MOST_SPLITS and keep.sum() > _LEAF_CHOICES:
            splits += 1
            for child in _split(node.part, keep, broken, best):
                counter += 1
                heapq.heappush(heap, (child.bound, counter, child))
            continue
        leaves += 1
        try:
            finished, leaf_bound = _leaf(
                node.part.restricted(keep), best, bound, scale, work, deadline - time.monotonic()
            )
        except SolverFailedError as failure:
            proven = min(proven, bound)
            note = f" (solver failed: {failure})"
            break
        proven = min(proven, leaf_bound)
        if not finished:
            note = " (time limit)"
    lowest = min([proven, best.cost, *(entry[0] for entry in heap)])
    solver = "lagrangian" + ("+branch" if splits else "") + ("+cp-sat" if leaves else "")
    return Branched(best.choice, lowest - rounding, solver + note)


def _open(part: _Part, relaxation: Relaxation, best: _Incumbent) -> _Node:
    """Return the node of a part, and offer its filled solution to `best`."""
    table = part.table
    base_cost = math.fsum(table.cost[np.arange(len(part.rows)), relaxation.base])
    best.offer(*part.completed(fill(table, relaxation.base, relaxation.slack)))
    bound = part.offset + base_cost + relaxation.bound
    bound -= 4 * EPS * (abs(part.offset) + abs(base_cost) + abs(relaxation.bound))
    return _Node(part, relaxation, bound)


def _worth_keeping(node: _Node, best: _Incumbent) -> NDArray[np.bool_]:
    """Return which choices [m, K] can be part of a solution cheaper than `best`; an empty row closes the node."""
    if node.bound >= best.cost:
        return np.zeros((1, 1), dtype=np.bool_)
    return node.relaxation.reduced <= (best.cost - node.bound) * (1 + 4 * EPS)


def _split(part: _Part, keep: NDArray[np.bool_], row: int, best: _Incumbent) -> list[_Node]:
    """Return a child for each kept choice of `row` that still fits."""
    children: list[_Node] = []
    for column in np.flatnonzero(keep[row]):
        one = keep.copy()
        one[row] = False
        one[row, column] = True
        child = part.restricted(one)
        if int(child.table.size[:, 0].sum()) <= child.budget:
            children.append(_open(child, relax(child.table, child.budget), best))
    return children


def _leaf(
    part: _Part, best: _Incumbent, bound: float, scale: float, work: float, time_limit_s: float
) -> tuple[bool, float]:
    """Solve a part with CP-SAT and offer its solution to `best`; return whether it finished, and its bound."""
    result = solve_core(
        part.table,
        part.budget,
        limit=best.cost - part.offset,
        resolution=min((best.cost - bound) * 1e-6, scale * _RESOLUTION),
        work=work,
        time_limit_s=time_limit_s,
    )
    if result.positions is not None:
        best.offer(*part.completed(result.positions))
    if math.isinf(result.bound):
        return result.finished, math.inf  # no solution is this cheap
    leaf_bound = part.offset + result.bound - 4 * EPS * (abs(part.offset) + abs(result.bound))
    return result.finished, max(bound, leaf_bound)
