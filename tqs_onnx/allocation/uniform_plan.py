"""Uniform rounding, the control: every matrix at one width, everything else in FP16."""

from __future__ import annotations

from collections.abc import Sequence

from tqs_onnx.allocation.costing import Request, added_drift, amplification, scored
from tqs_onnx.allocation.file_size import file_bytes, smallest
from tqs_passes.encode.weight import Form
from tqs_passes.plan.candidates import Candidate, Menu
from tqs_passes.plan.plan import Plan


def uniform_choices(menus: Sequence[Menu], bits: int, group: int = 0) -> list[Candidate]:
    """Return the uniform choice: every weight of two or more dimensions at `bits` bits, the rest in FP16.

    Scales are per channel; with `group`, per group of so many values wherever the menu offers that.
    """
    chosen: list[Candidate] = []
    for menu in menus:
        wide = len(menu.weight.shape) > 1
        if wide:
            match = [c for c in menu.candidates if c.assignment.widths == (bits,)]
            if menu.weight.groups == 1:  # the scales of a grouped ConvTranspose have groups of their own
                match = [c for c in match if c.assignment.group == group] or match
            # When the menu lacks this width, another choice is no larger and no worse: the next finer one.
            finer = [c for c in menu.candidates if c.assignment.tier.bits >= bits and not c.assignment.rows]
        else:
            match = [c for c in menu.candidates if c.assignment.form is Form.CAST]
            finer = [menu.candidates[0]]
        chosen.append(min(match, key=lambda c: c.assignment.error_energy) if match else smallest(finer))
    return chosen


def uniform_plan(request: Request, bits: int) -> Plan:
    """Return the uniform control (see `uniform_choices`) with its predicted drift."""
    chosen = uniform_choices(request.menus, bits)
    n_bytes = file_bytes(request.size, chosen)
    by_name = {s.weight: s for s in request.scores.weights}
    known = [by_name[c.assignment.weight] for c in chosen]
    assignments = tuple(
        scored(c, score, amplification(score, c.assignment.error_energy, request.scores), request.scores)
        for c, score in zip(chosen, known, strict=True)
    )
    return Plan(
        source_sha256=request.scores.source_sha256,
        profile=request.profile,
        target=request.serving.target,
        constants=request.serving.constants_as_stored,
        opset=request.serving.opset,
        compute=request.serving.compute,
        names=request.serving.names_as_stored,
        graph=request.serving.graph_as_stored,
        pinned=request.serving.pinned,
        assignments=assignments,
        n_bytes=n_bytes,
        source_bytes=request.size.source_bytes,
        predicted_drift=added_drift(assignments, request.scores),
        added_drift=added_drift(assignments, request.scores),
    )
