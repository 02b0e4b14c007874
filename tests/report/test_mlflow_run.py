"""Logging a run to MLflow, with a client that writes down what it is told."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tqs_onnx.cli.main import main
from tqs_onnx.report.run import read_run


class Client:
    """Stands for the module mlflow."""

    class exceptions:  # noqa: N801  (the module's own name)
        class MlflowException(Exception):  # noqa: N818
            """What it raises."""

    def __init__(self, refuses: str = "") -> None:
        self.told: dict[str, Any] = {"artifacts": [], "steps": []}
        self.refuses = refuses

    @contextlib.contextmanager
    def start_run(self, run_name: str) -> Iterator[SimpleNamespace]:
        if self.refuses:
            raise self.exceptions.MlflowException(self.refuses)
        self.told["name"] = run_name
        yield SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def log_params(self, values: dict[str, str]) -> None:
        self.told["params"] = values

    def log_metrics(self, values: dict[str, float]) -> None:
        self.told["metrics"] = values

    def log_metric(self, name: str, value: float, step: int) -> None:
        self.told["steps"].append((name, value, step))

    def log_artifact(self, path: str) -> None:
        self.told["artifacts"].append(Path(path).name)


def test_settings_figures_and_files_are_logged(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client()
    monkeypatch.setitem(sys.modules, "mlflow", client)
    assert main(["report", str(run), "--out", str(tmp_path / "r.html"), "--mlflow", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mlflow_run"] == "abc"
    manifest = read_run(run).manifest
    assert manifest is not None
    v = manifest.verification
    told = client.told
    assert told["params"]["budget.compression"] == "2.0"
    assert told["metrics"]["drift"] == v.drift.total
    assert told["metrics"]["worst_degradation"] == max(e.degradation or 0.0 for e in v.errors.values())
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_/ .-") for name in told["metrics"])
    assert told["steps"] == [("drift_by_step", d, i) for i, d in enumerate(v.drift.per_step, 1)]
    assert {"manifest.json", "plan.json", "r.html", "card.md"} <= set(told["artifacts"])


def test_a_refusal_and_a_missing_client_are_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", Client("no server\nat all"))
    words = ["report", str(run), "--force", "--mlflow", "--out"]
    assert main([*words, str(tmp_path / "a.html")]) == 2
    assert "MLflow refuses: no server. Check" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main([*words, str(tmp_path / "b.html")]) == 2
    assert "pip install mlflow-skinny" in capsys.readouterr().err
