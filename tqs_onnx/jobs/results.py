"""Results of single stages: values that print a summary of themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqs_onnx.allocation.costing import Request
from tqs_onnx.jobs.release import outcome_facts
from tqs_onnx.shown import Shown
from tqs_onnx.verification.manifest import GateResult
from tqs_onnx.verification.verify import Verification
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan


@dataclass(frozen=True, slots=True, repr=False)
class Allocated(Shown):
    """A plan, its codes, and the request it answers.

    Parameters
    ----------
    plan : Plan
    codes : dict of str to Codes
    request : Request
    """

    plan: Plan
    codes: dict[str, Codes]
    request: Request

    def facts(self) -> dict[str, str]:
        """Return the tiers, the bytes and the predicted drift."""
        plan = self.plan
        tiers = Counter(a.tier.value for a in plan.assignments)
        facts = {
            "tiers": ", ".join(f"{n} {tier}" for tier, n in tiers.most_common()),
            "bytes": f"{plan.source_bytes:,} → {plan.n_bytes:,}",
        }
        if plan.predicted_drift is not None:
            facts["predicted drift"] = f"{plan.prediction or format(plan.predicted_drift, '.4g')} σ"
        return facts

    def to_dict(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return self.plan.model_dump(mode="json")


@dataclass(frozen=True, slots=True, repr=False)
class Emitted(Shown):
    """A written file.

    Parameters
    ----------
    out : Path
    bytes_in, bytes_out, bytes_planned : int
    """

    out: Path
    bytes_in: int
    bytes_out: int
    bytes_planned: int

    def facts(self) -> dict[str, str]:
        """Return the bytes and the path of the file."""
        return {"bytes": f"{self.bytes_in:,} → {self.bytes_out:,}", "file": str(self.out)}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `tqs emit` prints."""
        sizes = {"bytes_in": self.bytes_in, "bytes_out": self.bytes_out, "bytes_planned": self.bytes_planned}
        return {"out": str(self.out)} | sizes


@dataclass(frozen=True, slots=True, repr=False)
class Verified(Shown):
    """A verified file.

    Parameters
    ----------
    verification : Verification
    gates : tuple of GateResult
    emitted : Path
    """

    verification: Verification
    gates: tuple[GateResult, ...]
    emitted: Path

    def facts(self) -> dict[str, str]:
        """Return the verdict, the sizes, the drift and the path of the file."""
        return outcome_facts(self.verification, self.gates, self.emitted)

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements and every gate."""
        return {**self.verification.model_dump(mode="json"), "gates": [g.model_dump() for g in self.gates]}
