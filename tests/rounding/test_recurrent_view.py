"""Every reader kind against an independent dense solution of the same least-squares problem.

What a reader computes is found by the runtime: the weight is moved by one unit at a time, which gives the matrix A of
the linear map from weight to result. GPTQ must see Σ AᵀA, and its codes must be those of a plain solution of the same
problem, column by column.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.models import draws, info, model_of, tensor
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import open_session
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.assign import RoundingOptions, round_plan
from tqs_onnx.rounding.calibrate import Calibration
from tqs_onnx.rounding.uses import uses_of
from tqs_passes.encode.weight import Form
from tqs_passes.files.model import Model
from tqs_passes.grids.grid import Grid
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.survey.survey import find_weights
from tqs_passes.tier import Tier
from tqs_passes.transforms.split_gates import SplitGates

node = helper.make_node
SPEC = """version = 1
[rollout]
steps = 1
batch_axis = 0
[[static]]
input = "x"
[trajectory]
outputs = ["y"]
"""
TIME, BATCH, IN, UNITS = 5, 3, 4, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(
    op: str, direction: str, *, reset_after: int = 0, initial: bool = False, states: bool = True
) -> Model:
    """x [batch, time, in] → op → y; W, R and B stored, the output Y named only if `states`."""
    n_dir, gates = 1 + (direction == "bidirectional"), GATES[op]
    attributes = {"hidden_size": UNITS, "direction": direction}
    if op == "GRU":
        attributes["linear_before_reset"] = reset_after
    inputs = ["t", "W", "R", "B", "", "h0" if initial else ""]
    outputs = ["all", ""] if states else ["", "last"]
    last = "all" if states else "last"
    order = [2, 0, 1, 3] if states else [1, 0, 2]
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node(op, inputs, outputs, **attributes),
        node("Transpose", [last], ["y"], perm=order),
    ]
    stored = [
        tensor("W", draws(1, n_dir, gates * UNITS, IN)),
        tensor("R", draws(2, n_dir, gates * UNITS, UNITS)),
        tensor("B", 0.5 * draws(3, n_dir, 2 * gates * UNITS)),
    ]
    if initial:
        stored.append(tensor("h0", draws(4, n_dir, BATCH, UNITS)))
    return model_of(nodes, [info("x", ["b", TIME, IN])], [info("y", None)], stored)


def calibration(model: Model, x: np.ndarray) -> Calibration:
    lifted, survey = find_weights(model)
    run = RunOptions("cpu", threads=1, batch=len(x))
    return Calibration(Testbed(lifted, survey, parse_spec(SPEC), Contexts({"x": x}, {}), run))


# ---- recurrent operators, unrolled by hand


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def cell(
    op: str, x: np.ndarray, h: np.ndarray, c: np.ndarray, w: tuple[np.ndarray, ...], reset_after: int
) -> tuple:
    """One step in float64: (h, c, what R is multiplied with, by gate [gates, batch, units]). ONNX's equations."""
    W, R, B = w
    n, gates = UNITS, GATES[op]
    wb, rb = B[: gates * n], B[gates * n :]
    a, b = x @ W.T + wb, h @ R.T + rb
    if op == "RNN":
        return np.tanh(a + b), c, np.stack([h])
    if op == "LSTM":
        i, o, f, g = np.split(a + b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c, np.stack([h] * 4)
    z, r = sigmoid(a + b)[:, :n], sigmoid(a + b)[:, n : 2 * n]
    if reset_after:
        g, seen = np.tanh(a[:, 2 * n :] + r * b[:, 2 * n :]), h
    else:
        seen = r * h
        g = np.tanh(a[:, 2 * n :] + seen @ R[2 * n :].T + rb[2 * n :])
    return (1 - z) * g + z * h, c, np.stack([h, h, seen])


def unrolled(op: str, model: Model, x: np.ndarray, direction: str, reset_after: int) -> np.ndarray:
    """Σ over time and batch of the outer products of what R is multiplied with: [directions, gates, units, units]."""
    stored = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.proto.graph.initializer}
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    sums = []
    for d, back in enumerate(backward):
        h = stored["h0"][d] if "h0" in stored else np.zeros((len(x), UNITS))
        c, H = np.zeros((len(x), UNITS)), np.zeros((GATES[op], UNITS, UNITS))
        weights = (stored["W"][d], stored["R"][d], stored["B"][d])
        for t in range(TIME)[::-1] if back else range(TIME):
            h, c, seen = cell(op, x[:, t].astype(np.float64), h, c, weights, reset_after)
            H += np.einsum("gbi,gbj->gij", seen, seen)
        sums.append(H)
    return np.stack(sums)


