"""A plan of chosen candidates as they are: no solver, no prediction, no repair."""

from __future__ import annotations

from collections.abc import Sequence

from tqs_onnx.allocation.file_size import FileSize, file_bytes
from tqs_onnx.inputs.source import Source
from tqs_passes.plan.candidates import Candidate
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving


def bare_plan(
    source: Source, chosen: Sequence[Candidate], size: FileSize, profile: Profile, serving: Serving
) -> Plan:
    """Return the plan that stores every weight as its candidate says.

    Parameters
    ----------
    source : Source
    chosen : sequence of Candidate
        One for each weight.
    size : FileSize
        The bytes of the file besides its weights.
    profile : {"fast", "exact", "small"}
    serving : Serving
        Settled: see `settled_serving`.
    """
    return Plan(
        source_sha256=source.sha256,
        profile=profile,
        target=serving.target,
        constants=serving.constants_as_stored,
        opset=serving.opset,
        compute=serving.compute,
        names=serving.names_as_stored,
        graph=serving.graph_as_stored,
        pinned=serving.pinned,
        assignments=tuple(c.assignment for c in chosen),
        n_bytes=file_bytes(size, chosen),
        source_bytes=size.source_bytes,
    )
