"""The contract of a pass: a value with a name that maps a model to a new model, what changed and what was skipped.

A pass is a frozen dataclass with a kebab-case name; its fields are its options. It never mutates the model it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from tqs_passes.files.model import Model


@dataclass(frozen=True, slots=True)
class Skip:
    """Something a pass left alone.

    Parameters
    ----------
    what : str
        Name of the tensor or node.
    why : str
        The reason, in words for the user.
    """

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass did.

    Parameters
    ----------
    model : Model
        The new model; the input model itself when nothing changed.
    changed : tuple of str
        Names of the tensors that were changed, in graph order; `opset` or `ir_version` where that of the model was.
    skipped : tuple of Skip
        What was left alone, and why.
    """

    model: Model
    changed: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()


class GraphPass(Protocol):
    """A graph pass (see module docstring)."""

    name: ClassVar[str]

    def apply(self, model: Model) -> PassResult:
        """Return the new model, what changed and what was skipped; `model` is left untouched."""
        ...
