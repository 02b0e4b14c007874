"""Strangers' models go through the whole trip with nothing but the model, or the model and a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.strangers.shapes import STRANGERS
from tqs_onnx.cli.main import main
from tqs_onnx.rollout.spec.spec import load_spec

SMALL = [
    *("keras-remaining-life", "block-of-rows", "torch-lstm", "mask-with-state", "speech", "attention-cache"),
    *("darts-block", "two-fields", "time-first", "baked-batch"),
]


def written(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(next(s for s in STRANGERS if s.name == name).build().SerializeToString())
    return path


@pytest.mark.parametrize("name", SMALL)
def test_the_model_alone_is_enough(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, run = written(name, tmp_path / "in"), tmp_path / "run"
    line = ["quantize", str(model), "--max-bytes", str(2 * model.stat().st_size), "--contexts", "made:4"]
    assert main([*line, "--tiers", "FP16", "--out", str(run), "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert "rollout drafted: assumed" in said.err
    assert "made 4 contexts" in said.err
    assert "on made contexts" in said.out or "made contexts" in said.out
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["verification"]["on_made_contexts"]
    assert load_spec(run / "rollout.toml").version == 1


def test_a_model_and_a_table_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, run = written("patches", tmp_path / "in"), tmp_path / "run"
    rows = np.sin(np.arange(700)[:, None] / np.array([3.0, 5.0])) + 0.01 * np.arange(700)[:, None] % 1
    text = "time,load,price\n" + "\n".join(
        f"2020-01-01T{i:04d},{a:.6f},{b:.6f}" for i, (a, b) in enumerate(rows)
    )
    table = tmp_path / "table.csv"
    table.write_text(text.replace("2020-01-01T", "n"), encoding="utf-8")
    line = ["quantize", str(model), "--contexts", str(table), "--compression", "2", "--threads", "1"]
    code = main([*line, "--out", str(run)])
    said = capsys.readouterr()
    assert code == 0, said.err
    spec = load_spec(run / "rollout.toml")
    assert spec.windows is not None
    assert spec.windows.input == "context"
    names = json.loads((run / "manifest.json").read_text())["verification"]["truth"]
    assert set(names) == {"load", "price"}


def test_a_rollout_that_was_edited_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, run = written("torch-lstm", tmp_path / "in"), tmp_path / "run"
    line = [
        "quantize",
        str(model),
        "--max-bytes",
        "9000",
        "--contexts",
        "made:2",
        "--tiers",
        "FP16",
        "--threads",
        "1",
    ]
    assert main([*line, "--out", str(run)]) == 0
    (run / "rollout.toml").write_text((run / "rollout.toml").read_text().replace("steps = 16", "steps = 4"))
    capsys.readouterr()
    assert main([*line, "--out", str(run), "--force"]) == 2
    assert "differs from the draft" in capsys.readouterr().err
