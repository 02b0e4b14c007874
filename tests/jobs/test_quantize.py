"""The pipeline as a library: what a run directory holds after success and after failure."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import Case, forecaster, values, write_case
from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.file_size import FileSize
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.tier_set import TierSet
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, quantize
from tqs_onnx.jobs.run_directory import emitted_name, run_directory
from tqs_onnx.refinement.refine import RefineOptions
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rounding.assign import RoundingOptions
from tqs_passes.errors import GateError, InputError
from tqs_passes.files.model import sha256_of_file
from tqs_passes.plan.plan import read_plan
from tqs_passes.tier import Tier


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path / "in", forecaster())


def job(case: Case, **changes: object) -> Job:
    data = DataOptions(case.rollout, case.contexts, case.evaluation)
    out = case.model.parent.parent / "run"
    force = bool(changes.pop("force", False))
    given = {"budget": Budget(changes.pop("compression", 2.0)), "run": RunOptions("cpu", threads=1)}
    return Job(case.model, data, out, QuantizeOptions(**(given | changes)), force)


#: What took long and is whole.
KEPT = [".unfinished", "codes.npz", "plan.json", "scores.csv", "scores.json", "sweep.sqlite"]


def left(job: Job) -> list[str]:
    return sorted(p.name for p in job.out.iterdir())


def test_the_manifest_names_inputs_output_and_plan_by_digest(case: Case) -> None:
    outcome = quantize(job(case))
    manifest = json.loads(outcome.manifest_file.read_text())
    assert manifest["inputs"]["model"] == {"m.onnx": sha256_of_file(case.model)}
    assert manifest["inputs"]["evaluation"] == {"eval.npz": sha256_of_file(case.evaluation)}
    assert manifest["output"] == {"m.tqs.onnx": sha256_of_file(outcome.emitted)}
    assert manifest["plan_sha256"] == read_plan(outcome.plan_file).digest()
    assert manifest["settings"]["options"]["profile"] == "fast"


def test_the_same_job_gives_the_same_bytes(case: Case) -> None:
    first = quantize(job(case)).emitted.read_bytes()
    assert quantize(job(case, force=True)).emitted.read_bytes() == first


def test_the_tiers_allowed_are_the_tiers_used(case: Case) -> None:
    plan = quantize(job(case, compression=1.5, tiers=TierSet((Tier.FP32, Tier.BF16)))).plan
    assert {a.tier for a in plan.assignments} == {Tier.FP32, Tier.BF16}


def test_the_memory_allowed_bounds_the_source_not_what_its_file_unfolds_to(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int | None] = {}

    def loadable(path: Path, provider: str, max_memory: int | None = None, device: int = 0) -> None:
        asked[path.name] = max_memory

    monkeypatch.setattr(stages, "require_loadable", loadable)
    quantize(job(case, run=RunOptions("cpu", threads=1, max_memory=10**8)))
    assert asked == {"m.onnx": 10**8, "m.tqs.onnx": None}


def test_a_file_that_fails_its_verification_is_removed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise GateError("no")

    monkeypatch.setattr(stages, "verified", refused)
    with pytest.raises(GateError):
        quantize(job(case))
    assert left(job(case)) == KEPT


def test_a_gate_that_cannot_be_evaluated_leaves_no_emitted_file(case: Case) -> None:
    with pytest.raises(InputError, match="no such variable"):
        quantize(job(case, gates=("drift:variable=w<=1",)))
    assert left(job(case)) == KEPT


def test_a_failed_rerun_leaves_no_manifest_of_the_earlier_one(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(job(case))

    def refused(*_: object, **__: object) -> None:
        raise GateError("no")

    monkeypatch.setattr(stages, "verified", refused)
    with pytest.raises(GateError):
        quantize(job(case, force=True))
    assert left(job(case)) == KEPT


def test_a_job_that_fails_before_its_scores_leaves_an_earlier_run_as_it_was(case: Case) -> None:
    quantize(job(case))
    before = {p.name: p.read_bytes() for p in job(case).out.iterdir()}
    case.contexts.unlink()
    with pytest.raises(InputError):
        quantize(job(case, force=True))
    assert {p.name: p.read_bytes() for p in job(case).out.iterdir()} == before


def stop_at(monkeypatch: pytest.MonkeyPatch, stage: str, error: type[BaseException], stopped: Job) -> None:
    """Run a job that is stopped at a stage."""

    def stop(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(stages, stage, stop)
        with pytest.raises(error):
            quantize(stopped)


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the file that a job writes which nothing stops."""
    case = write_case(tmp_path_factory.mktemp("in_one_go") / "in", forecaster())
    return quantize(job(case)).emitted.read_bytes()


