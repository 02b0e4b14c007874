"""Lagrangian relaxation of the knapsack: a proven bound, a good solution, and choices that the bound excludes.

With a price λ ≥ 0 per byte and x the choices that minimise cost + λ·size item by item,

    any feasible y costs ≥ cost(x) − λ·(budget − size(x)) + Σ_i r[i, y_i],     r[i,k] ≥ 0 the reduced cost,

so a choice whose r raises the bound above the best known cost can be dropped without losing a better solution.
The best λ is the slope at which the lower convex hulls of the items, merged by steepness, exhaust the budget
(Sinha & Zoltners, 1979): one sort and no bisection, so costs from 1e-30 to 1e30 cause no trouble.
Costs are differences from x, so decided items never mask the others. Every rounding of the float arithmetic is
subtracted from the bound, so the bound holds exactly. Uses no ONNX and no runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocation.solver.problem import Problem

EPS = float(np.finfo(np.float64).eps)
"""Spacing of the floats at 1; a rounding error is at most half of it."""


@dataclass(frozen=True, slots=True)
class Table:
    """The useful choices of all items, smallest first, padded to one width.

    Parameters
    ----------
    cost : NDArray[np.float64]
        Shape [n, K]: strictly falling along each row, +inf where a row has fewer choices.
    size : NDArray[np.int64]
        Bytes, shape [n, K]: strictly rising along each row; a padded cell repeats the row's smallest size.
    index : NDArray[np.int64]
        The index in the problem of the choice in each cell, shape [n, K].
    """

    cost: NDArray[np.float64]
    size: NDArray[np.int64]
    index: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The result of the relaxation. Positions are columns of the Table; costs are relative to `base`.

    Parameters
    ----------
    base : NDArray[np.int64]
        The choices x at price `price`, shape [n]; feasible.
    slack : int
        Bytes that `base` leaves unspent.
    price : float
        λ, cost per byte; 0 when the budget does not bind.
    broken : int
        The row whose next step did not fit, −1 when all did: the item to branch on.
    bound : float
        Lower bound on the cost of any feasible solution, minus the cost of `base`; ≤ 0.
    reduced : NDArray[np.float64]
        r, shape [n, K]: at most what a choice adds to `bound`; +inf where padded.
    """

    base: NDArray[np.int64]
    slack: int
    price: float
    broken: int
    bound: float
    reduced: NDArray[np.float64]


def undominated(problem: Problem) -> Table:
    """Return the choices that fit beside the smallest choices of all other items and that none dominates.

    Of equal choices the first of the problem stays. The smallest sizes of the problem fit its budget.
    """
    n = len(problem.costs)
    width = max((row.size for row in problem.costs), default=1)
    counts = np.array([row.size for row in problem.costs], dtype=np.int64)
    real = np.arange(width) < counts[:, None]
    cost = np.full((n, width), np.inf)
    size = np.full((n, width), np.iinfo(np.int64).max)
    if n:
        cost[real] = np.concatenate(problem.costs)
        size[real] = np.concatenate(problem.sizes)
    order = np.lexsort((cost, size), axis=-1)  # stable: equal choices keep their order
    cost, size = np.take_along_axis(cost, order, 1), np.take_along_axis(size, order, 1)
    best_before = np.minimum.accumulate(cost, axis=1)[:, :-1]
    rise = size - size[:, :1]
    keep = rise <= problem.budget - int(size[:, 0].sum())
    keep[:, 1:] &= cost[:, 1:] < best_before
    left = np.argsort(~keep, axis=1, kind="stable")[:, : max(1, int(keep.sum(axis=1).max(initial=1)))]
    keep = np.take_along_axis(keep, left, 1)
    cost = np.where(keep, np.take_along_axis(cost, left, 1), np.inf)
    size = np.take_along_axis(size, left, 1)
    size = np.where(keep, size, size[:, :1])
    return Table(cost, size, np.take_along_axis(order, left, 1))


