"""Decides whether a model's graph is slimmed, and lists the passes that do it.

`auto` slims what would take more than `LEAST_SHARE` of a file whose stored tensors have 4 bits a value: the names, and
the graph besides names and stored tensors. What is a small part of the source is a large part of a file that is eight
times smaller. The graph of a large model stays as it was exported, node for node and name for name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tqs_passes.files.model import Model
from tqs_passes.graph_pass import GraphPass
from tqs_passes.survey.bytes_by_kind import bytes_by_kind
from tqs_passes.transforms.slim.notes import DropNotes
from tqs_passes.transforms.slim.repeats import MergeRepeats
from tqs_passes.transforms.slim.static import FoldStatic
from tqs_passes.transforms.slim.storage import StoreCompactly
from tqs_passes.transforms.slim.unused import DropUnused
from tqs_passes.transforms.slim.zero_states import DropZeroStates

#: Share of the file above which `auto` slims.
LEAST_SHARE = 0.03
#: How many times smaller stored tensors are taken to become.
_SMALLER = 8

NamesRule = Literal["auto", "short", "keep"]
GraphRule = Literal["auto", "slim", "keep"]


@dataclass(frozen=True, slots=True)
class Slimming:
    """What is slimmed.

    Parameters
    ----------
    names : bool
        Inner names become short.
    graph : bool
        `slim_passes` run.
    pinned : tuple of str
        Patterns of names to keep.
    """

    names: bool = False
    graph: bool = False
    pinned: tuple[str, ...] = ()


def slimming_of(model: Model, names: NamesRule, graph: GraphRule, pinned: tuple[str, ...] = ()) -> Slimming:
    """Return what is slimmed of a lifted model."""
    if names != "auto" and graph != "auto":
        return Slimming(names == "short", graph == "slim", pinned)
    kinds = bytes_by_kind(model, frozenset())  # all stored tensors are `constants`
    least = LEAST_SHARE * (kinds.constants / _SMALLER + kinds.names + kinds.graph)
    return Slimming(
        names == "short" or (names == "auto" and kinds.names > least),
        graph == "slim" or (graph == "auto" and kinds.graph > least),
        pinned,
    )


def slim_passes(weights: frozenset[str]) -> tuple[GraphPass, ...]:
    """Return the passes that slim a graph, in order; `weights` are left alone."""
    return (
        StoreCompactly(weights),
        MergeRepeats(weights),
        FoldStatic(weights),
        DropZeroStates(weights),
        MergeRepeats(weights),
        DropUnused(weights),
        DropNotes(),
    )
