"""`dynamic`: readers that round their input to 8 bits and multiply integers, and the switch that simulates them."""

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
from tqs_passes.errors import GateError
from tqs_passes.files.model import load_model
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.candidates import Candidate
from tqs_passes.plan.plan import Plan, ServingTarget
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier
from tqs_passes.transforms.switch import Switch, switch_inputs

TEXT = """<ir_version: 8, opset_import: ["" : OPSET]>
g (float[b, 32] x) => (float[b, 32] y) {
  a = MatMul(x, matrix)  c = Tanh(a)  d = Gemm<transB = 1>(c, turned, bias)  e = Tanh(d)
  s = Gemm<alpha = 0.5>(e, scaled, bias)  t = Transpose(behind)  p = MatMul(s, t)  y = Tanh(p)
}"""
SHAPES = {"matrix": (32, 48), "turned": (32, 48), "scaled": (32, 32), "behind": (32, 32), "bias": (32,)}
INTEGERS = [tier for tier in Tier if tier.is_integer]
X = draws(9, 5, 32)
#: The widest integers whose products saturate on no processor.
EXACT = Tier.INT7


@functools.cache
def source(opset: int = 18) -> Source:
    proto = parser.parse_model(TEXT.replace("OPSET", str(opset)))
    for i, (name, shape) in enumerate(SHAPES.items()):
        proto.graph.initializer.append(numpy_helper.from_array(draws(i, *shape) / 8, name))
    path = Path(tempfile.mkdtemp(prefix="tqs-dynamic-")) / "m.onnx"
    onnx.save(proto, path)
    return open_source(path)


def offers(tiers: tuple[Tier, ...], opset: int = 18, serving: Serving | None = None) -> list[list[Candidate]]:
    serving = serving or Serving()
    ready = prepared_source(source(opset), serving)
    menus = menus_of(source(opset), ready, "exact", tiers, serving, rounded=True)
    return [
        [c for c in m.candidates if c.assignment.form is Form.DYNAMIC] or [m.candidates[0]] for m in menus
    ]


@functools.cache
def emitted(tiers: tuple[Tier, ...], opset: int = 18, *, rows: bool = False) -> Subject:
    chosen = [
        min(offer, key=lambda c: (bool(c.assignment.rows) != rows, c.assignment.error_energy))
        for offer in offers(tiers, opset)
    ]
    ready = prepared_source(source(opset), Serving())
    plan = Plan(
        source_sha256=source(opset).sha256,
        profile="exact",
        constants="small",
        assignments=tuple(c.assignment for c in chosen),
        n_bytes=file_bytes(size_of(source(opset), ready), chosen),
        source_bytes=source(opset).facts.n_bytes,
    )
    out = Path(tempfile.mkdtemp(prefix="tqs-dynamic-")) / "out.onnx"
    emit(source(opset).lifted, plan, out)
    return Subject(source(opset).path, out, source(opset).lifted, source(opset).survey, plan, {})


def bed(subject: Subject):
    return judging(subject, spec_of(2), Contexts({"x": X}, {}), {"y": 1.0})


def test_only_plain_products_are_offered_with_rounded_inputs() -> None:
    found = {o[0].assignment.weight for o in offers((Tier.INT8,)) if o[0].assignment.form is Form.DYNAMIC}
    assert found == {"matrix", "turned"}


@pytest.mark.parametrize("target", [t for t in ServingTarget if t is not ServingTarget.ORT_CPU])
def test_no_other_target_is_offered_it(target: ServingTarget) -> None:
    found = offers((Tier.INT8,), serving=Serving(target))
    assert all(c.assignment.form is not Form.DYNAMIC for offer in found for c in offer)


def test_an_opset_without_the_operator_is_not_offered_it() -> None:
    assert all(c.assignment.form is not Form.DYNAMIC for offer in offers((Tier.INT8,), 10) for c in offer)


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("tier", INTEGERS)
def test_every_width_decodes_bit_for_bit_in_the_bytes_planned(tier: Tier, opset: int) -> None:
    subject = emitted((tier,), opset)
    assert subject.emitted.stat().st_size == subject.plan.n_bytes
    onnx.checker.check_model(str(subject.emitted))
    assert check_decoding(subject, load_model(subject.emitted), bed(subject)) == 2


