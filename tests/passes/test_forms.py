"""`forms`: which form is written for which reader, profile and target, and that each serves what the plan says."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tests.models import draws
from tests.rollouts import judging
from tqs_onnx.allocation.file_size import file_bytes
from tqs_onnx.allocation.request import menus_of, prepared_source, size_of
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import Verification, verify
from tqs_passes.encode.nbits import block_of, nibble_values, unpacked
from tqs_passes.encode.weight import Encoding, Form
from tqs_passes.errors import GateError, InputError
from tqs_passes.files.model import load_model
from tqs_passes.graph.readers import Way, sole_readers, way_of
from tqs_passes.grids.grid import Grid
from tqs_passes.plan.candidates import Candidate
from tqs_passes.plan.forms import LEAST_VALUES, PROFILES, Profile
from tqs_passes.plan.plan import Plan, ServingTarget
from tqs_passes.plan.targets import Serving, refusals
from tqs_passes.tier import Tier

TEXT = """<ir_version: 8, opset_import: ["" : OPSET]>
g (float[b, 64] x, int64[b, 2] idx) => (float[b, 64] y, float[b, 2, 24] z, float[b, 2, 8] v) {
  a = MatMul(x, matrix)  b1 = Tanh(a)
  [plain] c = Gemm(b1, gemm, bias)  d = Tanh(c)
  e = Gemm<transB = 1>(d, turned, bias)  f = Tanh(e)
  t = Transpose(behind)  h = MatMul(f, t)
  s = Gemm<alpha = 0.5>(h, scaled, bias)
  p = MatMul(s, odd)  q = MatMul(p, back)
  y = Tanh(q)
  z = Gather(table, idx)
  v = Gather(rows, idx)
}"""
SHAPES = {
    "matrix": (64, 96), "gemm": (96, 64), "turned": (64, 64), "behind": (64, 64), "scaled": (64, 64), "odd": (64, 50),
    "back": (50, 64), "table": (40, 24), "rows": (30, 8),
}  # fmt: skip
SPEC = """version = 1
[rollout]
steps = 2
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[[static]]
input = "idx"
[trajectory]
outputs = ["y", "z", "v"]
"""
BELOW_8 = [t for t in Tier if t.is_integer]


def served(opset: int = 18) -> onnx.ModelProto:
    proto = parser.parse_model(TEXT.replace("OPSET", str(opset)))
    for i, (name, shape) in enumerate(SHAPES.items()):
        proto.graph.initializer.append(numpy_helper.from_array(draws(i, *shape) / 8, name))
    proto.graph.initializer.append(numpy_helper.from_array(draws(50, 64), "bias"))
    return proto


@functools.cache
def source(opset: int = 18) -> Source:
    path = Path(tempfile.mkdtemp(prefix="tqs-forms-")) / "served.onnx"
    onnx.save(served(opset), path)
    return open_source(path)


def chosen(tier: Tier, profile: Profile, serving: Serving, opset: int = 18) -> list[Candidate]:
    """Return for every matrix the least error at a tier, all forms offered however small the weight."""
    with mock.patch.dict(LEAST_VALUES, clear=True):
        ready = prepared_source(source(opset), serving)
        menus = menus_of(source(opset), ready, profile, (tier,), serving)
    return [
        min((c for c in m.candidates if c.assignment.tier is tier), key=energy, default=m.candidates[0])
        for m in menus
    ]


def energy(c: Candidate) -> float:
    return c.assignment.error_energy


def forms_of(tier: Tier, profile: Profile, serving: Serving | None = None) -> dict[str, Form]:
    return {c.assignment.weight: c.assignment.form for c in chosen(tier, profile, serving or Serving())}


@functools.cache
def emitted(tier: Tier, profile: Profile, opset: int = 18, serving: Serving = Serving()) -> Subject:  # noqa: B008
    found = chosen(tier, profile, serving, opset)
    ready = prepared_source(source(opset), serving)
    plan = Plan(
        source_sha256=source(opset).sha256,
        profile=profile,
        target=serving.target,
        constants="small",
        assignments=tuple(c.assignment for c in found),
        n_bytes=file_bytes(size_of(source(opset), ready), found),
        source_bytes=source(opset).facts.n_bytes,
    )
    path = source(opset).path.with_name(f"{tier}.{profile}.{serving.target.value}.onnx")
    emit(source(opset).lifted, plan, path)
    return Subject(source(opset).path, path, source(opset).lifted, source(opset).survey, plan, {})


def bed(subject: Subject) -> Testbed:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    contexts = Contexts({"x": x, "idx": rng.integers(-7, 7, (3, 2))}, {})
    return judging(subject, parse_spec(SPEC), contexts, {"y": 1.0, "z": 1.0, "v": 1.0})


@functools.cache
def verified(tier: Tier, profile: Profile, opset: int = 18) -> Verification:
    subject = emitted(tier, profile, opset)
    return verify(subject, bed(subject))


# ---- the table


def test_the_way_of_every_reader_is_told() -> None:
    readers = sole_readers(source().lifted.proto.graph)
    ways = {w.name: way_of(w, readers) for w in source().survey.weights}
    matrix, other = Way.MATRIX, Way.OTHER
    assert ways == {
        "matrix": matrix, "gemm": matrix, "turned": Way.TURNED, "behind": Way.MOVED, "scaled": other, "odd": matrix,
        "back": matrix, "table": Way.TABLE, "rows": Way.TABLE, "bias": other,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("fast", "matrix:dq gemm:dq turned:cm behind:cm scaled:cm odd:dq back:dq table:cm"),
        ("exact", "matrix:nbits gemm:nbits turned:nbits behind:cm scaled:cm odd:nbits back:cm table:cm"),
        (
            "small",
            "matrix:nbits gemm:nbits turned:nbits behind:cm scaled:dq odd:nbits back:dq table:gathered",
        ),
    ],
)
def test_the_form_of_every_reader(profile: Profile, expected: str) -> None:
    found = forms_of(Tier.INT3, profile)
    pairs = (pair.split(":") for pair in expected.split())
    assert all(found[name].value == form for name, form in pairs), found


def test_more_than_four_bits_are_never_packed() -> None:
    for tier in (Tier.INT5, Tier.INT8):
        assert Form.NBITS not in forms_of(tier, "exact").values()
        assert forms_of(tier, "small")["matrix"] is Form.DEQUANTIZE


#: The profiles that store bit planes; `qdq` has native integers only, and nothing below 8 bits at opset 18.
OF_PLANES = tuple(p for p in PROFILES if p != "qdq")
CUDA = Serving(target=ServingTarget.ORT_CUDA)


def test_on_cuda_also_eight_bits_are_multiplied_as_stored_where_memory_counts() -> None:
    """On the CPU that kernel takes 23 times as long as FP32, so nothing but `small` on CUDA gets it."""
    found = forms_of(Tier.INT8, "small", CUDA)
    assert {found[name] for name in ("matrix", "gemm", "turned")} == {Form.NBITS}
    assert {found[name] for name in ("odd", "back", "scaled")} == {Form.DEQUANTIZE, Form.NBITS}
    for profile in PROFILES:
        assert Form.NBITS not in forms_of(Tier.INT8, profile).values()
        assert Form.NBITS not in forms_of(Tier.INT5, profile, CUDA).values()
    plan = emitted(Tier.INT8, "small", serving=CUDA).plan
    refused = dict(refusals(plan, source().survey.weights, ServingTarget.ORT_CPU, 18))
    assert refused["matrix"] == "MatMulNBits with 8 bits is slow or missing on ort-cpu"
    assert not refusals(plan, source().survey.weights, ServingTarget.ORT_CUDA, 18)


@pytest.mark.parametrize("tier", [Tier.INT8, Tier.INT4, Tier.INT2])
def test_a_file_for_cuda_decodes_to_its_plan_and_is_as_big_as_planned(tier: Tier) -> None:
    """The CPU has the same operator, so that all but the speed can be told here."""
    subject = emitted(tier, "small", serving=CUDA)
    found = verify(subject, bed(subject))
    assert found.n_decoded >= len(SHAPES) - 1
    assert found.runtime_gap < 2e-2  # 8-bit activations where DequantizeLinear is fused
    assert subject.plan.n_bytes == subject.emitted.stat().st_size


def test_levels_beyond_a_nibble_are_not_offered_where_packing_is() -> None:
    serving = Serving()
    with mock.patch.dict(LEAST_VALUES, clear=True):
        menus = menus_of(source(), prepared_source(source(), serving), "exact", (Tier.INT4,), serving)
    found = {m.weight.name: {c.assignment.grid for c in m.candidates[1:]} for m in menus}
    assert found["matrix"] == {Grid.SIGNED}
    assert found["behind"] == {Grid.SIGNED, Grid.MIDRISE}


def test_small_matrices_are_multiplied_under_exact() -> None:
    menus = menus_of(source(), prepared_source(source(), Serving()), "exact", (Tier.INT3,), Serving())
    assert {c.assignment.form for m in menus for c in m.candidates} == {Form.KEEP, Form.CAST_MUL}


@pytest.mark.parametrize(
    "serving",
    [
        Serving(standard_ops=True),
        Serving(target=ServingTarget.PORTABLE),
    ],
)
@pytest.mark.parametrize("profile", ["exact", "small"])
def test_the_runtimes_own_operators_can_be_forbidden(serving: Serving, profile: Profile) -> None:
    assert Form.NBITS not in forms_of(Tier.INT3, profile, serving).values()


def test_native_types_are_never_packed() -> None:
    found = forms_of(Tier.INT4, "small", Serving(encoding=Encoding.NATIVE, opset=21)).values()
    assert not {Form.NBITS, Form.GATHERED} & set(found)


def test_another_target_refuses_what_was_planned_for_this_one() -> None:
    plan = emitted(Tier.INT3, "small").plan
    assert "matrix" not in dict(refusals(plan, source().survey.weights, ServingTarget.ORT_CUDA, 18))
    for target in (ServingTarget.TENSORRT, ServingTarget.PORTABLE):
        found = dict(refusals(plan, source().survey.weights, target, 18))
        assert f"{target.value} may lack it" in found["matrix"]
    assert (
        "8-bit activations"
        in dict(refusals(plan, source().survey.weights, ServingTarget.PORTABLE, 18))["scaled"]
    )


# ---- what is written serves


@pytest.mark.parametrize("profile", OF_PLANES)
@pytest.mark.parametrize("tier", BELOW_8)
def test_every_form_decodes_to_the_plan_and_serves_it(tier: Tier, profile: Profile) -> None:
    found = verified(tier, profile)
    assert found.n_decoded >= len(SHAPES) - 1  # the smallest may be kept
    # 8-bit activations: 5e-3 a fused MatMul, five of them; without: float32 sums in another order.
    assert found.runtime_gap < (1e-6 if profile == "exact" else 2e-2)


@pytest.mark.parametrize("opset", [10, 13, 14, 21])
@pytest.mark.parametrize("profile", ["exact", "small"])
def test_every_opset_is_served(opset: int, profile: Profile) -> None:
    assert verified(Tier.INT3, profile, opset).n_decoded >= len(SHAPES)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("tier", [Tier.INT8, Tier.INT4, Tier.INT3, Tier.INT1])
def test_planned_bytes_are_the_bytes_of_the_file(tier: Tier, profile: Profile) -> None:
    subject = emitted(tier, profile)
    assert subject.plan.n_bytes == subject.emitted.stat().st_size


def test_a_packed_matrix_costs_no_more_bytes_than_planes() -> None:
    packed, plain = (
        {c.assignment.weight: c for c in chosen(Tier.INT3, p, Serving())} for p in ("small", "fast")
    )
    for name in ("matrix", "gemm", "turned"):
        more = packed[name].assignment.n_bytes - plain[name].assignment.n_bytes
        assert more < 200, name  # a few attributes and nodes, whatever the matrix holds


@pytest.mark.parametrize("name", ["matrix", "gemm", "turned", "table", "rows"])
def test_a_wrong_code_in_a_weight_stored_for_its_reader_is_caught(name: str, tmp_path: Path) -> None:
    subject = emitted(Tier.INT4, "small")
    proto = onnx.load(subject.emitted)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    raw = bytearray(tensor.raw_data)
    raw[len(raw) // 2] ^= 16
    tensor.raw_data = bytes(raw)
    onnx.save(proto, tmp_path / "wrong.onnx")
    with pytest.raises(GateError, match=f"weight '{name}' does not decode to the plan's values"):
        verify(replace(subject, emitted=tmp_path / "wrong.onnx"), bed(subject))


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    subject = replace(emitted(Tier.INT4, "small"), emitted=emitted(Tier.INT4, "exact").emitted)
    with pytest.raises(InputError, match="the file was emitted from another plan"):
        verify(subject, bed(subject))


def test_a_packed_file_is_left_as_it_is() -> None:
    again = open_source(emitted(Tier.INT3, "small").emitted)
    assert {w.name for w in again.survey.weights} == {"bias"}
    assert next(e.reason for e in again.survey.excluded if e.name == "matrix_scale").startswith(
        "already quantised"
    )


def test_a_form_that_the_model_has_no_reader_for_is_refused(tmp_path: Path) -> None:
    subject = emitted(Tier.INT3, "small")
    rows = tuple(
        a.model_copy(update={"form": Form.NBITS}) if a.weight == "table" else a
        for a in subject.plan.assignments
    )
    with pytest.raises(InputError, match=r"'table' .* is not read by one MatMul or Gemm alone"):
        emit(subject.lifted, subject.plan.model_copy(update={"assignments": rows}), tmp_path / "no.onnx")


def test_no_note_of_a_packed_weights_type_remains(tmp_path: Path) -> None:
    subject = emitted(Tier.INT3, "exact")
    noted = load_model(source().path)
    noted.proto.graph.value_info.append(helper.make_tensor_value_info("matrix", TensorProto.FLOAT, [64, 96]))
    emit(noted, subject.plan, tmp_path / "noted.onnx")
    assert "matrix" not in {v.name for v in onnx.load(tmp_path / "noted.onnx").graph.value_info}
    onnx.checker.check_model(onnx.load(tmp_path / "noted.onnx"), full_check=True)


# ---- packing


def test_the_longest_block_that_divides_the_rows_is_taken() -> None:
    assert [block_of(k) for k in (512, 384, 96, 50)] == [128, 128, 32, None]


@pytest.mark.parametrize("width", [1, 2])
def test_a_table_row_holds_the_packed_codes_of_its_byte(width: int) -> None:
    table = nibble_values(width, 2, 3)
    for byte in (0, 27, 228, 255):
        fields = [(byte >> (8 - width * (i + 1))) & ((1 << width) - 1) for i in range(8 // width)]
        codes = [2 * f + 3 for f in fields]
        assert table[byte].tolist() == [a | b << 4 for a, b in zip(codes[::2], codes[1::2], strict=True)]


def test_an_operand_is_unpacked_low_half_first() -> None:
    packed = np.array([[[0x98, 0x0F]]], np.uint8)
    assert unpacked(packed, np.array([2.0], np.float32)).tolist() == [[0.0, 2.0, 14.0, -16.0]]
    assert unpacked(packed, np.array([2.0], np.float32), 8).tolist() == [[48.0, -226.0]]


def test_explicit_quantization_is_native_and_leaves_vectors_alone() -> None:
    found = verify(emitted(Tier.INT8, "qdq"), bed(emitted(Tier.INT8, "qdq")))
    assert found.runtime_gap < 2e-2
    plan = emitted(Tier.INT8, "qdq").plan
    assert {(a.form, a.encoding) for a in plan.assignments if a.tier.is_integer} <= {
        (Form.DEQUANTIZE, Encoding.NATIVE),
        (Form.CAST_MUL, Encoding.NATIVE),  # behind a Transpose, or in a body
    }
    assert not any(a.tier.is_integer for a in plan.assignments if len(a.shape) < 2)
    assert not any(a.half_scales for a in plan.assignments)
