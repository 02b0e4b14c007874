"""The form `static` and the profile `qdq`: explicit quantization, as TensorRT and onnxruntime read it."""

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
from tqs_onnx.allocation.request import menus_of, prepared_source, settled_serving, size_of
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.session import open_session
from tqs_onnx.verification.decode import check_decoding
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import verify
from tqs_passes.encode.static import Range, range_between
from tqs_passes.encode.weight import Form
from tqs_passes.files.model import load_model
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.candidates import with_ranges
from tqs_passes.plan.plan import Assignment, Plan, ServingTarget
from tqs_passes.plan.targets import Serving, refusals
from tqs_passes.tier import Tier
from tqs_passes.transforms.switch import Switch, switch_inputs

TEXT = """<ir_version: 8, opset_import: ["" : OPSET]>
g (float[b, 32] x) => (float[b, 32] y) {
  a = MatMul(x, matrix)  a2 = MatMul(x, second)  s = Mul(a, a2)  c = Tanh(s)
  d = Gemm<transB = 1>(c, turned, bias)
  shape = Constant<value_ints = [-1, 4, 8]>()  image = Reshape(d, shape)
  f = Conv<kernel_shape = [5], pads = [2, 2]>(image, filter, offset)
  flat = Constant<value_ints = [-1, 32]>()  g1 = Reshape(f, flat)  y = Tanh(g1)
}"""
SHAPES = {
    "matrix": (32, 48),
    "second": (32, 48),
    "turned": (32, 48),
    "filter": (4, 4, 5),
    "bias": (32,),
    "offset": (4,),
}
ROUNDED = ("matrix", "second", "turned", "filter")
X = draws(9, 5, 32)
VALUES = {name: draws(i, *shape) / 6 for i, (name, shape) in enumerate(SHAPES.items())}
#: Channels of unequal size, so that one scale for each pays.
VALUES["filter"] *= np.array([0.2, 0.5, 1.0, 1.5], np.float32)[:, None, None]


@functools.cache
def source(opset: int = 18) -> Source:
    proto = parser.parse_model(TEXT.replace("OPSET", str(opset)))
    for name, values in VALUES.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    path = Path(tempfile.mkdtemp(prefix="tqs-static-")) / "m.onnx"
    onnx.save(proto, path)
    return open_source(path)


def ranges_for(serving: Serving) -> dict[str, tuple[Range, ...]]:
    """Ranges of every reader's input, and of the output of the Conv: half of them too narrow, so that values clip."""
    kind = serving.kind_of_ranges
    found = {name: (range_between(-2.0, 1.5, kind),) for name in ("matrix", "second")}
    found["turned"] = (range_between(-1.0, 1.0, kind),)
    return found | {"filter": (range_between(-1.5, 1.5, kind), range_between(-0.5, 1.0, kind))}


@functools.cache
def emitted(target: ServingTarget = ServingTarget.ORT_CPU) -> Subject:
    return written(source(), target, ranges_for(Serving(target)))


def written(source: Source, target: ServingTarget, known: dict[str, tuple[Range, ...]]) -> Subject:
    serving = settled_serving(source, Serving(target, names="keep", graph="keep").under("qdq"))
    ready = prepared_source(source, serving)
    menus = menus_of(source, ready, "qdq", (Tier.INT8, Tier.INT7), serving, rounded=True)
    chosen = []
    for menu in (with_ranges(m, known.get(m.weight.name, ())) for m in menus):
        found = [c for c in menu.candidates if c.assignment.form is Form.STATIC]
        chosen.append(
            min(
                found or menu.candidates[:1],
                key=lambda c: (
                    c.assignment.tier is not Tier.INT7,  # exact on every processor
                    c.assignment.axis is None,
                    c.assignment.error_energy,
                ),
            )
        )
    plan = Plan(
        source_sha256=source.sha256,
        profile="qdq",
        target=target,
        constants="keep",
        assignments=tuple(c.assignment for c in chosen),
        n_bytes=file_bytes(size_of(source, ready), chosen),
        source_bytes=source.facts.n_bytes,
    )
    out = Path(tempfile.mkdtemp(prefix="tqs-static-")) / "out.onnx"
    emit(source.lifted, plan, out)
    return Subject(source.path, out, source.lifted, source.survey, plan, {})


def bed(subject: Subject):
    return judging(subject, spec_of(2), Contexts({"x": X}, {}), {"y": 1.0})


