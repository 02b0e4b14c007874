"""Ranges of activations: what they hold, and that a rollout chooses between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import linear, model, opened, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.activations import score_activations
from tqs_onnx.scoring.ranges import WAYS, ranges_of
from tqs_passes.encode.static import range_between
from tqs_passes.errors import InputError

STEPS, N = 3, 12
A = values(N, N, seed=4, scale=0.9 * N**-0.5)
X = values(400, N, seed=3)


def bed(folder: Path, x=X) -> Testbed:
    source = opened(folder, linear(A))
    contexts, run = Contexts({"x": x}, {}), RunOptions("cpu", threads=1)
    return Testbed(source.lifted, source.survey, spec_of(STEPS), contexts, run)


def states(x) -> np.ndarray:
    """The inputs of the model at every step."""
    found = [x]
    for _ in range(STEPS - 1):
        found.append(found[-1] @ A)
    return np.stack(found)


def test_a_range_holds_every_step_of_every_context(tmp_path: Path) -> None:
    seen = states(X)
    whole = ranges_of(bed(tmp_path), ("x",), "uint8")["x"][WAYS.index("min-max")]
    wanted = range_between(float(seen.min()), float(seen.max()), "uint8")
    assert whole.scale == pytest.approx(wanted.scale, rel=1e-5)
    assert whole.zero_point == wanted.zero_point


def test_an_outlier_is_outside_the_percentile_and_costs_the_others_less_error(tmp_path: Path) -> None:
    x = X.copy()
    x[0, 0] = 60.0
    found = dict(zip(WAYS, ranges_of(bed(tmp_path, x), ("x",), "int8")["x"], strict=True))
    assert found["min-max"].scale == pytest.approx(60 / 127, rel=1e-5)
    assert found["percentile"].scale < 0.5 * found["min-max"].scale
    seen = states(x).astype(np.float32)
    errors = {way: float(np.sum((r.rounded(seen) - seen) ** 2)) for way, r in found.items()}
    # Errors are those of the middles of 4,096 bins, 0.03 wide here against steps of 0.2 and more.
    assert errors["error"] <= 1.02 * min(errors.values())


def test_the_rollout_decides_which_range_is_kept(tmp_path: Path) -> None:
    x = X.copy()
    x[0, 0] = 60.0
    (found,) = score_activations(bed(tmp_path, x), {"y": 1.0}, (STEPS,), "uint8")
    energies = {}
    for chosen in ranges_of(bed(tmp_path, x), ("x",), "uint8")["x"]:
        plain, rounded, total = x, x, 0.0
        for _ in range(STEPS):
            plain, rounded = plain @ A, chosen.rounded(rounded) @ A
            total += float(np.sum((rounded - plain).astype(np.float64) ** 2)) / len(x)
        energies[chosen] = total
    assert found.ranges == (min(energies, key=lambda r: energies[r]),)
    # float32 products in another order: a value on a rounding boundary may fall one level elsewhere.
    assert found.energy == pytest.approx(min(energies.values()), rel=0.02)


def test_an_infinite_activation_is_one_line(tmp_path: Path) -> None:
    """log 0 is −∞, and tanh brings it back: the forecast is finite, a range of `e` is not."""
    graph = "(float[b, 12] x) => (float[b, 12] y) { r = Relu(x)  e = Log(r)  p = MatMul(e, A)  y = Tanh(x) }"
    source = opened(tmp_path, model(graph, {"A": A}))
    contexts = Contexts({"x": X[:4]}, {})
    found = Testbed(source.lifted, source.survey, spec_of(2), contexts, RunOptions("cpu", threads=1))
    with pytest.raises(InputError, match="tensor 'e' holds infinite values along the rollout"):
        ranges_of(found, ("e",), "int8")
