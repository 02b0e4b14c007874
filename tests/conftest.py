"""Shared fixtures: the bundled demo model, scored once on few contexts over few steps."""

from __future__ import annotations

import os
from dataclasses import dataclass

# Before NumPy is imported, here and in what the tests start: a worker to a core, and no threads beside it.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import pytest

import tqs_onnx.allocation.measure_times
import tqs_onnx.inputs.drafting
import tqs_onnx.rollout.crash_check
import tqs_onnx.verification.timing
from tqs_models.lorenz96 import files
from tqs_onnx.allocation.costing import Request
from tqs_onnx.allocation.request import request_for
from tqs_onnx.inputs.data import Data, DataOptions, read_data
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.score import score
from tqs_onnx.scoring.scores import Scores
from tqs_passes.tier import DEFAULT_TIERS

#: Modules whose few tests take longest, slowest first. A worker takes whole modules: begun last, they end last.
LONG = (
    "test_resume",
    "test_ray",
    "test_examples",
    "test_quantize",
    "test_build_examples",
    "test_measured_objective",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@dataclass(frozen=True)
class Scored:
    source: Source
    scores: Scores
    request: Request
    bed: Testbed
    judging: Testbed
    data: Data
    scoring: Contexts


@pytest.fixture(scope="session")
def lorenz() -> Scored:
    demo = files()
    source = open_source(demo.model)
    data = read_data(
        DataOptions(
            rollout=demo.rollout,
            contexts=demo.contexts,
            evaluation=demo.evaluation,
            steps=6,
            max_contexts=6,
            max_eval_contexts=4,
        ),
        source,
    )
    bed = Testbed(source.lifted, source.survey, data.spec, data.scoring, RunOptions("cpu", threads=1))
    scores = score(bed, source.sha256)
    bed = bed.scaled(scores.sigma)
    return Scored(
        source=source,
        scores=scores,
        request=request_for(source, scores, "exact", DEFAULT_TIERS),
        bed=bed,
        judging=bed.on(data.evaluation),
        data=data,
        scoring=data.scoring,
    )


@pytest.fixture(autouse=True)
def no_trial_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models be opened without the process that tries first whether the runtime survives them.

    It takes a third of a second a model, and the models here are good. Tests of the trial take this fixture's place.
    """
    monkeypatch.setattr(tqs_onnx.rollout.crash_check, "loads_in_child", lambda *_, **__: None)


@pytest.fixture(autouse=True)
def no_long_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let races end after their rounds: nothing here depends on how well a time is known."""
    for module in (tqs_onnx.allocation.measure_times, tqs_onnx.verification.timing):
        monkeypatch.setattr(module, "LEAST_S", 0.0)


@pytest.fixture(autouse=True)
def no_child_for_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rollouts be drafted in this process; the child that does it otherwise takes two seconds to start."""
    monkeypatch.setattr(
        tqs_onnx.inputs.drafting,
        "_asked",
        lambda path, sha256: tqs_onnx.inputs.drafting.tried(open_source(path)),
    )
