"""The subject of a verification; every check takes it, together with a testbed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqs_passes.files.model import Model
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan
from tqs_passes.weights import Survey


@dataclass(frozen=True, slots=True)
class Subject:
    """An emitted file with the source, the plan and the codes to verify it against.

    Parameters
    ----------
    source, emitted : Path
        The FP32 file, and the file emitted from it.
    lifted : Model
        The lifted source.
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
