"""A target instead of a budget: the smallest file that meets a condition on the evaluation contexts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.allocation.budget import Budget
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, Outcome, quantize
from tqs_onnx.jobs.target import Trial, smallest_passing
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.verification.gates import parse_gate
from tqs_passes.errors import InfeasibleError, InputError

TARGET = "drift<=0.02"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("in"), forecaster())


def made(case: Case, out: Path, **budget: object) -> Outcome:
    data = DataOptions(case.rollout, case.contexts, case.evaluation)
    return quantize(
        Job(case.model, data, out, QuantizeOptions(Budget(**budget), run=RunOptions("cpu", threads=1)))
    )


def power(limit: float, exponent: float) -> tuple[int, list[int]]:
    """Search where the value is (1000 / bytes) ** exponent; return the bytes found and the budgets tried."""
    tried: list[int] = []

    def attempt(max_bytes: int) -> Trial[None]:
        tried.append(max_bytes)
        return Trial(max_bytes, max_bytes, (1000 / max_bytes) ** exponent, None)

    return smallest_passing(parse_gate(f"drift<={limit}"), 1000, 100_000, attempt).n_bytes, tried


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_the_budget_found_is_where_the_value_meets_the_limit(exponent: float) -> None:
    exact = 1000 / 0.3 ** (1 / exponent)
    found, tried = power(0.3, exponent)
    assert exact <= found <= 1.02 * exact
    assert len(tried) <= 12


def test_a_smallest_file_that_passes_is_taken_at_once() -> None:
    assert power(1.0, 1.0) == (1000, [1000])


def test_a_limit_that_no_budget_meets_is_infeasible() -> None:
    with pytest.raises(
        InfeasibleError, match=r"no file meets drift<=1e-09: with 100,000 bytes drift is 0\.01"
    ):
        power(1e-9, 1.0)


def test_steps_in_the_value_do_not_end_the_search_early() -> None:
    """The value is .5 below 6,000 bytes and .1 from there on."""

    def attempt(max_bytes: int) -> Trial[None]:
        return Trial(max_bytes, max_bytes, 0.5 if max_bytes < 6000 else 0.1, None)

    found = smallest_passing(parse_gate("drift<=0.2"), 1000, 100_000, attempt)
    assert 6000 <= found.n_bytes <= 6120


def test_the_file_meets_the_target_and_one_a_little_smaller_does_not(case: Case, tmp_path: Path) -> None:
    found = made(case, tmp_path / "a", target=TARGET)
    assert found.verification.drift.total <= 0.02
    smaller = made(case, tmp_path / "b", max_bytes=int(found.plan.n_bytes * 0.95))
    assert smaller.verification.drift.total > 0.02


def test_single_commands_and_the_job_write_the_same_file(case: Case, tmp_path: Path) -> None:
    line = [str(case.model), *case.arguments("--target-drift", "0.02")]
    assert main(["quantize", *line, "--out", str(tmp_path / "run")]) == 0
    plan = tmp_path / "plan.json"
    assert (
        main(["allocate", *line, "--scores", str(tmp_path / "run" / "scores.json"), "--out", str(plan)]) == 0
    )
    assert json.loads(plan.read_text()) == json.loads((tmp_path / "run" / "plan.json").read_text())


def test_a_degradation_without_truth_is_refused_before_scoring(tmp_path: Path) -> None:
    case = write_case(tmp_path / "in", forecaster(), truth=False)
    with pytest.raises(InputError, match="hold no truth"):
        made(case, tmp_path / "run", target="degradation<=1")
    assert not (tmp_path / "run").exists()


def test_one_target_and_one_budget_at_most(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "quantize",
        str(case.model),
        *case.arguments("--target-drift", "0.1"),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*line, "--target-degradation", "1%"]) == 2
    assert main([*line, "--compression", "4"]) == 2
    said = capsys.readouterr().err
    assert "give one of --target-drift and --target-degradation" in said
    assert said.count("\n") == 2
