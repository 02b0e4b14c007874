"""Store weights of equal content and equal storage once: the others become an Identity of the first.

A weight decoded by DequantizeLinear is excluded: with two readers the operator is not fused and runs at every call. A
weight that is stored for its own reader, and never decoded under its own name, is excluded as well.
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
    """Return the plan with equal weights stored once, and with its exact bytes.

    Parameters
    ----------
    plan : Plan
    file_bytes : callable
        Maps the bytes that the planned weights add to the bytes of the file.
    firsts : mapping of str to str
        Maps a weight that repeats an earlier one to that weight's name.
    """
    by_name = {a.weight: a for a in plan.assignments}
    found = tuple(_merged(a, by_name.get(firsts.get(a.weight, ""))) for a in plan.assignments)
    saved = plan.weight_bytes - sum(a.n_bytes for a in found)
    if not saved:
        return plan
    added = plan.n_bytes - file_bytes(0)
    while file_bytes(added) > plan.n_bytes:  # the graph's length prefix grows with the graph
        added -= 1
    return plan.model_copy(update={"assignments": found, "n_bytes": file_bytes(added - saved)})


def _merged(a: Assignment, first: Assignment | None) -> Assignment:
    if first is None or a.form in _NOT_SHARED or a.rounding not in _OWN or not a.stored_like(first):
        return a
    n_bytes = twin_fragment(a.weight, first.weight).n_bytes()
    return a.model_copy(update={"same_as": first.weight, "n_bytes": n_bytes}) if n_bytes < a.n_bytes else a
