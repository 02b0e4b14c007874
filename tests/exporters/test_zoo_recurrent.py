"""The recurrent models of the zoo: what their cards say of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.session import Session, SessionOptions, open_session
from tqs_onnx.rounding.uses import uses_of

ZOO = Path(__file__).parents[2] / "models" / "zoo"
SHAPES = {"lstm_ett": (96, 1, 7), "gru_weather": (72, 1, 21), "seq2seq_ett": (96, 24, 7)}


@cache
def session(name: str) -> Session:
    return open_session(ZOO / name / "model.onnx", options=SessionOptions(threads=1))


def forecast(name: str, window: np.ndarray) -> np.ndarray:
    return session(name).run({"window": session(name).value(window.astype(np.float32))})["next"].numpy()


@cache
def windows(name: str) -> np.ndarray:
    context, _, columns = SHAPES[name]
    walk = np.random.default_rng(0).standard_normal((3, context, columns)).cumsum(axis=1)
    stored = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(ZOO / name / "model.onnx").graph.initializer
    }
    mean = next(v for k, v in stored.items() if "mean" in k or k.endswith("Sub/y:0")).reshape(-1)
    deviation = next(v for k, v in stored.items() if "deviation" in k or k.endswith("Sqrt:0")).reshape(-1)
    return (mean + 0.1 * deviation * walk).astype(np.float32)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_axis_is_dynamic(name: str, batch: int) -> None:
    made = forecast(name, windows(name)[:batch])
    assert made.shape == (batch, *SHAPES[name][1:])
    assert np.isfinite(made).all()


@pytest.mark.parametrize("name", SHAPES)
def test_a_forecast_does_not_depend_on_its_neighbours_in_the_batch(name: str) -> None:
    every, alone = forecast(name, windows(name)), forecast(name, windows(name)[:1])
    # Kernels sum in another order for another batch: some float32 roundings of values up to 1,300.
    np.testing.assert_allclose(every[:1], alone, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_has_at_most_400_kb(name: str) -> None:
    assert (ZOO / name / "model.onnx").stat().st_size <= 400_000


@pytest.mark.parametrize("name", SHAPES)
def test_every_matrix_is_rounded_with_data(name: str) -> None:
    source = open_source(ZOO / name / "model.onnx")
    weights = [w for w in source.survey.weights if sum(size > 1 for size in w.shape) > 1]
    matrices = {w.name: w.shape for w in weights}
    readers = {w.name: len(w.readers) for w in weights}
    found = uses_of(source.lifted.proto.graph, matrices, readers)
    assert len(matrices) >= 5
    assert {name: use.why_not for name, use in found.items() if use.why_not} == {}


def test_the_decoder_of_seq2seq_is_a_scan() -> None:
    ops = [n.op_type for n in onnx.load(ZOO / "seq2seq_ett" / "model.onnx").graph.node]
    assert ops.count("Scan") == ops.count("LSTM") == 1
