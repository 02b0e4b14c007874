"""The same scores, plan and codes give the same bytes: in another process, folder, locale, hash order and umask."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rollouts import forecaster, write_case
from tqs_onnx.cli.main import main

ROOT = Path(__file__).parents[2]
SURROUNDINGS = [
    {"PYTHONHASHSEED": "0", "LC_ALL": "C", "umask": "000", "TZ": "UTC"},
    {
        "PYTHONHASHSEED": "4711",
        "LC_ALL": "tr_TR.UTF-8",
        "umask": "077",
        "TZ": "Asia/Kathmandu",
        "LANG": "tr_TR",
    },
]


def elsewhere(arguments: list[str], folder: Path, surroundings: dict[str, str]) -> None:
    """Run the command line in a fresh process with these surroundings."""
    paths = os.pathsep.join(str(p) for p in (ROOT, ROOT / "passes", ROOT / "models"))
    more = {k: v for k, v in surroundings.items() if k != "umask"}
    done = subprocess.run(
        [sys.executable, "-m", "tqs_onnx.cli.main", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths} | more,
        umask=int(surroundings["umask"], 8),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def digests(folder: Path, *names: str) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with data-aware rounding, small constants, float16 scales and blocks: everything that is written."""
    folder = tmp_path_factory.mktemp("made")
    case = write_case(folder, forecaster(64, 128), steps=2)
    more = ["--compression", "3", "--rounding", "gptq", "--repair", "0", "--compute", "fp16"]
    assert main(["quantize", str(case.model), *case.arguments("--out", str(folder / "run")), *more]) == 0
    return folder


@pytest.mark.parametrize("surroundings", SURROUNDINGS, ids=["plain", "strange"])
@pytest.mark.slow
def test_a_plan_and_its_codes_are_emitted_to_the_same_bytes_anywhere(
    made: Path, tmp_path: Path, surroundings: dict[str, str]
) -> None:
    assert json.loads((made / "run/plan.json").read_text())["codes_sha256"] is not None
    other = tmp_path / "another place"
    shutil.copytree(made, other)
    (other / "run/m.tqs.onnx").unlink()
    elsewhere(
        ["emit", "../m.onnx", "--plan", "plan.json", "--out", "m.tqs.onnx"], other / "run", surroundings
    )
    assert digests(other / "run", "m.tqs.onnx") == digests(made / "run", "m.tqs.onnx")


@pytest.mark.slow
def test_scores_are_allocated_to_the_same_plan_and_file_anywhere(made: Path, tmp_path: Path) -> None:
    surroundings = SURROUNDINGS[1]
    arguments = ["--scores", str(made / "run/scores.json"), "--compression", "4"]
    plan, file = tmp_path / "plan.json", tmp_path / "m.tqs.onnx"
    here = tmp_path / "here.json"
    assert main(["allocate", str(made / "m.onnx"), *arguments, "--out", str(here)]) == 0
    assert (
        main(["emit", str(made / "m.onnx"), "--plan", str(here), "--out", str(tmp_path / "here.onnx")]) == 0
    )
    elsewhere(["allocate", str(made / "m.onnx"), *arguments, "--out", str(plan)], Path("/"), surroundings)
    elsewhere(
        ["emit", str(made / "m.onnx"), "--plan", str(plan), "--out", str(file)], Path("/"), surroundings
    )
    assert digests(tmp_path, "plan.json", "m.tqs.onnx") == digests(tmp_path, "here.json", "here.onnx")


def test_the_file_is_as_readable_as_the_umask_says(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    arguments = ["emit", str(made / "m.onnx"), "--plan", str(made / "run/plan.json"), "--out", str(out)]
    elsewhere(arguments, tmp_path, {"umask": "027"})
    assert out.stat().st_mode & 0o777 == 0o640
