"""The graph outputs outside the trajectory: how far two rollouts differ there, taken step by step. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class OtherSums:
    """Sums of one output: over all steps, and over the last step of every chunk of contexts."""

    is_float: bool = True
    whole: NDArray[Any] = field(default_factory=lambda: np.zeros(2))
    ended: NDArray[Any] = field(default_factory=lambda: np.zeros(2))
    last: NDArray[Any] = field(default_factory=lambda: np.zeros(2))
    shapes: set[tuple[int, ...]] = field(default_factory=set[tuple[int, ...]])
    shapes_ended: set[tuple[int, ...]] = field(default_factory=set[tuple[int, ...]])
    shape: tuple[int, ...] = ()

    def add(self, expected: NDArray[Any], got: NDArray[Any], *, first: bool) -> None:
        """Take one step of one chunk; `first`: the first step of the chunk."""
        self.is_float = expected.dtype.kind == "f"
        if self.is_float:
            wide = expected.astype(np.float64)
            delta = got.astype(np.float64) - wide
            now = np.array([np.vdot(delta, delta), np.vdot(wide, wide)])
        else:
            now = np.array([float(np.sum(expected != got)), float(expected.size)])
        if first and self.shapes:
            self.ended = self.ended + self.last
            self.shapes_ended.add(self.shape)
        self.whole = self.whole + now
        self.last, self.shape = now, expected.shape[1:]
        self.shapes.add(self.shape)

    def result(self) -> float | None:
        """Return the share; over the last steps alone if the shape changes, None if those differ, too."""
        difference, size = self.whole
        if len(self.shapes) > 1:
            if len(self.shapes_ended | {self.shape}) > 1:
                return None
            difference, size = self.ended + self.last
        if not self.is_float:
            return float(difference / size) if size else 0.0
        return float(np.sqrt(difference) / np.sqrt(size)) if size > 0 else float(np.sqrt(difference))
