"""A study runs every command once, and says what it ran and what it cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollouts import forecaster, write_case
from tools.study import runs as module
from tools.study.runs import Runs
from tools.study.section import Claim, Section, claim_table, command_table
from tqs_onnx.analysis.table import Table


def test_a_finished_command_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = write_case(tmp_path, forecaster(), n=4)
    runs = Runs(tmp_path / "runs")
    words = (
        "score",
        case.model,
        "--rollout",
        case.rollout,
        "--contexts",
        case.contexts,
        "--response-bits",
        "none",
    )
    folder = runs.run("one", *words)
    assert (folder / "scores.json").is_file()
    monkeypatch.setattr(module, "tqs", lambda line: pytest.fail(f"ran {line} again"))
    assert runs.run("one", *words) == folder
    cost = runs.cost("one")
    assert cost.command.startswith("tqs score ")
    assert cost.command.endswith(" --response-bits none --out one")
    assert 0 < cost.cpu_s < 60


def test_a_command_that_fails_is_not_finished(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    with pytest.raises(SystemExit, match="ended with 2"):
        runs.run("bad", "score", tmp_path / "none.onnx")
    assert not (tmp_path / "runs" / "bad" / "done.json").exists()


def test_a_section_names_its_data_and_its_runs(tmp_path: Path) -> None:
    table = Table("key", "Title", ("a", "b"), ((1, None),))
    section = Section(
        "One", "Body.", ("x",), (("one_data", table),), (Claim("so", "3", False), Claim("or so", "4", None))
    )
    assert "[one_data.csv](study/one_data.csv)" in section.text()
    assert "`x`" in section.text()
    assert [line.split(" | ")[-1] for line in claim_table([section]).splitlines()[2:]] == [
        "**false** |",
        "open |",
    ]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "done.json").write_text(
        '{"command": "tqs demo", "wall_s": 2.0, "cpu_s": 1.4, "resumed": false}'
    )
    assert "| `x` | 1 | `tqs demo` |" in command_table(Runs(tmp_path), [section])