def run(path: Path, x=X):
    session = open_session(path)
    return session.run({"x": session.value(x)})["y"].numpy()


def reference() -> np.ndarray:
    """What the file should compute, by the formulas of QuantizeLinear, DequantizeLinear and the readers."""
    w = {a.weight: reference_weight(a, VALUES[a.weight]) for a in emitted().plan.assignments}
    r = ranges_for(Serving())
    x = r["matrix"][0].rounded(X)
    c = np.tanh((x @ w["matrix"]) * (x @ w["second"]))
    d = r["turned"][0].rounded(c) @ w["turned"].T + VALUES["bias"]
    image = np.pad(r["filter"][0].rounded(d.reshape(-1, 4, 8)), ((0, 0), (0, 0), (2, 2)))
    f = sum(np.einsum("bck,oc->bok", image[:, :, k : k + 8], w["filter"][:, :, k]) for k in range(5))
    f = r["filter"][1].rounded((f + VALUES["offset"][:, None]).astype(np.float32))
    return np.tanh(f.reshape(-1, 32))


def test_products_and_convolutions_get_it_and_their_bytes_are_those_planned() -> None:
    subject = emitted()
    assert tuple(a.weight for a in subject.plan.assignments if a.form is Form.STATIC) == ROUNDED
    assert subject.emitted.stat().st_size == subject.plan.n_bytes
    onnx.checker.check_model(str(subject.emitted), full_check=True)
    assert check_decoding(subject, load_model(subject.emitted), bed(subject)) == len(ROUNDED)


def test_the_file_computes_what_the_formulas_say() -> None:
    got, wanted = run(emitted().emitted), reference()
    # A value on a rounding boundary may fall one level elsewhere: 1/255 of the output's range of 1.5.
    assert np.abs(got - wanted).max() < 0.007
    assert np.median(np.abs(got - wanted)) < 1e-6