@pytest.mark.parametrize("stage", ["planned", "refined", "emitted", "verified", "recorded"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_the_same_job_goes_on_where_it_was_stopped(
    case: Case, in_one_go: bytes, monkeypatch: pytest.MonkeyPatch, stage: str, stop: type[BaseException]
) -> None:
    stop_at(monkeypatch, stage, stop, job(case))
    again = quantize(job(case))
    assert ".unfinished" not in left(job(case))
    with pytest.raises(InputError, match="already holds"):
        quantize(job(case))
    assert again.emitted.read_bytes() == in_one_go


def test_a_forced_job_that_is_stopped_before_it_writes_leaves_a_finished_run_finished(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(job(case))
    stop_at(monkeypatch, "scored", KeyboardInterrupt, job(case, force=True))
    with pytest.raises(InputError, match="already holds"):
        quantize(job(case))


def test_what_an_unfinished_job_left_is_not_everybodys(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_inside(tmp_path, "plan.json")
    (tmp_path / "scores.json").write_text("{}")
    with (
        pytest.raises(InputError, match=r"already holds scores\.json"),
        run_directory(tmp_path, ["scores.json", "plan.json"], force=False),
    ):
        pass
    with run_directory(tmp_path, ["other.json"], force=False) as begin:
        begin()
    with run_directory(tmp_path, ["plan.json"], force=False) as begin:  # still the unfinished job's
        begin()
    assert left_in(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "\xff", '["../x"]'])
def test_a_marker_that_says_nothing_names_no_file(tmp_path: Path, text: str) -> None:
    (tmp_path / ".unfinished").write_text(text, encoding="latin-1")
    (tmp_path / "plan.json").write_text("{}")
    with (
        pytest.raises(InputError, match="already holds"),
        run_directory(tmp_path, ["plan.json"], force=False),
    ):
        pass


def left_in(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir())


def fail_inside(out: Path, *writes: str) -> None:
    with run_directory(out, list(writes), force=False) as begin:
        begin()
        for name in writes:
            (out / name).write_text("{}")
        raise KeyError


def test_a_run_directory_is_removed_with_the_parents_it_made(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_inside(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_inside(tmp_path)
    assert tmp_path.is_dir()


def test_what_a_failed_job_already_wrote_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyError):
        fail_inside(out, "scores.json")
    assert (out / "scores.json").exists()


def test_the_budget_is_the_file_over_the_compression() -> None:
    size = FileSize(1000, 10, 5)
    assert Budget(8.0).n_bytes((), size) == 125
    assert Budget(3.0).n_bytes((), size) == 333
    assert Budget(max_bytes=77).n_bytes((), size) == 77
    assert Budget(1e-320).n_bytes((), size) > 10**18


def test_the_emitted_name_follows_the_model() -> None:
    assert emitted_name(Path("dir/net.v2.onnx")) == "net.v2.tqs.onnx"


def test_one_set_of_contexts_is_not_both_scored_on_and_evaluated_on(case: Case) -> None:
    alone = replace(job(case), data=DataOptions(case.rollout, case.contexts))
    with pytest.raises(InputError, match="holds one set of contexts"):
        quantize(alone)
    assert not alone.out.exists()


def test_a_calibration_set_of_its_own_is_named_in_the_manifest(case: Case) -> None:
    own = case.contexts.with_name("calibration.npz")
    np.savez(own, x=values(3, 16, seed=20))
    data = DataOptions(case.rollout, case.contexts, case.evaluation, calibration=own)
    rounding = RefineOptions(repair_rounds=0, rounding=RoundingOptions("gptq"))
    changed = replace(job(case, refine=rounding, compression=3.0), data=data)
    theirs = quantize(changed)
    assert json.loads(theirs.manifest_file.read_text())["inputs"]["calibration"] == {
        own.name: sha256_of_file(own)
    }
    ours = quantize(job(case, refine=rounding, compression=3.0, force=True))
    assert ours.plan.codes_sha256 != theirs.plan.codes_sha256


def test_calibration_contexts_that_are_evaluated_on_are_refused(case: Case) -> None:
    data = DataOptions(case.rollout, case.contexts, case.evaluation, calibration=case.evaluation)
    with pytest.raises(InputError, match="is also calibration context 0"):
        quantize(replace(job(case), data=data))


def test_a_job_measures_its_responses_once(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tqs_onnx")
    measured = PlanOptions(objective=Objective.MEASURED)
    rounding = RefineOptions(rounding=RoundingOptions("gptq"))
    first = quantize(job(case, plan=measured, refine=rounding, compression=3.0))
    again = quantize(job(case, plan=measured, refine=rounding, compression=3.0, force=True))
    lines = [line for line in caplog.messages if line.startswith("measured the responses of")]
    assert len(lines) == 2
    assert not lines[0].startswith("measured the responses of 0 ")
    assert lines[1].startswith("measured the responses of 0 ")
    assert again.emitted.read_bytes() == first.emitted.read_bytes()
