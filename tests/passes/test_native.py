"""Native INT8 and INT4: packing, and what the runtime decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_passes.encode.fragment import Fragment
from tqs_passes.encode.native import native_levels, pack_nibbles
from tqs_passes.encode.weight import Encoding, Form, Target, encode_codes
from tqs_passes.files.model import Model, serialize
from tqs_passes.graph.decoding import decoding
from tqs_passes.grids.grid import Grid
from tqs_passes.grids.nearest import quantize


@given(st.lists(st.integers(-8, 7), max_size=40))
def test_nibbles_unpack_to_what_was_packed(levels: list[int]) -> None:
    packed = pack_nibbles(np.array(levels, np.int8))
    assert packed.size == (len(levels) + 1) // 2
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=[len(levels)], raw_data=packed.tobytes())
    assert numpy_helper.to_array(tensor).astype(np.int8).tolist() == levels


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (3, 5, 7), (2, 3, 3, 3)])
@pytest.mark.parametrize("form", [Form.CAST_MUL, Form.DEQUANTIZE])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_runtime_decodes_the_reference_bit_for_bit(bits: int, form: Form, shape: tuple[int, ...]) -> None:
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for axis in (None, *range(len(shape))):
        codes = quantize(w, bits, axis, Grid.SIGNED)
        fragment = encode_codes(Target("w", "float32", 21, "t."), codes, form, Encoding.NATIVE)
        proto = onnx.ModelProto(ir_version=10)
        proto.opset_import.add(domain="", version=21)
        proto.graph.initializer.extend(fragment.tensors)
        proto.graph.node.extend(fragment.nodes)
        model = serialize(decoding(Model(proto, Path()), ["w"]))
        out = open_session(model, options=SessionOptions(threads=1)).run({})["w"].numpy()
        assert out.tobytes() == codes.decode().tobytes()


def test_four_bits_take_half_a_byte() -> None:
    fragment = Fragment("t.")
    native_levels(quantize(np.ones((10, 10), np.float32), 4, None, Grid.SIGNED), fragment, "q")
    assert len(fragment.tensors[0].raw_data) == 50


@pytest.mark.parametrize(("bits", "grid"), [(2, Grid.SIGNED), (3, Grid.SIGNED), (4, Grid.MIDRISE)])
def test_what_has_no_native_type_is_refused(bits: int, grid: Grid) -> None:
    codes = quantize(np.ones((4, 4), np.float32), bits, None, grid)
    with pytest.raises(ValueError, match=f"no native type for {bits} bits"):
        native_levels(codes, Fragment("t."), "q")
