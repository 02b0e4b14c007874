"""What is verified against what, and where: the two values that every check of a file takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.session import Provider
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.files.model import Model
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan
from tqs_passes.weights import Survey


@dataclass(frozen=True, slots=True)
class Subject:
    """What is verified against what.

    Parameters
    ----------
    source, emitted : Path
        The FP32 file and the file made from it.
    lifted : Model
        The source, lifted.
    survey : Survey
    plan : Plan
    codes : mapping of str to Codes
    """

    source: Path
    emitted: Path
    lifted: Model
    survey: Survey
    plan: Plan
    codes: Mapping[str, Codes]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where rollouts for verification happen.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
        Evaluation contexts.
    sigma : dict of str to float
    provider : str
    batch : int or None
    threads : int
    """

    spec: RolloutSpec
    contexts: Contexts
    sigma: dict[str, float]
    provider: Provider = "cpu"
    batch: int | None = None
    threads: int = 0
