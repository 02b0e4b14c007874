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
from tqs_passes.transforms.reveal import Reveal
from tqs_passes.transforms.rewrite import Rewrite
from tqs_passes.transforms.shrink_constants import ShrinkConstants
from tqs_passes.transforms.slim.notes import DropNotes
from tqs_passes.transforms.slim.repeats import MergeRepeats
from tqs_passes.transforms.slim.short_names import ShortNames
from tqs_passes.transforms.slim.static import FoldStatic
from tqs_passes.transforms.slim.storage import StoreCompactly
from tqs_passes.transforms.slim.unused import DropUnused
from tqs_passes.transforms.slim.zero_states import DropZeroStates
from tqs_passes.transforms.split_gates import SplitGates
from tqs_passes.transforms.switch import Switch

EVERY_PASS: tuple[type[GraphPass], ...] = (
    Lift,
    MergeEqual,
    Expose,
    Capture,
    Reveal,
    ConvertOpset,
    HalfCompute,
    HalfWhole,
    ShortNames,
    StoreCompactly,
    MergeRepeats,
    FoldStatic,
    DropZeroStates,
    DropUnused,
    DropNotes,
    ShrinkConstants,
    SplitGates,
    Switch,
    Rewrite,
)
