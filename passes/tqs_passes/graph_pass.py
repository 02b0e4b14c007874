"""The protocol of a pass: a named value that maps a model to a new model, the changes, and the skips.

A pass is a frozen dataclass with a kebab-case name; its fields are its options. It never mutates its input model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from tqs_passes.files.model import Model


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that a pass left unchanged.

    Parameters
    ----------
    what : str
        Name of the tensor or node.
    why : str
        The reason, as text for the user.
    """

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class PassResult:
    """The result of a pass.

    Parameters
    ----------
    model : Model
        The new model, or the input model itself if nothing changed.
    changed : tuple of str
        Names of the changed tensors, in graph order; `opset` or `ir_version` if that of the model changed.
    skipped : tuple of Skip
        Everything left unchanged, with the reasons.
    """

    model: Model
    changed: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()


class GraphPass(Protocol):
    """A graph pass (see the module docstring)."""

    name: ClassVar[str]

    def apply(self, model: Model) -> PassResult:
        """Return the new model, the changes and the skips; `model` is not mutated."""
        ...
