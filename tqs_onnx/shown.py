"""Displays results: as lines of text, as a table in a notebook, and as a dictionary."""

from __future__ import annotations

import html
from typing import Any


class Shown:
    """Base class of results shown to users; every view is derived from `facts`."""

    __slots__ = ()

    def facts(self) -> dict[str, str]:
        """Return the facts by a short label, in reading order."""
        raise NotImplementedError(type(self).__name__)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, JSON-ready."""
        raise NotImplementedError(type(self).__name__)

    def summary(self) -> str:
        """Return the facts as text, one per line."""
        facts = self.facts()
        width = max((len(label) for label in facts), default=0)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in facts.items())

    def _repr_html_(self) -> str:
        """Return the facts as an HTML table, which notebooks display."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for label, text in self.facts().items()
        )
        return f"<table>{rows}</table>"
