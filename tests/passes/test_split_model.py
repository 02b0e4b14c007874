"""A model in two halves is the model, and what its head gives for the first step is computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.rollouts import forecaster, model, opened, scored, spec_of, values
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout import calls
from tqs_onnx.rollout import engine as run
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.injection import GroupSession, exposable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import Session, Value, open_session
from tqs_onnx.rollout.split_session import SplitSession
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_passes.graph.split_model import Halves, split, value_types
from tqs_passes.weights import Weight


def _weights(source: Source, *names: str) -> tuple[Weight, ...]:
    return tuple(w for w in source.survey.weights if w.name in names)


def _halves(proto: onnx.ModelProto, moved: str) -> Halves | None:
    """Split where one initializer, made an input, first matters."""
    tensor = next(t for t in proto.graph.initializer if t.name == moved)
    proto.graph.input.append(onnx.helper.make_tensor_value_info(moved, tensor.data_type, tensor.dims))
    proto.graph.initializer.remove(tensor)
    return split(proto, {moved}, value_types(proto))


def _session(
    source: Source, *names: str, steps: int = 3, n: int = 2, batch: int | None = None
) -> GroupSession:
    return GroupSession(
        exposable(source.lifted, source.survey.weights),
        _weights(source, *names),
        spec_of(steps),
        Contexts({"x": values(n, 16)}, {}),
        RunOptions("cpu", batch, 1),
        prefix=True,
    )


@pytest.fixture
def head_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Say where every call of a session was made that computes a cut and nothing else."""
    made: list[str] = []
    plain = Session.run

    def counted(
        self: Session, inputs: dict[str, Value], outputs: list[str] | None = None, *, where: str = ""
    ) -> dict[str, Value]:
        if outputs is not None and "y" not in outputs:
            made.append(where)
        return plain(self, inputs, outputs, where=where)

    monkeypatch.setattr(Session, "run", counted)
    return made


def test_the_head_holds_what_the_moved_weight_does_not_reach() -> None:
    halves = _halves(forecaster(), "W2")
    assert halves is not None
    assert [n.op_type for n in halves.head.graph.node] == ["MatMul", "Add", "Tanh", "Mul"]
    assert [n.op_type for n in halves.tail.graph.node] == ["MatMul", "Add", "Add"]
    assert halves.cut == ("h", "k")
    assert [t.name for t in halves.tail.graph.initializer] == ["b2"]


def test_values_of_constants_alone_are_computed_on_both_sides() -> None:
    graph = """(float[b, 4] x) => (float[b, 4] y) {
      e = Exp(S)  p = Mul(x, e)  q = MatMul(p, W)  y = Mul(q, e) }"""
    halves = _halves(model(graph, {"S": values(4), "W": values(4, 4)}), "W")
    assert halves is not None
    assert halves.cut == ("p",)
    assert [n.op_type for n in halves.tail.graph.node] == ["Exp", "MatMul", "Mul"]


def test_a_body_that_captures_the_moved_weight_lies_behind_the_cut() -> None:
    graph = """(float[b, 4] x) => (float[b, 4] y) {
      t = Tanh(x)  s = ReduceSum <keepdims = 0> (t)  c = Greater(s, zero)
      y = If (c) <then_branch = g1 () => (float[b, 4] u) { u = MatMul(t, W) },
                  else_branch = g2 () => (float[b, 4] v) { v = Identity(t) }> }"""
    halves = _halves(model(graph, {"W": values(4, 4), "zero": np.zeros((), np.float32)}), "W")
    assert halves is not None
    assert set(halves.cut) == {"t", "c"}


def test_nothing_is_split_where_nothing_lies_before() -> None:
    graph = "(float[b, 4] x) => (float[b, 4] y) { p = Mul(x, W)  y = Tanh(p) }"
    assert _halves(model(graph, {"W": values(4)}), "W") is None


def test_the_halves_give_what_the_model_gives(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    whole = open_session(source.path)
    halves = _session(source, "W2", "b2")
    assert isinstance(halves.session, SplitSession)
    x = values(2, 16)
    expected = run.Engine(whole, spec_of(3), Contexts({"x": x}, {})).run()
    # two graphs of the same float32 sums
    np.testing.assert_allclose(halves.run({}).outputs["y"], expected.outputs["y"], rtol=1e-5, atol=1e-6)


def test_the_first_step_runs_the_head_once_for_all_rollouts(tmp_path: Path, head_calls: list[str]) -> None:
    source = opened(tmp_path, forecaster())
    session = _session(source, "W2", "b2")
    (bias,) = _weights(source, "b2")
    for factor in (1.0, 1.1, 1.2):
        session.run({"b2": np.float32(factor) * session.values(bias)})
    assert sum(where.startswith("step 1,") for where in head_calls) == 1
    assert sum(where.startswith("step 2,") for where in head_calls) == 3


def test_what_was_kept_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(tmp_path, forecaster())
    kept = _session(source, "W2", n=3, batch=2)
    first = kept.run({}).outputs["y"]
    again = kept.run({}).outputs["y"]
    monkeypatch.setattr(calls, "_MOST_HEAD_BYTES", 0)
    computed = _session(source, "W2", n=3, batch=2).run({}).outputs["y"]
    assert np.array_equal(first, again)
    assert np.array_equal(first, computed)


def test_nothing_is_kept_beyond_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head_calls: list[str]
) -> None:
    monkeypatch.setattr(calls, "_MOST_HEAD_BYTES", 0)
    session = _session(opened(tmp_path, forecaster()), "W2", steps=1)
    session.run({})
    session.run({})
    assert len(head_calls) == 2


def test_other_contexts_have_a_first_step_of_their_own(tmp_path: Path) -> None:
    session = _session(opened(tmp_path, forecaster()), "W2")
    here = session.run({}).outputs["y"]
    held = session.hold()
    there = session.squares_from(Contexts({"x": values(2, 16, seed=9)}, {}), held).outputs["y"]
    assert (there[:, 0] > 0.0).all()
    assert np.array_equal(session.run({}).outputs["y"], here)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_prefix_gives_the_scores_of_whole_sessions(tmp_path: Path, steps: int) -> None:
    source = opened(tmp_path, forecaster())
    contexts = values(3, 16)
    plain = scored(source, spec_of(steps), contexts, strategy=Strategy("expose", 3))
    split_up = scored(source, spec_of(steps), contexts, strategy=Strategy("expose", 3, prefix=True))
    # cut elsewhere, the same sums may be fused otherwise: float32 rounding, amplified over the steps
    for a, b in zip(plain.weights, split_up.weights, strict=True):
        assert a.gamma_task == pytest.approx(b.gamma_task, abs=1e-4)


def test_a_prefix_gives_the_same_bits_again(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    how = Strategy("expose", 3, prefix=True)
    once, twice = (scored(source, spec_of(2), values(3, 16), strategy=how) for _ in range(2))
    assert once == twice
