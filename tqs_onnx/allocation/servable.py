"""Check that a target can serve a plan before anything is written."""

from __future__ import annotations

from tqs_onnx.inputs.source import Source
from tqs_passes.errors import InputError
from tqs_passes.graph.names import opset_of
from tqs_passes.plan.plan import Plan, ServingTarget
from tqs_passes.plan.targets import refusals, require_computes

#: Largest number of refused weights named in a message.
_MOST_SHOWN = 5


def require_served(plan: Plan, source: Source, target: ServingTarget) -> None:
    """Refuse a plan that a target cannot serve.

    Raises
    ------
    InputError
        The target cannot serve some weights; the message names them and the reasons.
    """
    require_computes(plan.compute, target)
    opset = plan.opset or opset_of(source.lifted.proto)
    found = refusals(plan, source.survey.weights, target, opset)
    if found:
        shown = "; ".join(f"{label}: {why}" for label, why in found[:_MOST_SHOWN])
        more = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        raise InputError(
            f"{target.value} cannot serve {len(found)} of {len(plan.assignments)} weights: {shown}{more}",
            where="`target`",
            todo=f"Allocate again with `target` {target.value}"
            if plan.target is not target
            else "Use another `target`, or change these weights in the model",
        )
