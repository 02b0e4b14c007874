"""The CUDA provider, where there is one: values that stay on the device, and scores that are those of the CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.rollouts import forecaster, linear, opened, scored, spec_of, values
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout import gauge
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.session import Session, Value, open_session, probe_provider
from tqs_onnx.scoring.plan.options import EarlyStop


@cache
def why_not() -> str | None:
    """Return why CUDA does not work here, or None."""
    return probe_provider("cuda")


@pytest.fixture(autouse=True)
def _with_cuda() -> None:
    if why_not() is not None:
        pytest.skip(f"no CUDA here: {why_not()}")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return opened(tmp_path, forecaster(width=64, hidden=128))


def held_on(source: Source, contexts: Contexts) -> tuple[Engine, Session]:
    session = open_session(source.path, provider="cuda")
    return Engine(session, spec_of(), contexts), session


def test_what_a_rollout_is_compared_with_stays_on_the_device(source: Source) -> None:
    engine, _ = held_on(source, Contexts({"x": values(3, 64)}, {}))
    held = engine.hold()
    assert {v.raw.device_name() for s in held.steps[0] for v in s.values()} == {"cuda"}


def test_only_sums_come_to_the_host(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = held_on(source, Contexts({"x": values(3, 64)}, {}))
    held = engine.hold()
    sizes: list[int] = []
    plain = Value.numpy
    monkeypatch.setattr(Value, "numpy", lambda self: sizes.append(self.n_bytes) or plain(self))
    squares = engine.squares(held)
    assert sizes == [3 * 8] * 4
    assert not squares.outputs["y"].any()  # the same rollout again


def test_every_node_of_a_gauge_runs_on_the_device(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    plain = gauge.open_session

    def spied(model: bytes, **options: object) -> Session:
        made.append(model)
        return plain(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gauge, "open_session", spied)
    held_on(source, Contexts({"x": values(3, 64)}, {}))[0].hold()
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    ort.InferenceSession(made[0], settings, providers=["CUDAExecutionProvider"])  # raises where one does not


def test_matrix_products_are_not_rounded_to_tf32(tmp_path: Path) -> None:
    matrix, x = values(256, 256), values(64, 256, seed=1)
    source = opened(tmp_path, linear(matrix))
    engine = Engine(open_session(source.path, provider="cuda"), spec_of(1), Contexts({"x": x}, {}))
    exact = x.astype(np.float64) @ matrix.astype(np.float64)
    # a sum of 256 float32 products is off by some 1e-6 of its size, TF32's by some 1e-3
    np.testing.assert_allclose(engine.run().outputs["y"][:, 0], exact, atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"early_stop": EarlyStop(1e-9)}, {"batch": 2}, {"group_test": True}])
def test_scores_are_those_of_the_cpu(source: Source, more: dict[str, object]) -> None:
    x = values(3, 64)
    here = scored(source, spec_of(8), x, **more)
    there = scored(source, spec_of(8), x, provider="cuda", **more)
    assert [w.status for w in there.weights] == [w.status for w in here.weights]
    for a, b in zip(there.weights, here.weights, strict=True):
        assert a.gamma_task == pytest.approx(b.gamma_task, abs=1e-3)
    assert there.noise_floor == 0.0


def test_a_sweep_gives_the_same_bits_again(source: Source) -> None:
    x = values(3, 64)
    first, again = (scored(source, spec_of(), x, provider="cuda") for _ in range(2))
    assert first.to_json() == again.to_json()
