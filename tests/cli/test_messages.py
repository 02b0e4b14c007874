"""What the command line says: notes by level, parameters by their flags, commands by what they are for."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.cli import doctor
from tqs_onnx.cli.in_flags import in_flags
from tqs_onnx.cli.main import main
from tqs_passes.errors import InputError


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("case"), forecaster(), steps=1)


def quantized(case: Case, out: Path, *level: str) -> int:
    line = ["quantize", str(case.model), *case.arguments(), "--compression", "2", "--providers", "cpu"]
    return main([*level, *line, "--out", str(out), "--json"])


def test_notes_are_printed_unless_only_warnings_are_asked_for(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantized(case, tmp_path / "a") == 0
    assert "5 weights" in capsys.readouterr().err
    assert quantized(case, tmp_path / "b", "--log-level", "warning") == 0
    assert "5 weights" not in capsys.readouterr().err


def test_debug_names_every_pass_of_the_emission(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantized(case, tmp_path / "run") == 0
    plan, out = tmp_path / "run" / "plan.json", tmp_path / "again.onnx"
    capsys.readouterr()
    line = ["--log-level", "debug", "emit", str(case.model), "--plan", str(plan), "--out", str(out)]
    assert main(line) == 0
    said = capsys.readouterr().err
    assert "shrink-constants:" in said
    assert "rewrite: changed" in said


def test_the_level_of_one_command_does_not_stay(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantized(case, tmp_path / "a", "--log-level", "error") == 0
    assert quantized(case, tmp_path / "b") == 0
    assert logging.getLogger("tqs_onnx").level == logging.INFO
    assert "5 weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("`batch` must be at least 1, not 0"), "--batch must be at least 1, not 0"),
        (InputError("bad", where="refine.rounding.method"), "--rounding: bad"),
        (InputError("bad", where="score.horizons.0"), "--horizons: bad"),
        (InputError("exists", todo="Choose another `out`"), "exists. Choose another --out"),
        (InputError("weight `W` is odd", where="m.onnx"), "m.onnx: weight `W` is odd"),
    ],
)  # fmt: skip
def test_parameters_are_called_by_their_flags(error: InputError, line: str) -> None:
    assert in_flags(error) == line


def test_help_starts_no_runtime() -> None:
    script = (
        "import sys; from tqs_onnx.cli.main import main; main(['--help']); "
        "print([m for m in ('onnx', 'onnxruntime', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_level_may_stand_after_the_command(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["quantize", str(case.model), *case.arguments(), "--compression", "2", "--providers", "cpu"]
    assert main([*line, "--out", str(tmp_path / "a"), "--log-level", "error"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "lacks"),
    [
        (["baseline", "m.onnx", "--rollout", "r", "--contexts", "c", "--out", "r"], "--method"),
        (["sweep", "m.onnx", "--contexts", "c", "--out", "r"], "--scores"),
        (["verify", "m.onnx", "--plan", "p", "--scores", "s"], "--source"),
        (["package", "m.onnx", "--out", "r"], "--format"),
        (["emit", "m.onnx", "--plan", "p"], "--out"),
    ],
)
def test_a_required_option_that_is_missing_is_named(
    line: list[str], lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 2
    said = capsys.readouterr().err
    assert f"Missing option '{lacks}'" in said
    assert "\\n" not in said


def test_two_runtimes_side_by_side_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "installed_runtimes", lambda: ("onnxruntime", "onnxruntime-gpu"))
    assert main(["doctor"]) == 0
    assert "warning: onnxruntime and onnxruntime-gpu are installed together" in capsys.readouterr().out