CASES = [
    (op, direction, reset_after, initial, states)
    for op, resets in (("LSTM", (0,)), ("GRU", (0, 1)), ("RNN", (0,)))
    for reset_after in resets
    for direction, initial, states in (
        ("forward", False, True),
        ("forward", False, False),
        ("reverse", True, True),
        ("bidirectional", True, False),
    )
]


@pytest.mark.parametrize(("op", "direction", "reset_after", "initial", "states"), CASES)
def test_the_states_that_r_reads_are_those_of_the_cell_unrolled_by_hand(
    op: str, direction: str, reset_after: int, initial: bool, states: bool
) -> None:
    model = recurrent(op, direction, reset_after=reset_after, initial=initial, states=states)
    x = draws(7, BATCH, TIME, IN)
    found = calibration(model, x)
    expected = unrolled(op, model, x, direction, reset_after)
    H = found.statistics("R", {}).H
    wanted = (
        expected.reshape(-1, UNITS, UNITS)
        if len(H) == expected.shape[0] * expected.shape[1]
        else expected[:, 0]
    )
    # Sums of 15 products of states below 1, which the runtime computes in float32.
    np.testing.assert_allclose(H, wanted, rtol=1e-4, atol=1e-4)
    flat = x.reshape(-1, IN).astype(np.float64)
    for H_w in found.statistics("W", {}).H:
        np.testing.assert_allclose(H_w, flat.T @ flat, rtol=1e-6)


def test_only_a_gru_that_resets_first_needs_a_gate_of_its_own() -> None:
    graph = recurrent("GRU", "forward").proto.graph
    shapes = {"W": (1, 9, 4), "R": (1, 9, 3)}
    before = uses_of(graph, shapes, dict.fromkeys(shapes, 1))["R"].uses[0].view
    graph = recurrent("GRU", "forward", reset_after=1).proto.graph
    after = uses_of(graph, shapes, dict.fromkeys(shapes, 1))["R"].uses[0].view
    assert before.matrices(np.zeros(shapes["R"])).shape == (3, 3, 3)
    assert after.matrices(np.zeros(shapes["R"])).shape == (1, 9, 3)


# ---- other readers: the linear map is found by moving one value of the weight at a time


def product(
    reader: onnx.NodeProto, w_shape: tuple[int, ...], x_shape: tuple[int, ...]
) -> tuple[Model, np.ndarray]:
    model = model_of(
        [reader], [info("x", ["b", *x_shape[1:]])], [info("y", None)], [tensor("w", draws(1, *w_shape))]
    )
    return model, draws(2, *x_shape)


READERS = {
    "Einsum": (node("Einsum", ["x", "w"], ["y"], equation="bti,ij->btj"), (4, 3), (2, 5, 4)),
    "Einsum, weight first": (node("Einsum", ["w", "x"], ["y"], equation="ji,bti->bjt"), (3, 4), (2, 5, 4)),
    "Einsum, batched": (node("Einsum", ["x", "w"], ["y"], equation="bhi,hij->bhj"), (2, 4, 3), (3, 2, 4)),
    "Einsum, summed": (node("Einsum", ["x", "w"], ["y"], equation="bti,ij->bj"), (4, 3), (2, 5, 4)),
    "Einsum, two sums": (node("Einsum", ["x", "w"], ["y"], equation="bij,ijk->bk"), (2, 3, 4), (5, 2, 3)),
    "ConvTranspose": (node("ConvTranspose", ["x", "w"], ["y"]), (3, 2, 3), (2, 3, 5)),
    "ConvTranspose, strides": (
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2], pads=[1, 0], output_padding=[1]),
        (3, 2, 4),
        (2, 3, 5),
    ),
    "ConvTranspose, groups": (
        node("ConvTranspose", ["x", "w"], ["y"], group=2, dilations=[2]),
        (4, 3, 3),
        (2, 4, 5),
    ),
    "ConvTranspose, two axes": (
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 1], pads=[1, 0, 0, 2]),
        (2, 3, 3, 3),
        (2, 2, 4, 5),
    ),
    "ConvTranspose, cropped": (node("ConvTranspose", ["x", "w"], ["y"], pads=[3, 3]), (2, 2, 2), (2, 2, 6)),
    "Conv, groups": (node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1]), (4, 2, 3), (2, 4, 6)),
    "MatMul, weight on the left": (node("MatMul", ["w", "x"], ["y"]), (3, 4), (2, 4, 5)),
    "MatMul, batched": (node("MatMul", ["x", "w"], ["y"]), (2, 4, 3), (3, 2, 5, 4)),
}


