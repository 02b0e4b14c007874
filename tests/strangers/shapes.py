"""Small models in the shapes in which strangers export theirs, each with the wiring that is right for it.

`fed`: (output, input, mode) that a draft must use, no more and no less. `asked`: outputs about which it must ask.
Weights are such that a model behaves as what it stands for: forecasters go on from the last value, reconstructions give
their own result back, classifiers do neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

Fed = tuple[str, str, str]


@dataclass(frozen=True)
class Stranger:
    """A model, and what a draft of its rollout must say."""

    name: str
    build: Callable[[], onnx.ModelProto]
    fed: frozenset[Fed] = frozenset()
    asked: frozenset[str] = frozenset()
    forcing: frozenset[str] = frozenset()
    static: frozenset[str] = frozenset()
    batch: int | None = 0
    steps: int | None = None
    time_axis: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def graph(text: str, metadata: Mapping[str, str] | None = None, **weights: np.ndarray) -> onnx.ModelProto:
    """Return the model of a graph in ONNX text, with these weights (opset 17)."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ng {text}')
    kinds = {np.dtype(np.float64): np.float32}
    for name, array in weights.items():
        held = np.asarray(array)
        proto.graph.initializer.append(
            numpy_helper.from_array(held.astype(kinds.get(held.dtype, held.dtype)), name)
        )
    for key, value in (metadata or {}).items():
        helper.set_model_props(proto, {key: value})
    onnx.checker.check_model(proto)
    return proto


def draws(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=shape)


def recent(window: int, horizon: int) -> np.ndarray:
    """Weights [window, horizon] of a forecaster: mostly the last values, a little of everything."""
    weights = np.exp(-(window - 1 - np.arange(window)) / 1.5)[:, None] * np.ones((1, horizon))
    return weights / weights.sum(0) * 0.9 + draws(3, window, horizon, scale=0.004)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def univariate() -> onnx.ModelProto:
    text = """(float[unk__130, 18, 1] input_1) => (float[unk__131, 7] dense_1) {
        flat = Reshape(input_1, to) dense_1 = MatMul(flat, w) }"""
    return graph(text, to=ints(0, 18), w=recent(18, 7))


def classifier() -> onnx.ModelProto:
    text = """(float[unk__1, 30, 1] input_1) => (float[unk__2, 5] dense_1) {
        flat = Reshape(input_1, to) z = MatMul(flat, w) dense_1 = Softmax(z) }"""
    return graph(text, to=ints(0, 30), w=draws(1, 30, 5, scale=0.3))


def remaining_life() -> onnx.ModelProto:
    text = """(float[unk__130, 30, 17] input_layer) => (float[unk__131, 1] output_0) {
        flat = Reshape(input_layer, to) h = MatMul(flat, w) r = Relu(h) output_0 = MatMul(r, v) }"""
    return graph(text, to=ints(0, 510), w=draws(1, 510, 8, scale=0.05), v=draws(2, 8, 1))


def next_row() -> onnx.ModelProto:
    text = """(float[batch, 24, 7] history) => (float[batch, 7] forecast) {
        t = Transpose<perm = [0, 2, 1]>(history) y = MatMul(t, w) forecast = Squeeze(y, two) }"""
    return graph(text, w=recent(24, 1), two=ints(2))


def block_of_rows(batch: str = "N") -> onnx.ModelProto:
    text = f"""(float[{batch}, 96, 7] x) => (float[{batch}, 24, 7] prediction) {{
        t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(t, w) prediction = Transpose<perm = [0, 2, 1]>(y) }}"""
    return graph(text, w=recent(96, 24))


def per_position() -> onnx.ModelProto:
    text = """(float[batch_size, 10, 14] input) => (float[batch_size, 10, 1] output) {
        h = MatMul(input, w) r = Relu(h) output = MatMul(r, v) }"""
    return graph(text, w=draws(1, 14, 8), v=draws(2, 8, 1))


