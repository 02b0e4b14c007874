"""The benchmark of frontiers runs, and its ratios are those of its costs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def test_the_quick_run_prints_what_a_point_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    bench = importlib.import_module("bench_frontier")
    bench.main(["--quick", "--method", "gptq", "--method", "energy"])
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == ["uniform gptq", "energy"]
    assert all(int(row[1]) == 2 and float(row[2]) > 0 for row in rows[2:])
    costs = {"gptq": bench.Cost(4, 8.0), "energy": bench.Cost(10, 30.0, 20.0)}
    assert bench.table(costs).splitlines()[-1] == "| energy | 10 | 3.00 | 1.50 | – | 5.00 |"
