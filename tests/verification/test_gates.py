"""Gates: what can be written, what is measured, what passes."""

import math

import pytest

from tqs_onnx.jobs.release import judge
from tqs_onnx.verification.evaluate import Drift, TruthError
from tqs_onnx.verification.gates import Gate, Measured, gate_value, parse_gate, passes, value_text
from tqs_onnx.verification.timing import Side, Timing
from tqs_passes.errors import InputError

DRIFT = Drift(total=0.1, p95=0.3, per_variable={"u": 0.05, "v": 0.2}, per_step=(0.01, 0.4))


def truth(degradation: float, *steps: float) -> TruthError:
    return TruthError(
        mae_fp32=1,
        mae=1,
        rmse_fp32=1,
        rmse=1,
        degradation=degradation,
        degradation_per_step=steps,
        mae_fp32_per_step=(1.0,) * len(steps),
        mae_per_step=tuple(1 + s / 100 for s in steps),
    )


_SIDE = Side(load_ms=1.0, memory_mb=1.0, peak_mb=1.0, latency_ms={1: 1.0, 32: 1.0})
TIMING = Timing(
    fp32=_SIDE,
    file=_SIDE,
    load=1.0,
    memory=0.75,
    peak=1.0,
    latency={1: 0.8, 32: 0.5},
    rounds=1,
    threads=1,
    processor="",
)
MEASURED = Measured(DRIFT, {"u": truth(2.0, 1.0, 3.0), "v": truth(-1.0, 6.0, -8.0)}, 7.5, TIMING)


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("drift<=0.1", Gate("drift<=0.1", "drift", 0.1)),
        ("drift <= 1e-1", Gate("drift <= 1e-1", "drift", 0.1)),
        ("drift:p95<=0.2", Gate("drift:p95<=0.2", "drift", 0.2, p95=True)),
        ("drift:variable=t2m<=0.1", Gate("drift:variable=t2m<=0.1", "drift", 0.1, variable="t2m")),
        ("drift:step=4<=0.3", Gate("drift:step=4<=0.3", "drift", 0.3, step=4)),
        ("degradation<=-5", Gate("degradation<=-5", "degradation", -5.0)),
        (
            "degradation:variable=OT:step=2<=5",
            Gate("degradation:variable=OT:step=2<=5", "degradation", 5.0, variable="OT", step=2),
        ),
        ("compression>=8", Gate("compression>=8", "compression", 8.0)),
        ("latency<=0.6", Gate("latency<=0.6", "latency", 0.6)),
        ("latency:batch=32<=0.5", Gate("latency:batch=32<=0.5", "latency", 0.5, batch=32)),
        ("memory<=0.8", Gate("memory<=0.8", "memory", 0.8)),
    ],
)
def test_a_gate_is_read(text: str, gate: Gate) -> None:
    assert parse_gate(text) == gate


@pytest.mark.parametrize(
    "text",
    [
        *("", "drift", "drift<0.1", "drift<=", "drift<=x", "drift<=nan", "drift<=inf", "drift>=0.1"),
        *(
            "compression<=8",
            "compression:step=1>=8",
            "bias<=1",
            "drift:<=1",
            "drift:step=x<=1",
            "drift:step<=1",
        ),
        *("drift:p95=1<=1", "drift:variable=<=1", "drift:p95:step=0<=1", "drift:p95:variable=u<=1"),
        *("drift:step=1:step=2<=1", "drift:variable=u:step=1<=1", "degradation:p95<=1", "drift:worst<=1"),
        *("latency>=1", "latency:step=1<=1", "latency:batch=x<=1", "memory:batch=1<=1", "drift:batch=1<=1"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a valid gate"):
        parse_gate(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("drift<=1", 0.1),
        ("drift:p95<=1", 0.3),
        ("drift:variable=v<=1", 0.2),
        ("drift:step=2<=1", 0.4),
        ("degradation<=1", 2.0),
        ("degradation:variable=v<=1", -1.0),
        ("degradation:step=1<=1", 6.0),
        ("degradation:variable=u:step=2<=1", 3.0),
        ("compression>=1", 7.5),
        ("latency<=1", 0.8),
        ("latency:batch=1<=1", 0.8),
        ("latency:batch=32<=1", 0.5),
        ("memory<=1", 0.75),
    ],
)
def test_a_gate_is_held_against_its_measure(text: str, value: float) -> None:
    assert gate_value(parse_gate(text), MEASURED) == value


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("drift<=0.1", True),
        ("drift<=0.0999", False),
        ("compression>=7.5", True),
        ("compression>=7.51", False),
    ],
)
def test_the_limit_itself_passes(text: str, holds: bool) -> None:
    gate = parse_gate(text)
    assert passes(gate, gate_value(gate, MEASURED)) is holds


def test_an_infinite_degradation_fails_its_gate() -> None:
    gate = parse_gate("degradation<=1e300")
    assert not passes(gate, gate_value(gate, Measured(DRIFT, {"u": truth(math.inf)}, 1.0)))


@pytest.mark.parametrize(
    ("text", "measured", "said"),
    [
        ("degradation<=1", Measured(DRIFT, {}, 1.0), "no truth"),
        ("drift:variable=w<=1", MEASURED, "no such variable"),
        ("degradation:variable=w<=1", MEASURED, "no such variable"),
        ("drift:step=3<=1", MEASURED, "steps run from 1 to 2"),
        ("drift:step=0<=1", MEASURED, "steps run from 1 to 2"),
        ("degradation:step=3<=1", MEASURED, "steps run from 1 to 2"),
        ("latency<=1", Measured(DRIFT, {}, 1.0), "the file was not timed"),
        ("latency:batch=8<=1", MEASURED, "that batch size was not timed"),
        (
            "memory<=1",
            Measured(DRIFT, {}, 1.0, TIMING.model_copy(update={"memory": None})),
            "does not report memory",
        ),
        (
            "drift<=1",
            Measured(DRIFT.model_copy(update={"total": math.nan}), {}, 1.0),
            "its value is not a number",
        ),
    ],
)
def test_a_gate_that_cannot_be_evaluated_is_bad_input(text: str, measured: Measured, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        gate_value(parse_gate(text), measured)
    assert caught.value.exit_code == 2


def test_results_name_the_gate_its_value_and_the_verdict() -> None:
    from types import SimpleNamespace

    found = SimpleNamespace(drift=DRIFT, truth={}, compression=7.5, timing=None, on_made_contexts=False)
    results = judge((parse_gate("drift<=0.05"), parse_gate("compression>=7")), found)
    assert [(r.gate, r.value, r.passed) for r in results] == [
        ("drift<=0.05", 0.1, False),
        ("compression>=7", 7.5, True),
    ]


@pytest.mark.parametrize(
    ("gate", "value", "shown"),
    [
        ("drift<=1.0", 1.0000004, "1.0000004"),
        ("drift<=1.0", 1.0, "1"),
        ("drift<=0.1", 0.0421567, "0.04216"),
        ("compression>=8", 7.99999, "7.99999"),
        ("compression>=8", 8.0004, "8.0004"),
        ("degradation<=5", float("inf"), "inf"),
    ],
)
def test_a_value_has_the_digits_that_tell_it_from_its_limit(gate: str, value: float, shown: str) -> None:
    assert value_text(gate, value) == shown
