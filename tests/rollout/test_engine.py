"""The engine against rollouts written out in NumPy."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine, NonFiniteError
from tqs_onnx.rollout.session import Session, SessionOptions, open_session
from tqs_onnx.rollout.spec.check import check_spec, fixed_batch
from tqs_onnx.rollout.spec.signature import signature_of
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec
from tqs_passes.errors import InputError

ONE_THREAD = SessionOptions(threads=1)


def model(graph: str) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')
    onnx.checker.check_model(proto)
    return proto


def spec_of(tables: str, *, steps: int = 3, batch: str = "batch_axis = 0", length: str = "") -> RolloutSpec:
    return parse_spec(f"version = 1\n[rollout]\nsteps = {steps}\n{length}\n{batch}\n{tables}")


def session_of(proto: onnx.ModelProto) -> Session:
    return open_session(proto.SerializeToString(), options=ONE_THREAD)


def engine(graph: str, spec: RolloutSpec, batch: int | None = None, **arrays) -> Engine:
    proto = model(graph)
    check_spec(spec, signature_of(proto))
    return Engine(session_of(proto), spec, Contexts(dict(arrays), {}), batch=batch)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    # Float32 sums of a few terms: 1e-6 is some ten units in the last place of values near 1.
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


REPLACE = """
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[trajectory]
outputs = ["y"]
"""
DECAY = (
    "(float[b, 3] x) => (float[b, 3] y) <float w = {0.5}, float c = {0.25}> { p = Mul(x, w)  y = Add(p, c) }"
)


def decay(x: np.ndarray, steps: int) -> np.ndarray:
    states = []
    for _ in range(steps):
        x = x * np.float32(0.5) + np.float32(0.25)
        states.append(x)
    return np.stack(states, 1)


def test_replace_feeds_the_output_back():
    x = values(5, 3)
    np.testing.assert_array_equal(engine(DECAY, spec_of(REPLACE), x=x).run().outputs["y"], decay(x, 3))


def test_a_plain_replace_builds_no_update_graph():
    assert engine(DECAY, spec_of(REPLACE), x=values(1, 3)).feedback._update.model is None


def test_an_update_graph_reads_only_what_it_needs():
    tables = REPLACE.replace('"replace"', '"replace"\nscale = 2')
    update = engine(DECAY, spec_of(tables), x=values(1, 3)).feedback._update
    assert sorted(update.feeds.values()) == [("output", "y")]
    onnx.checker.check_model(onnx.load_from_string(update.model or b""))


def test_chunks_give_the_same_trajectory_as_one_batch():
    x = values(5, 3)
    np.testing.assert_array_equal(engine(DECAY, spec_of(REPLACE), 2, x=x).run().outputs["y"], decay(x, 3))


def test_a_slice_runs_its_contexts_only():
    x = values(5, 3)
    result = engine(DECAY, spec_of(REPLACE), x=x).run(contexts=slice(1, 4))
    assert result.contexts == range(1, 4)
    np.testing.assert_array_equal(result.outputs["y"], decay(x[1:4], 3))


def test_an_empty_slice_is_refused():
    with pytest.raises(InputError, match="is empty"):
        engine(DECAY, spec_of(REPLACE), x=values(2, 3)).run(contexts=slice(2, 2))


def test_two_runs_are_identical():
    rolling = engine(DECAY, spec_of(REPLACE), 2, x=values(5, 3))
    np.testing.assert_array_equal(rolling.run().outputs["y"], rolling.run().outputs["y"])


def test_the_contexts_stay_as_they_were():
    x = values(5, 3)
    before = x.copy()
    engine(DECAY, spec_of(REPLACE), 2, x=x).run()
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_is_padded_and_cut(size):
    x = values(6, 3)
    graph = DECAY.replace("[b,", f"[{size},")
    result = engine(graph, spec_of(REPLACE), 3, x=x).run().outputs["y"]
    assert result.shape == (6, 3, 3)
    np.testing.assert_array_equal(result, decay(x, 3))


def test_a_model_without_a_batch_axis_runs_one_context_at_a_time():
    x = values(4, 3)
    graph = DECAY.replace("[b, 3]", "[3]")
    result = engine(graph, spec_of(REPLACE, batch=""), x=x).run().outputs["y"]
    np.testing.assert_array_equal(result, decay(x, 3))


def test_the_batch_axis_may_lie_elsewhere():
    x = values(4, 3)
    graph = DECAY.replace("[b, 3]", "[3, b]")
    result = engine(graph, spec_of(REPLACE, batch="batch_axis = 1"), 3, x=x).run().outputs["y"]
    np.testing.assert_array_equal(result, decay(x, 3))


# y, [b, 2], is made of the last two values of x: a window model that gives two values a call.
WINDOW = """(float[b, n] x) => (float[b, 2] y)
<int64[1] s = {-2}, int64[1] e = {1000}, int64[1] a = {1}, float w = {0.75}, float c = {0.125}>
{ t = Slice(x, s, e, a)  m = ReduceMean<axes = [1]>(x)  p = Mul(t, w)  q = Add(p, m)  y = Add(q, c) }"""
SHIFT = REPLACE.replace('"replace"', '"shift"\naxis = 1') + "time_axis = 1\n"


def window(x: np.ndarray, steps: int, *, grow: bool) -> np.ndarray:
    outputs = []
    for _ in range(steps):
        y = x[:, -2:] * np.float32(0.75) + x.mean(1, keepdims=True) + np.float32(0.125)
        outputs.append(y)
        x = np.concatenate([x, y], 1)
        x = x if grow else x[:, 2:]
    return np.concatenate(outputs, 1)


def test_shift_appends_and_drops_the_oldest():
    x = values(3, 6)
    result = engine(WINDOW, spec_of(SHIFT), x=x).run()
    close(result.outputs["y"], window(x, 3, grow=False))


def test_grow_appends_on_a_dynamic_axis():
    x = values(3, 6)
    close(
        engine(WINDOW, spec_of(SHIFT.replace("shift", "grow")), x=x).run().outputs["y"],
        window(x, 3, grow=True),
    )


def test_length_cuts_the_time_axis():
    x = values(3, 6)
    result = engine(WINDOW, spec_of(SHIFT, length="length = 5"), x=x).run()
    close(result.outputs["y"], window(x, 3, grow=False)[:, :5])
    assert result.time_after == (0, 2, 4, 5)
    assert result.per_step == 2


def test_too_few_steps_for_the_length_are_refused():
    graph = WINDOW.replace("(float[b, 2] y)", "(float[b, k] y)")
    with pytest.raises(InputError, match="3 steps give 6 time values, fewer than length 7"):
        engine(graph, spec_of(SHIFT, length="length = 7"), x=values(3, 6)).run()


def test_a_shift_longer_than_the_window_keeps_the_newest():
    x = values(3, 2)
    graph = """(float[b, 2] x) => (float[b, 4] y) <float w = {0.5}> { d = Concat<axis = 1>(x, x)  y = Mul(d, w) }"""
    result = engine(graph, spec_of(SHIFT, steps=2), x=x).run().outputs["y"]
    first = np.concatenate([x, x], 1) * np.float32(0.5)
    second = np.concatenate([first[:, -2:]] * 2, 1) * np.float32(0.5)
    np.testing.assert_array_equal(result, np.concatenate([first, second], 1))


# TimesFM's way: quantiles along the last axis, one of them is fed back, and a mask grows with a constant.
MASKED = """(float[b, n] x, bool[b, n] mask) => (float[b, 1, 3] y, float[b] unused)
<int64[1] one = {1}, int64[1] last = {2}, float[3] q = {-0.5, 0.0, 0.5}>
{ f = Not(mask)  k = Cast<to = 1>(f)  z = Mul(x, k)  m = ReduceMean<axes = [1]>(z)
  u = Unsqueeze(m, last)  y = Add(u, q)  unused = ReduceSum<keepdims = 0>(z, one) }"""
QUANTILES = """
[[feedback]]
output = "y"
input = "x"
mode = "grow"
axis = 1
select = {axis = 2, index = 2}
[[fill]]
input = "mask"
value = false
axis = 1
length = 1
[trajectory]
outputs = ["y"]
time_axis = 1
"""


def masked(x: np.ndarray, mask: np.ndarray, steps: int) -> np.ndarray:
    outputs = []
    for _ in range(steps):
        mean = (x * ~mask).mean(1, keepdims=True)
        outputs.append(mean[:, :, None] + np.array([-0.5, 0.0, 0.5], np.float32))
        x = np.concatenate([x, mean + np.float32(0.5)], 1)
        mask = np.concatenate([mask, np.zeros((len(mask), 1), bool)], 1)
    return np.concatenate(outputs, 1)


def test_a_selected_quantile_is_fed_back_and_the_mask_grows():
    x, mask = values(3, 4), values(3, 4, seed=1) > 0
    close(engine(MASKED, spec_of(QUANTILES), x=x, mask=mask).run().outputs["y"], masked(x, mask, 3))


def test_the_trajectory_may_select_too():
    x, mask = values(3, 4), values(3, 4, seed=1) > 0
    spec = spec_of(QUANTILES + "select = [{axis = 2, index = 2}]\n")
    close(engine(MASKED, spec, x=x, mask=mask).run().outputs["y"], masked(x, mask, 3)[:, :, 2])


def test_a_selected_range_keeps_its_axis():
    x, mask = values(3, 4), values(3, 4, seed=1) > 0
    spec = spec_of(QUANTILES + "select = {axis = 2, start = -2}\n")
    close(engine(MASKED, spec, x=x, mask=mask).run().outputs["y"], masked(x, mask, 3)[:, :, 1:])


def test_a_fill_may_shift():
    graph = "(float[b, 2] x, float[b, 4] m) => (float[b, 2] y, float[b, 4] z) { y = Neg(x)  z = Identity(m) }"
    tables = REPLACE.replace(
        "[traj", '[[fill]]\ninput = "m"\nvalue = 7.0\nmode = "shift"\naxis = 1\nlength = 1\n[traj'
    )
    x, m = values(2, 2), values(2, 4, seed=1)
    result = engine(graph, spec_of(tables), x=x, m=m).run(keep_other=True)
    np.testing.assert_array_equal(result.other["z"][:, 2], np.concatenate([m[:, 2:], np.full((2, 2), 7)], 1))


# State in columns 0 and 1 of x, forcing in column 2.
INTO = """(float[b, 3] x) => (float[b, 2] y) <float[3, 2] w = {0.5, 0.1, -0.2, 0.3, 0.4, -0.6}> { y = MatMul(x, w) }"""
WEIGHTS = np.array([[0.5, 0.1], [-0.2, 0.3], [0.4, -0.6]], np.float32)
INTO_TABLES = REPLACE.replace('"replace"', '"replace"\ninto = {axis = 1, start = 0, stop = 2}')


def test_into_takes_the_rest_from_the_forcing():
    x = values(4, 3, 3)
    spec = spec_of(INTO_TABLES.replace("[traj", '[[forcing]]\ninput = "x"\n[traj'))
    state, outputs = x[:, 0], []
    for step in range(3):
        y = state @ WEIGHTS
        outputs.append(y)
        if step < 2:
            state = np.concatenate([y, x[:, step + 1, 2:]], 1)
    close(engine(INTO, spec, x=x).run().outputs["y"], np.stack(outputs, 1))


def test_into_keeps_the_previous_rest_without_a_forcing():
    x = values(4, 3)
    state, outputs = x, []
    for _ in range(3):
        y = state @ WEIGHTS
        outputs.append(y)
        state = np.concatenate([y, x[:, 2:]], 1)
    close(engine(INTO, spec_of(INTO_TABLES), x=x).run().outputs["y"], np.stack(outputs, 1))


def test_an_index_in_into_takes_an_array_without_that_axis():
    graph = "(float[b, 3] x) => (float[b] y) <int64[1] a = {1}> { y = ReduceSum<keepdims = 0>(x, a) }"
    x = values(4, 3)
    state, outputs = x.copy(), []
    for _ in range(3):
        y = state.sum(1)
        outputs.append(y)
        state = np.stack([state[:, 0], state[:, 1], y], 1)
    spec = spec_of(REPLACE.replace('"replace"', '"replace"\ninto = {axis = 1, index = 2}'))
    close(engine(graph, spec, x=x).run().outputs["y"], np.stack(outputs, 1))


def test_a_negative_index_in_into_is_the_last_one():
    graph = "(float[b, 3] x) => (float[b] y) <int64[1] a = {1}> { y = ReduceSum<keepdims = 0>(x, a) }"
    x = values(4, 3)
    both = [
        engine(
            graph, spec_of(REPLACE.replace('"replace"', f'"replace"\ninto = {{axis = 1, index = {i}}}')), x=x
        )
        for i in (2, -1)
    ]
    np.testing.assert_array_equal(both[0].run().outputs["y"], both[1].run().outputs["y"])


def test_a_part_may_shift_while_the_rest_is_forced():
    # x [b, time 3, channel 2]: channel 0 is the state's history, channel 1 is forced.
    graph = """(float[b, 3, 2] x) => (float[b, 1] y) <int64[1] one = {1}, float half = {0.5}, int64[2] a = {1, 2}>
    { s = ReduceSum<keepdims = 0>(x, a)  u = Unsqueeze(s, one)  y = Mul(u, half) }"""
    x = values(4, 3, 3, 2)
    tables = """
