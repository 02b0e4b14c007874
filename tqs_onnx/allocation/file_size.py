"""How large a file becomes: exact bytes of chosen candidates, the tables they share, and the smallest file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from tqs_onnx.allocation.choice import Bundle, flat
from tqs_passes.errors import InfeasibleError
from tqs_passes.files.wire import field_size
from tqs_passes.grids.grid import Grid
from tqs_passes.grids.row_tiers import part_grid
from tqs_passes.plan.candidates import Candidate

#: Kind of all row tiers.
ROWS = "rows"


@dataclass(frozen=True, slots=True)
class FileSize:
    """What a plan's file is made of besides the planned weights.

    Parameters
    ----------
    source_bytes : int
        Bytes of the input file, external data included.
    skeleton_bytes, skeleton_graph_bytes : int
        Serialized bytes of the model without its weights, and of its graph alone.
    """

    source_bytes: int
    skeleton_bytes: int
    skeleton_graph_bytes: int

    def of(self, added: int) -> int:
        """Return the bytes of the file whose graph holds `added` more bytes."""
        outside = self.skeleton_bytes - field_size(self.skeleton_graph_bytes)
        return outside + field_size(self.skeleton_graph_bytes + added)


def file_bytes(size: FileSize, chosen: Sequence[Candidate]) -> int:
    """Return the bytes of the file with the chosen candidates, shared tables included."""
    return size.of(sum(c.assignment.n_bytes for c in chosen) + shared_bytes(chosen))


def shared_bytes(chosen: Sequence[Candidate]) -> int:
    """Return the bytes of the tables and shapes that the chosen candidates share."""
    pieces: dict[str, int] = {}
    for candidate in chosen:
        pieces.update(candidate.shared)
    return sum(pieces.values())


def smallest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of fewest bytes."""
    return min(candidates, key=lambda c: c.assignment.n_bytes)


def require_feasible(size: FileSize, offers: Sequence[Sequence[Bundle]], max_bytes: int) -> None:
    """Refuse a budget below the smallest file.

    Parameters
    ----------
    size : FileSize
    offers : sequence of sequence of Bundle
        What each weight or tie group may be stored as.
    max_bytes : int

    Raises
    ------
    InfeasibleError
        It carries the smallest size, which is feasible.
    """
    smallest, _ = smallest_file(size, offers)
    if smallest > max_bytes:
        ratio = size.source_bytes / smallest
        raise InfeasibleError(
            f"the byte budget cannot be met: the smallest file is {smallest} bytes ({ratio:.2f} times smaller)",
            smallest_bytes=smallest,
            todo="Ask for less compression, or allow lower tiers",
        )


def smallest_file(size: FileSize, offers: Sequence[Sequence[Bundle]]) -> tuple[int, frozenset[str]]:
    """Return the bytes of the smallest file found, and the kinds of codes it uses.

    The smallest choice of each weight is not the smallest file where tables outweigh what they save, so kinds are
    dropped and added one at a time while that helps.
    """
    every = frozenset(kind for offer in offers for b in offer for kind in kinds_of(b))

    def n_bytes(kinds: frozenset[str]) -> int:
        return file_bytes(size, flat(least_of(of_kinds(offer, kinds)) for offer in offers))

    best = min(kind_starts(every), key=n_bytes)
    while True:
        nearest = min((best ^ {kind} for kind in sorted(every)), key=n_bytes, default=best)
        if n_bytes(nearest) >= n_bytes(best):
            return n_bytes(best), best
        best = nearest


def kind_starts(every: frozenset[str]) -> list[frozenset[str]]:
    """Return where a search over kinds of codes starts: all, none, and each alone."""
    return [every, frozenset[str](), *(frozenset({kind}) for kind in sorted(every))]


def of_kinds(offer: Sequence[Bundle], kinds: frozenset[str]) -> list[Bundle]:
    """Return what shares no table, or those of these kinds only; all of `offer` where it has no such choice."""
    return [b for b in offer if kinds.issuperset(kinds_of(b))] or list(offer)


def least_of(offer: Sequence[Bundle]) -> Bundle:
    """Return the choice of fewest bytes."""
    return min(offer, key=lambda b: b.n_bytes)


def kinds_of(bundle: Bundle) -> frozenset[str]:
    """Return the kinds of a choice's codes that share tables: width and grid decide which.

    Row tiers are of the kinds of their parts, and of one more.
    """
    shared = (c.assignment for c in bundle.candidates if c.shared)
    return frozenset(kind for a in shared if a.grid is not None for kind in _kinds(a.widths, a.grid))


@functools.lru_cache
def _kinds(widths: tuple[int, ...], grid: Grid) -> frozenset[str]:
    each = {f"{bits} {part_grid(grid, bits)}" for bits in widths}
    return frozenset(each | {ROWS} if len(widths) > 1 else each)