def test_readers_of_one_tensor_share_its_nodes() -> None:
    graph = onnx.load(emitted().emitted).graph
    assert [n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"].count("x") == 1


def test_convolutions_may_follow_each_other(tmp_path: Path) -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[b, 16, 8] x) => (float[b, 16, 8] y) {
          a = Conv<kernel_shape = [1]>(x, first)  c = Conv<kernel_shape = [1]>(a, second)  y = Tanh(c)
        }"""
    )
    weights = {name: draws(i, 16, 16, 1) / 8 for i, name in enumerate(("first", "second"))}
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    onnx.save(proto, tmp_path / "m.onnx")
    x, a, c = (range_between(-bound, bound, "uint8") for bound in (3.0, 2.0, 1.0))
    subject = written(
        open_source(tmp_path / "m.onnx"), ServingTarget.ORT_CPU, {"first": (x, a), "second": (a, c)}
    )
    first, second = (reference_weight(p, weights[p.weight])[:, :, 0] for p in subject.plan.assignments)
    values = draws(3, 2, 16, 8)
    inner = a.rounded(first @ x.rounded(values))
    difference = run(subject.emitted, values) - np.tanh(c.rounded(second @ inner))
    assert {p.form for p in subject.plan.assignments} == {Form.STATIC}
    # A value on a rounding boundary may fall one level elsewhere.
    assert np.abs(difference).max() < 0.02
    assert np.median(np.abs(difference)) < 1e-6


RELUS = """<ir_version: 8, opset_import: ["" : 18]> g (float[b, 16, 8] x) => (float[b, 16, 8] y) {
  a = Conv<kernel_shape = [1]>(x, first)  r = Relu(a)
  c = Conv<kernel_shape = [1]>(r, second)  s = Relu(c)  t = Tanh(c)  y = Add(s, t)
}"""


@functools.cache
def behind_relus() -> tuple[Subject, dict[str, np.ndarray], dict[str, tuple[Range, ...]]]:
    """Return a file of two convolutions, with Relus behind: one alone reads its Conv, the other does not."""
    proto = parser.parse_model(RELUS)
    weights = {name: draws(i, 16, 16, 1) / 8 for i, name in enumerate(("first", "second"))}
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    path = Path(tempfile.mkdtemp(prefix="tqs-static-")) / "m.onnx"
    onnx.save(proto, path)
    x, r, c = (range_between(low, 1.5, "uint8") for low in (-3.0, 0.0, -1.0))
    known = {"first": (x, r), "second": (r, c)}
    return written(open_source(path), ServingTarget.ORT_CPU, known), weights, known


def test_the_output_is_rounded_behind_a_relu_that_alone_reads_it() -> None:
    subject, weights, known = behind_relus()
    graph = onnx.load(subject.emitted).graph
    made = {o: n for n in graph.node for o in n.output}
    relus = [n for n in graph.node if n.op_type == "Relu"]
    assert [made[n.input[0]].op_type for n in relus] == ["Conv", "DequantizeLinear"]
    assert subject.emitted.stat().st_size == subject.plan.n_bytes
    first, second = (reference_weight(p, weights[p.weight])[:, :, 0] for p in subject.plan.assignments)
    values = draws(3, 2, 16, 8)
    (x, r), (_, c) = known["first"], known["second"]
    inner = r.rounded(np.maximum(first @ x.rounded(values), 0))
    last = c.rounded(second @ inner)
    difference = run(subject.emitted, values) - (np.maximum(last, 0) + np.tanh(last))
    # A value on a rounding boundary may fall one level elsewhere.
    assert np.abs(difference).max() < 0.04
    assert np.median(np.abs(difference)) < 1e-6


def test_a_switch_rounds_behind_the_relu_too() -> None:
    subject, _, known = behind_relus()
    model = open_source(subject.source).lifted
    switched = Switch(("first", "second"), "uint8").apply(model).model.proto
    onnx.checker.check_model(switched, full_check=True)
    made = {o: n for n in switched.graph.node for o in n.output}
    assert made["r"].op_type == "If"
    assert made["c"].op_type == "If"
    session, switches = (
        open_session(switched.SerializeToString()),
        switch_inputs(switched, ("first", "second")),
    )
    values = draws(3, 2, 16, 8)
    fed = {"x": values, **switches["first"].on(known["first"]), **switches["second"].off()}
    got = session.run({n: session.value(v) for n, v in fed.items()})["y"].numpy()
    w = {t.name: numpy_helper.to_array(t)[:, :, 0] for t in model.proto.graph.initializer}
    x, r = known["first"]
    c = w["second"] @ r.rounded(np.maximum(w["first"] @ x.rounded(values), 0))
    difference = got - (np.maximum(c, 0) + np.tanh(c))
    assert np.abs(difference).max() < 0.04
    assert np.median(np.abs(difference)) < 1e-6


def test_onnxruntime_fuses_a_relu(tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    file = str(behind_relus()[0].emitted)
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found.count("QLinearConv") == 2
    assert found.count("QuantizeLinear") == 1, "the first output feeds the second Conv as integers"
    assert found.count("Relu") == 1


def test_onnxruntime_fuses_all_of_it(tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(emitted().emitted), options, providers=["CPUExecutionProvider"])
    found = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found.count("MatMulIntegerToFloat") == 3
    assert found.count("QLinearConv") == 1
    assert "Neg" not in found
    assert not {"MatMul", "Gemm", "Conv"} & set(found)


def test_a_file_for_tensorrt_keeps_its_rules() -> None:
    """Symmetric int8, scales above zero, weights per channel of the reader's output, no Q or DQ on biases."""
    subject = emitted(ServingTarget.TENSORRT)
    graph = onnx.load(subject.emitted).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {o: n for n in graph.node for o in n.output}
    pairs = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        assert np.all(stored[node.input[1]] > 0)
        assert stored[node.input[1]].dtype == np.float32
        if len(node.input) > 2:
            assert stored[node.input[2]].dtype == np.int8
            assert not stored[node.input[2]].any()
    decoded = {n.output[0]: n for n in pairs if n.op_type == "DequantizeLinear" and n.input[0] in stored}
    assert set(decoded) == set(ROUNDED)
    for node in graph.node:
        if node.op_type == "MatMul":
            assert decoded[node.input[1]].attribute[0].i == 1
        if node.op_type == "Conv":
            assert decoded[node.input[1]].attribute[0].i == 0
            assert node.input[2] in stored
        if node.op_type in ("MatMul", "Conv"):
            assert made[node.input[0]].op_type == "DequantizeLinear"
            assert made[made[node.input[0]].input[0]].op_type == "QuantizeLinear"
    assert not refusals(subject.plan, source().survey.weights, ServingTarget.TENSORRT, 18)
    assert np.abs(run(subject.emitted) - run(source().path)).max() < 0.5


