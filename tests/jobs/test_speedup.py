"""A budget of time from the command line, with a given table of times: no result depends on a clock."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.allocation.measure_times import measure_times
from tqs_onnx.allocation.request import menus_of, prepared_source, size_of
from tqs_onnx.allocation.times import TimedForm, TimeTable, read_times
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.data import DataOptions, read_data
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.pareto import read_pareto
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.scores import read_scores
from tqs_onnx.verification.manifest import read_manifest
from tqs_passes.encode.weight import Form
from tqs_passes.plan.plan import read_plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier

EMITTED = "m.tqs.onnx"


def table(case: Case, **more: object) -> TimeTable:
    """Both matrices save a fifth of FP32's time."""
    known = {
        "source_sha256": open_source(case.model).sha256,
        "processor": "",
        "runtime": "",
        "provider": "cpu",
    }
    facts = {
        "threads": 1,
        "batch": 32,
        "rounds": 1,
        "fp32_ms": 1.0,
        "base": 1.0,
        "checked": 0.6,
        "summed": 0.6,
    }
    forms = (TimedForm(form=Form.DYNAMIC, weights=("W1", "W2"), share=-0.2),)
    return TimeTable.model_validate({**known, **facts, "forms": forms, **more})


def ran(case: Case, out: Path, *more: str, times: TimeTable | None = None) -> int:
    out.mkdir()
    (out / "times.json").write_text((times or table(case)).to_json())
    arguments = case.arguments("--out", str(out), "--compression", "2", "--speedup", "1.2", *more)
    return main(["quantize", str(case.model), *arguments])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("speed"), forecaster(32, 96))


@pytest.fixture(scope="module")
def run(case: Case) -> Path:
    out = case.model.parent / "run"
    assert ran(case, out) == 0
    return out


def test_as_many_inputs_are_rounded_as_the_time_needs_within_the_bytes(case: Case, run: Path) -> None:
    plan = read_plan(run / "plan.json")
    assert (
        sum(a.form is Form.DYNAMIC for a in plan.assignments) == 1
    )  # one saves a fifth, 1/1.2 needs a sixth
    assert plan.time is not None
    assert plan.time.predicted == pytest.approx(0.8)
    assert (run / EMITTED).stat().st_size == plan.n_bytes <= case.model.stat().st_size / 2


def test_the_manifest_holds_the_table_and_the_measured_time(run: Path) -> None:
    manifest = read_manifest(run / "manifest.json")
    assert "times" in manifest.inputs
    assert manifest.verification.timing is not None


def test_the_same_table_gives_the_same_file(case: Case, run: Path, tmp_path: Path) -> None:
    assert ran(case, tmp_path / "again") == 0
    assert (tmp_path / "again" / EMITTED).read_bytes() == (run / EMITTED).read_bytes()


