"""The study of default settings: its uniform files fit, and its table counts what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tools.study.zoo import data_root
from tqs_onnx.inputs.bundled import demo_files
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.inputs.source import open_source

if not (data_root() / "ETT-small").is_dir():
    pytest.skip("the public tables are not here ($TQS_DATA)", allow_module_level=True)

from tools.study import defaults


def demo() -> defaults.Case:
    files = demo_files()
    data = DataOptions(files.rollout, files.contexts, files.evaluation)
    return defaults.Case(files.model, data, data)


@pytest.mark.parametrize(("share", "bits"), [(0.6, 16), (0.3, 8), (0.13, 3)])
def test_the_uniform_plan_is_the_widest_that_fits(share: float, bits: int) -> None:
    case = demo()
    budget = int(share * open_source(case.model).facts.n_bytes)
    plan = defaults.uniform_of(case, budget)
    assert plan is not None
    assert plan.n_bytes <= budget
    widths = {a.tier.bits for a in plan.assignments}
    assert widths == {bits, 16}


def test_no_uniform_plan_is_smaller_than_one_bit() -> None:
    assert defaults.uniform_of(demo(), 1000) is None


def row(
    model: str, compression: int, drift: float, predicted: float, interval: tuple[float, float]
) -> dict[str, Any]:
    low, high = interval
    best = {"best": "4 bits, gptq", "best_bytes": 90, "best_drift": 0.2, "low": low, "high": high}
    return {
        "model": model,
        "compression": compression,
        "bytes": 100,
        "drift": drift,
        "predicted": predicted,
        "chosen": "measured",
        **best,
    }


def test_the_summary_counts_by_compression_and_by_the_kind_of_contexts() -> None:
    rows = [
        row("a", 4, 0.1, 0.1, (0.4, 0.6)),
        row("b", 4, 0.4, 0.2, (0.9, 3.0)),
        row("a, no data", 8, 0.3, 0.1, (1.2, 2.0)),
    ]
    text = defaults.summary(rows)
    assert (
        "C = 4: less drift in 1 of 2, not more within the interval in 2 of 2, surely less in 1 of 2" in text
    )
    assert "geometric mean of the ratio 1.00" in text
    assert (
        "C = 8: less drift in 0 of 1, not more within the interval in 0 of 1, surely less in 0 of 1" in text
    )
    assert "real contexts: within 1.3 in 1, within 1.5 in 1, within 2 in 2 of 2" in text
    assert "made contexts: within 1.3 in 0, within 1.5 in 0, within 2 in 0 of 1" in text


def test_a_row_shows_the_ratio_with_its_interval() -> None:
    cells = defaults.line_of(row("a", 4, 0.1, 0.05, (0.4, 0.6)))
    assert cells[4] == "2.00"
    assert cells[-1] == "0.50 (0.40 … 0.60)"


def test_a_file_that_equals_the_model_has_no_prediction_to_hold() -> None:
    same = row("a", 2, 0.0, 0.0, (0.0, 0.0))
    assert defaults.line_of(same)[4] == "–"
    text = defaults.summary([same, row("b", 2, 0.1, 0.1, (0.4, 0.6))])
    assert "C = 2: less drift in 2 of 2" in text
    assert "geometric mean of the ratio 0.50" in text


@pytest.mark.slow
def test_a_model_of_another_person_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (data_root() / "models" / "rul").is_dir():
        pytest.skip("the models of other people are not here ($TQS_DATA)")
    out = tmp_path / "table.md"
    command = ["defaults", "--runs", str(tmp_path), "--out", str(out), "--model", "rul"]
    monkeypatch.setattr(sys, "argv", command)
    defaults.main()
    first = out.read_text(encoding="utf-8")
    assert first.count("\n| rul |") == len(defaults.COMPRESSIONS)
    monkeypatch.setattr(defaults, "row_of", None)  # what is kept is not measured again
    defaults.main()
    assert out.read_text(encoding="utf-8") == first
