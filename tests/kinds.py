"""A model with every kind of weight in one graph, and what a test needs to emit and roll it out."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec

#: b: batch; every kind reads the state x [b, 8] and ends in columns of the output z [b, all].
GRAPH = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
g (float[b, 8] x, int64[b, 4] idx) => (float[b, 8] y, float[b, n] z) {
  xT = Transpose(x)
  xu = Unsqueeze(x, zero)
  right2 = MatMul(x, w_right2)
  right3_ = MatMul(xu, w_right3)             right3 = Transpose<perm = [1, 0, 2]>(right3_)
  left2_ = MatMul(w_left2, xT)               left2 = Transpose(left2_)
  left3_ = MatMul(w_left3, xT)               left3 = Transpose<perm = [2, 0, 1]>(left3_)
  [gemm_nn] gnn = Gemm<alpha = 0.5, beta = 0.7>(x, w_gnn, w_gc)
  [gemm_nt] gnt = Gemm<transB = 1>(x, w_gnt, w_gc)
  [gemm_tn] gtn = Gemm<transA = 1>(xT, w_gtn)
  [gemm_tt] gtt = Gemm<transA = 1, transB = 1, alpha = 2.0>(xT, w_gtt)
  [gemm_plain] gpl = Gemm(x, w_gpl, w_gc)
  [gemm_left] gle_ = Gemm(w_gle, xT)         gle = Transpose(gle_)
  x1 = Reshape(x, to1)  x2 = Reshape(x, to2)  x3 = Reshape(x, to3)
  conv1 = Conv<group = 2, pads = [1, 1]>(x1, w_conv1, w_cb)
  conv2 = Conv<pads = [1, 1, 1, 1]>(x2, w_conv2)
  conv3 = Conv<group = 2, pads = [1, 1, 1, 1, 1, 1]>(x3, w_conv3)
  turn1 = ConvTranspose<group = 2, pads = [1, 1]>(x1, w_turn1)
  turn2 = ConvTranspose<pads = [1, 1, 1, 1]>(x2, w_turn2)
  turn3 = ConvTranspose<group = 2, pads = [1, 1, 1, 1, 1, 1]>(x3, w_turn3)
  emb = Gather(w_emb, idx)
  tie = Gather(w_tied, idx)
  tiedT = Transpose(w_tied)
  tied = MatMul(x, tiedT)
  seq_ = Reshape(x, toseq)  seq = Transpose<perm = [1, 0, 2]>(seq_)
  lstm_ = LSTM<hidden_size = 5>(seq, w_lw, w_lr, w_lb)   lstm = Transpose<perm = [2, 0, 1, 3]>(lstm_)
  gru_ = GRU<hidden_size = 5>(seq, w_uw, w_ur, w_ub)     gru = Transpose<perm = [2, 0, 1, 3]>(gru_)
  rnn_ = RNN<hidden_size = 5>(seq, w_nw, w_nr, w_nb)     rnn = Transpose<perm = [2, 0, 1, 3]>(rnn_)
  ein = Einsum<equation = "bi,ij->bj">(x, w_ein)
  add = Add(x, w_add)
  mul = Mul(x, w_mul)
  t_ = Transpose(w_t)                        viat = MatMul(x, t_)
  r_ = Reshape(w_r, tor)                     viar = MatMul(x, r_)
  c_ = Concat<axis = 1>(w_c, w_c2)           viac = MatMul(x, c_)
  s_ = Slice(w_s, zero, eight, zero)         vias = MatMul(x, s_)
  e_ = Expand(w_e, toe)                      viae_ = MatMul(xu, e_)   viae = Transpose<perm = [1, 0, 2]>(viae_)
  h_ = Cast<to = 1>(w_half)                  viah = MatMul(x, h_)
  f_ = Cast<to = 1>(w_brain)                 viaf = MatMul(x, f_)
  d_ = Cast<to = 1>(w_double)                viad = MatMul(x, d_)
  x16 = Cast<to = 10>(x)                     in16 = MatMul(x16, w_in16)   via16 = Cast<to = 1>(in16)
  k = Constant<value = float[8, 3] {0.5, -0.25, 0.1, 0.3, -0.7, 0.9, 0.2, 0.4, -0.6, 0.8, 0.15, -0.35,
    0.55, -0.65, 0.45, 0.05, -0.95, 0.85, 0.12, 0.34, -0.56, 0.78, -0.9, 0.21}>()
  const = MatMul(x, k)
  func = local.dense(x)
  most = ReduceMax(idx)  flag = Greater(most, four)
  branch = If(flag)<
    then_branch = tb () => (float[b, 6] tz) { tz = MatMul(x, w_if) },
    else_branch = eb () => (float[b, 6] ez) { ez = Gemm<transB = 1>(x, w_else) }>
  loop = Loop(trips, yes, x)<
    body = lb (int64 i, bool go, float[b, 8] lin) => (bool again, float[b, 8] lout) {
      again = Identity(go)  lm = MatMul(lin, w_loop)  lout = Tanh(lm) }>
  scan = Scan<num_scan_inputs = 1, body = sb (float[m, 6] sin, float[b, 8] row) => (float[m, 6] sout) {
      sm = MatMul(row, w_scan)  st = Add(sin, sm)  sout = Tanh(st) }>(right2, xu)
  FLAT
  z = Concat<axis = 1>(COLUMNS)
  pulled = MatMul(x, w_state)  bent = Tanh(pulled)  kept = Mul(x, half)  y = Add(bent, kept)
}
<domain: "local", opset_import: ["" : 18]>
dense (a) => (o) {
  fw = Constant<value = float[8, 2] {0.5, -0.2, 0.1, 0.3, -0.7, 0.9, 0.2, 0.4, -0.6, 0.8, 0.15, -0.35, 0.5, 0.6,
    0.7, -0.8}>()
  o = MatMul(a, fw)
}"""

