"""The frontier: one set of scores, many files."""

from __future__ import annotations

import csv
import json

import pytest

from tqs_onnx.allocate.costing import PlanOptions
from tqs_onnx.frontier import Axis, trace
from tqs_onnx.request import request_for
from tqs_passes.tier import DEFAULT_TIERS, parse_tiers


@pytest.fixture(scope="module")
def traced(lorenz, tmp_path_factory):
    out = tmp_path_factory.mktemp("frontier")
    axis = Axis((2.0, 4.0, 8.0, 1000.0), (DEFAULT_TIERS,), (0.0,))
    pareto = trace(
        lorenz.source,
        lambda tiers: request_for(lorenz.source, lorenz.scores, "exact", tiers),
        axis,
        PlanOptions(),
        lorenz.place,
        lorenz.bench,
        out,
        lambda line: None,
    )
    return pareto, out


def test_every_feasible_target_is_written_and_met(traced):
    pareto, out = traced
    for point in pareto.points[:3]:
        assert (out / f"{point.name}.onnx").stat().st_size == point.n_bytes
        assert point.compression >= point.compression_asked


def test_a_target_below_the_floor_is_a_point_without_a_file(traced):
    pareto, out = traced
    assert pareto.points[3].n_bytes is None
    assert not (out / f"{pareto.points[3].name}.onnx").exists()


def test_more_compression_drifts_more(traced):
    measured = [p.drift_measured for p in traced[0].points[:3]]
    assert measured == sorted(measured)


def test_prediction_ranks_the_points(traced):
    assert traced[0].spearman == pytest.approx(1.0)


def test_the_files_hold_what_is_returned(traced):
    pareto, out = traced
    assert json.loads((out / "pareto.json").read_text()) == json.loads(pareto.model_dump_json())
    rows = list(csv.DictReader((out / "pareto.csv").read_text().splitlines()))
    assert [r["name"] for r in rows] == [p.name for p in pareto.points]


def test_tier_sets_are_an_axis(lorenz, tmp_path):
    axis = Axis((4.0,), (parse_tiers("FP32,INT8,INT4"), parse_tiers("FP32,INT8,INT2")), (0.0,))
    pareto = trace(
        lorenz.source,
        lambda tiers: request_for(lorenz.source, lorenz.scores, "exact", tiers),
        axis,
        PlanOptions(),
        lorenz.place,
        lorenz.bench,
        tmp_path,
        lambda line: None,
    )
    assert [p.tiers for p in pareto.points] == ["FP32,INT8,INT4", "FP32,INT8,INT2"]
    assert len({p.name for p in pareto.points}) == 2
