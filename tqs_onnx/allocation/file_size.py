"""Compute the size of a file: exact bytes of the chosen candidates, their shared tables, and the smallest file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from tqs_onnx.allocation.choice import Bundle
from tqs_passes.errors import InfeasibleError
from tqs_passes.files.wire import field_size
from tqs_passes.grids.grid import Grid
from tqs_passes.grids.row_tiers import part_grid
from tqs_passes.plan.candidates import Candidate

#: The kind of all row tiers.
ROWS = "rows"
#: Most weights that a message names.
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class FileSize:
    """Bytes of a plan's file besides the planned weights.

    Parameters
    ----------
    source_bytes : int
        Bytes of the input file, external data included.
    skeleton_bytes, skeleton_graph_bytes : int
        Serialized bytes of the model without its weights, and of its graph alone.
    constant_bytes, name_bytes : int
        Of the skeleton: stored values that are no weights, and names.
    """

    source_bytes: int
    skeleton_bytes: int
    skeleton_graph_bytes: int
    constant_bytes: int = 0
    name_bytes: int = 0

    def of(self, added: int) -> int:
        """Return the bytes of the file when its graph holds `added` more bytes."""
        outside = self.skeleton_bytes - field_size(self.skeleton_graph_bytes)
        return outside + field_size(self.skeleton_graph_bytes + added)


def file_bytes(size: FileSize, chosen: Sequence[Candidate]) -> int:
    """Return the bytes of the file with the chosen candidates, including shared tables."""
    return size.of(sum(c.assignment.n_bytes for c in chosen) + shared_bytes(chosen))


def shared_bytes(chosen: Sequence[Candidate]) -> int:
    """Return the bytes of the tables and shapes that the chosen candidates share."""
    pieces: dict[str, int] = {}
    for candidate in chosen:
        pieces.update(candidate.shared)
    return sum(pieces.values())


def smallest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the fewest bytes."""
    return min(candidates, key=lambda c: c.assignment.n_bytes)


def require_feasible(
    size: FileSize, offers: Sequence[Sequence[Bundle]], max_bytes: int, unseen: Sequence[str] = ()
) -> None:
    """Refuse a budget below the smallest file.

    Parameters
    ----------
    size : FileSize
    offers : sequence of sequence of Bundle
        Choices of each weight or tie group.
    max_bytes : int
    unseen : sequence of str
        Labels of the weights that keep 8 bits because no context ran them; the error names them.

    Raises
    ------
    InfeasibleError
        The smallest file is larger than the budget; the error carries its size, which is feasible.
    """
    smallest, _ = smallest_file(size, offers)
    if smallest > max_bytes:
        ratio = size.source_bytes / smallest
        what = f"the byte budget cannot be met: the smallest file is {smallest} bytes ({ratio:.2f} times smaller)"
        what += f", {_parts(size, smallest)}"
        todo = f"Ask for less compression{_help(size, smallest)}"
        if unseen:
            what += f"; kept at 8 bits, because no context ran them: {_shown(unseen)}"
            todo = "Ask for less compression, or give `contexts` that run them, or `pin` them to a lower tier"
        raise InfeasibleError(what, smallest_bytes=smallest, todo=todo)


def _parts(size: FileSize, smallest: int) -> str:
    """Return what the bytes of the smallest file are for."""
    graph = size.skeleton_bytes - size.constant_bytes - size.name_bytes
    rest = f"{size.constant_bytes} of other constants, {size.name_bytes} of names, {graph} of the graph"
    return f"of which {smallest - size.skeleton_bytes} are weights with their scales and tables, {rest}"


def _help(size: FileSize, smallest: int) -> str:
    """Return what would make the file smaller than its smallest: what most of its bytes are for."""
    graph = size.skeleton_bytes - size.constant_bytes - size.name_bytes
    shares = {
        ", or allow lower tiers": smallest - size.skeleton_bytes,
        ", or shorten the constants at export": size.constant_bytes,
        ", or set `names` to short": size.name_bytes,
        ", or simplify the graph at export": graph,
    }
    return max(shares, key=lambda text: shares[text])


def _shown(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    return ", ".join(repr(label) for label in labels[:_MOST_NAMED]) + more


def smallest_file(size: FileSize, offers: Sequence[Sequence[Bundle]]) -> tuple[int, frozenset[str]]:
    """Return the bytes of the smallest file found, and the kinds of codes that it uses.

    The smallest choice of every weight does not give the smallest file when tables need more bytes than they save.
    Kinds are therefore dropped and added one at a time while this helps.
    """
    shortlists = [_shortlist(offer) for offer in offers]
    every = frozenset(kind for shortlist in shortlists for kinds, _ in shortlist for kind in kinds)
    free = [_Piece(b.n_bytes, b.shared) for b in (least_of(offer) for offer in offers)]

    @functools.cache
    def n_bytes(kinds: frozenset[str]) -> int:
        added, shared = 0, dict[str, int]()
        for shortlist, least in zip(shortlists, free, strict=True):
            piece = next((piece for needed, piece in shortlist if needed <= kinds), least)
            added += piece.n_bytes
            shared |= piece.shared
        return size.of(added + sum(shared.values()))

    best = min(kind_starts(every), key=n_bytes)
    while True:
        nearest = min((best ^ {kind} for kind in sorted(every)), key=n_bytes, default=best)
        if n_bytes(nearest) >= n_bytes(best):
            return n_bytes(best), best
        best = nearest


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """What a choice adds to the file: bytes of its own, and shared tables."""

    n_bytes: int
    shared: dict[str, int]


def _shortlist(offer: Sequence[Bundle]) -> list[tuple[frozenset[str], _Piece]]:
    """Return the smallest choice for each set of kinds that an offer needs, smallest first.

    The first whose kinds are allowed is the smallest allowed choice; of equal sizes the one that is offered first.
    """
    found: dict[frozenset[str], tuple[int, int, Bundle]] = {}
    for index, bundle in enumerate(offer):
        kinds, entry = kinds_of(bundle), (bundle.n_bytes, index, bundle)
        if kinds not in found or entry[:2] < found[kinds][:2]:
            found[kinds] = entry
    ordered = sorted(found.items(), key=lambda item: item[1][:2])
    return [(kinds, _Piece(n_bytes, bundle.shared)) for kinds, (n_bytes, _, bundle) in ordered]


def kind_starts(every: frozenset[str]) -> list[frozenset[str]]:
    """Return the starting points of a search over kinds of codes: all, none, and each one alone."""
    return [every, frozenset[str](), *(frozenset({kind}) for kind in sorted(every))]


def least_of(offer: Sequence[Bundle]) -> Bundle:
    """Return the choice with the fewest bytes."""
    return min(offer, key=lambda b: b.n_bytes)


def kinds_of(bundle: Bundle) -> frozenset[str]:
    """Return the kinds of a choice's codes that share tables; width and grid determine the tables.

    Row tiers have the kinds of their parts and one additional kind.
    """
    shared = (c.assignment for c in bundle.candidates if c.shared)
    return frozenset(kind for a in shared if a.grid is not None for kind in _kinds(a.widths, a.grid))


@functools.lru_cache
def _kinds(widths: tuple[int, ...], grid: Grid) -> frozenset[str]:
    each = {f"{bits} {part_grid(grid, bits)}" for bits in widths}
    return frozenset(each | {ROWS} if len(widths) > 1 else each)
