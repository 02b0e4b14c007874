"""Find the smallest file that meets a condition, such as a drift of at most .02, by bisection over byte budgets.

Every budget that is tried is planned, rounded, written to a temporary file and rolled out on the evaluation contexts,
as verification does it: what is found holds. Between the last budget that failed and the smallest that passed, the next
one is where the measured value, interpolated as a power of the bytes, meets the limit.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.refinement.refine import Refined
from tqs_onnx.rollout.stream import Stream
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.verification.evaluate import drift_between, truth_errors
from tqs_onnx.verification.gates import Gate, Measured, gate_value
from tqs_onnx.verification.moments import compared
from tqs_passes.errors import InfeasibleError

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: The search ends when the smallest file that passes is within this share of a budget that fails.
_CLOSE = 0.01
_MOST_TRIALS = 10
#: A next budget keeps this share of the bracket, in logarithms, from both ends.
_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Trial(Generic[T]):
    """One budget that was tried.

    Parameters
    ----------
    max_bytes : int
    n_bytes : int
        Bytes of its file.
    value : float
        Measured value of the condition's metric; infinite if the rollout is not finite.
    made : object
        What made the file.
    """

    max_bytes: int
    n_bytes: int
    value: float
    made: T


def smallest_passing(gate: Gate, smallest: int, largest: int, attempt: Callable[[int], Trial[T]]) -> Trial[T]:
    """Return the smallest file found that passes.

    Parameters
    ----------
    gate : Gate
        An upper limit, e.g. ``drift<=0.02``.
    smallest, largest : int
        Budgets between which to search.
    attempt : callable
        Makes and measures the file of a budget.

    Raises
    ------
    InfeasibleError
        Not even the largest budget passes.
    """

    def tried(max_bytes: int) -> Trial[T]:
        trial = attempt(max_bytes)
        _LOG.info("%s: %s bytes, %.4g", gate.text, f"{trial.n_bytes:,}", trial.value)
        return trial

    best = tried(smallest)
    if best.value <= gate.limit:
        return best
    failed, best = best, tried(largest)
    if best.value > gate.limit:
        raise InfeasibleError(
            f"no file meets {gate.text}: with {best.n_bytes:,} bytes {gate.metric} is {best.value:.4g}",
            smallest_bytes=best.n_bytes,
            todo="Allow higher tiers, or a looser target",
        )
    for _ in range(_MOST_TRIALS):
        if best.n_bytes <= failed.max_bytes * (1 + _CLOSE):
            break
        trial = tried(_between(failed, best, gate.limit))
        if trial.value <= gate.limit:
            best = trial if trial.n_bytes <= best.n_bytes else best
        else:
            failed = trial
    return best


def value_of(gate: Gate, found: Refined, source: Source, judging: Testbed, nominal: Stream) -> float:
    """Return the value of a gate for the file of a plan, rolled out on the contexts of `judging`.

    Parameters
    ----------
    gate : Gate
    found : Refined
    source : Source
    judging : Testbed
    nominal : Stream
        Rollout of the source's file on these contexts.

    Raises
    ------
    InputError
        The gate cannot be evaluated, e.g. without truth.
    """
    with tempfile.TemporaryDirectory(prefix="tqs-target-") as folder:
        file = Path(folder) / "tried.onnx"
        emit(source.lifted, found.plan, file, found.codes)
        try:
            sums = compared(nominal(), judging.stream_file(file)(), judging.spec, judging.contexts)
        except NonFiniteError:
            return math.inf
    drift = drift_between(sums, judging.sigma, judging.contexts.source)
    truth = truth_errors(sums, judging.contexts.factors)
    return gate_value(gate, Measured(drift, truth, source.facts.n_bytes / found.plan.n_bytes))


def _between(failed: Trial[T], best: Trial[T], limit: float) -> int:
    """Return a budget between two, where the value would meet the limit if it were a power of the bytes."""
    low, high = math.log(failed.max_bytes), math.log(best.n_bytes)
    share = 0.5
    if math.isfinite(failed.value) and best.value > 0 and limit > 0 and failed.value > best.value:
        share = math.log(failed.value / limit) / math.log(failed.value / best.value)
    share = min(max(share, _MARGIN), 1 - _MARGIN)
    return int(math.exp(low + share * (high - low)))