def named_autoencoder() -> onnx.ModelProto:
    text = """(float[b, 30, 17] window) => (float[b, 30, 17] reconstruction) {
        h = MatMul(window, w) reconstruction = MatMul(h, v) }"""
    basis = np.linalg.qr(draws(1, 17, 6))[0]
    return graph(text, w=basis, v=basis.T)


def plain_autoencoder() -> onnx.ModelProto:
    text = "(float[b, 16] input) => (float[b, 16] output) { h = MatMul(input, w) output = MatMul(h, v) }"
    basis = np.linalg.qr(draws(1, 16, 10))[0]
    return graph(text, w=basis, v=basis.T)


def windowed_autoencoder() -> onnx.ModelProto:
    text = "(float[b, 30, 17] input_1) => (float[b, 30, 17] dense_4) { h = MatMul(input_1, w) dense_4 = MatMul(h, v) }"
    basis = np.linalg.qr(draws(1, 17, 12))[0]
    return graph(text, w=basis, v=basis.T)


def dynamics(given: str = "state", made: str = "next_state", gain: float = 0.2) -> onnx.ModelProto:
    text = f"""(float[batch, 8] {given}) => (float[batch, 8] {made}) {{
        h = MatMul({given}, w) r = Tanh(h) d = MatMul(r, v) {made} = Add({given}, d) }}"""
    return graph(text, w=draws(1, 8, 8), v=draws(2, 8, 8, scale=gain))


def exploding() -> onnx.ModelProto:
    text = "(float[batch, 8] x) => (float[batch, 8] x_next) { x_next = MatMul(x, w) }"
    return graph(text, w=np.eye(8) * 1.6)


def fields() -> onnx.ModelProto:
    text = """(float[batch, 3, 8, 8] input) => (float[batch, 3, 8, 8] output) {
        h = Conv<pads = [1, 1, 1, 1]>(input, w) r = Tanh(h) d = Conv<pads = [1, 1, 1, 1]>(r, v)
        output = Add(input, d) }"""
    return graph(text, w=draws(1, 6, 3, 3, 3, scale=0.3), v=draws(2, 3, 6, 3, 3, scale=0.1))


def segmentation() -> onnx.ModelProto:
    text = """(float[N, 8, 8, 17] input_1) => (float[N, 8, 8, 1] conv2d_17) {
        h = MatMul(input_1, w) conv2d_17 = Sigmoid(h) }"""
    return graph(text, w=draws(1, 17, 1))


def mask_of_channels() -> onnx.ModelProto:
    text = """(float[N, 3, 8, 8] input_1) => (float[N, 3, 8, 8] activation_9) {
        h = Conv<pads = [1, 1, 1, 1]>(input_1, w) activation_9 = Sigmoid(h) }"""
    return graph(text, w=draws(1, 3, 3, 3, 3))


def torch_lstm() -> onnx.ModelProto:
    text = """(float[1, b, 4] x, float[1, b, 6] h0, float[1, b, 6] c0)
        => (float[1, b, 4] y, float[1, b, 6] hn, float[1, b, 6] cn) {
        a, hn, cn = LSTM<hidden_size = 6>(x, W, R, , , h0, c0)
        s = Squeeze(a, one) y = MatMul(s, v) }"""
    weights = {"W": draws(1, 1, 24, 4), "R": draws(2, 1, 24, 6), "v": draws(3, 6, 4)}
    return graph(text, one=ints(1), **weights)


def cell_with_next() -> onnx.ModelProto:
    text = """(float[b, 4] x, float[b, 6] state_in) => (float[b, 4] x_next, float[b, 6] state_out) {
        a = MatMul(x, w) c = MatMul(state_in, r) s = Add(a, c) state_out = Tanh(s)
        d = MatMul(state_out, v) x_next = Add(x, d) }"""
    return graph(text, w=draws(1, 4, 6), r=draws(2, 6, 6, scale=0.3), v=draws(3, 6, 4, scale=0.05))


