"""Times `tqs_onnx.allocation.solver.knapsack.solve` against plain CP-SAT, SCIP and HiGHS, side by side in one run.

Instances are random and resemble models: costs = amplification · 4^-bits · noise with amplifications over several
decades, sizes = values · bits / 8 + overhead with log-normal numbers of values. Every solver gets the same instances,
one thread and the same time limit. Gaps are relative to the bound that `solve` proves; solutions that exceed the budget
(float solvers have tolerances) are counted, not hidden.

    python tools/bench_allocate.py --seeds 5 --limit 10
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from tqs_onnx.allocation.solver.knapsack import Problem, solve

SHAPES = ((89, 5), (1000, 10), (10000, 10))
BITS = {5: [2, 4, 8, 16, 32], 10: [1, 2, 3, 4, 6, 8, 10, 12, 16, 32]}


@dataclass(frozen=True, slots=True)
class Run:
    """One solver on one instance: seconds, cost (None: no solution), claimed optimality, bytes over the budget."""

    time_s: float
    cost: float | None
    claims_optimal: bool
    over_bytes: int


def instance(n: int, n_tiers: int, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    bits = np.array(BITS[n_tiers])
    values = np.exp(rng.normal(11, 2, n)).astype(np.int64) + 16
    energy = np.exp(rng.normal(0, 4, n)) * values
    costs = tuple(e * 4.0**-bits * np.exp(rng.normal(0, 0.3, n_tiers)) for e in energy)
    sizes = tuple((v * bits + 7) // 8 + int(rng.integers(40, 200)) for v in values)
    return Problem(costs, sizes, int(4 * values.sum() / rng.uniform(3, 14)))


def ours(problem: Problem, limit_s: float) -> Run:
    start = time.perf_counter()
    solution = solve(problem, time_limit_s=limit_s)
    return Run(time.perf_counter() - start, solution.cost, solution.optimal, 0)


def plain_cp_sat(problem: Problem, limit_s: float) -> Run:
    start = time.perf_counter()
    model = cp_model.CpModel()
    literals, costs, sizes = [], [], []
    scale = 2.0**40 / sum(float(row.max()) for row in problem.costs)
    for cost, size in zip(problem.costs, problem.sizes, strict=True):
        row = [model.new_bool_var("") for _ in cost]
        model.add_exactly_one(row)
        literals += row
        costs += [round(float(c) * scale) for c in cost]
        sizes += size.tolist()
    model.add(cp_model.LinearExpr.weighted_sum(literals, sizes) <= problem.budget)
    model.minimize(cp_model.LinearExpr.weighted_sum(literals, costs))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = limit_s
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Run(time.perf_counter() - start, None, False, 0)
    values = [solver.value(literal) for literal in literals]
    return _run(problem, values, time.perf_counter() - start, status == cp_model.OPTIMAL)


def plain_mip(name: str) -> Callable[[Problem, float], Run]:
    def run(problem: Problem, limit_s: float) -> Run:
        start = time.perf_counter()
        solver = pywraplp.Solver.CreateSolver(name)
        budget = solver.Constraint(-solver.infinity(), float(problem.budget))
        objective = solver.Objective()
        variables = []
        for cost, size in zip(problem.costs, problem.sizes, strict=True):
            one = solver.Constraint(1, 1)
            for c, s in zip(cost, size, strict=True):
                variable = solver.BoolVar("")
                one.SetCoefficient(variable, 1)
                budget.SetCoefficient(variable, float(s))
                objective.SetCoefficient(variable, float(c))
                variables.append(variable)
        objective.SetMinimization()
        solver.SetNumThreads(1)
        solver.SetTimeLimit(int(limit_s * 1000))
        status = solver.Solve()
        time_s = time.perf_counter() - start
        if status not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
            return Run(time_s, None, False, 0)
        values = [variable.solution_value() for variable in variables]
        return _run(problem, values, time_s, status == pywraplp.Solver.OPTIMAL)

    return run


def _run(problem: Problem, values: list[float], time_s: float, claims_optimal: bool) -> Run:
    ends = np.cumsum([row.size for row in problem.costs])[:-1]
    rows: list[NDArray[np.float64]] = np.split(np.array(values), ends)
    choice = np.array([int(np.argmax(row)) for row in rows], dtype=np.int64)
    over = max(0, problem.size_of(choice) - problem.budget)
    return Run(time_s, problem.cost_of(choice), claims_optimal, over)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the output that the C++ solvers write directly to the process's stdout."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        for target, original in zip((1, 2), kept, strict=True):
            os.dup2(original, target)
            os.close(original)
        os.close(sink)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the knapsack beside plain solvers.")
    parser.add_argument("--seeds", type=int, default=5, help="instances of each shape")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds each solver has for an instance")
    parser.add_argument("--only", action="store_true", help="leave out the plain solvers")
    arguments = parser.parse_args()

    solvers: dict[str, Callable[[Problem, float], Run]] = {"tqs-onnx": ours}
    if not arguments.only:
        solvers |= {"cp-sat": plain_cp_sat, "scip": plain_mip("SCIP"), "highs": plain_mip("HIGHS")}
    solve(instance(10, 5, 0))  # imports OR-tools
    print(f"median (worst) of {arguments.seeds} instances, {arguments.limit:g} s at most")
    print(
        f"{'items':>6} {'tiers':>5} {'solver':<9} {'time ms':>17} {'gap':>19} {'optimal':>8} {'over budget':>11}"
    )
    for n, n_tiers in SHAPES:
        problems = [instance(n, n_tiers, seed) for seed in range(arguments.seeds)]
        bounds = [solve(problem).bound for problem in problems]
        for name, solver in solvers.items():
            with _quiet():
                runs = [solver(problem, arguments.limit) for problem in problems]
            pairs = list(zip(runs, bounds, strict=True))
            gaps = [(r.cost - b) / abs(b) if r.cost is not None else float("inf") for r, b in pairs]
            times = [1000 * r.time_s for r in runs]
            optimal = sum(r.claims_optimal for r in runs)
            over = sum(r.over_bytes > 0 for r in runs)
            print(
                f"{n:>6} {n_tiers:>5} {name:<9} {statistics.median(times):>8.1f} ({max(times):>6.0f}) "
                f"{statistics.median(gaps):>9.1e} ({max(gaps):>7.1e}) {optimal:>4} of {len(runs):<2} {over:>6}"
            )


if __name__ == "__main__":
    main()
