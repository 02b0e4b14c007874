"""Gates: conditions that a file must meet to be released.

A gate is written ``metric[:qualifier…]<=value`` (or ``>=`` for compression) ::

    drift<=0.1                      mean over everything
    drift:p95<=0.2                  95th percentile over contexts
    drift:variable=t2m<=0.1         one variable
    drift:step=4<=0.3               one lead time
    degradation<=5                  the worst variable, percent
    degradation:variable=OT<=5      one variable, also with :step=N
    compression>=8
    latency<=0.6                    time of one call over FP32's, at the slower of the batch sizes measured
    latency:batch=32<=0.5           at one batch size
    memory<=0.8                     memory of a session over FP32's

`latency` and `memory` are measured only when a gate or the job asks for them (`tqs_onnx.verification.timing`).
A gate that cannot be evaluated (no truth, no such variable, not a number) is an input error; it never passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tqs_onnx.verification.evaluate import Drift, TruthError
from tqs_onnx.verification.timing import Timing
from tqs_passes.errors import InputError

_T = TypeVar("_T")
_FORM = "Write e.g. drift<=0.1, drift:p95<=0.2, degradation:variable=OT<=5, compression>=8, latency<=0.6"
#: Metrics that are timed, and the qualifiers of every metric.
_TIMED = ("latency", "memory")
_QUALIFIERS = {
    "drift": frozenset({"p95", "variable", "step"}),
    "degradation": frozenset({"variable", "step"}),
    "compression": frozenset[str](),
    "latency": frozenset({"batch"}),
    "memory": frozenset[str](),
}
#: Digits that a value is shown with.
_FEWEST_DIGITS, _MOST_DIGITS = 4, 17


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition (see the module docstring).

    Parameters
    ----------
    text : str
        As the user wrote it.
    metric : str
        `drift`, `degradation`, `compression`, `latency` or `memory`.
    limit : float
    p95 : bool
    variable : str or None
    step : int or None
        Counted from 1.
    batch : int or None
        Batch size of a latency.
    """

    text: str
    metric: str
    limit: float
    p95: bool = False
    variable: str | None = None
    step: int | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements that gates are checked against.

    Parameters
    ----------
    drift : Drift
    truth : dict of str to TruthError
        Empty without truth.
    compression : float
    timing : Timing or None
    """

    drift: Drift
    truth: dict[str, TruthError]
    compression: float
    timing: Timing | None = None


def parse_gate(text: str) -> Gate:
    """Parse a gate.

    Raises
    ------
    InputError
        The text does not have the form in the module docstring.
    """
    sign = ">=" if ">=" in text else "<="
    head, found, number = text.rpartition(sign)
    metric, *qualifiers = head.strip().split(":")
    expected = ">=" if metric == "compression" else "<="
    if not found or metric not in _QUALIFIERS or sign != expected:
        raise InputError(f"gate {text!r} is not a valid gate", todo=_FORM)
    fields: dict[str, str] = {}
    for qualifier in qualifiers:
        key, equals, value = qualifier.partition("=")
        takes_value = key in ("variable", "step", "batch")
        if key in fields or bool(equals) != takes_value or bool(value) != takes_value:
            raise InputError(f"gate {text!r} is not a valid gate", todo=_FORM)
        fields[key] = value
    try:
        limit = float(number)
        step = int(fields.pop("step")) if "step" in fields else None
        batch = int(fields.pop("batch")) if "batch" in fields else None
    except ValueError as error:
        raise InputError(f"gate {text!r} is not a valid gate", todo=_FORM) from error
    p95 = fields.pop("p95", None) is not None
    variable = fields.pop("variable", None)
    one_at_most = metric == "drift" and p95 + (variable is not None) + (step is not None) > 1
    crossed = not {q.partition("=")[0] for q in qualifiers} <= _QUALIFIERS[metric]
    if fields or crossed or one_at_most or not math.isfinite(limit):
        raise InputError(f"gate {text!r} is not a valid gate", todo=_FORM)
    return Gate(text, metric, limit, p95, variable, step, batch)


def needs_truth(gate: Gate) -> bool:
    """Whether a gate can be evaluated only if the contexts hold the truth."""
    return gate.metric == "degradation"


def needs_timing(gate: Gate) -> bool:
    """Whether a gate can be evaluated only if the file is timed."""
    return gate.metric in _TIMED


def gate_value(gate: Gate, measured: Measured) -> float:
    """Return the measured value that a gate limits.

    Raises
    ------
    InputError
        The gate cannot be evaluated.
    """
    value = _value(gate, measured)
    if math.isnan(value):
        raise InputError(
            f"gate {gate.text!r} cannot be evaluated: its value is not a number",
            todo="Check the contexts and their truth",
        )
    return value


def value_text(text: str, value: float) -> str:
    """Return a gate's value with four digits, or with as many as show on which side of the limit it lies.

    >>> value_text("drift<=1.0", 1.0000004), value_text("drift<=0.1", 0.0421567)
    ('1.0000004', '0.04216')
    """
    gate = parse_gate(text)
    for digits in range(_FEWEST_DIGITS, _MOST_DIGITS):
        shown = f"{value:.{digits}g}"
        if passes(gate, float(shown)) == passes(gate, value) and (float(shown) == gate.limit) == (
            value == gate.limit
        ):
            return shown
    return repr(value)


def _value(gate: Gate, measured: Measured) -> float:
    if gate.metric == "compression":
        return measured.compression
    if gate.metric in _TIMED:
        return _timed(gate, measured.timing)
    if gate.metric == "drift":
        if gate.p95:
            return measured.drift.p95
        if gate.step is not None:
            return _at(measured.drift.per_step, gate)
        if gate.variable is not None:
            return _named(measured.drift.per_variable, gate)
        return measured.drift.total
    if not measured.truth:
        raise InputError(
            f"gate {gate.text!r} cannot be evaluated: the evaluation contexts hold no truth",
            todo="Add truth/<output> to them",
        )
    errors = measured.truth if gate.variable is None else {gate.variable: _named(measured.truth, gate)}
    if gate.step is None:
        return max(e.degradation for e in errors.values())
    return max(_at(e.degradation_per_step, gate) for e in errors.values())


def _timed(gate: Gate, timing: Timing | None) -> float:
    if timing is None:
        raise InputError(f"gate {gate.text!r} cannot be evaluated: the file was not timed")
    if gate.metric == "memory":
        if timing.memory is None:
            raise InputError(
                f"gate {gate.text!r} cannot be evaluated: this system does not report memory",
                todo="Verify on Linux, or leave the gate out",
            )
        return timing.memory
    if gate.batch is None:
        return max(timing.latency.values())
    if gate.batch not in timing.latency:
        raise InputError(
            f"gate {gate.text!r} cannot be evaluated: that batch size was not timed",
            todo=f"Batch sizes: {', '.join(map(str, timing.latency))}; set `batch` to time another",
        )
    return timing.latency[gate.batch]


def _named(table: Mapping[str, _T], gate: Gate) -> _T:
    if gate.variable is None or gate.variable not in table:
        raise InputError(
            f"gate {gate.text!r} cannot be evaluated: there is no such variable",
            todo=f"Variables: {', '.join(table)}",
        )
    return table[gate.variable]


def _at(values: tuple[float, ...], gate: Gate) -> float:
    assert gate.step is not None
    if not 1 <= gate.step <= len(values):
        raise InputError(
            f"gate {gate.text!r} cannot be evaluated: steps run from 1 to {len(values)}",
            todo="Choose one of them",
        )
    return values[gate.step - 1]


def passes(gate: Gate, value: float) -> bool:
    """Whether a value satisfies the gate's limit."""
    return value >= gate.limit if gate.metric == "compression" else value <= gate.limit