def mask_with_unnamed_state() -> onnx.ModelProto:
    text = """(float[1, 1, 20] input_2, float[1, 2, 6, 2] input_3)
        => (float[1, 1, 20] activation_2, float[1, 2, 6, 2] tf_op_layer_stack_2) {
        s = Reshape(input_3, flat) u = MatMul(input_2, w) t = Add(u, s) a = Tanh(t)
        tf_op_layer_stack_2 = Reshape(a, full) z = MatMul(a, v) activation_2 = Sigmoid(z) }"""
    weights = {"w": draws(1, 20, 24, scale=0.2), "v": draws(2, 24, 20)}
    return graph(text, flat=ints(1, 1, 24), full=ints(1, 2, 6, 2), **weights)


def block_with_unnamed_state() -> onnx.ModelProto:
    text = """(float[1, 1, 20] input_4, float[1, 2, 6, 2] input_5)
        => (float[N, 1, 20] conv1d_3, float[N, 2, 6, 2] tf_op_layer_stack_5) {
        s = Reshape(input_5, flat) u = MatMul(input_4, w) t = Add(u, s) a = Tanh(t)
        tf_op_layer_stack_5 = Reshape(a, full) z = MatMul(a, v) conv1d_3 = Add(z, input_4) }"""
    weights = {"w": draws(1, 20, 24, scale=0.2), "v": draws(2, 24, 20)}
    return graph(text, flat=ints(1, 1, 24), full=ints(1, 2, 6, 2), **weights)


def speech() -> onnx.ModelProto:
    text = """(float[batch, 32] input, float[2, batch, 6] state, int64 sr)
        => (float[batch, 1] output, float[two, batch, six] stateN) {
        fast = Equal(sr, rate)
        w = If(fast) <then_branch = a () => (float[32, 6] wa) { wa = Identity(w16) },
                      else_branch = e () => (float[32, 6] we) { we = Identity(w8) }>
        u = MatMul(input, w) h = ReduceMean<axes = [0], keepdims = 0>(state) s = Add(u, h) t = Tanh(s)
        v = Unsqueeze(t, zero) stateN = Concat<axis = 0>(v, v) z = MatMul(t, o) output = Sigmoid(z) }"""
    weights = {"w16": draws(1, 32, 6), "w8": draws(2, 32, 6), "o": draws(3, 6, 1)}
    return graph(text, rate=np.asarray(16000, np.int64), zero=ints(0), **weights)


def caches() -> onnx.ModelProto:
    text = """(float[1, 9, 1, 2] mix, float[2, 1, 4, 4] conv_cache, float[2, 3, 1, 4] tra_cache)
        => (float[p, q, r, s] enh, float[a, b, c, d] conv_cache_out, float[e, f, g, h] tra_cache_out) {
        conv_cache_out_ = MatMul(conv_cache, w) conv_cache_out = Tanh(conv_cache_out_)
        tra_cache_out_ = MatMul(tra_cache, w) tra_cache_out = Tanh(tra_cache_out_)
        m = ReduceMean<keepdims = 1>(conv_cache_out) n = ReduceMean<keepdims = 1>(tra_cache_out)
        k = Add(m, n) enh = Add(mix, k) }"""
    return graph(text, w=draws(1, 4, 4, scale=0.5))


def darts(**more: object) -> dict[str, str]:
    said: dict[str, object] = {
        "input_chunk_length": 24,
        "output_chunk_length": 8,
        "output_chunk_shift": 0,
        "uses_past_covariates": False,
        "uses_future_covariates": True,
        "uses_static_covariates": False,
        "likelihood_parameter_names": None,
        "feature_input_names": ["past_target", "future_covariates"],
        "input_names": ["past_target", "future_covariates"],
        "output_names": ["prediction"],
        "state_input_names": [],
        "state_output_names": [],
        "state_input_shapes": None,
        "stepwise_state": False,
    }
    return {"darts.onnx_spec": json.dumps(said | more)}


def darts_block(likelihood: list[str] | None = None) -> onnx.ModelProto:
    trailing = 3 if likelihood else 1
    text = f"""(float[batch, 24, 2] past_target, float[batch, 8, 3] future_covariates)
        => (float[batch, 8, 2, {trailing}] prediction) {{
        t = Transpose<perm = [0, 2, 1]>(past_target) y = MatMul(t, w) z = Transpose<perm = [0, 2, 1]>(y)
        c = MatMul(future_covariates, v) s = Add(z, c) u = Unsqueeze(s, three) prediction = Expand(u, to) }}"""
    weights = {"w": recent(24, 8), "v": draws(2, 3, 2, scale=0.1)}
    said = darts(likelihood_parameter_names=likelihood)
    return graph(text, said, three=ints(3), to=ints(1, 1, 1, trailing), **weights)