def test_tensorrt_refuses_a_zero_point() -> None:
    full = [a.model_copy(update={"tier": Tier.INT8}) for a in emitted().plan.assignments]
    plan = emitted().plan.model_copy(update={"assignments": tuple(full)})
    found = dict(refusals(plan, source().survey.weights, ServingTarget.TENSORRT, 18))
    assert found["matrix"] == "TensorRT supports only symmetric signed integers"


@pytest.mark.parametrize("serving", [Serving(ServingTarget.PORTABLE), Serving()])
@pytest.mark.parametrize("opset", [12, 18])
def test_it_is_offered_where_it_can_be_read(serving: Serving, opset: int) -> None:
    serving = serving.under("qdq")
    menus = menus_of(
        source(opset), prepared_source(source(opset), serving), "qdq", (Tier.INT8,), serving, rounded=True
    )
    offers = [c for m in menus for c in m.candidates if c.assignment.form is Form.STATIC]
    assert bool(offers) == (opset == 18 and serving.target is ServingTarget.ORT_CPU)


def test_verify_simulates_the_ranges() -> None:
    found = verify(emitted(), bed(emitted()))
    assert found.drift.total > 0.01
    # Values on a rounding boundary may fall one level elsewhere; without the simulation the gap would be the drift.
    assert found.runtime_gap < 0.2 * found.drift.total


def test_a_switch_rounds_as_the_file_does() -> None:
    switched = Switch(ROUNDED, "uint8").apply(source().lifted)
    assert switched.changed == ROUNDED
    session = open_session(switched.model.proto.SerializeToString())
    switches = switch_inputs(switched.model.proto, ROUNDED)
    known = ranges_for(Serving())

    def with_inputs(*on: str):
        values = {}
        for n in ROUNDED:
            values |= switches[n].on(known[n]) if n in on else switches[n].off()
        return session.run({"x": session.value(X), **{k: session.value(v) for k, v in values.items()}})[
            "y"
        ].numpy()

    plain = run(source().path)
    # One float of the output may differ in its last place: the If changes how nodes are fused.
    assert np.abs(with_inputs() - plain).max() < 1e-6
    assert (
        np.abs(with_inputs("matrix", "second") - run(source().path, known["matrix"][0].rounded(X))).max()
        < 1e-6
    )
    assert np.abs(with_inputs("filter") - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("uint8", -1.0, 3.0), ("int8", -1.0, 3.0), ("uint8", 2.0, 5.0)]
)
def test_a_range_is_the_runtimes(kind: str, low: float, high: float) -> None:
    chosen = range_between(low, high, kind)
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> g (float[n] x, float s, {kind} z) => (float[n] y)'
        " { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"
    )
    session = open_session(proto.SerializeToString())
    x = np.linspace(-8, 8, 301, dtype=np.float32)
    scale, zero = chosen.arrays()
    got = session.run({"x": session.value(x), "s": session.value(scale), "z": session.value(zero)})[
        "y"
    ].numpy()
    assert np.array_equal(got, chosen.rounded(x))
    inside = x[(x >= min(low, 0)) & (x <= high)]
    assert np.abs(chosen.rounded(inside) - inside).max() <= chosen.scale * 0.501 + 1e-6


def test_a_range_of_zeros_has_a_scale() -> None:
    assert range_between(0.0, 0.0, "uint8").scale == 1.0
    assert not range_between(0.0, 0.0, "int8").rounded(np.zeros(3, np.float32)).any()


def test_ranges_belong_to_the_form_static_alone() -> None:
    a = emitted().plan.assignments[0].model_dump()
    with pytest.raises(ValueError, match="one or two ranges"):
        Assignment.model_validate(a | {"form": "dq", "tier": "INT8"})
    with pytest.raises(ValueError, match="no native type"):
        Assignment.model_validate(a | {"form": "dq", "ranges": ()})
    with pytest.raises(ValueError, match="no native type"):
        Assignment.model_validate(a | {"tier": "INT4"})


def test_the_plan_reads_back_and_its_digest_knows_the_ranges() -> None:
    plan = emitted().plan
    assert Plan.model_validate_json(plan.to_json()) == plan
    moved = [a.model_copy(update={"ranges": a.ranges[::-1]}) for a in plan.assignments]
    assert plan.model_copy(update={"assignments": tuple(moved)}).digest() != plan.digest()


