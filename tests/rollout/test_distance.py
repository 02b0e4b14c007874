"""Drift and energy by hand, over variables of different sizes."""

import numpy as np
import pytest

from tests.rollouts import REPLACE, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.distance import drift_of, n_space, ruler_for
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_passes.errors import InputError

# Float64 sums of a few float32 differences.
EXACT = 1e-6
TWO_OUTPUTS = parse_spec(REPLACE.format(steps=2).replace('outputs = ["y"]', 'outputs = ["y", "z"]'))


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Three contexts, two times; y has 4 values in space, z has one."""
    return {"y": values(3, 2, 4, seed=seed), "z": values(3, 2, seed=seed + 50)}


def drift(a, b, spec, contexts, sigma) -> float:
    squares = ruler_for(a, spec, contexts, sigma).squares(a, b)
    return drift_of(squares, n_space(a, spec, contexts))


CONTEXTS = Contexts({"x": np.zeros((3, 4), np.float32)}, {})


def test_variables_count_alike_whatever_their_size() -> None:
    a, b = arrays(0), arrays(1)
    sigma = {"y": 2.0, "z": 0.5}
    y = np.mean(((a["y"] - b["y"]) / 2.0) ** 2)
    z = np.mean(((a["z"] - b["z"]) / 0.5) ** 2)
    assert drift(a, b, TWO_OUTPUTS, CONTEXTS, sigma) == pytest.approx(np.sqrt((y + z) / 2), rel=EXACT)


def test_equal_trajectories_have_no_drift() -> None:
    assert drift(arrays(0), arrays(0), TWO_OUTPUTS, CONTEXTS, {"y": 1.0, "z": 1.0}) == 0.0


def test_the_values_of_a_trajectory_are_those_of_all_outputs() -> None:
    assert ruler_for(arrays(0), TWO_OUTPUTS, CONTEXTS, {"y": 1.0, "z": 1.0}).n_values == 2 * 4 + 2


def mean_energy(a, b, spec, contexts, sigma) -> tuple[float, float]:
    """Mean energy over contexts, and N · drift²."""
    ruler = ruler_for(a, spec, contexts, sigma)
    spaces = n_space(a, spec, contexts)
    squares = ruler.squares(a, b)
    energy = ruler.energy(squares, spaces)
    return float(energy.sum(axis=1).mean()), ruler.n_values * drift_of(squares, spaces) ** 2


def test_the_mean_energy_is_n_times_drift_squared() -> None:
    mean, wanted = mean_energy(arrays(0), arrays(1), TWO_OUTPUTS, CONTEXTS, {"y": 2.0, "z": 0.5})
    assert mean == pytest.approx(wanted, rel=1e-12)


SERIES = Contexts({"x": np.zeros((3, 4), np.float32)}, {}, series=("u", "v", "u"))


def test_series_are_variables_with_the_contexts_that_are_theirs() -> None:
    a, b = {"y": values(3, 2, 4, seed=5)}, {"y": values(3, 2, 4, seed=6)}
    delta = (a["y"] - b["y"]).astype(np.float64)
    u, v = np.mean((delta[[0, 2]] / 3.0) ** 2), np.mean(delta[1] ** 2)
    got = drift(a, b, spec_of(2), SERIES, {"u": 3.0, "v": 1.0})
    assert got == pytest.approx(np.sqrt((u + v) / 2), rel=EXACT)


def test_the_mean_energy_over_series_of_different_numbers_is_n_times_drift_squared() -> None:
    a, b = {"y": values(3, 2, 4, seed=5)}, {"y": values(3, 2, 4, seed=6)}
    mean, wanted = mean_energy(a, b, spec_of(2), SERIES, {"u": 3.0, "v": 1.0})
    assert mean == pytest.approx(wanted, rel=1e-12)


def test_the_energy_of_a_context_is_its_own() -> None:
    a = {"y": values(3, 2, 4, seed=5)}
    b = {"y": a["y"].copy()}
    b["y"][1, 1, 2] += 2.0
    ruler = ruler_for(a, spec_of(2), CONTEXTS, {"y": 1.0})
    energy = ruler.energy(ruler.squares(a, b), {"y": 4})
    np.testing.assert_allclose(energy, [[0, 0], [0, 4], [0, 0]], rtol=EXACT, atol=0)


def test_a_variable_that_was_not_scored_is_refused() -> None:
    with pytest.raises(InputError, match="variable 'v' was not scored"):
        ruler_for({"y": values(3, 2, 4)}, spec_of(2), SERIES, {"u": 1.0})


def test_a_ruler_keeps_no_array_as_large_as_a_trajectory() -> None:
    named = '[[variable]]\nname = "v"\noutput = "y"\naxis = 1\nindex = 0\n'
    ruler = ruler_for({"y": values(3, 4, 2)}, spec_of(more=named), CONTEXTS, {"v": 1.0})
    assert ruler.rows["v"].base is None
    assert ruler.rows["v"].tolist() == [0, 1, 2]
