"""Plans that need no measurement: every matrix at one width, and the same with both ends finer.

    uniform W bits       every weight of two or more dimensions at W bits, the rest in 16
    ends finer           the first and last matrices at 6 bits or more, the others at W, and at W − 1 from the middle
                         outwards as far as the budget asks

W is the largest width that a matrix is offered and whose file fits. What is fixed otherwise is kept: ties, rules of the
tier set, and weights that must stay fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tqs_onnx.allocation.choice import flat
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.file_size import file_bytes, least_of
from tqs_onnx.allocation.offers import Entry, entries_of
from tqs_onnx.allocation.plan_within import plan_of
from tqs_passes.encode.weight import ROUNDED, Form
from tqs_passes.plan.candidates import Candidate
from tqs_passes.plan.plan import Plan, SolverFacts
from tqs_passes.weights import Role

#: Least width of the first and last matrices when they are finer than the rest.
ENDS_BITS = 6
_WIDTHS = range(8, 0, -1)


def simple_plan(
    request: Request, max_bytes: int, options: PlanOptions, kind: Literal["uniform", "ends"], bound: float
) -> Plan | None:
    """Return the finest plan of a kind that fits; None if none fits, or if no matrix is at an end.

    Parameters
    ----------
    request : Request
    max_bytes : int
        Largest size of the file.
    options : PlanOptions
    kind : {"uniform", "ends"}
    bound : float
        Least possible predicted cost within the budget, for the plan's own facts.
    """
    entries = entries_of(request, options)
    ends = [_is_end(e) for e in entries]
    if kind == "ends" and not any(ends):
        return None
    for bits in (w for w in _WIDTHS if _is_offered(entries, w)):
        choices = [
            _at(e, max(bits, ENDS_BITS) if end and kind == "ends" else bits)
            for e, end in zip(entries, ends, strict=True)
        ]
        if kind == "ends":
            choices = _leaner(request, entries, choices, ends, bits - 1, max_bytes)
        if _bytes(request, entries, choices) <= max_bytes:
            cost = sum(e.item.costs[k] for e, k in zip(entries, choices, strict=True))
            facts = SolverFacts(
                solver=f"uniform {bits} bits" if kind == "uniform" else f"uniform {bits} bits, ends finer",
                objective=options.aim.value,
                cost=cost,
                bound=bound,
                gap=max(cost - bound, 0.0) / cost if cost > 0 else 0.0,
                optimal=False,
                p_fp32=0.0,
                budget_bytes=max_bytes,
            )
            return plan_of(request, entries, choices, options, facts)
    return None


def _bytes(request: Request, entries: Sequence[Entry], choices: Sequence[int]) -> int:
    return file_bytes(request.size, flat(e.bundles[k] for e, k in zip(entries, choices, strict=True)))


def _is_offered(entries: Sequence[Entry], bits: int) -> bool:
    """Return whether a matrix can have this width."""
    return any(all(_has(c, bits) for c in b.candidates) for e in entries if _is_matrix(e) for b in e.bundles)


def _is_matrix(entry: Entry) -> bool:
    return any(len(m.weight.shape) > 1 for m in entry.menus)


def _is_end(entry: Entry) -> bool:
    return _is_matrix(entry) and any(m.weight.role in (Role.INPUT, Role.OUTPUT) for m in entry.menus)


def _at(entry: Entry, bits: int) -> int:
    """Return the choice of a width: the best of that width, else the smallest finer one; 16-bit floats for vectors."""
    order = range(len(entry.bundles))
    if not _is_matrix(entry):
        cast = [i for i in order if all(c.assignment.form is Form.CAST for c in entry.bundles[i].candidates)]
        return min(cast or [0], key=lambda i: entry.bundles[i].error_energy)
    match = [i for i in order if all(_has(c, bits) for c in entry.bundles[i].candidates)]
    if match:
        return min(match, key=lambda i: (entry.item.costs[i], entry.bundles[i].error_energy))
    finer = [i for i in order if all(_is_finer(c, bits) for c in entry.bundles[i].candidates)]
    if finer:
        return min(finer, key=lambda i: (entry.bundles[i].n_bytes, entry.bundles[i].error_energy))
    return entry.bundles.index(least_of(entry.bundles))


def _has(candidate: Candidate, bits: int) -> bool:
    a = candidate.assignment
    plain = a.widths == (bits,) and not a.group and a.form not in ROUNDED
    return plain if len(a.shape) > 1 else a.form is Form.CAST or _is_finer(candidate, bits)


def _is_finer(candidate: Candidate, bits: int) -> bool:
    a = candidate.assignment
    return a.tier.bits >= bits and not a.rows and a.form not in ROUNDED


def _leaner(
    request: Request,
    entries: Sequence[Entry],
    choices: Sequence[int],
    ends: Sequence[bool],
    bits: int,
    max_bytes: int,
) -> list[int]:
    """Lower matrices that are not at an end to `bits`, from the middle outwards, until the file fits."""
    found = list(choices)
    body = [i for i, (e, end) in enumerate(zip(entries, ends, strict=True)) if _is_matrix(e) and not end]
    middle = (len(body) - 1) / 2
    for i in (body[at] for at in sorted(range(len(body)), key=lambda at: (abs(at - middle), at))):
        if not bits or _bytes(request, entries, found) <= max_bytes:
            break
        found[i] = _at(entries[i], bits)
    return found
