"""The form `dynamic` of an LSTM: the runtime's DynamicQuantizeLSTM, and its simulation in floats."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tests.models import draws
from tests.rollouts import judging, spec_of
from tqs_onnx.allocation.file_size import file_bytes
from tqs_onnx.allocation.request import menus_of, prepared_source, size_of
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.session import open_session
from tqs_onnx.verification.decode import check_decoding
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import verify
from tqs_passes.encode.dynamic import rounded_input
from tqs_passes.encode.weight import Form
from tqs_passes.errors import GateError, InputError
from tqs_passes.files.model import load_model
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier
from tqs_passes.transforms.switch import Switch, switch_inputs

H, N_IN, B, S = 16, 8, 3, 6
AS_IS = Serving(names="keep", graph="keep")
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[s, b, 8] x) => (float[s, b, 8] y) {
  h, hn = LSTM<hidden_size = 16DIRECTION>(x, W, R, Bias)
  axis = Constant<value_ints = [1]>()  flat = Squeeze(h, axis)  y = MatMul(flat, head)
}"""
VALUES = {
    "W": draws(1, 1, 4 * H, N_IN) / 3,
    "R": draws(2, 1, 4 * H, H) / 4,
    "Bias": draws(3, 1, 8 * H) / 10,
    "head": draws(4, H, 8) / 4,
}
X = draws(9, S, B, 8)
#: The widest integers whose products saturate on no processor.
EXACT = Tier.INT7


@functools.cache
def source(direction: str = "forward", opset: int = 17) -> Source:
    way = "" if direction == "forward" else f', direction = "{direction}"'
    proto = parser.parse_model(TEXT.replace("DIRECTION", way))
    for name, values in VALUES.items():
        held = values
        if direction == "bidirectional" and name != "head":
            held = np.concatenate([values, values])
        proto.graph.initializer.append(numpy_helper.from_array(held, name))
    path = Path(tempfile.mkdtemp(prefix="tqs-lstm-")) / "m.onnx"
    onnx.save(proto, path)
    return open_source(path)


def menus(direction: str = "forward", serving: Serving | None = None, tiers: tuple[Tier, ...] = (Tier.INT8,)):
    serving = serving or AS_IS
    opened = source(direction)
    return menus_of(opened, prepared_source(opened, serving), "exact", tiers, serving, rounded=True)


@functools.cache
def emitted(direction: str = "forward", tier: Tier = EXACT, left_out: str = "head") -> Subject:
    opened = source(direction)
    chosen = []
    for menu in menus(direction, tiers=(tier,)):
        offer = [
            c
            for c in menu.candidates
            if (c.assignment.form is Form.DYNAMIC) == (menu.weight.name != left_out)
        ]
        wanted = [c for c in offer if c.assignment.axis is not None] or list(menu.candidates[:1])
        chosen.append(min(wanted, key=lambda c: (c.assignment.form is Form.KEEP, c.assignment.error_energy)))
    plan = Plan(
        source_sha256=opened.sha256,
        profile="exact",
        constants="small",
        assignments=tuple(c.assignment for c in chosen),
        n_bytes=file_bytes(size_of(opened, prepared_source(opened, AS_IS)), chosen),
        source_bytes=opened.facts.n_bytes,
    )
    out = Path(tempfile.mkdtemp(prefix="tqs-lstm-")) / "out.onnx"
    emit(opened.lifted, plan, out)
    return Subject(opened.path, out, opened.lifted, opened.survey, plan, {})


def bed(subject: Subject):
    return judging(subject, spec_of(2), Contexts({"x": draws(9, 4, 2, 3, 8)[:, 0]}, {}), {"y": 1.0})


def run(proto, x=X, **more):
    session = open_session(proto)
    return session.run({"x": session.value(x), **{k: session.value(v) for k, v in more.items()}})["y"].numpy()


