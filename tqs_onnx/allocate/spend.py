"""Spend a byte budget on candidates that share look-up tables.

The knapsack does not see that choices share tables: their bytes are reserved, and where they matter, in small files,
the kinds of codes a file may use are searched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tqs_onnx.allocate.allocate import Allocation, allocate
from tqs_onnx.allocate.costing import Entry, PlanOptions, Request
from tqs_onnx.allocate.file_size import (
    file_bytes,
    is_of_kinds,
    kind_of,
    kind_starts,
    shared_bytes,
    smallest,
    smallest_file,
)
from tqs_passes.candidates import Candidate

#: Above this size tables are a few percent of the file at most, and the search would take seconds (0.1 s a solve).
_TABLES_MATTER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Found:
    """One allocation, and the bytes of its file."""

    entries: list[Entry]
    allocation: Allocation
    chosen: list[Candidate]
    file_bytes: int


def searched(request: Request, entries: list[Entry], options: PlanOptions, max_bytes: int) -> Found:
    """Return the best allocation over which kinds of codes, (tier, grid), the file may use.

    The knapsack does not see that choices share tables. They take a few hundred bytes a kind: they decide in small
    models, whose knapsacks are quick, so there kinds are dropped and added one at a time while that helps.
    """
    every = frozenset(kind_of(c) for e in entries for c in e.candidates if c.shared)
    _, least = smallest_file(request.size, [e.candidates for e in entries])
    search = options.solver == "mckp" and max_bytes <= _TABLES_MATTER_BYTES
    queue = [every, least, *kind_starts(every)] if search else [every, least]
    tried: set[frozenset[str]] = set()
    found: Found | None = None
    while queue:
        kinds = queue.pop(0)
        if kinds in tried or (found is not None and not search):
            continue
        tried.add(kinds)
        again = _spent(request, [_of_kinds(e, kinds) for e in entries], options, max_bytes)
        if again is not None and (found is None or again.allocation.cost < found.allocation.cost):
            found = again
            used = frozenset(kind_of(c) for c in found.chosen if c.shared)
            queue = [used, *(used ^ {kind} for kind in sorted(every)), *queue] if search else []
    if found is None:
        raise AssertionError("unreachable: the smallest file fits")
    return found


def _try(request: Request, entries: list[Entry], budget: int, options: PlanOptions) -> Found:
    allocation = allocate(
        [e.item for e in entries],
        budget,
        p_fp32=options.protected_share,
        gamma_min=options.gamma_min,
        solver=options.solver,
    )
    chosen = [entry.candidates[allocation.choices[entry.menu.weight.name]] for entry in entries]
    return Found(entries, allocation, chosen, file_bytes(request.size, chosen))


def _of_kinds(entry: Entry, kinds: frozenset[str]) -> Entry:
    return _limited(entry, lambda c: is_of_kinds(c, kinds))


def _spent(request: Request, entries: list[Entry], options: PlanOptions, max_bytes: int) -> Found | None:
    """Return an allocation whose file fits, None where there is none."""
    if file_bytes(request.size, [smallest(e.candidates) for e in entries]) > max_bytes:
        return None
    net = max_bytes - request.size.of(0)
    most = net - sum(smallest(e.candidates).assignment.n_bytes for e in entries)
    reserved = 0
    while True:
        # The tables that the choices share are known only when they are made: reserve their bytes, choose again.
        # With all that is spare reserved, the smallest choices are left, and those fit.
        found = _try(request, entries, net - reserved, options)
        if found.file_bytes <= max_bytes or reserved == most:
            break
        reserved = min(reserved + found.file_bytes - max_bytes, most)
    tables = frozenset(key for c in found.chosen for key in c.shared)
    paid = [_limited(entry, lambda c: tables.issuperset(c.shared)) for entry in entries]
    again = _try(request, paid, max_bytes - request.size.of(shared_bytes(found.chosen)), options)
    better = again.file_bytes <= max_bytes and again.allocation.cost < found.allocation.cost
    return again if better else found


def _limited(entry: Entry, offered: Callable[[Candidate], bool]) -> Entry:
    kept = [i for i, c in enumerate(entry.candidates) if offered(c)]
    item = replace(
        entry.item,
        sizes=tuple(entry.item.sizes[i] for i in kept),
        tiers=tuple(entry.item.tiers[i] for i in kept),
        costs=tuple(entry.item.costs[i] for i in kept),
    )
    return Entry(entry.menu, tuple(entry.candidates[i] for i in kept), item)
