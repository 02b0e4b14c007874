from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tqs_models.lorenz96 import LorenzFiles, files, system


@cache
def session() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(files().model), options, providers=["CPUExecutionProvider"])


def step(x: np.ndarray) -> np.ndarray:
    return session().run(["next"], {"state": x.astype(np.float32)})[0].astype(np.float64)


@cache
def states() -> np.ndarray:
    return system.climate(16, seed=5001)


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(getattr(files(), name)) as stored:
        return dict(stored)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square distance of every state of `a` to every state of `b`."""
    square = np.square(a[:, None] - b[None]).mean(axis=2)
    return np.sqrt(square)


def test_a_uniform_state_equal_to_the_forcing_does_not_change() -> None:
    x = np.full((1, system.VARIABLES), system.FORCING)
    np.testing.assert_array_equal(system.advance(x), x)


def test_the_tendency_of_one_variable_follows_the_equation() -> None:
    x = np.random.default_rng(0).standard_normal(system.VARIABLES)
    expected = (x[1] - x[-2]) * x[-1] - x[0] + system.FORCING
    assert system.tendency(x)[0] == pytest.approx(expected, rel=1e-14)


def test_the_integration_converges_with_the_fourth_power_of_the_step() -> None:
    x = states()
    fine = x
    for _ in range(40):
        fine = system.runge_kutta(fine, 0.05 / 40)

    def error(substeps: int) -> float:
        y = x
        for _ in range(substeps):
            y = system.runge_kutta(y, 0.05 / substeps)
        return float(np.abs(y - fine).max())

    # Halving the step divides the error by 2**4 = 16 up to higher orders.
    assert 12 < error(2) / error(4) < 21


def test_a_trajectory_starts_one_step_after_its_state() -> None:
    x = states()[:2]
    np.testing.assert_array_equal(system.trajectory(x, 3)[:, 0], system.advance(x))


def test_the_true_largest_exponent_is_that_of_the_literature() -> None:
    # 16 members x 20 time units: the sampling error is about 2 %.
    measured = system.lyapunov(system.advance, states(), steps=400, settle=100)
    assert measured == pytest.approx(system.LYAPUNOV, rel=0.05)


def test_the_exponent_of_a_linear_map_is_its_logarithm() -> None:
    measured = system.lyapunov(lambda x: 1.5 * x, states(), steps=20, settle=1, step=0.5)
    assert measured == pytest.approx(np.log(1.5) / 0.5, rel=1e-6)


def test_the_model_has_the_largest_exponent_of_the_system() -> None:
    # The twins stay 1e-2 apart: float32 rounds at about 1e-6, the attractor's deviation is 3.64.
    measured = system.lyapunov(step, states(), steps=400, settle=100, distance=1e-2)
    assert measured == pytest.approx(system.LYAPUNOV, rel=0.1)


def test_the_one_step_error_is_below_half_a_percent_of_the_climate() -> None:
    truth = system.advance(states())
    error = np.sqrt(np.square(step(states()) - truth).mean())
    assert error < 0.005 * 3.64


def test_the_model_keeps_the_climate_in_a_long_run() -> None:
    x = states()
    for _ in range(400):
        x = step(x)
    # 640 values of a field with few independent directions: the deviation is known to about 6 %.
    assert x.std() == pytest.approx(3.64, rel=0.2)


def test_the_model_does_not_know_where_the_circle_begins() -> None:
    x = states()
    # Kernels sum in another order at another place: a few float32 roundings of values near 10.
    np.testing.assert_allclose(step(np.roll(x, 7, axis=1)), np.roll(step(x), 7, axis=1), atol=2e-5)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_batch_axis_is_dynamic(batch: int) -> None:
    assert step(states()[:batch]).shape == (batch, system.VARIABLES)


def test_the_model_is_at_most_two_megabytes() -> None:
    assert files().model.stat().st_size <= 2_000_000


def test_the_weights_keep_the_names_of_their_parameters() -> None:
    graph = onnx.load(files().model).graph
    names = {t.name for t in graph.initializer if len(t.dims) > 1}
    blocks = {f"blocks.{i}.{part}.weight" for i in range(4) for part in ("up", "down")}
    assert names == {"embed.weight", "head.weight", "output.weight"} | blocks


def test_every_named_file_exists() -> None:
    found: LorenzFiles = files()
    assert all(p.is_file() for p in (found.model, found.rollout, found.contexts, found.evaluation))


@pytest.mark.parametrize("name", ["contexts", "evaluation"])
def test_the_contexts_are_float32_states_on_the_attractor(name: str) -> None:
    state = arrays(name)["state"]
    assert (state.dtype, state.shape[1]) == (np.dtype(np.float32), system.VARIABLES)
    assert state.std() == pytest.approx(3.64, rel=0.1)


def test_the_stored_truth_is_the_systems_own_trajectory() -> None:
    stored = arrays("evaluation")
    expected = system.trajectory(stored["state"].astype(np.float64), 40)
    # float32 stores values near 10 to 5e-7; other mathematics libraries round otherwise (1e-16 x 1e3).
    np.testing.assert_allclose(stored["truth/next"], expected, atol=1e-5)


def test_no_evaluation_state_lies_near_a_scoring_context_or_its_future() -> None:
    scoring = arrays("contexts")["state"].astype(np.float64)
    future = system.trajectory(scoring, 40).reshape(-1, system.VARIABLES)
    known = np.concatenate([scoring, future])
    # Two independent states are about 3.64 * sqrt(2) = 5.1 apart; one step moves a state by 2.3.
    assert distances(arrays("evaluation")["state"], known).min() > 2.3
