"""All graph passes; the type of this tuple makes mypy check each of them against the protocol `GraphPass`."""

from __future__ import annotations

from tqs_passes.graph_pass import GraphPass
from tqs_passes.survey.lift import Lift
from tqs_passes.survey.merge import MergeEqual
from tqs_passes.transforms.capture import Capture
from tqs_passes.transforms.convert_opset import ConvertOpset
from tqs_passes.transforms.expose import Expose
from tqs_passes.transforms.half_precision.half import HalfCompute
from tqs_passes.transforms.half_precision.whole import HalfWhole
from tqs_passes.transforms.rewrite import Rewrite
from tqs_passes.transforms.shrink_constants import ShrinkConstants

EVERY_PASS: tuple[type[GraphPass], ...] = (
    Lift,
    MergeEqual,
    Expose,
    Capture,
    ConvertOpset,
    HalfCompute,
    HalfWhole,
    ShrinkConstants,
    Rewrite,
)
