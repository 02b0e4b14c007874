"""One choice of the knapsack: a way to store one weight, or the weights of a tie group, which share a tier.

A tie group is offered every tier that one of its members is offered. A member without that tier (a short vector that
is smaller unchanged than with a scale) takes its next finer tier, or its coarsest. Where members have several
candidates in a tier (grids, channel axes), the tier gives two choices: least error, and fewest bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tqs_passes.plan.candidates import Candidate
from tqs_passes.plan.plan import Assignment
from tqs_passes.tier import Tier

#: Fields of an assignment that do not describe how the weight is stored.
_FOUND = frozenset(
    {
        *("label", "block", "rounding", "n_bytes"),
        *("error_energy", "gamma", "amplification", "cost", "dead", "unseen"),
    }
)
_STORED = tuple(sorted(Assignment.model_fields.keys() - _FOUND))


@dataclass(frozen=True)  # no slots: what is derived is kept, because every solve asks for it again
class Bundle:
    """One choice: a candidate for each member of a weight or tie group.

    Parameters
    ----------
    candidates : tuple of Candidate
        One candidate per member.
    tier : Tier
        Tier of the choice; members without it may be finer.
    """

    candidates: tuple[Candidate, ...]
    tier: Tier

    @cached_property
    def n_bytes(self) -> int:
        """Bytes added to the file, without shared tables."""
        return sum(c.assignment.n_bytes for c in self.candidates)

    @cached_property
    def error_energy(self) -> float:
        """Σ ‖Q(θ) − θ‖² of the members."""
        return sum(c.assignment.error_energy for c in self.candidates)

    @cached_property
    def shared(self) -> dict[str, int]:
        """Bytes of the tables and shapes that it shares with others, by key."""
        return {key: size for c in self.candidates for key, size in c.shared.items()}

    @cached_property
    def key(self) -> str:
        """Digest of how its members are stored, independent of costs and bytes: the key of its response."""
        return storage_key(c.assignment for c in self.candidates)


def storage_key(assignments: Iterable[Assignment]) -> str:
    """Return the digest of how weights are stored together (see `Bundle.key`)."""
    # Ranges came later: without them the key is what it was.
    rows = sorted(
        repr([(name, str(getattr(a, name))) for name in _STORED if name != "ranges" or a.ranges])
        for a in assignments
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def singles(candidates: Iterable[Candidate]) -> tuple[Bundle, ...]:
    """Return the choices of one weight."""
    return tuple(Bundle((c,), c.assignment.tier) for c in candidates)


def tied(offers: Sequence[Sequence[Candidate]]) -> tuple[Bundle, ...]:
    """Return the choices of a tie group, finest first.

    Parameters
    ----------
    offers : sequence of sequence of Candidate
        Candidates of each member.
    """
    tiers = {c.assignment.tier for offer in offers for c in offer}
    found: list[Bundle] = []
    for tier in sorted(tiers, key=list(Tier).index):
        ways = [_in_tier(offer, tier) for offer in offers]
        best = tuple(min(w, key=lambda c: (c.assignment.error_energy, c.assignment.n_bytes)) for w in ways)
        least = tuple(min(w, key=lambda c: (c.assignment.n_bytes, c.assignment.error_energy)) for w in ways)
        found.append(Bundle(best, tier))
        if least != best:
            found.append(Bundle(least, tier))
    return tuple(found)


def _in_tier(offer: Sequence[Candidate], tier: Tier) -> list[Candidate]:
    """Return the candidates of a member in a tier, else in its next finer tier, else in its coarsest."""
    order = list(Tier)
    held = sorted({c.assignment.tier for c in offer}, key=order.index)
    finer = [t for t in held if order.index(t) <= order.index(tier)]
    own = finer[-1] if finer else held[0]
    return [c for c in offer if c.assignment.tier is own]


def flat(bundles: Iterable[Bundle]) -> list[Candidate]:
    """Return the candidates of all bundles, in order."""
    return [c for bundle in bundles for c in bundle.candidates]
