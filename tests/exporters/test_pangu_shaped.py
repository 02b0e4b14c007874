"""The Pangu-shaped model: its weights, its two ways to store a bias, its geometry, and the adapter's blocks."""

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from tqs_models import pangu
from tqs_models.pangu import climate, shaped
from tqs_models.pangu.shaped import TINY, PanguShape
from tqs_onnx.cli.main import main
from tqs_onnx.rollout.contexts.era5 import FIELDS, find_name
from tqs_onnx.rollout.contexts.load import load_contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.spec import load_spec
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.survey.survey import find_weights

SMALL = dataclasses.replace(TINY, depths=(2, 1, 1, 1), lat=21, lon=24)
"""One shifted block, and sides that no window divides."""
TABLE = dataclasses.replace(SMALL, bias="table")


@cache
def model(shape: PanguShape, seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    return shaped.build(shape, seed, opset=opset)


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs in units of each variable's deviation."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = session.run(["output", "output_surface"], feeds)
    levels = feeds["input"].shape[1]
    scales = (climate.upper(levels), climate.surface())
    return [(m - mean) / deviation for m, (mean, deviation) in zip(made, scales, strict=True)]


@cache
def state(shape: PanguShape = SMALL, seed: int = 0) -> dict[str, np.ndarray]:
    return {k: v[0] for k, v in climate.states(shape.levels, shape.lat, shape.lon, 1, seed).items()}


def sizes(proto: onnx.ModelProto) -> dict[str, int]:
    return {t.name: math.prod(t.dims) for t in proto.graph.initializer}


def with_weights(proto: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return changed


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def folded(proto: onnx.ModelProto, reader: str) -> list[str]:
    return [t.name for t in proto.graph.initializer if t.name.startswith(f"onnx::{reader}")]


def test_the_tiny_model_has_as_many_stored_tensors_as_the_released_file() -> None:
    assert len(model(TINY).graph.initializer) == 223


@pytest.mark.parametrize(("bias", "values"), [("expanded", 1_350_368), ("table", 687_968)])
def test_the_tiny_model_has_the_weights_of_the_published_module(bias: Any, values: int) -> None:
    assert sum(sizes(model(dataclasses.replace(TINY, bias=bias))).values()) == values


def test_the_number_of_weights_does_not_depend_on_the_longitude() -> None:
    wider = dataclasses.replace(SMALL, lon=48)
    assert sum(sizes(model(wider)).values()) == sum(sizes(model(SMALL)).values())


def test_the_same_seed_gives_the_same_file_and_another_seed_another() -> None:
    one = model(SMALL).SerializeToString(deterministic=True)
    assert one == shaped.build(SMALL, 0).SerializeToString(deterministic=True)
    assert one != model(SMALL, 1).SerializeToString(deterministic=True)


@pytest.mark.parametrize("shape", [SMALL, TABLE])
def test_the_checker_accepts_the_model(shape: PanguShape) -> None:
    onnx.checker.check_model(model(shape), full_check=True)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_decomposed_norms_compute_what_fused_norms_do(opset: int) -> None:
    old = model(dataclasses.replace(SMALL, norms="decomposed"), 0, opset)
    for a, b in zip(run(old, state()), run(model(SMALL), state()), strict=True):
        # Two ways to sum a variance in float32, through ten post-norm halves; outputs are of order 1.
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_a_gathered_table_computes_what_its_expanded_form_does() -> None:
    table, expanded = model(TABLE), model(SMALL)
    stored, target = arrays(table), arrays(expanded)
    values = {n: stored[n] for n in target if n in stored and not n.startswith("onnx::")}
    for one, other in zip(folded(table, "MatMul"), folded(expanded, "MatMul"), strict=True):
        values[other] = stored[one]
    tables = [n for n in stored if n.endswith("earth_specific_bias")]
    index = shaped.pair_index(SMALL.window)
    for one, other in zip(tables, folded(expanded, "Add"), strict=True):
        values[other] = np.ascontiguousarray(stored[one][index].transpose(2, 3, 0, 1)[None])
    for a, b in zip(run(table, state()), run(with_weights(expanded, values), state()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_pair_of_places_with_the_same_distance_in_longitude_shares_a_row() -> None:
    index = shaped.pair_index((2, 3, 6)).reshape(2, 3, 6, 2, 3, 6)
    assert index[1, 2, 3, 0, 1, 1] == index[1, 2, 5, 0, 1, 3]
    assert index[1, 2, 3, 0, 1, 1] != index[1, 1, 3, 0, 0, 1]


def test_the_rows_of_a_table_are_all_used() -> None:
    index = shaped.pair_index((2, 3, 6))
    assert np.array_equal(np.unique(index), np.arange((2 * 6 - 1) * 3**2 * 2**2))


def test_longitude_is_periodic() -> None:
    """Without maps, rolling the state by one window rolls the forecast: no border lies anywhere."""
    shape = dataclasses.replace(SMALL, lon=4 * 6 * 2 * 2)
    proto = onnx.ModelProto()
    proto.CopyFrom(model(shape))
    for node in proto.graph.node:
        if node.op_type == "Constant":
            value = numpy_helper.to_array(node.attribute[0].t)
            if value.shape[-2:] == (shape.lat, shape.lon):
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.zeros_like(value)))
    step = 4 * 6 * 2  # a window of the inner layers, in grid columns
    given = state(shape)
    made = run(proto, given)
    moved = run(proto, {k: np.roll(v, step, axis=-1) for k, v in given.items()})
    for a, b in zip(made, moved, strict=True):
        # The same sums over windows in another order; ten post-norm halves amplify float32 rounding.
        np.testing.assert_allclose(np.roll(a, step, axis=-1), b, atol=2e-3)


def test_the_last_rows_are_not_neighbours_of_the_first() -> None:
    """A mask keeps both ends of latitude apart where windows are shifted: nothing leaks within layer 1."""
    shape = dataclasses.replace(SMALL, depths=(2, 0, 0, 0), lat=48, lon=24)
    given = state(shape)
    changed = {k: v.copy() for k, v in given.items()}
    changed["input_surface"][:, :4] += 2 * climate.surface()[1]
    a, b = (run(model(shape), feeds)[1] for feeds in (given, changed))
    assert np.abs(a - b)[:, :8].max() > 0.01
    np.testing.assert_array_equal(a[:, -8:], b[:, -8:])


def test_every_parameter_is_found_once() -> None:
    proto = model(TINY)
    found = [w.label for w in find_weights(Model(proto, Path()))[1].weights]
    assert len(found) == len(set(found))
    assert sum(math.prod(w.shape) for w in find_weights(Model(proto, Path()))[1].weights) >= 1_350_368


def test_masks_are_told_from_bias_tables() -> None:
    survey = find_weights(Model(model(TINY), Path()))[1]
    masks = [e for e in survey.excluded if "mask" in e.reason]
    tables = [w for w in survey.weights if len(w.shape) == 5 and w.shape[-1] == w.shape[-2] == 36]
    assert (len(masks), len(tables)) == (8, 16)


def test_the_released_layout_gives_28_blocks() -> None:
    assert len(pangu.blocks(list(sizes(model(TINY))))) == 28


def test_the_first_17_blocks_hold_no_matrix_but_the_patch_embedding() -> None:
    proto = model(TINY)
    ranks = {t.name: len(t.dims) for t in proto.graph.initializer}
    small = [n for block in pangu.blocks(list(ranks))[: pangu.SMALL_BLOCKS] for n in block]
    assert [n for n in small if ranks[n] > 1] == ["conv.weight", "conv_surface.weight"]


@pytest.mark.slow
def test_the_blocks_of_the_full_model_have_the_sizes_the_paper_states() -> None:
    """2,496 to 59,904 weights in blocks 0 to 16; 15.8 to 34.7 million in the others; 276.66 million in all."""
    counts = sizes(shaped.build(PanguShape(lon=24)))
    per_block = [sum(counts[n] for n in block) for block in pangu.blocks(list(counts))]
    small, large = per_block[: pangu.SMALL_BLOCKS], per_block[pangu.SMALL_BLOCKS :]
    assert (min(small), max(small)) == (2_496, 59_904)
    assert (round(min(large) / 1e6, 1), round(max(large) / 1e6, 1)) == (15.8, 34.7)
    assert sum(counts.values()) == 276_659_936


def test_roles_follow_the_appendix() -> None:
    buckets = [pangu.bucket(i) for i in range(28)]
    assert [buckets.count(b) for b in ("io.input", "body.other", "body")] == [5, 12, 11]


def test_the_rollout_names_the_nine_variables() -> None:
    spec = load_spec(pangu.rollout())
    assert spec.fields is not None
    upper, surface = spec.fields.input
    assert (upper.input, surface.input) == ("input", "input_surface")
    assert tuple(upper.levels) == pangu.LEVELS
    known = [find_name(v, list(FIELDS[v].names)) for v in (*upper.variables, *surface.variables)]
    assert len(known) == 9
    assert [v.name for v in spec.variable] == [*pangu.UPPER, *pangu.SURFACE]
    assert [v.unit for v in spec.variable] == [*pangu.UPPER.values(), *pangu.SURFACE.values()]


def test_the_export_rolls_out_in_our_engine_as_by_hand(tmp_path: Path) -> None:
    arguments = ["--grid", "21x24", "--set", "dim=24", "--set", "heads=2", "--set", "window=2,3,6"]
    assert main(["export", "pangu", "--out", str(tmp_path), *arguments, "--contexts", "2"]) == 0
    spec = load_spec(tmp_path / "rollout.toml")
    session = open_session(tmp_path / "model.onnx", options=SessionOptions(threads=1))
    check_spec(spec, session.signature)
    contexts = load_contexts(tmp_path / "contexts.npz", spec, session.signature)
    made = Engine(session, spec, contexts).run().outputs
    by_hand = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {k: v[1] for k, v in contexts.arrays.items()}
    for _ in range(spec.rollout.steps):
        upper, surface = by_hand.run(["output", "output_surface"], feeds)
        feeds = {"input": upper, "input_surface": surface}
    # Thread counts differ, and with them the order of sums; four steps of a random network.
    scale = climate.surface()[1]
    np.testing.assert_allclose(made["output_surface"][1, -1] / scale, surface / scale, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"dim": 25}, "not a multiple"), ({"lat": 0}, "at least 1"), ({"depths": (1, -1, 0, 0)}, "at least 1")],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        dataclasses.replace(TINY, **changes)


def test_fused_norms_are_refused_below_opset_17() -> None:
    with pytest.raises(InputError, match="does not go with fused norms"):
        shaped.build(TINY, opset=16)
