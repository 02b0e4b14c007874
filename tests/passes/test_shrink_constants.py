"""`shrink-constants`: what is not a weight is stored small, and comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser

from tests.rollouts import bed_of, model, scored, spec_of, values
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_passes.encode.constant import MOST_VALUES, distinct
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import Model, file_facts, load_model, serialize
from tqs_passes.files.save import save_model
from tqs_passes.graph.decoding import decoding
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier
from tqs_passes.transforms.shrink_constants import ShrinkConstants

OPSETS = [9, 13, 17]
#: Bytes of names, nodes and tables that decode one constant.
OVERHEAD = 1800


def model_of(*tensors: np.ndarray, opset: int = 17, nodes: str = "", names: str = "t") -> Model:
    """Return a model that reads each tensor `t<i>` by an Identity; other nodes as ONNX text."""
    reads = "  ".join(f"o{i} = Identity({names}{i})" for i in range(len(tensors)))
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    text = f"{head} g (float[n] x) => (float[n] y) {{ {nodes} {reads} y = Relu(x) }}"
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(t, f"{names}{i}") for i, t in enumerate(tensors))
    return Model(proto, Path("/nowhere"))


def size(model: Model) -> int:
    return model.proto.ByteSize()


def decoded(model: Model, name: str) -> np.ndarray:
    session = open_session(serialize(decoding(model, [name])), options=SessionOptions(threads=1))
    return session.run({})[name].numpy()


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def drawn(n_values: int, dtype: object, shape: tuple[int, ...] = (61, 127), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = np.unique(rng.integers(-100, 100, 4 * n_values))[:n_values].astype(dtype)
    return rng.permutation(np.resize(table, int(np.prod(shape)))).reshape(shape)


MASK = np.where(np.random.default_rng(0).random((8, 33, 33)) < 0.5, -100, 0).astype(np.float32)


def test_a_mask_takes_one_bit_a_value() -> None:
    before = model_of(MASK)
    after = ShrinkConstants(frozenset()).apply(before)
    assert after.changed == ("t0",)
    assert size(after.model) < size(before) - MASK.nbytes + MASK.size / 8 + OVERHEAD
    assert_same_bits(decoded(after.model, "t0"), MASK)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("n_values", [1, 2, 3, 5, 16, 17, 60, 100])
def test_every_number_of_values_comes_back(n_values: int, opset: int) -> None:
    values = drawn(n_values, np.float32)
    after = ShrinkConstants(frozenset()).apply(model_of(values, opset=opset))
    assert after.changed == ("t0",)
    assert checker_complaint(after.model.proto) is None
    assert_same_bits(decoded(after.model, "t0"), values)


@pytest.mark.parametrize(
    "dtype",
    [
        np.float64,
        np.float16,
        ml_dtypes.bfloat16,
        np.bool_,
        np.int64,
        np.int32,
        np.int16,
        np.uint16,
        np.uint64,
    ],
)
def test_every_type_comes_back(dtype: object) -> None:
    values = drawn(2 if dtype is np.bool_ else 6, dtype)
    after = ShrinkConstants(frozenset()).apply(model_of(values))
    assert after.changed == ("t0",)
    assert_same_bits(decoded(after.model, "t0"), values)


def test_nan_infinity_and_minus_zero_come_back_bit_for_bit() -> None:
    payload = np.array([0x7FC00001, 0x7FC00002, 0x80000000, 0, 0x7F800000, 0xFF800000], np.uint32)
    values = np.resize(payload, 900).view(np.float32)
    after = ShrinkConstants(frozenset()).apply(model_of(values)).model
    assert_same_bits(decoded(after, "t0"), values)


@pytest.mark.parametrize("high", [200, 255, 256, 4000, 65536, 1_000_000])
@pytest.mark.parametrize("low", [0, -7, 5_000_000_000])
def test_index_tables_lose_their_zero_bits_only(low: int, high: int) -> None:
    values = np.random.default_rng(1).integers(low, low + high, (111, 41))
    values.flat[:2] = low, low + high
    before = model_of(values)
    after = ShrinkConstants(frozenset()).apply(before)
    assert size(after.model) < size(before) - values.nbytes * (1 - high.bit_length() / 64) + OVERHEAD
    assert_same_bits(decoded(after.model, "t0"), values)


def test_equal_constants_are_stored_once() -> None:
    noise = np.random.default_rng(2).standard_normal((40, 40)).astype(np.float32)
    before = model_of(noise, noise, noise)
    after = ShrinkConstants(frozenset()).apply(before)
    assert after.changed == ("t1", "t2")
    assert size(after.model) < size(before) - 2 * noise.nbytes + 200  # an Identity node each
    assert_same_bits(decoded(after.model, "t2"), noise)


def test_equal_bytes_of_another_type_or_shape_are_not_equal() -> None:
    noise = np.random.default_rng(2).integers(0, 2**31, 1600).astype(np.int32)
    result = ShrinkConstants(frozenset()).apply(
        model_of(noise, noise.reshape(40, 40), noise.view(np.float32))
    )
    assert result.changed == ()


def test_constant_nodes_are_stored_small_too() -> None:
    nodes = "c = Constant <value = int64[3] {1, 2, 3}> ()  z = Identity(c)"
    model = model_of(nodes=nodes)
    table = np.arange(2000).reshape(40, 50) % 700
    attribute = model.proto.graph.node[0].attribute[0]
    attribute.t.CopyFrom(numpy_helper.from_array(table))
    after = ShrinkConstants(frozenset()).apply(model)
    assert after.changed == ("c",)
    assert "Constant" not in [n.op_type for n in after.model.proto.graph.node]
    assert_same_bits(decoded(after.model, "c"), table)


def test_weights_noise_and_small_tensors_are_left_alone() -> None:
    noise = np.random.default_rng(3).standard_normal(999).astype(np.float32)
    model = model_of(MASK, noise, np.zeros(100, np.float32))
    result = ShrinkConstants(frozenset({"t0"})).apply(model)
    assert result.changed == ()
    assert result.model is model


def test_tensors_of_a_quantised_model_are_left_alone_with_a_reason() -> None:
    codes = drawn(9, np.int8)
    model = model_of(codes, nodes="s = Constant <value_float = 0.5> ()  d = DequantizeLinear(t0, s)")
    result = ShrinkConstants(frozenset()).apply(model)
    assert result.changed == ()
    assert [(s.what, "quantised" in s.why) for s in result.skipped] == [("t0", True)]


def test_names_that_are_taken_are_not_taken_again() -> None:
    model = model_of(MASK, nodes="t0_values = Relu(x)  taken = Relu(x)")
    model.proto.graph.node[1].output[0] = "tqs.c0.0"
    after = ShrinkConstants(frozenset()).apply(model).model
    onnx.checker.check_model(after.proto)
    assert_same_bits(decoded(after, "t0"), MASK)


def test_the_input_model_is_not_changed() -> None:
    model = model_of(MASK)
    before = serialize(model.proto)
    ShrinkConstants(frozenset()).apply(model)
    assert serialize(model.proto) == before


def test_a_second_time_changes_nothing() -> None:
    once = ShrinkConstants(frozenset()).apply(model_of(MASK, drawn(3, np.int64))).model
    assert ShrinkConstants(frozenset()).apply(once).changed == ()


def test_constants_in_external_data_are_read(tmp_path: Path) -> None:
    save_model(model_of(MASK), tmp_path / "m.onnx", external=True)
    after = ShrinkConstants(frozenset()).apply(load_model(tmp_path / "m.onnx")).model
    assert_same_bits(decoded(after, "t0"), MASK)


def test_one_value_too_many_is_told_early() -> None:
    assert distinct(np.arange(MOST_VALUES, dtype=np.int32)) is not None
    assert distinct(np.arange(MOST_VALUES + 1, dtype=np.int32)) is None
    late = np.zeros(100_000, np.int32)
    late[-300:] = np.arange(300)
    assert distinct(late) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1100, 1500), st.integers(0, 2**32 - 1))
def test_any_constant_comes_back(n_values: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice(rng.standard_normal(n_values).astype(np.float32), n)
    after = ShrinkConstants(frozenset()).apply(model_of(values)).model
    assert size(after) <= size(model_of(values))
    assert_same_bits(decoded(after, "t0") if "t0" not in stored(after) else values, values)


def stored(model: Model) -> set[str]:
    return {t.name for t in model.proto.graph.initializer}


def test_a_constant_that_is_a_graph_output_keeps_its_name() -> None:
    model = model_of(MASK)
    model.proto.graph.output.append(helper.make_tensor_value_info("t0", onnx.TensorProto.FLOAT, MASK.shape))
    after = ShrinkConstants(frozenset()).apply(model).model
    assert checker_complaint(after.proto) is None
    assert_same_bits(decoded(after, "t0"), MASK)


MASKED = """(float[b, 40] x) => (float[b, 40] y) {
  p = MatMul(x, W)  m = Gather(mask, row)  n = Gather(twin, row)  q = Add(p, m)  r = Add(q, n)  y = Tanh(r) }"""


@pytest.mark.parametrize("external", [False, True])
def test_a_planned_file_has_the_bytes_planned_and_rolls_out_the_same(tmp_path: Path, external: bool) -> None:
    mask = np.where(values(50, 40, seed=2) < 0.5, -1e9, 0).astype(np.float32)
    weights = {"W": values(40, 40, scale=0.3), "mask": mask, "twin": mask, "row": np.array(3, np.int64)}
    proto = model(MASKED, weights)
    save_model(Model(proto, tmp_path), tmp_path / "m.onnx", external=external)
    source = open_source(tmp_path / "m.onnx")
    assert {e.name for e in source.survey.excluded} == {"mask", "twin"}
    scores = scored(source, spec_of(), values(2, 40))
    sizes = {}
    for constants in ("keep", "small"):
        serving = Serving(constants=constants, names="keep", graph="keep")
        request = request_for(source, scores, "exact", (Tier.FP32,), serving)
        plan = plan_within(request, 10**6, PlanOptions())
        emit(source.lifted, plan, tmp_path / f"{constants}.onnx")
        sizes[constants] = file_facts(tmp_path / f"{constants}.onnx").n_bytes
        assert sizes[constants] == plan.n_bytes
    assert sizes["keep"] - sizes["small"] > 2 * mask.nbytes - mask.size / 8 - OVERHEAD
    bed = bed_of(source, spec_of(), Contexts({"x": values(2, 40, seed=3)}, {}))
    before, after = (bed.roll_file(tmp_path / f).outputs["y"] for f in ("m.onnx", "small.onnx"))
    assert before.tobytes() == after.tobytes()