def relax(table: Table, budget: int) -> Relaxation:
    """Return the best Lagrangian relaxation; `budget` bytes suffice for the smallest choices."""
    n = len(table.cost)
    item, to, size_step, slope = _hull_steps(table)
    base = np.zeros(n, dtype=np.int64)
    used = np.cumsum(size_step)
    free = budget - int(table.size[:, 0].sum())
    taken = int(np.searchsorted(used, free, side="right"))
    np.maximum.at(base, item[:taken], to[:taken])
    slack = free - (int(used[taken - 1]) if taken else 0)
    if taken == len(slope):
        return _priced(table, base, slack, 0.0, -1)
    return _priced(table, base, slack, -float(slope[taken]), int(item[taken]))


def _hull_steps(
    table: Table,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return item, position reached, bytes [m] and slope [m] of every step along the convex hulls, steepest first."""
    n, width = table.cost.shape
    every = np.arange(n)
    columns = np.arange(width)
    at = np.zeros(n, dtype=np.int64)
    floor = np.full(n, -np.inf)
    items: list[NDArray[np.int64]] = []
    reached: list[NDArray[np.int64]] = []
    bytes_: list[NDArray[np.int64]] = []
    slopes: list[NDArray[np.float64]] = []
    while every.size:
        cost, size = table.cost[every], table.size[every]
        rows = np.arange(len(every))
        rise = size - size[rows, at][:, None]
        ahead = (columns > at[:, None]) & np.isfinite(cost)
        fall = cost - cost[rows, at][:, None]
        slope = np.where(ahead, fall / np.where(ahead, rise, 1), np.inf)
        step = np.argmin(slope, axis=1)
        alive = ahead[rows, step]
        every, rows, step = every[alive], rows[alive], step[alive]
        floor = np.maximum(
            floor[alive], slope[rows, step]
        )  # slopes along a hull never get steeper; rounding must not reorder them
        items.append(every)
        reached.append(step)
        bytes_.append(rise[rows, step])
        slopes.append(floor)
        at = step
    item = np.concatenate([*items, np.empty(0, np.int64)])
    slope_all = np.concatenate([*slopes, np.empty(0)])
    to = np.concatenate([*reached, np.empty(0, np.int64)])
    order = np.lexsort((to, item, slope_all))
    return item[order], to[order], np.concatenate([*bytes_, np.empty(0, np.int64)])[order], slope_all[order]


def _priced(table: Table, base: NDArray[np.int64], slack: int, price: float, broken: int) -> Relaxation:
    """Return bound and reduced costs at `price` [cost per byte], rounded so that they hold exactly."""
    rows = np.arange(len(base))
    real = np.isfinite(table.cost)
    cost = np.where(real, table.cost, 0.0)
    at_base = cost[rows, base][:, None]
    pay = price * (table.size - table.size[rows, base][:, None])
    # Rounding: half an eps for each cell of the table, the difference, the product and the sum.
    value = (cost - at_base) + pay
    value -= 2 * EPS * (np.abs(cost) + np.abs(at_base) + np.abs(pay))
    value[~real] = np.inf
    value[rows, base] = 0.0
    least = value.min(axis=1, initial=0.0)
    reduced = np.maximum(value - least[:, None], 0.0) * (1 - EPS)
    bound = math.fsum(least) - price * slack
    bound -= 4 * EPS * (abs(math.fsum(least)) + price * slack)
    return Relaxation(base, slack, price, broken, min(bound, 0.0), reduced)


def fill(table: Table, start: NDArray[np.int64], slack: int) -> NDArray[np.int64]:
    """Spend `slack` bytes on the steepest moves that fit, one after the other.

    Returns the positions, shape [n]: they cost at most as much as `start` [n]. Of equal moves the first item's
    is made, then the smallest.
    """
    positions = start.copy()
    rows = np.arange(len(positions))
    while True:
        rise = table.size - table.size[rows, positions][:, None]
        fall = table.cost - table.cost[rows, positions][:, None]
        fits = (rise <= slack) & (fall < 0)
        if not fits.any():
            return positions
        steepness = np.where(fits, fall / np.maximum(rise, 1), np.inf)
        row, to = divmod(int(np.argmin(steepness)), table.cost.shape[1])
        slack -= int(rise[row, to])
        positions[row] = to