def lstm(x, w, r, bias, *, rounds: bool):
    """The equations of ONNX's LSTM (gates i, o, f, c), its input and its states rounded or not."""
    sig = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    seen = rounded_input(x) if rounds else x
    h = c = np.zeros((x.shape[1], H), np.float32)
    out = []
    for step in seen:
        state = rounded_input(h) if rounds else h
        gates = step @ w[0].T + state @ r[0].T + bias[0, : 4 * H] + bias[0, 4 * H :]
        i, o, f, g = np.split(gates.astype(np.float32), 4, axis=1)
        c = sig(f) * c + sig(i) * np.tanh(g)
        h = (sig(o) * np.tanh(c)).astype(np.float32)
        out.append(h)
    return np.stack(out)


@pytest.mark.parametrize("tier", [Tier.INT8, Tier.INT4, Tier.INT3])
def test_both_matrices_decode_bit_for_bit_in_the_bytes_planned(tier: Tier) -> None:
    subject = emitted(tier=tier)
    forms = {a.weight: a.form for a in subject.plan.assignments}
    assert forms["W"] is forms["R"] is Form.DYNAMIC
    assert subject.emitted.stat().st_size == subject.plan.n_bytes
    assert [n.op_type for n in onnx.load(subject.emitted).graph.node].count("DynamicQuantizeLSTM") == 1
    assert check_decoding(subject, load_model(subject.emitted), bed(subject)) >= 2


def test_the_file_computes_what_the_equations_say() -> None:
    subject = emitted()
    w = {a.weight: reference_weight(a, VALUES[a.weight]) for a in subject.plan.assignments}
    wanted = lstm(X, w["W"], w["R"], w["Bias"], rounds=True) @ w["head"]
    got = run(subject.emitted)
    # The runtime's exponentials differ in the last places; a state on a rounding boundary may fall one level elsewhere.
    assert np.abs(got - wanted).max() < 5e-3
    assert (
        np.abs(got - lstm(X, w["W"], w["R"], w["Bias"], rounds=False) @ w["head"]).max()
        > np.abs(got - wanted).max()
    )


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_switch_rounds_as_the_equations_say_and_nothing_when_off(direction: str) -> None:
    made = Switch(("W", "head")).apply(source(direction).lifted)
    assert made.changed == ("W", "head")
    switches = switch_inputs(made.model.proto, ("W", "head"))
    serialized = made.model.proto.SerializeToString()
    off = switches["W"].off() | switches["head"].off()
    assert np.array_equal(run(serialized, **off), run(source(direction).path))
    x = X if direction == "forward" else X[::-1]
    wanted = lstm(x, VALUES["W"], VALUES["R"], VALUES["Bias"], rounds=True) @ VALUES["head"]
    wanted = wanted if direction == "forward" else wanted[::-1]
    got = run(serialized, **off | switches["W"].on())
    assert np.abs(got - wanted).max() < 5e-3
    assert np.median(np.abs(got - wanted)) < 1e-5


def test_verify_simulates_it() -> None:
    found = verify(emitted(), bed(emitted()))
    assert found.runtime_gap < 0.5 * found.drift.total


def test_one_matrix_alone_is_refused() -> None:
    with pytest.raises(InputError, match="only one matrix of the LSTM"):
        emitted(left_out="R")


def test_a_changed_level_is_caught() -> None:
    model = load_model(emitted().emitted)
    stored = next(t for t in model.proto.graph.initializer if t.name == "R_quantized")
    raw = bytearray(stored.raw_data)
    raw[7] ^= 1
    stored.raw_data = bytes(raw)
    with pytest.raises(GateError, match="'R' does not decode"):
        check_decoding(emitted(), model, bed(emitted()))


@pytest.mark.parametrize(
    ("direction", "serving"),
    [("bidirectional", AS_IS), ("forward", Serving(standard_ops=True, names="keep", graph="keep"))],
)
def test_it_is_offered_only_where_the_runtime_has_it(direction: str, serving: Serving) -> None:
    offers = {m.weight.name: {c.assignment.form for c in m.candidates} for m in menus(direction, serving)}
    assert Form.DYNAMIC in offers["head"]
    assert Form.DYNAMIC not in offers["W"] | offers["R"]
