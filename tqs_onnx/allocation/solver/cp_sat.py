"""Solve the few items that the bounds leave undecided with CP-SAT: the only importer of OR-tools.

CP-SAT counts in integers, so budgets hold exactly. Costs are rounded down to integers at a given resolution.
Its bound is therefore a true bound, and its solution is at most 2·n/scale above the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocation.solver.lagrange import EPS, Table

_LARGEST_SUM = 2.0**52
_LARGEST_SCALE = 2.0**1000
_SMALLEST = 1e-290


class SolverFailedError(Exception):
    """CP-SAT is missing or rejected the model; the message says which. Never reaches a user."""


@dataclass(frozen=True, slots=True)
class CoreResult:
    """CP-SAT's result for a core.

    Parameters
    ----------
    positions : NDArray[np.int64] or None
        A solution that costs at most the given limit, shape [n]; None when there is none or none was found.
    bound : float
        Lower bound on the cost of any solution within the limit; +inf when there is none.
    finished : bool
        False when the time ran out.
    """

    positions: NDArray[np.int64] | None
    bound: float
    finished: bool


def solve_core(
    table: Table, budget: int, *, limit: float, resolution: float, work: float, time_limit_s: float
) -> CoreResult:
    """Return the cheapest choices of `table` that fit `budget` bytes and cost no more than `limit`.

    Deterministic (one thread, fixed seed, a limit on CP-SAT's own count of work) unless the time limit is reached
    first.

    Parameters
    ----------
    table : Table
        Costs [n, K] and sizes [n, K].
    budget : int
        Bytes.
    limit : float
        Largest cost of a useful solution.
    resolution : float
        Requested accuracy of the total cost; coarser only where 52 bits cannot hold it.
    work : float
        Limit on CP-SAT's own count of work, the same on every machine.
    time_limit_s : float
        Wall clock, seconds.

    Raises
    ------
    SolverFailedError
        OR-tools cannot be imported or rejects the model.
    """
    real = np.isfinite(table.cost)
    floor = table.cost.min(axis=1, initial=np.inf)
    above = np.where(real, table.cost, floor[:, None]) - floor[:, None]
    spread = math.fsum(above.max(axis=1, initial=0.0))
    offset = math.fsum(floor)
    room = limit - offset
    if room < 0 or spread == 0:
        # Nothing to choose: only the smallest sizes are left.
        fits = room >= 0 and int(table.size[:, 0].sum()) <= budget
        return CoreResult(
            np.zeros(len(floor), np.int64) if fits else None, offset if fits else math.inf, True
        )
    finest = min(2 * len(floor) / max(resolution, _SMALLEST), _LARGEST_SUM / max(spread, _SMALLEST))
    scale = 2.0 ** math.floor(math.log2(min(finest, _LARGEST_SCALE)))
    weights = np.floor(above * scale * (1 - 4 * EPS)).astype(np.int64)
    most = math.ceil(min(room, spread) * scale * (1 + 4 * EPS))
    found, lower, finished = _cp_sat(
        [row.tolist() for row in weights],
        [row.tolist() for row in table.size],
        [row.tolist() for row in real],
        budget,
        most,
        work,
        time_limit_s,
    )
    if lower is None:
        return CoreResult(None, math.inf, finished)
    rounding = 4 * EPS * (math.fsum(np.abs(floor)) + spread)
    return CoreResult(
        None if found is None else np.array(found, np.int64), offset + lower / scale - rounding, finished
    )


def solve_limited(
    costs: Sequence[NDArray[np.float64]],
    sizes: Sequence[NDArray[np.int64]],
    times: Sequence[NDArray[np.int64]],
    limits: tuple[int, int],
    *,
    best: float,
    work: float,
    time_limit_s: float,
) -> CoreResult:
    """Return the cheapest choices whose sizes and times stay within two limits; see `solve_core`.

    Parameters
    ----------
    costs, sizes, times : sequence of arrays
        Per item, of each choice.
    limits : (int, int)
        Largest total size and time.
    best : float
        Cost of a known solution: dearer ones are of no use.
    work, time_limit_s : float
        See `solve_core`.

    Raises
    ------
    SolverFailedError
        OR-tools cannot be imported or rejects the model.
    """
    floors = [float(row.min()) for row in costs]
    offset = math.fsum(floors)
    spread = math.fsum(float(np.ptp(row)) for row in costs)
    if spread == 0:
        return CoreResult(None, offset, True)
    scale = 2.0 ** math.floor(math.log2(_LARGEST_SUM / 1024 / spread))
    weights = [
        np.floor((row - low) * scale * (1 - 4 * EPS)).astype(np.int64).tolist()
        for row, low in zip(costs, floors, strict=True)
    ]
    most = math.ceil(max(best - offset, 0.0) * scale * (1 + 4 * EPS))
    found, lower, finished = _cp_sat(
        weights,
        [row.tolist() for row in sizes],
        [[True] * row.size for row in costs],
        limits[0],
        most,
        work,
        time_limit_s,
        second=([row.tolist() for row in times], limits[1]),
    )
    bound = math.inf if lower is None else offset + lower / scale - 4 * EPS * (abs(offset) + spread)
    return CoreResult(None if found is None else np.array(found, np.int64), bound, finished)


def _cp_sat(
    weights: list[list[int]],
    sizes: list[list[int]],
    real: list[list[bool]],
    budget: int,
    most: int,
    work: float,
    time_limit_s: float,
    *,
    second: tuple[list[list[int]], int] | None = None,
) -> tuple[list[int] | None, int | None, bool]:
    """Return choices, lower bound on the weight (None: infeasible), and whether the search finished.

    `second` holds the costs of a second resource and its limit.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise SolverFailedError(f"OR-tools cannot be imported: {error}") from error

    model = cp_model.CpModel()
    cells: list[tuple[int, int]] = []
    literals = []
    for row, row_real in enumerate(real):
        columns = [column for column, is_real in enumerate(row_real) if is_real]
        row_literals = [model.new_bool_var("") for _ in columns]
        model.add_exactly_one(row_literals)
        literals += row_literals
        cells += [(row, column) for column in columns]
    weight = cp_model.LinearExpr.weighted_sum(literals, [weights[row][column] for row, column in cells])
    size = cp_model.LinearExpr.weighted_sum(literals, [sizes[row][column] for row, column in cells])
    model.add(size <= budget)
    if second is not None:
        times, limit = second
        spent = cp_model.LinearExpr.weighted_sum(literals, [times[row][column] for row, column in cells])
        model.add(spent <= limit)
    model.add(weight <= most)
    model.minimize(weight)

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    # Measured: 10 times slower with presolve, whose work the bounds have already done.
    solver.parameters.cp_model_presolve = False
    solver.parameters.linearization_level = 2
    # Otherwise a later Ctrl-C kills the process without a message.
    solver.parameters.catch_sigint_signal = False
    solver.parameters.max_time_in_seconds = max(time_limit_s, 0.01)
    solver.parameters.max_deterministic_time = work
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None, None, True
    if status == cp_model.MODEL_INVALID:
        raise SolverFailedError("CP-SAT rejected the model")
    lower = math.floor(max(0.0, solver.best_objective_bound))
    if status == cp_model.UNKNOWN:
        return None, lower, False
    chosen = [0] * len(real)
    for (row, column), literal in zip(cells, literals, strict=True):
        if solver.boolean_value(literal):
            chosen[row] = column
    return chosen, lower, status == cp_model.OPTIMAL