def darts_cell() -> onnx.ModelProto:
    text = """(float[batch, 1, 2] past_target, float[1, batch, 6] state_in_0)
        => (float[batch, 1, 2, 1] prediction, float[1, batch, 6] state_out_0) {
        x = Transpose<perm = [1, 0, 2]>(past_target) a = MatMul(x, w) b = MatMul(state_in_0, r)
        s = Add(a, b) state_out_0 = Tanh(s) y = MatMul(state_out_0, v)
        z = Transpose<perm = [1, 0, 2]>(y) prediction = Unsqueeze(z, three) }"""
    names = {
        "state_input_names": ["state_in_0"],
        "state_output_names": ["state_out_0"],
        "stepwise_state": True,
    }
    said = darts(feature_input_names=["past_target"], output_names=["prediction", "state_out_0"], **names)
    weights = {"w": draws(1, 2, 6), "r": draws(2, 6, 6, scale=0.3), "v": draws(3, 6, 2)}
    return graph(text, said, three=ints(3), **weights)


def attention_cache() -> onnx.ModelProto:
    text = """(float[batch, 1, 4] token, float[batch, past, 4] past_key, float[batch, past, 4] past_value)
        => (float[batch, 1, 4] next_token, float[batch, total, 4] present_key, float[batch, total, 4] present_value) {
        k = MatMul(token, wk) v = MatMul(token, wv)
        present_key = Concat<axis = 1>(past_key, k) present_value = Concat<axis = 1>(past_value, v)
        kt = Transpose<perm = [0, 2, 1]>(present_key) s = MatMul(token, kt) p = Softmax(s)
        o = MatMul(p, present_value) d = MatMul(o, wo) next_token = Add(token, d) }"""
    weights = {"wk": draws(1, 4, 4), "wv": draws(2, 4, 4, scale=0.2), "wo": draws(3, 4, 4, scale=0.2)}
    return graph(text, **weights)


def baked_batch_of_one() -> onnx.ModelProto:
    text = """(float[N, 12, 1] series) => (float[N, 4] forecast) {
        flat = Reshape(series, to) forecast = MatMul(flat, w) }"""
    return graph(text, to=ints(1, 12), w=recent(12, 4))


def time_first() -> onnx.ModelProto:
    text = """(float[seq, 1, 4] input) => (float[seq, 1, 4] output) {
        a, = LSTM<hidden_size = 6>(input, W, R) s = Squeeze(a, one) output = MatMul(s, v) }"""
    weights = {"W": draws(1, 1, 24, 4), "R": draws(2, 1, 24, 6), "v": draws(3, 6, 4)}
    return graph(text, one=ints(1), **weights)


def history_of_states() -> onnx.ModelProto:
    text = """(float[batch, 2, 3, 8, 8] state) => (float[batch, 3, 8, 8] output) {
        s = Reshape(state, to) output = Conv<pads = [1, 1, 1, 1]>(s, w) }"""
    kernel = draws(1, 3, 6, 3, 3, scale=0.02)
    kernel[:, 3:, 1, 1] += 0.9 * np.eye(3)
    return graph(text, to=ints(0, 6, 8, 8), w=kernel)


def stacked_states() -> onnx.ModelProto:
    text = """(float[batch, 6, 8, 8] input) => (float[batch, 3, 8, 8] output) {
        output = Conv<pads = [1, 1, 1, 1]>(input, w) }"""
    kernel = draws(1, 3, 6, 3, 3, scale=0.02)
    kernel[:, 3:, 1, 1] += 0.9 * np.eye(3)
    return graph(text, w=kernel)


