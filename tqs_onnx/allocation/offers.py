"""Build the items of the knapsack: the choices of every weight or tie group, and the cost of each choice.

Weights scored as a block form a tie group, as in the paper's Pangu runs; so do weights tied by a pattern. A block that
was perturbed as a whole has its own amplification, applied to the error energy of all its members; in other groups each
member is charged separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocation.choice import Bundle, singles, tied
from tqs_onnx.allocation.costing import IDLE, PlanOptions, Request, activation_cost, amplification, gamma_of
from tqs_onnx.allocation.objective import Objective, costs
from tqs_onnx.allocation.responses import expected, finite_choices
from tqs_onnx.allocation.solver.algorithm2 import Item
from tqs_onnx.allocation.ties import tie_groups
from tqs_onnx.scoring.scores import Scores, Status, WeightScore
from tqs_passes.encode.weight import ROUNDED, Form
from tqs_passes.errors import InputError
from tqs_passes.plan.candidates import Candidate, Menu

#: Off-trajectory and unseen weights keep at least this many bits: no measurement shows that they may have fewer.
UNMEASURED_BITS = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A weight or tie group, its choices, and the knapsack item made of them.

    Parameters
    ----------
    menus : tuple of Menu
        Menus of its members.
    block : str
        Name of the tie group; empty for a single weight.
    bundles : tuple of Bundle
        The choices.
    amplifications : tuple of tuple of float
        Per choice, A of each member; A times its error energy is its predicted effect on a trajectory.
    item : Item
    """

    menus: tuple[Menu, ...]
    block: str
    bundles: tuple[Bundle, ...]
    amplifications: tuple[tuple[float, ...], ...]
    item: Item


@dataclass(frozen=True, slots=True)
class _Unit:
    """An entry before anything was measured for the objective `measured`.

    Parameters
    ----------
    menus : tuple of Menu
    scores : tuple of WeightScore
    block : str
    gamma : float
        The largest γ of its members.
    bundles : tuple of Bundle
    amplifications : list of tuple of float
        See `Entry`.
    activations : float64 array [choice]
        Cost of the inputs that each choice rounds.
    """

    menus: tuple[Menu, ...]
    scores: tuple[WeightScore, ...]
    block: str
    gamma: float
    bundles: tuple[Bundle, ...]
    amplifications: list[tuple[float, ...]]
    activations: NDArray[np.float64]

    @property
    def guesses(self) -> list[float]:
        """Predicted ‖ΔY‖² of each choice."""
        rows = zip(self.amplifications, self.bundles, self.activations, strict=True)
        return [_total(a, b) + float(extra) for a, b, extra in rows]

    def only(self, kept: Sequence[int]) -> _Unit:
        """Return the unit with these choices only."""
        if len(kept) == len(self.bundles):
            return self
        return replace(
            self,
            bundles=tuple(self.bundles[i] for i in kept),
            amplifications=[self.amplifications[i] for i in kept],
            activations=self.activations[list(kept)],
        )

    def answering(self, guesses: Sequence[float], energies: Sequence[float]) -> _Unit:
        """Return the unit with amplifications that give each choice the energy expected in place of its guess."""
        rows = zip(self.amplifications, self.bundles, guesses, energies, self.activations, strict=True)
        raised = [_raised(a, b, was - extra, max(now - extra, 0.0)) for a, b, was, now, extra in rows]
        return replace(self, amplifications=raised)


def entries_of(request: Request, options: PlanOptions) -> list[Entry]:
    """Return the choices of every weight or tie group and their costs, by first member in menu order.

    Raises
    ------
    InputError
        A pattern ties nothing, ties overlap, or a rule lowers a weight that must stay unchanged.
    """
    units = _units_of(request, options)
    if options.aim is Objective.MEASURED:
        units = [u.only(finite_choices(u.bundles, request.responses)) for u in units]
        guesses = [u.guesses for u in units]
        energies = expected([u.bundles for u in units], guesses, request.responses)
        units = [u.answering(*rows) for u, *rows in zip(units, guesses, energies, strict=True)]
    table = costs(
        options.aim,
        amplification=[
            np.array(
                [
                    _total(a, b) / b.error_energy if b.error_energy else 0.0
                    for a, b in zip(u.amplifications, u.bundles, strict=True)
                ]
            )
            for u in units
        ],
        gamma=np.array([u.gamma for u in units]),
        error_energy=[np.array([b.error_energy for b in u.bundles]) for u in units],
        bits=[np.array([float(b.tier.bits) for b in u.bundles]) for u in units],
    )
    return [
        Entry(u.menus, u.block, u.bundles, tuple(u.amplifications), _item(u, row + u.activations, options))
        for u, row in zip(units, table, strict=True)
    ]


