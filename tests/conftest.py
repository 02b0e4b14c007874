"""Shared fixtures: the bundled demo model, scored once on few contexts over few steps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

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
