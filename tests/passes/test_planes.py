"""`encode`: packed planes, look-up tables, and what onnxruntime decodes them to, bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import draws, info, run
from tqs_passes.encode.fragment import Fragment
from tqs_passes.encode.planes import decode_levels, pack, plane_widths, table_values, unpack
from tqs_passes.encode.weight import (
    BF16_OPSET,
    DQ_OPSET,
    Form,
    Target,
    decoded_cast,
    encode_cast,
    encode_codes,
    np_dtype,
    tensor_type,
)
from tqs_passes.files.wire import field_size
from tqs_passes.grids.grid import Codes, Grid, grids_for
from tqs_passes.grids.nearest import quantize
from tqs_passes.tier import Tier

OPSETS = (9, 10, 11, 13, 14, 17, 18, 21)
SHAPES = ((13,), (2,), (5, 7), (8, 16), (3, 5), (2, 3, 1, 5), (4, 2, 3, 3))
WIDTHS = [(bits, grid) for bits in range(1, 9) for grid in grids_for(bits)]


def proto_of(fragments: list[tuple[Fragment, str, str]], opset: int) -> onnx.ModelProto:
    """A model of fragments alone: (fragment, name of the weight, its dtype), each weight an output."""
    shared: dict[str, Fragment] = {}
    for fragment, _, _ in fragments:
        for key, piece in fragment.shared.items():
            shared.setdefault(key, piece)
    pieces = [*shared.values(), *(f for f, _, _ in fragments)]
    graph = onnx.helper.make_graph(
        [node for piece in pieces for node in piece.nodes],
        "fragments",
        [],
        [info(name, None, tensor_type(dtype)) for _, name, dtype in fragments],
        [t for piece in pieces for t in piece.tensors],
    )
    ir_version = 4 if opset < 10 else 10 if opset >= 21 else 8
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir_version
    )


def random_codes(
    seed: int, shape: tuple[int, ...], bits: int, grid: Grid, axis: int | None, half: bool
) -> Codes:
    return quantize(draws(seed, *shape), bits, axis, grid, half_scales=half)


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_hold_every_bit_once(bits: int) -> None:
    assert sum(plane_widths(bits)) == (bits if bits < 8 else 0)


@settings(max_examples=100, deadline=None)
@given(
    width=st.sampled_from([1, 2, 4]),
    values=st.lists(st.integers(0, 127), min_size=1, max_size=70),
    data=st.data(),
)
def test_unpack_undoes_pack(width: int, values: list[int], data: st.DataObject) -> None:
    shift = data.draw(st.integers(0, 7 - width))
    codes = np.array(values, np.uint8)
    packed = pack(codes, shift, width)
    assert packed.size == -(-codes.size * width // 8)
    np.testing.assert_array_equal(unpack(packed, width, codes.size), (codes >> shift) & ((1 << width) - 1))


def test_the_first_value_lies_in_the_high_bits() -> None:
    np.testing.assert_array_equal(pack(np.array([1, 2, 3], np.uint8), 0, 4), [0x12, 0x30])


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("bits", "grid"), [(b, g) for b, g in WIDTHS if b < 8])
def test_tables_computed_in_the_graph_are_the_tables(bits: int, grid: Grid, opset: int) -> None:
    fragment = Fragment("p.")
    decode_levels(random_codes(0, (5, 7), bits, grid, None, half=False), fragment, "q", opset)
    tables = {key: key.removeprefix("tqs.t") for key in fragment.shared if key.startswith("tqs.t")}
    assert len(tables) == len(plane_widths(bits))
    only = Fragment("p.", shared=fragment.shared)
    for key, text in tables.items():
        width, gain, offset = (int(part) for part in text.removesuffix("f").split("_"))
        dtype = "float32" if text.endswith("f") else "int8"
        made = only.op("Identity", [key], output=f"out.{key}")
        proto = proto_of([(only, key, "float32")], opset)
        kind = onnx.TensorProto.FLOAT if dtype == "float32" else onnx.TensorProto.INT8
        proto.graph.output[0].CopyFrom(info(made, None, kind))
        assert_same_bits(run(proto)[made], table_values(width, gain, -offset).astype(dtype))


@pytest.mark.parametrize(
    ("form", "opset"),
    [(f, o) for f in (Form.CAST_MUL, Form.DEQUANTIZE) for o in OPSETS if f is Form.CAST_MUL or o >= 10],
)  # DequantizeLinear came with opset 10
@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
def test_the_runtime_decodes_what_codes_decode(bits: int, grid: Grid, form: Form, opset: int) -> None:
    """Every shape, once with one scale and once a scale per channel of its longest axis, all in one model."""
    fragments: list[tuple[Fragment, str, str]] = []
    expected: dict[str, np.ndarray] = {}
    for index, shape in enumerate(SHAPES):
        longest = int(np.argmax(shape))
        for axis in (None, longest, 0):
            if axis is not None and form is Form.DEQUANTIZE and opset < DQ_OPSET:
                continue
            for half in (False, True):
                name = f"w{index}{axis}{half}"
                codes = random_codes(index, shape, bits, grid, axis, half)
                target = Target(name, "float32", opset, f"tqs.{len(fragments)}.")
                fragments.append((encode_codes(target, codes, form), name, "float32"))
                expected[name] = codes.decode()
    got = run(proto_of(list({n: (f, n, d) for f, n, d in fragments}.values()), opset))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert_same_bits(got[name], values)


@pytest.mark.parametrize(
    ("dtype", "opset"),
    [
        (d, o)
        for d in ("float16", "bfloat16", "float64")
        for o in (11, 13, 17, 21)
        if d != "bfloat16" or o >= BF16_OPSET
    ],
)
@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
def test_other_source_types_come_back_in_their_own_type(
    bits: int, grid: Grid, dtype: str, opset: int
) -> None:
    codes = random_codes(3, (5, 7), bits, grid, 1, half=False)
    fragment = encode_codes(Target("w", dtype, opset, "tqs.0."), codes, Form.CAST_MUL)
    got = run(proto_of([(fragment, "w", dtype)], opset))["w"]
    assert_same_bits(got, codes.decode().astype(np_dtype(dtype)))


@pytest.mark.parametrize(
    ("dtype", "tier", "opset"),
    [
        (dtype, tier, opset)
        for dtype, tier in (
            ("float32", Tier.FP16),
            ("float32", Tier.BF16),
            ("float64", Tier.FP32),
            ("float64", Tier.FP16),
            ("float64", Tier.BF16),
        )
        for opset in OPSETS
        if tier is not Tier.BF16 or opset >= BF16_OPSET
    ],
)
def test_half_types_decode_to_the_reference(dtype: str, tier: Tier, opset: int) -> None:
    values = np.concatenate([draws(5, 30), [1e-7, 6e4, -3e-5, 0.0, -0.0]]).astype(dtype)
    fragment = encode_cast(Target("w", dtype, opset, "tqs.0."), values, tier)
    got = run(proto_of([(fragment, "w", dtype)], opset))["w"]
    assert_same_bits(got, decoded_cast(values, tier, dtype))


def test_bfloat16_is_stored_rounded_to_nearest_even() -> None:
    values = draws(6, 50)
    stored = encode_cast(Target("w", "float32", 17, "tqs.0."), values, Tier.BF16).tensors[0]
    assert stored.raw_data == values.astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
@pytest.mark.parametrize("form", [Form.CAST_MUL, Form.DEQUANTIZE])
def test_codes_take_their_bits_and_no_more(bits: int, grid: Grid, form: Form) -> None:
    shape = (64, 48)
    fragment = encode_codes(
        Target("w", "float32", 17, "tqs.0."), random_codes(7, shape, bits, grid, 1, half=True), form
    )
    raw = sum(len(t.raw_data) for t in fragment.tensors)
    assert raw == 64 * 48 * bits // 8 + 2 * 48


def test_weights_of_one_shape_and_width_share_tables_and_shape() -> None:
    first, second = (
        encode_codes(
            Target(name, "float32", 17, f"tqs.{i}."),
            random_codes(i, (6, 9), 3, Grid.SIGNED, 0, half=False),
            Form.CAST_MUL,
        )
        for i, name in enumerate("ab")
    )
    assert first.shared.keys() == second.shared.keys()
    for key, piece in first.shared.items():
        assert piece.tensors == second.shared[key].tensors
        assert piece.nodes == second.shared[key].nodes


@pytest.mark.parametrize("n", [0, 1, 127, 128, 16_383, 16_384, 1 << 21, (1 << 28) + 5])
def test_field_size_is_protobufs(n: int) -> None:
    varint = b""
    rest = n
    while True:
        varint += bytes([rest & 127])
        rest >>= 7
        if not rest:
            break
    assert field_size(n) == 1 + len(varint) + n


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
def test_a_fragment_knows_its_size_in_a_graph(bits: int, grid: Grid) -> None:
    codes = random_codes(8, (5, 7), bits, grid, 1, half=True)
    fragment = encode_codes(Target("w", "float32", 17, "tqs.0."), codes, Form.CAST_MUL)
    graph = onnx.GraphProto(name="g")
    empty = graph.ByteSize()
    graph.initializer.extend(fragment.tensors)
    graph.node.extend(fragment.nodes)
    assert graph.ByteSize() - empty == fragment.n_bytes()