def test_a_rebuild_takes_the_table_of_its_manifest(case: Case, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert main(["build", str(run / "manifest.json"), "--out", str(out)]) == 0
    assert (out / EMITTED).read_bytes() == (run / EMITTED).read_bytes()
    assert (
        read_manifest(out / "manifest.json").inputs["times"]
        == read_manifest(run / "manifest.json").inputs["times"]
    )


def test_the_single_commands_give_the_same_plan(case: Case, run: Path, tmp_path: Path) -> None:
    fed = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--threads", "1"]
    scores, plan = tmp_path / "scores", tmp_path / "plan.json"
    assert main(["score", str(case.model), *fed, "--activations", "--out", str(scores)]) == 0
    (scores / "times.json").write_text(table(case).to_json())
    budgets = ["--compression", "2", "--speedup", "1.2", "--scores", str(scores / "scores.json")]
    assert main(["allocate", str(case.model), *fed, *budgets, "--out", str(plan)]) == 0
    assert read_plan(plan) == read_plan(run / "plan.json")


def test_scores_without_activations_are_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fed = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--threads", "1"]
    assert main(["score", str(case.model), *fed, "--out", str(tmp_path)]) == 0
    budgets = [
        "--speedup",
        "1.2",
        "--scores",
        str(tmp_path / "scores.json"),
        "--out",
        str(tmp_path / "p.json"),
    ]
    assert main(["allocate", str(case.model), *fed, *budgets]) == 2
    assert "hold no activations" in capsys.readouterr().err


def test_a_table_of_another_model_is_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(case, tmp_path / "run", times=table(case, source_sha256="0" * 64)) == 2
    assert "was measured for another model" in capsys.readouterr().err


@pytest.mark.slow
def test_times_are_measured_of_every_form_of_every_shape(case: Case, tmp_path: Path) -> None:
    source = open_source(case.model)
    data = read_data(DataOptions(case.rollout, case.contexts, case.evaluation), source)
    bed = Testbed(
        source.lifted, source.survey, data.spec, data.scoring, RunOptions("cpu", batch=2, threads=1)
    )
    ready = prepared_source(source, Serving())
    menus = menus_of(source, ready, "fast", (Tier.INT8,), Serving(), rounded=True)
    found = measure_times(source, menus, size_of(source, ready), "fast", Serving(), bed, rounds=2)
    assert {(t.form, t.weights) for t in found.forms} == {(Form.DYNAMIC, ("W1",)), (Form.DYNAMIC, ("W2",))}
    assert (found.batch, found.threads, found.rounds) == (2, 1, 2)
    (tmp_path / "times.json").write_text(found.to_json())
    assert read_times(tmp_path / "times.json") == found


def test_the_largest_latency_is_the_inverse_of_the_speedup(case: Case, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "times.json").write_text(table(case).to_json())
    share = ["--compression", "2", "--max-latency", repr(1 / 1.2)]
    assert main(["quantize", str(case.model), *case.arguments("--out", str(out), *share)]) == 0
    assert (out / EMITTED).read_bytes() == (run / EMITTED).read_bytes()


def test_inputs_can_be_rounded_by_name_without_any_time(case: Case, tmp_path: Path) -> None:
    arguments = case.arguments(
        "--out", str(tmp_path), "--compression", "2", "--round-inputs", "W2", "--force"
    )
    assert main(["quantize", str(case.model), *arguments]) == 0
    plan = read_plan(tmp_path / "plan.json")
    assert [a.weight for a in plan.assignments if a.form is Form.DYNAMIC] == ["W2"]
    assert plan.time is None


def test_a_sweep_spends_time_and_bytes(case: Case, run: Path, tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text(table(case).to_json())
    axes = ["--compressions", "2", "--speedups", "1.2,1,1.6"]
    fed = case.arguments("--out", str(tmp_path), "--scores", str(run / "scores.json"), *axes)
    assert main(["sweep", str(case.model), *fed]) == 0
    found = {p.speedup: p for p in read_pareto(tmp_path / "pareto.json").points}
    rounded = {
        s: sum(a.form is Form.DYNAMIC for a in read_plan(tmp_path / f"{p.name}.plan.json").assignments)
        for s, p in found.items()
    }
    assert rounded == {1.0: 0, 1.2: 1, 1.6: 2}
    assert (found[1.2].latency_predicted, found[1.6].latency_predicted) == pytest.approx((0.8, 0.6))
    assert all(p.latency is not None for p in found.values())
    # Later points know the responses measured for earlier ones; the first is the plan of quantize.
    first = read_plan(tmp_path / f"{found[1.2].name}.plan.json")
    assert first.assignments == read_plan(run / "plan.json").assignments


def static_table(case: Case) -> TimeTable:
    return table(case, forms=(TimedForm(form=Form.STATIC, weights=("W1", "W2"), share=-0.2),))


@pytest.fixture(scope="module")
def explicit(case: Case) -> Path:
    out = case.model.parent / "explicit"
    assert ran(case, out, "--profile", "qdq", times=static_table(case)) == 0
    return out


def test_the_profile_qdq_fixes_ranges_in_advance(case: Case, explicit: Path) -> None:
    plan = read_plan(explicit / "plan.json")
    assert [a.form for a in plan.assignments].count(Form.STATIC) == 1
    operators = [n.op_type for n in onnx.load(explicit / EMITTED).graph.node]
    assert operators.count("QuantizeLinear") == 1
    assert "DynamicQuantizeLinear" not in operators
    assert (explicit / EMITTED).stat().st_size == plan.n_bytes
    verified = read_manifest(explicit / "manifest.json").verification
    assert verified.runtime_gap < 0.1 * verified.drift.total


def test_the_single_commands_give_the_same_explicit_plan(case: Case, explicit: Path, tmp_path: Path) -> None:
    fed = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--threads", "1"]
    scores, plan = tmp_path / "scores", tmp_path / "plan.json"
    ranges = ["--activations", "--ranges", "uint8"]
    assert main(["score", str(case.model), *fed, *ranges, "--out", str(scores)]) == 0
    (scores / "times.json").write_text(static_table(case).to_json())
    budgets = ["--compression", "2", "--speedup", "1.2", "--profile", "qdq"]
    known = ["--scores", str(scores / "scores.json"), "--out", str(plan)]
    assert main(["allocate", str(case.model), *fed, *budgets, *known]) == 0
    assert read_plan(plan) == read_plan(explicit / "plan.json")


def test_activations_rounded_in_another_way_are_refused(
    case: Case, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fed = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--threads", "1"]
    known = ["--scores", str(run / "scores.json"), "--out", str(tmp_path / "plan.json")]
    assert main(["allocate", str(case.model), *fed, "--speedup", "1.2", "--profile", "qdq", *known]) == 2
    assert "Run tqs score with --ranges uint8" in capsys.readouterr().err


def test_inspect_shows_the_sensitivity_of_inputs(
    case: Case, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(case.model), "--scores", str(run / "scores.json"), "--json"]) == 0
    shown = {w["name"]: w for w in json.loads(capsys.readouterr().out)["weights"]}
    scores = read_scores(run / "scores.json")
    known = {a.weight: a for a in scores.activations}
    assert shown["W1"]["input_gamma_task"] == known["W1"].gamma_task
    assert shown["W1"]["input_drift"] == pytest.approx((known["W1"].energy / scores.n_values) ** 0.5)
    assert all(w["input_gamma_task"] is None for name, w in shown.items() if name not in known)