ADDED = """<ir_version: 8, opset_import: ["" : 18]> g (float[b, 32] x) => (float[b, 32] y) {
  a = MatMul(x, first)  r = Add(a, bias)  s = Tanh(r)
  c = MatMul(s, second)  t = Add(bias, c)  u = Tanh(t)
  d = MatMul(u, third)  v = Add(d, bias)  y = Add(d, v)
}"""


@functools.cache
def before_adds() -> tuple[Subject, dict[str, np.ndarray], Range]:
    """Return a file of three products of two axes: the Adds of a vector behind two of them alone read them."""
    proto = parser.parse_model(ADDED)
    names = ("first", "second", "third")
    weights = {name: draws(i, 32, 32) / 6 for i, name in enumerate(names)} | {"bias": draws(5, 32)}
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    path = Path(tempfile.mkdtemp(prefix="tqs-static-")) / "m.onnx"
    onnx.save(proto, path)
    within = range_between(-3.0, 1.5, "uint8")
    known = dict.fromkeys(names, (within,))
    return written(open_source(path), ServingTarget.ORT_CPU, known), weights, within


def test_an_add_behind_a_product_keeps_it_in_integers(tmp_path: Path) -> None:
    import onnxruntime

    subject, weights, within = before_adds()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(subject.emitted), options, providers=["CPUExecutionProvider"])
    found = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found.count("MatMulIntegerToFloat") == 3
    assert found.count("Gemm") == found.count("MatMul") == 0
    assert subject.emitted.stat().st_size == subject.plan.n_bytes
    onnx.checker.check_model(str(subject.emitted), full_check=True)
    w = {a.weight: reference_weight(a, weights[a.weight]) for a in subject.plan.assignments}
    u = X
    for name in ("first", "second"):
        u = np.tanh(within.rounded(u) @ w[name] + w["bias"]).astype(np.float32)
    d = within.rounded(u) @ w["third"]
    difference = run(subject.emitted) - (2 * d + w["bias"])
    # A value on a rounding boundary may fall one level elsewhere.
    assert np.abs(difference).max() < 0.02
    assert np.median(np.abs(difference)) < 1e-6


STAYING = {
    "a product of three axes": (
        "(float[b, 4, 32] x) => (float[b, 4, 32] y) { a = MatMul(x, w)  r = Add(a, bias)  y = Tanh(r) }",
        "r",
    ),
    "a computed operand": (
        "(float[b, 32] x) => (float[b, 32] y) { a = MatMul(x, w)  s = Mul(x, bias)  y = Add(a, s) }",
        "y",
    ),
    "an input": ("(float[b, 32] x) => (float[b, 32] y) { a = MatMul(x, w)  t = Mul(bias, bias)  y = Add(x, a) }", "y"),
    "a product that is an output": (
        "(float[b, 32] x) => (float[b, 32] y, float[b, 32] a) { a = MatMul(x, w)  y = Add(a, bias) }",
        "y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYING)
def test_an_add_that_must_stay_stays(case: str, tmp_path: Path) -> None:
    body, add = STAYING[case]
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {body}')
    weights = {"w": draws(1, 32, 32) / 6, "bias": draws(5, 32)}
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    onnx.save(proto, tmp_path / "m.onnx")
    within = range_between(-3.0, 3.0, "uint8")
    subject = written(open_source(tmp_path / "m.onnx"), ServingTarget.ORT_CPU, {"w": (within,)})
    assert [a.form for a in subject.plan.assignments if a.weight == "w"] == [Form.STATIC]
    assert add in {n.output[0] for n in onnx.load(subject.emitted).graph.node if n.op_type == "Add"}
    assert subject.emitted.stat().st_size == subject.plan.n_bytes


def test_for_tensorrt_an_add_stays_where_it_is() -> None:
    subject, _, _ = before_adds()
    within = range_between(-3.0, 3.0, "int8")
    known = dict.fromkeys(("first", "second", "third"), (within,))
    graph = onnx.load(written(open_source(subject.source), ServingTarget.TENSORRT, known).emitted).graph
    assert {n.output[0] for n in graph.node if n.op_type == "Add"} == {"r", "t", "v", "y"}
    assert all(n.op_type not in ("Sub", "Neg") for n in graph.node)
