"""A section of the study: what the paper says, what was measured here, and by which commands."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from tools.study.markdown import markdown
from tools.study.runs import Runs
from tqs_onnx.analysis.table import Table


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper.

    Parameters
    ----------
    paper : str
    here : str
        The figure that decides it.
    holds : bool or None
        None if the models here cannot decide it.
    """

    paper: str
    here: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """The verdict in a word."""
        return "open" if self.holds is None else f"**{'true' if self.holds else 'false'}**"


@dataclass(frozen=True, slots=True)
class Section:
    """A section.

    Parameters
    ----------
    title : str
    body : str
        Markdown: the paper's figure beside ours.
    runs : tuple of str
        The runs whose commands made it.
    tables : tuple of (str, Table)
        What goes to CSV, by name of the file.
    claims : tuple of Claim
    """

    title: str
    body: str
    runs: tuple[str, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    claims: tuple[Claim, ...] = ()

    def text(self) -> str:
        """Return the section in Markdown."""
        parts = [f"## {self.title}", _wrapped(self.body)]
        if self.tables:
            parts.append(
                "Data: " + ", ".join(f"[{name}.csv](study/{name}.csv)" for name, _ in self.tables) + "."
            )
        if self.runs:
            parts.append("Runs: " + ", ".join(f"`{name}`" for name in self.runs) + ".")
        return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    """Return Markdown whose paragraphs have lines of at most 120 characters; tables stay as they are."""
    parts = text.strip().split("\n\n")
    return "\n\n".join(
        p if p.startswith("|") else textwrap.fill(p, 120, break_long_words=False, break_on_hyphens=False)
        for p in parts
    )


def claim_table(sections: list[Section]) -> str:
    """Return the table of all claims."""
    rows = [[c.paper, c.here, c.verdict] for s in sections for c in s.claims]
    return markdown(["claim of the paper", "here", "holds"], rows)


def command_table(runs: Runs, sections: list[Section]) -> str:
    """Return every run that a section names, with its command and seconds of CPU."""
    names = dict.fromkeys(name for s in sections for name in s.runs)
    rows: list[list[str]] = []
    for name in names:
        cost = runs.cost(name)
        rows.append([f"`{name}`", f"{cost.cpu_s:.0f}{' *' if cost.resumed else ''}", f"`{cost.command}`"])
    return markdown(["run", "CPU s", "command"], rows)
