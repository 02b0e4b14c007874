"""Scores of activations: the response to rounding one reader's input at every call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import forecaster, linear, opened, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.activations import score_activations
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.score import score
from tqs_onnx.scoring.scores import Scores
from tqs_passes.encode.dynamic import rounded_input

STEPS, N = 3, 12
X = values(4, N, seed=3)


def bed(folder: Path, proto) -> Testbed:
    source = opened(folder, proto)
    return Testbed(
        source.lifted, source.survey, spec_of(STEPS), Contexts({"x": X}, {}), RunOptions("cpu", threads=1)
    )


def test_the_response_is_that_of_a_rollout_whose_every_input_is_rounded(tmp_path: Path) -> None:
    a = values(N, N, seed=4, scale=N**-0.5)
    (found,) = score_activations(bed(tmp_path, linear(a)), {"y": 2.0}, (1, STEPS))
    plain, rounded, energy, error = X, X, [], 0.0
    for _ in range(STEPS):
        error += float(np.sum((rounded_input(plain).astype(float) - plain) ** 2)) / len(X)
        plain, rounded = plain @ a, rounded_input(rounded) @ a
        energy.append(float(np.sum(((rounded - plain).astype(float) / 2.0) ** 2)) / len(X))
    # float32 products in another order: a value on a rounding boundary may fall one level elsewhere.
    assert found.energy == pytest.approx(sum(energy), rel=0.02)
    assert found.delta_norm == pytest.approx(error**0.5, rel=1e-4)
    assert found.amplification == pytest.approx(found.energy / error, rel=1e-4)
    assert found.gamma_task == pytest.approx(np.log(found.energy / error) / STEPS, rel=1e-4)
    assert found.gamma is not None
    assert len(found.gamma) == 2


def test_only_matrices_that_a_product_reads_are_scored(tmp_path: Path) -> None:
    found = score_activations(bed(tmp_path, forecaster(N)), {"y": 1.0}, (STEPS,))
    assert [a.weight for a in found] == ["W1", "W2"]


def test_scores_hold_activations_only_if_asked_and_read_them_back(tmp_path: Path) -> None:
    here = bed(tmp_path, forecaster(N))
    plain = score(here, "0" * 64, ScoreOptions(response_bits=()))
    assert "activations" not in json.loads(plain.to_json())
    asked = score(here, "0" * 64, ScoreOptions(response_bits=(), activations=True))
    assert len(asked.activations) == 2
    assert Scores.model_validate_json(asked.to_json()) == asked
    assert asked.model_copy(update={"activations": ()}) == plain
