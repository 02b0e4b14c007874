"""Data types for weights: a weight is one stored float parameter tensor with its readers and its channel axis.

This module defines the types; `tqs_passes.survey.survey` finds the weights of a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase


class Origin(StrEnum):
    """Where the file stored a weight before `lift` made it an initializer of the main graph."""

    INITIALIZER = "initializer"
    CONSTANT = "constant"
    BODY = "body"
    FUNCTION = "function"


class Role(StrEnum):
    """The part of a forecaster that a weight belongs to (paper, A.8); see `tqs_passes.survey.roles`."""

    INPUT = "io.input"
    OUTPUT = "io.output"
    ATTENTION = "body.attn"
    FEED_FORWARD = "body.ffn"
    OTHER = "body.other"


@dataclass(frozen=True, slots=True)
class Reader:
    """A node input that consumes a weight, directly or through nodes that only move its values.

    Parameters
    ----------
    op_type, domain : str
        Operator of the consuming node.
    node : str
        Its name, or `#<index>` in graph order when it has none; inside bodies `<outer>/<attribute>/<inner>`.
    input_index : int
        Index of the node input.
    through : tuple of str
        Operators between the weight and the node, in order; empty for a direct reader.
    channel_axis : int or None
        Axis of the weight, as stored, along which the node's output channels lie; None when there is none.
    in_body : bool
        The node lies inside an If, Loop or Scan body.
    groups : int
        Groups of a ConvTranspose: its output channels are pairs of a group, along axis 0, and an index along axis 1.
    """

    op_type: str
    domain: str
    node: str
    input_index: int
    through: tuple[str, ...] = ()
    channel_axis: int | None = None
    in_body: bool = False
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored float parameter tensor.

    Parameters
    ----------
    name : str
        Name of the initializer in the lifted graph: the key used everywhere.
    label : str
        Name shown to people: `name` itself, or a name recovered from node scopes when an exporter renamed the weight.
    shape : tuple of int
    dtype : str
        `float32`, `float16`, `bfloat16` or `float64`.
    origin : Origin
    readers : tuple of Reader
        In graph order.
    channel_axis : int or None
        The axis that all readers share; None when they differ or have none.
    outputs : tuple of str
        Graph outputs that the weight can influence; empty when there are none.
    copies : tuple of str
        Labels of the weights of equal content that were merged into it (see `tqs_passes.survey.merge`).
    n_stored : int
        Number of times that the file stores it; the content of a local function counts once, however often it is
        called.
    role : Role
    """

    name: str
    label: str
    shape: tuple[int, ...]
    dtype: str
    origin: Origin
    readers: tuple[Reader, ...]
    channel_axis: int | None
    outputs: tuple[str, ...]
    copies: tuple[str, ...] = ()
    n_stored: int = 1
    role: Role = Role.OTHER

    @property
    def n_values(self) -> int:
        """Number of values."""
        n = 1
        for dim in self.shape:
            n *= dim
        return n

    @property
    def groups(self) -> int:
        """Groups of output channels along axis 0 that all readers agree on; 1 when there are none or they differ."""
        found = {reader.groups for reader in self.readers}
        return found.pop() if len(found) == 1 else 1

    def matches(self, pattern: str) -> bool:
        """Return whether a shell pattern (``*``, ``?``, ``[…]``) matches its name, its label, or that of a copy."""
        return any(fnmatchcase(known, pattern) for known in (self.name, self.label, *self.copies))


@dataclass(frozen=True, slots=True)
class Excluded:
    """A stored float tensor that is not a weight.

    Parameters
    ----------
    name : str
    shape : tuple of int
    dtype : str
    reason : str
        Why it is not a weight, in words for the user, e.g. ``attention mask: values 0 and -100``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Every stored float tensor of a model, classified as a weight or excluded.

    Parameters
    ----------
    weights : tuple of Weight
        In graph order (initializer order of the lifted graph).
    excluded : tuple of Excluded
    """

    weights: tuple[Weight, ...]
    excluded: tuple[Excluded, ...]

    def by_name(self) -> dict[str, Weight]:
        """Return the weights keyed by name."""
        return {w.name: w for w in self.weights}