def split_by_gate(model: Model) -> Model:
    return SplitGates({t.name: t.name for t in model.proto.graph.initializer}).apply(model).model


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_gate_split_off_sees_what_the_whole_weight_sees(op: str) -> None:
    model, x = recurrent(op, "bidirectional", reset_after=1), draws(7, BATCH, TIME, IN)
    whole, parts = calibration(model, x), calibration(split_by_gate(model), x)
    for part in parts.uses:
        weight, _, gate = part.partition(".")
        if weight in ("W", "R"):
            assert gate
            # The runtime may add the products of joined weights in another order.
            np.testing.assert_allclose(
                parts.statistics(part, {}).H, whole.statistics(weight, {}).H, rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize(("axis", "why"), [(1, ""), (0, "no rule for parts joined along axis 0 for MatMul")])
def test_parts_count_only_if_they_are_joined_along_the_outputs(axis: int, why: str) -> None:
    shape = (4, 2) if axis else (2, 3)
    nodes = [node("Concat", ["a", "b"], ["w"], axis=axis), node("MatMul", ["x", "w"], ["y"])]
    stored = [tensor("a", draws(1, *shape)), tensor("b", draws(2, *shape))]
    graph = model_of(nodes, [info("x", ["b", 4])], [info("y", None)], stored).proto.graph
    found = uses_of(graph, {"a": shape, "b": shape}, {"a": 1, "b": 1})
    assert [found[name].why_not for name in "ab"] == [why, why]
    assert [use.activation for use in found["b"].uses] == ([] if why else ["x"])


def linear_map(model: Model, x: np.ndarray) -> np.ndarray:
    """A [results, values of w]: column k is what the reader computes with the unit weight e_k."""
    shape = tuple(next(t for t in model.proto.graph.initializer if t.name == "w").dims)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.initializer[:]
    proto.graph.input.append(info("w", shape, TensorProto.FLOAT))
    session = open_session(proto.SerializeToString())
    units = np.eye(int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
    columns = [
        session.run({"x": session.value(x), "w": session.value(u)})["y"].numpy().reshape(-1) for u in units
    ]
    return np.stack(columns, axis=1).astype(np.float64)


@pytest.mark.parametrize("case", READERS)
def test_what_gptq_minimises_is_the_error_of_what_the_reader_computes(case: str) -> None:
    """tr(δ H δᵀ) by the view equals ‖A δ‖² by the runtime, for any change δ of the weight."""
    model, x = product(*READERS[case])
    found = calibration(model, x)
    use, A = found.uses["w"].uses[0], linear_map(model, x)
    H = found.statistics("w", {}).H
    shape = found.shapes["w"]
    for seed in range(3):
        delta = draws(seed, *shape).astype(np.float64)
        d = use.view.matrices(delta)
        by_view = float(np.einsum("goi,gij,goj->", d, H, d))
        # float32 results of the runtime: 1e-7 of sums of some dozens of products
        assert by_view == pytest.approx(float(np.sum((A @ delta.reshape(-1)) ** 2)), rel=1e-4)
        np.testing.assert_array_equal(use.view.weight(d, shape), delta)


def dense_gptq(w: np.ndarray, scales: np.ndarray, A: np.ndarray, bits: int, damp: float) -> np.ndarray:
    """Round one output's values one by one; after each, solve the least-squares problem of the rest from scratch.

    w, scales [in], A [n, in], in order of decreasing ‖column‖. min over the rest of ‖A (w - v)‖² + damping.
    """
    H = A.T @ A
    H += damp * np.mean(np.diag(H)) * np.eye(len(H))
    order = np.argsort(-np.diag(A.T @ A), kind="stable")
    v, fixed = w.copy(), []
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    levels = np.zeros_like(w)
    for j in order:
        levels[j] = np.clip(np.rint(np.float32(v[j] / scales[j])), low, high)
        fixed.append(j)
        rest = [k for k in range(len(w)) if k not in fixed]
        done = np.array(fixed)
        v[j] = levels[j] * scales[j]
        if rest:  # the best values of the rest, given all that are fixed
            gap = w[done] - v[done]
            v[rest] = w[rest] + np.linalg.solve(H[np.ix_(rest, rest)], H[np.ix_(rest, done)] @ gap)
    return levels


@pytest.mark.parametrize("case", ["LSTM W", "LSTM R", "GRU R", "LSTM W.cell", "LSTM R.forget", *READERS])
def test_gptq_finds_the_codes_of_a_dense_solution(case: str, tmp_path: Path) -> None:
    if case in READERS:
        (model, x), name = product(*READERS[case]), "w"
    else:
        model, x, name = (
            recurrent(case.split()[0], "bidirectional"),
            draws(7, BATCH, TIME, IN),
            case.split()[1],
        )
        model = split_by_gate(model) if "." in name else model
    found = calibration(model, x)
    shape = found.shapes[name]
    plan = Plan(
        source_sha256="0" * 64,
        profile="exact",
        assignments=(
            Assignment(
                weight=name, label=name, shape=shape, dtype="float32", tier=Tier.INT4, grid=Grid.SIGNED, axis=None,
                form=Form.CAST_MUL, rounding="rtn", n_bytes=0, error_energy=0.0,
            ),
        ),
        n_bytes=0,
        source_bytes=0,
    )  # fmt: skip
    codes = round_plan(plan, found, RoundingOptions("gptq")).codes[name]
    use = found.uses[name].uses[0]
    w = use.view.matrices(found.arrays[name]).astype(np.float64)
    H = found.statistics(name, {}).H
    got = use.view.matrices(codes.levels).astype(np.float64)
    scale = float(np.asarray(codes.wide_scales()).reshape(-1)[0])
    tried: dict[float, np.ndarray] = {}
    # Recurrent weights try more dampings; the least product of output error and weight error wins.
    for damp in (0.01,) if case in READERS else (0.01, 0.1, 1.0):
        wanted = np.empty_like(got)
        for g in range(len(w)):
            A = np.linalg.cholesky(H[g] + 1e-12 * np.trace(H[g]) * np.eye(len(H[g]))).T
            for o in range(w.shape[1]):
                wanted[g, o] = dense_gptq(w[g, o], np.full(w.shape[2], scale), A, 4, damp)
        residual = wanted * scale - w
        product_of_errors = float(np.einsum("goi,gij,goj->", residual, H, residual) * np.sum(residual**2))
        tried[product_of_errors] = wanted
    assert np.array_equal(got, tried[min(tried)])


# ---- bodies


def scanned(op: str) -> Model:
    """A Scan or Loop over five turns whose body multiplies the state and the turn's input with weights."""
    cell_nodes = [
        node("MatMul", ["h", "w"], ["hw"]),
        node("MatMul", ["xt", "v"], ["xv"]),
        node("Add", ["hw", "xv"], ["s"]),
        node("Tanh", ["s"], ["h2"]),
    ]
    h, xt, h2 = info("h", ["b", 3]), info("xt", ["b", 4]), info("h2", ["b", 3])
    start = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0),
        node("MatMul", ["sum", "u"], ["first"]),
    ]
    stored = [tensor("w", draws(1, 3, 3)), tensor("v", draws(2, 4, 3)), tensor("u", draws(3, 4, 3))]
    stored += [tensor("axis", np.array([1])), tensor("turns", np.array(5)), tensor("yes", np.array(True))]
    if op == "Scan":
        body = helper.make_graph(cell_nodes, "turn", [h, xt], [h2])
        turn = node("Scan", ["first", "t"], ["y"], num_scan_inputs=1, body=body)
    else:
        ends = [node("Gather", ["t", "i"], ["xt"], axis=0), *cell_nodes, node("Identity", ["go"], ["on"])]
        given = [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), h]
        body = helper.make_graph(ends, "turn", given, [info("on", [], TensorProto.BOOL), h2])
        turn = node("Loop", ["turns", "yes", "first"], ["y"], body=body)
    return model_of([*start, turn], [info("x", ["b", 5, 4])], [info("y", ["b", 3])], stored)


@pytest.mark.parametrize("op", ["Scan", "Loop"])
def test_weights_in_the_body_of_a_loop_see_the_inputs_of_all_turns(op: str) -> None:
    x = draws(5, 2, 5, 4)
    found = calibration(scanned(op), x)
    w, v, u = (found.arrays[n].astype(np.float64) for n in "wvu")
    h, sums = x.astype(np.float64).sum(axis=1) @ u, np.zeros((3, 3))
    for t in range(5):
        sums += h.T @ h
        h = np.tanh(h @ w + x[:, t] @ v)
    np.testing.assert_allclose(found.statistics("w", {}).H[0], sums, rtol=1e-5)
    flat = x.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(found.statistics("v", {}).H[0], flat.T @ flat, rtol=1e-5)
