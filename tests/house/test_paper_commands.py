"""Every command of docs/paper.md runs on a small model, and every table it names has rows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import forecaster, values, write_case
from tqs_onnx.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
MODEL = "model.onnx --rollout rollout.toml --contexts contexts.npz"
JUDGED = f"{MODEL} --eval-contexts eval.npz"
#: Commands that judge no file.
UNJUDGED = ("score",)


def commands() -> list[str]:
    """Return the commands of the page, in its order."""
    found = ["tqs quantize … --compression 8 --out run"]
    found += [c for c in re.findall(r"`(tqs [^`]+)`", PAGE) if " " in c.removeprefix("tqs ")]
    return list(dict.fromkeys(found))


def words(command: str) -> list[str]:
    """Return the arguments of a command; the small model is compressed as far as it goes."""
    verb = command.split()[1]
    text = command.replace("…", MODEL if verb in UNJUDGED else JUDGED)
    text = text.replace("--compression 8", "--compression 3").replace("--compression 4", "--compression 2")
    return shlex.split(text)[1:]


@pytest.mark.slow
def test_every_command_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = write_case(tmp_path, forecaster(), steps=4, n=6)
    case.model.rename(tmp_path / "model.onnx")
    scoring = dict(np.load(case.contexts))
    np.savez(tmp_path / "other.npz", **{k: values(*v.shape, seed=5) for k, v in scoring.items()})
    monkeypatch.chdir(tmp_path)
    seen: set[str] = set()
    for command in commands():
        given = words(command)
        if given[0] in ("sweep",):
            given += ["--baseline-bits", "4", "--compressions", "2,3"]
        if given[0] not in ("analyse", "report"):
            given += ["--threads", "1", "--providers", "cpu"]
        assert main([*given, "--json"]) == 0, command
        printed = capsys.readouterr().out
        if given[0] == "analyse":
            assert all(table["rows"] for table in json.loads(printed).values()), command
        seen.add(given[0])
    assert {"quantize", "score", "sweep", "analyse", "report", "baseline", "curvature"} <= seen
