"""Spend a budget of time beside the budget of bytes (`tqs_onnx.allocation.solver.two_resources`).

The bytes of the tables that choices share are known only after the choice: they are reserved, and the problem is solved
again while the file exceeds its budget. Times are integers, in billionths of the time of one FP32 call, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocation.choice import flat
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.file_size import file_bytes
from tqs_onnx.allocation.offers import Entry
from tqs_onnx.allocation.solver.problem import Problem
from tqs_onnx.allocation.solver.two_resources import solve_both
from tqs_onnx.allocation.spend import Spent, searched
from tqs_onnx.allocation.times import TimeTable
from tqs_passes.errors import InfeasibleError, InputError
from tqs_passes.plan.plan import Assignment

_UNIT = 1e-9
_MOST_RESERVES = 20


def within_budgets(request: Request, entries: list[Entry], options: PlanOptions, max_bytes: int) -> Spent:
    """Return the best allocation within the budget of bytes and, if `options.speedup` is set, that of time.

    Raises
    ------
    InputError
        A speedup is asked for, but no times are given.
    InfeasibleError
        No choice of forms is that fast within the bytes.
    """
    free = searched(request, entries, options, max_bytes)
    if options.speedup is None:
        return free
    if request.times is None:
        raise InputError(
            "a `speedup` needs measured times",
            todo="Give the contexts, so that they can be measured",
        )
    chosen = [c.assignment for c in flat(free.chosen)]
    if predicted_time(chosen, request.times) <= 1 / options.speedup:
        return free
    times = [_times(e, request.times) for e in entries]
    limit = math.floor((1 / options.speedup - request.times.base) / _UNIT)
    fastest = request.times.base + _UNIT * sum(int(row.min()) for row in times)
    if sum(int(row.min()) for row in times) > limit:
        raise InfeasibleError(
            f"no file is {options.speedup:g} times faster than FP32: the fastest forms of all weights are predicted to "
            f"take {fastest:.4g} of its time, and together took {request.times.checked:.4g}",
            smallest_bytes=max_bytes,
            todo="Ask for a smaller `speedup`",
        )
    return _solved(request, entries, times, limit, free, max_bytes)


def predicted_time(assignments: Sequence[Assignment], times: TimeTable) -> float:
    """Return the predicted time of one call of a file, as a share of that of FP32."""
    return times.base + math.fsum(times.ratio_of(a) for a in assignments)


def _times(entry: Entry, times: TimeTable) -> NDArray[np.int64]:
    shares = [sum(times.ratio_of(c.assignment) for c in b.candidates) for b in entry.bundles]
    return np.ceil(np.array(shares) / _UNIT).astype(np.int64)


def _solved(
    request: Request,
    entries: list[Entry],
    times: list[NDArray[np.int64]],
    limit: int,
    free: Spent,
    max_bytes: int,
) -> Spent:
    costs = tuple(np.array(e.item.costs) for e in entries)
    sizes = tuple(np.array(e.item.sizes, np.int64) for e in entries)
    net = max_bytes - request.size.of(0)
    reserved = 0
    for _ in range(_MOST_RESERVES):
        solution = solve_both(Problem(costs, sizes, net - reserved), times, limit)
        choices = solution.choice.tolist()
        chosen = [e.bundles[k] for e, k in zip(entries, choices, strict=True)]
        n_bytes = file_bytes(request.size, flat(chosen))
        if n_bytes <= max_bytes:
            break
        reserved += n_bytes - max_bytes
    else:
        raise InfeasibleError(
            "no file that fast was found within these bytes",
            smallest_bytes=max_bytes,
            todo="Ask for less compression",
        )
    allocation = replace(
        free.allocation,
        choices={e.item.name: k for e, k in zip(entries, choices, strict=True)},
        cost=solution.cost,
        solution=solution,
        fp32_protected=(),
        warnings=()
        if solution.optimal
        else (f"not proven to be the cheapest: gap {solution.gap:.2g}, {solution.solver}",),
        used_bytes=solution.size,
        saturated=False,
    )
    return Spent(entries, allocation, choices, n_bytes)
