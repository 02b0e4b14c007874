"""`survey`: every float initializer is a weight with readers and channel axis, or excluded with a reason."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from tqs_passes.errors import InputError
from tqs_passes.files.model import Model, load_model
from tqs_passes.files.save import save_model
from tqs_passes.graph.axes import surviving
from tqs_passes.survey.survey import find_weights, survey
from tqs_passes.weights import Origin, Survey, Weight


def dense(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def model_of(body: str, signature: str, opset: int = 17, **arrays: np.ndarray) -> Model:
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\nagraph {signature} {{ {body} }}'
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return Model(proto, Path("/nowhere"))


def survey_of(
    body: str, signature: str = "(float[N,4] x) => (float[N,4] z)", opset: int = 17, **arrays
) -> Survey:
    return survey(model_of(body, signature, opset, **arrays))


def weight_of(
    body: str, signature: str = "(float[N,4] x) => (float[N,4] z)", opset: int = 17, **arrays
) -> Weight:
    return survey_of(body, signature, opset, **arrays).by_name()["w"]


def reason_of(
    body: str, w: np.ndarray, signature: str = "(float[N,4] x) => (float[N,4] z)", **arrays
) -> str | None:
    found = {e.name: e.reason for e in survey_of(body, signature, w=w, **arrays).excluded}
    return found.get("w")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


DIRECT = [
    ("z = MatMul(x, w)", (4, 6), 1),
    ("z = MatMul(x, w)", (2, 4, 6), 2),
    ("z = MatMul(x, w)", (4,), None),
    ("z = MatMul(w, x)", (6, 4), 0),
    ("z = MatMul(w, x)", (2, 6, 4), 1),
    ("z = Gemm(x, w)", (4, 6), 1),
    ("z = Gemm <transB = 1> (x, w)", (6, 4), 0),
    ("z = Gemm(w, x)", (6, 4), 0),
    ("z = Gemm <transA = 1> (w, x)", (4, 6), 1),
    ("z = Gemm(x, v, w)", (6,), None),
    ("z = Conv(x, w)", (6, 4, 3), 0),
    ("z = Conv(x, w)", (6, 4, 2, 3, 3), 0),
    ("z = Conv(x, v, w)", (6,), None),
    ("z = ConvTranspose(x, w)", (4, 6, 3), 1),
    ("z = LSTM(x, w, v)", (1, 8, 4), 1),
    ("z = LSTM(x, v, w)", (1, 8, 4), 1),
    ("z = LSTM(x, v, v, w)", (1, 16), None),
    ("z = GRU(x, w, v)", (2, 6, 4), 1),
    ("z = RNN(x, v, w)", (1, 3, 4), 1),
    ("z = Add(x, w)", (3, 4), None),
    ("z = Mul(w, x)", (3, 4), None),
    ("z = Einsum <equation = \"ij,jk->ik\"> (x, w)", (4, 6), None),
    ("z = LayerNormalization(x, w)", (4,), None),
    ("z = com.microsoft.FusedMatMul <transB = 1> (x, w)", (6, 4), 0),
]  # fmt: skip


@pytest.mark.parametrize(("body", "shape", "axis"), DIRECT)
def test_the_channel_axis_comes_from_the_reader(body: str, shape: tuple[int, ...], axis: int | None) -> None:
    weight = weight_of(body, w=dense(*shape), v=dense(4, 6, seed=1))
    assert weight.channel_axis == axis
    assert [r.through for r in weight.readers] == [()]


MOVED = [
    ("t = Transpose(w)  z = MatMul(x, t)", (6, 4), 0, ("Transpose",)),
    ("t = Transpose <perm = [2, 0, 1]> (w)  z = MatMul(x, t)", (4, 6, 2), 1, ("Transpose",)),
    ("t = Reshape(w, s)  z = MatMul(x, t)", (2, 2, 6), 2, ("Reshape",)),
    ("t = Reshape(w, s)  z = MatMul(x, t)", (4, 2, 3), None, ("Reshape",)),
    ("t = Identity(w)  z = MatMul(x, t)", (4, 6), 1, ("Identity",)),
    ("t = Cast <to = 1> (w)  z = MatMul(x, t)", (4, 6), 1, ("Cast",)),
    ("t = Unsqueeze(w, one)  z = MatMul(x, t)", (4, 6), 1, ("Unsqueeze",)),
    ("t = Squeeze(w, one)  z = MatMul(x, t)", (4, 1, 6), 2, ("Squeeze",)),
    ("t = Squeeze(w)  z = MatMul(x, t)", (1, 4, 1, 6), 3, ("Squeeze",)),
    ("t = Flatten <axis = 2> (w)  z = MatMul(x, t)", (2, 2, 6), 2, ("Flatten",)),
    ("t = Flatten <axis = 1> (w)  z = MatMul(x, t)", (4, 2, 3), None, ("Flatten",)),
    ("t = Gather <axis = 1> (w, pick)  z = MatMul(x, t)", (4, 9), 1, ("Gather",)),
    ("t = Gather <axis = 0> (w, one0)  z = MatMul(x, t)", (3, 4, 6), 2, ("Gather",)),
    ("t = Gather <axis = 1> (w, table)  z = MatMul(x, t)", (4, 9), None, ("Gather",)),
    ("t = GatherND(w, pair)  z = MatMul(x, t)", (3, 5, 6), 2, ("GatherND",)),
    ("t = Slice(w, zero, four, zero)  z = MatMul(x, t)", (8, 6), 1, ("Slice",)),
    ("t = Expand(w, big)  z = MatMul(x, t)", (4, 6), 1, ("Expand",)),
    ("t = Concat <axis = 1> (w, v)  z = MatMul(x, t)", (4, 6), 1, ("Concat",)),
    ("t = Concat <axis = 0> (v, w)  z = MatMul(x, t)", (4, 6), 1, ("Concat",)),
    ("t, u = Split <axis = 0> (w)  z = MatMul(x, u)", (8, 6), 1, ("Split",)),
    ("t = Pad(w, pads)  z = MatMul(x, t)", (3, 6), 1, ("Pad",)),
    ("q = QuantizeLinear(w, sc)  t = DequantizeLinear(q, sc)  z = MatMul(x, t)", (4, 6), 1,
     ("QuantizeLinear", "DequantizeLinear")),
    ("a = Unsqueeze(w, one0v)  b = Transpose <perm = [0, 2, 1]> (a)  z = MatMul(x, b)", (6, 4), 0,
     ("Unsqueeze", "Transpose")),
]  # fmt: skip


@pytest.mark.parametrize(("body", "shape", "axis", "through"), MOVED)
def test_the_channel_axis_is_mapped_back_to_the_stored_weight(
    body: str, shape: tuple[int, ...], axis: int | None, through: tuple[str, ...]
) -> None:
    weight = weight_of(
        body, w=dense(*shape), v=dense(4, 6, seed=1), s=ints(-1, 6), one=ints(1), one0=np.array(1),
        pick=ints(5, 0, 2), table=np.array([[0, 1], [2, 3]]), pair=np.array([[[0, 1]], [[2, 3]]]),
        zero=ints(0), four=ints(4), big=ints(2, 4, 6), pads=ints(0, 0, 1, 0),
        sc=np.float32([0.5]), one0v=ints(0),
    )  # fmt: skip
    assert [(r.op_type, r.through) for r in weight.readers] == [("MatMul", through)]
    assert weight.channel_axis == axis


def test_arguments_that_are_attributes_in_old_opsets_are_read_too() -> None:
    body = "a = Unsqueeze <axes = [0]> (w)  b = Squeeze <axes = [0]> (a)  t = Transpose(b)  z = MatMul(x, t)"
    assert weight_of(body, opset=11, w=dense(6, 4)).channel_axis == 0


def test_a_reshape_whose_shape_is_not_stored_uses_the_inferred_one() -> None:
    body = "s = Shape(w)  t = Reshape(w, s)  z = MatMul(x, t)"
    model = model_of(body, "(float[N,4] x) => (float[N,6] z) <float[4,6] t>", w=dense(4, 6))
    assert survey(model).by_name()["w"].channel_axis == 1


def test_a_reshape_of_unknown_shape_loses_the_axis() -> None:
    weight = weight_of("s = Shape(x)  t = Reshape(w, s)  z = MatMul(x, t)", w=dense(4, 4))
    assert (weight.readers[0].op_type, weight.channel_axis) == ("MatMul", None)


def test_surviving_axes_keep_length_and_place() -> None:
    assert surviving((0, 1, 2), (2, 3, 4), (6, 4)) == (None, 2)


def test_an_embedding_is_read_by_its_gather() -> None:
    weight = weight_of("z = Gather(w, i)", "(int64[N] i) => (float[N,4] z)", w=dense(50, 4))
    assert [(r.op_type, r.input_index, r.channel_axis) for r in weight.readers] == [("Gather", 0, 0)]


def test_tied_readers_that_agree_give_one_axis() -> None:
    body = "e = Gather(w, i)  t = Transpose(w)  z = MatMul(e, t)"
    weight = weight_of(body, "(int64[N] i) => (float[N,50] z)", w=dense(50, 4))
    assert [r.op_type for r in weight.readers] == ["Gather", "MatMul"]
    assert weight.channel_axis == 0


def test_readers_that_disagree_give_no_axis() -> None:
    weight = weight_of("a = MatMul(x, w)  z = Gemm <transB = 1> (a, w)", w=dense(4, 4))
    assert [r.channel_axis for r in weight.readers] == [1, 0]
    assert weight.channel_axis is None


def test_two_ways_to_one_reader_are_one_reader_with_what_they_agree_on() -> None:
    weight = weight_of("t = Transpose(w)  c = Concat <axis = 0> (w, t)  z = MatMul(x, c)", w=dense(4, 4))
    assert [(r.op_type, r.channel_axis) for r in weight.readers] == [("MatMul", None)]


def test_a_hundred_forks_are_followed_once_each() -> None:
    steps = "  ".join(f"c{i + 1} = Concat <axis = 0> (c{i}, c{i})" for i in range(100))
    weight = weight_of(f"c0 = Identity(w)  {steps}  z = MatMul(x, c100)", w=dense(4, 4))
    assert len(weight.readers) == 1
    assert weight.channel_axis == 1


def test_readers_inside_bodies_are_found() -> None:
    body = """[choose] y = If (c) <
        then_branch = tb () => (float[N,6] o) { t = Transpose(w)  [mm] o = MatMul(x, t) },
        else_branch = eb () => (float[N,6] p) { p = Gemm <transB = 1> (x, w) }
    >  z = Relu(y)"""
    weight = weight_of(body, "(float[N,4] x, bool c) => (float[N,6] z)", w=dense(6, 4))
    found = [(r.op_type, r.node, r.in_body, r.channel_axis) for r in weight.readers]
    assert found == [
        ("MatMul", "choose/then_branch/mm", True, 0),
        ("Gemm", "choose/else_branch/#0", True, 0),
    ]
    assert weight.outputs == ("z",)


def test_a_weight_that_an_if_returns_is_followed_out_of_it() -> None:
    body = """y = If (c) <
        then_branch = tb () => (float[4,6] o) { o = Identity(w) },
        else_branch = eb () => (float[4,6] p) { p = Identity(v) }
    >  z = MatMul(x, y)"""
    signature = "(float[N,4] x, bool c) => (float[N,6] z)"
    weight = weight_of(body, signature, w=dense(4, 6), v=dense(4, 6, seed=1))
    assert [(r.op_type, r.through, r.channel_axis) for r in weight.readers] == [
        ("MatMul", ("Identity", "If"), 1)
    ]


def test_a_name_defined_inside_a_body_is_another_value() -> None:
    body = """y = If (c) <
        then_branch = tb () => (float[N,4] o) { w = Relu(x)  o = Sigmoid(w) },
        else_branch = eb () => (float[N,4] p) { p = Relu(x) }
    >  z = Add(y, w)"""
    weight = weight_of(body, "(float[N,4] x, bool c) => (float[N,4] z)", w=dense(3, 4))
    assert [r.op_type for r in weight.readers] == ["Add"]


def test_outputs_are_those_that_the_weight_reaches() -> None:
    body = "z = MatMul(x, w)  y = MatMul(x, v)  both = Add(y, z)"
    signature = "(float[N,4] x) => (float[N,4] z, float[N,4] y, float[N,4] both)"
    found = survey_of(body, signature, w=dense(4, 4), v=dense(4, 4, seed=1)).by_name()
    assert found["w"].outputs == ("z", "both")
    assert found["v"].outputs == ("y", "both")


def test_a_loop_body_reaches_every_output_of_the_loop() -> None:
    body = """k = Constant <value = int64 {3}> ()
    z, y = Loop (k, , x) <
        body = lb (int64 i, bool go, float[2,2] s) => (bool more, float[2,2] n, float[2,2] seen)
        { more = Identity(go)  n = MatMul(s, w)  seen = Identity(s) }
    >"""
    weight = weight_of(body, "(float[2,2] x) => (float[2,2] z, float[3,2,2] y)", w=dense(2, 2))
    assert weight.outputs == ("z", "y")
    assert weight.readers[0].node == "#1/body/#1"


def test_an_unreachable_weight_stays_a_weight() -> None:
    weight = weight_of("z = Relu(x)  dead = MatMul(x, w)", w=dense(4, 4))
    assert (weight.outputs, weight.channel_axis) == ((), 1)


def test_a_weight_nobody_reads_stays_a_weight() -> None:
    weight = weight_of("z = Relu(x)", w=dense(4, 4))
    assert (weight.readers, weight.outputs, weight.channel_axis) == ((), (), None)


def test_a_weight_that_is_itself_an_output_reaches_it() -> None:
    weight = weight_of("z = Relu(x)", "(float[N,4] x) => (float[N,4] z, float[4,4] w)", w=dense(4, 4))
    assert (weight.readers, weight.outputs) == ((), ("w",))


def test_all_float_types_are_weights_and_integers_are_not() -> None:
    arrays = {"h": dense(4, 4, dtype=np.float16), "d": dense(4, 4, dtype=np.float64), "i": ints(1, 2, 3)}
    model = model_of("z = Relu(x)", "(float[N,4] x) => (float[N,4] z)", **arrays)
    model.proto.graph.initializer.append(helper.make_tensor("b", TensorProto.BFLOAT16, [2], [1.5, 2.5]))
    found = survey(model)
    assert [(w.name, w.dtype) for w in found.weights] == [
        ("h", "float16"),
        ("d", "float64"),
        ("b", "bfloat16"),
    ]
    assert found.excluded == ()


QUANTISED = "already quantised: a scale or zero point"
FREQUENCIES = "position encoding: frequencies that feed only Sin and Cos"
SHAPED = "s = Shape(x) f = Cast <to = 1> (s) a = Mul(f, w) b = Cast <to = 7> (a)"
NBITS = "com.microsoft.MatMulNBits <K = 4, N = 2, bits = 4, block_size = 16>"


def argument(op: str) -> str:
    return f"argument of {op}: a shape, a bound or a factor, not data"


MASK = np.where(np.tri(6, dtype=bool), 0, -100).astype(np.float32)
EXCLUDED = [
    ("z = Add(x, w)", np.float32(1e-5), "a scalar"),
    ("z = Pow(x, w)", np.float32([2.0]), "a scalar"),
    ("z = Concat <axis = 0> (x, w)", np.zeros((0, 4), np.float32), "holds no values"),
    ("z = DequantizeLinear <axis = 1> (q, w)", np.float32([0.1, 0.2]), QUANTISED),
    ("z = QLinearMatMul(q, w, k, q, w, k, w, k)", np.float32([0.1, 0.2]), QUANTISED),
    (f"z = {NBITS} (x, q, w)", np.float32([0.1, 0.2]),
     QUANTISED),
    ("z = Resize(x, , w)", np.float32([1, 2]), argument("Resize")),
    ("z = Upsample(x, w)", np.float32([1, 2]), argument("Upsample")),
    ("a = Mul(w, w2) b = Cast <to = 7> (a) z = Reshape(x, b)", np.float32([1, 2]),
     argument("Reshape")),
    (SHAPED + " z = Expand(x, b)", np.float32([1, 2]),
     argument("Expand")),
    ("s = Shape(w)  z = Reshape(x, s)", dense(2, 2), argument("Shape")),
    ("z = Greater(x, w)", dense(4), "only compared with, never computed with"),
    ("c = Cast <to = 9> (w)  z = Where(c, x, y)", dense(4), "only compared with, never computed with"),
    ("z = Add(x, w)", MASK, "attention mask: values 0 and -100"),
    ("t = Unsqueeze(w, one)  z = Add(t, x)", MASK, "attention mask: values 0 and -100"),
    ("z = Add(x, w)", np.where(MASK < 0, -np.inf, 0).astype(np.float32), "attention mask: values 0 and -inf"),
    ("z = Where(c, x, w)", np.full((2, 2), -1e9, np.float32), "attention mask: value -1e+09"),
    ("z = Mul(x, w)", np.tri(4, dtype=np.float32), "mask: values 0 and 1"),
    ("z = Add(x, w)", np.where(MASK < 0, -65504, 0).astype("f2"), "attention mask: values 0 and -65504"),
    ("p = Mul(x, w)  z = Sin(p)", np.float32(10000) ** (-np.arange(8, dtype=np.float32) / 8),
     FREQUENCIES),
    ("p = MatMul(w, x) t = Transpose(p) c = Concat <axis = -1> (t, t) z = Cos(c) y = Sin(c)",
     (np.float32(10000) ** (-np.arange(8, dtype=np.float32) / 8)).reshape(1, 8, 1),
     FREQUENCIES),
]  # fmt: skip


@pytest.mark.parametrize(("body", "w", "reason"), EXCLUDED)
def test_a_constant_is_excluded_with_its_reason(body: str, w: np.ndarray, reason: str) -> None:
    assert reason_of(body, np.asarray(w), one=ints(1), w2=np.float32(2)) == reason


KEPT = [
    ("z = Add(x, w)", np.zeros((4, 4), np.float32), "all zeros"),
    ("z = Mul(x, w)", np.ones((4, 4), np.float32), "all ones"),
    ("z = MatMul(x, w)", np.tri(4, dtype=np.float32), "0 and 1 in a product"),
    ("z = Concat <axis = 0> (x, w)", np.tri(4, dtype=np.float32), "a land-sea map"),
    ("z = Mul(x, w)", np.float32([0, 1, 1, 0]), "a vector of 0 and 1"),
    ("z = Sub(x, w)", np.float32([0, -273.15]), "offsets"),
    ("z = MatMul(x, w)", MASK, "0 and -100 in a product"),
    ("m = MatMul(x, w)  z = Sin(m)", dense(4, 4), "a sine layer"),
    ("m = Mul(x, w)  z = Sin(m)", dense(8), "learned frequencies"),
    ("m = Mul(x, w)  s = Sin(m)  z = Mul(s, w)", np.float32([4, 3, 2, 1]), "frequencies used elsewhere too"),
    ("c = Greater(x, w)  y = MatMul(x, w)  z = Where(c, y, x)", dense(4, 4), "compared and computed with"),
    ("z = Clip(w, lo)", dense(4), "clipped"),
    ("y = MatMul(x, w)  s = Cast <to = 7> (y)  z = Range(s, s, s)", dense(4, 4), "data makes a length"),
    ("y = MatMul(x, w)  z = Greater(y, x)", dense(4, 4), "a network whose answer is a comparison"),
    ("a = MatMul(x, w)  b = ArgMax(a)  z = Gather(x, b)", dense(4, 4), "a codebook"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "w", "why"), KEPT, ids=[k[2] for k in KEPT])
def test_what_is_not_surely_a_constant_stays_a_weight(body: str, w: np.ndarray, why: str) -> None:
    assert reason_of(body, w, lo=np.float32(0)) is None


def test_a_mask_of_a_million_values_with_one_exception_is_a_weight() -> None:
    w = np.zeros((1024, 1024), np.float32)
    w[::2] = -100
    w[500, 500] = 0.5
    assert reason_of("z = Add(x, w)", w) is None


def test_a_table_of_sines_and_cosines_is_a_position_encoding() -> None:
    angle = np.arange(32)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    w = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(32, 16).astype(np.float32)
    assert reason_of("z = Add(x, w)", w) == "position encoding: a table of sines and cosines"
    assert reason_of("z = Add(x, w)", w + dense(32, 16) * 0.01) is None


NORMALISED = (
    "a = Sub(x, norm.mean) b = Div(a, norm.std) y = MatMul(b, w) c = Mul(y, norm.std) z = Add(c, norm.mean)"
)


def test_mean_and_std_by_name_and_place_are_normalisation_constants() -> None:
    model = model_of(
        NORMALISED.replace("norm.", "norm_"), "(float[N,4] x) => (float[N,4] z)",
        w=dense(4, 4), norm_mean=dense(4), norm_std=dense(4, seed=1),
    )  # fmt: skip
    found = survey(model)
    assert [w.name for w in found.weights] == ["w"]
    assert {e.reason for e in found.excluded} == {"normalisation constant of a model input or output"}


def test_the_same_tensors_under_other_names_are_weights() -> None:
    body = NORMALISED.replace("norm.mean", "p").replace("norm.std", "q")
    assert len(survey_of(body, w=dense(4, 4), p=dense(4), q=dense(4, seed=1)).weights) == 3


def test_a_mean_inside_the_network_is_a_weight() -> None:
    body = "a = MatMul(x, w)  r = Relu(a)  b = Sub(r, running_mean)  t = Tanh(b)  z = MatMul(t, w)"
    found = survey_of(body, w=dense(4, 4), running_mean=dense(4)).by_name()
    assert "running_mean" in found


def test_a_damaged_tensor_is_the_users_error() -> None:
    model = model_of("z = MatMul(x, w)", "(float[N,4] x) => (float[N,4] z)", w=dense(4, 4))
    model.proto.graph.initializer[0].dims[0] = 7
    with pytest.raises(InputError):
        survey(model)


def test_a_negative_dimension_is_the_users_error() -> None:
    model = model_of("z = MatMul(x, w)", "(float[N,4] x) => (float[N,4] z)", w=dense(4, 4))
    model.proto.graph.initializer[0].dims[:] = [-4, -4]
    with pytest.raises(InputError):
        survey(model)


def test_find_weights_lifts_first_and_keeps_the_origin() -> None:
    body = "c = Constant <value = float[2,2] {1, 2, 3, 4.5}> ()  y = MatMul(x, c)  z = MatMul(y, w)"
    model, found = find_weights(model_of(body, "(float[N,2] x) => (float[N,4] z)", w=dense(2, 4)))
    assert {w.name: w.origin for w in found.weights} == {"w": Origin.INITIALIZER, "c": Origin.CONSTANT}
    assert all(node.op_type != "Constant" for node in model.proto.graph.node)


def test_external_weights_are_surveyed_alike(tmp_path: Path) -> None:
    arrays = {"w": dense(32, 32), "v": dense(32, 32), "m": np.tri(32, dtype=np.float32)}
    inside = model_of(
        "a = MatMul(x, w)  b = Mul(a, m)  z = MatMul(b, v)", "(float[N,32] x) => (float[N,32] z)", **arrays
    )
    save_model(inside, tmp_path / "m.onnx", external=True)
    assert survey(load_model(tmp_path / "m.onnx")) == survey(inside)


def test_hostile_graphs_do_not_crash() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w\n"], ["a"]),
        helper.make_node("MatMul", ["a", "w\n"], ["a"]),
        helper.make_node("Transpose", ["w\n"], ["t"], perm=[0, 0]),
        helper.make_node("Reshape", ["w\n", "s"], ["r"]),
        helper.make_node("Squeeze", ["w\n", "s"], ["q"]),
        helper.make_node("Unsqueeze", ["w\n", "s"], ["u"]),
        helper.make_node("Gather", ["w\n"], ["g"], axis=99),
        helper.make_node("Slice", ["w\n", "s", "s", "s", "s"], ["sl"]),
        helper.make_node("Expand", ["w\n", "s"], ["e"]),
        helper.make_node("Concat", ["w\n", "c2"], ["c1"], axis=-9),
        helper.make_node("Concat", ["c1", "w\n"], ["c2"], axis=0),
        helper.make_node("MatMul", ["x", "c2"], ["m"]),
        helper.make_node("Gemm", ["", "r"], ["m2"]),
        helper.make_node("Identity", ["undefined"], [""]),
        helper.make_node("If", ["w\n"], []),
        helper.make_node("Constant", [], []),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, None)]
    stored = [
        numpy_helper.from_array(dense(4, 4), "w\n"),
        numpy_helper.from_array(ints(0, -9, 2**62, -1, 0), "s"),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("a", 1, None)] * 2, stored)
    (weight,) = survey(Model(helper.make_model(graph), Path("/nowhere"))).weights
    assert weight.outputs == ("a",)
    assert weight.label == "w\\n"


def big_model(n_blocks: int = 250) -> Model:
    """Build 8 nodes and 2 initializers a block."""
    nodes, stored, last = [], [], "x"
    rng = np.random.default_rng(0)
    for i in range(n_blocks):
        names = [f"{op}{i}" for op in ("t", "m", "a", "r", "s", "p", "y", "o")]
        t, m, a, r, s, p, y, o = names
        nodes += [
            helper.make_node("Transpose", [f"w{i}"], [t]),
            helper.make_node("MatMul", [last, t], [m]),
            helper.make_node("Add", [m, f"b{i}"], [a]),
            helper.make_node("Relu", [a], [r]),
            helper.make_node("Sigmoid", [a], [s]),
            helper.make_node("Mul", [r, s], [p]),
            helper.make_node("Tanh", [p], [y]),
            helper.make_node("Add", [y, last], [o]),
        ]
        stored.append(numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), f"w{i}"))
        stored.append(numpy_helper.from_array(rng.normal(size=8).astype(np.float32), f"b{i}"))
        last = o
    x, z = (helper.make_tensor_value_info(n, 1, ["N", 8]) for n in ("x", last))
    return Model(helper.make_model(helper.make_graph(nodes, "g", [x], [z], stored)), Path("/nowhere"))


def test_two_thousand_nodes_are_surveyed_whole() -> None:
    found = survey(big_model())
    assert len(found.weights) == 500
    assert {w.channel_axis for w in found.weights if len(w.shape) == 2} == {0}


def test_a_survey_does_not_depend_on_the_order_of_initializers() -> None:
    model = big_model(20)
    first = survey(model)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model.proto)
    order = list(shuffled.graph.initializer)
    random.Random(0).shuffle(order)
    del shuffled.graph.initializer[:]
    shuffled.graph.initializer.extend(order)
    assert survey(Model(shuffled, model.folder)).by_name() == first.by_name()
