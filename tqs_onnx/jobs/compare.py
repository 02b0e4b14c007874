"""Compares objectives with uniform rounding at equal file bytes: each plan is emitted, and the files are rolled out.

For every width W the budget is the size of the uniform file (every matrix at W bits per channel, the rest FP16); every
objective must stay within it. All files use the same rounding, without data.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.uniform_plan import uniform_plan
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.stream import Kept
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.verification.evaluate import drift_between
from tqs_onnx.verification.moments import compared
from tqs_passes.errors import InfeasibleError
from tqs_passes.files.model import file_facts
from tqs_passes.plan.plan import Plan

_LOG = logging.getLogger(__name__)
WIDTHS = (2, 3, 4)
#: Objectives that need only scores.
FREE = tuple(o for o in Objective if o is not Objective.MEASURED)


@dataclass(frozen=True, slots=True)
class Row:
    """One file of the comparison.

    Parameters
    ----------
    method : str
        ``uniform`` or the name of an objective.
    bits : int
        Width of the uniform file that sets the budget.
    n_bytes : int
        Bytes of this method's file on disk.
    compression : float
        Input file over this file.
    drift_predicted, drift_measured : float or None
        None if no plan fits the budget; the measured drift is also None if the rollout is not finite.
    """

    method: str
    bits: int
    n_bytes: int | None
    compression: float | None
    drift_predicted: float | None
    drift_measured: float | None


def compare(source: Source, request: Request, bed: Testbed) -> tuple[Row, ...]:
    """Emit and measure uniform rounding, and the objectives that need only scores, at the bytes of uniform W2, W3, W4.

    Parameters
    ----------
    source : Source
    request : Request
    bed : Testbed
        With the evaluation contexts.
    """
    nominal = Kept(bed.stream_file(source.path))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tqs-compare-") as folder:
        file = Path(folder) / "candidate.onnx"

        def measure(method: str, bits: int, plan: Plan) -> Row:
            emit(source.lifted, plan, file)
            n_bytes = file_facts(file).n_bytes
            ratio = source.facts.n_bytes / n_bytes
            try:
                ours = bed.stream_file(file)()
                found = compared(nominal(), ours, bed.spec, bed.contexts, truth=False)
            except NonFiniteError as error:
                _LOG.info("W%d %s: %d bytes, %s at step %d", bits, method, n_bytes, error.what, error.step)
                return Row(method, bits, n_bytes, ratio, plan.predicted_drift, None)
            drift = drift_between(found, bed.sigma).total
            _LOG.info("W%d %s: %d bytes, drift %.4g", bits, method, n_bytes, drift)
            return Row(method, bits, n_bytes, ratio, plan.predicted_drift, drift)

        for bits in WIDTHS:
            uniform = uniform_plan(request, bits)
            rows.append(measure("uniform", bits, uniform))
            for objective in FREE:
                try:
                    plan = plan_within(request, uniform.n_bytes, PlanOptions(objective=objective))
                except InfeasibleError:
                    rows.append(Row(objective.value, bits, None, None, None, None))
                    continue
                rows.append(measure(objective.value, bits, plan))
    return tuple(rows)
