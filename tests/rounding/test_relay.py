"""The relay shows what the whole model shows, and runs a part again only if something before its end has changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rollouts import bed_of, model, opened, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.session import Session, Value
from tqs_onnx.rollout.testbed import Leg, Testbed
from tqs_onnx.rounding import calibrate, relay
from tqs_onnx.rounding.calibrate import Calibration
from tqs_onnx.rounding.relay import Relay

ORDER = ("A", "B", "C", "D")
READ_BY = {"A": "x", "B": "h", "C": "i", "D": "k"}
CUTS = (2, 4, 6)


@pytest.fixture
def bed(tmp_path: Path) -> Testbed:
    """A chain of four products with a residual branch; the last weight follows every tensor that is asked for."""
    graph = """(float[b, 5] x) => (float[b, 5] y) {
      p = MatMul(x, A)  h = Tanh(p)
      q = MatMul(h, B)  i = Add(q, x)
      r = MatMul(i, C)  k = Tanh(r)
      s = MatMul(k, D)  y = Add(s, i) }"""
    weights = {name: values(5, 5, seed=n, scale=0.4) for n, name in enumerate(ORDER)}
    source = opened(tmp_path, model(graph, weights))
    return bed_of(source, spec_of(2), Contexts({"x": values(4, 5, seed=9)}, {}), {"y": 1.0})


def expected(bed: Testbed, arrays: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The inputs of all products, in float64 from the formulas."""
    w = {n: a.astype(np.float64) for n, a in arrays.items()}
    x = bed.contexts.arrays["x"].astype(np.float64)
    h = np.tanh(x @ w["A"])
    i = h @ w["B"] + x
    return {"x": x, "h": h, "i": i, "k": np.tanh(i @ w["C"])}


class Run:
    """A relay over the first step of a testbed, and the parts that ran."""

    def __init__(self, bed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bed = bed
        tensors = tuple(READ_BY.values())
        self.seeing = bed.capturing(tensors)
        legs: tuple[Leg, ...] = bed.legs(tensors, CUTS)
        self.relay = Relay(legs, self.seeing.nominal)
        self.inputs = next(iter(self.seeing.engine.walk(self.seeing.nominal)))[0]
        self.weights = dict(self.seeing.nominal)
        self.arrays = {n: v.numpy() for n, v in self.weights.items()}
        self.ran: list[int] = []
        plain = Session.run

        def counted(
            session: Session, inputs: dict[str, Value], outputs: list[str] | None = None, *, where: str = ""
        ) -> dict[str, Value]:
            self.ran += [i for i, leg in enumerate(legs) if leg.session is session]
            return plain(session, inputs, outputs, where=where)

        monkeypatch.setattr(Session, "run", counted)

    def change(self, name: str) -> None:
        self.arrays[name] = np.round(self.arrays[name], 1)
        self.weights[name] = self.seeing.session.value(self.arrays[name])

    def check(self, weight: str) -> None:
        tensor = READ_BY[weight]
        found = self.relay.seen(0, self.inputs, self.weights, weight, (tensor,))
        assert list(found) == [tensor]
        # float32 products of five values of size one
        np.testing.assert_allclose(
            found[tensor].numpy(), expected(self.bed, self.arrays)[tensor], rtol=0, atol=1e-6
        )


def test_weights_in_graph_order_cost_one_run(bed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bed, monkeypatch)
    for weight in ORDER:
        run.check(weight)
        run.change(weight)
    assert run.ran == [0, 1, 2]


def test_a_weight_that_changes_behind_the_mark_starts_again(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(bed, monkeypatch)
    run.check("D")
    run.change("B")
    run.check("D")
    assert run.ran == [0, 1, 2, 0, 1, 2]
    run.check("B")  # an earlier weight: the mark stands behind it
    assert run.ran[6:] == [0]


def test_a_tensor_ahead_is_shown_without_moving_the_mark(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(bed, monkeypatch)
    found = run.relay.seen(0, run.inputs, run.weights, "A", ("k", "x", "B"))
    np.testing.assert_allclose(found["k"].numpy(), expected(bed, run.arrays)["k"], rtol=0, atol=1e-6)
    assert found["B"] is run.weights["B"]
    run.change("A")
    run.check("B")
    assert run.ran == [0, 1, 2, 0]


@pytest.mark.parametrize("forgets", [False, True])
def test_what_does_not_fit_or_is_forgotten_is_computed_again(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    run = Run(bed, monkeypatch)
    if not forgets:
        monkeypatch.setattr(relay, "KEPT_BYTES", 0)
    run.check("C")
    if forgets:
        run.relay.forget()
    run.check("C")
    assert run.ran == [0, 1, 0, 1]


@pytest.mark.parametrize("bound", ["KEPT_BYTES", "MOST_SHOWN_BYTES"])
def test_a_product_of_a_stored_constant_has_its_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """A lead time that the model stores is the input of a weight; H = leadᵀ lead a call, as NumPy says."""
    angles = 0.3 ** np.arange(8)
    lead = np.concatenate([np.sin(angles), np.cos(angles)])[None].astype(np.float32)
    graph = """(float[b, 5] x) => (float[b, 5] y) {
      p = MatMul(x, A)  e = MatMul(lead, E)  q = Add(p, e)  h = Tanh(q)  y = MatMul(h, B) }"""
    weights = {"A": values(5, 5, seed=1), "E": values(16, 5, seed=2), "B": values(5, 5, seed=3), "lead": lead}
    source = opened(tmp_path, model(graph, weights))
    assert "lead" not in {w.name for w in source.survey.weights}
    bed = bed_of(source, spec_of(2), Contexts({"x": values(4, 5, seed=9)}, {}), {"y": 1.0})
    monkeypatch.setattr(calibrate, bound, 0)
    calibration = Calibration(bed)
    moved = {"A": np.round(weights["A"], 1).astype(np.float32)}
    found = calibration.statistics("E", moved)
    calls = found.n_rows
    np.testing.assert_allclose(found.H[0], calls * lead.T.astype(np.float64) @ lead, rtol=1e-6)
    assert not found.D.any()
    assert calibration.statistics("B", moved).D.any()
