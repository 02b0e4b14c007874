from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.rollouts import forecaster, write_case
from tqs_models.lorenz96 import files
from tqs_onnx.cli.main import main
from tqs_onnx.emission import emit
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.baseline import BaselineJob, baseline
from tqs_onnx.jobs.options import BaselineOptions
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rounding.codes_file import read_codes
from tqs_passes.plan.plan import read_plan


def job(out: Path, method: str, bits: int = 3, **options: object) -> BaselineJob:
    found = files()
    data = DataOptions(
        found.rollout, found.contexts, found.evaluation, steps=3, max_contexts=6, max_eval_contexts=8
    )
    chosen = BaselineOptions(bits, method, run=RunOptions("cpu", threads=1), **options)
    return BaselineJob(found.model, data, out, chosen)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run directory a method."""
    folder = tmp_path_factory.mktemp("baselines")
    for method in ("rtn", "mse", "gptq"):
        baseline(job(folder / method, method))
    return {method: folder / method for method in ("rtn", "mse", "gptq")}


def manifest(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())


def test_every_method_writes_a_file_of_the_same_size(runs: dict[str, Path]) -> None:
    # float16 or float32 scales are chosen by their range, which rounding does not move here
    assert len({(run / "model.tqs.onnx").stat().st_size for run in runs.values()}) == 1


def test_gptq_drifts_less_than_rounding_to_nearest(runs: dict[str, Path]) -> None:
    drift = {m: manifest(run)["verification"]["drift"]["total"] for m, run in runs.items()}
    assert drift["gptq"] < min(drift["rtn"], drift["mse"])


def test_every_matrix_has_the_width_asked_for_and_the_rest_is_fp16(runs: dict[str, Path]) -> None:
    plan = read_plan(runs["gptq"] / "plan.json")
    # the column of 64 values at the end is smaller in FP16 than with its scale and nodes
    wide = {a.tier.value for a in plan.assignments if len(a.shape) > 1 and a.label != "output.weight"}
    # a bias of few values is smaller as it is than with the node that would cast it
    narrow = {a.tier.value for a in plan.assignments if len(a.shape) == 1}
    assert wide == {"INT3"}
    assert narrow <= {"FP16", "FP32"}


def test_the_convolution_is_rounded_with_data_too(runs: dict[str, Path]) -> None:
    plan = read_plan(runs["gptq"] / "plan.json")
    said = {a.label: a.rounding for a in plan.assignments}
    assert said["embed.weight"] == "gptq"


def test_source_plan_and_codes_give_the_same_file_again(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["gptq"]
    source = open_source(files().model)
    emit(source.lifted, read_plan(run / "plan.json"), tmp_path / "again.onnx", read_codes(run / "codes.npz"))
    assert (tmp_path / "again.onnx").read_bytes() == (run / "model.tqs.onnx").read_bytes()


def test_the_file_predicts_no_drift_that_nobody_scored(runs: dict[str, Path]) -> None:
    assert read_plan(runs["gptq"] / "plan.json").predicted_drift is None


def test_the_settings_say_how_it_was_rounded(runs: dict[str, Path]) -> None:
    settings = manifest(runs["gptq"])["settings"]
    assert settings["rounding_used"]["method"] == "gptq"
    assert settings["data_aware"] is True


def test_the_emitted_file_passes_the_checker(runs: dict[str, Path]) -> None:
    onnx.checker.check_model(onnx.load(runs["gptq"] / "model.tqs.onnx"), full_check=True)


def given(method: str, bits: int, out: Path, *options: str) -> list[str]:
    """Return the command line of a run of one step on two contexts."""
    found = files()
    line = ["baseline", str(found.model), "--method", method, "--bits", str(bits), "--out", str(out)]
    line += ["--rollout", str(found.rollout), "--contexts", str(found.contexts)]
    line += ["--eval-contexts", str(found.evaluation), "--threads", "1", "--steps", "1"]
    return [*line, "--max-contexts", "2", "--max-eval-contexts", "2", *options]


def test_the_command_prints_the_summary_of_quantize_and_the_rounding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(given("qep", 2, tmp_path / "run", "--qep-damp", "0.1", "--qep-strength", "1", "--json"))
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    assert summary["rounding"]["qep_damp"] == 0.1
    assert np.isfinite(summary["drift_measured"])
    assert {"bytes_in", "bytes_out", "compression", "manifest", "notes"} <= set(summary)


def test_a_failed_gate_is_exit_code_three(tmp_path: Path) -> None:
    assert main(given("rtn", 2, tmp_path / "run", "--max-drift", "1e-6")) == 3


def test_an_earlier_run_is_not_replaced_unless_forced(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given("rtn", 3, runs["rtn"])) == 2
    assert "already holds" in capsys.readouterr().err


def test_a_calibration_set_of_its_own_changes_the_codes(tmp_path: Path) -> None:
    found = files()
    with np.load(found.contexts) as archive:
        others = {name: archive[name][-4:] for name in archive.files}
    np.savez(tmp_path / "calibration.npz", **others)
    for out, more in (("scoring", []), ("own", ["--calibration", str(tmp_path / "calibration.npz")])):
        assert main(given("gptq", 2, tmp_path / out, *more)) == 0
    plans = [read_plan(tmp_path / out / "plan.json") for out in ("scoring", "own")]
    assert plans[0].codes_sha256 != plans[1].codes_sha256
    assert manifest(tmp_path / "own")["inputs"]["calibration"]


def old_model(folder: Path) -> tuple[Path, list[str]]:
    """Write a model of opset 8, which has no operators to decode integers with; return it and its data options."""
    case = write_case(folder / "in", forecaster())
    proto = onnx.load(case.model)
    proto.opset_import[0].version = 8  # its operators were the same then
    onnx.save(proto, case.model)
    return case.model, case.arguments()


def test_a_width_that_an_opset_has_not_is_refused_not_widened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = old_model(tmp_path)
    asked = ["baseline", str(model), "--method", "rtn", "--bits", "2", *data, "--out", str(tmp_path / "run")]
    assert main(asked) == 2
    assert "opset 8 has no integer tiers, which need 9 or more; set --opset to 13" in capsys.readouterr().err
    assert main([*asked, "--opset", "13"]) == 0
    plan = read_plan(tmp_path / "run" / "plan.json")
    assert {a.tier for a in plan.assignments if len(a.shape) > 1} == {"INT2"}


def test_quantize_says_that_an_opset_has_no_integers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = old_model(tmp_path)
    assert main(["quantize", str(model), *data, "--compression", "4", "--out", str(tmp_path / "run")]) == 4
    said = capsys.readouterr().err
    assert "note: opset 8 has no integer tiers" in said
    assert "the smallest file is" in said
