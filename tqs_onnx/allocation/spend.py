"""Spend a byte budget on candidates that share look-up tables.

The knapsack ignores that choices share tables, so the bytes of the tables are reserved. In small files, where
they matter, the allocator also searches over the kinds of codes that a file may use.
"""

from __future__ import annotations

from dataclasses import dataclass

from tqs_onnx.allocation.choice import Bundle, flat
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.file_size import (
    ROWS,
    file_bytes,
    kind_starts,
    kinds_of,
    least_of,
    shared_bytes,
    smallest_file,
)
from tqs_onnx.allocation.offers import Entry, limited
from tqs_onnx.allocation.solver.algorithm2 import Allocation, allocate

#: Above this size tables are at most a few percent of the file, and the search would take seconds (0.1 s a solve).
_TABLES_MATTER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Spent:
    """One allocation, the choice of each entry, and the bytes of its file."""

    entries: list[Entry]
    allocation: Allocation
    choices: list[int]
    file_bytes: int

    @property
    def chosen(self) -> list[Bundle]:
        """The choice of each entry."""
        return [e.bundles[k] for e, k in zip(self.entries, self.choices, strict=True)]


def searched(request: Request, entries: list[Entry], options: PlanOptions, max_bytes: int) -> Spent:
    """Return the best allocation over the kinds of codes, (width, grid) and row tiers, that the file may use.

    The knapsack ignores that choices share tables. A kind takes a few hundred bytes, which matters in small
    models. Their knapsacks are quick, so kinds are dropped and added one at a time while this helps. A file without row
    tiers is always tried as well, so offering them never makes the result worse.
    """
    needed = [[kinds_of(b) for b in e.bundles] for e in entries]
    every = frozenset(kind for row in needed for kinds in row for kind in kinds)
    _, least = smallest_file(request.size, [e.bundles for e in entries])
    search = options.solver == "mckp" and max_bytes <= _TABLES_MATTER_BYTES
    whole = [every, every - {ROWS}]
    queue = [*whole, least, *kind_starts(every)] if search else [*whole, least]
    tried: set[frozenset[str]] = set()
    found: Spent | None = None
    while queue:
        kinds = queue.pop(0)
        if kinds in tried or (found is not None and not search and kinds not in whole):
            continue
        tried.add(kinds)
        allowed = [
            [b for b, needs in zip(e.bundles, row, strict=True) if needs <= kinds] or list(e.bundles)
            for e, row in zip(entries, needed, strict=True)
        ]
        offers = [limited(e, bundles) for e, bundles in zip(entries, allowed, strict=True)]
        again = _spent(request, offers, options, max_bytes)
        if again is not None and (found is None or again.allocation.cost < found.allocation.cost):
            found = again
            used = frozenset(kind for b in found.chosen for kind in kinds_of(b))
            queue = [used, *(used ^ {kind} for kind in sorted(every)), *queue] if search else queue
    if found is None:
        raise AssertionError("unreachable: the smallest file fits")
    return found


def _try(request: Request, entries: list[Entry], budget: int, options: PlanOptions) -> Spent:
    allocation = allocate(
        [e.item for e in entries],
        budget,
        p_fp32=options.protected_share,
        gamma_min=options.gamma_min,
        solver=options.solver,
    )
    choices = [allocation.choices[entry.item.name] for entry in entries]
    chosen = flat(e.bundles[k] for e, k in zip(entries, choices, strict=True))
    return Spent(entries, allocation, choices, file_bytes(request.size, chosen))


def _spent(request: Request, entries: list[Entry], options: PlanOptions, max_bytes: int) -> Spent | None:
    """Return an allocation whose file fits; None when there is none."""
    if file_bytes(request.size, flat(least_of(e.bundles) for e in entries)) > max_bytes:
        return None
    net = max_bytes - request.size.of(0)
    most = net - sum(least_of(e.bundles).n_bytes for e in entries)
    reserved = 0
    while True:
        # The shared tables are known only after the choice: reserve their bytes and choose again. When all spare bytes
        # are reserved, only the smallest choices remain, and those fit.
        found = _try(request, entries, net - reserved, options)
        if found.file_bytes <= max_bytes or reserved == most:
            break
        reserved = min(reserved + found.file_bytes - max_bytes, most)
    tables = frozenset(key for b in found.chosen for key in b.shared)
    paid = [limited(e, [b for b in e.bundles if tables.issuperset(b.shared)]) for e in entries]
    again = _try(request, paid, max_bytes - request.size.of(shared_bytes(flat(found.chosen))), options)
    better = again.file_bytes <= max_bytes and again.allocation.cost < found.allocation.cost
    return again if better else found
