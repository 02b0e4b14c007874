"""Every script in `examples/` runs as a person would run it, and prints what its docstring promises."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
#: Words that the output of each script must hold.
PRINTS = {
    "quickstart": ("verdict", "4 times smaller", "gate drift<=0.1", "holds", "model.tqs.onnx"),
    "stages": ("open_model: 31 weights", "most sensitive", "tiers", "bytes", "3 times smaller", "holds"),
    "frontier": ("W8: uniform", "W4: uniform", "W3: uniform", "mixed"),
    "notebook": ("scored 31 of 31", "tqs_onnx.jobs.quantize: 31 weights", "<table>", "3 times smaller"),
}


def test_every_example_is_known_here() -> None:
    assert {file.stem for file in EXAMPLES} == PRINTS.keys()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_says_what_it_prints(file: Path) -> None:
    assert "rint" in (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=() if f.stem == "quickstart" else pytest.mark.slow) for f in EXAMPLES],
    ids=lambda file: file.stem,
)
def test_an_example_runs(file: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join(str(p) for p in (ROOT, ROOT / "passes", ROOT / "models"))
    done = subprocess.run(
        [sys.executable, str(file)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for words in PRINTS[file.stem]:
        assert words in done.stdout