def tabular() -> onnx.ModelProto:
    text = """(float[batch_size, 11] input) => (float[batch_size, 2] output) {
        h = MatMul(input, w) r = Relu(h) output = MatMul(r, v) }"""
    return graph(text, w=draws(1, 11, 16), v=draws(2, 16, 2))


def regressor() -> onnx.ModelProto:
    text = "(float[None, 4] X) => (float[None, 1] variable) { variable = MatMul(X, w) }"
    return graph(text, w=draws(5, 4, 1))


def patches() -> onnx.ModelProto:
    text = "(float[batch, 64] context) => (float[batch, 16] forecast) { forecast = MatMul(context, w) }"
    return graph(text, w=recent(64, 16))


def quantiles() -> onnx.ModelProto:
    text = """(float[batch, 64] context) => (float[batch, 16, 9] quantile_forecast) {
        y = MatMul(context, w) quantile_forecast = Reshape(y, to) }"""
    return graph(text, to=ints(0, 16, 9), w=recent(64, 144))


def weather() -> onnx.ModelProto:
    text = """(float[batch, 3, 8, 8] state, float[2, 8, 8] static, float[batch, 4] time)
        => (float[batch, 3, 8, 8] next_state) {
        h = Conv<pads = [1, 1, 1, 1]>(state, w) m = ReduceMean<keepdims = 1>(static) t = MatMul(time, v)
        tt = Reshape(t, to) a = Add(h, tt) c = Add(a, m) r = Tanh(c) d = Mul(r, tenth) next_state = Add(state, d) }"""
    weights = {"w": draws(1, 3, 3, 3, 3, scale=0.2), "v": draws(2, 4, 3), "tenth": np.float32(0.1)}
    return graph(text, to=ints(0, 3, 1, 1), **weights)


def two_fields() -> onnx.ModelProto:
    text = """(float[5, 4, 6, 8] input, float[4, 6, 8] input_surface)
        => (float[5, 4, 6, 8] output, float[4, 6, 8] output_surface) {
        h = MatMul(input, w) r = Tanh(h) d = Mul(r, tenth) output = Add(input, d)
        k = MatMul(input_surface, w) q = Tanh(k) e = Mul(q, tenth) output_surface = Add(input_surface, e) }"""
    return graph(text, w=draws(1, 8, 8), tenth=np.float32(0.1))


def encoder_decoder() -> onnx.ModelProto:
    text = """(float[b, 10, 14] input_seq, float[b, 10, 1] target_seq) => (float[b, 10, 1] decoder_output) {
        h = MatMul(input_seq, w) r = Relu(h) y = MatMul(r, v) decoder_output = Add(y, target_seq) }"""
    return graph(text, w=draws(1, 14, 8), v=draws(2, 8, 1))


def with_covariates() -> onnx.ModelProto:
    text = """(float[batch, 24, 1] target, float[batch, 24, 3] past_covariates, float[batch, 8, 2] future_covariates)
        => (float[batch, 8, 1] forecast) {
        t = Transpose<perm = [0, 2, 1]>(target) y = MatMul(t, w) z = Transpose<perm = [0, 2, 1]>(y)
        m = ReduceMean<axes = [1], keepdims = 1>(past_covariates) a = MatMul(m, u) c = MatMul(future_covariates, v)
        s = Add(z, a) forecast = Add(s, c) }"""
    return graph(text, w=recent(24, 8), u=draws(1, 3, 1, scale=0.1), v=draws(2, 2, 1, scale=0.1))


def one_of_features(horizon: int, name: str) -> onnx.ModelProto:
    text = f"""(float[batch, 60, 5] input) => (float[batch, {horizon}] {name}) {{
        h = Gather<axis = 2>(input, three) {name} = MatMul(h, w) }}"""
    return graph(text, three=np.asarray(3, np.int64), w=recent(60, horizon))


def channels_first() -> onnx.ModelProto:
    text = """(float[b, 7, 24] x) => (float[b, 1, 24] forecast) {
        forecast = Conv<pads = [1, 1]>(x, w) }"""
    return graph(text, w=draws(1, 1, 7, 3, scale=0.2))


