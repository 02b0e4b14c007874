"""Curvature, against a linear model whose Hessian and gradient are known in closed form."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from threadpoolctl import threadpool_info, threadpool_limits

from tests.rollouts import linear, values, write_case
from tqs_onnx.analysis.curvature import curvature_table
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs.curvature import CurvatureJob, curvature, read_curvature
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rounding.calibrate import Calibration
from tqs_onnx.scoring.scores import read_scores

N = 24


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """One step of x' = x A, 400 scoring contexts with truth, scored."""
    matrix = (0.9 * np.eye(N) + values(N, N, seed=1, scale=0.05)).astype(np.float32)
    case = write_case(tmp_path_factory.mktemp("curvature"), linear(matrix), steps=1, n=400)
    x = values(400, N, seed=10)
    np.savez(case.contexts, x=x, **{"truth/y": values(400, 1, N, seed=13)})
    out = case.model.parent / "run"
    files = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--threads", "1"]
    assert main(["score", str(case.model), *files, "--out", str(out)]) == 0
    return case, out / "scores.json", matrix, x


@pytest.fixture(scope="module")
def found(case):
    files, scores, _, _ = case
    data = DataOptions(files.rollout, files.contexts, files.evaluation)
    return curvature(CurvatureJob(files.model, scores, data, run=RunOptions("cpu", threads=1))).weights[0]


def test_the_hessian_is_the_mean_square_of_the_inputs(case, found) -> None:
    x = case[3].astype(np.float64)
    assert found.hessian == pytest.approx((x**2).sum() / len(x), rel=1e-6)


def test_the_fisher_is_the_mean_square_of_the_gradient(case, found) -> None:
    _, scores, matrix, x = case
    truth = values(400, 1, N, seed=13)[:, 0].astype(np.float64)
    sigma = read_scores(scores).sigma["y"]
    gap = x.astype(np.float64) @ matrix - truth
    gradients = 2 * x[:, :, None] * gap[:, None, :] / sigma**2  # of Σ (xA − y)² / σ², per context
    # One direction of signs: the deviation of its square is about √2 of the mean for each of 400 contexts, not
    # independent, because they share the direction.
    assert found.fisher == pytest.approx((gradients**2).sum(axis=(1, 2)).mean(), rel=0.2)


def test_linear_algebra_keeps_to_the_threads_of_the_run(case, monkeypatch: pytest.MonkeyPatch) -> None:
    files, scores, _, _ = case
    seen: list[set[int]] = []
    statistics = Calibration.statistics

    def noted(*given, **more):
        seen.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
        return statistics(*given, **more)

    monkeypatch.setattr(Calibration, "statistics", noted)
    data = DataOptions(files.rollout, files.contexts, files.evaluation)
    with threadpool_limits(3, user_api="blas"):
        curvature(CurvatureJob(files.model, scores, data, run=RunOptions("cpu", threads=2)))
    assert seen == [{2}]


def test_the_command_writes_what_analyse_reads(case, tmp_path: Path) -> None:
    files, scores, _, _ = case
    shared = [*files.arguments("--scores", str(scores)), "--out", str(tmp_path)]
    assert main(["curvature", str(files.model), *shared]) == 0
    assert main(["curvature", str(files.model), *shared]) == 2
    known = read_curvature(tmp_path / "curvature.json")
    assert known.weights[0].inputs is None
    assert curvature_table({"a": read_scores(scores)}, {"a": known}).rows == ()


def test_a_weight_without_a_rule_has_no_hessian(tmp_path: Path) -> None:
    matrix = np.eye(N, dtype=np.float32)
    case = write_case(tmp_path, with_table(matrix), steps=1, n=8)
    out = tmp_path / "run"
    files = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--threads", "1"]
    assert main(["score", str(case.model), *files, "--out", str(out)]) == 0
    data = DataOptions(case.rollout, case.contexts, case.evaluation)
    found = curvature(CurvatureJob(case.model, out / "scores.json", data, run=RunOptions("cpu", threads=1)))
    assert {w.weight: w.hessian is None for w in found.weights} == {"A": False, "table": True}


def with_table(matrix: np.ndarray) -> onnx.ModelProto:
    """x' = x A + the first row of a table."""
    proto = linear(matrix)
    graph = proto.graph
    last = graph.node[-1]
    result = last.output[0]
    last.output[0] = "product"
    graph.initializer.append(numpy_helper.from_array(values(8, N, seed=3, scale=0.1), "table"))
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    graph.node.append(helper.make_node("Gather", ["table", "first"], ["row"]))
    graph.node.append(helper.make_node("Add", ["product", "row"], [result]))
    return proto
