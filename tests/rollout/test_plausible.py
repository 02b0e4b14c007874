"""A spec that cannot be meant is refused or noted: equal steps, units forgotten, truth or outputs of another shape."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.rollouts import Floats, bed_of, forecaster, model, opened, scored, values, write_case
from tqs_onnx.allocation.budget import Budget
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, quantize
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.plausible import FirstSteps, out_of_range, without_skill
from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.signature import signature_of
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec
from tqs_onnx.rollout.stream import array_pieces
from tqs_onnx.verification.manifest import read_manifest
from tqs_passes.errors import InputError

STEADY = """version = 1
[rollout]
steps = {steps}
batch_axis = 0
[[static]]
input = "x"
[trajectory]
outputs = ["y"]
"""


# ---- steps


def test_several_steps_without_feedback_are_refused_with_what_to_add() -> None:
    signature = signature_of(forecaster())
    with pytest.raises(InputError) as caught:
        check_spec(parse_spec(STEADY.format(steps=4)), signature)
    assert "nothing is fed back, so all 4 steps would be equal" in str(caught.value)
    assert caught.value.todo == 'Set steps = 1, or add a [[feedback]] with output = "y" and input = "x"'
    check_spec(parse_spec(STEADY.format(steps=1)), signature)


def test_steps_that_forcing_tells_apart_are_fine() -> None:
    forced = STEADY.replace("static", "forcing").format(steps=4)
    check_spec(parse_spec(forced), signature_of(forecaster()))


# ---- units: x is a z-score, y in degrees, x' = (y − 15) / 5

MEAN, SIGMA = 15.0, 5.0
A = 0.9


def degrees() -> onnx.ModelProto:
    """Return y = 15 + 5 · (0.9 x + 0.1 tanh(x)): the next value in degrees of a state given as z-score."""
    graph = """(float[b, 8] x) => (float[b, 8] y) {
      p = MatMul(x, W)  t = Tanh(x)  u = Mul(t, tenth)  q = Add(p, u)  r = Mul(q, five)  y = Add(r, mean) }"""
    numbers = {"tenth": np.array(0.1), "five": np.array(SIGMA), "mean": np.array(MEAN)}
    weights = {"W": (A * np.eye(8)).astype(np.float32) + values(8, 8, seed=3, scale=0.01)}
    return model(graph, weights | {n: v.astype(np.float32) for n, v in numbers.items()})


SCALED = f"scale = {1 / SIGMA}\noffset = {-MEAN / SIGMA}\n"


def spec(units: bool, steps: int = 4) -> RolloutSpec:
    text = STEADY.format(steps=steps).replace('[[static]]\ninput = "x"', "FEED")
    feed = '[[feedback]]\noutput = "y"\ninput = "x"\nmode = "replace"\n' + (SCALED if units else "")
    return parse_spec(text.replace("FEED", feed))


def rolled(x: Floats, w: np.ndarray, units: bool, steps: int = 4) -> np.ndarray:
    made = []
    state = x.astype(np.float64)
    for _ in range(steps):
        y = MEAN + SIGMA * (state @ w + 0.1 * np.tanh(state))
        made.append(y)
        state = (y - MEAN) / SIGMA if units else y
    return np.stack(made, 1)


def contexts() -> tuple[Contexts, np.ndarray]:
    w = numpy_helper.to_array(degrees().graph.initializer[0]).astype(np.float64)
    x = values(8, 8, seed=5)
    truth = rolled(x, w, units=True) + values(8, 4, 8, seed=6, scale=0.3)
    return Contexts({"x": x}, {"y": truth.astype(np.float32)}), w


@pytest.mark.parametrize("units", [True, False])
def test_a_forgotten_scale_is_noted_from_range_and_from_truth(units: bool) -> None:
    held, w = contexts()
    made = {"y": rolled(held.arrays["x"], w, units).astype(np.float32)}
    first = FirstSteps()
    for piece in array_pieces(made, (0, 1, 2, 3, 4)):
        first.add(piece)
    error = float(np.mean(np.abs(made["y"] - held.truth["y"])))
    ranges = out_of_range(spec(units), held, first)
    skill = without_skill(spec(units), held, {"y": error})
    assert (len(ranges), len(skill)) == ((0, 0) if units else (1, 1))
    if not units:
        low, high = held.arrays["x"].min(), held.arrays["x"].max()
        assert f"against {low:.3g} … {high:.3g}" in ranges[0]
        assert "check scale and offset of its [[feedback]]" in ranges[0]
        error = np.mean(np.abs(made["y"] - held.truth["y"]))
        held_on = np.mean(np.abs(held.truth["y"] - held.truth["y"][:, :1]))
        assert f"miss the truth by {error:.3g} on average" in skill[0]
        assert f"its first value held ({held_on:.3g})" in skill[0]


def test_it_is_logged_by_scoring_and_stored_by_verification(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held, _ = contexts()
    case = write_case(tmp_path / "in", degrees(), n=8)
    np.savez(case.evaluation, x=held.arrays["x"], **{"truth/y": held.truth["y"]})
    out = tmp_path / "run"
    arguments = case.arguments("--out", str(out), "--max-bytes", "100000", "--repair", "0")
    with caplog.at_level(logging.WARNING):
        assert main(["quantize", str(case.model), *arguments]) == 0
    assert any("leaves the range of the contexts within 3 steps" in r.getMessage() for r in caplog.records)
    notes = read_manifest(out / "manifest.json").verification.notes
    assert [("leaves the range" in n, "miss the truth" in n) for n in notes] == [(True, False), (False, True)]


# ---- shapes, before anything is scored


def refused(folder: Path, proto: onnx.ModelProto, rollout: str, **arrays: np.ndarray) -> str:
    """Return how quantize refuses evaluation contexts; fails if anything was scored before."""
    case = write_case(folder / "in", proto, n=4)
    case.rollout.write_text(rollout)
    np.savez(
        case.evaluation,
        **{n.replace("_", "/", 1) if n.startswith("truth") else n: a for n, a in arrays.items()},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tqs_onnx.jobs.stages.score", lambda *a, **k: pytest.fail("it was scored"))
        data = DataOptions(case.rollout, case.contexts, case.evaluation)
        job = Job(case.model, data, folder / "run", QuantizeOptions(Budget(compression=1.5)))
        with pytest.raises(InputError) as caught:
            quantize(job)
    return str(caught.value)


def test_truth_with_an_axis_too_many_is_refused_before_scoring(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        forecaster(32, 64),
        STEADY.format(steps=1),
        x=values(4, 32, seed=1),
        truth_y=values(4, 1, 32, 1),
    )
    assert "truth/y is [4, 1, 32, 1], the trajectory will be [4, 1, 32]" in said


def windows() -> onnx.ModelProto:
    """Return y [b, 4, 3] from x [b, 32]."""
    graph = "(float[b, 32] x) => (float[b, 4, 3] y) { p = MatMul(x, W)  y = Reshape(p, s) }"
    weights = {"W": values(32, 12, scale=0.2)}
    return model(graph, weights | {"s": np.array([-1, 4, 3], np.int64)})


def test_a_missing_time_axis_is_named(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        windows(),
        STEADY.format(steps=1),
        x=values(4, 32, seed=1),
        truth_y=values(4, 4, 3),
    )
    assert "truth/y is [4, 4, 3], the trajectory will be [4, 1, 4, 3]" in said
    assert "Set time_axis in [trajectory] to the output's axis of time, e.g. 1" in said


def flat() -> onnx.ModelProto:
    """Return a model that states y [?, 1] and gives [7 b, 1], as a converter of scikit-learn did."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Reshape", ["h", "s"], ["y"])]
    stored = [
        numpy_helper.from_array(values(7, 7, scale=0.3), "W"),
        numpy_helper.from_array(np.array([-1, 1]), "s"),
    ]
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [port("x", TensorProto.FLOAT, [None, 7])],
        [port("y", TensorProto.FLOAT, [None, 1])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_stated_shape_that_the_runtime_contradicts_is_named_as_such(tmp_path: Path) -> None:
    source = opened(tmp_path, flat())
    bed = bed_of(source, parse_spec(STEADY.format(steps=1)), Contexts({"x": values(32, 7)}, {}))
    said = r"states output 'y' float32 \[\?, 1\], but gave \[224, 1\] for a batch of 32"
    with pytest.raises(InputError, match=said):
        bed.exposed.run({})


# ---- σ stays true when the divergence is measured in the data's units


def test_raw_units_keep_the_true_sigma(tmp_path: Path) -> None:
    source = opened(tmp_path, degrees())
    raw, std = (scored(source, spec(True), values(6, 8, seed=5), units=u) for u in ("raw", "std"))
    assert raw.sigma == std.sigma
    (sigma,) = std.sigma.values()
    one, other = raw.weights[0].amplification, std.weights[0].amplification
    assert one is not None
    assert other is not None
    assert one == pytest.approx(other * sigma**2, rel=1e-6)


def test_gates_are_in_sigma_whatever_the_scores_are_in(tmp_path: Path) -> None:
    case = write_case(tmp_path / "in", forecaster(32, 64), n=4)
    drifts = []
    for units in ("raw", "std"):
        out = tmp_path / units
        pins = ["--pin", "W*=INT4", "--compression", "2", "--repair", "0", "--units", units]
        assert main(["quantize", str(case.model), *case.arguments("--out", str(out), *pins)]) == 0
        drifts.append(read_manifest(out / "manifest.json").verification)
    assert drifts[0].drift.total == pytest.approx(drifts[1].drift.total, rel=1e-9)
    assert drifts[0].predicted_drift == pytest.approx(drifts[1].predicted_drift, rel=1e-6)