[[feedback]]
output = "y"
input = "x"
mode = "shift"
axis = 1
into = {axis = 2, index = 0}
[[forcing]]
input = "x"
[trajectory]
outputs = ["y"]
"""
    state, outputs = x[:, 0], []
    for step in range(3):
        y = state.sum((1, 2))[:, None] * np.float32(0.5)
        outputs.append(y)
        if step < 2:
            history = np.concatenate([state[:, 1:, 0], y], 1)
            state = np.stack([history, x[:, step + 1, :, 1]], 2)
    close(engine(graph, spec_of(tables), x=x).run().outputs["y"], np.stack(outputs, 1))


def test_two_outputs_may_write_parts_of_one_input():
    graph = "(float[b, 3] x) => (float[b, 1] y, float[b, 2] z) <int64[2] k = {2, 1}> { z, y = Split<axis = 1>(x, k) }"
    tables = """
[[feedback]]
output = "y"
input = "x"
mode = "replace"
into = {axis = 1, start = 0, stop = 1}
[[feedback]]
output = "z"
input = "x"
mode = "replace"
into = {axis = 1, start = 1}
[trajectory]
outputs = ["y"]
"""
    x = values(2, 3)
    result = engine(graph, spec_of(tables), x=x).run().outputs["y"]
    # x = (y, z) turns into (x2, x0, x1): the last value comes first.
    np.testing.assert_array_equal(result[:, :, 0], x[:, [2, 1, 0]])


def test_expand_adds_the_time_axis_of_a_history():
    # Aurora's way: x [b, 2, h] holds two times, y [b, h] one.
    graph = """(float[b, 2, 3] x) => (float[b, 3] y) <float[1, 2, 1] w = {-0.5, 1.25}, int64[1] a = {1}>
    { p = Mul(x, w)  y = ReduceSum<keepdims = 0>(p, a) }"""
    tables = REPLACE.replace('"replace"', '"shift"\naxis = 1\nexpand = [1]')
    x = values(4, 2, 3)
    old, new, outputs = x[:, 0], x[:, 1], []
    for _ in range(3):
        old, new = new, np.float32(-0.5) * old + np.float32(1.25) * new
        outputs.append(new)
    close(engine(graph, spec_of(tables), x=x).run().outputs["y"], np.stack(outputs, 1))


@pytest.mark.parametrize(
    ("keys", "scale", "offset"),
    [
        ("scale = 2.0\noffset = -0.5", 2.0, -0.5),
        ("scale = [1.0, 2.0, 3.0]", [1.0, 2.0, 3.0], 0.0),
        ("offset = [1.0, 2.0]\nalong = 1", 1.0, [[1.0], [2.0]]),
        ("scale = [1.0, 2.0]\noffset = [0.5, 0.25]\nalong = 1", [[1.0], [2.0]], [[0.5], [0.25]]),
    ],
)
def test_scale_and_offset_apply_to_what_is_fed(keys, scale, offset):
    graph = DECAY.replace("[b, 3]", "[b, 2, 3]")
    x = values(4, 2, 3)
    state, outputs = x, []
    for _ in range(3):
        y = state * np.float32(0.5) + np.float32(0.25)
        outputs.append(y)
        state = y * np.array(scale, np.float32) + np.array(offset, np.float32)
    spec = spec_of(REPLACE.replace('"replace"', f'"replace"\n{keys}'))
    close(engine(graph, spec, x=x).run().outputs["y"], np.stack(outputs, 1))


FORCED = """(float[b, 3] x, float[b, 1] sun, float[b, 3] land, float[3] shared) => (float[b, 3] y)
{ p = Mul(x, land)  q = Add(p, sun)  y = Mul(q, shared) }"""
FORCED_TABLES = REPLACE.replace(
    "[traj",
    '[[forcing]]\ninput = "sun"\n[[static]]\ninput = "land"\n[[static]]\ninput = "shared"\nshared = true\n[traj',
)


def test_forcings_change_and_statics_stay():
    x, sun, land = values(5, 3), values(5, 4, 1, seed=1), values(5, 3, seed=2)
    shared = np.repeat(values(1, 3, seed=3), 5, 0)
    state, outputs = x, []
    for step in range(3):
        state = (state * land + sun[:, step]) * shared
        outputs.append(state)
    result = engine(FORCED, spec_of(FORCED_TABLES), 2, x=x, sun=sun, land=land, shared=shared).run()
    close(result.outputs["y"], np.stack(outputs, 1))


def test_a_shared_input_that_differs_in_a_batch_is_refused():
    arrays = {"x": values(5, 3), "sun": values(5, 3, 1), "land": values(5, 3), "shared": values(5, 3)}
    with pytest.raises(InputError, match=r"'shared' is shared by a batch, but differs.*Set `batch` to 1"):
        engine(FORCED, spec_of(FORCED_TABLES), 2, **arrays).run()


def test_a_shared_input_may_differ_at_batch_one():
    arrays = {"x": values(5, 3), "sun": values(5, 3, 1), "land": values(5, 3), "shared": values(5, 3)}
    result = engine(FORCED, spec_of(FORCED_TABLES), 1, **arrays).run()
    first = (arrays["x"] * arrays["land"] + arrays["sun"][:, 0]) * arrays["shared"]
    close(result.outputs["y"][:, 0], first)


RECURRENT = """(float[b, 1] x, float[b, 3] h) => (float[b, 1] y, float[b, 3] k, float[2] extra)
<float[3] v = {0.5, -0.25, 0.125}, int64[1] a = {1}, float[2] e = {1, 2}>
{ p = Mul(x, v)  s = Add(p, h)  k = Tanh(s)  y = ReduceSum(k, a)  extra = Identity(e) }"""
RECURRENT_TABLES = REPLACE.replace(
    "[traj", '[[feedback]]\noutput = "k"\ninput = "h"\nmode = "replace"\n[traj'
)


def recurrent(x: np.ndarray, h: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    outputs, states = [], []
    for _ in range(steps):
        h = np.tanh(x * np.array([0.5, -0.25, 0.125], np.float32) + h)
        x = h.sum(1, keepdims=True)
        outputs.append(x)
        states.append(h)
    return np.stack(outputs, 1), np.stack(states, 1)


def test_a_recurrent_state_outside_the_trajectory_is_fed_back():
    x, h = values(4, 1), values(4, 3, seed=1)
    result = engine(RECURRENT, spec_of(RECURRENT_TABLES), x=x, h=h).run()
    close(result.outputs["y"], recurrent(x, h, 3)[0])
    assert list(result.outputs) == ["y"]
    assert result.other == {}


def test_other_outputs_are_kept_on_request():
    x, h = values(4, 1), values(4, 3, seed=1)
    result = engine(RECURRENT, spec_of(RECURRENT_TABLES), 3, x=x, h=h).run(keep_other=True)
    close(result.other["k"], recurrent(x, h, 3)[1])
    assert result.last_only == frozenset()


def test_an_output_without_the_batch_axis_is_repeated_per_context():
    result = engine(RECURRENT, spec_of(RECURRENT_TABLES), 3, x=values(4, 1), h=values(4, 3)).run(
        keep_other=True
    )
    np.testing.assert_array_equal(result.other["extra"], np.tile(np.float32([1, 2]), (4, 3, 1)))


def test_of_an_output_that_changes_its_shape_the_last_step_is_kept():
    graph = "(float[b, n] x) => (float[b, 1] y, float[b, n] z) { y = ReduceMax<axes = [1]>(x)  z = Neg(x) }"
    x = values(3, 2)
    result = engine(graph, spec_of(SHIFT.replace("shift", "grow")), 2, x=x).run(keep_other=True)
    top = x.max(1, keepdims=True)
    np.testing.assert_array_equal(result.other["z"], -np.concatenate([x, top, top], 1))
    assert result.last_only == {"z"}


def test_several_outputs_make_one_trajectory():
    graph = "(float[b, 2] x, float[b, 3] s) => (float[b, 2] y, float[b, 3] t) { y = Neg(x)  t = Add(s, s) }"
    tables = """
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[[feedback]]
output = "t"
input = "s"
mode = "replace"
[trajectory]
outputs = ["y", "t"]
"""
    x, s = values(2, 2), values(2, 3, seed=1)
    outputs = engine(graph, spec_of(tables), x=x, s=s).run().outputs
    np.testing.assert_array_equal(outputs["y"], np.stack([-x, x, -x], 1))
    np.testing.assert_array_equal(outputs["t"], np.stack([s * 2, s * 4, s * 8], 1))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_other_float_types_give_float32(kind):
    graph = f"({kind}[b, 3] x) => ({kind}[b, 3] y) {{ y = Identity(x) }}"
    dtype = signature_of(model(graph)).inputs[0].dtype
    x = np.array([[0.5, -1.25, 3.0], [1.0, 2.0, 0.125]], dtype)
    result = engine(graph, spec_of(REPLACE), x=x).run().outputs["y"]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.stack([x.astype(np.float32)] * 3, 1))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_other_float_types_shift_and_scale(kind):
    graph = f"({kind}[b, 3] x) => ({kind}[b, 3] y) {{ y = Identity(x) }}"
    dtype = signature_of(model(graph)).inputs[0].dtype
    x = np.array([[0.5, -1.25, 3.0]], dtype)
    tables = REPLACE.replace('"replace"', '"shift"\naxis = 1\nselect = {axis = 1, stop = 1}\nscale = 2')
    result = engine(graph, spec_of(tables), x=x).run().outputs["y"]
    wanted = [[0.5, -1.25, 3.0], [-1.25, 3.0, 1.0], [3.0, 1.0, -2.5]]
    np.testing.assert_array_equal(result[0], np.array(wanted, np.float32))


def test_a_float16_output_becomes_a_float32_input():
    graph = "(float[b, 3] x) => (float16[b, 3] y) { y = Cast<to = 10>(x) }"
    x = values(2, 3)
    result = engine(graph, spec_of(REPLACE), x=x).run().outputs["y"]
    np.testing.assert_array_equal(result[:, 2], x.astype(np.float16).astype(np.float32))


WEIGHTED = "(float[b, 3] x, float[3] w) => (float[b, 3] y) { y = Mul(x, w) }"


def test_an_override_is_bound_at_every_step():
    proto = model(WEIGHTED)
    x, w = values(4, 3), values(3, seed=1)
    rolling = Engine(session_of(proto), spec_of(REPLACE), Contexts({"x": x}, {}), batch=2)
    result = rolling.run({"w": rolling.session.value(w)}).outputs["y"]
    close(result, np.stack([x * w, x * w * w, x * w * w * w], 1))


def test_a_missing_override_is_named():
    rolling = Engine(session_of(model(WEIGHTED)), spec_of(REPLACE), Contexts({"x": values(4, 3)}, {}))
    with pytest.raises(InputError, match=r"'w' float32 \[3\] has no value"):
        rolling.run()


def test_an_override_of_another_shape_names_the_step():
    rolling = Engine(session_of(model(WEIGHTED)), spec_of(REPLACE), Contexts({"x": values(4, 3)}, {}))
    with pytest.raises(InputError, match="step 1, contexts 0–3: the model failed"):
        rolling.run({"w": rolling.session.value(values(5))})


BLOW_UP = "(float[b, 2] x) => (float[b, 2] y) { y = Mul(x, x) }"


def test_a_value_that_is_not_finite_is_named():
    x = np.array([[1, 1], [1, 1], [1, 1e30]], np.float32)
    spec = spec_of(REPLACE + '[[variable]]\nname = "t2m"\noutput = "y"\naxis = 1\nindex = 1\n')
    with pytest.raises(
        NonFiniteError, match="step 1, context 2: variable 't2m' is NaN or infinite"
    ) as caught:
        engine(BLOW_UP, spec, 2, x=x).run()
    assert (caught.value.variable, caught.value.step, caught.value.context) == ("t2m", 1, 2)


def test_the_step_of_the_first_value_that_is_not_finite_counts_from_one():
    x = np.array([[1, 1e10]], np.float32)
    with pytest.raises(NonFiniteError, match="step 2, context 0: variable 'y'"):
        engine(BLOW_UP, spec_of(REPLACE), x=x).run()


def test_an_input_that_changes_its_shape_is_refused():
    graph = "(float[b, n] x) => (float[b, m] y) { y = Concat<axis = 1>(x, x) }"
    with pytest.raises(InputError, match=r"before step 2: input 'x' was \[2, 3\] and would become \[2, 6\]"):
        engine(graph, spec_of(REPLACE), x=values(2, 3)).run()


def test_outputs_of_different_lengths_are_refused():
    graph = "(float[b, 2] x) => (float[b, k] y, float[b, l] z) { y = Neg(x)  z = Concat<axis = 1>(x, x) }"
    spec = spec_of(REPLACE.replace('["y"]', '["y", "z"]\ntime_axis = 1'))
    with pytest.raises(InputError, match="differ in their number of time values"):
        engine(graph, spec, x=values(2, 2)).run()


def test_contexts_without_an_input_are_refused():
    with pytest.raises(InputError, match="no array for input 'x'"):
        engine(DECAY, spec_of(REPLACE))


def test_a_batch_below_one_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        engine(DECAY, spec_of(REPLACE), 0, x=values(2, 3))


def test_one_step_needs_no_feedback():
    spec = spec_of('[[static]]\ninput = "x"\n[trajectory]\noutputs = ["y"]', steps=1)
    x = values(2, 3)
    np.testing.assert_array_equal(engine(DECAY, spec, x=x).run().outputs["y"], decay(x, 1))


@pytest.mark.parametrize("cut", ["index = 7", "start = 5, stop = 6"])
def test_a_trajectory_cut_outside_of_what_comes_is_one_line(cut: str) -> None:
    graph = "(float[b, n] x) => (float[b, n] y) { y = Tanh(x) }"
    rolling = engine(graph, spec_of(REPLACE + f"select = {{axis = 1, {cut}}}"), x=values(2, 3))
    with pytest.raises(InputError, match=r"select cuts axis 1 of \[2, 3\] outside of it"):
        rolling.run()


def test_walking_gives_what_is_fed_back_at_every_step() -> None:
    rolling = Engine(session_of(model(DECAY)), spec_of(REPLACE), Contexts({"x": values(4, 3)}, {}))
    walked = [outputs["y"].numpy() for _, outputs in rolling.walk()]
    np.testing.assert_array_equal(np.stack(walked, 1), rolling.run().outputs["y"])


def test_a_batch_of_minus_one_is_no_fixed_batch() -> None:
    proto = model(DECAY)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    assert signature_of(proto).input("x").shape == ("?", 3)
    assert fixed_batch(spec_of(REPLACE), signature_of(proto)) is None


def test_a_batch_that_fails_suggests_one_context_a_call(tmp_path: Path) -> None:
    """The model reshapes to one row, whatever its declared batch."""
    text = "(float[b, 4] x) => (float[b, 4] y) { y = Reshape(x, one) }"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 4]), "one"))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    session = open_session(tmp_path / "m.onnx")
    contexts = Contexts({"x": np.ones((3, 4), np.float32)}, {})
    spec = spec_of(REPLACE, steps=2)
    with pytest.raises(InputError, match="Set `batch` to 1"):
        Engine(session, spec, contexts).run()
    assert Engine(session, spec, contexts, batch=1).run().outputs["y"].shape[0] == 3
