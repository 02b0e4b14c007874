"""The whole study on few contexts: every run, every section, every file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.study.__main__ import main
from tools.study.zoo import TABLES, data_root


@pytest.mark.slow
def test_the_quick_study_writes_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [data_root() / TABLES["ETTh1"][0], data_root() / "gridded" / "era5_gulf" / "era5_2007.nc"]
    missing = [str(path) for path in needed if not path.is_file()]
    if missing:
        pytest.skip(f"not under $TQS_DATA: {', '.join(missing)}")
    out = tmp_path / "out"
    words = ["study", "--quick", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    text = (out / "STUDY.md").read_text(encoding="utf-8")
    assert text.count("\n## ") >= 18
    assert " nan" not in text
    for name in ("table2_dead", "table13_matched", "figure1_frontier", "table8_growth", "a12_state"):
        assert len((out / "study" / f"{name}.csv").read_text(encoding="utf-8").splitlines()) > 1, name
    runs = {path.parent: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/done.json")}
    main()
    assert runs == {path.parent: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/done.json")}
