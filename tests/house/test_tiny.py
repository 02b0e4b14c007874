"""Does it work at all? The whole trip on a small model, in under two seconds."""

from pathlib import Path

from tests.rollouts import forecaster, write_case
from tqs_onnx.cli.main import main


def test_a_small_model_becomes_smaller_and_is_verified(tmp_path: Path) -> None:
    case = write_case(tmp_path / "in", forecaster(24, 96))
    run = tmp_path / "run"
    assert main(["quantize", str(case.model), *case.arguments("--out", str(run), "--compression", "3")]) == 0
    assert 3 * (run / "m.tqs.onnx").stat().st_size <= case.model.stat().st_size
    names = {
        "m.tqs.onnx",
        "plan.json",
        "codes.npz",
        "scores.json",
        "scores.csv",
        "manifest.json",
        "sweep.sqlite",
        "traces.npz",
    }
    assert {p.name for p in run.iterdir()} == names