def single_channel() -> onnx.ModelProto:
    text = """(float[b, 1, 24] x) => (float[b, 1] forecast) {
        flat = Reshape(x, to) forecast = MatMul(flat, w) }"""
    return graph(text, to=ints(0, 24), w=recent(24, 1))


def horizon_as_long_as_its_window() -> onnx.ModelProto:
    text = """(float[b, 24, 3] x) => (float[b, 24] predictions) {
        h = Gather<axis = 2>(x, one) predictions = MatMul(h, w) }"""
    return graph(text, one=np.asarray(1, np.int64), w=recent(24, 24))


def half_precision() -> onnx.ModelProto:
    text = """(float16[batch, 8] state) => (float16[batch, 8] next_state) {
        f = Cast<to = 1>(state) h = MatMul(f, w) r = Tanh(h) d = Mul(r, tenth) s = Add(f, d)
        next_state = Cast<to = 10>(s) }"""
    return graph(text, w=draws(1, 8, 8), tenth=np.float32(0.1))


def embedded_calendar() -> onnx.ModelProto:
    text = """(float[batch, 48] load, int64[batch, 1] hour) => (float[batch, 12] load_forecast) {
        e = Gather(table, hour) s = Squeeze(e, one) y = MatMul(load, w) load_forecast = Add(y, s) }"""
    return graph(text, w=recent(48, 12), table=draws(1, 24, 12, scale=0.02), one=ints(1))


def longer_than_its_window() -> onnx.ModelProto:
    text = (
        "(float[N, 24, 2] history) => (float[N, 48, 2] forecast) { t = Transpose<perm = [0, 2, 1]>(history)"
    )
    text += " y = MatMul(t, w) forecast = Transpose<perm = [0, 2, 1]>(y) }"
    return graph(text, w=recent(24, 48))


def _one(output: str, target: str, mode: str = "replace") -> frozenset[Fed]:
    return frozenset({(output, target, mode)})


def _set(*names: str) -> frozenset[str]:
    return frozenset(names)


_STATES = frozenset({("hn", "h0", "replace"), ("cn", "c0", "replace")})
_CELL = frozenset({("state_out", "state_in", "replace"), ("x_next", "x", "replace")})
_CACHES = frozenset({("conv_cache_out", "conv_cache", "replace"), ("tra_cache_out", "tra_cache", "replace")})
_ATTENTION = frozenset(
    {
        ("present_key", "past_key", "grow"),
        ("present_value", "past_value", "grow"),
        ("next_token", "token", "replace"),
    }
)
_DARTS_CELL = frozenset({("state_out_0", "state_in_0", "replace"), ("prediction", "past_target", "replace")})
_TWO = frozenset({("output", "input", "replace"), ("output_surface", "input_surface", "replace")})
_MASK = _one("tf_op_layer_stack_2", "input_3")
_BLOCK = _one("tf_op_layer_stack_5", "input_5")

