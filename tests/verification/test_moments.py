"""Streamed evaluation: equal to that of whole trajectories, in the memory of one step."""

import tracemalloc

import numpy as np
import pytest

from tests.rollouts import REPLACE, linear, model, opened, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import open_session
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.rollout.stream import Kept, Piece
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.verification.evaluate import drift_between, truth_errors
from tqs_onnx.verification.grid import grid_of
from tqs_onnx.verification.moments import compared

N, CONTEXTS, STEPS = 6, 5, 7
#: The sums are taken in another order, in float64: a few units in the last place of the largest sum.
SAME = 1e-12


def shrinking(seed: int) -> np.ndarray:
    return (0.9 * np.eye(N) + values(N, N, seed=seed, scale=0.02)).astype(np.float32)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two models of the same inputs and their testbed, whose engines run two contexts at a time."""
    folder = tmp_path_factory.mktemp("moments")
    source, other = opened(folder / "a", linear(shrinking(1))), opened(folder / "b", linear(shrinking(2)))
    contexts = Contexts(
        {"x": values(CONTEXTS, N, seed=3)}, {"y": values(CONTEXTS, STEPS, N, seed=4).astype(np.float64)}
    )
    run = RunOptions("cpu", batch=2, threads=1)
    bed = Testbed(source.lifted, source.survey, spec_of(STEPS), contexts, run, {"y": 2.0})
    return bed, source.path, other.path


@pytest.fixture(scope="module")
def streamed(two):
    bed, a, b = two
    return compared(bed.stream_file(a)(), bed.stream_file(b)(), bed.spec, bed.contexts)


def test_streamed_errors_equal_those_of_whole_trajectories(two, streamed) -> None:
    bed, a, b = two
    nominal, ours = (bed.roll_file(p).outputs["y"].astype(np.float64) for p in (a, b))
    truth = bed.contexts.truth["y"]
    drift = drift_between(streamed, bed.sigma)
    error = truth_errors(streamed)["y"]
    delta = (ours - nominal) / 2.0
    each = (delta**2).mean(axis=(1, 2))
    expected = {
        "drift": np.sqrt((delta**2).mean()),
        "p95": np.sqrt(np.percentile(each, 95)),
        "mae_fp32": np.abs(nominal - truth).mean(),
        "mae": np.abs(ours - truth).mean(),
        "rmse": np.sqrt(((ours - truth) ** 2).mean()),
    }
    found = {"drift": drift.total, "p95": drift.p95} | {
        k: getattr(error, k) for k in ("mae_fp32", "mae", "rmse")
    }
    assert found == pytest.approx(expected, rel=SAME)
    assert drift.per_step == pytest.approx(np.sqrt((delta**2).mean(axis=(0, 2))), rel=SAME)
    assert error.mae_per_step == pytest.approx(np.abs(ours - truth).mean(axis=(0, 2)), rel=SAME)


def test_every_context_and_time_value_has_its_own_sums(two, streamed) -> None:
    bed, a, _ = two
    error = bed.roll_file(a).outputs["y"] - bed.contexts.truth["y"]
    sums = streamed.variables["y"].nominal
    assert sums.absolute == pytest.approx(np.abs(error).sum(2), rel=SAME)
    assert sums.squared == pytest.approx((error**2).sum(2), rel=SAME)
    assert sums.signed == pytest.approx(error.sum(2), abs=1e-12)


def test_series_are_told_apart_across_chunks(two) -> None:
    bed, a, b = two
    labels = ("p", "q", "p", "p", "q")
    contexts = Contexts(bed.contexts.arrays, bed.contexts.truth, labels)
    bed = bed.on(contexts)
    found = compared(bed.stream_file(a)(), bed.stream_file(b)(), bed.spec, contexts)
    delta = bed.roll_file(b).outputs["y"].astype(np.float64) - bed.roll_file(a).outputs["y"]
    for name in ("p", "q"):
        rows = [i for i, label in enumerate(labels) if label == name]
        assert found.variables[name].rows.tolist() == rows
        assert found.variables[name].between.squared == pytest.approx((delta[rows] ** 2).sum(2), rel=SAME)


def test_length_cuts_the_last_step_of_a_stream_as_of_a_rollout(two) -> None:
    bed, a, _ = two
    spec = parse_spec(REPLACE.format(steps=STEPS).replace("batch_axis = 0", "batch_axis = 0\nlength = 5"))
    engine = Engine(open_session(a, provider="cpu"), spec, bed.contexts, batch=2)
    pieces = [p for p in engine.pieces() if p.rows.start == 0]
    assert [p.time.stop for p in pieces] == [1, 2, 3, 4, 5, 5, 5]
    cut = np.concatenate([p.outputs["y"] for p in pieces], axis=1)
    assert np.array_equal(cut, engine.run().outputs["y"][:2])


def field_peak(folder, steps: int) -> int:
    """Return the most bytes of arrays that comparing two rollouts of a field of 128 x 256 values holds at once."""
    graph = "(float[b, 128, 256] x) => (float[b, 128, 256] y) { y = Mul(x, A) }"
    source = opened(folder, model(graph, {"A": np.float32([0.99])}))
    contexts = Contexts({"x": values(1, 128, 256, seed=1)}, {})
    bed = Testbed(
        source.lifted, source.survey, spec_of(steps), contexts, RunOptions("cpu", threads=1), {"y": 1.0}
    )
    tracemalloc.start()
    compared(bed.stream_file(source.path)(), bed.stream_file(source.path)(), bed.spec, contexts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_120_steps_of_a_field_take_the_memory_of_two(tmp_path) -> None:
    field = 128 * 256 * 4
    short, long = field_peak(tmp_path / "a", 2), field_peak(tmp_path / "b", 120)
    # What grows with the steps is three numbers a step, a few hundred bytes: less than one of the 118 more fields.
    assert long < short + field


def test_a_rollout_too_large_to_keep_is_made_again() -> None:
    made = []

    def run():
        made.append(1)
        for step in (1, 2):
            yield Piece(slice(0, 1), step, slice(step - 1, step), {"y": np.zeros((1, 1, 4), np.float32)}, {})

    kept, again = Kept(run), Kept(run, most_bytes=20)
    assert [len(list(stream())) for stream in (kept, kept)] == [2, 2]
    assert len(made) == 1
    assert [len(list(stream())) for stream in (again, again)] == [2, 2]
    assert len(made) == 3


def test_a_grid_is_weighted_by_latitude_and_anomalies_correlate(two) -> None:
    truth = values(3, 2, 4, 5, seed=7).astype(np.float64)
    nominal, ours = truth + values(3, 2, 4, 5, seed=8), truth + values(3, 2, 4, 5, seed=9)
    contexts = Contexts({"x": np.zeros((3, 4, 5))}, {"y": truth}, latitudes=(60.0, 30.0, 0.0, -30.0))
    pieces = [
        [
            Piece(slice(0, 3), t + 1, slice(t, t + 1), {"y": a[:, t : t + 1].astype(np.float32)}, {})
            for t in (0, 1)
        ]
        for a in (nominal, ours)
    ]
    found = compared(*pieces, spec_of(2), contexts).variables["y"].other_grid
    w = np.cos(np.deg2rad([60.0, 30.0, 0.0, -30.0]))[:, None]
    forecast, mean = ours.astype(np.float32).astype(np.float64), truth.mean(axis=(0, 1))
    f, o = forecast - mean, truth - mean
    squares = (w * (forecast - truth) ** 2).sum(axis=(2, 3)) / (w.sum() * 5)
    assert found.mse == pytest.approx(squares, rel=SAME)
    correlation = (w * f * o).sum((2, 3)) / np.sqrt((w * f * f).sum((2, 3)) * (w * o * o).sum((2, 3)))
    assert found.correlation == pytest.approx(correlation, rel=SAME)


def test_without_latitudes_there_is_no_grid() -> None:
    assert grid_of(Contexts({}, {"y": np.zeros((1, 1, 2, 2))})) is None
