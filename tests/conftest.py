"""Shared fixtures: the bundled demo model, scored once on few contexts over few steps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tqs_models.lorenz96 import files
from tqs_onnx.allocate.costing import Request
from tqs_onnx.allocate.request import request_for
from tqs_onnx.inputs.data import DataFiles, read_data
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.refine.joint_drift import Place
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.score.score import SweepOptions, sweep
from tqs_onnx.score.scores import Scores
from tqs_onnx.verify.verify import Bench
from tqs_passes.tier import DEFAULT_TIERS


@dataclass(frozen=True)
class Scored:
    source: Source
    scores: Scores
    request: Request
    place: Place
    bench: Bench
    scoring: Contexts


@pytest.fixture(scope="session")
def lorenz() -> Scored:
    demo = files()
    source = open_source(demo.model)
    data = read_data(
        DataFiles(
            rollout=demo.rollout,
            contexts=demo.contexts,
            evaluation=demo.evaluation,
            steps=6,
            max_contexts=6,
            max_eval_contexts=4,
        ),
        source,
    )
    scores = sweep(
        source.lifted, source.survey, data.spec, data.scoring, source.sha256, SweepOptions(threads=1)
    )
    return Scored(
        source=source,
        scores=scores,
        request=request_for(source, scores, "exact", DEFAULT_TIERS),
        place=Place(source.lifted, source.survey, data.spec, data.scoring, scores.sigma, threads=1),
        bench=Bench(data.spec, data.evaluation, scores.sigma, "cpu", None, 1),
        scoring=data.scoring,
    )
