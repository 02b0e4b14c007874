"""The frontier: one set of scores, many files."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.rollouts import forecaster, write_case
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.tier_set import TierSet
from tqs_onnx.analysis.frontiers import gap_table, matched_table
from tqs_onnx.cli.main import main
from tqs_onnx.emission import emit
from tqs_onnx.jobs.axis import Axis, file_labels, named_scores
from tqs_onnx.jobs.frontier import Sweeper, trace
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.pareto import Point, pareto_of, read_pareto
from tqs_onnx.refinement.refine import RefineOptions
from tqs_onnx.rounding.assign import RoundingOptions
from tqs_onnx.rounding.codes_file import codes_beside
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.plan.probe import ProbeKind
from tqs_passes.errors import InputError
from tqs_passes.plan.plan import read_plan
from tqs_passes.tier import parse_tiers


def traced_over(lorenz, axis, out, method="mse", candidates=1):
    with Results(None) as results:
        refine = RefineOptions(candidates, repair_rounds=0, rounding=RoundingOptions(method))
        options = QuantizeOptions(profile="exact", refine=refine)
        sweeper = Sweeper(lorenz.source, {"": lorenz.scores}, options, lorenz.bed, lorenz.data, results)
        return trace(sweeper, axis, out)


@pytest.fixture(scope="module")
def traced(lorenz, tmp_path_factory):
    out = tmp_path_factory.mktemp("frontier")
    return traced_over(lorenz, Axis((2.0, 4.0, 8.0, 1000.0)), out), out


def test_every_feasible_target_is_written_and_met(traced):
    pareto, out = traced
    for point in pareto.points[:3]:
        assert (out / f"{point.name}.onnx").stat().st_size == point.n_bytes
        assert point.compression >= point.compression_asked


def test_a_target_below_the_floor_is_a_point_without_a_file(traced):
    pareto, out = traced
    assert pareto.points[3].n_bytes is None
    assert not (out / f"{pareto.points[3].name}.onnx").exists()


def test_drift_on_held_out_contexts_never_rises_with_bytes(lorenz, tmp_path):
    pareto = traced_over(lorenz, Axis((8.0, 8.6, 8.3)), tmp_path, candidates=2)
    by_budget = sorted(pareto.points, key=lambda p: -p.compression_asked)
    drifts = [p.drift_predicted for p in by_budget]
    # Plans within 1 % of the least are equal, and the smallest of them is written.
    assert all(larger <= 1.01 * smaller for smaller, larger in pairwise(drifts))
    assert all(p.chosen is not None for p in by_budget)
    assert [p.compression_asked for p in pareto.points] == [8.0, 8.6, 8.3]


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
    sets = tuple(TierSet(parse_tiers(text)) for text in ("FP32,INT8,INT4", "FP32,INT8,INT2"))
    pareto = traced_over(lorenz, Axis((4.0,), sets), tmp_path)
    assert [p.tiers for p in pareto.points] == ["FP32,INT8,INT4", "FP32,INT8,INT2"]
    assert len({p.name for p in pareto.points}) == 2


def test_every_combination_of_the_lists_is_a_series_with_files_of_its_own(lorenz, tmp_path):
    axis = Axis(
        (4.0,),
        (TierSet(parse_tiers("FP32,INT8,INT4")),),
        p_fp32=(0.0, 0.1),
        gamma_min=(None, 100.0),
        solvers=("mckp", "greedy-top"),
        objectives=(Objective.ENERGY,),
    )
    series = [(o.plan, name) for o, name in axis.series(QuantizeOptions())]
    found = [(o.p_fp32, o.gamma_min, o.solver, name) for o, name in series]
    assert len(found) == 8
    assert len({name for *_, name in found}) == 8
    assert found[0] == (0.0, None, "mckp", ".mckp.p0.gamma-none")


def test_tier_sets_of_the_same_bottom_have_names_of_their_own():
    sets = tuple(TierSet(parse_tiers(text)) for text in ("FP32,INT8,INT4", "FP32,INT4", "FP32,INT2"))
    assert [name for *_, name in Axis((4.0,), sets).series(QuantizeOptions())] == [
        ".tiers1",
        ".tiers2",
        ".int2",
    ]


def test_a_point_says_who_planned_it_and_what_is_left(traced):
    for point in traced[0].points[:3]:
        assert point.objective == "energy"
        assert point.found_by.startswith("lagrangian")
        assert point.unspent_bytes >= 0
        assert not point.saturated


def test_a_budget_that_buys_nothing_more_is_saturated(lorenz, tmp_path):
    # every weight at INT8 at the finest: far below half the file
    axis = Axis((1.0,), p_fp32=(0.0,), gamma_min=(1e9,))
    point = traced_over(lorenz, axis, tmp_path).points[0]
    assert point.saturated
    assert point.unspent_bytes > point.n_bytes


@pytest.mark.slow
def test_data_aware_points_measure_their_responses_and_keep_their_codes(lorenz, tmp_path):
    axis = Axis((4.0,), objectives=(Objective.MEASURED,))
    point = traced_over(lorenz, axis, tmp_path, "gptq").points[0]
    plan_file = tmp_path / f"{point.name}.plan.json"
    plan = read_plan(plan_file)
    emit(lorenz.source.lifted, plan, tmp_path / "again.onnx", codes_beside(plan_file, plan))
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / f"{point.name}.onnx").read_bytes()
    assert plan.solver.objective == "measured"


def test_further_scores_are_series_of_their_own_and_their_gap_is_told(lorenz, tmp_path):
    """Scores whose amplifications are turned round allocate worse; the same scores again allocate the same file."""
    most = max(w.amplification or 0.0 for w in lorenz.scores.weights) ** 2
    turned = [
        w.model_copy(
            update={
                "response": tuple(
                    p.model_copy(update={"amplification": most / p.amplification}) for p in w.response
                )
            }
        )
        for w in lorenz.scores.weights
    ]
    other = lorenz.scores.model_copy(update={"weights": tuple(turned)})
    scores = named_scores(lorenz.scores, (other, lorenz.scores))
    assert list(scores) == ["scores1", "scores2", "scores3"]
    with Results(None) as results:
        refine = RefineOptions(candidates=1, repair_rounds=0, rounding=RoundingOptions())
        options = QuantizeOptions(profile="exact", refine=refine)
        sweeper = Sweeper(lorenz.source, scores, options, lorenz.bed, lorenz.data, results)
        done = []
        pareto = trace(sweeper, Axis((6.0,)), tmp_path, lambda n, name: done.append((n, name)))
    names = ["model.C6.scores1", "model.C6.scores2", "model.C6.scores3"]
    assert done == [(i, name) for i, name in enumerate(names, 1)]
    assert list(file_labels(Axis((6.0,)), options, scores)) == [n.removeprefix("model.") for n in names]
    own, worse, same = (p.drift_measured for p in pareto.points)
    assert same == own < worse
    rows = {row[1]: row for row in gap_table({"run": pareto}).rows if row[0] == "run: scores1"}
    assert rows["run: scores2"][4:] == pytest.approx((worse / own, worse / own))
    assert rows["run: scores3"][4:] == (1.0, 1.0)


def test_scores_are_named_by_what_tells_them_apart(lorenz, tmp_path):
    gauss = lorenz.scores.model_copy(
        update={"probe": lorenz.scores.probe.model_copy(update={"kind": ProbeKind.GAUSS})}
    )
    assert list(named_scores(lorenz.scores, ())) == [""]
    assert list(named_scores(lorenz.scores, (gauss,))) == ["quant", "gauss"]
    files = []
    for folder in ("winter", "summer"):
        files.append(tmp_path / folder / "scores.json")
        files[-1].parent.mkdir()
        files[-1].write_text(lorenz.scores.to_json())
    assert list(named_scores(files[0], (files[1],))) == ["winter", "summer"]
    with pytest.raises(InputError, match="is given twice"):
        named_scores(files[0], (files[0],))


def point(added, predicted, measured, **changes):
    given = {
        "name": "p",
        "compression_asked": 2.0,
        "tiers": "",
        "p_fp32": 0.0,
        "gamma_min": None,
        "solver": "mckp",
    }
    given |= {"objective": "energy", "allocate_s": 0.0, **changes}
    return Point(drift_added=added, drift_predicted=predicted, drift_measured=measured, **given)


def test_one_joint_drift_calibrates_the_points_of_its_series():
    points = [
        point(1.0, 9.0, 2.0),
        point(2.0, 4.0, 4.0),
        point(4.0, 1.0, 8.0),
        point(1.0, 3.0, 3.0, solver="greedy"),
    ]
    found = pareto_of("0", points)
    # the point in the middle says: joint is twice what was added
    assert [p.drift_calibrated for p in found.points] == [2.0, 4.0, 8.0, 3.0]
    assert found.worst_calibrated_ratio == 1.0
    assert found.worst_added_ratio == 3.0
    assert found.worst_predicted_ratio == 8.0


def test_baselines_set_the_budget_of_the_points_beside_them(tmp_path: Path) -> None:
    case = write_case(tmp_path, forecaster(24, 96), n=4)
    shared = case.arguments("--out", str(tmp_path / "run"), "--compression", "3")
    assert main(["quantize", str(case.model), *shared]) == 0
    wanted = [
        "--compressions",
        "3",
        "--weight-compressions",
        "4",
        "--baselines",
        "rtn,gptq",
        "--baseline-bits",
        "3",
        "--scores",
    ]
    shared = case.arguments("--out", str(tmp_path / "frontier"), *wanted, str(tmp_path / "run/scores.json"))
    assert main(["sweep", str(case.model), *shared]) == 0
    pareto = read_pareto(tmp_path / "frontier/pareto.json")
    uniform = {p.solver: p for p in pareto.points if p.objective == "uniform"}
    assert list(uniform) == ["rtn", "gptq"]
    least = min(p.n_bytes for p in uniform.values())
    for p in pareto.points:
        assert p.n_bytes == (tmp_path / "frontier" / f"{p.name}.onnx").stat().st_size
        assert p.emit_s > 0 < p.evaluate_s
    ours = next(p for p in pareto.points if p.name == "m.W3")
    assert ours.n_bytes <= least
    by_weights = next(p for p in pareto.points if p.name == "m.w4")
    assert read_plan(tmp_path / "frontier/m.w4.plan.json").weight_bytes * 4 <= (24 * 96 * 2 + 24 * 2 + 96) * 4
    assert by_weights.compression < 4
    (row,) = matched_table({"run": pareto}).rows
    assert row[:5] == ("run", "INT3,FP16", "m.W3", least, ours.n_bytes)
    best = min(p.drift_measured for p in uniform.values())
    assert row[8] == ours.drift_measured / best
    won = all(ours.variables["y"].drift < p.variables["y"].drift for p in uniform.values())
    assert row[5] == won