COLUMNS = [
    "right2", "right3", "left2", "left3", "gnn", "gnt", "gtn", "gtt", "gpl",
    "gle", "conv1", "conv2", "conv3", "turn1", "turn2", "turn3", "emb", "tie",
    "tied", "lstm", "gru", "rnn", "ein", "add", "mul", "viat", "viar", "viac",
    "vias", "viae", "viah", "viaf", "viad", "via16", "const", "func", "branch",
    "loop", "scan",
]  # fmt: skip

SHAPES: dict[str, tuple[int, ...]] = {
    "w_right2": (8, 6), "w_right3": (3, 8, 6), "w_left2": (6, 8), "w_left3": (3, 6, 8),
    "w_gnn": (8, 6), "w_gnt": (6, 8), "w_gtn": (8, 6), "w_gtt": (6, 8), "w_gpl": (8, 6), "w_gle": (6, 8), "w_gc": (6,),
    "w_conv1": (4, 2, 3), "w_cb": (4,), "w_conv2": (3, 2, 3, 3), "w_conv3": (4, 1, 3, 3, 3),
    "w_turn1": (4, 2, 3), "w_turn2": (2, 3, 3, 3), "w_turn3": (2, 3, 3, 3, 3),
    "w_emb": (10, 5), "w_tied": (10, 8), "w_lw": (1, 20, 4), "w_lr": (1, 20, 5), "w_lb": (1, 40),
    "w_uw": (1, 15, 4), "w_ur": (1, 15, 5), "w_ub": (1, 30), "w_nw": (1, 5, 4), "w_nr": (1, 5, 5), "w_nb": (1, 10),
    "w_ein": (8, 7), "w_add": (3, 1, 8), "w_mul": (3, 1, 8),
    "w_t": (6, 8), "w_r": (4, 12), "w_c": (8, 3), "w_c2": (8, 3), "w_s": (11, 5), "w_e": (1, 8, 5),
    "w_half": (8, 5), "w_brain": (8, 5), "w_double": (8, 5), "w_in16": (8, 5),
    "w_if": (8, 6), "w_else": (6, 8), "w_loop": (8, 8), "w_scan": (8, 6), "w_state": (8, 8),
}  # fmt: skip
_DTYPES = {
    "w_half": np.float16,
    "w_in16": np.float16,
    "w_brain": ml_dtypes.bfloat16,
    "w_double": np.float64,
}
_INTS = {
    "zero": [0], "one": [1], "eight": [8], "to1": [-1, 4, 2], "to2": [-1, 2, 2, 2], "to3": [-1, 2, 2, 2, 1],
    "toseq": [-1, 2, 4], "tor": [8, 6], "toe": [3, 8, 5], "flat": [0, -1],
}  # fmt: skip
#: Tensors of bodies, moved into them: If, Loop and Scan hold weights of their own.
_INNER = {"w_if": "tb", "w_else": "eb", "w_loop": "lb", "w_scan": "sb"}

SPEC = """version = 1
[rollout]
steps = 3
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[[static]]
input = "idx"
[trajectory]
outputs = ["y", "z"]
"""


def every_kind() -> onnx.ModelProto:
    """Return the model, checked: `SHAPES` weights and two more in Constant nodes."""
    flat = "  ".join(f"{_named(n)} = Reshape({_swapped(n)}, flat)" for n in COLUMNS)
    swaps = "  add_ = Transpose<perm = [1, 0, 2]>(add)  mul_ = Transpose<perm = [1, 0, 2]>(mul)  "
    text = GRAPH.replace("FLAT", swaps + flat).replace("COLUMNS", ", ".join(_named(n) for n in COLUMNS))
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    graphs = {"": proto.graph}
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                graphs[attribute.g.name] = attribute.g
    for name, shape in SHAPES.items():
        w = (0.4 * rng.standard_normal(shape)).astype(_DTYPES.get(name, np.float32))
        graphs[_INNER.get(name, "")].initializer.append(numpy_helper.from_array(w, name))
    for name, ints in _INTS.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(ints, np.int64), name))
    proto.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT, (), [0.5]))
    for name, number in (("trips", 2), ("four", 4)):
        proto.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, (), [number]))
    proto.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, (), [True]))
    onnx.checker.check_model(proto)
    return proto


def _named(column: str) -> str:
    return f"{column}_flat"


def _swapped(column: str) -> str:
    return f"{column}_" if column in ("add", "mul") else column


def spec() -> RolloutSpec:
    """Return the rollout of `every_kind`: y becomes x; y and z are the trajectory."""
    return parse_spec(SPEC)


def contexts(n: int = 2, seed: int = 1) -> Contexts:
    """Return n initial states, and indices: fed, so that no rounding error can flip one."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 8)).astype(np.float32)
    return Contexts({"x": x, "idx": rng.integers(0, 10, (n, 4))}, {})


def write(folder: Path) -> Path:
    """Write the model into a folder and return its path."""
    path = folder / "every.onnx"
    onnx.save(every_kind(), path)
    return path