def _units_of(request: Request, options: PlanOptions) -> list[_Unit]:
    """Return the units of a request; made once for these menus, scores and options."""
    key = (id(request.menus), id(request.scores), options)
    if key not in request.priced:  # the menus and scores are kept with it, so that their ids stay theirs
        request.priced[key] = _Priced(request.menus, request.scores, _new_units(request, options))
    found = request.priced[key]
    assert isinstance(found, _Priced)
    return found.units


@dataclass(frozen=True, slots=True)
class _Priced:
    menus: tuple[Menu, ...]
    scores: Scores
    units: list[_Unit]


def _new_units(request: Request, options: PlanOptions) -> list[_Unit]:
    scores = request.scores
    by_name = {s.weight: s for s in scores.weights}
    blocks = {} if options.untie else {s.weight: s.block for s in scores.weights if s.block}
    units: list[_Unit] = []
    menus = _coupled(request.menus, blocks, options.ties)
    for block, members in tie_groups(menus, blocks, options.ties):
        rows = tuple(by_name[m.weight.name] for m in members)
        offers = [
            _measured(m, offered(m, s.status, options, s.unseen), request, options)
            for m, s in zip(members, rows, strict=True)
        ]
        bundles = _tied(offers) if block else singles(offers[0])
        gamma = max(gamma_of(s, scores, options.rank_by) for s in rows)
        amps = [_amplifications(rows, b, scores) for b in bundles]
        units.append(_Unit(members, rows, block, gamma, bundles, amps, _activations(bundles, scores)))
    return units


def _coupled(menus: Sequence[Menu], blocks: dict[str, str], ties: Sequence[str]) -> tuple[Menu, ...]:
    """Tie the two matrices of an LSTM that can be multiplied as integers, by adding them to `blocks`.

    Where one of them belongs to another group, that form is withdrawn from both: the node needs both.
    """
    pairs: dict[str, list[str]] = {}
    for menu in menus:
        dynamic = any(c.assignment.form is Form.DYNAMIC for c in menu.candidates)
        if dynamic and menu.weight.readers[0].op_type == "LSTM":
            pairs.setdefault(menu.weight.readers[0].node, []).append(menu.weight.name)
    tied_elsewhere = {m.weight.name for m in menus if any(m.weight.matches(pattern) for pattern in ties)}
    tied_elsewhere |= blocks.keys()
    apart = {name for pair in pairs.values() if tied_elsewhere.intersection(pair) for name in pair}
    blocks.update({name: node for node, pair in pairs.items() for name in pair if name not in apart})
    return tuple(
        replace(m, candidates=tuple(c for c in m.candidates if c.assignment.form is not Form.DYNAMIC))
        if m.weight.name in apart
        else m
        for m in menus
    )


def _measured(
    menu: Menu, offer: tuple[Candidate, ...], request: Request, options: PlanOptions
) -> tuple[Candidate, ...]:
    """Return an offer without the candidates that round inputs whose response is not known to be finite.

    Only rounded inputs are left where `options.round_inputs` asks for them and they are offered.
    """
    finite = tuple(c for c in offer if math.isfinite(activation_cost(c.assignment, request.scores)))
    if any(menu.weight.matches(pattern) for pattern in options.round_inputs):
        return tuple(c for c in finite if c.assignment.form in ROUNDED) or finite
    return finite


def _tied(offers: Sequence[tuple[Candidate, ...]]) -> tuple[Bundle, ...]:
    """Return the choices of a tie group: all members read as floats, and all that can be with rounded inputs."""
    wide = [_of_one_width(offer) for offer in offers]
    rounded = [tuple(c for c in offer if c.assignment.form in ROUNDED) for offer in wide]
    plain = [tuple(c for c in offer if c.assignment.form not in ROUNDED) for offer in wide]
    if not any(rounded):
        return tied(plain)
    return (*tied(plain), *tied([r or p for r, p in zip(rounded, plain, strict=True)]))


def _activations(bundles: Sequence[Bundle], scores: Scores) -> NDArray[np.float64]:
    """Return the cost of the inputs that each choice rounds."""
    return np.array([sum(activation_cost(c.assignment, scores) for c in b.candidates) for b in bundles])


def limited(entry: Entry, kept: Sequence[Bundle]) -> Entry:
    """Return the entry with only these choices."""
    ids = {id(b) for b in kept}
    left = [i for i, b in enumerate(entry.bundles) if id(b) in ids]
    bundles = tuple(entry.bundles[i] for i in left)
    item = replace(
        entry.item,
        sizes=tuple(entry.item.sizes[i] for i in left),
        tiers=tuple(entry.item.tiers[i] for i in left),
        costs=tuple(entry.item.costs[i] for i in left),
        fp32_choice=_kept_choice(bundles),
    )
    return Entry(entry.menus, entry.block, bundles, tuple(entry.amplifications[i] for i in left), item)


