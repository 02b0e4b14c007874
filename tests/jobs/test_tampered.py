"""Plans and codes that were edited by hand: what they say must be what the file is, or emit and verify refuse it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.cli.main import main
from tqs_onnx.rounding.codes_file import codes_digest, read_codes, write_codes
from tqs_passes.grids.grid import Codes


@dataclass(frozen=True)
class Run:
    """A finished job in a folder."""

    case: Case
    out: Path

    def emit(self) -> int:
        arguments = ["--plan", str(self.out / "plan.json"), "--out", str(self.out / "m.tqs.onnx"), "--force"]
        return main(["emit", str(self.case.model), *arguments])

    def verify(self) -> int:
        files = ["--source", str(self.case.model), "--plan", str(self.out / "plan.json")]
        files += ["--scores", str(self.out / "scores.json"), "--force"]
        return main(["verify", str(self.out / "m.tqs.onnx"), *files, *self.case.arguments()])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("made")
    case = write_case(folder / "in", forecaster(32, 64))
    arguments = [
        "--compression",
        "4",
        "--rounding",
        "qep",
        "--tiers",
        "FP32,INT8,INT4",
        "--response-bits",
        "none",
    ]
    assert main(["quantize", str(case.model), *case.arguments("--out", str(folder / "run")), *arguments]) == 0
    return Run(case, folder / "run")


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.out, tmp_path / "run")
    return replace(made, out=tmp_path / "run")


def with_plan(run: Run, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the plan, and the first of its assignments that has codes."""
    path = run.out / "plan.json"
    document = json.loads(path.read_text())
    names = read_codes(run.out / "codes.npz")
    change(document, next(a for a in document["assignments"] if a["weight"] in names))
    path.write_text(json.dumps(document))


def with_codes(run: Run, change: Callable[[Codes], Codes]) -> None:
    """Change the codes of the first weight, and their digest in the plan."""
    codes = read_codes(run.out / "codes.npz")
    name = next(iter(codes))
    codes[name] = change(codes[name])
    write_codes(run.out / "codes.npz", codes)
    with_plan_digest = codes_digest(codes)
    path = run.out / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codes_sha256": with_plan_digest}))


def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> str:
    """Require that emit and verify refuse, each in one line, and return what emit said."""
    before = (run.out / "m.tqs.onnx").read_bytes()
    assert run.verify() in (2, 3)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert "internal" not in line
    assert run.emit() == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert not (run.out / "m.tqs.onnx").exists() or (run.out / "m.tqs.onnx").read_bytes() == before
    return line


def test_the_run_as_it_is_emits_and_verifies(run: Run) -> None:
    assert run.emit() == 0
    assert run.verify() == 0


@pytest.mark.parametrize("n_bytes", [0, 1, 10**30])
def test_impossible_bytes_of_a_weight_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str], n_bytes: int
) -> None:
    with_plan(run, lambda plan, a: a.update(n_bytes=n_bytes))
    assert f"the plan states {n_bytes} bytes for weight" in refused(run, capsys)


def test_another_size_of_the_file_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with_plan(run, lambda plan, a: plan.update(n_bytes=10**30))
    assert f"the plan states {10**30} bytes, but the file has" in refused(run, capsys)


def test_another_profile_is_another_plan(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with_plan(run, lambda plan, a: plan.update(profile="exact" if plan["profile"] != "exact" else "fast"))
    assert run.verify() == 2
    assert "was emitted from another plan" in capsys.readouterr().err


def test_another_rounding_error_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with_plan(run, lambda plan, a: a.update(error_energy=a["error_energy"] * 2))
    assert "the rounding error" in refused(run, capsys)


@pytest.mark.parametrize("factor", [0, -1, np.nan])
def test_scales_that_are_none_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    with_codes(run, lambda c: replace(c, scales=(c.scales * np.float32(factor)).astype(c.scales.dtype)))
    assert "are not" in refused(run, capsys)


def test_scales_of_another_size_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with_codes(run, lambda c: replace(c, scales=(c.scales * np.float32(1000)).astype(c.scales.dtype)))
    assert "the rounding error" in refused(run, capsys)


@pytest.mark.parametrize("kind", ["flipped", "npy", "folder", "cut", "empty"])
def test_codes_that_are_none_are_one_line(run: Run, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = run.out / "codes.npz"
    raw = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "npy":
        with path.open("wb") as stream:
            np.save(stream, np.arange(3))
    else:
        at = len(raw) // 2
        changed = {"flipped": raw[:at] + bytes([raw[at] ^ 8]) + raw[at + 1 :], "cut": raw[:at], "empty": b""}
        path.write_bytes(changed[kind])
    damaged = "is not a codes file" if kind == "folder" else "cannot be read as NumPy arrays (damaged"
    assert f"codes.npz: {damaged}" in refused(run, capsys)
