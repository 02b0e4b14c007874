"""Weights of equal content that got the same way of storing are stored once: the others become its Identity.

Not where a DequantizeLinear decodes them: read twice it is no longer fused, and is run at every call instead. Nor
where they are stored for their own reader and never decoded under their own name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tqs_passes.encode.weight import Form
from tqs_passes.grids.scales import FREE_ROUNDINGS
from tqs_passes.plan.assigned import twin_fragment
from tqs_passes.plan.plan import Assignment, Plan

#: Roundings that depend on the weight alone.
_OWN = ("keep", "cast", *FREE_ROUNDINGS)
_NOT_SHARED = (Form.DEQUANTIZE, Form.NBITS, Form.GATHERED)


def store_once(plan: Plan, file_bytes: Callable[[int], int], firsts: Mapping[str, str]) -> Plan:
    """Return the plan with equal weights stored once, and its exact bytes.

    Parameters
    ----------
    plan : Plan
    file_bytes : callable
        Bytes of the file whose planned weights add so many bytes.
    firsts : mapping of str to str
        For a weight that repeats an earlier one, that one's name.
    """
    by_name = {a.weight: a for a in plan.assignments}
    found = tuple(_merged(a, by_name.get(firsts.get(a.weight, ""))) for a in plan.assignments)
    saved = plan.weight_bytes - sum(a.n_bytes for a in found)
    if not saved:
        return plan
    added = plan.n_bytes - file_bytes(0)
    while file_bytes(added) > plan.n_bytes:  # the graph's length prefix grows with it
        added -= 1
    return plan.model_copy(update={"assignments": found, "n_bytes": file_bytes(added - saved)})


def _merged(a: Assignment, first: Assignment | None) -> Assignment:
    if first is None or a.form in _NOT_SHARED or a.rounding not in _OWN or not a.stored_like(first):
        return a
    n_bytes = twin_fragment(a.weight, first.weight).n_bytes()
    return a.model_copy(update={"same_as": first.weight, "n_bytes": n_bytes}) if n_bytes < a.n_bytes else a