def test_row_tiers_decode_bit_for_bit() -> None:
    subject = emitted((Tier.INT8, Tier.INT3), rows=True)
    rows = [a for a in subject.plan.assignments if a.rows and a.form is Form.DYNAMIC]
    assert rows
    assert check_decoding(subject, load_model(subject.emitted), bed(subject)) == 2


def test_a_changed_level_is_caught() -> None:
    subject = emitted((Tier.INT8,))
    model = load_model(subject.emitted)
    stored = next(t for t in model.proto.graph.initializer if t.name == "matrix")
    raw = bytearray(stored.raw_data)
    raw[7] ^= 1
    stored.raw_data = bytes(raw)
    with pytest.raises(GateError, match="'matrix' does not decode"):
        check_decoding(subject, model, bed(subject))


def test_the_file_computes_what_the_formula_says() -> None:
    subject = emitted((EXACT,))
    kept = {n: draws(i, *s) / 8 for i, (n, s) in enumerate(SHAPES.items())}
    w = {
        a.weight: reference_weight(a, kept[a.weight]) if a.form is Form.DYNAMIC else kept[a.weight]
        for a in subject.plan.assignments
        if a.weight in kept
    } | {"bias": kept["bias"]}
    c = np.tanh(rounded_input(X) @ w["matrix"])
    e = np.tanh(rounded_input(c) @ w["turned"].T + w["bias"])
    y = np.tanh((0.5 * e @ w["scaled"] + w["bias"]) @ w["behind"].T)
    session = open_session(subject.emitted)
    got = session.run({"x": session.value(X)})["y"].numpy()
    # Float sums in another order; a value on a rounding boundary may fall one level (1/255 of the range) elsewhere.
    assert np.abs(got - y).max() < 2e-3
    assert np.median(np.abs(got - y)) < 1e-6


def test_onnxruntime_fuses_it_also_when_levels_and_scales_are_folded_at_load(tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    subject = emitted((EXACT, Tier.INT3), rows=True)
    onnxruntime.InferenceSession(str(subject.emitted), options, providers=["CPUExecutionProvider"])
    found = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found.count("DynamicQuantizeMatMul") == 2
    assert "DynamicQuantizeLinear" not in found


def test_the_rounding_is_the_runtimes() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[n] x) => (float[n] y)'
        " { q, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, s, z) }"
    )
    session = open_session(proto.SerializeToString())
    for x in (draws(1, 300), np.abs(draws(2, 300)) + 1, -np.abs(draws(3, 300)), np.zeros(4, np.float32)):
        got = session.run({"x": session.value(x)})["y"].numpy()
        assert np.array_equal(got, rounded_input(x))


def test_verify_simulates_the_rounded_inputs() -> None:
    subject = emitted((EXACT,))
    found = verify(subject, bed(subject))
    # Without the simulation the gap would be the drift that rounding the inputs causes: here most of all drift.
    assert found.runtime_gap < 0.1 * found.drift.total
    assert found.drift.total > 1e-4


def test_a_switch_rounds_the_input_of_its_reader_alone_and_nothing_when_off() -> None:
    weights = ("matrix", "turned", "bias")
    found = Switch(weights).apply(source().lifted)
    assert found.changed == ("matrix", "turned")
    assert [s.what for s in found.skipped] == ["bias"]
    plain = open_session(source().path)
    session = open_session(found.model.proto.SerializeToString())
    switches = switch_inputs(found.model.proto, weights)

    def run(*on: str):
        states = {}
        for n in found.changed:
            states |= switches[n].on() if n in on else switches[n].off()
        fed = {name: session.value(value) for name, value in states.items()}
        return session.run({"x": session.value(X), **fed})["y"].numpy()

    bare = plain.run({"x": plain.value(X)})["y"].numpy()
    assert np.array_equal(run(), bare)
    rounded = plain.run({"x": plain.value(rounded_input(X))})["y"].numpy()
    assert np.array_equal(run("matrix"), rounded)
    assert not np.array_equal(run("turned"), bare)
