"""Outputs that cannot be: one line, exit 2, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.test_bad_input import errors
from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.cli.main import main

BUILD = """version = 1
model = "m.onnx"
[data]
rollout = "rollout.toml"
contexts = "contexts.npz"
eval_contexts = "eval.npz"
[plan]
compression = 1.5
"""


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path / "in", forecaster())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must end with exit 2 and one line; return the line."""
    assert main(list(arguments)) == 2
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("tqs: error: ")
    return line


def quantize(case: Case, out: Path, *more: str) -> list[str]:
    return ["quantize", str(case.model), *case.arguments("--out", str(out), "--compression", "1.5", *more)]


def looped(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


@pytest.mark.parametrize("kind", ["loop", "in a loop", "long", "below a file"])
@pytest.mark.parametrize("command", ["quantize", "score", "allocate", "emit", "package", "export", "build"])
def test_an_output_that_cannot_be_is_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    out = {
        "loop": lambda: looped(tmp_path),
        "in a loop": lambda: looped(tmp_path) / "run",
        "long": lambda: tmp_path / ("n" * 300),
        "below a file": lambda: case.model / "run",
    }[kind]()
    (tmp_path / "in" / "tqs.toml").write_text(BUILD)
    arguments = {
        "quantize": quantize(case, out)[1:],
        "score": [str(case.model), *case.arguments()[:4], "--out", str(out)],
        "allocate": [str(case.model), "--scores", "none", "--compression", "2", "--out", str(out)],
        "emit": [str(case.model), "--plan", "none", "--out", str(out)],
        "package": [str(case.model), "--format", "olive", "--out", str(out)],
        "export": ["pangu", "--out", str(out), "--grid", "9x9"],
        "build": [str(tmp_path / "in" / "tqs.toml"), "--out", str(out)],
    }[command]
    before = sorted(p.name for p in tmp_path.rglob("*"))
    refused(capsys, command, *arguments)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("key", ["model", "out", "rollout", "contexts"])
@pytest.mark.parametrize("value", ["n\\u0000n", "n" * 300, "loop/x"], ids=["null", "long", "loop"])
def test_a_path_in_a_build_file_that_cannot_be_is_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    (tmp_path / "in" / "loop").symlink_to("loop")
    (tmp_path / "in" / "tqs.toml").write_text(
        BUILD.replace("version = 1", 'version = 1\nout = "run"').replace(f"{key} = ", f'{key} = "{value}" # ')
    )
    refused(capsys, "build", str(tmp_path / "in" / "tqs.toml"))
    assert not (tmp_path / "in" / "run" / "plan.json").exists()


@pytest.mark.parametrize("name", ["plan.json", "m.tqs.onnx", "scores.json"])
def test_a_folder_in_the_place_of_an_output_is_refused_even_by_force(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    line = refused(capsys, *quantize(case, tmp_path / "run", "--force"))
    assert f"{name}: cannot be replaced (is a folder)" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search and write every folder")
@pytest.mark.parametrize("command", ["quantize", "export"])
def test_an_output_below_a_folder_without_permissions_is_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    try:
        if command == "quantize":
            refused(capsys, *quantize(case, closed / "run"))
        else:
            refused(capsys, "export", "pangu", "--out", str(closed / "run"))
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1}', "\0", "9" * 5000])
def test_a_list_of_unfinished_files_that_is_none_counts_as_absent(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".unfinished").write_text(text)
    (tmp_path / "run" / "plan.json").write_text("{}")
    assert "already holds plan.json" in refused(capsys, *quantize(case, tmp_path / "run"))


@pytest.mark.parametrize(
    "words",
    [
        ["build", "loop"],
        ["build", "loop.json", "--out", "again"],
        ["report", "loop"],
        ["analyse", "loop"],
        ["diff", "m.onnx", "loop"],
        ["compare", "m.onnx", "loop", "--rollout", "rollout.toml", "--contexts", "contexts.npz"],
        ["inspect", "loop"],
        ["package", "loop", "--format", "olive", "--out", "out"],
    ],
    ids=" ".join,
)
def test_an_input_that_is_a_loop_of_links_is_one_line(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(case.model.parent)
    for name in ("loop", "loop.json"):
        Path(name).symlink_to(name)
    refused(capsys, *words)
