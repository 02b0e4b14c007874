"""The float16 control: a file like any other, without a plan."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.cli.main import main


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path / "in", forecaster(64, 128), steps=2)


def control(case: Case, out: Path, *more: str) -> int:
    arguments = ["--method", "fp16", "--providers", "cpu", "--out", str(out), *more]
    return main(["baseline", str(case.model), *case.arguments(), *arguments])


def test_the_control_is_half_the_size_and_close(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control(case, tmp_path / "run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert 1.8 < found["compression"] < 2.0
    assert 0 < found["drift_measured"] < 0.01
    stored = onnx.load(tmp_path / "run" / "m.fp16.onnx").graph.initializer
    assert onnx.TensorProto.FLOAT16 in {t.data_type for t in stored}


def test_its_manifest_names_inputs_and_output(case: Case, tmp_path: Path) -> None:
    assert control(case, tmp_path / "run") == 0
    manifest = json.loads((tmp_path / "run" / "control.json").read_text())
    assert set(manifest["inputs"]) == {"model", "rollout", "contexts", "evaluation"}
    assert set(manifest["output"]) == {"m.fp16.onnx"}
    assert manifest["settings"]["command"] == "baseline fp16"


def test_a_gate_that_fails_is_exit_code_three(case: Case, tmp_path: Path) -> None:
    assert control(case, tmp_path / "run", "--max-drift", "1e-9") == 3


def test_another_method_needs_its_width(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--method", "rtn", "--out", str(tmp_path / "run")]
    assert main(["baseline", str(case.model), *case.arguments(), *out]) == 2
    assert "--bits" in capsys.readouterr().err


def test_what_chooses_integers_is_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control(case, tmp_path / "run", "--bits", "3") == 2
    assert "--bits: does not apply to --method fp16" in capsys.readouterr().err
