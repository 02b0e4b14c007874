"""Numbers of options: finite ones only, since click also takes ``inf``, ``nan`` and what overflows to infinity."""

from __future__ import annotations

import math
from typing import Any

import click
from click.types import FloatParamType


class Finite(FloatParamType):
    """A finite number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number of a word.

        Raises
        ------
        click.BadParameter
            The word is no number, or not a finite one.
        """
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{str(value)[:40]!r} is not a finite number", param, ctx)
        return found


class FiniteRange(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number of a word; see `Finite.convert`."""
        found: float = super().convert(Finite().convert(value, param, ctx), param, ctx)
        return found
