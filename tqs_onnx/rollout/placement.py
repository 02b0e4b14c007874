"""Where the runtime places the nodes of a model: a GPU session may run some of them on the CPU without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

_CPU = "CPUExecutionProvider"
#: Number of operators that a line names.
_SHOWN = 4


class Placement(BaseModel):
    """The nodes of one session, after the runtime has folded constants away.

    Attributes
    ----------
    nodes : int
        Number of nodes.
    on_cpu : dict of str to int
        Number of nodes on the CPU, by operator, in alphabetical order. Some operators on shapes run there by the
        runtime's own choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int
    on_cpu: dict[str, int] = {}

    @classmethod
    def of(cls, assigned: Iterable[tuple[str, str]]) -> Placement:
        """Return the placement of nodes, each given by its execution provider and its operator."""
        every = list(assigned)
        counts = Counter(op for provider, op in every if provider == _CPU)
        return cls(nodes=len(every), on_cpu=dict(sorted(counts.items())))

    def __add__(self, other: Placement) -> Placement:
        """Return the placement of a model that runs in two sessions."""
        counts = Counter(self.on_cpu) + Counter(other.on_cpu)
        return Placement(nodes=self.nodes + other.nodes, on_cpu=dict(sorted(counts.items())))

    def __str__(self) -> str:
        """Return one line, with the most frequent operators on the CPU.

        >>> print(Placement(nodes=9, on_cpu={"Loop": 1, "NonZero": 2}))
        3 of 9 nodes run on the CPU: NonZero 2, Loop 1
        """
        n = sum(self.on_cpu.values())
        if not n:
            return f"all {self.nodes} nodes run on the device"
        named = sorted(self.on_cpu.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{op} {count}" for op, count in named[:_SHOWN]] + ["…"] * (len(named) > _SHOWN)
        return f"{n} of {self.nodes} nodes run on the CPU: {', '.join(shown)}"