STRANGERS: tuple[Stranger, ...] = (
    Stranger("keras-univariate", univariate, _one("dense_1", "input_1", "shift"), time_axis=1),
    Stranger("keras-classifier", classifier, asked=_set("dense_1"), static=_set("input_1"), steps=1),
    Stranger(
        "keras-remaining-life", remaining_life, asked=_set("output_0"), static=_set("input_layer"), steps=1
    ),
    Stranger("next-row", next_row, _one("forecast", "history", "shift")),
    Stranger("block-of-rows", block_of_rows, _one("prediction", "x", "shift"), steps=4, time_axis=1),
    Stranger(
        "batch-of-32", lambda: block_of_rows("32"), _one("prediction", "x", "shift"), steps=4, time_axis=1
    ),
    Stranger("per-position", per_position, static=_set("input"), steps=1),
    Stranger("named-autoencoder", named_autoencoder, static=_set("window"), steps=1),
    Stranger("plain-autoencoder", plain_autoencoder, asked=_set("output"), static=_set("input"), steps=1),
    Stranger(
        "windowed-autoencoder", windowed_autoencoder, asked=_set("dense_4"), static=_set("input_1"), steps=1
    ),
    Stranger("named-dynamics", dynamics, _one("next_state", "state")),
    Stranger("plain-dynamics", lambda: dynamics("input", "output"), _one("output", "input")),
    Stranger("exploding", exploding, asked=_set("x_next"), static=_set("x"), steps=1),
    Stranger("half-precision", half_precision, _one("next_state", "state")),
    Stranger("fields", fields, _one("output", "input")),
    Stranger("two-fields", two_fields, _TWO, batch=None),
    Stranger("weather", weather, _one("next_state", "state"), forcing=_set("time"), static=_set("static")),
    Stranger("history-of-states", history_of_states, _one("output", "state", "shift"), steps=4),
    Stranger("stacked-states", stacked_states, asked=_set("output"), static=_set("input"), steps=1),
    Stranger("segmentation", segmentation, static=_set("input_1"), steps=1),
    Stranger("mask-of-channels", mask_of_channels, static=_set("input_1"), steps=1),
    Stranger("torch-lstm", torch_lstm, _STATES, asked=_set("y"), forcing=_set("x"), batch=1),
    Stranger("cell-with-next", cell_with_next, _CELL),
    Stranger("mask-with-state", mask_with_unnamed_state, _MASK, forcing=_set("input_2")),
    Stranger("block-with-state", block_with_unnamed_state, _BLOCK, _set("conv1d_3"), _set("input_4")),
    Stranger("speech", speech, _one("stateN", "state"), forcing=_set("input"), static=_set("sr"), batch=None),
    Stranger("caches", caches, _CACHES, forcing=_set("mix"), batch=None),
    Stranger(
        *("darts-block", darts_block, _one("prediction", "past_target", "shift")),
        forcing=_set("future_covariates"),
        time_axis=1,
    ),
    Stranger(
        *("darts-quantiles", lambda: darts_block(["q10", "q50", "q90"])),
        static=_set("past_target", "future_covariates"),
        steps=1,
    ),
    Stranger("darts-cell", darts_cell, _DARTS_CELL, batch=None),
    Stranger("attention-cache", attention_cache, _ATTENTION),
    Stranger("baked-batch", baked_batch_of_one, _one("forecast", "series", "shift"), batch=None, time_axis=1),
    Stranger("time-first", time_first, asked=_set("output"), static=_set("input"), batch=None, steps=1),
    Stranger("tabular", tabular, asked=_set("output"), static=_set("input"), steps=1),
    Stranger("regressor", regressor, asked=_set("variable"), static=_set("X"), steps=1),
    Stranger("patches", patches, _one("forecast", "context", "shift"), steps=4, time_axis=1),
    Stranger("quantiles", quantiles, asked=_set("quantile_forecast"), static=_set("context"), steps=1),
    Stranger(
        *("encoder-decoder", encoder_decoder),
        asked=_set("decoder_output"),
        static=_set("input_seq", "target_seq"),
        steps=1,
    ),
    Stranger(
        *("covariates", with_covariates, _one("forecast", "target", "shift")),
        forcing=_set("past_covariates", "future_covariates"),
        time_axis=1,
    ),
    Stranger(
        *("calendar", embedded_calendar, _one("load_forecast", "load", "shift")),
        forcing=_set("hour"),
        time_axis=1,
    ),
    Stranger(
        *("one-feature", lambda: one_of_features(1, "close_hat")),
        asked=_set("close_hat"),
        static=_set("input"),
        steps=1,
    ),
    Stranger(
        *("horizon-of-one-feature", lambda: one_of_features(12, "close")),
        asked=_set("close"),
        static=_set("input"),
        steps=1,
    ),
    Stranger("channels-first", channels_first, asked=_set("forecast"), static=_set("x"), steps=1),
    Stranger("single-channel", single_channel, _one("forecast", "x", "shift"), time_axis=1),
    Stranger(
        *("horizon-as-long-as-its-window", horizon_as_long_as_its_window),
        asked=_set("predictions"),
        static=_set("x"),
        steps=1,
    ),
    Stranger("longer-than-window", longer_than_its_window, _one("forecast", "history"), time_axis=1),
)