def offers_before_scoring(
    menus: Sequence[Menu], off_trajectory: frozenset[str], options: PlanOptions
) -> list[tuple[Bundle, ...]]:
    """Return the choices of each weight, as far as they are known without scores.

    A budget that is too small for them is too small for any scores, because ties only make files larger.
    """
    off, alive = Status.OFF_TRAJECTORY, Status.ALIVE
    statuses = [off if m.weight.name in off_trajectory else alive for m in menus]
    return [singles(offered(m, status, options)) for m, status in zip(menus, statuses, strict=True)]


def offered(menu: Menu, status: Status, options: PlanOptions, unseen: str = "") -> tuple[Candidate, ...]:
    """Return the candidates that a weight of this status may have; `unseen`: what of it no context ran.

    Raises
    ------
    InputError
        The weight makes the rollout unstable when rounded, but a rule requires rounding.
    """
    candidates = menu.candidates
    if status is Status.UNSTABLE:
        if candidates[0].assignment.form is not Form.KEEP:
            raise InputError(
                f"weight {menu.weight.label!r} makes the rollout NaN or infinite when it is rounded",
                todo="Do not `pin` it to a lower tier, and do not `forbid` its own tier",
            )
        return candidates[:1]
    if unseen or (status is Status.OFF_TRAJECTORY and not options.drop_outputs):
        candidates = unmeasured(candidates)
    if options.aim not in (Objective.ENERGY, Objective.MEASURED):
        candidates = tuple(c for c in candidates if c.assignment.form not in ROUNDED)
    if options.aim in (Objective.PAPER, Objective.PAPER_LITERAL):
        # These objectives see only a tier's bits: offer only the best grid of each tier, or the worst would be chosen;
        # and no row tiers, whose bits match no tier.
        best: dict[str, Candidate] = {}
        for c in _of_one_width(candidates):
            held = best.get(c.assignment.tier)
            if held is None or c.assignment.error_energy < held.assignment.error_energy:
                best[c.assignment.tier] = c
        candidates = tuple(best.values())
    return candidates


def unmeasured(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Return the candidates of a weight of which nothing was measured; all if it is pinned to a lower tier."""
    fine = tuple(
        c
        for c in candidates
        if c.assignment.least_bits >= UNMEASURED_BITS and c.assignment.form not in ROUNDED
    )
    return fine or candidates


def _of_one_width(offer: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return an offer without row tiers: a tier that is named or shared has one width."""
    return tuple(c for c in offer if not c.assignment.rows)


def _amplifications(members: Sequence[WeightScore], bundle: Bundle, scores: Scores) -> tuple[float, ...]:
    """Return A of each member in a choice."""
    energies = [c.assignment.error_energy for c in bundle.candidates]
    moved = [s for s in members if s.status is Status.ALIVE]
    if len(moved) > 1 and len({(s.block, s.response) for s in moved}) == 1:
        total = sum(e for e, s in zip(energies, members, strict=True) if s.status is Status.ALIVE)
        energies = [total if s.status is Status.ALIVE else e for e, s in zip(energies, members, strict=True)]
    return tuple(amplification(s, e, scores) for s, e in zip(members, energies, strict=True))


def _total(amplifications: Sequence[float], bundle: Bundle) -> float:
    return math.fsum(
        a * c.assignment.error_energy for a, c in zip(amplifications, bundle.candidates, strict=True)
    )


def _raised(amplifications: tuple[float, ...], bundle: Bundle, was: float, now: float) -> tuple[float, ...]:
    """Return amplifications scaled so that their total rises from `was` to `now`."""
    if was > 0:
        return tuple(a * (now / was) for a in amplifications)
    energy = bundle.error_energy
    return tuple(now / energy for _ in amplifications) if energy > 0 else amplifications


def _kept_choice(bundles: Sequence[Bundle]) -> int | None:
    """Return the choice that keeps every member unchanged."""
    kept = (i for i, b in enumerate(bundles) if all(c.assignment.form is Form.KEEP for c in b.candidates))
    return next(kept, None)


def _item(unit: _Unit, row: NDArray[np.float64], options: PlanOptions) -> Item:
    idle = all(s.status in IDLE for s in unit.scores)
    idle = idle or (options.gamma_min is not None and unit.gamma <= options.gamma_min)
    return Item(
        name=unit.menus[0].weight.name,
        sizes=tuple(b.n_bytes for b in unit.bundles),
        tiers=tuple(b.tier.value for b in unit.bundles),
        costs=tuple(0.0 if idle else float(v) for v in row),
        gamma=unit.gamma,
        n_values=sum(m.weight.n_values for m in unit.menus),
        dead=idle,
        fp32_choice=_kept_choice(unit.bundles),
        floor_choice=None,
    )
